// k = 0 and the first mode of every axis in one read of the field: no transform. Lanes are pixels of one row.
#pragma once

#include <cstdint>
#include <utility>

#include "kernels.hpp"
#include "simd.hpp"

namespace fastcrit::FASTCRIT_ISA {

using cpu::FirstModesRequest;
using cpu::PlanTables;

// Sums over up to this many rows are kept in the precision of the field before they go to double.
inline constexpr std::int64_t kRowsPerFlush = 64;
// Short rows are read four at a time, so that a column sum is loaded and stored once for all of them; long ones one by
// one, since four streams through memory are slower than one.
inline constexpr int kRowsPerPass = 4;
inline constexpr std::int64_t kShortRow = 384;  // bytes

// A tile is as many rows as are whole registers, this many at most: its sums stay in registers, three to each of the
// tile's. There are 32 registers with AVX-512 and on ARM, otherwise 16.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kLargestTile = 8;
#else
inline constexpr int kLargestTile = 4;
#endif
static_assert(kLargestTile * kLanes<float> <= cpu::kTileValues);

// What is brought into the L1 cache while values are read: those this many bytes ahead. The processor's own guess does
// not bridge the end of a field, where there is more to do than to read.
inline constexpr std::int64_t kBytesAhead = 6144;

template <class T>
inline void prefetch_ahead(const T* at) {
    __builtin_prefetch(at + kBytesAhead / static_cast<std::int64_t>(sizeof(T)), 0, 3);
}

/// Runs of Step lanes, from a and from b in turn: the even (or odd) runs of each.
template <int Step, bool Odd, int... I>
inline Vec<double> runs(Vec<double> a, Vec<double> b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(
        a, b, (I / (2 * Step) * (2 * Step) + I % Step + (Odd ? Step : 0) + (I / Step % 2 ? kWide : 0))...);
}

/// v[0] = the sum over the lanes of v[i] in lane i, i < kWide.
template <int Step = 1>
inline void sum_lanes(Vec<double>* v) {
    if constexpr (Step < kWide) {
        constexpr auto lanes = std::make_integer_sequence<int, kWide>{};
        unroll<kWide / (2 * Step)>([&](auto i) {
            v[i] = runs<Step, false>(v[2 * i], v[2 * i + 1], lanes) + runs<Step, true>(v[2 * i], v[2 * i + 1], lanes);
        });
        sum_lanes<2 * Step>(v);
    }
}

/// sums[i] = the sum over the lanes of v[i], i < N, in double.
template <class T, int N>
inline void sum_lanes(const Vec<T> (&v)[N], double* sums) {
    constexpr int all = (N + kWide - 1) / kWide * kWide;
    Vec<double> wide[all] = {};
    T lanes[kLanes<T>];
    unroll<N>([&](auto i) {
        store(lanes, v[i]);
        for (int l = 0; l < kLanes<T>; l += kWide) wide[i] += widen(lanes + l);
    });
    for (int i = 0; i < all; i += kWide) {
        sum_lanes(wide + i);
        double some[kWide];
        store(some, wide[i]);
        for (int l = 0; l < kWide && i + l < N; ++l) sums[i + l] = some[l];
    }
}

template <class T>
std::int64_t first_modes_scratch(const PlanTables<T>& plan) {
    return (std::int64_t{plan.n2} + 2 * kLanes<T>)*static_cast<std::int64_t>(sizeof(T));
}

/// Rows that fill whole registers.
struct Tile {
    std::int64_t rows;
    std::int64_t vectors;  ///< 0 where the rows of a plane cannot be cut into tiles
};

template <class T>
Tile tile_of(const PlanTables<T>& plan) {
    std::int64_t rows = 1;
    while (rows * plan.n2 % kLanes<T> != 0) rows *= 2;
    const std::int64_t vectors = rows * plan.n2 / kLanes<T>;
    return {rows, vectors <= kLargestTile && plan.n1 % rows == 0 ? vectors : 0};
}

/// Sums of one field on their way to double.
template <class T>
struct ModeSums {
    const PlanTables<T>& plan;
    std::int64_t vectors;  ///< registers that a row takes; the last overlaps the one before
    T* columns;            ///< sum of the rows since the last flush; of the overlap, zeros
    Vec<T> last_mask;      ///< 0 in the lanes of the last register that the one before holds, otherwise 1
    Vec<T> y_re{};         ///< rows times the first mode along y, since the last flush
    Vec<T> y_im{};
    double total = 0.0;
    double x[2] = {};
    double y[2] = {};
    double z[2] = {};

