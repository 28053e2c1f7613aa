// What the tests of the core share: checks that name themselves, random fields, and the slow oracle.
#pragma once

#include <cmath>
#include <complex>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "fastcrit/lattice.hpp"

#define CHECK(condition)                                                         \
    do {                                                                         \
        if (!(condition)) {                                                      \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                        \
        }                                                                        \
    } while (false)

/// The condition throws an exception of this type.
#define CHECK_THROWS(expression, exception) \
    do {                                    \
        bool thrown = false;                \
        try {                               \
            expression;                     \
        } catch (const exception&) {        \
            thrown = true;                  \
        }                                   \
        CHECK(thrown&& #expression);        \
    } while (false)

namespace oracle {

using Shape = std::vector<std::int64_t>;

template <class T>
std::vector<T> normal(std::size_t n, unsigned seed) {
    std::mt19937_64 engine(seed);
    std::normal_distribution<double> gauss;
    std::vector<T> values(n);
    for (T& v : values) v = static_cast<T>(gauss(engine));
    return values;
}

/// Direct sum over sites, axis by axis, for every mode of the half spectrum [kx][z][y], in double.
template <class T>
std::vector<std::complex<double>> dft(const fastcrit::Lattice& lattice, const T* field) {
    const auto [n0, n1, n2] = lattice.sides();
    const auto wave = [](std::int64_t product, std::int32_t side) {
        const double angle = -2.0 * std::acos(-1.0) * static_cast<double>(product % side) / side;
        return std::complex<double>(std::cos(angle), std::sin(angle));
    };
    const auto at = [n = n1](auto& a, std::int64_t x, std::int64_t z, std::int64_t y, std::int64_t planes) -> auto& {
        return a[static_cast<std::size_t>((x * planes + z) * n + y)];
    };
    const std::size_t modes = static_cast<std::size_t>(lattice.half()) * static_cast<std::size_t>(lattice.plane());
    std::vector<std::complex<double>> along_x(modes), along_y(modes), out(modes);
    for (std::int64_t k = 0; k < lattice.half(); ++k)
        for (std::int64_t z = 0; z < n0; ++z)
            for (std::int64_t y = 0; y < n1; ++y)
                for (std::int64_t x = 0; x < n2; ++x)
                    at(along_x, k, z, y, n0) += static_cast<double>(field[(z * n1 + y) * n2 + x]) * wave(k * x, n2);
    for (std::int64_t k = 0; k < lattice.half(); ++k)
        for (std::int64_t z = 0; z < n0; ++z)
            for (std::int64_t ky = 0; ky < n1; ++ky)
                for (std::int64_t y = 0; y < n1; ++y)
                    at(along_y, k, z, ky, n0) += at(along_x, k, z, y, n0) * wave(ky * y, n1);
    for (std::int64_t k = 0; k < lattice.half(); ++k)
        for (std::int64_t kz = 0; kz < n0; ++kz)
            for (std::int64_t ky = 0; ky < n1; ++ky)
                for (std::int64_t z = 0; z < n0; ++z)
                    at(out, k, kz, ky, n0) += at(along_y, k, z, ky, n0) * wave(kz * z, n0);
    return out;
}

}  // namespace oracle
