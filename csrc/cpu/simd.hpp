// Lanes: a register of W values, one from each of W fields of the batch. Compiled once per instruction set;
// everything here lives in that set's namespace, so that no linker can mix them.
// Needs __builtin_shufflevector: GCC 12 or Clang.
// (No standard containers in these headers: an AVX-512 copy of std::vector must not reach an older processor.)
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#ifndef FASTCRIT_ISA
#error "FASTCRIT_ISA names the namespace of the instruction set being compiled"
#endif

// Inlines everything a function calls before anything is optimised: only then do its arrays stay in registers.
// Sanitizers would take minutes to instrument the result.
#ifdef FASTCRIT_SANITIZED
#define FASTCRIT_FLATTEN
#else
#define FASTCRIT_FLATTEN [[gnu::flatten]]
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
template <class T>
inline Complex<T> conj(Complex<T> a) {
    return {a.re, -a.im};
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

/// Doubles in a register.
inline constexpr int kWide = FASTCRIT_VECTOR_BYTES / 8;

/// As many values as there are doubles in a register, as doubles.
inline Vec<double> widen(const double* from) { return load(from); }
inline Vec<double> widen(const float* from) {
    // One instruction; GCC makes five of __builtin_convertvector.
#if defined(__AVX512F__)
    return _mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(from));  // unmasked, GCC 12 warns of its own header
#elif defined(__AVX2__)
    return _mm256_cvtps_pd(_mm_loadu_ps(from));
#else
    Vec<double> values{};
    for (int i = 0; i < kWide; ++i) values[i] = static_cast<double>(from[i]);
    return values;
#endif
}

// Memory is read and written in pieces of 16 bytes, Q values each: arrays are aligned to 16 bytes, so that no piece
// straddles two cache lines as whole registers would, and a register of P pieces needs shuffles within pieces only.
inline constexpr int kPieceBytes = 16;
template <class T>
inline constexpr int kPiece = kPieceBytes / static_cast<int>(sizeof(T));  ///< Q
template <class T>
inline constexpr int kPieces = kLanes<T> / kPiece<T>;  ///< P

template <class T>
struct PieceOf;
template <>
struct PieceOf<float> {
    typedef float type __attribute__((vector_size(kPieceBytes)));
};
template <>
struct PieceOf<double> {
    typedef double type __attribute__((vector_size(kPieceBytes)));
};
template <class T>
using Piece = typename PieceOf<T>::type;

/// Calls f(integral_constant<int, 0>) .. f(integral_constant<int, N - 1>): a loop that is always unrolled.
template <class F, int... I>
inline void unroll(std::integer_sequence<int, I...>, const F& f) {
    (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
inline void unroll(const F& f) {
    unroll(std::make_integer_sequence<int, N>{}, f);
}

/// Registers of 16, 32 or 64 bytes from their halves.
template <class Half, int... I>
inline auto join(Half a, Half b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, I...);
}
template <int N, class T, class Source>
inline auto join_pieces(const Source& piece, int first) {
    if constexpr (N == 1) {
        Piece<T> v;
        std::memcpy(&v, piece(first), sizeof v);
        return v;
    } else {
        return join(join_pieces<N / 2, T>(piece, first), join_pieces<N / 2, T>(piece, first + N / 2),
                    std::make_integer_sequence<int, N * kPiece<T>>{});
    }
}

/// A register whose piece p is read from source(p).
template <class T, class Source>
inline Vec<T> load_pieces(const Source& source) {
    return join_pieces<kPieces<T>, T>(source, 0);
}

template <class T, int P, int... I>
inline void store_piece(Vec<T> v, T* to, std::integer_sequence<int, I...>) {
    const Piece<T> piece = __builtin_shufflevector(v, v, (P * kPiece<T> + I)...);
    std::memcpy(to, &piece, sizeof piece);
}

/// Writes piece p of the register to target(p).
template <class T, class Target>
inline void store_pieces(Vec<T> v, const Target& target) {
    unroll<kPieces<T>>([&](auto p) {
        store_piece<T, decltype(p)::value>(v, target(decltype(p)::value), std::make_integer_sequence<int, kPiece<T>>{});
    });
}

template <class T, bool High, int... I>
inline Vec<T> interleave(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
    constexpr int q = kPiece<T>;
    // Element I of the result is element (I % q) / 2 (+ q / 2) of its piece of a (even I) or b (odd I).
    return __builtin_shufflevector(a, b, (I / q * q + I % q / 2 + (High ? q / 2 : 0) + (I % 2 ? kLanes<T> : 0))...);
}

/// Transposes every piece of Q registers: element j of piece p of register i becomes element i of piece p of register
/// j. log2(Q) perfect shuffles.
template <class T>
inline void transpose_pieces(Vec<T>* rows) {
    constexpr int q = kPiece<T>;
    const auto lanes = std::make_integer_sequence<int, kLanes<T>>{};
    for (int stage = 1; stage < q; stage *= 2) {
        Vec<T> shuffled[q];
        unroll<q / 2>([&](auto i) {
            shuffled[2 * i] = interleave<T, false>(rows[i], rows[i + q / 2], lanes);
            shuffled[2 * i + 1] = interleave<T, true>(rows[i], rows[i + q / 2], lanes);
        });
        unroll<q>([&](auto i) { rows[i] = shuffled[i]; });
    }
}

}  // namespace fastcrit::FASTCRIT_ISA
