// One field at a time, for lattices whose block of W fields would leave the cache. No row is turned where it is read:
//
//   columns   lanes are W neighbouring x. Two groups of W columns are one complex group, read along a row, transformed
//             along y (and z), separated, and stored one row for each mode of the plane, of which every other is the
//             mirror image of one stored;
//   rows      W such rows at a time, turned as they are read, are transformed along x; the power of k and of its image
//             at -kx, which are always in one bin, are left together;
//   bins      sum what is left of the field in the order of the bins.
//
// The modes that are their own mirror image in the plane have real rows: two of them share the first row (or, in three
// dimensions, the first two).
#pragma once

#include <cstdint>
#include <type_traits>

#include "block.hpp"
#include "doubtful.hpp"

namespace fastcrit::FASTCRIT_ISA {

static_assert(kLanes<float> <= cpu::kMostLanes);

// A field of at most so many bytes is brought into the L2 cache while the one before is transformed; a larger one would
// displace it.
inline constexpr std::int64_t kLargestAhead = std::int64_t{512} << 10;

/// Where the parts of the scratch lie.
template <class T>
struct LinesScratch {
    std::int64_t groups;  ///< of W columns
    std::int64_t pitch;   ///< from row to row: a register of real and one of imaginary parts for each group, and a line
                          ///< more, so that rows lie in different sets of the cache
    Complex<T>* work;
    T* rows;
    T* power;         ///< at the places of the plan, and a zero
    T* second_power;  ///< those of the second modes of rows
    T* kept;

    LinesScratch(const PlanTables<T>& plan, const PowerRequest<T>& request, void* scratch)
        : groups((plan.n2 + kLanes<T> - 1) / kLanes<T>),
          pitch(2 * groups * kLanes<T> + kLineBytes / static_cast<std::int64_t>(sizeof(T))),
          work(static_cast<Complex<T>*>(scratch)),
          // A narrow row is turned as a whole register, so that work may take W values more than one.
          rows(reinterpret_cast<T*>(work + kLanes<T> + plan.plane + plan.work)),
          power(rows + plan.rows * pitch),
          second_power(power + plan.second_powers),
          kept(power + plan.powers + 1),
          end(kept + 2 * std::int64_t{request.n_selected}) {}
    T* end;
};

template <class T>
std::int64_t lines_scratch(const PlanTables<T>& plan, const PowerRequest<T>& request) {
    return reinterpret_cast<std::intptr_t>(LinesScratch<T>(plan, request, nullptr).end);
}

/// Two groups of W columns of a field as one complex sequence.
template <class T>
struct ColumnPair {
    const T* field;
    std::int64_t n2;
    std::int64_t first;   ///< x of lane 0 in the real part
    std::int64_t second;  ///< and in the imaginary part

    Complex<T> operator()(std::int64_t row) const {
        return {load(field + row * n2 + first), load(field + row * n2 + second)};
    }
};

/// The same of a field that is changed as it is read, or narrower than a register.
template <class T>
struct ChangedColumnPair {
    ColumnPair<T> columns;
    const T* offset;
    bool sign;

    Complex<T> operator()(std::int64_t row) const { return {read(row, columns.first), read(row, columns.second)}; }

private:
    Vec<T> read(std::int64_t row, std::int64_t x) const {
        const std::int64_t at = row * columns.n2 + x;
        Vec<T> value = some(columns.field + at);
        if (offset != nullptr) value -= some(offset + at);
        if (sign) value = value >= Vec<T>{} ? Vec<T>{} + T{1} : Vec<T>{} - T{1};
        return value;
    }
    Vec<T> some(const T* from) const {
        if (columns.n2 >= kLanes<T>) return load(from);
        Vec<T> value{};
        for (std::int64_t l = 0; l < columns.n2; ++l) value[l] = from[l];
        return value;
    }
};

/// Sink that separates two groups of columns and stores what is found of each mode in its row, doubled.
template <class T>
struct SplitColumns {
    const std::int32_t* row_of;
    T* first;  ///< where the first group lies in row 0
    T* second;
    std::int64_t pitch;
    std::int64_t next;  ///< from a mode's row to that of the mode after it
    Ahead<T> ahead;

