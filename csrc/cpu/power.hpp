// |phi^|^2 summed within bins, selected modes, and the autocorrelation, with one field in each lane.
#pragma once

#include <cstdint>

#include "block.hpp"
#include "doubtful.hpp"

namespace fastcrit::FASTCRIT_ISA {

/// Sink that adds the power of a plane's modes to their bins and keeps selected ones. A mode and its mirror image in
/// the plane are in one bin.
template <class T>
struct AddPower {
    const std::int32_t* bin;  ///< of the plane's modes
    Vec<T>* bins;
    T weight;
    const std::int32_t* slot;  ///< where each of the plane's modes is kept, or -1; null when none is
    Complex<T>* kept;
    Ahead<T> ahead;

    void pair(std::int64_t j, std::int64_t mirror, const Complex<T>& z, const Complex<T>& opposite) const {
        ahead.fetch(j);
        bins[bin[j]] += (square(z) + square(opposite)) * weight;
        if (slot != nullptr) {
            keep(j, z);
            keep(mirror, opposite);
        }
    }
    void alone(std::int64_t j, const Complex<T>& z) const {
        bins[bin[j]] += square(z) * weight;
        if (slot != nullptr) keep(j, z);
    }

private:
    void keep(std::int64_t j, const Complex<T>& z) const {
        if (slot[j] >= 0) kept[slot[j]] = z;
    }
};

/// out[field, i] = values[i][lane] * scale[i], for the fields that exist; scale may be null for `factor` throughout.
/// Returns the sum of all values but the first, NaN where one is not finite.
template <class T>
FASTCRIT_FLATTEN inline Vec<T> write_rows(const Vec<T>* values, std::int64_t n, const T* scale, T factor,
                                          std::int64_t fields, T* out) {
    constexpr std::int64_t q = kPiece<T>;
    constexpr std::int64_t line = kLineBytes / static_cast<std::int64_t>(sizeof(T));
    Vec<T> rest = n > 0 ? -values[0] : Vec<T>{};  // the first is added next, and the difference is exact
    std::int64_t begin = 0;
    for (; begin + q <= n; begin += q) {
        if (begin % line == 0) {
            for (std::int64_t l = 0; l < kLanes<T>; ++l) fetch_to_write(out + l * n + begin + line, 1);
        }
        Vec<T> square[q];
        unroll<q>([&](auto i) {
            square[i] = values[begin + i] * (scale != nullptr ? scale[begin + i] : factor);
            rest += values[begin + i];
        });
        transpose_pieces<T>(square);
        T spare[q];
        unroll<q>([&](auto r) {
            store_pieces<T>(square[r], [&](int p) {
                const std::int64_t l = p * q + decltype(r)::value;
                return l < fields ? out + l * n + begin : spare;
            });
        });
    }
    for (; begin < n; ++begin) {
        const Vec<T> value = values[begin] * (scale != nullptr ? scale[begin] : factor);
        rest += values[begin];
        for (std::int64_t l = 0; l < fields; ++l) out[l * n + begin] = value[l];
    }
    return rest;
}

/// Where the parts of a block's scratch lie.
template <class T>
struct BlockScratch {
    Complex<T>* block;
    Complex<T>* work;
    Complex<T>* kept;
    Vec<T>* bins;
    Vec<T>* spectrum;  ///< full lattice, row after row (autocorrelation only)

    BlockScratch(const PlanTables<T>& plan, const PowerRequest<T>& request, void* scratch)
        : block(static_cast<Complex<T>*>(scratch)),
          work(block + (plan.plane > 1 ? std::int64_t{plan.half} * plan.plane_stride : 0)),
          kept(work + plan.work),
          bins(reinterpret_cast<Vec<T>*>(kept + request.n_selected)),
          spectrum(bins + request.bins) {}

