// Complex transforms of lanes: Stockham passes (self-sorting, no bit reversal) between two buffers.
// After Stockham (1966) in the form with an inner stride: the sequence x[q + s p], q < s, is s interleaved transforms.
#pragma once

#include "simd.hpp"
#include "tables.hpp"

namespace fastcrit::FASTCRIT_ISA {

using cpu::FftTables;

/// y[q + s (R p + u)] = w^(p u) sum_j x[q + s (p + m j)] exp(-2 pi i j u / R), w = exp(-2 pi i / (R m)).
template <class T, int R, bool Twiddle>
inline void butterfly(const Complex<T>* x, Complex<T>* y, std::int64_t in, std::int64_t out, const T* tw) {
    const auto put = [&](int u, Complex<T> v) {
        y[u * out] = (Twiddle && u > 0) ? times(v, tw[2 * (u - 1)], tw[2 * (u - 1) + 1]) : v;
    };
    if constexpr (R == 2) {
        const Complex<T> a = x[0];
        const Complex<T> b = x[in];
        put(0, a + b);
        put(1, a - b);
    } else if constexpr (R == 3) {
        constexpr T sine = static_cast<T>(0.86602540378443864676);  // sin(2 pi / 3)
        const Complex<T> a = x[0];
        const Complex<T> sum = x[in] + x[2 * in];
        const Complex<T> dif = x[in] - x[2 * in];
        const Complex<T> mid{a.re - sum.re * static_cast<T>(0.5), a.im - sum.im * static_cast<T>(0.5)};
        const Complex<T> rot{dif.im * sine, -(dif.re * sine)};
        put(0, a + sum);
        put(1, mid + rot);
        put(2, mid - rot);
    } else if constexpr (R == 4) {
        const Complex<T> even = x[0] + x[2 * in];
        const Complex<T> even_dif = x[0] - x[2 * in];
        const Complex<T> odd = x[in] + x[3 * in];
        const Complex<T> odd_dif = minus_i(x[in] - x[3 * in]);
        put(0, even + odd);
        put(1, even_dif + odd_dif);
        put(2, even - odd);
        put(3, even_dif - odd_dif);
    } else {
        static_assert(R == 5);
        constexpr T c1 = static_cast<T>(0.30901699437494742410);   // cos(2 pi / 5)
        constexpr T c2 = static_cast<T>(-0.80901699437494742410);  // cos(4 pi / 5)
        constexpr T s1 = static_cast<T>(0.95105651629515357212);   // sin(2 pi / 5)
        constexpr T s2 = static_cast<T>(0.58778525229247312917);   // sin(4 pi / 5)
        const Complex<T> a = x[0];
        const Complex<T> p1 = x[in] + x[4 * in];
        const Complex<T> m1 = x[in] - x[4 * in];
        const Complex<T> p2 = x[2 * in] + x[3 * in];
        const Complex<T> m2 = x[2 * in] - x[3 * in];
        const Complex<T> e1{a.re + p1.re * c1 + p2.re * c2, a.im + p1.im * c1 + p2.im * c2};
        const Complex<T> e2{a.re + p1.re * c2 + p2.re * c1, a.im + p1.im * c2 + p2.im * c1};
        const Complex<T> o1{m1.im * s1 + m2.im * s2, -(m1.re * s1 + m2.re * s2)};
        const Complex<T> o2{m1.im * s2 - m2.im * s1, -(m1.re * s2 - m2.re * s1)};
        put(0, a + p1 + p2);
        put(1, e1 + o1);
        put(2, e2 + o2);
        put(3, e2 - o2);
        put(4, e1 - o1);
    }
}

template <class T, int R>
inline void pass(const Complex<T>* x, Complex<T>* y, std::int64_t m, std::int64_t s, const T* tw) {
    for (std::int64_t q = 0; q < s; ++q) butterfly<T, R, false>(x + q, y + q, s * m, s, tw);
    for (std::int64_t p = 1; p < m; ++p) {
        const T* w = tw + 2 * (R - 1) * p;
        const Complex<T>* from = x + s * p;
        Complex<T>* to = y + s * R * p;
        for (std::int64_t q = 0; q < s; ++q) butterfly<T, R, true>(from + q, to + q, s * m, s, w);
    }
}

/// Any odd radix by the definition; x_j and x_(r-j) are combined first, which halves the products.
template <class T>
inline void pass_any(const Complex<T>* x, Complex<T>* y, std::int64_t r, std::int64_t m, std::int64_t s, const T* tw,
                     const T* roots) {
    for (std::int64_t p = 0; p < m; ++p) {
        for (std::int64_t q = 0; q < s; ++q) {
            const Complex<T>* in = x + q + s * p;
            Complex<T>* out = y + q + s * r * p;
            const std::int64_t stride = s * m;
            Complex<T> sum = in[0];
            for (std::int64_t j = 1; j < r; ++j) sum = sum + in[stride * j];
            out[0] = sum;
            for (std::int64_t u = 1; u <= r / 2; ++u) {
                Complex<T> even = in[0];
                Complex<T> odd{};
                std::int64_t ju = 0;
                for (std::int64_t j = 1; j <= r / 2; ++j) {
                    ju += u;
                    if (ju >= r) ju -= r;
                    const T c = roots[2 * ju];
                    const T i = roots[2 * ju + 1];  // minus the sine
                    const Complex<T> a = in[stride * j];
                    const Complex<T> b = in[stride * (r - j)];
                    even = {even.re + (a.re + b.re) * c, even.im + (a.im + b.im) * c};
                    odd = {odd.re - (a.im - b.im) * i, odd.im + (a.re - b.re) * i};
                }
                const T* w = tw + 2 * (r - 1) * p;
                out[s * u] = times(even + odd, w[2 * (u - 1)], w[2 * (u - 1) + 1]);
                out[s * (r - u)] = times(even - odd, w[2 * (r - u - 1)], w[2 * (r - u - 1) + 1]);
            }
        }
    }
}

/// Transforms `stride` interleaved sequences. The input is in a and is destroyed; the result is in the buffer returned.
template <class T>
inline Complex<T>* fft(const FftTables<T>& plan, Complex<T>* a, Complex<T>* b, std::int64_t stride) {
    std::int64_t length = plan.n;
    std::int64_t s = stride;
    const T* tw = plan.twiddles;
    const T* roots = plan.roots;
    for (std::int32_t i = 0; i < plan.passes; ++i) {
        const std::int64_t r = plan.radices[i];
        const std::int64_t m = length / r;
        switch (r) {
            case 2: pass<T, 2>(a, b, m, s, tw); break;
            case 3: pass<T, 3>(a, b, m, s, tw); break;
            case 4: pass<T, 4>(a, b, m, s, tw); break;
            case 5: pass<T, 5>(a, b, m, s, tw); break;
            default: pass_any<T>(a, b, r, m, s, tw, roots); roots += 2 * r;
        }
        tw += 2 * (r - 1) * m;
        length = m;
        s *= r;
        Complex<T>* const swap = a;
        a = b;
        b = swap;
    }
    return a;
}

}  // namespace fastcrit::FASTCRIT_ISA