    void pair(std::int64_t j, std::int64_t, const Complex<T>& z, const Complex<T>& mirror) const {
        Complex<T> a;
        Complex<T> b;
        separate(z, mirror, a, b);
        ahead.fetch(j);
        const std::int64_t at = row_of[j] * pitch;
        fetch_to_write(first + at + next, 2 * sizeof(Vec<T>));
        fetch_to_write(second + at + next, 2 * sizeof(Vec<T>));
        store(first + at, a.re);
        store(first + at + kLanes<T>, a.im);
        store(second + at, b.re);
        store(second + at + kLanes<T>, b.im);
    }
    void alone(std::int64_t j, const Complex<T>& z) const {
        const std::int64_t row = row_of[j];
        const std::int64_t at = row >= 0 ? row * pitch : ~row * pitch + kLanes<T>;
        store(first + at, z.re * T{2});
        store(second + at, z.im * T{2});
    }
};

/// W columns of W rows: real and imaginary parts from value `begin` of every lane on.
template <class T>
FASTCRIT_FLATTEN inline void turn_group(const RowReader<T>& rows, std::int64_t begin, Complex<T>* to) {
    constexpr int q = kPiece<T>;
    unroll<kPieces<T>>([&](auto p) {
        constexpr int x = decltype(p)::value * q;
        Vec<T> re[q];
        Vec<T> im[q];
        rows.turn(begin + x, re);
        rows.turn(begin + kLanes<T> + x, im);
        unroll<q>([&](auto i) { to[x + i] = {re[i], im[i]}; });
    });
}

/// Sink that leaves the power of W rows, k and its image at -kx together, and keeps selected modes. Shared: rows of
/// two modes are among them.
template <class T, bool Shared>
struct RowPower {
    const PlanTables<T>& plan;
    const PowerRequest<T>& request;
    std::int64_t first;  ///< row of lane 0
    T* power;            ///< of lane 0 at kx = 0
    T* second_power;
    T* kept;
    std::int64_t kept_columns;  ///< kx of all selected modes are below
    Ahead<T> ahead;

    void pair(std::int64_t kx, std::int64_t, const Complex<T>& z, const Complex<T>& opposite) const {
        ahead.fetch(kx);
        const Vec<T> sum = square(z) + square(opposite);
        if constexpr (Shared) {
            Complex<T> a;
            Complex<T> b;
            separate_doubled(z, opposite, a, b);
            leave(kx, sum, square(a), square(b));
            if (kx < kept_columns) keep({z, opposite, a, b}, kx);
        } else {
            leave(kx, sum, sum, sum);
            if (kx < kept_columns) keep({z, opposite, z, z}, kx);
        }
    }
    void alone(std::int64_t kx, const Complex<T>& z) const {
        constexpr T half = static_cast<T>(0.5);  // the image at -kx is the mode itself
        leave(kx, square(z), z.re * z.re * half, z.im * z.im * half);
        if (kx < kept_columns) keep({z, z, {z.re, Vec<T>{}}, {z.im, Vec<T>{}}}, kx);
    }

private:
    struct Modes {
        Complex<T> z;
        Complex<T> opposite;
        Complex<T> a;  ///< in rows of two modes, the first and
        Complex<T> b;  ///< the second
    };
    static constexpr std::int64_t w = kLanes<T>;

