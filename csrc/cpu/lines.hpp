// One field at a time, for lattices whose block of W fields would leave the cache: lanes are first W pairs of rows,
// then W neighbouring columns kx of the same field. Transposed in registers between the two, the columns form panels
// that are transformed like the planes of a block.
//
// When nx is even, kx = 0 and kx = nx/2 hold real rows and share the first column of the first panel.
#pragma once

#include "power.hpp"

namespace fastcrit::FASTCRIT_ISA {

// Bins up to this many get a sum for every lane, since neighbouring columns often share a shell and would wait for each
// other's addition; finer bins have few modes each and are added to directly.
inline constexpr std::int64_t kMostBinsByLane = 2048;

template <class T>
struct LinesLayout {
    std::int64_t columns;  ///< nx/2 for even nx, otherwise (nx + 1)/2
    std::int64_t panels;
    std::int64_t bin_sums;  ///< values of T
    std::int64_t spread;    ///< from one bin to the next

    LinesLayout(const PlanTables<T>& plan, const PowerRequest<T>& request)
        : columns((std::int64_t{plan.n2} + 1) / 2),
          panels((columns + kLanes<T> - 1) / kLanes<T>),
          spread(request.bins <= kMostBinsByLane ? kLanes<T> : 1) {
        bin_sums = (request.bins * spread + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    }
};

/// Sink that leaves the power of a panel's modes, mirror images added, in power[j] for the smaller j of the two, and
/// keeps selected modes. What the first column of the first panel holds is taken apart here.
template <class T>
struct PanelPower {
    const PlanTables<T>& plan;
    const PowerRequest<T>& request;
    std::int64_t first;  ///< kx of lane 0
    std::int64_t lanes;  ///< columns in this panel
    bool packed;         ///< lane 0 holds kx = 0 and kx = nx/2
    Vec<T>* power;
    T* nyquist;  ///< as power, of kx = nx/2
    T* kept;

    void pair(std::int64_t j, std::int64_t mirror, const Complex<T>& z, const Complex<T>& opposite) const {
        power[j] = square(z) + square(opposite);
        if (packed) pair_packed(j, mirror, z.re[0], z.im[0], opposite.re[0], opposite.im[0]);
        if (keeps()) {
            keep_lanes(j, z);
            keep_lanes(mirror, opposite);
        }
    }
    void alone(std::int64_t j, const Complex<T>& z) const {
        power[j] = square(z);
        if (packed) alone_packed(j, z.re[0], z.im[0]);
        if (keeps()) keep_lanes(j, z);
    }

private:
    [[gnu::noinline]] void pair_packed(std::int64_t j, std::int64_t mirror, T re, T im, T other_re, T other_im) const {
        constexpr T half = static_cast<T>(0.5);
        const T a_re = (re + other_re) * half;
        const T a_im = (im - other_im) * half;
        const T b_re = (im + other_im) * half;
        const T b_im = (other_re - re) * half;
        power[j][0] = T{2} * (a_re * a_re + a_im * a_im);
        nyquist[j] = T{2} * (b_re * b_re + b_im * b_im);
        if (request.n_selected == 0) return;
        keep(j, 0, a_re, a_im);
        keep(mirror, 0, a_re, -a_im);
        keep(j, plan.n2 / 2, b_re, b_im);
        keep(mirror, plan.n2 / 2, b_re, -b_im);
    }
    [[gnu::noinline]] void alone_packed(std::int64_t j, T re, T im) const {
        power[j][0] = re * re;
        nyquist[j] = im * im;
        if (request.n_selected == 0) return;
        keep(j, 0, re, T{0});
        keep(j, plan.n2 / 2, im, T{0});
    }
    bool keeps() const { return request.n_selected > 0 && first < request.selected_columns; }
    void keep(std::int64_t j, std::int64_t kx, T re, T im) const {
        const std::int32_t slot = request.slot[kx * plan.plane + j];
        if (slot < 0) return;
        kept[2 * slot] = re;
        kept[2 * slot + 1] = im;
    }
    [[gnu::noinline]] void keep_lanes(std::int64_t j, Complex<T> z) const {
        for (std::int64_t l = packed ? 1 : 0; l < lanes; ++l) keep(j, first + l, z.re[l], z.im[l]);
    }
};

/// Adds the power of a panel to the bins.
template <class T>
inline void add_panel(const PanelPower<T>& panel, std::int64_t spread, T* bins) {
    const PlanTables<T>& plan = panel.plan;
    const T* const power = reinterpret_cast<const T*>(panel.power);
    // kx and -kx count, but kx = 0 and kx = nx/2 once; they are in lane 0 of the first panel.
    const T first_weight = panel.first == 0 ? T{1} : T{2};
    for (std::int64_t j = 0; j < plan.plane; ++j) {
        if (plan.mirror[j] < j) continue;
        const std::int32_t* const row = panel.request.bin_by_row + j * plan.half;
        const std::int32_t* const bin = row + panel.first;
        const T* const value = power + j * kLanes<T>;
        if (panel.packed) bins[row[plan.n2 / 2] * spread] += panel.nyquist[j];
        if (spread > 1) {
            bins[bin[0] * kLanes<T>] += value[0] * first_weight;
            for (std::int64_t l = 1; l < panel.lanes; ++l) bins[bin[l] * kLanes<T> + l] += value[l] * T{2};
        } else {
            bins[bin[0]] += value[0] * first_weight;
            for (std::int64_t l = 1; l < panel.lanes; ++l) bins[bin[l]] += value[l] * T{2};
        }
    }
}

/// Where the parts of the scratch lie.
template <class T>
struct LinesScratch {
    Complex<T>* block;  ///< [panel][row]
    Complex<T>* work;
    Complex<T>* staging;  ///< [kx][row of a pair]: spectra of W row pairs
    Vec<T>* power;        ///< of one panel
    T* nyquist;
    T* bins;
    T* kept;

