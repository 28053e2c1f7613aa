// Complex transforms of lanes: Stockham passes (self-sorting, no bit reversal) between two buffers.
// After Stockham (1966) in the form with an inner stride: the sequence x[q + s p], q < s, is s interleaved transforms.
// Lengths with a large prime factor go through a convolution of smooth length (Bluestein 1970).
#pragma once

#include <cstdint>

#include "butterflies.hpp"
#include "kernels.hpp"

// A copy for every sink and source is a fifth of the library: in the set of instructions that few machines fall back
// to, there is one for all.
#ifdef FASTCRIT_SMALL
#define FASTCRIT_ONE_COPY [[gnu::noinline]]
#else
#define FASTCRIT_ONE_COPY inline
#endif

namespace fastcrit::FASTCRIT_ISA {

using cpu::FftTables;

// Radices above go by the definition.
inline constexpr std::int32_t kLargestCodelet = 8;

/// y_u of the sequence x(0), x(step), .. x((R - 1) step).
template <class T, int R, class Source>
inline void gather_from(const Source& x, std::int64_t step, Complex<T>* y) {
    Complex<T> values[R];
    unroll<R>([&](auto j) { values[j] = x(j * step); });
    Butterfly<T, R>::run(values, y);
}
template <class T, int R>
inline void gather(const Complex<T>* x, std::int64_t step, Complex<T>* y) {
    gather_from<T, R>([x](std::int64_t i) { return x[i]; }, step, y);
}

/// y[q + s (R p + u)] = w^(p u) sum_j x[q + s (p + m j)] exp(-2 pi i j u / R), w = exp(-2 pi i / (R m)).
template <class T, int R>
FASTCRIT_FLATTEN inline void pass(const Complex<T>* x, Complex<T>* y, std::int64_t m, std::int64_t s, const T* tw) {
    Complex<T> out[R];
    for (std::int64_t q = 0; q < s; ++q) {
        gather<T, R>(x + q, s * m, out);
        unroll<R>([&](auto u) { y[q + u * s] = out[u]; });
    }
    for (std::int64_t p = 1; p < m; ++p) {
        const T* w = tw + 2 * (R - 1) * p;
        const Complex<T>* from = x + s * p;
        Complex<T>* to = y + s * R * p;
        for (std::int64_t q = 0; q < s; ++q) {
            gather<T, R>(from + q, s * m, out);
            to[q] = out[0];
            unroll<R - 1>([&](auto u) { to[q + (u + 1) * s] = times(out[u + 1], w[2 * u], w[2 * u + 1]); });
        }
    }
}

/// The first pass (s = 1) of a sequence that is read from x(0) .. x(R m - 1).
template <class T, int R, class Source>
FASTCRIT_FLATTEN inline void first_pass(const Source& x, Complex<T>* y, std::int64_t m, const T* tw) {
    Complex<T> out[R];
    for (std::int64_t p = 0; p < m; ++p) {
        const T* w = tw + 2 * (R - 1) * p;
        gather_from<T, R>([&x, p](std::int64_t i) { return x(p + i); }, m, out);
        y[R * p] = out[0];
        unroll<R - 1>([&](auto u) { y[R * p + u + 1] = times(out[u + 1], w[2 * u], w[2 * u + 1]); });
    }
}

/// Any odd radix by the definition; x_j and x_(r-j) are combined first, which halves the products.
template <class T>
FASTCRIT_ONE_COPY void pass_any(const Complex<T>* x, Complex<T>* y, std::int64_t r, std::int64_t m, std::int64_t s,
                                const T* tw, const T* roots) {
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

/// Passes `begin` to `end` of `stride` interleaved sequences in a, which is destroyed. Returns the buffer, a or b, in
/// which the sequences then lie.
template <class T>
FASTCRIT_ONE_COPY Complex<T>* run_passes(const FftTables<T>& plan, std::int32_t begin, std::int32_t end, Complex<T>* a,
                                         Complex<T>* b, std::int64_t stride) {
    std::int64_t length = plan.n;
    std::int64_t s = stride;
    const T* tw = plan.twiddles;
    const T* roots = plan.roots;
    for (std::int32_t i = 0; i < end; ++i) {
        const std::int64_t r = plan.radices[i];
        const std::int64_t m = length / r;
        if (i >= begin) {
            switch (r) {
                case 2: pass<T, 2>(a, b, m, s, tw); break;
                case 3: pass<T, 3>(a, b, m, s, tw); break;
                case 4: pass<T, 4>(a, b, m, s, tw); break;
                case 5: pass<T, 5>(a, b, m, s, tw); break;
                case 7: pass<T, 7>(a, b, m, s, tw); break;
                case 8: pass<T, 8>(a, b, m, s, tw); break;
                default: pass_any<T>(a, b, r, m, s, tw, roots);
            }
            Complex<T>* const swap = a;
            a = b;
            b = swap;
        }
        if (r > kLargestCodelet) roots += 2 * r;
        tw += 2 * (r - 1) * m;
        length = m;
        s *= r;
    }
    return a;
}

/// Bluestein: jk = (j^2 + k^2 - (k - j)^2) / 2 turns the transform into a convolution with a chirp. The result is in
/// b; `spare` holds twice the length of the convolution.
template <class T>
FASTCRIT_ONE_COPY void convolve_chirp(const FftTables<T>& plan, const Complex<T>* a, Complex<T>* b, std::int64_t stride,
                                      Complex<T>* spare) {
    const FftTables<T>& inner = *plan.convolution;
    for (std::int64_t q = 0; q < stride; ++q) {
        for (std::int64_t j = 0; j < plan.n; ++j) {
            spare[j] = times(a[q + stride * j], plan.chirp[2 * j], plan.chirp[2 * j + 1]);
        }
        for (std::int64_t j = plan.n; j < inner.n; ++j) spare[j] = Complex<T>{};
        Complex<T>* const spectrum = run_passes(inner, 0, inner.passes, spare, spare + inner.n, 1);
        Complex<T>* const other = spectrum == spare ? spare + inner.n : spare;
        for (std::int64_t j = 0; j < inner.n; ++j) {
            spectrum[j] = conj(times(spectrum[j], plan.chirp_spectrum[2 * j], plan.chirp_spectrum[2 * j + 1]));
        }
        const Complex<T>* const back = run_passes(inner, 0, inner.passes, spectrum, other, 1);
        for (std::int64_t k = 0; k < plan.n; ++k) {
            b[q + stride * k] = times(conj(back[k]), plan.chirp[2 * k], plan.chirp[2 * k + 1]);
        }
    }
}

/// Transforms `stride` interleaved sequences. The input is in a and is destroyed; the result is in the buffer returned.
template <class T>
inline Complex<T>* fft(const FftTables<T>& plan, Complex<T>* a, Complex<T>* b, std::int64_t stride, Complex<T>* spare) {
    if (plan.convolution == nullptr) return run_passes(plan, 0, plan.passes, a, b, stride);
    convolve_chirp(plan, a, b, stride, spare);
    return b;
}

/// The last pass of one sequence, radix R. A result k = q + s u meets its mirror image n - k in registers, and both go
/// to the sink at once: sink.pair(k, n - k, Z_k, Z_(n-k)) for 0 < k < n/2, sink.alone(k, Z_k) for k = 0 and n/2.
template <class T, int R, class Sink>
FASTCRIT_FLATTEN inline void last_pass(const Complex<T>* x, std::int64_t s, const Sink& sink) {
    Complex<T> a[R];
    Complex<T> b[R];
    gather<T, R>(x, s, a);  // q = 0: the mirror image of u is R - u
    sink.alone(0, a[0]);
    unroll<(R - 1) / 2>([&](auto i) {
        constexpr int u = decltype(i)::value + 1;
        sink.pair(s * u, s * (R - u), a[u], a[R - u]);
    });
    if constexpr (R % 2 == 0) sink.alone(s * (R / 2), a[R / 2]);
    std::int64_t q = 1;
    for (; 2 * q < s; ++q) {  // the mirror image of (q, u) is (s - q, R - 1 - u)
        gather<T, R>(x + q, s, a);
        gather<T, R>(x + s - q, s, b);
        unroll<R>([&](auto i) {
            constexpr int u = decltype(i)::value;
            const std::int64_t k = q + s * u;
            if constexpr (2 * u < R) {
                sink.pair(k, s * R - k, a[u], b[R - 1 - u]);
            } else {
                sink.pair(s * R - k, k, b[R - 1 - u], a[u]);
            }
        });
    }
    if constexpr (R % 4 == 0) {  // else s is odd: all twos come last, and a single 2 only where there is no other
        if (2 * q == s) {
            gather<T, R>(x + q, s, a);
            unroll<R / 2>([&](auto u) { sink.pair(q + s * u, q + s * (R - 1 - u), a[u], a[R - 1 - u]); });
        }
    }
}

/// Whether a sink is only for sequences of odd length.
template <class Sink>
inline constexpr bool kOddLength = false;

/// The last pass of one sequence, from x to the sink, if its radix has a codelet.
template <class T, class Sink>
inline void run_last_pass(const FftTables<T>& plan, const Complex<T>* x, const Sink& sink) {
    const std::int64_t r = plan.radices[plan.passes - 1];
    const std::int64_t s = plan.n / r;
    if constexpr (!kOddLength<Sink>) {
        switch (r) {
            case 2: return last_pass<T, 2>(x, s, sink);
            case 4: return last_pass<T, 4>(x, s, sink);
            case 8: return last_pass<T, 8>(x, s, sink);
            default: break;
        }
    }
    switch (r) {
        case 3: return last_pass<T, 3>(x, s, sink);
        case 5: return last_pass<T, 5>(x, s, sink);
        default: return last_pass<T, 7>(x, s, sink);
    }
}

/// Transform of one sequence in a, handed to the sink as `last_pass` says. Both buffers are destroyed.
template <class T, class Sink>
inline void fft_pairs(const FftTables<T>& plan, Complex<T>* a, Complex<T>* b, Complex<T>* spare, const Sink& sink) {
    if (plan.convolution == nullptr && plan.passes > 0 && plan.radices[plan.passes - 1] <= kLargestCodelet) {
        return run_last_pass(plan, run_passes(plan, 0, plan.passes - 1, a, b, 1), sink);
    }
    const Complex<T>* const z = fft(plan, a, b, 1, spare);
    sink.alone(0, z[0]);
    for (std::int64_t k = 1; 2 * k < plan.n; ++k) sink.pair(k, plan.n - k, z[k], z[plan.n - k]);
    if (plan.n > 1 && plan.n % 2 == 0) sink.alone(plan.n / 2, z[plan.n / 2]);
}

/// The first pass of the sequence source(0) .. source(n - 1) to y; false, with nothing done, where it lacks a codelet.
template <class T, class Source>
inline bool run_first_pass(const FftTables<T>& plan, const Source& source, Complex<T>* y) {
    if (plan.convolution != nullptr || plan.passes == 0) return false;
    const std::int64_t m = plan.n / plan.radices[0];
    switch (plan.radices[0]) {
        case 2: first_pass<T, 2>(source, y, m, plan.twiddles); return true;
        case 3: first_pass<T, 3>(source, y, m, plan.twiddles); return true;
        case 4: first_pass<T, 4>(source, y, m, plan.twiddles); return true;
        case 5: first_pass<T, 5>(source, y, m, plan.twiddles); return true;
        case 7: first_pass<T, 7>(source, y, m, plan.twiddles); return true;
        case 8: first_pass<T, 8>(source, y, m, plan.twiddles); return true;
        default: return false;
    }
}

/// Transform of the sequence source(0) .. source(n - 1), as `fft` of one that lies in a.
template <class T, class Source>
FASTCRIT_ONE_COPY Complex<T>* fft_of(const FftTables<T>& plan, const Source& source, Complex<T>* a, Complex<T>* b,
                                     Complex<T>* spare) {
    if (run_first_pass(plan, source, b)) return run_passes(plan, 1, plan.passes, b, a, 1);
    for (std::int64_t i = 0; i < plan.n; ++i) a[i] = source(i);
    return fft(plan, a, b, 1, spare);
}

/// The same handed to the sink as by `fft_pairs`.
template <class T, class Source, class Sink>
inline void fft_pairs_of(const FftTables<T>& plan, const Source& source, Complex<T>* a, Complex<T>* b,
                         Complex<T>* spare, const Sink& sink) {
    if (plan.passes > 1 && run_first_pass(plan, source, b)) {
        return run_last_pass(plan, run_passes(plan, 1, plan.passes - 1, b, a, 1), sink);
    }
    for (std::int64_t i = 0; i < plan.n; ++i) a[i] = source(i);
    fft_pairs(plan, a, b, spare, sink);
}

}  // namespace fastcrit::FASTCRIT_ISA