    static std::int64_t bytes(const PlanTables<T>& plan, const PowerRequest<T>& request, bool with_spectrum) {
        const BlockScratch parts(plan, request, nullptr);
        const std::int64_t sites = with_spectrum ? std::int64_t{plan.plane} * plan.n2 : 0;
        return reinterpret_cast<std::intptr_t>(parts.spectrum + sites);
    }
};

/// The W fields from `first` on. Lanes past the end of the batch repeat its last field.
template <class T>
inline RowReader<T> read_fields(const PlanTables<T>& plan, const PowerRequest<T>& request, std::int64_t first) {
    RowReader<T> rows;
    const std::int64_t sites = std::int64_t{plan.plane} * plan.n2;
    rows.readable = sites;
    rows.by_line = meets_in_one_set<T>(sites);
    for (int l = 0; l < kLanes<T>; ++l) {
        const std::int64_t field = first + l < request.count ? first + l : request.count - 1;
        rows.lane[l] = request.fields + field * sites;
    }
    rows.offset = request.offset;
    rows.sign = request.sign;
    return rows;
}

template <class T>
inline std::int64_t fields_in_group(const PowerRequest<T>& request, std::int64_t first) {
    const std::int64_t left = request.count - first;
    return left < kLanes<T> ? left : kLanes<T>;
}

/// Sum over the sites in each lane, from the plane kx = 0, which holds twice the sums of the rows.
template <class T>
inline void sum_rows(const PlanTables<T>& plan, const Complex<T>* plane, double* totals) {
    for (std::int64_t row = 0; row < plan.plane; ++row) {
        T sums[kLanes<T>];
        store(sums, plane[row].re);
        for (int l = 0; l < kLanes<T>; ++l) totals[l] += 0.5 * static_cast<double>(sums[l]);
    }
}

template <class T>
std::int64_t power_scratch(const PlanTables<T>& plan, const PowerRequest<T>& request) {
    return BlockScratch<T>::bytes(plan, request, false);
}

template <class T>
std::uint32_t power(const PlanTables<T>& plan, const PowerRequest<T>& request, std::int64_t first, void* scratch) {
    const BlockScratch<T> at(plan, request, scratch);
    for (std::int64_t b = 0; b < request.bins; ++b) at.bins[b] = Vec<T>{};
    double totals[kLanes<T>] = {};
    RowReader<T> rows = read_fields(plan, request, first);
    if (request.totals != nullptr && plan.plane == 1) rows.totals = totals;

    const std::int32_t* const slot = request.n_selected > 0 ? request.slot : nullptr;
    const std::int64_t sites = std::int64_t{plan.plane} * plan.n2;
    const Ahead<T> ahead{request.fields + (first + kLanes<T>)*sites};
    const Ahead<T> ahead_half = ahead.after(sites / 4);
    const auto sink_of = [&](std::int64_t kx, T weight) {
        const std::int64_t begin = kx * plan.plane;
        return AddPower<T>{request.bin_of_mode + begin,
                           at.bins,
                           weight,
                           slot != nullptr ? slot + begin : nullptr,
                           at.kept,
                           ahead_half.after((kx - 1) * (plan.plane / 2))};
    };
    if (plan.plane == 1) {
        const std::int64_t own_mirror = plan.n2 % 2 == 0 ? plan.half - 1 : 0;
        transform_single_row(plan, rows, at.work, [&](std::int64_t kx, const Complex<T>& z) {
            ahead.fetch(kx);
            sink_of(kx, kx == 0 || kx == own_mirror ? T{1} : T{2}).alone(0, z);
        });
    } else {
        transform_rows(plan, rows, at.block, at.work, ahead);
        if (request.totals != nullptr) sum_rows(plan, at.block, totals);
        transform_planes(plan, at.block, at.work, sink_of);
    }
    const std::int64_t fields = fields_in_group(request, first);
    if (request.totals != nullptr) {
        for (std::int64_t l = 0; l < fields; ++l) request.totals[first + l] = totals[l];
    }
    // Amplitudes are doubled: halves for modes, quarters (in the scale) for powers.
    write_rows<T>(&at.kept[0].re, 2 * std::int64_t{request.n_selected}, nullptr, static_cast<T>(0.5), fields,
                  request.modes + 2 * first * request.n_selected);
    const Vec<T> rest = write_rows<T>(at.bins, request.kept_bins, request.scale, request.factor, fields,
                                      request.out + first * request.kept_bins);
    return doubtful_lanes<T>(request, at.bins[0], rest, fields);
}

/// Sink that writes the power of a plane's modes to the full lattice.
template <class T>
struct StorePower {
    Vec<T>* here;      ///< column kx of the lattice
    Vec<T>* opposite;  ///< column -kx
    std::int64_t n2;

