// Sums over samples in double, in the order of the samples.
#pragma once

#include <cstdint>

#include "simd.hpp"

namespace fastcrit::FASTCRIT_ISA {

// Rows added to a register of sums before it is written back: as many streams as the L1 cache has ways.
inline constexpr int kRowsAtOnce = 8;

template <class T, int Rows>
FASTCRIT_FLATTEN inline void add_rows_at_once(const T* from, std::int64_t pitch, double* to, std::int64_t n) {
    std::int64_t i = 0;
    for (; i + kWide <= n; i += kWide) {
        Vec<double> sum = load(to + i);
        unroll<Rows>([&](auto r) { sum += widen(from + r * pitch + i); });
        store(to + i, sum);
    }
    for (; i < n; ++i) {
        double sum = to[i];
        unroll<Rows>([&](auto r) { sum += static_cast<double>(from[r * pitch + i]); });
        to[i] = sum;
    }
}

/// to[i] += from[i] + from[pitch + i] + .. over `rows` rows, i < n, from left to right: the bits do not depend on how
/// the rows are cut into calls.
template <class T>
void add_rows(const T* from, std::int64_t pitch, std::int64_t rows, double* to, std::int64_t n) {
    std::int64_t r = 0;
    for (; r + kRowsAtOnce <= rows; r += kRowsAtOnce) add_rows_at_once<T, kRowsAtOnce>(from + r * pitch, pitch, to, n);
    for (; r + 4 <= rows; r += 4) add_rows_at_once<T, 4>(from + r * pitch, pitch, to, n);
    for (; r + 2 <= rows; r += 2) add_rows_at_once<T, 2>(from + r * pitch, pitch, to, n);
    for (; r < rows; ++r) add_rows_at_once<T, 1>(from + r * pitch, pitch, to, n);
}

/// As add_rows, of the signs: +1 for values >= 0, otherwise -1.
template <class T>
void add_signs(const T* from, std::int64_t pitch, std::int64_t rows, double* to, std::int64_t n) {
    for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t i = 0; i < n; ++i) to[i] += from[r * pitch + i] >= T{0} ? 1.0 : -1.0;
    }
}

}  // namespace fastcrit::FASTCRIT_ISA
