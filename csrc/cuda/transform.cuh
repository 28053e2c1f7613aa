// Complex transforms in place: passes of radix 2 to 8, 10 and 16 that leave frequencies in digit-reversed order, so
// that every butterfly writes where it read and a pass needs one barrier.
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

__device__ inline void transform(Complex (&x)[2]) { transform_2(x[0], x[1]); }

/// exp(-2 pi i j / N) of 3, 5 and 7.
template <int N>
__host__ __device__ constexpr Complex small_root(int j) {
    constexpr Complex three[3] = {{1.0F, 0.0F}, {-0.5F, -0.86602540378443865F}, {-0.5F, 0.86602540378443865F}};
    constexpr Complex five[5] = {{1.0F, 0.0F},
                                 {0.30901699437494742F, -0.95105651629515357F},
                                 {-0.80901699437494742F, -0.58778525229247313F},
                                 {-0.80901699437494742F, 0.58778525229247313F},
                                 {0.30901699437494742F, 0.95105651629515357F}};
    constexpr Complex seven[7] = {{1.0F, 0.0F},
                                  {0.62348980185873353F, -0.78183148246802981F},
                                  {-0.22252093395631440F, -0.97492791218182361F},
                                  {-0.90096886790241913F, -0.43388373911755812F},
                                  {-0.90096886790241913F, 0.43388373911755812F},
                                  {-0.22252093395631440F, 0.97492791218182361F},
                                  {0.62348980185873353F, 0.78183148246802981F}};
    return N == 3 ? three[j % 3] : N == 5 ? five[j % 5] : seven[j % 7];
}

/// Of an odd number of values, by sums and differences of those that have conjugate factors.
template <int N>
__device__ void transform_odd(Complex (&x)[N]) {
    constexpr int half = N / 2;
    Complex sum[half];
    Complex turned[half];
    Complex all = x[0];
    FASTCRIT_UNROLL
    for (int j = 0; j < half; ++j) {
        sum[j] = x[1 + j] + x[N - 1 - j];
        turned[j] = minus_i(x[1 + j] - x[N - 1 - j]);
        all = all + sum[j];
    }
    Complex out[N];
    out[0] = all;
    FASTCRIT_UNROLL
    for (int k = 1; k <= half; ++k) {
        Complex even = x[0];
        Complex odd{};
        FASTCRIT_UNROLL
        for (int j = 0; j < half; ++j) {
            const Complex root = small_root<N>(k * (j + 1));
            even = {even.re + root.re * sum[j].re, even.im + root.re * sum[j].im};
            odd = {odd.re - root.im * turned[j].re, odd.im - root.im * turned[j].im};
        }
        out[k] = even + odd;
        out[N - k] = even - odd;
    }
    FASTCRIT_UNROLL
    for (int k = 0; k < N; ++k) x[k] = out[k];
}
__device__ inline void transform(Complex (&x)[3]) { transform_odd(x); }
__device__ inline void transform(Complex (&x)[5]) { transform_odd(x); }
__device__ inline void transform(Complex (&x)[7]) { transform_odd(x); }

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

/// The multiple of `length` that is 1 modulo `other`.
__host__ __device__ constexpr int unit_of(int length, int other) {
    int i = 1;
    while (length * i % other != 1) ++i;
    return length * i;
}

/// Of P Q values, coprime: sites and frequencies by their remainders, so that no factors come between (Good, Thomas).
template <int P, int Q>
__device__ void transform_coprime(Complex (&x)[P * Q]) {
    constexpr int N = P * Q;
    constexpr int of_p = unit_of(Q, P);
    constexpr int of_q = unit_of(P, Q);
    Complex z[Q][P];
    FASTCRIT_UNROLL
    for (int q = 0; q < Q; ++q) {
        FASTCRIT_UNROLL
        for (int p = 0; p < P; ++p) z[q][p] = x[(Q * p + P * q) % N];
        transform(z[q]);
    }
    FASTCRIT_UNROLL
    for (int p = 0; p < P; ++p) {
        Complex column[Q];
        FASTCRIT_UNROLL
        for (int q = 0; q < Q; ++q) column[q] = z[q][p];
        transform(column);
        FASTCRIT_UNROLL
        for (int q = 0; q < Q; ++q) x[(of_p * p + of_q * q) % N] = column[q];
    }
}
__device__ inline void transform(Complex (&x)[6]) { transform_coprime<2, 3>(x); }
__device__ inline void transform(Complex (&x)[10]) { transform_coprime<2, 5>(x); }

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
