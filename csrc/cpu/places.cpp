// Where `lines` leaves the powers of the modes of every bin.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "measurement.hpp"

namespace fastcrit {
namespace {

/// visit(bin, place) for every power that is left.
template <class Visit>
void each_power(const cpu::PlanTables<float>& plan, const std::vector<std::int32_t>& bin_of_mode, const Visit& visit) {
    if (plan.powers >= INT32_MAX) {
        throw std::invalid_argument("lattice: rows of " + std::to_string(plan.n2) + " sites are too long");
    }
    for (std::int32_t kx = 0; kx < plan.half; ++kx) {
        for (std::int32_t i = 0; i < plan.rows + plan.own_mirrors / 2; ++i) {
            const std::int32_t j = plan.mode_of_half[i];
            const std::int32_t row = plan.row_of[j];
            const std::int64_t place =
                row >= 0 ? kx * plan.power_pitch + row : plan.second_powers + std::int64_t{kx} * cpu::kMostLanes + ~row;
            visit(static_cast<std::size_t>(bin_of_mode[static_cast<std::size_t>(std::int64_t{kx} * plan.plane + j)]),
                  static_cast<std::int32_t>(place));
        }
    }
}

}  // namespace

Spectrometer::Tables::ShellPlaces Spectrometer::Tables::find_shell_places() const {
    const cpu::PlanTables<float>& plan = single.plan.tables();
    std::vector<std::int32_t> next(static_cast<std::size_t>(number_of(Bins::shells)) + 1);
    each_power(plan, bin_of_mode(Bins::shells), [&](std::size_t bin, std::int32_t) { ++next[bin + 1]; });
    for (std::int32_t& n : next) n = (n + cpu::kPlaceChains - 1) / cpu::kPlaceChains * cpu::kPlaceChains;
    std::partial_sum(next.begin(), next.end(), next.begin());
    ShellPlaces found{
        std::vector<std::int32_t>(static_cast<std::size_t>(next.back()), static_cast<std::int32_t>(plan.powers)),
        {next.begin() + 1, next.end()}};
    each_power(plan, bin_of_mode(Bins::shells), [&](std::size_t bin, std::int32_t place) {
        found.places[static_cast<std::size_t>(next[bin]++)] = place;
    });
    return found;
}

Spectrometer::Tables::OrbitPlaces Spectrometer::Tables::find_orbit_places() const {
    const cpu::PlanTables<float>& plan = single.plan.tables();
    const auto orbits = static_cast<std::size_t>(number_of(Bins::orbits));
    std::vector<std::int32_t> layer(orbits);
    each_power(plan, bin_of_mode(Bins::orbits), [&](std::size_t bin, std::int32_t) { ++layer[bin]; });
    const std::int32_t most = *std::max_element(layer.begin(), layer.end());
    const std::int32_t layers = most + most % 2;
    OrbitPlaces found{
        std::vector<std::int32_t>(static_cast<std::size_t>(layers) * orbits, static_cast<std::int32_t>(plan.powers)),
        layers};
    each_power(plan, bin_of_mode(Bins::orbits), [&](std::size_t bin, std::int32_t place) {
        found.places[static_cast<std::size_t>(--layer[bin]) * orbits + bin] = place;
    });
    return found;
}

}  // namespace fastcrit
