// Transforms of R values held in registers, R = 2, 3, 4, 5, 7, 8: y_u = sum_j x_j exp(-2 pi i j u / R).
#pragma once

#include "simd.hpp"

namespace fastcrit::FASTCRIT_ISA {

template <class T, int R>
struct Butterfly;

template <class T>
struct Butterfly<T, 2> {
    static void run(const Complex<T>* x, Complex<T>* y) {
        y[0] = x[0] + x[1];
        y[1] = x[0] - x[1];
    }
};

template <class T>
struct Butterfly<T, 4> {
    static void run(const Complex<T>* x, Complex<T>* y) {
        const Complex<T> even = x[0] + x[2];
        const Complex<T> even_dif = x[0] - x[2];
        const Complex<T> odd = x[1] + x[3];
        const Complex<T> odd_dif = minus_i(x[1] - x[3]);
        y[0] = even + odd;
        y[1] = even_dif + odd_dif;
        y[2] = even - odd;
        y[3] = even_dif - odd_dif;
    }
};

template <class T>
struct Butterfly<T, 8> {
    static void run(const Complex<T>* x, Complex<T>* y) {
        constexpr T c = static_cast<T>(0.70710678118654752440);  // cos(pi / 4)
        const Complex<T> even[4] = {x[0], x[2], x[4], x[6]};
        const Complex<T> odd[4] = {x[1], x[3], x[5], x[7]};
        Complex<T> e[4];
        Complex<T> o[4];
        Butterfly<T, 4>::run(even, e);
        Butterfly<T, 4>::run(odd, o);
        // Times exp(-2 pi i u / 8).
        o[1] = {(o[1].re + o[1].im) * c, (o[1].im - o[1].re) * c};
        o[2] = minus_i(o[2]);
        o[3] = {(o[3].im - o[3].re) * c, (o[3].re + o[3].im) * -c};
        unroll<4>([&](auto u) {
            y[u] = e[u] + o[u];
            y[u + 4] = e[u] - o[u];
        });
    }
};

/// Odd radices: x_j + x_(R-j) meets cosines and x_j - x_(R-j) sines, which halves the products.
template <class T, int R>
struct OddButterfly {
    static constexpr int kHalf = R / 2;

    /// cosine[h] = cos(2 pi (h + 1) / R), sine[h] = sin(2 pi (h + 1) / R).
    static void run(const Complex<T>* x, Complex<T>* y, const T (&cosine)[kHalf], const T (&sine)[kHalf]) {
        Complex<T> sum[kHalf];
        Complex<T> dif[kHalf];
        y[0] = x[0];
        unroll<kHalf>([&](auto h) {
            sum[h] = x[h + 1] + x[R - 1 - h];
            dif[h] = x[h + 1] - x[R - 1 - h];
            y[0] = y[0] + sum[h];
        });
        unroll<kHalf>([&](auto v) {
            constexpr int u = decltype(v)::value + 1;
            Complex<T> even = x[0];
            Complex<T> odd;  // -i times the sum with sines
            unroll<kHalf>([&](auto h) {
                constexpr int angle = u * (decltype(h)::value + 1) % R;  // in units of 2 pi / R
                constexpr int folded = angle <= kHalf ? angle : R - angle;
                const T c = cosine[folded - 1];
                const T s = angle <= kHalf ? sine[folded - 1] : -sine[folded - 1];
                even = {even.re + sum[h].re * c, even.im + sum[h].im * c};
                if constexpr (decltype(h)::value == 0) {
                    odd = {dif[h].im * s, -(dif[h].re * s)};
                } else {
                    odd = {odd.re + dif[h].im * s, odd.im - dif[h].re * s};
                }
            });
            y[u] = even + odd;
            y[R - u] = even - odd;
        });
    }
};

template <class T>
struct Butterfly<T, 3> {
    static void run(const Complex<T>* x, Complex<T>* y) {
        OddButterfly<T, 3>::run(x, y, {static_cast<T>(-0.5)}, {static_cast<T>(0.86602540378443864676)});
    }
};

template <class T>
struct Butterfly<T, 5> {
    static void run(const Complex<T>* x, Complex<T>* y) {
        OddButterfly<T, 5>::run(x, y, {static_cast<T>(0.30901699437494742410), static_cast<T>(-0.80901699437494742410)},
                                {static_cast<T>(0.95105651629515357212), static_cast<T>(0.58778525229247312917)});
    }
};

template <class T>
struct Butterfly<T, 7> {
    static void run(const Complex<T>* x, Complex<T>* y) {
        OddButterfly<T, 7>::run(x, y,
                                {static_cast<T>(0.62348980185873353053), static_cast<T>(-0.22252093395631440429),
                                 static_cast<T>(-0.90096886790241912624)},
                                {static_cast<T>(0.78183148246802980871), static_cast<T>(0.97492791218182360702),
                                 static_cast<T>(0.43388373911755812048)});
    }
};

}  // namespace fastcrit::FASTCRIT_ISA
