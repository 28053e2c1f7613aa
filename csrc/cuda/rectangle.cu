// Power of fields of any even height whose sides have no prime factor above 7, as in fused.cu: passes, places and
// factors come from tables, so that one kernel serves all shapes.
#include <algorithm>
#include <complex>
#include <cstddef>
#include <functional>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "common/roots.hpp"
#include "finish.cuh"
#include "transform.cuh"

namespace fastcrit::cuda {
namespace {

template <int Radix>
__device__ void apply_twiddles(const Pass& pass, int n, Complex (&z)[Radix]) {
    if (pass.twiddles == nullptr) return;
    if (kFault == Fault::wrong_twiddle && n == 1) n = 0;
    const Complex* const factors = pass.twiddles + n * (Radix - 1);
    FASTCRIT_UNROLL
    for (int q = 1; q < Radix; ++q) z[q] = z[q] * factors[q - 1];
}

template <int Radix, class T>
__device__ void read_pass(const RectanglePlan& plan, const FieldRequest& request, const T* field, float uniform,
                          const Shared<Complex>& values, const BlockTeam& team, double& total) {
    const Pass& pass = plan.pass[0];
    FASTCRIT_UNROLL_BY(1)
    for (int i = team.thread; i < pass.count; i += team.threads) {
        const std::uint32_t first = pass.first[i];
        const int at = static_cast<int>(first & 0xffffU);
        const int n = static_cast<int>(first >> 16);
        const int begin = i + n * plan.width;  // x + 2 n width: i is x + n width
        Complex z[Radix];
        read_pixels<Radix>(field + begin, request.view.offset + (request.view.offset != nullptr ? begin : 0),
                           request.view, uniform, plan.rows_apart, plan.width, request.totals != nullptr, total, z);
        transform(z);
        apply_twiddles<Radix>(pass, n, z);
        FASTCRIT_UNROLL
        for (int j = 0; j < Radix; ++j) values[at + j * pass.apart] = z[j];
    }
}

template <int Radix>
__device__ void run_pass(const Pass& pass, const Shared<Complex>& values, const BlockTeam& team) {
    FASTCRIT_UNROLL_BY(1)
    for (int i = team.thread; i < pass.count; i += team.threads) {
        const std::uint32_t first = pass.first[i];
        const int at = static_cast<int>(first & 0xffffU);
        Complex z[Radix];
        FASTCRIT_UNROLL
        for (int j = 0; j < Radix; ++j) z[j] = values[at + j * pass.apart];
        transform(z);
        apply_twiddles<Radix>(pass, static_cast<int>(first >> 16), z);
        FASTCRIT_UNROLL
        for (int j = 0; j < Radix; ++j) values[at + j * pass.apart] = z[j];
    }
}

constexpr int kRadices[] = {2, 3, 4, 5, 6, 7, 8, 10};

/// visit(std::integral_constant<int, radix>).
template <class Visit>
__device__ void with_radix(int radix, const Visit& visit) {
    switch (radix) {
        case 2: return visit(std::integral_constant<int, 2>());
        case 3: return visit(std::integral_constant<int, 3>());
        case 4: return visit(std::integral_constant<int, 4>());
        case 5: return visit(std::integral_constant<int, 5>());
        case 6: return visit(std::integral_constant<int, 6>());
        case 7: return visit(std::integral_constant<int, 7>());
        case 8: return visit(std::integral_constant<int, 8>());
        default: return visit(std::integral_constant<int, 10>());
    }
}

template <class T>
__global__ void __launch_bounds__(1024, 1)
    rectangle(const __grid_constant__ RectanglePlan plan, const __grid_constant__ FieldRequest request) {
    const BlockTeam team{static_cast<int>(threadIdx.x), plan.threads};
    const std::int64_t field = blockIdx.x;
    const Shared<Complex> values = dynamic_shared<Complex>(plan.shared_bytes / 8);
    const T* const pixels = static_cast<const T*>(request.fields.data) + field * plan.height * plan.width;
    const float uniform = uniform_part(pixels, request.view, plan.height, plan.width);
    double total = 0.0;
    with_radix(plan.pass[0].radix, [&](auto radix) {
        read_pass<decltype(radix)::value>(plan, request, pixels, uniform, values, team, total);
    });
    for (int p = 1; p < plan.passes; ++p) {
        if (kFault != Fault::missing_barrier || p > 1) team.wait();
        with_radix(plan.pass[p].radix,
                   [&](auto radix) { run_pass<decltype(radix)::value>(plan.pass[p], values, team); });
    }
    team.wait();
    finish_field(team, request, values, 0, field, true, pixels, uniform, total);
}

/// The radices of a length's passes, the fewest and cheapest; empty for a length with another prime factor, or 1.
std::vector<int> radices_of(std::int32_t length) {
    // Of a value in a pass: to load, store and multiply it, and its share of the butterfly.
    constexpr double costs[] = {4.0, 5.0, 4.5, 6.5, 6.0, 8.0, 5.5, 8.0};
    std::vector<int> best;
    double least = 0.0;
    for (std::size_t i = 0; i < std::size(kRadices); ++i) {
        if (length % kRadices[i] != 0) continue;
        std::vector<int> radices{kRadices[i]};
        double cost = costs[i];
        if (length > kRadices[i]) {
            const std::vector<int> rest = radices_of(length / kRadices[i]);
            if (rest.empty()) continue;
            radices.insert(radices.end(), rest.begin(), rest.end());
            for (const int radix : rest) {
                cost += costs[std::find(std::begin(kRadices), std::end(kRadices), radix) - std::begin(kRadices)];
            }
        }
        if (best.empty() || cost < least) best = radices, least = cost;
    }
    std::sort(best.begin(), best.end(), std::greater<>());
    return best;
}

/// Where the digits of a place along one axis count: strides[p] of pass p's digit, the last 1. Bit p of `pads` leaves
/// a place out behind each group of pass p's digit.
std::vector<std::int32_t> strides_of(const std::vector<int>& radices, unsigned pads) {
    std::vector<std::int32_t> strides(radices.size(), 1);
    for (std::size_t p = radices.size() - 1; p-- > 0;) {
        strides[p] = radices[p + 1] * strides[p + 1] + static_cast<std::int32_t>(pads >> p & 1U);
    }
    return strides;
}

struct Axis {
    std::vector<int> radices;
    std::vector<std::int32_t> strides;

