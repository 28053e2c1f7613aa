// Values as they lie in memory, complex arithmetic, and sums that keep their error.
#pragma once

#include "runtime.cuh"

#ifdef __CUDACC__
#define FASTCRIT_UNROLL _Pragma("unroll")
#define FASTCRIT_UNROLL_BY(n) _Pragma(FASTCRIT_TEXT(unroll n))
#define FASTCRIT_TEXT(x) #x
#else
#define FASTCRIT_UNROLL
#define FASTCRIT_UNROLL_BY(n)
#endif

namespace fastcrit::cuda {

struct Half {
    std::uint16_t bits;
};
struct BFloat16 {
    std::uint16_t bits;
};

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(Half value) { return __half2float(__ushort_as_half(value.bits)); }
__device__ inline float to_float(BFloat16 value) { return __uint_as_float(static_cast<unsigned>(value.bits) << 16); }

/// N neighbours, loaded as one.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
    T values[N];
};

struct alignas(8) Complex {
    float re, im;
};
__device__ inline Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
__device__ inline Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
__device__ inline Complex operator*(Complex a, Complex b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
__device__ inline Complex conj(Complex a) { return {a.re, -a.im}; }
__device__ inline Complex minus_i(Complex a) { return {a.im, -a.re}; }
__device__ inline float norm(Complex a) { return a.re * a.re + a.im * a.im; }

__device__ inline bool finite(float value) { return value - value == 0.0F; }
__device__ inline bool finite(double value) { return value - value == 0.0; }

/// A sum that carries its rounding error along (Kahan).
class CompensatedSum {
public:
    __device__ void add(float value) {
        const float corrected = value - carry_;
        const float next = sum_ + corrected;
        carry_ = (next - sum_) - corrected;
        sum_ = next;
    }
    __device__ float value() const { return sum_; }

private:
    float sum_ = 0.0F;
    float carry_ = 0.0F;
};

/// Sum over neighbouring lanes, a power of two of them, pair by pair. All lanes of the warp call, all get the sum.
template <class T>
__device__ inline T sum_lanes(T value, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0U, value, step);
    return value;
}

}  // namespace fastcrit::cuda