    ModeSums(const PlanTables<T>& tables, void* scratch)
        : plan(tables),
          vectors((tables.n2 + kLanes<T> - 1) / kLanes<T>),
          columns(static_cast<T*>(scratch)),
          last_mask(Vec<T>{}) {
        for (std::int64_t l = 0; l < kLanes<T>; ++l) last_mask[l] = l >= vectors * kLanes<T> - plan.n2 ? T{1} : T{0};
        for (std::int64_t v = 0; v < vectors; ++v) store(columns + v * kLanes<T>, Vec<T>{});
    }

    template <int Rows>
    FASTCRIT_FLATTEN void add_rows(const T* row, std::int64_t first_y) {
        const std::int64_t n = plan.n2;
        Vec<T> sum[Rows] = {};
        const auto add = [&](std::int64_t v, std::int64_t begin, bool masked) {
            Vec<T> column = load(columns + v * kLanes<T>);
            unroll<Rows>([&](auto r) {
                prefetch_ahead(row + r * n + begin);
                Vec<T> value = load(row + r * n + begin);
                if (masked) value *= last_mask;
                sum[r] += value;
                column += value;
            });
            store(columns + v * kLanes<T>, column);
        };
        for (std::int64_t v = 0; v + 1 < vectors; ++v) add(v, v * kLanes<T>, false);
        add(vectors - 1, n - kLanes<T>, true);
        unroll<Rows>([&](auto r) {
            y_re += sum[r] * plan.wave_re[1][first_y + r];
            y_im += sum[r] * plan.wave_im[1][first_y + r];
        });
    }

    /// After the rows of a plane, or some of them.
    void flush(std::int64_t plane) {
        Vec<T> sums[5] = {Vec<T>{}, Vec<T>{}, Vec<T>{}, y_re, y_im};
        for (std::int64_t v = 0; v < vectors; ++v) {
            const std::int64_t begin = v + 1 < vectors ? v * kLanes<T> : plan.n2 - kLanes<T>;
            const Vec<T> column = load(columns + v * kLanes<T>);
            sums[0] += column;
            sums[1] += column * load(plan.wave_re[2] + begin);
            sums[2] += column * load(plan.wave_im[2] + begin);
            store(columns + v * kLanes<T>, Vec<T>{});
        }
        add_sums(sums, plane);
        y_re = y_im = Vec<T>{};
    }

    /// The sum, re and im of the first mode along x, and along y, of rows of a plane, over the lanes.
    void add_sums(const Vec<T> (&lanes)[5], std::int64_t plane) {
        double sums[5];
        sum_lanes<T>(lanes, sums);
        total += sums[0];
        for (int part = 0; part < 2; ++part) {
            x[part] += sums[1 + part];
            y[part] += sums[3 + part];
        }
        z[0] += sums[0] * static_cast<double>(plan.wave_re[0][plane]);
        z[1] += sums[0] * static_cast<double>(plan.wave_im[0][plane]);
    }

    /// The rows of a plane by tiles of N registers and `height` rows.
    template <int N>
    FASTCRIT_FLATTEN void add_tiles(const T* rows, std::int64_t plane, std::int64_t height) {
        for (std::int64_t begin = 0; begin < plan.n1; begin += kRowsPerFlush * height) {
            const std::int64_t end =
                begin + kRowsPerFlush * height < plan.n1 ? begin + kRowsPerFlush * height : plan.n1;
            Vec<T> sum[N] = {};
            Vec<T> re[N] = {};  // times the first mode along y at the first row of the tile
            Vec<T> im[N] = {};
            for (std::int64_t row = begin; row < end; row += height) {
                const T c = plan.wave_re[1][row];
                const T s = plan.wave_im[1][row];
                unroll<N>([&](auto i) {
                    const T* const at = rows + row * plan.n2 + i * kLanes<T>;
                    prefetch_ahead(at);
                    const Vec<T> value = load(at);
                    sum[i] += value;
                    re[i] += value * c;
                    im[i] += value * s;
                });
            }
            Vec<T> sums[5] = {};
            unroll<N>([&](auto i) {
                const auto at = [&](const T* tile) { return load(tile + i * kLanes<T>); };
                sums[0] += sum[i];
                sums[1] += sum[i] * at(plan.tile_x_re);
                sums[2] += sum[i] * at(plan.tile_x_im);
                const Vec<T> c = at(plan.tile_y_re);
                const Vec<T> s = at(plan.tile_y_im);
                sums[3] += re[i] * c - im[i] * s;
                sums[4] += re[i] * s + im[i] * c;
            });
            add_sums(sums, plane);
        }
    }

