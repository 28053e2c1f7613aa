// k = 0 and the first mode of every axis in one read of the field: no transform. Lanes are pixels of one row.
#pragma once

#include "simd.hpp"
#include "tables.hpp"

namespace fastcrit::FASTCRIT_ISA {

using cpu::ModesRequest;
using cpu::PlanTables;

// Sums over up to this many rows are kept in the precision of the field before they go to double.
inline constexpr std::int64_t kRowsPerFlush = 64;
// Short rows are read four at a time, so that a column sum is loaded and stored once for all of them; long ones one by
// one, since four streams through memory are slower than one.
inline constexpr int kRowsPerPass = 4;
inline constexpr std::int64_t kShortRow = 384;  // bytes

/// Sum over the lanes, in double.
template <class T>
inline double sum_lanes(Vec<T> v) {
    T lanes[kLanes<T>];
    store(lanes, v);
    Vec<double> sums = widen(lanes);
    for (int l = kWide; l < kLanes<T>; l += kWide) sums += widen(lanes + l);
    double part[kWide];
    store(part, sums);
    for (int width = kWide / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) part[i] += part[i + width];
    }
    return part[0];
}

template <class T>
std::int64_t modes_scratch(const PlanTables<T>& plan) {
    return (std::int64_t{plan.n2} + 2 * kLanes<T>)*static_cast<std::int64_t>(sizeof(T));
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

    /// After the rows of plane z, or some of them.
    void flush(std::int64_t plane) {
        Vec<T> sum{};
        Vec<T> re{};
        Vec<T> im{};
        for (std::int64_t v = 0; v < vectors; ++v) {
            const std::int64_t begin = v + 1 < vectors ? v * kLanes<T> : plan.n2 - kLanes<T>;
            const Vec<T> column = load(columns + v * kLanes<T>);
            sum += column;
            re += column * load(plan.wave_re[2] + begin);
            im += column * load(plan.wave_im[2] + begin);
            store(columns + v * kLanes<T>, Vec<T>{});
        }
        const double part = sum_lanes<T>(sum);
        total += part;
        x[0] += sum_lanes<T>(re);
        x[1] += sum_lanes<T>(im);
        y[0] += sum_lanes<T>(y_re);
        y[1] += sum_lanes<T>(y_im);
        z[0] += part * static_cast<double>(plan.wave_re[0][plane]);
        z[1] += part * static_cast<double>(plan.wave_im[0][plane]);
        y_re = y_im = Vec<T>{};
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

    void add_field(const T* field) {
        if (plan.n2 < kLanes<T>) return add_short_rows(field);
        for (std::int64_t plane = 0; plane < plan.n0; ++plane) {
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

template <class T>
bool modes(const PlanTables<T>& plan, const ModesRequest<T>& request, std::int64_t index, void* scratch) {
    ModeSums<T> sums(plan, scratch);
    sums.add_field(request.fields + index * plan.n2 * plan.plane);
    double* out = request.out + index;
    *out = sums.total;
    const double* const axes[3] = {sums.z, sums.y, sums.x};
    for (int axis = 3 - request.ndim; axis < 3; ++axis) {
        for (int part = 0; part < 2; ++part) *(out += request.count) = axes[axis][part];
    }
    // Sums of rows and columns are of type T and can overflow where the total does not.
    double zero = sums.total * 0.0;
    for (const double* axis : axes) zero += axis[0] * 0.0 + axis[1] * 0.0;
    return zero == 0.0;
}

}  // namespace fastcrit::FASTCRIT_ISA
