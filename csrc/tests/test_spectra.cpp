// Every kernel, in both precisions and every instruction set that this processor has, against direct sums in double.
#include <cmath>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"
#include "fastcrit/spectra.hpp"
#include "record_arrays.hpp"

using fastcrit::Bins;
using fastcrit::Spectrometer;
using oracle::Shape;
using Arrays = oracle::RecordArrays<oracle::Values>;

namespace {

/// Memory that ends where the data ends, so that a sanitizer sees a read past the last field.
template <class T>
std::unique_ptr<T[]> exact_copy(const std::vector<T>& values) {
    std::unique_ptr<T[]> copy(new T[values.size()]);
    std::memcpy(copy.get(), values.data(), values.size() * sizeof(T));
    return copy;
}

// An FFT of n values errs by about eps sqrt(log n); a radix without a codelet is a direct sum of up to n terms, whose
// error grows as eps sqrt(n). In float64, where the oracle's own rounding counts as well: 1e-12 of the mean power.
template <class T>
double tolerance() {
    return sizeof(T) == sizeof(float) ? 2e-5 : 1e-12;
}

template <class T>
void power_and_modes(const Shape& shape, std::int64_t count, unsigned seed) {
    const Spectrometer spectrometer(shape);
    const fastcrit::Lattice& lattice = spectrometer.lattice();
    const auto sites = static_cast<std::size_t>(lattice.sites());
    const std::vector<T> values = oracle::normal<T>(sites * static_cast<std::size_t>(count), seed);
    const std::vector<T> offset = oracle::normal<T>(sites, seed + 1);
    const auto fields = exact_copy(values);
    const std::int64_t half_modes = std::int64_t{lattice.half()} * lattice.plane();
    std::vector<std::int32_t> selected;
    for (std::int32_t m = 0; m < half_modes; m += 1 + static_cast<std::int32_t>(half_modes / 7)) selected.push_back(m);

    const fastcrit::Selection selection(lattice, selected);
    const auto orbits = static_cast<std::size_t>(spectrometer.bins(Bins::orbits));
    const auto shells = static_cast<std::size_t>(spectrometer.bins(Bins::shells));
    std::vector<T> by_orbit(orbits * static_cast<std::size_t>(count));
    std::vector<T> by_shell(shells * static_cast<std::size_t>(count));
    std::vector<T> modes(2 * selected.size() * static_cast<std::size_t>(count));
    spectrometer.power<T>(fields.get(), count, offset.data(), Bins::orbits, by_orbit.data(), &selection, modes.data());
    spectrometer.power<T>(fields.get(), count, offset.data(), Bins::shells, by_shell.data());
    std::vector<T> mean(by_shell.size());
    CHECK(spectrometer.shell_power<T>(fields.get(), count, lattice.shells(), mean.data()) == count);

    for (std::size_t f = 0; f < static_cast<std::size_t>(count); ++f) {
        std::vector<T> centred(sites);
        double square = 0.0;
        for (std::size_t i = 0; i < sites; ++i) {
            centred[i] = values[f * sites + i] - offset[i];
            square += static_cast<double>(centred[i]) * static_cast<double>(centred[i]);
        }
        const auto exact = oracle::dft(lattice, centred.data());
        std::vector<double> orbit_power(orbits, 0.0);
        std::vector<double> shell_power(shells, 0.0);
        for (std::int64_t m = 0; m < half_modes; ++m) {
            const auto i = static_cast<std::size_t>(m);
            const double p = lattice.weight(static_cast<std::int32_t>(m / lattice.plane())) * std::norm(exact[i]) /
                             static_cast<double>(sites);
            orbit_power[static_cast<std::size_t>(lattice.orbit_of_mode()[i])] += p;
            shell_power[static_cast<std::size_t>(lattice.shell_of_mode()[i])] += p;
        }
        const double mean_power = square / static_cast<double>(sites);  // by Parseval
        double plain = 0.0;
        for (std::size_t i = 0; i < sites; ++i) plain += std::pow(static_cast<double>(values[f * sites + i]), 2);
        double summed_means = 0.0;
        for (std::size_t b = 0; b < shells; ++b) {
            summed_means += mean[f * shells + b] * static_cast<double>(lattice.shell_multiplicity()[b]);
        }
        CHECK(std::abs(summed_means - plain) <= tolerance<T>() * plain);
        for (std::size_t b = 0; b < orbits; ++b) {
            const double modes_in_bin = static_cast<double>(lattice.orbits()[b].multiplicity);
            CHECK(std::abs(by_orbit[f * orbits + b] - orbit_power[b]) <= tolerance<T>() * mean_power * modes_in_bin);
        }
        double total = 0.0;
        for (std::size_t b = 0; b < shells; ++b) {
            total += by_shell[f * shells + b];
            CHECK(std::abs(by_shell[f * shells + b] - shell_power[b]) <= tolerance<T>() * square);
        }
        CHECK(std::abs(total - square) <= tolerance<T>() * square);
        for (std::size_t j = 0; j < selected.size(); ++j) {
            const T* mode = modes.data() + 2 * (f * selected.size() + j);
            const auto error = std::complex<double>(mode[0], mode[1]) - exact[static_cast<std::size_t>(selected[j])];
            CHECK(std::abs(error) <= tolerance<T>() * std::sqrt(square * static_cast<double>(sites)));
        }
    }

    std::vector<double> total(sites, 0.5);
    std::vector<double> expected(sites, 0.5);
    for (std::size_t i = 0; i < values.size(); ++i) expected[i % sites] += static_cast<double>(values[i]);
    spectrometer.add_fields<T>(fields.get(), count, total.data());
    CHECK(total == expected);  // to the bit

    const std::size_t width = 1 + 2 * shape.size();
    std::vector<double> sums(static_cast<std::size_t>(count) * width);
    CHECK(spectrometer.first_modes<T>(fields.get(), count, sums.data()) == count);
    for (std::size_t f = 0; f < static_cast<std::size_t>(count); ++f) {
        const T* field = values.data() + f * sites;
        const auto exact = oracle::dft(lattice, field);
        double sum = 0.0;
        double square = 0.0;
        for (std::size_t i = 0; i < sites; ++i) sum += field[i], square += static_cast<double>(field[i]) * field[i];
        const auto found = [&](std::size_t i) { return sums[i * static_cast<std::size_t>(count) + f]; };
        const double scale = std::sqrt(square * static_cast<double>(sites));
        CHECK(std::abs(found(0) - sum) <= tolerance<T>() * scale);
        for (std::size_t axis = 0; axis < shape.size(); ++axis) {
            const auto [n0, n1, n2] = lattice.sides();
            const std::size_t which = axis + 3 - shape.size();
            const std::size_t mode = which == 2   ? (n2 > 1 ? static_cast<std::size_t>(lattice.plane()) : 0)
                                     : which == 1 ? static_cast<std::size_t>(n1 > 1)
                                                  : (n0 > 1 ? static_cast<std::size_t>(n1) : 0);
            const std::complex<double> got(found(1 + 2 * axis), found(2 + 2 * axis));
            CHECK(std::abs(got - exact[mode]) <= tolerance<T>() * scale);
        }
    }
}

template <class T>
void correlation(const Shape& shape, unsigned seed) {
    const Spectrometer spectrometer(shape);
    const fastcrit::Lattice& lattice = spectrometer.lattice();
    const auto [n0, n1, n2] = lattice.sides();
    const auto sites = static_cast<std::size_t>(lattice.sites());
    const std::vector<T> field = oracle::normal<T>(sites, seed);
    std::vector<T> sums(lattice.lag_shells().size());
    spectrometer.autocorrelation<T>(field.data(), 1, nullptr, sums.data());
    std::vector<double> exact(sums.size(), 0.0);
    double variance = 0.0;
    for (std::size_t i = 0; i < sites; ++i)
        variance += static_cast<double>(field[i]) * field[i] / static_cast<double>(sites);
    const auto at = [&, m1 = n1, m2 = n2](std::int32_t z, std::int32_t y, std::int32_t x) {
        return static_cast<double>(field[static_cast<std::size_t>((std::int64_t{z} * m1 + y) * m2 + x)]);
    };
    std::size_t lag = 0;
    for (std::int32_t x = 0; x < lattice.half(); ++x)
        for (std::int32_t z = 0; z < n0; ++z)
            for (std::int32_t y = 0; y < n1; ++y, ++lag) {
                double c = 0.0;
                for (std::int32_t k = 0; k < n0; ++k)
                    for (std::int32_t j = 0; j < n1; ++j)
                        for (std::int32_t i = 0; i < n2; ++i)
                            c += at(k, j, i) * at((k + z) % n0, (j + y) % n1, (i + x) % n2);
                exact[static_cast<std::size_t>(lattice.lag_shell_of_site()[lag])] +=
                    lattice.weight(x) * c / static_cast<double>(sites);
            }
    for (std::size_t b = 0; b < sums.size(); ++b) {
        CHECK(std::abs(sums[b] - exact[b]) <=
              tolerance<T>() * variance * static_cast<double>(lattice.lag_shells()[b].multiplicity));
    }
}

template <class T>
void batch_and_threads_change_no_bit(const Shape& shape) {
    const Spectrometer spectrometer(shape);
    const auto sites = static_cast<std::size_t>(spectrometer.lattice().sites());
    constexpr std::int64_t count = 67;
    const std::vector<T> values = oracle::normal<T>(sites * count, 5);
    const auto bins = static_cast<std::size_t>(spectrometer.bins(Bins::shells));
    std::vector<T> reference(bins * count);
    std::vector<double> total(sites);
    fastcrit::set_num_threads(1);
    spectrometer.power<T>(values.data(), count, nullptr, Bins::shells, reference.data());
    spectrometer.add_fields<T>(values.data(), count, total.data());
    for (int threads : {2, 3, 8}) {
        fastcrit::set_num_threads(threads);
        std::vector<T> again(bins * count);
        spectrometer.power<T>(values.data(), count, nullptr, Bins::shells, again.data());
        CHECK(std::memcmp(again.data(), reference.data(), again.size() * sizeof(T)) == 0);
        std::vector<double> in_two(sites);
        spectrometer.add_fields<T>(values.data(), 9, in_two.data());
        spectrometer.add_fields<T>(values.data() + 9 * sites, count - 9, in_two.data());
        CHECK(in_two == total);
    }
    for (std::int64_t f = 0; f < count; f += 11) {
        std::vector<T> alone(bins);
        spectrometer.power<T>(values.data() + static_cast<std::size_t>(f) * sites, 1, nullptr, Bins::shells,
                              alone.data());
        CHECK(std::memcmp(alone.data(), reference.data() + static_cast<std::size_t>(f) * bins, bins * sizeof(T)) == 0);
    }
}

void nan_stays_in_its_field_and_is_reported() {
    const Spectrometer spectrometer({8, 8});
    std::vector<float> values = oracle::normal<float>(64 * 40, 3);
    values[64 * 17 + 5] = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> sums(static_cast<std::size_t>(spectrometer.bins(Bins::shells)) * 40);
    values[64 * 30] = std::numeric_limits<float>::infinity();
    CHECK(spectrometer.power<float>(values.data(), 40, nullptr, Bins::shells, sums.data()) == 17);
    const std::size_t bins = sums.size() / 40;
    for (std::size_t f = 0; f < 40; ++f) CHECK(std::isfinite(sums[f * bins]) == (f != 17 && f != 30));
}

/// Many spans: sums against those of the fields measured one by one, the same bits with any number of threads, and
/// nothing added when a late field is not finite.
template <class T>
void recording(const Shape& shape, std::int64_t samples, std::int64_t blocks) {
    const Spectrometer spectrometer(shape);
    constexpr std::int64_t channels = 2;
    constexpr std::int64_t first = 4;
    const std::int64_t fields = samples * channels;
    const auto sites = static_cast<std::size_t>(spectrometer.lattice().sites());
    const auto orbits = static_cast<std::size_t>(spectrometer.bins(Bins::orbits));
    const fastcrit::Selection selected(spectrometer.lattice(), {0, 1, static_cast<std::int32_t>(shape[0])});
    std::vector<T> values = oracle::normal<T>(sites * fields, 9);

    const fastcrit::RecordSizes sizes{blocks,
                                      channels,
                                      spectrometer.bins(Bins::orbits),
                                      selected.size(),
                                      spectrometer.lattice().ndim(),
                                      spectrometer.lattice().sites()};
    const auto record = [&](int threads, Arrays& to) {
        fastcrit::set_num_threads(threads);
        return spectrometer.record<T>(values.data(), samples, first, selected, to.record(blocks, channels));
    };
    Arrays one(sizes, true, {});
    CHECK(record(1, one) == fields);
    for (int threads : {2, 5}) {
        Arrays other(sizes, true, {});
        record(threads, other);
        CHECK(oracle::same_bits(other, one));
    }
    std::vector<T> sums(orbits * fields);
    spectrometer.power<T>(values.data(), fields, nullptr, Bins::orbits, sums.data());
    std::vector<double> power(one.power.size());
    std::vector<double> field(one.field.size());
    std::vector<double> sign_field(one.field.size());
    for (std::size_t f = 0; f < static_cast<std::size_t>(fields); ++f) {
        const std::size_t c = f % channels;
        const std::size_t place = (first + f / channels) % blocks * channels + c;
        for (std::size_t o = 0; o < orbits; ++o) power[place * orbits + o] += static_cast<double>(sums[f * orbits + o]);
        for (std::size_t x = 0; x < sites; ++x) {
            const auto value = static_cast<double>(values[f * sites + x]);
            field[c * sites + x] += value;
            sign_field[c * sites + x] += value >= 0 ? 1.0 : -1.0;
        }
    }
    // Up to 429 samples a block, of a few modes an orbit with power 1.
    for (std::size_t i = 0; i < power.size(); ++i) CHECK(std::abs(power[i] - one.power[i]) <= tolerance<T>() * 5000);
    // 3000 additions of doubles, each to a sum below 1000.
    for (std::size_t i = 0; i < field.size(); ++i) CHECK(std::abs(field[i] - one.field[i]) <= 3000 * 1000 * 0x1p-53);
    CHECK(one.sign_field == sign_field);

    values[sites * static_cast<std::size_t>(fields - 10)] = std::numeric_limits<T>::quiet_NaN();
    const Arrays before = one;
    CHECK(record(2, one) == fields - 10);
    CHECK(oracle::same_bits(before, one));
}

template <class T>
void recordings() {
    recording<T>({12, 10}, 3000, 7);     // spans add to the record in turn
    recording<T>({12, 10}, 3000, 3000);  // few samples for the blocks: results are kept until all are measured
    // Large fields, summed after all are measured; blocks in turn, and kept.
    fastcrit::set_largest_block(0);
    recording<T>({264, 260}, 9, 1);
    recording<T>({264, 260}, 9, 9);
    fastcrit::set_largest_block(-1);
}

/// What is measured of some fields: power by orbit, mean power by shell, modes (k = 0 first), and modes without a
/// transform.
template <class T>
struct Measured {
    std::vector<T> orbits, shells, modes;
    std::vector<double> first;
    std::int64_t good[3];

