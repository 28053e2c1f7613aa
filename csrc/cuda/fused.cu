// Power of square fields in one kernel: pixels in, bin sums and selected modes out. A field stays in shared memory.
#include <cfloat>
#include <cmath>
#include <limits>

#include "kernels.hpp"
#include "square.cuh"

namespace fastcrit::cuda {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// A field's threads wait for each other.
template <int Side>
__device__ void wait_for_field() {
    if (Square<Side>::threads <= 32) {
        __syncwarp();
    } else {
        __syncthreads();
    }
}

__device__ inline float sign(float value) { return value >= 0.0F ? 1.0F : -1.0F; }

/// What is nearly all of a field, if it has that: it would drown the rest in the rounding of the transform. The middle
/// one of three pixels, where it is so many times as large as its distance from the next; otherwise 0.
template <int Side, class T>
__device__ float uniform_part(const T* field, const View& view) {
    if (view.signs) return 0.0F;
    constexpr int places[3] = {0, Side * Side / 2 + Side / 3, Side * Side - 1};
    float pixel[3] = {};
    FASTCRIT_UNROLL
    for (int i = 0; i < 3; ++i) {
        pixel[i] = to_float(field[places[i]]) - (view.offset != nullptr ? view.offset[places[i]] : 0.0F);
    }
    const float low = fminf(pixel[0], pixel[1]);
    const float high = fmaxf(pixel[0], pixel[1]);
    const float middle = fmaxf(low, fminf(high, pixel[2]));
    const float next = fminf(middle - fminf(low, pixel[2]), fmaxf(high, pixel[2]) - middle);
    constexpr float heavy = 32.0F;
    return finite(middle) && fabsf(middle) > heavy * next ? middle : 0.0F;
}

/// First pass along the columns, from memory, less what is uniform. Neighbouring threads have neighbouring columns.
/// Returns the sum of what the thread reads, if wanted.
template <int Side, class T>
__device__ double read_columns(const T* field, const View& view, float uniform, const Complex* roots,
                               Shared<Complex> values, int base, int thread, bool active, bool want_total) {
    using S = Square<Side>;
    constexpr int radix = S::Columns::radix;
    constexpr int below = S::Columns::Next::length;  // rows from one value of a butterfly to the next
    double total = 0.0;
    FASTCRIT_UNROLL_BY(1)
    for (int i = thread; i < Side * below; i += S::threads) {
        const int x = i % Side;
        const int row = i / Side;
        const int begin = 2 * row * Side + x;
        Complex z[radix] = {};
        if (S::fields == 1 || active) {
            const T* const pixels = field + begin;
            FASTCRIT_UNROLL
            for (int j = 0; j < radix; ++j) {
                z[j] = {to_float(pixels[2 * j * below * Side]), to_float(pixels[(2 * j * below + 1) * Side])};
            }
        }
        if (view.signs) {
            FASTCRIT_UNROLL
            for (int j = 0; j < radix; ++j) z[j] = {sign(z[j].re), sign(z[j].im)};
        } else if (view.offset != nullptr) {
            const float* const offset = view.offset + begin;
            FASTCRIT_UNROLL
            for (int j = 0; j < radix; ++j) {
                z[j] = z[j] - Complex{offset[2 * j * below * Side], offset[(2 * j * below + 1) * Side]};
            }
        }
        if (want_total) {
            FASTCRIT_UNROLL
            for (int j = 0; j < radix; ++j) total += static_cast<double>(z[j].re) + static_cast<double>(z[j].im);
        }
        FASTCRIT_UNROLL
        for (int j = 0; j < radix; ++j) z[j] = z[j] - Complex{uniform, uniform};
        transform(z);
        if (below > 1) Twiddles<radix>(roots, row, Side / S::height).apply(z);
        const int first = base + S::place(row, x);
        FASTCRIT_UNROLL
        for (int j = 0; j < radix; ++j) values[first + S::place(j * below, 0)] = z[j];
    }
    return total;
}

/// The passes from P on, of every column of blocks of rows.
template <int Side, class P>
__device__ void transform_columns(const Complex* roots, Shared<Complex> values, int base, int thread) {
    if constexpr (P::length > 1) {
        using S = Square<Side>;
        constexpr int below = P::Next::length;
        wait_for_field<Side>();
        FASTCRIT_UNROLL_BY(1)
        for (int i = thread; i < Side * S::height / P::radix; i += S::threads) {
            const int x = i % Side;
            const int n = i / Side % below;
            const int first = base + S::place(i / Side / below * P::length + n, x);
            Complex z[P::radix];
            FASTCRIT_UNROLL
            for (int j = 0; j < P::radix; ++j) z[j] = values[first + S::place(j * below, 0)];
            transform(z);
            if (below > 1) Twiddles<P::radix>(roots, n, Side / P::length).apply(z);
            FASTCRIT_UNROLL
            for (int j = 0; j < P::radix; ++j) values[first + S::place(j * below, 0)] = z[j];
        }
        transform_columns<Side, typename P::Next>(roots, values, base, thread);
    }
}

/// Rows in an order in which those of a half warp, as many as 16 values hold runs of a butterfly's step, begin that
/// step apart modulo 16.
template <int Side, int Step>
__device__ int spread_rows(int i) {
    constexpr int apart = 16 * Step / Side;
    constexpr int rows = 16 / Step * apart <= Side / 2 ? 16 / Step : Side / 2 / apart;
    if constexpr (apart < 2) {
        return i;
    } else {
        return i / (rows * apart) * (rows * apart) + i % rows * apart + i / rows % apart;
    }
}

/// Likewise of rows.
template <int Side, class P>
__device__ void transform_rows(const Complex* roots, Shared<Complex> values, int base, int thread) {
    if constexpr (P::length > 1) {
        using S = Square<Side>;
        constexpr int below = P::Next::length;
        constexpr int butterflies = Side / P::radix;
        if (kFault != Fault::missing_barrier || P::length < Side) wait_for_field<Side>();
        FASTCRIT_UNROLL_BY(1)
        for (int i = thread; i < S::height * butterflies; i += S::threads) {
            const int n = i % butterflies % below;
            const int row = spread_rows<Side, below>(i / butterflies);
            // A butterfly's values begin where no carry into x / 16 can come from n.
            const int first = base + S::place(row, i % butterflies / below * P::length + n);
            Complex z[P::radix];
            FASTCRIT_UNROLL
            for (int j = 0; j < P::radix; ++j) z[j] = values[first + S::place(0, j * below)];
            transform(z);
            if (below > 1) Twiddles<P::radix>(roots, n, Side / P::length).apply(z);
            FASTCRIT_UNROLL
            for (int j = 0; j < P::radix; ++j) values[first + S::place(0, j * below)] = z[j];
        }
        transform_rows<Side, typename P::Next>(roots, values, base, thread);
    }
}

/// Whether an amplitude is there whose power is below the normal numbers.
__device__ inline bool lost(Complex amplitude, float power) {
    return power < FLT_MIN && (amplitude.re != 0.0F || amplitude.im != 0.0F);
}

/// Writes the powers of the modes (ky, kx) and (ky + height, kx), with those of their mirror images, over Z(ky, kx); to
/// k = 0 comes what is uniform. Returns whether no power was lost.
template <int Side>
__device__ bool square_in_place(const HalfHeightSpectrum<Side>& spectrum, float uniform, int ky, int kx) {
    using S = Square<Side>;
    const int here = S::place_of_mode(ky, kx);
    const int mirror = S::place_of_mode(-ky, -kx);
    auto both = spectrum.separate(here, mirror, ky);
    if (here == S::place_of_mode(0, 0)) both.lower.re += 2.0F * static_cast<float>(S::sites) * uniform;
    // Modes that are their own mirror images, or each other's, count once. Amplitudes are doubled.
    const float scale = (here == mirror ? 0.25F : 0.5F) / static_cast<float>(S::sites);
    const Complex powers{norm(both.lower) * scale, norm(both.upper) * scale};
    spectrum.values[spectrum.base + here] = powers;
    return !lost(both.lower, powers.re) && !lost(both.upper, powers.im);
}

template <int Side>
__device__ bool square_all(const HalfHeightSpectrum<Side>& spectrum, float uniform, int thread) {
    using S = Square<Side>;
    bool good = true;
    FASTCRIT_UNROLL_BY(2)
    for (int i = thread; i < S::height * S::height; i += S::threads) {
        const int kx = i % S::height;
        const int ky = i / S::height;
        if (kx > 0 || ky <= S::height / 2) good = square_in_place(spectrum, uniform, ky, kx) && good;
    }
    for (int ky = thread; ky <= S::height / 2; ky += S::threads) {
        good = square_in_place(spectrum, uniform, ky, S::height) && good;
    }
    return good;
}

/// Sums by bin, a few lanes each. Returns whether all that this thread knows are finite; `power` becomes the sum of
/// those that are its own.
template <int Side>
__device__ bool sum_bins(const Segments<std::uint16_t>& bins, Shared<float> powers, int base, int thread, float* out,
                         float& power) {
    const int groups = Square<Side>::threads / bins.threads;
    const int lane = thread % bins.threads;
    bool good = true;
    for (int first = 0; first < bins.bins; first += groups) {
        const int bin = first + thread / bins.threads;
        float sum = 0.0F;  // of seven values at most
        if (bin < bins.bins) {
            const int end = bins.begin[bin + 1] - (kFault == Fault::partial_warp && bins.threads > 1 ? 1 : 0);
            FASTCRIT_UNROLL_BY(4)
            for (int i = bins.begin[bin] + lane; i < end; i += bins.threads) sum += powers[base + bins.at[i]];
        }
        const float all = sum_lanes(sum, bins.threads);
        good = good && finite(all);
        if (lane != 0 || bin >= bins.bins) continue;
        power += all;
        if (out != nullptr) out[bin] = all;
    }
    return good;
}

template <int Side, class T>
__global__ void __launch_bounds__(Square<Side>::block, Square<Side>::blocks) fused(FusedRequest request) {
    using S = Square<Side>;
    const int thread = static_cast<int>(threadIdx.x) % S::threads;
    const int slot = static_cast<int>(threadIdx.x) / S::threads;
    const std::int64_t field = std::int64_t{blockIdx.x} * S::fields + slot;
    const bool active = field < request.fields.count;
    const Shared<Complex> values = dynamic_shared<Complex>(S::fields * S::pitch);
    const int base = slot * S::pitch;
    const Complex* const roots = request.roots;

    const T* const pixels = static_cast<const T*>(request.fields.data) + (active ? field : 0) * S::sites;
    const float uniform = uniform_part<Side>(pixels, request.view);
    double total = read_columns<Side>(pixels, request.view, uniform, roots, values, base, thread, active,
                                      request.totals != nullptr);
    constexpr int warps = S::threads / 32;
    FASTCRIT_SHARED(double, parts, warps > 1 ? warps : 1);
    if (request.totals != nullptr) {
        total = sum_lanes(total, warps > 0 ? 32 : S::threads);
        if (warps > 1 && thread % 32 == 0) parts[thread / 32] = total;
        if (warps <= 1 && active && thread == 0) request.totals[field] = total;
    }
    transform_columns<Side, typename S::Columns::Next>(roots, values, base, thread);
    if (warps > 1 && request.totals != nullptr && thread == 0) {
        total = 0.0;
        for (int w = 0; w < warps; ++w) total += parts[w];
        request.totals[field] = total;
    }
    transform_rows<Side, typename S::Rows>(roots, values, base, thread);
    wait_for_field<Side>();

    const HalfHeightSpectrum<Side> spectrum{values, base, roots};
    if (request.modes != nullptr) {
        for (int i = thread; i < request.n_selected; i += S::threads) {
            const ModePlace place = request.selected[i];
            const auto both = spectrum.separate(place.here, place.mirror, place.ky);
            Complex mode = place.upper != 0 ? both.upper : both.lower;
            if (place.here == S::place_of_mode(0, 0) && place.upper == 0) {
                mode.re += 2.0F * static_cast<float>(S::sites) * uniform;
            }
            if (active) request.modes[field * request.n_selected + i] = {0.5F * mode.re, 0.5F * mode.im};
        }
        wait_for_field<Side>();
    }
    const bool in_range = square_all(spectrum, uniform, thread);
    wait_for_field<Side>();
    float power = 0.0F;
    const bool good = sum_bins<Side>(request.bins, values.template as<float>(), 2 * base, thread,
                                     active ? request.sums + field * request.bins.bins : nullptr, power);
    if (request.totals == nullptr) return;

    // After the barriers, and so after the total. All who write write the same.
    if (!good && active) request.totals[field] = kNaN;
    // Fields that float holds the squares of lose powers, too, but none of weight.
    power = sum_lanes(power, warps > 0 ? 32 : S::threads);
    float losses = sum_lanes(in_range ? 0.0F : 1.0F, warps > 0 ? 32 : S::threads);
    FASTCRIT_SHARED(float, of_warps, warps > 1 ? 2 * warps : 1);
    if (warps > 1) {
        if (thread % 32 == 0) {
            of_warps[2 * (thread / 32)] = power;
            of_warps[2 * (thread / 32) + 1] = losses;
        }
        __syncthreads();
        power = losses = 0.0F;
        for (int w = 0; w < warps; ++w) {
            power += of_warps[2 * w];
            losses += of_warps[2 * w + 1];
        }
    }
    if (losses > 0.0F && power < FLT_MIN * S::sites && active) request.totals[field] = kNaN;
}

template <int Side, class T>
void launch_typed(const FusedRequest& request, void* stream) {
    using S = Square<Side>;
    const std::int64_t blocks = (request.fields.count + S::fields - 1) / S::fields;
    launch(&fused<Side, T>, dim3(static_cast<unsigned>(blocks)), dim3(S::block), S::shared_bytes, stream, request);
}

template <int Side>
void launch_side(const FusedRequest& request, void* stream) {
    switch (request.fields.type) {
        case Type::float32: return launch_typed<Side, float>(request, stream);
        case Type::float16: return launch_typed<Side, Half>(request, stream);
        case Type::bfloat16: return launch_typed<Side, BFloat16>(request, stream);
    }
}

/// More than 48 KiB of shared memory are to be asked for, once.
template <int Side>
void allow_shared_memory() {
    constexpr auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
    FASTCRIT_CUDA_CHECK(cudaFuncSetAttribute(&fused<Side, float>, limit, Square<Side>::shared_bytes));
    FASTCRIT_CUDA_CHECK(cudaFuncSetAttribute(&fused<Side, Half>, limit, Square<Side>::shared_bytes));
    FASTCRIT_CUDA_CHECK(cudaFuncSetAttribute(&fused<Side, BFloat16>, limit, Square<Side>::shared_bytes));
}

template <int Side>
FusedTables make_tables(const Lattice& lattice) {
    using S = Square<Side>;
    FusedTables tables;
    tables.roots = make_roots(Side);
    for (const Bins bins : {Bins::shells, Bins::orbits}) {
        const auto& bin_of_mode = bins == Bins::shells ? lattice.shell_of_mode() : lattice.orbit_of_mode();
        std::vector<std::pair<std::int32_t, std::uint16_t>> powers;
        for (int kx = 0; kx <= S::height; ++kx) {
            const bool own_mirror = kx % S::height == 0;
            for (int ky = 0; ky < (own_mirror ? S::height / 2 + 1 : S::height); ++ky) {
                for (int upper = 0; upper < 2; ++upper) {
                    powers.emplace_back(bin_of_mode[static_cast<std::size_t>(kx * Side + ky + upper * S::height)],
                                        static_cast<std::uint16_t>(2 * S::place_of_mode(ky, kx) + upper));
                }
            }
        }
        // An orbit has at most four of these powers; a shell, about as many as the side is long.
        const std::int32_t threads = bins == Bins::orbits ? 1 : Side < 64 ? 8 : 32;
        const auto n = bins == Bins::shells ? lattice.shells() : static_cast<std::int32_t>(lattice.orbits().size());
        const auto as_it_is = [](std::uint16_t at) { return at; };
        tables.bins[static_cast<int>(bins)] = SegmentTables<std::uint16_t>(std::move(powers), n, threads, as_it_is);
    }
    allow_shared_memory<Side>();
    return tables;
}

template <int Side>
ModePlace mode_place(std::int32_t mode) {
    using S = Square<Side>;
    const int kx = mode / Side;
    const int ky = mode % Side;
    return {static_cast<std::uint16_t>(S::place_of_mode(ky, kx)),
            static_cast<std::uint16_t>(S::place_of_mode(-ky, -kx)), static_cast<std::uint16_t>(ky % S::height),
            static_cast<std::uint16_t>(ky / S::height)};
}

}  // namespace

