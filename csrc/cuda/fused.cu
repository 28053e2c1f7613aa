// Power of square fields in one kernel: pixels in, bin sums and selected modes out. A field stays in shared memory.
#include "finish.cuh"
#include "square.cuh"

namespace fastcrit::cuda {
namespace {

template <int Side>
using Team = FixedTeam<Square<Side>::threads>;

/// First pass along the columns, from memory, less what is uniform. Neighbouring threads have neighbouring columns.
/// Returns the sum of what the thread reads, if wanted.
template <int Side, class T>
__device__ double read_columns(const T* field, const View& view, float uniform, const Complex* roots,
                               const Shared<Complex>& values, int base, const Team<Side>& team, bool active,
                               bool want_total) {
    using S = Square<Side>;
    constexpr int radix = S::Columns::radix;
    constexpr int below = S::Columns::Next::length;  // rows from one value of a butterfly to the next
    double total = 0.0;
    FASTCRIT_UNROLL_BY(1)
    for (int i = team.thread; i < Side * below; i += S::threads) {
        const int x = i % Side;
        const int row = i / Side;
        const int begin = 2 * row * Side + x;
        Complex z[radix] = {};
        if (S::fields == 1 || active) {
            read_pixels<radix>(field + begin, view.offset + (view.offset != nullptr ? begin : 0), view, uniform,
                               2 * below * Side, Side, want_total, total, z);
        }
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
__device__ void transform_columns(const Complex* roots, const Shared<Complex>& values, int base,
                                  const Team<Side>& team) {
    if constexpr (P::length > 1) {
        using S = Square<Side>;
        constexpr int below = P::Next::length;
        team.wait();
        FASTCRIT_UNROLL_BY(1)
        for (int i = team.thread; i < Side * S::height / P::radix; i += S::threads) {
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
        transform_columns<Side, typename P::Next>(roots, values, base, team);
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
__device__ void transform_rows(const Complex* roots, const Shared<Complex>& values, int base, const Team<Side>& team) {
    if constexpr (P::length > 1) {
        using S = Square<Side>;
        constexpr int below = P::Next::length;
        constexpr int butterflies = Side / P::radix;
        if (kFault != Fault::missing_barrier || P::length < Side) team.wait();
        FASTCRIT_UNROLL_BY(1)
        for (int i = team.thread; i < S::height * butterflies; i += S::threads) {
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
        transform_rows<Side, typename P::Next>(roots, values, base, team);
    }
}

template <int Side, class T>
__global__ void __launch_bounds__(Square<Side>::block, Square<Side>::blocks) fused(FieldRequest request) {
    using S = Square<Side>;
    const Team<Side> team{static_cast<int>(threadIdx.x) % S::threads};
    const int slot = static_cast<int>(threadIdx.x) / S::threads;
    const std::int64_t field = std::int64_t{blockIdx.x} * S::fields + slot;
    const bool active = field < request.fields.count;
    const Shared<Complex> values = dynamic_shared<Complex>(S::fields * S::pitch);
    const int base = slot * S::pitch;
    const T* const pixels = static_cast<const T*>(request.fields.data) + (active ? field : 0) * S::sites;
    const float uniform = uniform_part(pixels, request.view, Side, Side);
    const double total = read_columns<Side>(pixels, request.view, uniform, request.roots, values, base, team, active,
                                            request.totals != nullptr);
    transform_columns<Side, typename S::Columns::Next>(request.roots, values, base, team);
    transform_rows<Side, typename S::Rows>(request.roots, values, base, team);
    team.wait();
    finish_field(team, request, values, base, field, active, pixels, uniform, total);
}

template <int Side, class T>
void launch_typed(const FieldRequest& request, void* stream) {
    using S = Square<Side>;
    const std::int64_t blocks = (request.fields.count + S::fields - 1) / S::fields;
    launch(&fused<Side, T>, dim3(static_cast<unsigned>(blocks)), dim3(S::block), S::shared_bytes, stream, request);
}

template <int Side>
void launch_side(const FieldRequest& request, void* stream) {
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
HalfHeightPlaces places() {
    using S = Square<Side>;
    allow_shared_memory<Side>();
    HalfHeightPlaces places;
    for (int ky = 0; ky < S::height; ++ky) {
        places.rows.push_back(static_cast<std::uint16_t>(S::place(S::Columns::position(ky), 0)));
    }
    for (int kx = 0; kx < Side; ++kx) {
        places.columns.push_back(static_cast<std::uint16_t>(S::place(0, S::Rows::position(kx))));
    }
    places.hole = 16;
    places.threads = S::threads;
    return places;
}

}  // namespace

bool has_fused(const Lattice& lattice) {
    const std::int32_t side = lattice.sides()[2];
    return lattice.ndim() == 2 && lattice.sides()[1] == side && (side == 16 || side == 32 || side == 64 || side == 128);
}

HalfHeightPlaces fused_places(const Lattice& lattice) {
    switch (lattice.sides()[2]) {
        case 16: return places<16>();
        case 32: return places<32>();
        case 64: return places<64>();
        default: return places<128>();
    }
}

void launch_fused(int side, const FieldRequest& request, void* stream) {
    switch (side) {
        case 16: return launch_side<16>(request, stream);
        case 32: return launch_side<32>(request, stream);
        case 64: return launch_side<64>(request, stream);
        default: return launch_side<128>(request, stream);
    }
}

}  // namespace fastcrit::cuda
