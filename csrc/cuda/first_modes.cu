// k = 0 and the first mode of every axis in one read of the batch. A field, or a part of a large one, belongs to some
// warps of a block; a part is so short that each thread sums at most 64 values in float.
#include <stdexcept>

#include "kernels.hpp"

namespace fastcrit::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kMostSums = 7;                 // total, and re and im along three axes
constexpr std::int64_t kPart = 64 * kBlock;  // sites

struct FirstModesArguments {
    std::int64_t count;
    std::int64_t parts;
    std::int64_t sites;
    int ndim;
    int threads;  ///< of one part, a power of two from 32 on
    std::int32_t sides[3];
    const Complex* waves[3];
    double* out;  ///< sums of parts: entry (i, part, field) at out + (i parts + part) count + field
};

/// A place in the field that moves on by a fixed number of packs of N values, which never straddle rows.
template <int N>
struct Cursor {
    std::int32_t packs, n1;
    std::int32_t x, y, z;
    std::int32_t step_x, step_y, step_z;

    __device__ Cursor(const FirstModesArguments& a, std::int64_t pack, std::int64_t step)
        : packs(a.sides[2] / N),
          n1(a.sides[1]) {
        split(pack, x, y, z);
        split(step, step_x, step_y, step_z);
    }
    __device__ void split(std::int64_t i, std::int32_t& along_x, std::int32_t& along_y, std::int32_t& along_z) const {
        along_x = static_cast<std::int32_t>(i % packs);
        i /= packs;
        along_y = static_cast<std::int32_t>(i % n1);
        along_z = static_cast<std::int32_t>(i / n1);
    }
    __device__ void advance() {
        x += step_x;
        y += step_y;
        z += step_z;
        if (x >= packs) x -= packs, ++y;
        if (y >= n1) y -= n1, ++z;
    }
};

template <class T, int N>
__global__ void __launch_bounds__(kBlock, 1024 / kBlock) first_modes(const T* fields, FirstModesArguments a) {
    const int thread = static_cast<int>(threadIdx.x) % a.threads;
    const int slot = static_cast<int>(threadIdx.x) / a.threads;
    const std::int64_t item = std::int64_t{blockIdx.x} * (kBlock / a.threads) + slot;
    const bool active = item < a.count * a.parts;
    const std::int64_t field = active ? item / a.parts : 0;
    const std::int64_t part = active ? item % a.parts : 0;
    const std::int64_t begin = part * kPart / N;
    const std::int64_t most = a.sites / N;
    const std::int64_t end = !active ? begin : (part + 1) * kPart / N < most ? (part + 1) * kPart / N : most;
    const auto* const packs = reinterpret_cast<const Pack<T, N>*>(fields + field * a.sites);

    constexpr int kTogether = N < 2 ? 1 : 2;
    // A wave takes no notice of what is uniform; a sum of values without it is rounded to the digits of the rest.
    const float some = active ? to_float(fields[field * a.sites]) : 0.0F;
    const float uniform = finite(some) ? some : 0.0F;
    double total = 0.0;
    Complex sums[3] = {};
    Cursor<N> at(a, begin + thread, a.threads);
    FASTCRIT_UNROLL_BY((N < 8 ? 2 : 1))
    for (std::int64_t i = begin + thread; i < end; i += a.threads) {
        const Pack<T, N> pack = packs[i];
        const auto* const waves = reinterpret_cast<const Pack<Complex, kTogether>*>(a.waves[2] + at.x * N);
        float row = 0.0F;
        FASTCRIT_UNROLL
        for (int v = 0; v < N; v += kTogether) {
            const Pack<Complex, kTogether> wave = waves[v / kTogether];
            FASTCRIT_UNROLL
            for (int w = 0; w < kTogether; ++w) {
                const float value = to_float(pack.values[v + w]);
                total += static_cast<double>(value);
                const float less = value - uniform;
                row += less;
                sums[2] = {sums[2].re + less * wave.values[w].re, sums[2].im + less * wave.values[w].im};
            }
        }
        if (a.ndim > 1) {
            const Complex wave = a.waves[1][at.y];
            sums[1] = {sums[1].re + row * wave.re, sums[1].im + row * wave.im};
        }
        if (a.ndim > 2) {
            const Complex wave = a.waves[0][at.z];
            sums[0] = {sums[0].re + row * wave.re, sums[0].im + row * wave.im};
        }
        at.advance();
    }

    FASTCRIT_SHARED(double, by_warp, kMostSums*(kBlock / 32));
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const auto keep = [&](int i, double value) {
        value = sum_lanes(value, 32);
        if (threadIdx.x % 32 == 0) by_warp[i * (kBlock / 32) + warp] = value;
    };
    keep(0, total);
    FASTCRIT_UNROLL
    for (int axis = 0; axis < 3; ++axis) {
        const int i = 1 + 2 * (axis - 3 + a.ndim);
        if (i < 1) continue;
        keep(i, a.sides[axis] > 1 ? static_cast<double>(sums[axis].re) : total);  // on one site a wave is uniform
        keep(i + 1, static_cast<double>(sums[axis].im));
    }
    __syncthreads();
    if (!active || thread > 2 * a.ndim) return;
    double sum = 0.0;
    for (int w = 0; w < a.threads / 32; ++w) sum += by_warp[thread * (kBlock / 32) + slot * (a.threads / 32) + w];
    a.out[(thread * a.parts + part) * a.count + field] = sum;
}

