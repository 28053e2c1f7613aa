// What a Spectrometer holds, and how a request for binned power is run with it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <mutex>
#include <vector>

#include "fastcrit/spectra.hpp"
#include "instruction_sets.hpp"
#include "plan.hpp"
#include "threads.hpp"

namespace fastcrit {

namespace cpu {

template <class T>
struct PlanWithScale {
    explicit PlanWithScale(const Lattice& lattice) : plan(lattice) {
        const auto sites = static_cast<double>(lattice.sites());
        for (const std::int64_t modes : lattice.shell_multiplicity()) {
            shell_scale.push_back(static_cast<T>(0.25 / sites / static_cast<double>(modes)));
        }
    }

    Plan<T> plan;
    std::vector<T> shell_scale;  ///< from sums of (2 |phi^|)^2 to the mean power of each shell
};

/// A request that lacks its bins, made ready: the kernel to run it with.
template <class T>
struct Measurement {
    const PlanTables<T>& plan;
    const PowerKernel<T>& kernel;
    std::int64_t scratch;      ///< bytes
    bool correlation = false;  ///< bins are of lags, not of modes

    /// Measures the group of fields that begins at `first`. Returns the first field whose result is not finite, or the
    /// end of the group.
    std::int64_t run(const PowerRequest<T>& request, std::int64_t first) const {
        const std::uint32_t doubtful = kernel.run(plan, request, first, thread_scratch(Scratch::task, scratch));
        return doubtful == 0 ? group_end(request, first) : run_again(request, first, doubtful);
    }
    std::int64_t groups(std::int64_t count) const { return (count + kernel.fields - 1) / kernel.fields; }
    std::int64_t group_end(const PowerRequest<T>& request, std::int64_t first) const {
        return std::min(first + kernel.fields, request.count);
    }

private:
    /// Measures the doubtful fields of a group, a bit each, in units of their own; see again.cpp. Returns as `run`
    /// does.
    std::int64_t run_again(const PowerRequest<T>& request, std::int64_t first, std::uint32_t doubtful) const;
};

/// Measures a field that `first_modes` stopped at, less its mean. False where a sum is not finite.
template <class T>
bool first_modes_again(const PlanTables<T>& plan, const FirstModesRequest<T>& request, std::int64_t index,
                       void* scratch);

/// Sets the bounds of a request. With `fourth_powers` there are results for fields whose fourth powers are in the range
/// of double.
template <class T>
inline void set_bounds(PowerRequest<T>& request, std::int64_t sites, double of_first_bin, bool fourth_powers = false) {
    using Limits = std::numeric_limits<T>;
    const auto n = static_cast<double>(sites);
    const bool squares = !fourth_powers || sizeof(T) == sizeof(float);
    request.lowest = squares ? static_cast<double>(Limits::min()) : 0x1p-511;
    request.highest = squares ? static_cast<double>(Limits::max()) : 0x1p+511;
    // The smallest square that keeps its digits where modes have 2^-24 (in double 2^-52) of the mean power.
    request.least = static_cast<T>(of_first_bin * n * n * request.lowest / static_cast<double>(Limits::epsilon()) * 2);
    request.most = squares ? Limits::max() : static_cast<T>(of_first_bin * n * n * 0x1p+500);
}

// The square of a field's size, times N^2, is so much in what a kernel adds up: amplitudes are doubled, and doubled
// again where their powers are transformed back.
inline constexpr double kOfModes = 4.0;
inline constexpr double kOfLags = 8.0;

/// value = min(value, to)
inline void lower(std::atomic<std::int64_t>& value, std::int64_t to) {
    std::int64_t known = value;
    while (to < known && !value.compare_exchange_weak(known, to)) {
    }
}

/// Bytes of a block of fields above which lines are in the lanes; see set_largest_block.
std::int64_t largest_block(int lanes);
/// So many times as large may it be where a row takes one register at most, which lines would leave partly empty: rows
/// of 4 and 8 are two to eight times faster as fields, out of the cache as they are.
inline constexpr std::int64_t kNarrowRows = 16;

}  // namespace cpu

struct Spectrometer::Tables {
    explicit Tables(const std::vector<std::int64_t>& shape) : lattice(shape), single(lattice), twice(lattice) {}

