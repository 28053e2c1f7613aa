#include "fastcrit/selection.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastcrit {

Selection::Selection(const Lattice& lattice, const std::vector<std::int32_t>& indices)
    : sides_(lattice.sides()),
      size_(static_cast<std::int32_t>(indices.size())),
      slot_(static_cast<std::size_t>(lattice.half()) * static_cast<std::size_t>(lattice.plane()), -1),
      first_modes_{true, {}} {
    const auto modes = static_cast<std::int32_t>(slot_.size());
    for (std::size_t i = 0; i < indices.size(); ++i) {
        if (indices[i] < 0 || indices[i] >= modes || (i > 0 && indices[i] <= indices[i - 1])) {
            throw std::invalid_argument("selected: expected ascending indices below " + std::to_string(modes));
        }
        slot_[static_cast<std::size_t>(indices[i])] = static_cast<std::int32_t>(i);
        columns_ = indices[i] / lattice.plane() + 1;
    }
    const std::array<std::int32_t, 3> step{sides_[1], 1, lattice.plane()};  // from k = 0 to the first mode of an axis
    first_modes_.selected = slot_[0] == 0;
    for (int axis = 3 - lattice.ndim(); axis < 3; ++axis) {
        const std::int32_t at = slot_[static_cast<std::size_t>(sides_[axis] > 1 ? step[axis] : 0)];
        first_modes_.at[axis - 3 + lattice.ndim()] = at;
        first_modes_.selected = first_modes_.selected && at >= 0;
    }
}

void Selection::check(const Lattice& lattice) const {
    if (sides_ != lattice.sides()) throw std::invalid_argument("selected: modes of another lattice");
}

void FirstModes::check() const {
    if (!selected) {
        throw std::invalid_argument("selected: expected k = 0 and the modes at 2 pi / L along each axis among them");
    }
}

}  // namespace fastcrit