/// Adds the parts of each field, in their order.
__global__ void add_parts(const double* parts, std::int64_t n_parts, std::int64_t count, std::int64_t size,
                          double* out) {
    const std::int64_t i = std::int64_t{blockIdx.x} * kBlock + threadIdx.x;
    if (i >= size) return;
    const double* const first = parts + i / count * n_parts * count + i % count;
    double sum = 0.0;
    for (std::int64_t p = 0; p < n_parts; ++p) sum += first[p * count];
    out[i] = sum;
}

template <class T, int N>
void launch_packed(const FirstModesRequest& request, FirstModesArguments arguments, void* stream) {
    // Up to eight packs a thread, in whole warps.
    arguments.threads = 32;
    while (arguments.threads < kBlock && arguments.threads * N * 8 < arguments.sites) arguments.threads *= 2;
    const std::int64_t items_a_block = kBlock / arguments.threads;
    const std::int64_t blocks = (arguments.count * arguments.parts + items_a_block - 1) / items_a_block;
    if (blocks > INT32_MAX) throw std::invalid_argument("count: too many fields for one launch");
    launch(&first_modes<T, N>, dim3(static_cast<unsigned>(blocks)), dim3(kBlock), 0, stream,
           static_cast<const T*>(request.fields.data), arguments);
}

template <class T>
void launch_typed(const FirstModesRequest& request, const FirstModesArguments& arguments, void* stream) {
    constexpr int wide = 16 / sizeof(T);
    if (request.sides[2] % wide == 0 && reinterpret_cast<std::uintptr_t>(request.fields.data) % 16 == 0) {
        launch_packed<T, wide>(request, arguments, stream);
    } else {
        launch_packed<T, 1>(request, arguments, stream);
    }
}

}  // namespace

std::int64_t field_parts(std::int64_t sites) { return (sites + kPart - 1) / kPart; }

void launch_first_modes(const FirstModesRequest& request, void* stream) {
    FirstModesArguments arguments{};
    arguments.count = request.fields.count;
    arguments.sites = std::int64_t{request.sides[0]} * request.sides[1] * request.sides[2];
    arguments.parts = field_parts(arguments.sites);
    arguments.ndim = request.ndim;
    for (int axis = 0; axis < 3; ++axis) {
        arguments.sides[axis] = request.sides[axis];
        arguments.waves[axis] = request.waves[axis];
    }
    arguments.out = arguments.parts > 1 ? request.parts : request.out;
    switch (request.fields.type) {
        case Type::float32: launch_typed<float>(request, arguments, stream); break;
        case Type::float16: launch_typed<Half>(request, arguments, stream); break;
        case Type::bfloat16: launch_typed<BFloat16>(request, arguments, stream); break;
    }
    if (arguments.parts == 1) return;
    const std::int64_t size = (1 + 2 * request.ndim) * arguments.count;
    launch(&add_parts, dim3(static_cast<unsigned>((size + kBlock - 1) / kBlock)), dim3(kBlock), 0, stream,
           static_cast<const double*>(request.parts), arguments.parts, arguments.count, size, request.out);
}

}  // namespace fastcrit::cuda