    std::int64_t shared() const { return Shared ? (plan.own_mirrors + 1) / 2 - first : 0; }
    void leave(std::int64_t kx, Vec<T> sum, Vec<T> a, Vec<T> b) const {
        if constexpr (Shared) {
            store(second_power + kx * cpu::kMostLanes, b);
            for (std::int64_t l = 0; l < w && l < shared(); ++l) sum[l] = a[l];
        }
        fetch_to_write(power + (kx + 1) * plan.power_pitch, sizeof sum);
        store(power + kx * plan.power_pitch, sum);
    }
    /// The mode at kx, j is z, and that at kx, -j the conjugate of what is at -kx, j.
    [[gnu::noinline, gnu::cold]] void keep(const Modes& m, std::int64_t kx) const {
        for (std::int64_t l = 0; l < w && first + l < plan.rows; ++l) {
            if (l < shared()) {
                const std::int64_t mode = 2 * (first + l);
                keep_one(kx, plan.mode_of_half[mode], m.a.re[l], m.a.im[l]);
                if (mode + 1 < plan.own_mirrors) keep_one(kx, plan.mode_of_half[mode + 1], m.b.re[l], m.b.im[l]);
            } else {
                const std::int32_t j = plan.mode_of_half[first + l + plan.own_mirrors / 2];
                keep_one(kx, j, m.z.re[l], m.z.im[l]);
                keep_one(kx, plan.mirror[j], m.opposite.re[l], -m.opposite.im[l]);
            }
        }
    }
    void keep_one(std::int64_t kx, std::int64_t j, T re, T im) const {
        const std::int32_t slot = request.slot[kx * plan.plane + j];
        if (slot < 0) return;
        kept[2 * slot] = re;
        kept[2 * slot + 1] = im;
    }
};

/// Sum over the sites from the first row, which holds twice the sum of every column.
template <class T>
inline double sum_of_columns(const LinesScratch<T>& at, std::int64_t n) {
    double total = 0.0;
    for (std::int64_t g = 0; g < at.groups; ++g) {
        const std::int64_t left = n - g * kLanes<T>;  // the last group begins before its columns, if there are others
        const std::int64_t lane = left < kLanes<T> && g > 0 ? kLanes<T> - left : 0;
        const T* const columns = at.rows + 2 * g * kLanes<T> + lane;
        const std::int64_t count = left < kLanes<T> ? left : kLanes<T>;
        for (std::int64_t x = 0; x < count; ++x) total += static_cast<double>(columns[x]);
    }
    return 0.5 * total;
}

/// Sum of value[place[i]], i < n, n a multiple of kPlaceChains.
template <class T>
inline T sum_of_places(const T* value, const std::int32_t* place, std::int64_t n) {
    T part[cpu::kPlaceChains] = {};
    for (std::int64_t i = 0; i < n; i += cpu::kPlaceChains) {
        unroll<cpu::kPlaceChains>([&](auto c) { part[c] += value[place[i + c]]; });
    }
    return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

/// out[b] = factor times the sum of the powers of bin b, which has a place in each layer.
template <class T>
inline void sum_layers(const T* power, const std::int32_t* place, std::int64_t layers, std::int64_t bins, T factor,
                       T* out) {
    for (std::int64_t l = 0; l < layers; l += 2) {
        const std::int32_t* const one = place + l * bins;
        const std::int32_t* const other = one + bins;
        for (std::int64_t b = 0; b < bins; ++b) {
            const T sum = factor * (power[one[b]] + power[other[b]]);
            out[b] = l == 0 ? sum : out[b] + sum;
        }
    }
}

/// As `power`, of one field.
template <class T>
std::uint32_t lines(const PlanTables<T>& plan, const PowerRequest<T>& request, std::int64_t index, void* scratch) {
    constexpr std::int64_t w = kLanes<T>;
    const LinesScratch<T> at(plan, request, scratch);
    const std::int64_t n = plan.n2;
    const std::int64_t sites = n * plan.plane;
    const T* const field = request.fields + index * sites;
    Complex<T>* const spare = at.work + plan.plane + plan.spare;
    const bool large = sites * static_cast<std::int64_t>(sizeof(T)) > kLargestAhead;
    const Ahead<T> ahead{field + sites, large ? 0 : Ahead<T>{}.step};
    if (plan.own_mirrors == 1) {  // the imaginary parts of the one row that holds one real sequence
        for (std::int64_t g = 0; g < at.groups; ++g) store(at.rows + (2 * g + 1) * w, Vec<T>{});
    }
    // The last group of columns overlaps the one before.
    const auto begin_of = [&](std::int64_t group) { return n >= (group + 1) * w ? group * w : n > w ? n - w : 0; };
    const bool plain = request.offset == nullptr && !request.sign && n >= w;
    for (std::int64_t g = 0; g < at.groups; g += 2) {
        const std::int64_t partner = g + 1 < at.groups ? g + 1 : g;
        const ColumnPair<T> columns{field, n, begin_of(g), begin_of(partner)};
        const SplitColumns<T> sink{plan.row_of,
                                   at.rows + 2 * g * w,
                                   at.rows + 2 * partner * w,
                                   at.pitch,
                                   (plan.n0 > 1 ? plan.n1 : 1) * at.pitch,
                                   ahead.after(g / 2 * (plan.plane / 2))};
        if (plain && plan.n0 == 1) {
            fft_pairs_of(plan.along_y, columns, at.work, at.work + plan.plane, spare, sink);
            continue;
        }
        const ChangedColumnPair<T> changed{columns, request.offset, request.sign};
        const auto read = [&](std::int64_t z) {
            for (std::int64_t j = z * plan.n1; j < (z + 1) * plan.n1; ++j) at.work[j] = plain ? columns(j) : changed(j);
        };
        transform_plane(plan, read, at.work, at.work + plan.plane, sink);
    }

    if (request.totals != nullptr) request.totals[index] = sum_of_columns(at, n);

    const std::int64_t kept_columns = request.n_selected > 0 ? request.selected_columns : 0;
    const Ahead<T> ahead_half = ahead.after(sites / (4 * w));
    RowReader<T> rows;
    rows.readable = at.pitch;
    for (std::int64_t first = 0; first < plan.rows; first += w) {
        for (std::int64_t l = 0; l < w; ++l) {
            rows.lane[l] = at.rows + (first + l < plan.rows ? first + l : plan.rows - 1) * at.pitch;
        }
        for (std::int64_t g = 0; g < at.groups; ++g) turn_group(rows, 2 * g * w, at.work + begin_of(g));
        const Ahead<T> ahead_here = ahead_half.after(first / w * (n / 2));
        const auto transform = [&](auto shared) {
            fft_pairs(plan.along_x, at.work, at.work + n, spare,
                      RowPower<T, decltype(shared)::value>{plan, request, first, at.power + first, at.second_power,
                                                           at.kept, kept_columns, ahead_here});
        };
        if (2 * first < plan.own_mirrors) {
            transform(std::true_type{});
        } else {
            transform(std::false_type{});
        }
    }

    T* const modes = request.modes + 2 * index * request.n_selected;
    for (std::int64_t i = 0; i < 2 * request.n_selected; ++i) modes[i] = at.kept[i] * static_cast<T>(0.5);
    // Twice: every mode stands for its mirror image, and those that are their own are halved.
    T* const out = request.out + index * request.kept_bins;
    at.power[plan.powers] = T{0};
    T zero{0};
    T rest{0};
    if (request.layers > 0) {
        sum_layers(at.power, request.places, request.layers, request.bins, T{2} * request.factor, out);
        zero = out[0] / request.factor;
        for (std::int64_t b = 1; b < request.kept_bins; ++b) rest += out[b];
        rest /= request.factor;
    } else {
        std::int64_t begin = 0;
        for (std::int64_t b = 0; b < request.kept_bins; ++b) {
            const std::int64_t end = request.places_end[b];
            const T sum = T{2} * sum_of_places(at.power, request.places + begin, end - begin);
            out[b] = sum * (request.scale != nullptr ? request.scale[b] : request.factor);
            (b == 0 ? zero : rest) += sum;
            begin = end;
        }
    }
    return !request.sign && is_doubtful(request, zero, rest) ? 1 : 0;
}

}  // namespace fastcrit::FASTCRIT_ISA