    template <class T>
    const cpu::PlanWithScale<T>& of() const {
        if constexpr (sizeof(T) == sizeof(float)) {
            return single;
        } else {
            return twice;
        }
    }

    const std::vector<std::int32_t>& bin_of_mode(Bins bins) const {
        return bins == Bins::shells ? lattice.shell_of_mode() : lattice.orbit_of_mode();
    }

    /// Where `lines` leaves the powers of a field, as PowerRequest has it. Found when first asked for.
    struct ShellPlaces {
        std::vector<std::int32_t> places, ends;
    };
    struct OrbitPlaces {
        std::vector<std::int32_t> places;
        std::int32_t layers;
    };
    const ShellPlaces& shell_places() const {
        std::call_once(shells_found, [&] { of_shells = find_shell_places(); });
        return of_shells;
    }
    const OrbitPlaces& orbit_places() const {
        std::call_once(orbits_found, [&] { of_orbits = find_orbit_places(); });
        return of_orbits;
    }

    /// A request for sums over the modes of each bin, and for the modes selected, if any. Amplitudes in the kernels are
    /// doubled.
    template <class T>
    cpu::PowerRequest<T> sums(Bins bins, const Selection* selected) const {
        cpu::PowerRequest<T> request{};
        request.kept_bins = number_of(bins);
        request.factor = static_cast<T>(0.25 / static_cast<double>(lattice.sites()));
        cpu::set_bounds(request, lattice.sites(), cpu::kOfModes);
        if (selected != nullptr) {
            selected->check(lattice);
            request.n_selected = selected->size();
            request.slot = selected->slot().data();
            request.selected_columns = selected->columns();
        }
        return request;
    }

    std::int32_t number_of(Bins bins) const {
        return bins == Bins::shells ? lattice.shells() : static_cast<std::int32_t>(lattice.orbits().size());
    }

    /// Fills in the bins of a request and chooses the kernel that suits the lattice: every field is measured in the
    /// same way, whatever the batch.
    template <class T>
    cpu::Measurement<T> prepare(cpu::PowerRequest<T>& request, Bins bins) const {
        const cpu::PlanTables<T>& plan = of<T>().plan.tables();
        const cpu::Kernels<T>& kernels = cpu::kernels<T>();
        request.bins = number_of(bins);
        request.bin_of_mode = bin_of_mode(bins).data();
        const std::int64_t block = std::int64_t{plan.half} * plan.plane_stride * kernels.power.fields *
                                   static_cast<std::int64_t>(2 * sizeof(T));
        const std::int64_t rows = plan.n2 <= kernels.power.fields ? cpu::kNarrowRows : 1;
        const bool whole = plan.plane == 1 || block <= rows * cpu::largest_block(kernels.power.fields);
        if (!whole && bins == Bins::shells) {
            request.places = shell_places().places.data();
            request.places_end = shell_places().ends.data();
        } else if (!whole) {
            request.places = orbit_places().places.data();
            request.layers = orbit_places().layers;
        }
        const cpu::PowerKernel<T>& kernel = whole ? kernels.power : kernels.lines;
        return {plan, kernel, kernel.scratch(plan, request)};
    }

    Lattice lattice;
    cpu::PlanWithScale<float> single;
    cpu::PlanWithScale<double> twice;

private:
    ShellPlaces find_shell_places() const;
    OrbitPlaces find_orbit_places() const;
    mutable std::once_flag shells_found, orbits_found;
    mutable ShellPlaces of_shells;
    mutable OrbitPlaces of_orbits;
};

}  // namespace fastcrit
