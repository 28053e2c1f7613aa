#include "fastcrit/lattice.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace fastcrit {
namespace {

constexpr double kTwoPi = 6.283185307179586476925286766559;

// Ties, which sides of unequal length make, go up although rounding may leave them an ulp below one half.
constexpr double kTieTolerance = 1e-9;

std::int32_t nearest(double x) { return static_cast<std::int32_t>(std::floor(x + 0.5 + kTieTolerance)); }

std::int32_t folded(std::int32_t index, std::int32_t side) { return std::min(index, side - index); }

}  // namespace

Lattice::Lattice(const std::vector<std::int64_t>& shape)
    : ndim_(static_cast<int>(shape.size())),
      sides_{1, 1, 1},
      sites_(1),
      shell_width_(0.0) {
    if (shape.empty() || shape.size() > 3) {
        throw std::invalid_argument("lattice: expected 1 to 3 dimensions, got " + std::to_string(shape.size()));
    }
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (shape[i] < 1) {
            throw std::invalid_argument("lattice: every side must be >= 1, got " + std::to_string(shape[i]));
        }
        if (shape[i] > INT32_MAX / sites_) {
            throw std::invalid_argument("lattice: more than 2^31 - 1 sites");
        }
        sites_ *= shape[i];
        sides_[3 - shape.size() + i] = static_cast<std::int32_t>(shape[i]);
    }
    // An axis of one site has no wavelength, and no say in the width of a shell.
    for (std::int32_t side : sides_) shell_width_ = std::max(shell_width_, side > 1 ? kTwoPi / side : 0.0);
    if (sites_ == 1) shell_width_ = kTwoPi;
    build_orbits();
    build_lags();
}

void Lattice::build_orbits() {
    const auto [n0, n1, n2] = sides_;
    const std::int32_t h1 = n1 / 2 + 1;
    const std::int32_t h2 = n2 / 2 + 1;
    std::vector<std::int32_t> id_of_key(static_cast<std::size_t>(n0 / 2 + 1) * h1 * h2, -1);
    std::vector<std::int32_t> found_as(static_cast<std::size_t>(half()) * plane());

    std::size_t mode = 0;
    for (std::int32_t x = 0; x < half(); ++x) {
        for (std::int32_t z = 0; z < n0; ++z) {
            for (std::int32_t y = 0; y < n1; ++y, ++mode) {
                std::array<std::int32_t, 3> n{folded(z, n0), folded(y, n1), x};
                // One representative: sort the wavenumbers among axes of equal length.
                if (n0 == n1 && n[0] > n[1]) std::swap(n[0], n[1]);
                if (n1 == n2 && n[1] > n[2]) std::swap(n[1], n[2]);
                if (n0 == n2 && n[0] > n[2]) std::swap(n[0], n[2]);
                if (n0 == n1 && n[0] > n[1]) std::swap(n[0], n[1]);
                const std::size_t key = (static_cast<std::size_t>(n[0]) * h1 + n[1]) * h2 + n[2];
                std::int32_t& id = id_of_key[key];
                if (id < 0) {
                    id = static_cast<std::int32_t>(orbits_.size());
                    double k2 = 0.0;
                    double k2_lattice = 0.0;
                    for (int axis = 0; axis < 3; ++axis) {
                        const double k = kTwoPi * n[axis] / sides_[axis];
                        k2 += k * k;
                        k2_lattice += 4.0 * std::sin(0.5 * k) * std::sin(0.5 * k);
                    }
                    const double k = std::sqrt(k2);
                    // k = 0 is alone in its shell: longer wavelengths than the shortest side allows join shell 1.
                    orbits_.push_back({n, 0, k, k2_lattice, k > 0.0 ? std::max(1, nearest(k / shell_width_)) : 0});
                }
                orbits_[id].multiplicity += weight(x);
                found_as[mode] = id;
            }
        }
    }

    std::vector<std::int32_t> order(orbits_.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [this](std::int32_t a, std::int32_t b) {
        const Orbit& p = orbits_[a];
        const Orbit& q = orbits_[b];
        if (p.shell != q.shell) return p.shell < q.shell;
        return p.k != q.k ? p.k < q.k : p.wavenumber < q.wavenumber;
    });
    std::vector<Orbit> sorted;
    std::vector<std::int32_t> rank(orbits_.size());
    for (std::size_t i = 0; i < order.size(); ++i) {
        sorted.push_back(orbits_[order[i]]);
        rank[order[i]] = static_cast<std::int32_t>(i);
    }
    orbits_ = std::move(sorted);

    // The Nyquist wavenumber is pi per site on every axis.
    shells_below_nyquist_ = static_cast<std::int32_t>(std::floor(0.5 * kTwoPi / shell_width_ + kTieTolerance)) + 1;
    shells_below_nyquist_ = std::min(shells_below_nyquist_, orbits_.back().shell + 1);

    std::vector<std::int32_t> shell_of_orbit;  // among the shells that hold modes
    for (std::size_t i = 0; i < orbits_.size(); ++i) {
        if (i == 0 || orbits_[i].shell != orbits_[i - 1].shell) shell_multiplicity_.push_back(0);
        shell_multiplicity_.back() += orbits_[i].multiplicity;
        shell_of_orbit.push_back(shells() - 1);
    }
    orbit_of_mode_.resize(found_as.size());
    shell_of_mode_.resize(found_as.size());
    for (std::size_t i = 0; i < found_as.size(); ++i) {
        orbit_of_mode_[i] = rank[found_as[i]];
        shell_of_mode_[i] = shell_of_orbit[orbit_of_mode_[i]];
    }
}

void Lattice::build_lags() {
    const auto [n0, n1, n2] = sides_;
    lag_shell_of_site_.resize(static_cast<std::size_t>(half()) * plane());
    std::size_t site = 0;
    for (std::int32_t x = 0; x < half(); ++x) {
        for (std::int32_t z = 0; z < n0; ++z) {
            for (std::int32_t y = 0; y < n1; ++y, ++site) {
                const double fz = folded(z, n0);
                const double fy = folded(y, n1);
                const double r = std::sqrt(fz * fz + fy * fy + static_cast<double>(x) * x);
                const std::int32_t shell = nearest(r);
                if (shell >= static_cast<std::int32_t>(lag_shells_.size())) lag_shells_.resize(shell + 1, {0, 0.0});
                lag_shells_[shell].multiplicity += weight(x);
                lag_shells_[shell].r += weight(x) * r;
                lag_shell_of_site_[site] = shell;
            }
        }
    }
    for (LagShell& s : lag_shells_) {
        if (s.multiplicity > 0) s.r /= static_cast<double>(s.multiplicity);
    }
    std::int32_t smallest = INT32_MAX;
    for (std::int32_t side : sides_) smallest = std::min(smallest, side > 1 ? side : smallest);
    if (sites_ == 1) smallest = 1;
    lag_shells_inside_ = std::min<std::int32_t>(smallest / 2 + 1, static_cast<std::int32_t>(lag_shells_.size()));
}

}  // namespace fastcrit
