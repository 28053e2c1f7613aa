// Modes whose amplitudes are wanted, besides power.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "fastcrit/lattice.hpp"

namespace fastcrit {

/// Where the modes at 2 pi / L along each axis are among those selected, slowest axis first; k = 0 on an axis of one
/// site.
struct FirstModes {
    bool selected;  ///< they all are, and k = 0 with them
    std::array<std::int32_t, 3> at;

    /// Throws std::invalid_argument unless they are.
    void check() const;
};

class Selection {
public:
    /// indices into the half spectrum [kx][z][y], ascending; throws std::invalid_argument where they are not.
    Selection(const Lattice& lattice, const std::vector<std::int32_t>& indices);

    std::int32_t size() const { return size_; }
    /// [kx][z][y]: place of each mode among those selected, or -1.
    const std::vector<std::int32_t>& slot() const { return slot_; }
    std::int32_t columns() const { return columns_; }  ///< kx of all selected modes are below this
    const FirstModes& first_modes() const { return first_modes_; }
    /// Throws std::invalid_argument unless these are modes of this lattice.
    void check(const Lattice& lattice) const;

private:
    std::array<std::int32_t, 3> sides_;
    std::int32_t size_;
    std::vector<std::int32_t> slot_;
    std::int32_t columns_ = 0;
    FirstModes first_modes_;
};

}  // namespace fastcrit
