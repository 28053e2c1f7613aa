// Fields that a kernel cannot measure as they are, in other units: less their mean, and divided by a power of two.
//
// A transform errs by eps of a field's size in every mode, which drowns small fluctuations about a large mean; and
// squares leave the range of a type long before the field does. Neither happens to ordinary fields, so that nothing is
// done about it before their results show it. What is decided here depends on one field alone, and so do its results.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "measurement.hpp"

namespace fastcrit::cpu {
namespace {

/// value * 2^exponent without the range of 2^exponent.
double scaled(double value, int exponent) { return std::scalbn(value, exponent); }

/// A field in units of 2^exponent: uniform + values, of which the values go elsewhere.
struct Unit {
    bool finite;
    int exponent;    ///< of the largest value; fields of zeros have 0
    double largest;  ///< 0 for these
    double uniform;
    double total;   ///< of all sites
    double square;  ///< mean over sites
};

/// `value(i)` is the field; `take_uniform`: its mean is taken out of what is written.
template <class T, class Value>
Unit in_own_units(const Value& value, std::int64_t sites, bool take_uniform, bool rescale, T* to) {
    double largest = 0.0;
    double not_finite = 0.0;
    for (std::int64_t i = 0; i < sites; ++i) {
        const double v = value(i);
        not_finite += v * 0.0;
        largest = std::max(largest, std::abs(v));
    }
    Unit unit{not_finite == 0.0, 0, largest, 0.0, 0.0, 0.0};
    if (!unit.finite || largest == 0.0) return unit;
    // A power of two that is a normal number, as its inverse is.
    if (rescale) unit.exponent = std::clamp(std::ilogb(largest), -1000, 1000);
    const double factor = scaled(1.0, -unit.exponent);
    const auto n = static_cast<double>(sites);
    if (take_uniform) {
        double sum = 0.0;
        for (std::int64_t i = 0; i < sites; ++i) sum += value(i) * factor;
        unit.uniform = sum / n;
    }
    double rest = 0.0;
    double squares = 0.0;
    for (std::int64_t i = 0; i < sites; ++i) {
        const double v = value(i) * factor - unit.uniform;
        rest += v;
        squares += v * v;
        to[i] = static_cast<T>(v);
    }
    unit.total = n * unit.uniform + rest;
    unit.square = unit.uniform * unit.uniform + (2.0 * unit.uniform * rest + squares) / n;
    return unit;
}

}  // namespace

template <class T>
std::int64_t Measurement<T>::run_again(const PowerRequest<T>& request, std::int64_t first,
                                       std::uint32_t doubtful) const {
    const std::int64_t sites = std::int64_t{plan.plane} * plan.n2;
    const std::int64_t n_modes = 2 * std::int64_t{request.n_selected};
    const std::int64_t width = sites + request.kept_bins + n_modes;
    auto* const memory =
        static_cast<T*>(thread_scratch(Scratch::again, kernel.fields * width * static_cast<std::int64_t>(sizeof(T))));
    Unit units[kMostLanes];
    std::int64_t fields[kMostLanes];
    std::int64_t count = 0;
    std::int64_t first_bad = group_end(request, first);
    for (std::int64_t f = first; f < group_end(request, first); ++f) {
        if ((doubtful >> (f - first) & 1U) == 0) continue;
        const T* const field = request.fields + f * sites;
        const auto value = [&](std::int64_t i) {
            return static_cast<double>(request.offset != nullptr ? field[i] - request.offset[i] : field[i]);
        };
        units[count] = in_own_units(value, sites, !correlation, true, memory + count * sites);
        if (!units[count].finite) {  // and so are the results that are there
            first_bad = std::min(first_bad, f);
        } else if (units[count].largest > 0.0) {
            fields[count++] = f;
        }
    }
    if (count == 0) return first_bad;

    PowerRequest<T> other = request;
    other.fields = memory;
    other.count = count;
    other.offset = nullptr;
    other.out = memory + kernel.fields * sites;
    other.modes = other.out + kernel.fields * request.kept_bins;
    other.totals = nullptr;
    kernel.run(plan, other, 0, thread_scratch(Scratch::task, scratch));
    const std::int32_t zero_mode = request.n_selected > 0 ? request.slot[0] : -1;
    for (std::int64_t j = 0; j < count; ++j) {
        const std::int64_t f = fields[j];
        const Unit& unit = units[j];
        T* const out = request.out + f * request.kept_bins;
        const T* const found = other.out + j * request.kept_bins;
        const double square = scaled(unit.square, 2 * unit.exponent);
        bool good = square >= request.lowest && square <= request.highest;
        for (std::int64_t b = 0; b < request.kept_bins; ++b) {
            const double power = b == 0 && !correlation ? unit.total * (unit.total / static_cast<double>(sites))
                                                        : static_cast<double>(found[b]);
            out[b] = static_cast<T>(scaled(power, 2 * unit.exponent));
            good = good && std::isfinite(out[b]);
        }
        if (!good) {
            for (std::int64_t b = 0; b < request.kept_bins; ++b) out[b] = std::numeric_limits<T>::quiet_NaN();
            first_bad = std::min(first_bad, f);
        }
        const double total = scaled(unit.total, unit.exponent);
        if (request.totals != nullptr) request.totals[f] = total;
        T* const modes = request.modes + f * n_modes;
        for (std::int64_t i = 0; i < n_modes; ++i) {
            modes[i] = static_cast<T>(scaled(static_cast<double>(other.modes[j * n_modes + i]), unit.exponent));
        }
        if (zero_mode < 0) continue;
        modes[2 * zero_mode] = static_cast<T>(total);
        modes[2 * zero_mode + 1] = T{0};
    }
    return first_bad;
}

template <class T>
bool first_modes_again(const PlanTables<T>& plan, const FirstModesRequest<T>& request, std::int64_t index,
                       void* scratch) {
    const std::int64_t sites = std::int64_t{plan.plane} * plan.n2;
    auto* const copy = static_cast<T*>(thread_scratch(Scratch::again, sites * static_cast<std::int64_t>(sizeof(T))));
    const T* const field = request.fields + index * sites;
    const auto value = [&](std::int64_t i) { return static_cast<double>(field[i]); };
    const Unit unit = in_own_units(value, sites, true, false, copy);
    if (!unit.finite) return false;
    double found[7];
    const FirstModesRequest<T> other{copy, 1, request.ndim, found};
    kernels<T>().first_modes(plan, other, 0, 1, scratch);
    const std::int32_t sides[3] = {plan.n0, plan.n1, plan.n2};
    bool good = std::isfinite(unit.total);
    for (int i = 0; i < 1 + 2 * request.ndim; ++i) {
        const int axis = 3 - request.ndim + (i - 1) / 2;
        if (i == 0 || (sides[axis] == 1 && i % 2 == 1)) found[i] = unit.total;
        good = good && std::isfinite(found[i]);
        request.out[i * request.count + index] = found[i];
    }
    return good;
}

template struct Measurement<float>;
template struct Measurement<double>;
template bool first_modes_again(const PlanTables<float>&, const FirstModesRequest<float>&, std::int64_t, void*);
template bool first_modes_again(const PlanTables<double>&, const FirstModesRequest<double>&, std::int64_t, void*);

}  // namespace fastcrit::cpu
