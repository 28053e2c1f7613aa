// Shells, orbits and lags against counting over the full lattice.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <utility>

#include "check.hpp"

using fastcrit::Lattice;
using oracle::Shape;

namespace {

constexpr double kTwoPi = 6.283185307179586476925286766559;

/// Number of modes and summed |k| per shell, by the definition, over all wavevectors of the full lattice.
std::map<int, std::pair<std::int64_t, double>> count_shells(const Shape& shape) {
    std::int64_t smallest = 1;
    for (std::int64_t side : shape) {
        if (side > 1) smallest = smallest == 1 ? side : std::min(smallest, side);
    }
    const double dk = kTwoPi / static_cast<double>(smallest);
    std::map<int, std::pair<std::int64_t, double>> shells;
    std::int64_t sites = 1;
    for (std::int64_t side : shape) sites *= side;
    for (std::int64_t mode = 0; mode < sites; ++mode) {
        std::int64_t rest = mode;
        double k2 = 0.0;
        for (std::int64_t side : shape) {
            std::int64_t n = rest % side;
            rest /= side;
            if (2 * n > side) n -= side;
            const double k = kTwoPi * static_cast<double>(n) / static_cast<double>(side);
            k2 += k * k;
        }
        auto& [count, sum] =
            shells[k2 > 0.0 ? std::max(1, static_cast<int>(std::floor(std::sqrt(k2) / dk + 0.5 + 1e-9))) : 0];
        ++count;
        sum += std::sqrt(k2);
    }
    return shells;
}

void shells_hold_every_mode_once(const Shape& shape) {
    const Lattice lattice(shape);
    const auto expected = count_shells(shape);
    std::map<int, std::pair<std::int64_t, double>> found;
    double previous = -1.0;
    for (const fastcrit::Orbit& orbit : lattice.orbits()) {
        auto& [count, sum] = found[orbit.shell];
        count += orbit.multiplicity;
        sum += static_cast<double>(orbit.multiplicity) * orbit.k;
        CHECK(orbit.k >= previous || orbit.shell > 0);
        previous = orbit.k;
    }
    CHECK(found.size() == expected.size());
    for (const auto& [shell, value] : expected) {
        CHECK(found[shell].first == value.first);
        CHECK(std::abs(found[shell].second - value.second) <= 1e-12 * (1.0 + value.second));
    }
    // Weights of the half spectrum stand for the full lattice.
    std::int64_t total = 0;
    for (std::int32_t kx = 0; kx < lattice.half(); ++kx) total += std::int64_t{lattice.weight(kx)} * lattice.plane();
    CHECK(total == lattice.sites());
    std::int64_t lags = 0;
    for (const fastcrit::LagShell& lag : lattice.lag_shells()) lags += lag.multiplicity;
    CHECK(lags == lattice.sites());
}

void orbits_share_k_and_lattice_momentum() {
    const Lattice square({6, 6});
    // (1, 2) and (2, 1), each with both signs of both components.
    const auto orbit = std::find_if(square.orbits().begin(), square.orbits().end(),
                                    [](const auto& o) { return o.wavenumber[1] == 1 && o.wavenumber[2] == 2; });
    CHECK(orbit != square.orbits().end());
    CHECK(orbit->multiplicity == 8);
    const double k1 = kTwoPi / 6;
    CHECK(std::abs(orbit->k - k1 * std::sqrt(5.0)) < 1e-14);
    const double k2 = 4 * std::pow(std::sin(k1 / 2), 2) + 4 * std::pow(std::sin(k1), 2);
    CHECK(std::abs(orbit->k2_lattice - k2) < 1e-14);
}

void ties_go_up() {
    // On 8 x 4 the shell width is 2 pi / 4, and the mode (1, 0) lies at exactly half of it.
    const Lattice lattice({8, 4});
    for (const fastcrit::Orbit& orbit : lattice.orbits()) {
        if (orbit.wavenumber[1] == 1 && orbit.wavenumber[2] == 0) CHECK(orbit.shell == 1);
    }
}

void bad_shapes_are_refused() {
    CHECK_THROWS(Lattice(Shape{}), std::invalid_argument);
    CHECK_THROWS(Lattice(Shape{2, 2, 2, 2}), std::invalid_argument);
    CHECK_THROWS(Lattice(Shape{4, 0}), std::invalid_argument);
    CHECK_THROWS(Lattice(Shape{1 << 16, 1 << 16}), std::invalid_argument);
}

}  // namespace

int main() {
    for (const Shape& shape : {Shape{1}, Shape{2}, Shape{7}, Shape{64}, Shape{1, 1}, Shape{4, 6}, Shape{5, 5},
                               Shape{8, 4}, Shape{7, 12}, Shape{16, 16}, Shape{16, 64}, Shape{1, 64}, Shape{2, 64},
                               Shape{1, 3, 40}, Shape{3, 4, 5}, Shape{4, 4, 4}, Shape{2, 1, 6}, Shape{6, 3, 6}}) {
        shells_hold_every_mode_once(shape);
    }
    orbits_share_k_and_lattice_momentum();
    ties_go_up();
    bad_shapes_are_refused();
    std::puts("lattice: all checks hold");
}
