#include "roots.hpp"

#include <cmath>
#include <complex>
#include <cstdint>
#include <vector>

namespace fastcrit {

std::complex<long double> root_of_unity(std::int64_t num, std::int64_t den) {
    // The angle is reduced exactly, to at most pi/4.
    num %= den;
    const std::int64_t octant = (8 * num) / den;    // 0 .. 7
    const std::int64_t quarter = (octant + 1) / 2;  // nearest multiple of a right angle
    const long double angle =
        2.0L * std::acos(-1.0L) * static_cast<long double>(4 * num - quarter * den) / static_cast<long double>(4 * den);
    const long double c = std::cos(angle);
    const long double s = std::sin(angle);
    switch (quarter % 4) {
        case 0: return {c, -s};
        case 1: return {-s, -c};
        case 2: return {-c, s};
        default: return {s, c};
    }
}

std::vector<std::complex<float>> single_roots(std::int32_t n) {
    std::vector<std::complex<float>> roots;
    for (std::int32_t j = 0; j < n; ++j) {
        const double angle = -2.0 * std::acos(-1.0) * j / n;
        roots.emplace_back(static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle)));
    }
    return roots;
}

}  // namespace fastcrit
