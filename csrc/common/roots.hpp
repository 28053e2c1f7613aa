// Roots of unity, exp(-2 pi i j / n).
#pragma once

#include <complex>
#include <cstdint>
#include <vector>

namespace fastcrit {

/// exp(-2 pi i num / den), right to the last bit of double.
std::complex<long double> root_of_unity(std::int64_t num, std::int64_t den);

/// exp(-2 pi i j / n), j < n, in float. By double's functions of a rounded angle: a quarter of a turn is 6e-17 off its
/// axis, far below what a transform in float resolves.
std::vector<std::complex<float>> single_roots(std::int32_t n);

}  // namespace fastcrit