    std::int32_t length() const {
        std::int32_t product = 1;
        for (const int radix : radices) product *= radix;
        return product;
    }
    /// Values from one of a butterfly to the next, in pass p.
    std::int32_t below(std::size_t p) const {
        std::int32_t product = 1;
        for (std::size_t i = p + 1; i < radices.size(); ++i) product *= radices[i];
        return product;
    }
    std::int32_t place(std::int32_t i) const {
        std::int32_t at = 0;
        for (std::size_t p = 0; p < radices.size(); ++p) at += i / below(p) % radices[p] * strides[p];
        return at;
    }
    /// The values that butterflies of pass p begin with.
    std::vector<std::int32_t> begins(std::size_t p) const {
        std::vector<std::int32_t> all;
        for (std::int32_t i = 0; i < length(); ++i) {
            if (i / below(p) % radices[p] == 0) all.push_back(i);
        }
        return all;
    }
    std::int32_t place_of_frequency(std::int32_t f) const {
        std::int32_t at = 0;
        for (std::size_t p = 0; p < radices.size(); ++p, f /= radices[p - 1]) at += f % radices[p] * strides[p];
        return at;
    }
};

}  // namespace

struct RectangleLayout {
    Axis rows, columns;
    std::int32_t pitch;

    /// Butterflies of pass p, columns first: the places of their first values, and n.
    std::vector<std::uint32_t> first(std::size_t p) const {
        const bool down = p < rows.radices.size();
        const Axis& along = down ? rows : columns;
        const std::size_t own = down ? p : p - rows.radices.size();
        const std::int32_t below = along.below(own);
        std::vector<std::uint32_t> all;
        const auto add = [&](std::int32_t line, std::int32_t i) {
            const std::int32_t at = down ? along.place(i) * pitch + columns.place(line) : line * pitch + along.place(i);
            all.push_back(static_cast<std::uint32_t>(at) | static_cast<std::uint32_t>(i % below) << 16);
        };
        if (down) {  // neighbouring threads have neighbouring columns
            for (const std::int32_t i : along.begins(own)) {
                for (std::int32_t x = 0; x < columns.length(); ++x) add(x, i);
            }
        } else {
            const std::vector<std::int32_t> begins = along.begins(own);
            for (std::int32_t y = 0; y < rows.length(); ++y) {
                for (const std::int32_t i : begins) add(y, i);
            }
        }
        return all;
    }
    std::size_t passes() const { return rows.radices.size() + columns.radices.size(); }
    std::int32_t values() const { return rows.length() * pitch; }

