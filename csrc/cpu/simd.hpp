// Lanes: a register of W values, one from each of W fields of the batch. Compiled once per instruction set;
// everything here lives in that set's namespace, so that no linker can mix them.
// (No standard containers in these headers: an AVX-512 copy of std::vector must not reach an older processor.)
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#ifndef FASTCRIT_ISA
#error "FASTCRIT_ISA names the namespace of the instruction set being compiled"
#endif

// Bytes in a register. The widths are those of SSE2 and NEON (16), AVX2 (32) and AVX-512 (64).
#if defined(__AVX512F__)
#define FASTCRIT_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define FASTCRIT_VECTOR_BYTES 32
#else
#define FASTCRIT_VECTOR_BYTES 16
#endif

namespace fastcrit::FASTCRIT_ISA {

template <class T>
inline constexpr int kLanes = FASTCRIT_VECTOR_BYTES / static_cast<int>(sizeof(T));

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
    typedef float type __attribute__((vector_size(FASTCRIT_VECTOR_BYTES)));
    typedef std::int32_t index __attribute__((vector_size(FASTCRIT_VECTOR_BYTES)));
};
template <>
struct VectorOf<double> {
    typedef double type __attribute__((vector_size(FASTCRIT_VECTOR_BYTES)));
    typedef std::int64_t index __attribute__((vector_size(FASTCRIT_VECTOR_BYTES)));
};

template <class T>
using Vec = typename VectorOf<T>::type;

/// A complex number in every lane.
template <class T>
struct Complex {
    Vec<T> re;
    Vec<T> im;
};

template <class T>
inline Complex<T> operator+(Complex<T> a, Complex<T> b) {
    return {a.re + b.re, a.im + b.im};
}
template <class T>
inline Complex<T> operator-(Complex<T> a, Complex<T> b) {
    return {a.re - b.re, a.im - b.im};
}
/// The same complex number (re, im) multiplies every lane.
template <class T>
inline Complex<T> times(Complex<T> a, T re, T im) {
    return {a.re * re - a.im * im, a.re * im + a.im * re};
}
/// a * (-i)
template <class T>
inline Complex<T> minus_i(Complex<T> a) {
    return {a.im, -a.re};
}

template <class T>
inline Vec<T> load(const T* p) {
    Vec<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class T>
inline void store(T* p, Vec<T> v) {
    std::memcpy(p, &v, sizeof v);
}

template <class T, bool High, int... I>
inline Vec<T> interleave(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
    constexpr int w = kLanes<T>;
#if __has_builtin(__builtin_shufflevector)
    return __builtin_shufflevector(a, b, (I / 2 + (High ? w / 2 : 0) + (I % 2 ? w : 0))...);
#else  // GCC before 12
    return __builtin_shuffle(a, b, typename VectorOf<T>::index{(I / 2 + (High ? w / 2 : 0) + (I % 2 ? w : 0))...});
#endif
}

/// a0 b0 a1 b1 ... from the lower (High = false) or upper halves of a and b.
template <class T, bool High>
inline Vec<T> interleave(Vec<T> a, Vec<T> b) {
    return interleave<T, High>(a, b, std::make_integer_sequence<int, kLanes<T>>{});
}

/// Transpose of a W x W block: row r of the result holds element r of every input row. log2(W) perfect shuffles.
template <class T>
inline void transpose(Vec<T>* rows) {
    constexpr int w = kLanes<T>;
    Vec<T> shuffled[w];
    for (int stage = 1; stage < w; stage *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < w / 2; ++i) {
            shuffled[2 * i] = interleave<T, false>(rows[i], rows[i + w / 2]);
            shuffled[2 * i + 1] = interleave<T, true>(rows[i], rows[i + w / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < w; ++i) rows[i] = shuffled[i];
    }
}

}  // namespace fastcrit::FASTCRIT_ISA
