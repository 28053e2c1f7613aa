// The wavevectors of a periodic lattice: shells, and the classes of modes that lattice symmetry makes equal.
// This is the one definition of a shell; every kernel, on any device, bins with the tables made here.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace fastcrit {

/// A row of lattice modes (or lags) that share |n_i| up to exchange of axes of equal length.
struct Orbit {
    std::array<std::int32_t, 3> wavenumber;  ///< |n_i| of one member, slowest axis first, leading axes 0
    std::int64_t multiplicity;               ///< members on the full lattice
    double k;                                ///< |k| in rad per site
    double k2_lattice;                       ///< sum_i 4 sin^2(k_i / 2)
    std::int32_t shell;  ///< |k| / dk rounded to the nearest integer, ties up; at least 1 unless k = 0
};

/// Members of one shell of lags: pixels at a rounded distance from the origin.
struct LagShell {
    std::int64_t multiplicity;
    double r;  ///< mean distance in sites
};

/// A periodic lattice of 1 to 3 dimensions.
///
/// Arrays over modes are half spectra in the order [kx][z][y], kx = 0 .. nx/2 slowest: one plane of complex values
/// per kx, which is the order in which the kernels finish them.
class Lattice {
public:
    /// Throws std::invalid_argument unless there are 1 to 3 sides >= 1 and fewer than 2^31 sites.
    explicit Lattice(const std::vector<std::int64_t>& shape);

    int ndim() const { return ndim_; }
    /// Sides, slowest axis first, padded in front with ones.
    const std::array<std::int32_t, 3>& sides() const { return sides_; }
    std::int64_t sites() const { return sites_; }
    /// Modes of one kx: the product of all sides but the last.
    std::int32_t plane() const { return sides_[0] * sides_[1]; }
    /// Number of kx kept: nx/2 + 1.
    std::int32_t half() const { return sides_[2] / 2 + 1; }
    /// 1 for the kx that are their own mirror image (0, and nx/2 when nx is even), otherwise 2.
    int weight(std::int32_t kx) const { return kx == 0 || 2 * kx == sides_[2] ? 1 : 2; }

    const std::vector<Orbit>& orbits() const { return orbits_; }  ///< ascending |k|
    const std::vector<std::int32_t>& orbit_of_mode() const { return orbit_of_mode_; }
    /// Number of each mode's shell among those that hold modes (all, on lattices that are not very long).
    const std::vector<std::int32_t>& shell_of_mode() const { return shell_of_mode_; }
    /// Shells that hold modes, corners included.
    std::int32_t shells() const { return static_cast<std::int32_t>(shell_multiplicity_.size()); }
    const std::vector<std::int64_t>& shell_multiplicity() const { return shell_multiplicity_; }
    /// Shells whose centre does not exceed the smallest Nyquist wavenumber of the axes.
    std::int32_t shells_below_nyquist() const { return shells_below_nyquist_; }
    double shell_width() const { return shell_width_; }  ///< dk, rad per site

    const std::vector<std::int32_t>& lag_shell_of_site() const { return lag_shell_of_site_; }  ///< half lattice of lags
    const std::vector<LagShell>& lag_shells() const { return lag_shells_; }
    std::int32_t lag_shells_inside() const { return lag_shells_inside_; }  ///< lags up to half the smallest side

private:
    void build_orbits();
    void build_lags();

    int ndim_;
    std::array<std::int32_t, 3> sides_;
    std::int64_t sites_;
    double shell_width_;
    std::vector<Orbit> orbits_;
    std::vector<std::int32_t> orbit_of_mode_;
    std::vector<std::int32_t> shell_of_mode_;
    std::vector<std::int64_t> shell_multiplicity_;
    std::int32_t shells_below_nyquist_ = 0;
    std::vector<std::int32_t> lag_shell_of_site_;
    std::vector<LagShell> lag_shells_;
    std::int32_t lag_shells_inside_ = 0;
};

}  // namespace fastcrit
