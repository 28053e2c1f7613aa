// |phi^|^2 summed within bins, selected modes, and the autocorrelation: what is done with a finished plane.
#pragma once

#include "block.hpp"

namespace fastcrit::FASTCRIT_ISA {

using cpu::PowerRequest;

/// Adds weight * value(mode) to the bin of every mode of a plane.
template <class T, class Value>
inline void add_to_bins(const std::int32_t* bin, std::int64_t modes, T weight, Vec<T>* bins, const Value& value) {
    for (std::int64_t j = 0; j < modes; ++j) bins[bin[j]] += value(j) * weight;
}

/// out[field, bin] = bins[bin][lane] * scale, for the fields that exist.
template <class T>
inline void write_bins(const Vec<T>* bins, std::int64_t n_bins, T scale, std::int64_t fields, T* out) {
    constexpr int w = kLanes<T>;
    std::int64_t begin = 0;
    for (; begin + w <= n_bins; begin += w) {
        Vec<T> square[w];
        for (int i = 0; i < w; ++i) square[i] = bins[begin + i] * scale;
        transpose<T>(square);
        for (std::int64_t l = 0; l < fields; ++l) store(out + l * n_bins + begin, square[l]);
    }
    for (; begin < n_bins; ++begin) {
        const Vec<T> value = bins[begin] * scale;
        for (std::int64_t l = 0; l < fields; ++l) out[l * n_bins + begin] = value[l];
    }
}

template <class T>
inline std::int64_t fields_in_group(const PowerRequest<T>& request, std::int64_t first) {
    const std::int64_t left = request.count - first;
    return left < kLanes<T> ? left : kLanes<T>;
}

template <class T>
std::int64_t power_scratch(const PlanTables<T>& plan, const PowerRequest<T>& request) {
    const std::int64_t complex_lanes = std::int64_t{plan.half} * plan.plane_stride + plan.work;
    return (2 * complex_lanes + request.bins) * static_cast<std::int64_t>(sizeof(Vec<T>));
}

template <class T>
void power(const PlanTables<T>& plan, const PowerRequest<T>& request, std::int64_t first, void* scratch) {
    const std::int64_t sites = std::int64_t{plan.plane} * plan.n2;
    const std::int64_t fields = fields_in_group(request, first);
    Complex<T>* const block = static_cast<Complex<T>*>(scratch);
    Complex<T>* const work = block + std::int64_t{plan.half} * plan.plane_stride;
    Vec<T>* const bins = reinterpret_cast<Vec<T>*>(work + plan.work);
    for (std::int64_t b = 0; b < request.bins; ++b) bins[b] = Vec<T>{};

    const FieldRows<T> rows(request.fields, first, request.count, sites, request.offset);
    transform_rows(plan, rows, block, work);

    const std::int32_t* selected = request.selected;
    T* const modes = request.modes + 2 * first * request.n_selected;
    const std::int32_t* const selected_end = selected + request.n_selected;
    const auto keep_selected = [&](std::int64_t kx, const Complex<T>* z) {
        const std::int64_t begin = kx * plan.plane;
        const std::int32_t* s = selected;
        while (s != selected_end && *s < begin) ++s;
        for (; s != selected_end && *s < begin + plan.plane; ++s) {
            const Complex<T> value = z[*s - begin];
            for (std::int64_t l = 0; l < fields; ++l) {
                T* out = modes + 2 * (l * request.n_selected + (s - selected));
                out[0] = value.re[l] * static_cast<T>(0.5);
                out[1] = value.im[l] * static_cast<T>(0.5);
            }
        }
    };
    transform_planes(plan, block, work, [&](std::int64_t kx, const Complex<T>* z, T weight) {
        add_to_bins<T>(request.bin_of_mode + kx * plan.plane, plan.plane, weight, bins,
                       [&](std::int64_t j) { return z[j].re * z[j].re + z[j].im * z[j].im; });
        if (request.n_selected > 0) keep_selected(kx, z);
    });
    const T scale = static_cast<T>(0.25) / static_cast<T>(sites);
    write_bins<T>(bins, request.bins, scale, fields, request.sums + first * request.bins);
}

template <class T>
std::int64_t autocorrelation_scratch(const PlanTables<T>& plan, const PowerRequest<T>& request) {
    const std::int64_t sites = std::int64_t{plan.plane} * plan.n2;
    return power_scratch(plan, request) + sites * static_cast<std::int64_t>(sizeof(Vec<T>));
}

/// C = inverse transform of |phi^|^2 / N. The power is real and even, so the forward transform serves.
template <class T>
void autocorrelation(const PlanTables<T>& plan, const PowerRequest<T>& request, std::int64_t first, void* scratch) {
    const std::int64_t sites = std::int64_t{plan.plane} * plan.n2;
    const std::int64_t fields = fields_in_group(request, first);
    Complex<T>* const block = static_cast<Complex<T>*>(scratch);
    Complex<T>* const work = block + std::int64_t{plan.half} * plan.plane_stride;
    Vec<T>* const bins = reinterpret_cast<Vec<T>*>(work + plan.work);
    Vec<T>* const spectrum = bins + request.bins;  // full lattice, row after row
    for (std::int64_t b = 0; b < request.bins; ++b) bins[b] = Vec<T>{};

    const FieldRows<T> rows(request.fields, first, request.count, sites, request.offset);
    transform_rows(plan, rows, block, work);
    transform_planes(plan, block, work, [&](std::int64_t kx, const Complex<T>* z, T) {
        const std::int64_t opposite = kx > 0 ? plan.n2 - kx : 0;
        for (std::int64_t j = 0; j < plan.plane; ++j) {
            const Vec<T> value = z[j].re * z[j].re + z[j].im * z[j].im;
            spectrum[j * plan.n2 + kx] = value;
            spectrum[plan.mirror[j] * std::int64_t{plan.n2} + opposite] = value;
        }
    });
    transform_rows(plan, LaneRows<T>{spectrum}, block, work);
    transform_planes(plan, block, work, [&](std::int64_t x, const Complex<T>* c, T weight) {
        add_to_bins<T>(request.bin_of_mode + x * plan.plane, plan.plane, weight, bins,
                       [&](std::int64_t j) { return c[j].re; });
    });
    // 1/4 from the first transform, 1/2 from the second; 1/N for S and 1/N for the inverse.
    const T scale = static_cast<T>(0.125) / static_cast<T>(sites) / static_cast<T>(sites);
    write_bins<T>(bins, request.bins, scale, fields, request.sums + first * request.bins);
}

}  // namespace fastcrit::FASTCRIT_ISA
