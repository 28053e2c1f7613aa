// Complex transforms in place: passes of radix 4, 8 and 16 that leave frequencies in digit-reversed order, so that
// every butterfly writes where it read and a pass needs one barrier.
#pragma once

#include "faults.hpp"
#include "numbers.cuh"

namespace fastcrit::cuda {

__device__ inline void transform_2(Complex& a, Complex& b) {
    const Complex sum = a + b;
    b = a - b;
    a = sum;
}

__device__ inline void transform_4(Complex& a, Complex& b, Complex& c, Complex& d) {
    transform_2(a, c);
    transform_2(b, d);
    d = minus_i(d);
    transform_2(a, b);
    transform_2(c, d);
    const Complex second = b;
    b = c;
    c = second;
}

__device__ inline void transform(Complex (&x)[4]) { transform_4(x[0], x[1], x[2], x[3]); }

__device__ inline void transform(Complex (&x)[8]) {
    constexpr float half_root = 0.70710678118654752F;
    Complex even[4] = {x[0], x[2], x[4], x[6]};
    Complex odd[4] = {x[1], x[3], x[5], x[7]};
    transform(even);
    transform(odd);
    odd[1] = {(odd[1].re + odd[1].im) * half_root, (odd[1].im - odd[1].re) * half_root};
    odd[2] = minus_i(odd[2]);
    odd[3] = {(odd[3].im - odd[3].re) * half_root, -(odd[3].re + odd[3].im) * half_root};
    FASTCRIT_UNROLL
    for (int k = 0; k < 4; ++k) {
        x[k] = even[k] + odd[k];
        x[k + 4] = even[k] - odd[k];
    }
}

__device__ inline void transform(Complex (&x)[16]) {
    constexpr float c1 = 0.92387953251128674F;  // cos(pi / 8)
    constexpr float s1 = 0.38268343236508977F;
    constexpr float c2 = 0.70710678118654752F;
    FASTCRIT_UNROLL
    for (int n = 0; n < 4; ++n) transform_4(x[n], x[n + 4], x[n + 8], x[n + 12]);
    // x[n + 4 k] times exp(-2 pi i n k / 16)
    x[5] = x[5] * Complex{c1, -s1};
    x[9] = x[9] * Complex{c2, -c2};
    x[13] = x[13] * Complex{s1, -c1};
    x[6] = x[6] * Complex{c2, -c2};
    x[10] = minus_i(x[10]);
    x[14] = x[14] * Complex{-c2, -c2};
    x[7] = x[7] * Complex{s1, -c1};
    x[11] = x[11] * Complex{-c2, -c2};
    x[15] = x[15] * Complex{-c1, s1};
    FASTCRIT_UNROLL
    for (int k = 0; k < 4; ++k) transform_4(x[4 * k], x[4 * k + 1], x[4 * k + 2], x[4 * k + 3]);
    // x[4 k + l] is the frequency k + 4 l.
    FASTCRIT_UNROLL
    for (int k = 0; k < 4; ++k) {
        FASTCRIT_UNROLL
        for (int l = 0; l < k; ++l) {
            const Complex other = x[4 * k + l];
            x[4 * k + l] = x[4 * l + k];
            x[4 * l + k] = other;
        }
    }
}

/// The factors exp(-2 pi i n q / length), q < Radix, that follow a butterfly. roots[j] = exp(-2 pi i j / Side).
template <int Radix>
struct Twiddles {
    Complex factor[Radix];

    /// step = Side / length. Powers of two are loaded, the others are products of at most three of them.
    __device__ Twiddles(const Complex* roots, int n, int step) {
        if (kFault == Fault::wrong_twiddle && n == 1) n = 2;
        FASTCRIT_UNROLL
        for (int q = 1; q < Radix; ++q) {
            const int low = q & (q - 1);
            factor[q] = low == 0 ? roots[n * q * step] : factor[q - low] * factor[low];
        }
    }

    __device__ void apply(Complex (&x)[Radix]) const {
        FASTCRIT_UNROLL
        for (int q = 1; q < Radix; ++q) x[q] = x[q] * factor[q];
    }
};

/// A transform as passes of these radices, the first on the whole length.
template <int... Radices>
struct Passes;

template <>
struct Passes<> {
    static constexpr int length = 1;
    __host__ __device__ static constexpr int position(int) { return 0; }
};

template <int First, int... Rest>
struct Passes<First, Rest...> {
    static constexpr int radix = First;
    using Next = Passes<Rest...>;
    static constexpr int length = First * Next::length;

    /// Where the passes leave a frequency.
    __host__ __device__ static constexpr int position(int frequency) {
        return Next::length * (frequency % First) + Next::position(frequency / First);
    }
};

}  // namespace fastcrit::cuda