    /// Accesses of half warps along the rows that must wait for another to the same bank, in a hundred of all. (Down
    /// the columns there are next to none.)
    double conflicts() const {
        std::int64_t waits = 0;
        std::int64_t all = 0;
        for (std::size_t own = 0; own < columns.radices.size(); ++own) {
            const std::vector<std::int32_t> begins = columns.begins(own);
            const auto lines = static_cast<std::size_t>(std::min(rows.length(), 16));
            for (std::size_t i = 0; i < lines * begins.size(); i += 16) {
                int in_bank[16] = {};
                for (std::size_t j = i; j < std::min(i + 16, lines * begins.size()); ++j) {
                    const auto line = static_cast<std::int32_t>(j / begins.size());
                    ++in_bank[(line * pitch + columns.place(begins[j % begins.size()])) % 16];
                }
                waits += *std::max_element(in_bank, in_bank + 16) - 1;
                ++all;
            }
        }
        return 100.0 * static_cast<double>(waits) / static_cast<double>(all);
    }
};

namespace {

constexpr std::int32_t kMostPlaces = 1 << 15;  // a word's number has 16 bits

/// The arrangement with the fewest conflicts; a pitch of 0 where there is none. A row ends with a hole.
RectangleLayout layout_of(std::int32_t height, std::int32_t width) {
    RectangleLayout best{{}, {}, 0};
    std::vector<int> along = radices_of(width);
    const std::vector<int> down = radices_of(height / 2);
    if (height % 2 != 0 || down.empty() || along.empty()) return best;
    const Axis rows{down, strides_of(down, 0)};
    double least = 0.0;
    std::sort(along.begin(), along.end());
    do {
        for (unsigned pads = 0; pads < 1U << (along.size() - 1); ++pads) {
            const Axis columns{along, strides_of(along, pads)};
            const std::int32_t narrow = columns.place(width - 1) + 2;
            for (std::int32_t pitch = narrow; pitch < narrow + 16; ++pitch) {
                const RectangleLayout layout{rows, columns, pitch};
                if (layout.values() > kMostPlaces) break;
                // Wasted places keep blocks off a multiprocessor.
                const double waste = 100.0 * (static_cast<double>(pitch) / width - 1.0);
                const double cost = layout.conflicts() + waste;
                if (best.pitch == 0 || cost < least) best = layout, least = cost;
            }
        }
    } while (std::next_permutation(along.begin(), along.end()));
    return best;
}

std::int32_t shared_memory_of_block() {
    int device = 0;
    int bytes = 0;
    FASTCRIT_CUDA_CHECK(cudaGetDevice(&device));
    FASTCRIT_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    return bytes - 1024;  // what the kernel has besides
}

template <class T>
void launch_typed(const RectanglePlan& plan, const FieldRequest& request, void* stream) {
    if (request.fields.count > INT32_MAX) throw std::invalid_argument("count: too many fields for one launch");
    launch(&rectangle<T>, dim3(static_cast<unsigned>(request.fields.count)), dim3(static_cast<unsigned>(plan.threads)),
           static_cast<std::size_t>(plan.shared_bytes), stream, plan, request);
}

}  // namespace

std::optional<RectangleTables> RectangleTables::of(const Lattice& lattice) {
    if (lattice.ndim() != 2 || lattice.sides()[1] % 2 != 0 || lattice.sites() / 2 > kMostPlaces) return std::nullopt;
    const RectangleLayout layout = layout_of(lattice.sides()[1], lattice.sides()[2]);
    if (layout.pitch == 0 || 8 * layout.values() > shared_memory_of_block()) return std::nullopt;
    return RectangleTables(layout);
}

RectangleTables::RectangleTables(const RectangleLayout& layout) {
    const std::int32_t height = 2 * layout.rows.length();
    const std::int32_t width = layout.columns.length();
    std::vector<std::uint32_t> first;
    std::vector<Complex> twiddles;
    std::vector<std::size_t> first_at;
    std::vector<std::size_t> twiddles_at;
    plan_.height = height;
    plan_.width = width;
    plan_.passes = static_cast<std::int32_t>(layout.passes());
    plan_.shared_bytes = 8 * layout.values();
    // Some butterflies of every pass for each thread.
    plan_.threads = 32;
    while (plan_.threads < 1024 && plan_.threads * 48 < height * width) plan_.threads *= 2;
    for (std::size_t p = 0; p < layout.passes(); ++p) {
        const bool down = p < layout.rows.radices.size();
        const Axis& along = down ? layout.rows : layout.columns;
        const std::size_t own = down ? p : p - layout.rows.radices.size();
        const int radix = along.radices[own];
        const std::int32_t below = along.below(own);
        const std::vector<std::uint32_t> places = layout.first(p);
        Pass& pass = plan_.pass[p];
        pass.radix = radix;
        pass.count = static_cast<std::int32_t>(places.size());
        pass.apart = along.strides[own] * (down ? layout.pitch : 1);
        first_at.push_back(first.size());
        first.insert(first.end(), places.begin(), places.end());
        twiddles_at.push_back(twiddles.size());
        if (below == 1) continue;
        const std::vector<std::complex<float>> roots = single_roots(radix * below);
        for (std::int32_t n = 0; n < below; ++n) {
            for (int q = 1; q < radix; ++q) {
                const std::complex<float>& root = roots[static_cast<std::size_t>(n * q)];
                twiddles.push_back({root.real(), root.imag()});
            }
        }
    }
    plan_.rows_apart = 2 * layout.rows.below(0) * width;
    first_ = DeviceArray<std::uint32_t>(first);
    twiddles_ = DeviceArray<Complex>(twiddles);
    for (std::size_t p = 0; p < layout.passes(); ++p) {
        const bool last = p + 1 == layout.rows.radices.size() || p + 1 == layout.passes();
        plan_.pass[p].first = first_.data() + first_at[p];
        plan_.pass[p].twiddles = last ? nullptr : twiddles_.data() + twiddles_at[p];
    }
    for (std::int32_t ky = 0; ky < height / 2; ++ky) {
        places_.rows.push_back(static_cast<std::uint16_t>(layout.rows.place_of_frequency(ky) * layout.pitch));
    }
    for (std::int32_t kx = 0; kx < width; ++kx) {
        places_.columns.push_back(static_cast<std::uint16_t>(layout.columns.place_of_frequency(kx)));
    }
    places_.hole = static_cast<std::uint16_t>(layout.pitch - 1);
    places_.threads = plan_.threads;

    constexpr auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
    FASTCRIT_CUDA_CHECK(cudaFuncSetAttribute(&rectangle<float>, limit, shared_memory_of_block()));
    FASTCRIT_CUDA_CHECK(cudaFuncSetAttribute(&rectangle<Half>, limit, shared_memory_of_block()));
    FASTCRIT_CUDA_CHECK(cudaFuncSetAttribute(&rectangle<BFloat16>, limit, shared_memory_of_block()));
}

void launch_rectangle(const RectanglePlan& plan, const FieldRequest& request, void* stream) {
    switch (request.fields.type) {
        case Type::float32: return launch_typed<float>(plan, request, stream);
        case Type::float16: return launch_typed<Half>(plan, request, stream);
        case Type::bfloat16: return launch_typed<BFloat16>(plan, request, stream);
    }
}

}  // namespace fastcrit::cuda