    Measured(const Spectrometer& spectrometer, const std::vector<T>& fields, std::int64_t count) {
        const auto n = static_cast<std::size_t>(count);
        const fastcrit::Lattice& lattice = spectrometer.lattice();
        const fastcrit::Selection selected(lattice, {0, lattice.half() * lattice.plane() - 1});
        orbits.resize(n * static_cast<std::size_t>(spectrometer.bins(Bins::orbits)));
        shells.resize(n * static_cast<std::size_t>(lattice.shells()));
        modes.resize(n * 4);
        first.resize(n * static_cast<std::size_t>(1 + 2 * lattice.ndim()));
        good[0] =
            spectrometer.power<T>(fields.data(), count, nullptr, Bins::orbits, orbits.data(), &selected, modes.data());
        good[1] = spectrometer.shell_power<T>(fields.data(), count, lattice.shells(), shells.data());
        good[2] = spectrometer.first_modes<T>(fields.data(), count, first.data());
    }
};

/// Noise about a large mean against the same noise about zero, whose modes but for k = 0 are the same.
template <class T>
void a_large_mean_drowns_nothing(const Shape& shape) {
    const Spectrometer spectrometer(shape);
    const auto sites = static_cast<std::size_t>(spectrometer.lattice().sites());
    constexpr std::size_t count = 19;
    const T mean = sizeof(T) == 4 ? T{-1e5F} : T{1e10};
    std::vector<T> about = oracle::normal<T>(sites * count, 23);
    std::vector<T> plain = about;
    for (std::size_t i = 0; i < about.size(); ++i) {
        if (i / sites % 3 == 1) continue;  // fields of both kinds are neighbours
        about[i] += mean;
        plain[i] = about[i] - mean;  // exact
    }
    const Measured<T> found(spectrometer, about, count);
    const Measured<T> exact(spectrometer, plain, count);
    for (const std::int64_t good : found.good) CHECK(good == count);
    const auto near = [](double a, double b, double error) { CHECK(std::abs(a - b) <= error); };
    for (std::size_t f = 0; f < count; ++f) {
        double total = 0.0;
        double square = 0.0;
        for (std::size_t i = f * sites; i < (f + 1) * sites; ++i) {
            total += static_cast<double>(about[i]);
            square += static_cast<double>(plain[i]) * static_cast<double>(plain[i]);
        }
        const auto n = static_cast<double>(sites);
        const std::size_t orbits = exact.orbits.size() / count;
        const std::size_t shells = exact.shells.size() / count;
        for (std::size_t b = 1; b < orbits; ++b) {
            near(found.orbits[f * orbits + b], exact.orbits[f * orbits + b], 48 * tolerance<T>() * square / n);
        }
        for (std::size_t b = 1; b < shells; ++b) {
            near(found.shells[f * shells + b], exact.shells[f * shells + b], tolerance<T>() * square / n);
        }
        near(found.orbits[f * orbits], total * total / n, tolerance<T>() * (total * total / n + square / n));
        near(found.shells[f * shells], total * total / n, tolerance<T>() * (total * total / n + square / n));
        const double scale = tolerance<T>() * std::sqrt(square * n);
        near(found.modes[4 * f], total, tolerance<T>() * std::abs(total) + scale);
        for (std::size_t i = 4 * f + 1; i < 4 * f + 4; ++i) near(found.modes[i], exact.modes[i], scale);
        near(found.first[f], total, tolerance<T>() * std::abs(total) + scale);
        for (std::size_t row = 1; row <= 2 * shape.size(); ++row) {
            if (row % 2 == 1 && shape[(row - 1) / 2] == 1) {  // k = 0 once more
                near(found.first[row * count + f], found.first[f], 0.0);
            } else {
                near(found.first[row * count + f], exact.first[row * count + f], scale);
            }
        }
    }
}

/// Fields times a power of two: what is in the range of T is right, and nothing else counts as finite.
template <class T>
void squares_stay_in_range(const Shape& shape) {
    const Spectrometer spectrometer(shape);
    const auto sites = static_cast<std::size_t>(spectrometer.lattice().sites());
    constexpr std::size_t count = 5;
    const std::vector<T> one = oracle::normal<T>(sites * count, 31);
    const Measured<T> exact(spectrometer, one, count);
    const auto lags = spectrometer.lattice().lag_shells().size();
    std::vector<T> correlation(lags * count);
    spectrometer.autocorrelation<T>(one.data(), count, nullptr, correlation.data());
    const bool single = sizeof(T) == 4;
    for (const int e :
         single ? std::vector<int>{-30, -52, -58, 50, 55} : std::vector<int>{-300, -480, -505, 490, 503}) {
        std::vector<T> fields = one;
        for (T& value : fields) value = std::ldexp(value, e);
        std::fill(fields.begin() + static_cast<std::ptrdiff_t>(sites),
                  fields.begin() + 2 * static_cast<std::ptrdiff_t>(sites), T{0});
        const Measured<T> found(spectrometer, fields, count);
        std::vector<T> lag_sums(lags * count);
        CHECK(spectrometer.autocorrelation<T>(fields.data(), count, nullptr, lag_sums.data()) == count);
        CHECK(found.good[0] == count && found.good[1] == count);
        const auto same = [&](const std::vector<T>& a, const std::vector<T>& b) {
            const std::size_t n = a.size() / count;
            for (std::size_t i = 0; i < a.size(); ++i) {
                const T expected = i / n == 1 ? T{0} : b[i];
                CHECK(std::abs(std::ldexp(a[i], -2 * e) - expected) <= 100 * tolerance<T>());
            }
        };
        same(found.orbits, exact.orbits);
        same(found.shells, exact.shells);
        same(lag_sums, correlation);
    }
    for (const int e : {single ? -70 : -520, single ? 66 : 515}) {
        std::vector<T> fields = one;
        for (std::size_t i = 2 * sites; i < 3 * sites; ++i) fields[i] = std::ldexp(fields[i], e);
        const Measured<T> found(spectrometer, fields, count);
        CHECK(found.good[0] == 2 && found.good[1] == 2);
        CHECK(std::isnan(found.shells[2 * static_cast<std::size_t>(spectrometer.lattice().shells())]));
    }
}

/// Sums of k = 0 about an offset are those of the fields less it, on long double.
template <class T>
void recording_about_an_offset() {
    const Spectrometer spectrometer({12, 10});
    constexpr std::int64_t samples = 40;
    constexpr std::int64_t channels = 2;
    constexpr std::int64_t sites = 120;
    const double offsets[channels] = {1 << 20, -(1 << 12)};
    std::vector<T> values = oracle::normal<T>(sites * samples * channels, 41);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += static_cast<T>(offsets[i / sites % channels] + 3.0);
    const auto orbits = static_cast<std::size_t>(spectrometer.bins(Bins::orbits));
    const fastcrit::Selection selected(spectrometer.lattice(), {0, 1, 12});
    Arrays sums({1, channels, spectrometer.bins(Bins::orbits), selected.size(), 2, sites}, false,
                {offsets[0], offsets[1]});
    CHECK(spectrometer.record<T>(values.data(), samples, 0, selected, sums.record(1, channels)) == samples * channels);
    for (std::size_t c = 0; c < channels; ++c) {
        long double t = 0.0L;
        long double squares = 0.0L;
        long double u = 0.0L;
        long double u2 = 0.0L;
        for (std::size_t j = 0; j < samples; ++j) {
            long double total = 0.0L;
            for (std::size_t x = 0; x < sites; ++x)
                total += values[(j * channels + c) * sites + x] - static_cast<long double>(offsets[c]);
            t += total;
            squares += total * total / sites;
            u += total / sites;
            u2 += total * total / sites / sites;
        }
        // Of float fields, the sum is right to eps of float, of the fields as they are.
        const double error = sizeof(T) == 4 ? 1e-6 : 1e-9;
        const auto close = [&](double a, long double b) {
            CHECK(std::abs(a - static_cast<double>(b)) <= error * std::abs(static_cast<double>(b)));
        };
        close(sums.power[c * orbits], squares);
        close(sums.low[c * 6], t);
        close(sums.moments[c * 4], u);
        close(sums.moments[c * 4 + 1], c == 0 ? u : -u);
        close(sums.moments[c * 4 + 2], u2);
    }
}

template <class T>
void other_units() {
    for (const Shape& shape :
         {Shape{35}, Shape{12, 30}, Shape{16, 16}, Shape{40, 41}, Shape{4, 1, 6}, Shape{8, 8, 8}}) {
        a_large_mean_drowns_nothing<T>(shape);
        squares_stay_in_range<T>(shape);
    }
    recording_about_an_offset<T>();
}

void misuse_is_refused() {
    const Spectrometer spectrometer({4, 4});
    std::vector<float> field(16), sums(16);
    CHECK_THROWS(fastcrit::Selection(spectrometer.lattice(), {12}), std::invalid_argument);
    CHECK_THROWS(fastcrit::Selection(spectrometer.lattice(), {3, 3}), std::invalid_argument);
    for (std::int64_t shells : {0, 100}) {
        CHECK_THROWS(spectrometer.shell_power<float>(field.data(), 1, shells, sums.data()), std::invalid_argument);
    }
    CHECK_THROWS(fastcrit::use_instruction_set("quantum"), std::invalid_argument);
    CHECK_THROWS(fastcrit::set_num_threads(0), std::invalid_argument);
}

template <class T>
void all_shapes() {
    const Shape shapes[] = {{1},       {2},       {3},       {16},      {35},      {97},       {128},      {212},
                            {1, 1},    {1, 8},    {8, 1},    {2, 2},    {5, 7},    {13, 11},   {16, 16},   {12, 30},
                            {28, 28},  {31, 32},  {40, 41},  {9, 2},    {49, 4},   {4, 53},    {59, 3},    {24, 72},
                            {2, 3, 4}, {5, 5, 5}, {4, 1, 6}, {7, 2, 9}, {8, 8, 8}, {3, 47, 2}, {47, 2, 5}, {1, 1, 10}};
    unsigned seed = 1;
    for (const Shape& shape : shapes) {
        for (std::int64_t count : {1, 5, 19}) power_and_modes<T>(shape, count, seed++);
        correlation<T>(shape, seed++);
    }
    batch_and_threads_change_no_bit<T>({12, 10});
    batch_and_threads_change_no_bit<T>({6, 5, 4});
}

}  // namespace

int main() {
    std::vector<const char*> sets = fastcrit::available_instruction_sets();
#ifdef __SANITIZE_THREAD__
    sets.resize(1);  // what threads share is the same code in all
#endif
    for (const char* name : sets) {
        fastcrit::use_instruction_set(name);
        CHECK(std::string(fastcrit::instruction_set()) == name);
        for (const std::int64_t largest_block : {-1, 0}) {  // fields in the lanes, then lines
            fastcrit::set_largest_block(largest_block);
            all_shapes<float>();
            all_shapes<double>();
            nan_stays_in_its_field_and_is_reported();
            recordings<float>();
            recordings<double>();
            other_units<float>();
            other_units<double>();
        }
        std::printf("spectra: all checks hold with %s\n", name);
    }
    misuse_is_refused();
}
