#include "plan.hpp"

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "common/roots.hpp"

namespace fastcrit::cpu {
namespace {

// long double, so that tables are right to the last bit of double.
using Extended = std::complex<long double>;

// Lengths with a prime factor above this go through a convolution. Below, r^2 / 2 products are faster; measured on
// fields of r^2 sites, both take the same time at r = 47.
constexpr std::int32_t kLargestRadix = 43;

/// Radices whose product is n: primes without a codelet, 7, 5, 3, and powers of two with a 4 at the end if there is
/// one, since two butterflies of the last pass are in registers at once. (`last_pass` relies on the twos coming last.)
std::vector<std::int32_t> factorise(std::int32_t n) {
    int twos = 0;
    for (; n % 2 == 0; n /= 2) ++twos;
    std::vector<std::int32_t> small;
    for (std::int32_t r : {3, 5, 7}) {
        for (; n % r == 0; n /= r) small.insert(small.begin(), r);
    }
    std::vector<std::int32_t> radices;
    for (std::int32_t r = 11; r <= n / r; r += 2) {
        for (; n % r == 0; n /= r) radices.push_back(r);
    }
    if (n > 1) radices.push_back(n);
    radices.insert(radices.end(), small.begin(), small.end());
    if (twos == 1) radices.push_back(2), twos = 0;
    for (; twos == 3 || twos > 4; twos -= 3) radices.push_back(8);
    for (; twos > 0; twos -= 2) radices.push_back(4);
    return radices;
}

/// The smallest length >= n whose only prime factors are 2, 3, 5 and 7.
std::int32_t smooth_length(std::int64_t n) {
    if (n > INT32_MAX / 2) throw std::invalid_argument("lattice: a side with so large a prime factor is not supported");
    for (;; ++n) {
        std::int64_t rest = n;
        for (std::int64_t r : {2, 3, 5, 7}) {
            while (rest % r == 0) rest /= r;
        }
        if (rest == 1) return static_cast<std::int32_t>(n);
    }
}

/// Transform of x[0], x[step], .. by the recursion of Cooley and Tukey, for tables of smooth length. root[j] is
/// exp(-2 pi i j / N), N the length of x.
std::vector<Extended> transform(const std::vector<Extended>& x, const std::vector<Extended>& root,
                                std::size_t begin = 0, std::size_t step = 1) {
    const std::size_t n = x.size() / step;
    if (n == 1) return {x[begin]};
    std::size_t radix = 2;
    while (n % radix != 0) ++radix;
    std::vector<Extended> y(n);
    for (std::size_t j = 0; j < radix; ++j) {
        const std::vector<Extended> part = transform(x, root, begin + j * step, step * radix);
        for (std::size_t k = 0; k < n; ++k) y[k] += root[j * k % n * step] * part[k % part.size()];
    }
    return y;
}

template <class T>
void append(std::vector<T>& to, Extended value) {
    to.push_back(static_cast<T>(value.real()));
    to.push_back(static_cast<T>(value.imag()));
}

}  // namespace

template <class T>
Plan<T>::Fft::Fft(std::int32_t n) : tables{},
                                    radices(factorise(n)) {
    tables.n = n;
    if (!radices.empty() && *std::max_element(radices.begin(), radices.end()) > kLargestRadix) {
        use_convolution();
    } else {
        use_passes();
    }
}

template <class T>
void Plan<T>::Fft::use_passes() {
    std::int32_t length = tables.n;
    for (const std::int32_t radix : radices) {
        const std::int32_t m = length / radix;
        for (std::int32_t p = 0; p < m; ++p) {
            for (std::int32_t u = 1; u < radix; ++u) {
                append(twiddles, root_of_unity(static_cast<std::int64_t>(p) * u, length));
            }
        }
        if (radix > 8) {
            for (std::int32_t j = 0; j < radix; ++j) append(roots, root_of_unity(j, radix));
        }
        length = m;
    }
    tables.passes = static_cast<std::int32_t>(radices.size());
    tables.radices = radices.data();
    tables.twiddles = twiddles.data();
    tables.roots = roots.data();
}

template <class T>
void Plan<T>::Fft::use_convolution() {
    radices.clear();
    const std::int64_t n = tables.n;
    const std::int32_t length = smooth_length(2 * n - 1);
    convolution = std::make_unique<const Fft>(length);
    std::vector<Extended> opposite(static_cast<std::size_t>(length));
    for (std::int64_t j = 0; j < n; ++j) {
        const Extended root = root_of_unity(j * j, 2 * n);
        append(chirp, root);
        const Extended value = std::conj(root) / static_cast<long double>(length);
        opposite[static_cast<std::size_t>(j)] = value;
        opposite[static_cast<std::size_t>((length - j) % length)] = value;
    }
    std::vector<Extended> root(static_cast<std::size_t>(length));
    for (std::int64_t j = 0; j < length; ++j) root[static_cast<std::size_t>(j)] = root_of_unity(j, length);
    for (const Extended& value : transform(opposite, root)) append(chirp_spectrum, value);
    tables.convolution = &convolution->tables;
    tables.chirp = chirp.data();
    tables.chirp_spectrum = chirp_spectrum.data();
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
        for (std::int32_t k = 0; k < half; ++k) append(split_twiddles_, root_of_unity(k, n2));
    }
    mirror_.reserve(static_cast<std::size_t>(plane));
    for (std::int32_t z = 0; z < n0; ++z) {
        for (std::int32_t y = 0; y < n1; ++y) mirror_.push_back(((n0 - z) % n0) * n1 + (n1 - y) % n1);
    }
    for (const bool own : {true, false}) {
        for (std::int32_t j = 0; j < plane; ++j) {
            const std::int32_t mirror = mirror_[static_cast<std::size_t>(j)];
            if (own ? mirror == j : mirror > j) mode_of_half_.push_back(j);
        }
    }
    const auto modes = static_cast<std::int32_t>(mode_of_half_.size());
    const std::int32_t own_mirrors = 2 * modes - plane;
    const std::int32_t shared = (own_mirrors + 1) / 2;  // rows of two modes
    row_of_.resize(static_cast<std::size_t>(plane));
    for (std::int32_t i = 0; i < modes; ++i) {
        const std::int32_t row = i < own_mirrors ? i / 2 : i - own_mirrors + shared;
        row_of_[static_cast<std::size_t>(mode_of_half_[static_cast<std::size_t>(i)])] =
            i < own_mirrors && i % 2 == 1 ? ~row : row;
    }
    const std::int32_t rows = modes - own_mirrors + shared;
    for (int axis = 0; axis < 3; ++axis) {
        const std::int32_t side = lattice.sides()[axis];
        for (std::int32_t j = 0; j < side; ++j) {
            const Extended root = root_of_unity(j, side);
            wave_re_[axis].push_back(static_cast<T>(root.real()));
            wave_im_[axis].push_back(static_cast<T>(root.imag()));
        }
    }
    for (std::size_t i = 0; i < kTileValues; ++i) {
        const std::size_t x = i % static_cast<std::size_t>(n2);
        const std::size_t y = i / static_cast<std::size_t>(n2) % static_cast<std::size_t>(n1);
        tile_[0][i] = wave_re_[2][x];
        tile_[1][i] = wave_im_[2][x];
        tile_[2][i] = wave_re_[1][y];
        tile_[3][i] = wave_im_[1][y];
    }
    std::int32_t convolution = 0;
    for (const Fft* fft : {&along_z_, &along_y_, &along_x_}) {
        if (fft->convolution) convolution = std::max(convolution, fft->convolution->tables.n);
    }
    // Whole registers, and not a power of two of them: the powers of a panel would meet in few sets.
    const std::int64_t power_pitch = (rows + kMostLanes - 1) / kMostLanes * kMostLanes + kMostLanes;
    const std::int32_t spare = std::max(2 * along_x_.tables.n, plane);
    tables_.n0 = n0;
    tables_.n1 = n1;
    tables_.n2 = n2;
    tables_.plane = plane;
    tables_.half = half;
    // One more than the plane: were it a power of two, the stores of a row pair, one line into each plane, would all
    // meet in the same set of the L1 cache.
    tables_.plane_stride = plane + 1;
    tables_.spare = spare;
    tables_.lines_along_z = spare + 2 * convolution;
    tables_.work = tables_.lines_along_z + (n0 > 1 ? 4 * n0 : 0);
    tables_.split_row = split_row_;
    tables_.along_z = along_z_.tables;
    tables_.along_y = along_y_.tables;
    tables_.along_x = along_x_.tables;
    tables_.split_twiddles = split_twiddles_.data();
    tables_.mirror = mirror_.data();
    tables_.rows = rows;
    tables_.own_mirrors = own_mirrors;
    tables_.mode_of_half = mode_of_half_.data();
    tables_.row_of = row_of_.data();
    tables_.power_pitch = power_pitch;
    tables_.second_powers = half * power_pitch;
    tables_.powers = half * (power_pitch + kMostLanes);
    for (int axis = 0; axis < 3; ++axis) {
        tables_.wave_re[axis] = wave_re_[axis].data();
        tables_.wave_im[axis] = wave_im_[axis].data();
    }
    tables_.tile_x_re = tile_[0].data();
    tables_.tile_x_im = tile_[1].data();
    tables_.tile_y_re = tile_[2].data();
    tables_.tile_y_im = tile_[3].data();
}

template class Plan<float>;
template class Plan<double>;

}  // namespace fastcrit::cpu
