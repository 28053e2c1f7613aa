// From memory to registers: rows of as many fields as a register has lanes, and what is brought into the caches.
#pragma once

#include <cstdint>

#include "simd.hpp"

namespace fastcrit::FASTCRIT_ISA {

inline constexpr int kLineBytes = 64;
inline constexpr int kWays = 8;

/// What is read next, brought into the L2 cache two registers' worth at a time while the block is transformed: few
/// lines can be on their way at once, and many at a time would be waited for.
template <class T>
struct Ahead {
    const T* from;
    std::int64_t step = 2 * kLanes<T>;

    Ahead after(std::int64_t steps) const { return {from + steps * step, step}; }
    void fetch(std::int64_t i) const {
        constexpr int line = kLineBytes / static_cast<int>(sizeof(T));
        const T* const begin = from + i * step;
        for (int x = 0; x < 2 * kLanes<T>; x += line) __builtin_prefetch(begin + x, 0, 2);
    }
};

/// What is written next, brought into the L1 cache meanwhile: stores wait for their lines one after the other.
inline void fetch_to_write(const void* at, std::int64_t bytes) {
    for (std::int64_t x = 0; x < bytes; x += kLineBytes) __builtin_prefetch(static_cast<const char*>(at) + x, 1, 3);
}

/// Whether lanes that lie `pitch` values apart crowd one set of the L1 cache: 64 sets of kWays lines repeat every 4096
/// bytes. A line of each lane is then read whole before the next lane's.
template <class T>
inline bool meets_in_one_set(std::int64_t pitch) {
    return kLanes<T> > kWays && pitch * static_cast<std::int64_t>(sizeof(T)) % 4096 == 0;
}

/// Reads pixels of W rows, one a lane, from the `readable` values that begin at each lane[l].
template <class T>
struct RowReader {
    const T* lane[kLanes<T>];
    std::int64_t readable;
    bool by_line = false;       ///< lanes crowd a cache set: read pairs of rows by whole cache lines
    const T* offset = nullptr;  ///< as many values, subtracted; or null
    bool sign = false;          ///< read +1 or -1 instead of the value
    double* totals = nullptr;   ///< per lane, where what is read is summed; or null

    /// to[x * stride] = value `begin + x` of every lane, x < n.
    void read(std::int64_t begin, std::int64_t n, Vec<T>* to, std::int64_t stride) const {
        if (readable < kLanes<T>) {
            for (std::int64_t x = 0; x < n; ++x) {
                for (int l = 0; l < kLanes<T>; ++l) to[x * stride][l] = lane[l][begin + x];
            }
        } else {
            gather(begin, n, to, stride);
        }
        finish(begin, n, to, stride);
    }

    /// Rows `begin` and `begin + n` of every lane: to[2 x] and to[2 x + 1].
    void read_pair(std::int64_t begin, std::int64_t n, Vec<T>* to) const {
        if (!by_line || n % kPiece<T> != 0) {
            read(begin, n, to, 2);
            read(begin + n, n, to + 1, 2);
            return;
        }
        gather_lines(begin, n, to);
        finish(begin, n, to, 2);
        finish(begin + n, n, to + 1, 2);
    }

    /// Registers of Q values each of all lanes, from value `at` on, transposed.
    void turn(std::int64_t at, Vec<T>* square) const {
        unroll<kPiece<T>>([&](auto r) {
            square[r] = load_pieces<T>([&](int p) { return lane[p * kPiece<T> + decltype(r)::value] + at; });
        });
        transpose_pieces<T>(square);
    }

private:
    void finish(std::int64_t begin, std::int64_t n, Vec<T>* to, std::int64_t stride) const {
        if (offset != nullptr) {
            for (std::int64_t x = 0; x < n; ++x) to[x * stride] -= offset[begin + x];
        }
        if (sign) {
            for (std::int64_t x = 0; x < n; ++x) {
                const Vec<T> v = to[x * stride];
                to[x * stride] = v >= Vec<T>{} ? Vec<T>{} + T{1} : Vec<T>{} - T{1};
            }
        }
        if (totals != nullptr) add_to_totals(n, to, stride);
    }

