#include "plan.hpp"

#include <algorithm>
#include <cmath>

namespace fastcrit::cpu {
namespace {

/// exp(-2 pi i num / den), each part within an ulp of double: the angle is reduced exactly, to at most pi/4.
void root_of_unity(std::int64_t num, std::int64_t den, double& re, double& im) {
    num %= den;
    const std::int64_t octant = (8 * num) / den;    // 0 .. 7
    const std::int64_t quarter = (octant + 1) / 2;  // nearest multiple of a right angle
    const long double angle =
        2.0L * std::acos(-1.0L) * static_cast<long double>(4 * num - quarter * den) / static_cast<long double>(4 * den);
    const double c = static_cast<double>(std::cos(angle));
    const double s = static_cast<double>(std::sin(angle));
    switch (quarter % 4) {
        case 0: re = c, im = -s; break;
        case 1: re = -s, im = -c; break;
        case 2: re = -c, im = s; break;
        default: re = s, im = c; break;
    }
}

std::vector<std::int32_t> factorise(std::int32_t n) {
    std::vector<std::int32_t> radices;
    while (n % 4 == 0) radices.push_back(4), n /= 4;
    for (std::int32_t r : {2, 3, 5}) {
        while (n % r == 0) radices.push_back(r), n /= r;
    }
    for (std::int32_t r = 7; r <= n / r; r += 2) {
        while (n % r == 0) radices.push_back(r), n /= r;
    }
    if (n > 1) radices.push_back(n);
    return radices;
}

template <class T>
void append_root(std::vector<T>& to, std::int64_t num, std::int64_t den) {
    double re;
    double im;
    root_of_unity(num, den, re, im);
    to.push_back(static_cast<T>(re));
    to.push_back(static_cast<T>(im));
}

}  // namespace

template <class T>
Plan<T>::Fft::Fft(std::int32_t length) : n(length),
                                         radices(factorise(length)) {
    for (const std::int32_t radix : radices) {
        const std::int32_t m = length / radix;
        for (std::int32_t p = 0; p < m; ++p) {
            for (std::int32_t u = 1; u < radix; ++u) {
                append_root(twiddles, static_cast<std::int64_t>(p) * u, length);
            }
        }
        if (radix > 5) {
            for (std::int32_t j = 0; j < radix; ++j) append_root(roots, j, radix);
        }
        length = m;
    }
}

template <class T>
FftTables<T> Plan<T>::Fft::tables() const {
    return {n, static_cast<std::int32_t>(radices.size()), radices.data(), twiddles.data(), roots.data()};
}

template <class T>
Plan<T>::Plan(const Lattice& lattice)
    : split_row_(lattice.plane() == 1 && lattice.sides()[2] % 2 == 0),
      along_z_(lattice.sides()[0]),
      along_y_(lattice.sides()[1]),
      along_x_(split_row_ ? lattice.sides()[2] / 2 : lattice.sides()[2]) {
    const auto [n0, n1, n2] = lattice.sides();
    const std::int32_t plane = lattice.plane();
    const std::int32_t half = lattice.half();
    if (split_row_) {
        for (std::int32_t k = 0; k < half; ++k) append_root(split_twiddles_, k, n2);
    }
    mirror_.reserve(static_cast<std::size_t>(plane));
    for (std::int32_t z = 0; z < n0; ++z) {
        for (std::int32_t y = 0; y < n1; ++y) mirror_.push_back(((n0 - z) % n0) * n1 + (n1 - y) % n1);
    }
    for (int axis = 0; axis < 3; ++axis) {
        const std::int32_t side = lattice.sides()[axis];
        for (std::int32_t j = 0; j < side; ++j) append_root(fundamental_[axis], j, side);
    }
    tables_ = {n0,
               n1,
               n2,
               plane,
               half,
               // One more than the plane: were it a power of two, the stores of a row pair, one line into each plane,
               // would all meet in the same set of the L1 cache.
               plane + 1,
               std::max(2 * along_x_.n, plane),
               split_row_,
               along_z_.tables(),
               along_y_.tables(),
               along_x_.tables(),
               split_twiddles_.data(),
               mirror_.data(),
               {fundamental_[0].data(), fundamental_[1].data(), fundamental_[2].data()}};
}

template class Plan<float>;
template class Plan<double>;

}  // namespace fastcrit::cpu