bool has_fused(const Lattice& lattice) {
    const std::int32_t side = lattice.sides()[2];
    return lattice.ndim() == 2 && lattice.sides()[1] == side && (side == 16 || side == 32 || side == 64 || side == 128);
}

FusedTables make_fused_tables(const Lattice& lattice) {
    switch (lattice.sides()[2]) {
        case 16: return make_tables<16>(lattice);
        case 32: return make_tables<32>(lattice);
        case 64: return make_tables<64>(lattice);
        default: return make_tables<128>(lattice);
    }
}

std::vector<ModePlace> mode_places(const Lattice& lattice, const std::vector<std::int32_t>& modes) {
    std::vector<ModePlace> places;
    for (const std::int32_t mode : modes) {
        switch (lattice.sides()[2]) {
            case 16: places.push_back(mode_place<16>(mode)); break;
            case 32: places.push_back(mode_place<32>(mode)); break;
            case 64: places.push_back(mode_place<64>(mode)); break;
            default: places.push_back(mode_place<128>(mode)); break;
        }
    }
    return places;
}

void launch_fused(int side, const FusedRequest& request, void* stream) {
    switch (side) {
        case 16: return launch_side<16>(request, stream);
        case 32: return launch_side<32>(request, stream);
        case 64: return launch_side<64>(request, stream);
        default: return launch_side<128>(request, stream);
    }
}

}  // namespace fastcrit::cuda
