// Moments and the first mode of every axis in one read of the field: no transform. Lanes are pixels of one row.
#pragma once

#include "simd.hpp"
#include "tables.hpp"

namespace fastcrit::FASTCRIT_ISA {

using cpu::ModesRequest;
using cpu::PlanTables;

// Rows whose column sums are kept in the precision of the field before they go to double: with 16 rows the float32
// rounding of a column sum stays below 16 half-ulps, and the flush costs a sixteenth of the adds.
inline constexpr std::int64_t kRowsPerFlush = 16;

template <class T>
inline double sum_lanes(Vec<T> v) {
    double sum = 0.0;
    for (int l = 0; l < kLanes<T>; ++l) sum += static_cast<double>(v[l]);
    return sum;
}

template <class T>
std::int64_t modes_scratch(const PlanTables<T>& plan) {
    // Marginal sums of the three axes in double; column sums of the rows not yet flushed.
    const std::int64_t bytes = (std::int64_t{plan.n0} + plan.n1 + plan.n2) * 8 + std::int64_t{plan.n2} * sizeof(T);
    return bytes + 64;
}

template <class T>
void modes(const PlanTables<T>& plan, const ModesRequest<T>& request, std::int64_t index, void* scratch) {
    constexpr int w = kLanes<T>;
    const std::int64_t n = plan.n2;
    const T* row = request.fields + index * n * plan.plane;
    double* const along_z = static_cast<double*>(scratch);
    double* const along_y = along_z + plan.n0;
    double* const along_x = along_y + plan.n1;
    T* const columns = reinterpret_cast<T*>(along_x + n);
    for (std::int64_t i = 0; i < plan.n0 + plan.n1 + n; ++i) along_z[i] = 0.0;
    for (std::int64_t x = 0; x < n; ++x) columns[x] = static_cast<T>(0);

    double squares = 0.0;
    std::int64_t unflushed = 0;
    for (std::int64_t z = 0; z < plan.n0; ++z) {
        for (std::int64_t y = 0; y < plan.n1; ++y, row += n) {
            Vec<T> sum{};
            Vec<T> square{};
            std::int64_t x = 0;
            for (; x + w <= n; x += w) {
                const Vec<T> v = load(row + x);
                sum += v;
                square += v * v;
                store(columns + x, load(columns + x) + v);
            }
            double row_sum = sum_lanes<T>(sum);
            double row_square = sum_lanes<T>(square);
            for (; x < n; ++x) {
                const double v = row[x];
                row_sum += v;
                row_square += v * v;
                columns[x] += row[x];
            }
            along_y[y] += row_sum;
            along_z[z] += row_sum;
            squares += row_square;
            if (++unflushed == kRowsPerFlush || (z + 1 == plan.n0 && y + 1 == plan.n1)) {
                for (std::int64_t i = 0; i < n; ++i) {
                    along_x[i] += columns[i];
                    columns[i] = static_cast<T>(0);
                }
                unflushed = 0;
            }
        }
    }

    double* out = request.out + index * (2 + 2 * request.ndim);
    double total = 0.0;
    for (std::int64_t z = 0; z < plan.n0; ++z) total += along_z[z];
    *out++ = total;
    *out++ = squares;
    const double* const marginal[3] = {along_z, along_y, along_x};
    const std::int32_t side[3] = {plan.n0, plan.n1, plan.n2};
    for (int axis = 3 - request.ndim; axis < 3; ++axis) {
        const double* const wave = plan.fundamental[axis];
        double re = 0.0;
        double im = 0.0;
        for (std::int64_t i = 0; i < side[axis]; ++i) {
            re += wave[2 * i] * marginal[axis][i];
            im += wave[2 * i + 1] * marginal[axis][i];
        }
        *out++ = re;
        *out++ = im;
    }
}

}  // namespace fastcrit::FASTCRIT_ISA