    /// Transposes Q values at a time. When the last Q would reach past what is readable, they are taken from further
    /// back.
    FASTCRIT_FLATTEN void gather(std::int64_t begin, std::int64_t n, Vec<T>* to, std::int64_t stride) const {
        constexpr std::int64_t q = kPiece<T>;
        Vec<T> square[q];
        std::int64_t x = 0;
        for (; x + q <= n; x += q) {
            turn(begin + x, square);
            unroll<q>([&](auto i) { to[(x + i) * stride] = square[i]; });
        }
        if (x < n) {
            const std::int64_t past_end = begin + x + q - readable;
            const std::int64_t back = past_end > 0 ? past_end : 0;
            turn(begin + x - back, square);
            for (std::int64_t i = 0; i < n - x; ++i) to[(x + i) * stride] = square[back + i];
        }
    }

    /// Two rows, both multiples of Q, as one run: a cache line of each lane is read whole before the next lane's.
    FASTCRIT_FLATTEN void gather_lines(std::int64_t begin, std::int64_t n, Vec<T>* to) const {
        constexpr std::int64_t q = kPiece<T>;
        constexpr int squares = kLineBytes / kPieceBytes;
        const auto put = [&](std::int64_t x, const Vec<T>* square) {
            Vec<T>* const place = x < n ? to + 2 * x : to + 2 * (x - n) + 1;
            unroll<q>([&](auto i) { place[2 * i] = square[i]; });
        };
        Vec<T> line[squares][q];
        std::int64_t x = 0;
        // Up to where lines begin. All lanes lie alike: they are a multiple of 4096 bytes apart.
        for (; x < 2 * n && reinterpret_cast<std::uintptr_t>(lane[0] + begin + x) % kLineBytes >= kPieceBytes; x += q) {
            turn(begin + x, line[0]);
            put(x, line[0]);
        }
        for (; x + squares * q <= 2 * n; x += squares * q) {
            unroll<q>([&](auto r) {
                unroll<squares>([&](auto k) {
                    line[k][r] = load_pieces<T>(
                        [&](int p) { return lane[p * q + decltype(r)::value] + begin + x + decltype(k)::value * q; });
                });
            });
            unroll<squares>([&](auto k) {
                transpose_pieces<T>(line[k]);
                put(x + k * q, line[k]);
            });
        }
        for (; x < 2 * n; x += q) {
            turn(begin + x, line[0]);
            put(x, line[0]);
        }
    }

    // Sums of up to 64 values are kept in the precision of the field before they go to double.
    FASTCRIT_FLATTEN void add_to_totals(std::int64_t n, const Vec<T>* values, std::int64_t stride) const {
        constexpr std::int64_t run = 64;
        for (std::int64_t begin = 0; begin < n; begin += run) {
            Vec<T> part[4] = {};  // four chains of additions
            const std::int64_t end = begin + run < n ? begin + run : n;
            std::int64_t x = begin;
            for (; x + 4 <= end; x += 4) {
                unroll<4>([&](auto i) { part[i] += values[(x + i) * stride]; });
            }
            for (; x < end; ++x) part[0] += values[x * stride];
            const Vec<T> sum = (part[0] + part[1]) + (part[2] + part[3]);
            T lanes[kLanes<T>];
            store(lanes, sum);
            for (int l = 0; l < kLanes<T>; ++l) totals[l] += static_cast<double>(lanes[l]);
        }
    }
};

/// Reads a block that already lies in lanes.
template <class T>
struct LaneRows {
    const Vec<T>* block;

    void read(std::int64_t begin, std::int64_t n, Vec<T>* to, std::int64_t stride) const {
        for (std::int64_t x = 0; x < n; ++x) to[x * stride] = block[begin + x];
    }
    void read_pair(std::int64_t begin, std::int64_t n, Vec<T>* to) const {
        read(begin, n, to, 2);
        read(begin + n, n, to + 1, 2);
    }
};

}  // namespace fastcrit::FASTCRIT_ISA