    LinesScratch(const PlanTables<T>& plan, const LinesLayout<T>& layout, void* scratch)
        : block(static_cast<Complex<T>*>(scratch)),
          work(block + layout.panels * plan.plane_stride),
          staging(work + plan.work),
          power(&staging[2 * (layout.panels * kLanes<T> + 1)].re),
          nyquist(reinterpret_cast<T*>(power + plan.plane)),
          bins(nyquist + plan.plane),
          kept(bins + layout.bin_sums) {}
};

template <class T>
std::int64_t lines_scratch(const PlanTables<T>& plan, const PowerRequest<T>& request) {
    const LinesScratch<T> parts(plan, LinesLayout<T>(plan, request), nullptr);
    return reinterpret_cast<std::intptr_t>(parts.kept + 2 * std::int64_t{request.n_selected});
}

/// Spectra of rows 2 (first + l) and the next, l < W, turned so that lanes are columns.
template <class T>
FASTCRIT_FLATTEN inline void turn_rows(const PlanTables<T>& plan, const LinesLayout<T>& layout,
                                       const Complex<T>* staging, std::int64_t first, Complex<T>* block) {
    constexpr std::int64_t q = kPiece<T>;
    T spare[q];
    for (std::int64_t kx = 0; kx < layout.panels * kLanes<T>; kx += q) {
        Complex<T>* const panel = block + kx / kLanes<T> * plan.plane_stride;
        for (int member = 0; member < 2; ++member) {
            Vec<T> re[q];
            Vec<T> im[q];
            unroll<q>([&](auto r) {
                re[r] = staging[2 * (kx + r) + member].re;
                im[r] = staging[2 * (kx + r) + member].im;
            });
            transpose_pieces<T>(re);
            transpose_pieces<T>(im);
            unroll<q>([&](auto r) {
                const auto target = [&](int p, bool real) {
                    const std::int64_t row = 2 * (first + p * q + decltype(r)::value) + member;
                    if (row >= plan.plane) return spare;
                    return reinterpret_cast<T*>(real ? &panel[row].re : &panel[row].im) + kx % kLanes<T>;
                };
                store_pieces<T>(re[r], [&](int p) { return target(p, true); });
                store_pieces<T>(im[r], [&](int p) { return target(p, false); });
            });
        }
    }
}

/// Reads row 2 (first + l) + member of a field into lane l < W, l past the last row repeating it.
template <class T>
inline RowReader<T> read_lines(const PlanTables<T>& plan, const T* field, std::int64_t first, std::int64_t member) {
    RowReader<T> rows;
    rows.readable = plan.n2;
    for (std::int64_t l = 0; l < kLanes<T>; ++l) {
        const std::int64_t row = 2 * (first + l) + member;
        rows.lane[l] = field + (row < plan.plane ? row : plan.plane - 1) * std::int64_t{plan.n2};
    }
    return rows;
}

/// As `power`, of one field.
template <class T>
std::int64_t lines(const PlanTables<T>& plan, const PowerRequest<T>& request, std::int64_t index, void* scratch) {
    constexpr std::int64_t w = kLanes<T>;
    const LinesLayout<T> layout(plan, request);
    const LinesScratch<T> at(plan, layout, scratch);
    const std::int64_t n = plan.n2;
    const std::int64_t sites = n * plan.plane;
    const T* const field = request.fields + index * sites;
    const bool packed = n % 2 == 0;
    for (std::int64_t b = 0; b < layout.bin_sums; ++b) at.bins[b] = T{0};

    double total = 0.0;
    for (std::int64_t first = 0; 2 * first < plan.plane; first += w) {
        for (std::int64_t member = 0; member < 2; ++member) {
            Vec<T>* const to = member == 0 ? &at.work[0].re : &at.work[0].im;
            RowReader<T> rows = read_lines(plan, field, first, member);
            double totals[w] = {};
            if (request.totals != nullptr) rows.totals = totals;
            rows.sign = request.sign;
            rows.read(0, n, to, 2);
            for (std::int64_t l = 0; l < w && 2 * (first + l) + member < plan.plane; ++l) total += totals[l];
            if (request.offset != nullptr) {
                Vec<T>* const mean = &at.staging[0].re;
                read_lines(plan, request.offset, first, member).read(0, n, mean, 1);
                for (std::int64_t x = 0; x < n; ++x) to[2 * x] -= mean[x];
            }
        }
        fft_pairs(plan.along_x, at.work, at.work + n, at.work + plan.spare, SplitRows<T>{at.staging, 2});
        if (packed) {
            for (int member = 0; member < 2; ++member) at.staging[member].im = at.staging[n + member].re;
        }
        // Lanes of the last panel that are no column.
        for (std::int64_t i = 2 * layout.columns; i < 2 * layout.panels * w; ++i) at.staging[i] = Complex<T>{};
        turn_rows(plan, layout, at.staging, first, at.block);
    }
    for (std::int64_t panel = 0; panel < layout.panels; ++panel) {
        const std::int64_t first = panel * w;
        const std::int64_t left = layout.columns - first;
        const PanelPower<T> sink{plan,     request,    first,  left < w ? left : w, packed && panel == 0,
                                 at.power, at.nyquist, at.kept};
        transform_plane(plan, at.block + panel * plan.plane_stride, at.work, sink);
        add_panel(sink, layout.spread, at.bins);
    }

    if (request.totals != nullptr) request.totals[index] = total;
    T* const modes = request.modes + 2 * index * request.n_selected;
    for (std::int64_t i = 0; i < 2 * request.n_selected; ++i) modes[i] = at.kept[i] * static_cast<T>(0.5);
    T* const out = request.out + index * request.kept_bins;
    T check{0};
    for (std::int64_t b = 0; b < request.kept_bins; ++b) {
        T sum = at.bins[b * layout.spread];
        for (std::int64_t l = 1; l < layout.spread; ++l) sum += at.bins[b * layout.spread + l];
        out[b] = sum * (request.scale != nullptr ? request.scale[b] : request.factor);
        check += out[b] * T{0};
    }
    return check == T{0} ? 1 : 0;
}

}  // namespace fastcrit::FASTCRIT_ISA