    void pair(std::int64_t j, std::int64_t mirror, const Complex<T>& z, const Complex<T>& other) const {
        here[j * n2] = opposite[mirror * n2] = square(z);
        here[mirror * n2] = opposite[j * n2] = square(other);
    }
    void alone(std::int64_t j, const Complex<T>& z) const { here[j * n2] = opposite[j * n2] = square(z); }
};

/// Sink that adds the real parts of a plane to their bins. A site and its mirror image in the plane are in one bin.
template <class T>
struct AddReal {
    const std::int32_t* bin;
    Vec<T>* bins;
    T weight;

    void pair(std::int64_t j, std::int64_t, const Complex<T>& z, const Complex<T>& other) const {
        bins[bin[j]] += (z.re + other.re) * weight;
    }
    void alone(std::int64_t j, const Complex<T>& z) const { bins[bin[j]] += z.re * weight; }
};

template <class T>
std::int64_t autocorrelation_scratch(const PlanTables<T>& plan, const PowerRequest<T>& request) {
    return BlockScratch<T>::bytes(plan, request, true);
}

/// C = inverse transform of |phi^|^2 / N. The power is real and even, so the forward transform serves.
template <class T>
std::uint32_t autocorrelation(const PlanTables<T>& plan, const PowerRequest<T>& request, std::int64_t first,
                              void* scratch) {
    const BlockScratch<T> at(plan, request, scratch);
    for (std::int64_t b = 0; b < request.bins; ++b) at.bins[b] = Vec<T>{};
    const RowReader<T> rows = read_fields(plan, request, first);
    const auto store_power = [&](std::int64_t kx, T) {
        return StorePower<T>{at.spectrum + kx, at.spectrum + (kx > 0 ? plan.n2 - kx : 0), plan.n2};
    };
    const auto add_lags = [&](std::int64_t x, T weight) {
        return AddReal<T>{request.bin_of_mode + x * plan.plane, at.bins, weight};
    };
    const LaneRows<T> spectrum{at.spectrum};
    if (plan.plane == 1) {
        const std::int64_t own_mirror = plan.n2 % 2 == 0 ? plan.half - 1 : 0;
        transform_single_row(plan, rows, at.work,
                             [&](std::int64_t kx, const Complex<T>& z) { store_power(kx, T{1}).alone(0, z); });
        transform_single_row(plan, spectrum, at.work, [&](std::int64_t x, const Complex<T>& c) {
            add_lags(x, x == 0 || x == own_mirror ? T{1} : T{2}).alone(0, c);
        });
    } else {
        transform_rows(plan, rows, at.block, at.work, Ahead<T>{request.fields, 0});
        transform_planes(plan, at.block, at.work, store_power);
        transform_rows(plan, spectrum, at.block, at.work, Ahead<T>{request.fields, 0});
        transform_planes(plan, at.block, at.work, add_lags);
    }
    const std::int64_t fields = fields_in_group(request, first);
    const Vec<T> rest = write_rows<T>(at.bins, request.kept_bins, request.scale, request.factor, fields,
                                      request.out + first * request.kept_bins);
    std::uint32_t doubtful = 0;
    for (std::int64_t l = 0; l < fields; ++l) {
        const T variance = at.bins[0][l];
        const bool good = variance >= request.least && variance <= request.most && rest[l] - rest[l] == T{0};
        doubtful |= static_cast<std::uint32_t>(good ? 0 : 1) << l;
    }
    return doubtful;
}

}  // namespace fastcrit::FASTCRIT_ISA