    /// Rows shorter than a register, by the definition.
    void add_short_rows(const T* field) {
        for (std::int64_t k = 0; k < plan.n0; ++k) {
            for (std::int64_t j = 0; j < plan.n1; ++j) {
                for (std::int64_t i = 0; i < plan.n2; ++i) {
                    const double value = *field++;
                    const std::int64_t at[3] = {k, j, i};
                    double* const sums[3] = {z, y, x};
                    total += value;
                    for (int axis = 0; axis < 3; ++axis) {
                        sums[axis][0] += value * static_cast<double>(plan.wave_re[axis][at[axis]]);
                        sums[axis][1] += value * static_cast<double>(plan.wave_im[axis][at[axis]]);
                    }
                }
            }
        }
    }

    void add_field(const T* field, const Tile& tile) {
        if (tile.vectors == 0 && plan.n2 < kLanes<T>) return add_short_rows(field);
        for (std::int64_t plane = 0; plane < plan.n0; ++plane) {
            if (tile.vectors > 0) {
                unroll<kLargestTile>([&](auto i) {
                    if (tile.vectors == i + 1) add_tiles<i + 1>(field + plane * plan.n1 * plan.n2, plane, tile.rows);
                });
                continue;
            }
            for (std::int64_t begin = 0; begin < plan.n1; begin += kRowsPerFlush) {
                const std::int64_t end = begin + kRowsPerFlush < plan.n1 ? begin + kRowsPerFlush : plan.n1;
                const T* const rows = field + plane * plan.n1 * plan.n2;
                std::int64_t row = begin;
                if (plan.n2 * static_cast<std::int64_t>(sizeof(T)) <= kShortRow) {
                    for (; row + kRowsPerPass <= end; row += kRowsPerPass) {
                        add_rows<kRowsPerPass>(rows + row * plan.n2, row);
                    }
                }
                for (; row < end; ++row) add_rows<1>(rows + row * plan.n2, row);
                flush(plane);
            }
        }
    }
};

/// One field; false where a sum is not finite or the uniform part outweighs the rest.
template <class T>
bool first_modes_of_field(const PlanTables<T>& plan, const FirstModesRequest<T>& request, const Tile& tile,
                          std::int64_t index, void* scratch) {
    ModeSums<T> sums(plan, scratch);
    sums.add_field(request.fields + index * plan.n2 * plan.plane, tile);
    double* out = request.out + index;
    *out = sums.total;
    const double* const axes[3] = {sums.z, sums.y, sums.x};
    for (int axis = 3 - request.ndim; axis < 3; ++axis) {
        for (int part = 0; part < 2; ++part) *(out += request.count) = axes[axis][part];
    }
    // Sums of rows and columns are of type T and can overflow where the total does not.
    double waves = 0.0;
    if (plan.n0 > 1) waves += sums.z[0] * sums.z[0] + sums.z[1] * sums.z[1];
    if (plan.n1 > 1) waves += sums.y[0] * sums.y[0] + sums.y[1] * sums.y[1];
    if (plan.n2 > 1) waves += sums.x[0] * sums.x[0] + sums.x[1] * sums.x[1];
    // N^2 times the square of the mean, and N times that of the modes. Comparisons with NaN are false.
    const auto sites = static_cast<double>(plan.n2) * plan.plane;
    constexpr double largest = 0x1.fffffffffffffp+1023;
    return sums.total * sums.total <= static_cast<double>(cpu::kHeaviest<T>) * sites * waves && waves <= largest;
}

template <class T>
std::int64_t first_modes(const PlanTables<T>& plan, const FirstModesRequest<T>& request, std::int64_t begin,
                         std::int64_t end, void* scratch) {
    const Tile tile = tile_of(plan);
    for (std::int64_t i = begin; i < end; ++i) {
        if (!first_modes_of_field(plan, request, tile, i, scratch)) return i;
    }
    return end;
}

}  // namespace fastcrit::FASTCRIT_ISA
