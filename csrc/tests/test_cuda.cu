// Every CUDA kernel against direct sums in double: on a device when nvcc compiles this file, otherwise on the
// processor, where races and accesses out of bounds of shared memory are found as well.
#include <algorithm>
#include <cstring>
#include <exception>
#include <iterator>
#include <limits>

#include "check.hpp"
#include "cuda/memory.hpp"
#include "cuda/numbers.cuh"
#include "fastcrit/cuda.hpp"
#include "record_arrays.hpp"

using fastcrit::Bins;
using fastcrit::Lattice;
using fastcrit::Selection;
using fastcrit::cuda::BFloat16;
using fastcrit::cuda::Center;
using fastcrit::cuda::DeviceArray;
using fastcrit::cuda::Fields;
using fastcrit::cuda::Half;
using fastcrit::cuda::PowerResults;
using fastcrit::cuda::SelectedModes;
using fastcrit::cuda::Spectrometer;
using fastcrit::cuda::Type;
using oracle::same_bits;
using oracle::Shape;

namespace {

// As for the processor's kernels: an FFT in float32 errs by eps sqrt(log n). The oracle is given the values as the half
// types round them, so that the bound is the same for all.
constexpr double kTolerance = 2e-5;

#if defined(FASTCRIT_SANITIZED) || defined(FASTCRIT_EMULATED)
constexpr std::int64_t kLargeBatch = 300;
#else
constexpr std::int64_t kLargeBatch = 10000;
#endif

float as_stored(float value, float*) { return value; }
BFloat16 as_stored(float value, BFloat16*) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    return {static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
/// To the nearest value of ten bits of fraction; small ones to zero.
Half as_stored(float value, Half*) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
    bits = (bits & 0x7fffffff) + 0xfff + (bits >> 13 & 1);
    if ((bits >> 23) >= 143) return {static_cast<std::uint16_t>(sign | 0x7c00)};
    if ((bits >> 23) <= 112) return {sign};
    return {static_cast<std::uint16_t>(sign | ((bits >> 13) - (112 << 10)))};
}

float as_float(float value) { return value; }
float as_float(BFloat16 value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
    float out = 0.0F;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}
float as_float(Half value) {
    const int exponent = value.bits >> 10 & 31;
    const float fraction = 1.0F + static_cast<float>(value.bits & 0x3ff) / 1024.0F;
    if (exponent == 0) return 0.0F;
    return (value.bits >> 15 != 0 ? -1.0F : 1.0F) *
           (exponent == 31 ? std::numeric_limits<float>::infinity() : std::ldexp(fraction, exponent - 15));
}

template <class T>
constexpr Type type_of() {
    return std::is_same_v<T, float> ? Type::float32 : std::is_same_v<T, Half> ? Type::float16 : Type::bfloat16;
}

template <class T>
std::vector<T> to_host(const DeviceArray<T>& from) {
    std::vector<T> values(from.size());
    FASTCRIT_CUDA_CHECK(cudaDeviceSynchronize());
    FASTCRIT_CUDA_CHECK(cudaMemcpy(values.data(), from.data(), from.size() * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
}

/// An array whose values show when they were not written.
template <class T>
DeviceArray<T> unwritten(std::size_t n) {
    return DeviceArray<T>(std::vector<T>(n, std::numeric_limits<T>::signaling_NaN()));
}

/// A batch as a device holds it, and its values.
template <class T>
struct Batch {
    std::vector<float> values;
    std::vector<T> stored;
    DeviceArray<T> device;

    explicit Batch(std::vector<float> exact) : values(std::move(exact)) {
        for (float& value : values) {
            stored.push_back(as_stored(value, static_cast<T*>(nullptr)));
            value = as_float(stored.back());
        }
        device = DeviceArray<T>(stored);
    }
    Fields fields(std::int64_t first, std::int64_t count, std::int64_t sites) const {
        return {device.data() + first * sites, type_of<T>(), count};
    }
};

void use_order(unsigned seed) {
#ifndef __CUDACC__
    fastcrit::host::set_order(seed);
#else
    static_cast<void>(seed);
#endif
}

std::vector<std::int32_t> some_modes(const Lattice& lattice) {
    const std::int32_t modes = lattice.half() * lattice.plane();
    std::vector<std::int32_t> selected;
    for (std::int32_t m = 0; m < modes; m += 1 + modes / 37) selected.push_back(m);
    if (selected.back() != modes - 1) selected.push_back(modes - 1);
    return selected;
}

/// Bin sums of |phi^|^2 / N given phi^ in the order [kx][z][y].
std::vector<double> bin_sums(const Lattice& lattice, Bins bins, const std::vector<std::complex<double>>& modes) {
    const auto& bin = bins == Bins::shells ? lattice.shell_of_mode() : lattice.orbit_of_mode();
    std::vector<double> sums(bins == Bins::shells ? static_cast<std::size_t>(lattice.shells())
                                                  : lattice.orbits().size());
    for (std::size_t m = 0; m < modes.size(); ++m) {
        const int weight = lattice.weight(static_cast<std::int32_t>(m) / lattice.plane());
        sums[static_cast<std::size_t>(bin[m])] += weight * std::norm(modes[m]) / static_cast<double>(lattice.sites());
    }
    return sums;
}

std::int64_t members(const Lattice& lattice, Bins bins, std::size_t bin) {
    return bins == Bins::shells ? lattice.shell_multiplicity()[bin] : lattice.orbits()[bin].multiplicity;
}

void check_sums(const Lattice& lattice, Bins bins, const float* found, const std::vector<double>& exact, double mean) {
    for (std::size_t b = 0; b < exact.size(); ++b) {
        const double error = std::abs(found[b] - exact[b]);
        CHECK(error <= kTolerance * mean * static_cast<double>(members(lattice, bins, b)) && "power of a bin");
    }
}

struct Found {
    std::vector<float> sums, modes;
    std::vector<double> totals;
};

/// power of fields [0, count), in calls of at most `split` fields.
template <class T>
Found fused_power(const Spectrometer& spectrometer, const Batch<T>& batch, std::int64_t count, std::int64_t split,
                  const fastcrit::cuda::View& view, Bins bins, const SelectedModes& selected) {
    const std::int64_t sites = spectrometer.lattice().sites();
    const auto n = static_cast<std::size_t>(count);
    const auto sums = unwritten<float>(n * static_cast<std::size_t>(spectrometer.bins(bins)));
    const auto modes = unwritten<float>(n * 2 * static_cast<std::size_t>(selected.size()));
    const auto totals = unwritten<double>(n);
    for (std::int64_t first = 0; first < count; first += split) {
        const PowerResults results{sums.data() + first * spectrometer.bins(bins), &selected,
                                   modes.data() + first * 2 * selected.size(), totals.data() + first};
        spectrometer.power(batch.fields(first, std::min(split, count - first), sites), view, bins, results, nullptr);
    }
    return {to_host(sums), to_host(modes), to_host(totals)};
}

template <class T>
void fused_power_is_that_of_direct_sums(const Shape& shape, std::int64_t count, unsigned seed) {
    const Spectrometer spectrometer(shape, 0);
    CHECK(spectrometer.fused());
    const Lattice& lattice = spectrometer.lattice();
    const auto sites = static_cast<std::size_t>(lattice.sites());
    const Batch<T> batch(oracle::normal<float>(sites * static_cast<std::size_t>(count), seed));
    const std::vector<float> offset = oracle::normal<float>(sites, seed + 1);
    const DeviceArray<float> device_offset(offset);
    const std::vector<std::int32_t> chosen = some_modes(lattice);
    const SelectedModes selected(spectrometer, Selection(lattice, chosen));

    for (const int variant : {0, 1, 2}) {  // as it is, with an offset, signs
        fastcrit::cuda::View view;
        view.offset = variant == 1 ? device_offset.data() : nullptr;
        view.signs = variant == 2;
        use_order(0);
        const Found orbits = fused_power(spectrometer, batch, count, count, view, Bins::orbits, selected);
        const Found shells = fused_power(spectrometer, batch, count, count, view, Bins::shells, selected);
        const std::int64_t step = 1 + count / 7;
        for (std::int64_t f = 0; f < count; f += step) {
            const auto i = static_cast<std::size_t>(f);
            std::vector<double> field(sites);
            double total = 0.0;
            double square = 0.0;
            for (std::size_t x = 0; x < sites; ++x) {
                const float value = batch.values[i * sites + x];
                field[x] = variant == 2 ? (value >= 0.0F ? 1.0 : -1.0) : variant == 1 ? value - offset[x] : value;
                total += field[x];
                square += field[x] * field[x];
            }
            const double mean = square / static_cast<double>(sites);
            const auto exact = oracle::dft(lattice, field.data());
            for (const Bins bins : {Bins::orbits, Bins::shells}) {
                const Found& found = bins == Bins::orbits ? orbits : shells;
                const auto n = static_cast<std::size_t>(spectrometer.bins(bins));
                check_sums(lattice, bins, found.sums.data() + i * n, bin_sums(lattice, bins, exact), mean);
                // A sum in double of numbers in float.
                CHECK(std::abs(found.totals[i] - total) <= 1e-13 * std::sqrt(square * static_cast<double>(sites)));
                for (std::size_t m = 0; m < chosen.size(); ++m) {
                    const float* const mode = found.modes.data() + 2 * (i * chosen.size() + m);
                    const auto error =
                        std::complex<double>(mode[0], mode[1]) - exact[static_cast<std::size_t>(chosen[m])];
                    CHECK(std::abs(error) <= kTolerance * std::sqrt(square * static_cast<double>(sites)));
                }
            }
        }
        for (const unsigned order : {0U, 1U, 2U}) {
            if (order == 0 && variant > 0) continue;
            use_order(order);
            const std::int64_t split = order == 0 ? count : 1 + count / 3;
            const Found again = fused_power(spectrometer, batch, count, split, view, Bins::shells, selected);
            CHECK(same_bits(again.sums, shells.sums) && same_bits(again.modes, shells.modes));
            CHECK(same_bits(again.totals, shells.totals));
        }
        use_order(0);
        if (kLargeBatch < 1000 && sites > 32 * 32) break;
    }
}

/// Noise about a large mean against the same noise without it, whose modes but for k = 0 are the same; and fields whose
/// squares float does not hold.
void fused_power_in_other_units(const Shape& shape) {
    const Spectrometer spectrometer(shape, 0);
    const Lattice& lattice = spectrometer.lattice();
    const auto sites = static_cast<std::size_t>(lattice.sites());
    constexpr std::size_t count = 7;
    std::vector<float> about = oracle::normal<float>(sites * count, 61);
    std::vector<float> plain = about;
    for (std::size_t i = 0; i < about.size(); ++i) {
        if (i / sites % 3 == 1) continue;
        about[i] += 1e5F;
        plain[i] = about[i] - 1e5F;  // exact
    }
    const SelectedModes selected(spectrometer, Selection(lattice, some_modes(lattice)));
    const auto measure = [&](const std::vector<float>& values) {
        return fused_power(spectrometer, Batch<float>(values), count, count, fastcrit::cuda::View{}, Bins::orbits,
                           selected);
    };
    const Found found = measure(about);
    const Found exact = measure(plain);
    const auto n = static_cast<double>(sites);
    const std::size_t orbits = found.sums.size() / count;
    const std::size_t width = found.modes.size() / count;
    for (std::size_t f = 0; f < count; ++f) {
        double total = 0.0;
        for (std::size_t x = 0; x < sites; ++x) total += about[f * sites + x];
        CHECK(std::abs(found.totals[f] - total) <= 1e-13 * n * 1e5);
        CHECK(std::abs(found.sums[f * orbits] - total * total / n) <= kTolerance * (1.0 + total * total / n));
        CHECK(std::abs(found.modes[f * width] - total) <= kTolerance * (n + std::abs(total)));
        for (std::size_t b = 1; b < orbits; ++b) {
            CHECK(std::abs(found.sums[f * orbits + b] - exact.sums[f * orbits + b]) <= 16 * kTolerance);
        }
        for (std::size_t i = 1; i < width; ++i) {
            CHECK(std::abs(found.modes[f * width + i] - exact.modes[f * width + i]) <= 2 * kTolerance * n);
        }
    }

    std::vector<float> scaled = plain;
    const float factors[count] = {1e-25F, 1e-16F, 0.0F, 1e-12F, 1e-23F, 1e16F, 1e22F};
    for (std::size_t i = 0; i < scaled.size(); ++i) {
        scaled[i] *= factors[i / sites];
        if (i / sites == 3) scaled[i] = 1e-12F * (i % 2 == 0 ? 1.0F : -1.0F);  // one mode: others are rounding of it
    }
    const Found units = measure(scaled);
    for (std::size_t f = 0; f < count; ++f) {
        CHECK(std::isfinite(units.totals[f]) == (f != 0 && f != 4 && f != 6));
        if (f == 3 || !std::isfinite(units.totals[f])) continue;
        const double factor = static_cast<double>(factors[f]) * static_cast<double>(factors[f]);
        for (std::size_t b = 0; b < orbits; ++b) {
            CHECK(std::abs(units.sums[f * orbits + b] - factor * exact.sums[f * orbits + b]) <=
                  16 * kTolerance * factor);
        }
    }
}

/// A large batch: every field against the processor's kernels in double, which have the same oracle.
template <class T>
void fused_power_of_many_fields(const Shape& shape) {
    const Spectrometer spectrometer(shape, 0);
    const fastcrit::Spectrometer reference(shape);
    const auto sites = static_cast<std::size_t>(spectrometer.lattice().sites());
    const auto count = static_cast<std::size_t>(kLargeBatch);
    const Batch<T> batch(oracle::normal<float>(sites * count, 17));
    const SelectedModes none(spectrometer, Selection(spectrometer.lattice(), {}));
    const auto bins = static_cast<std::size_t>(spectrometer.bins(Bins::shells));
    const Found found =
        fused_power(spectrometer, batch, kLargeBatch, kLargeBatch, fastcrit::cuda::View{}, Bins::shells, none);
    const std::vector<double> values(batch.values.begin(), batch.values.end());
    std::vector<double> exact(count * bins);
    reference.power<double>(values.data(), kLargeBatch, nullptr, Bins::shells, exact.data());
    for (std::size_t f = 0; f < count; ++f) {
        double square = 0.0;
        for (std::size_t x = 0; x < sites; ++x) square += values[f * sites + x] * values[f * sites + x];
        const auto* const first = exact.data() + f * bins;
        check_sums(spectrometer.lattice(), Bins::shells, found.sums.data() + f * bins,
                   std::vector<double>(first, first + bins), square / static_cast<double>(sites));
    }
}

/// rfftn's layout of modes in the order [kx][z][y].
std::vector<float> by_rows(const Lattice& lattice, const std::vector<std::complex<double>>& modes) {
    std::vector<float> out(2 * modes.size());
    for (std::size_t m = 0; m < modes.size(); ++m) {
        const auto plane = static_cast<std::size_t>(lattice.plane());
        const std::size_t at = m % plane * static_cast<std::size_t>(lattice.half()) + m / plane;
        out[2 * at] = static_cast<float>(modes[m].real());
        out[2 * at + 1] = static_cast<float>(modes[m].imag());
    }
    return out;
}

void half_spectra_are_summed_by_bin(const Shape& shape, std::int64_t count, unsigned seed) {
    const Spectrometer spectrometer(shape, 0);
    const Lattice& lattice = spectrometer.lattice();
    const std::size_t modes = static_cast<std::size_t>(lattice.half()) * static_cast<std::size_t>(lattice.plane());
    const auto n = static_cast<std::size_t>(count);
    const std::vector<double> parts = oracle::normal<double>(2 * modes, seed);
    const std::vector<std::int32_t> chosen = some_modes(lattice);
    const SelectedModes selected(spectrometer, Selection(lattice, chosen));
    std::vector<std::complex<double>> exact(modes);
    double mean = 0.0;
    for (std::size_t m = 0; m < modes; ++m) {
        exact[m] = {parts[2 * m], parts[2 * m + 1]};
        mean += std::norm(exact[m]) / static_cast<double>(modes) / static_cast<double>(lattice.sites());
    }
    // Field f is the spectrum times f + 1; the one before the last is infinite.
    std::vector<float> spectra;
    const std::vector<float> rows = by_rows(lattice, exact);
    for (std::size_t f = 0; f < n; ++f) {
        for (float part : rows) spectra.push_back(static_cast<float>(f + 1) * part);
    }
    const bool has_bad = count > 1;
    const std::size_t bad = n - 2;
    if (has_bad) spectra[bad * 2 * modes + 1] = std::numeric_limits<float>::infinity();
    const DeviceArray<float> device(spectra);

    for (const Bins bins : {Bins::shells, Bins::orbits}) {
        std::vector<Found> found;
        for (const unsigned order : {0U, 1U, 2U}) {
            use_order(order);
            const auto n_bins = static_cast<std::size_t>(spectrometer.bins(bins));
            const auto sums = unwritten<float>(n * n_bins);
            const auto kept = unwritten<float>(n * 2 * chosen.size());
            const DeviceArray<double> totals(std::vector<double>(n, 3.0));
            const std::int64_t split = order == 0 ? count : 1 + count / 2;
            for (std::int64_t first = 0; first < count; first += split) {
                const auto i = static_cast<std::size_t>(first);
                const PowerResults results{sums.data() + i * n_bins, &selected, kept.data() + i * 2 * chosen.size(),
                                           totals.data() + i};
                spectrometer.power_from_half_spectrum(device.data() + i * 2 * modes, std::min(split, count - first),
                                                      bins, results, nullptr);
            }
            found.push_back({to_host(sums), to_host(kept), to_host(totals)});
        }
        for (std::size_t order : {1, 2}) {
            CHECK(same_bits(found[order].sums, found[0].sums) && same_bits(found[order].modes, found[0].modes));
        }
        const std::vector<double> of_one = bin_sums(lattice, bins, exact);
        for (std::size_t f = 0; f < n; ++f) {
            const bool good = !has_bad || f != bad;
            CHECK(std::isfinite(found[0].totals[f]) == good);
            if (!good) continue;
            const double scale = static_cast<double>((f + 1) * (f + 1));
            std::vector<double> expected = of_one;
            for (double& sum : expected) sum *= scale;
            check_sums(lattice, bins, found[0].sums.data() + f * expected.size(), expected, mean * scale);
            for (std::size_t m = 0; m < chosen.size(); ++m) {
                const auto at = static_cast<std::size_t>(chosen[m]);
                const float* const mode = found[0].modes.data() + 2 * (f * chosen.size() + m);
                const auto factor = static_cast<float>(f + 1);
                CHECK(mode[0] == factor * static_cast<float>(exact[at].real()));
                CHECK(mode[1] == factor * static_cast<float>(exact[at].imag()));
            }
        }
        use_order(0);
    }
}

void lags_are_summed_by_shell(const Shape& shape, std::int64_t count, unsigned seed) {
    const Spectrometer spectrometer(shape, 0);
    const Lattice& lattice = spectrometer.lattice();
    const auto [n0, n1, n2] = lattice.sides();
    const auto sites = static_cast<std::size_t>(lattice.sites());
    // Even, as the correlation of a real field is.
    std::vector<float> values = oracle::normal<float>(sites * static_cast<std::size_t>(count), seed);
    const auto site = [m1 = n1, m2 = n2](std::int32_t z, std::int32_t y, std::int32_t x) {
        return static_cast<std::size_t>((std::int64_t{z} * m1 + y) * m2 + x);
    };
    std::vector<std::vector<double>> exact(static_cast<std::size_t>(count),
                                           std::vector<double>(lattice.lag_shells().size()));
    const auto for_each_lag = [&, m0 = n0, m1 = n1, m2 = n2](const auto& visit) {
        for (std::int32_t z = 0; z < m0; ++z)
            for (std::int32_t y = 0; y < m1; ++y)
                for (std::int32_t x = 0; x < m2; ++x) visit(z, y, x);
    };
    for (std::size_t f = 0; f < static_cast<std::size_t>(count); ++f) {
        float* const field = values.data() + f * sites;
        for_each_lag([&, m0 = n0, m1 = n1, m2 = n2](std::int32_t z, std::int32_t y, std::int32_t x) {
            field[site((m0 - z) % m0, (m1 - y) % m1, (m2 - x) % m2)] = field[site(z, y, x)];
        });
        for_each_lag([&, m0 = n0, m1 = n1, m2 = n2](std::int32_t z, std::int32_t y, std::int32_t x) {
            const double fz = std::min(z, m0 - z);
            const double fy = std::min(y, m1 - y);
            const double fx = std::min(x, m2 - x);
            const auto shell = static_cast<std::size_t>(std::sqrt(fz * fz + fy * fy + fx * fx) + 0.5 + 1e-9);
            exact[f][shell] += static_cast<double>(field[site(z, y, x)]);
        });
    }
    const DeviceArray<float> device(values);
    const auto sums = unwritten<float>(static_cast<std::size_t>(count) * lattice.lag_shells().size());
    spectrometer.lag_sums(device.data(), count, sums.data(), nullptr);
    const std::vector<float> found = to_host(sums);
    for (std::size_t i = 0; i < found.size(); ++i) {
        const std::size_t shell = i % lattice.lag_shells().size();
        const auto lags = static_cast<double>(lattice.lag_shells()[shell].multiplicity);
        CHECK(std::abs(found[i] - exact[i / lattice.lag_shells().size()][shell]) <= kTolerance * lags);
    }
}

template <class T>
void first_modes_are_those_of_direct_sums(const Shape& shape, std::int64_t count, unsigned seed) {
    const Spectrometer spectrometer(shape, 0);
    const Lattice& lattice = spectrometer.lattice();
    const auto [n0, n1, n2] = lattice.sides();
    const auto sites = static_cast<std::size_t>(lattice.sites());
    const auto n = static_cast<std::size_t>(count);
    const Batch<T> batch(oracle::normal<float>(sites * n, seed));
    const std::size_t width = 1 + 2 * shape.size();
    std::vector<std::vector<double>> found;
    for (const unsigned order : {0U, 1U, 2U}) {
        use_order(order);
        const auto out = unwritten<double>(width * n);
        const auto scratch = unwritten<double>(static_cast<std::size_t>(spectrometer.first_modes_scratch(count)) / 8);
        spectrometer.first_modes(batch.fields(0, count, lattice.sites()), out.data(), scratch.data(), nullptr);
        found.push_back(to_host(out));
    }
    use_order(0);
    CHECK(same_bits(found[1], found[0]) && same_bits(found[2], found[0]));
    const auto last = unwritten<double>(width);
    const auto scratch = unwritten<double>(static_cast<std::size_t>(spectrometer.first_modes_scratch(1)) / 8);
    spectrometer.first_modes(batch.fields(count - 1, 1, lattice.sites()), last.data(), scratch.data(), nullptr);
    const std::vector<double> alone = to_host(last);
    for (std::size_t i = 0; i < width; ++i) CHECK(alone[i] == found[0][i * n + n - 1]);

    for (std::size_t f = 0; f < n; f += 1 + n / 50) {
        double total = 0.0;
        double square = 0.0;
        std::complex<double> exact[3] = {};
        std::size_t i = f * sites;
        const auto wave = [](std::int32_t j, std::int32_t side) {
            const double angle = -2.0 * std::acos(-1.0) * j / side;
            return std::complex<double>(std::cos(angle), std::sin(angle));
        };
        for (std::int32_t z = 0; z < n0; ++z)
            for (std::int32_t y = 0; y < n1; ++y) {
                const std::complex<double> along_z = wave(z, n0);
                const std::complex<double> along_y = wave(y, n1);
                for (std::int32_t x = 0; x < n2; ++x, ++i) {
                    const double value = batch.values[i];
                    total += value;
                    square += value * value;
                    exact[0] += value * along_z;
                    exact[1] += value * along_y;
                    exact[2] += value * wave(x, n2);
                }
            }
        const double scale = std::sqrt(square * static_cast<double>(sites));
        CHECK(std::abs(found[0][f] - total) <= 1e-13 * scale && "total");
        for (std::size_t axis = 0; axis < shape.size(); ++axis) {
            const std::complex<double> got(found[0][(1 + 2 * axis) * n + f], found[0][(2 + 2 * axis) * n + f]);
            CHECK(std::abs(got - exact[axis + 3 - shape.size()]) <= kTolerance * scale && "first mode");
        }
    }
}

using HostRecord = oracle::RecordArrays<oracle::Values>;
using DeviceRecord = oracle::RecordArrays<DeviceArray>;

HostRecord read_back(const DeviceRecord& device) {
    return oracle::to_values(device, [](const auto& array) { return to_host(array); });
}

/// Batches of samples, one of which is not finite, against the processor's record of all others in double.
template <class T>
void recording(const Shape& shape, std::int64_t samples, std::int64_t channels, std::int64_t blocks) {
    constexpr std::int64_t first = 4;
    const Spectrometer spectrometer(shape, 0);
    const Lattice& lattice = spectrometer.lattice();
    const auto sites = static_cast<std::size_t>(lattice.sites());
    const auto orbits = static_cast<std::size_t>(spectrometer.bins(Bins::orbits));
    const auto per_sample = static_cast<std::size_t>(channels) * sites;
    const auto n = static_cast<std::size_t>(samples);
    const auto plane = static_cast<std::int32_t>(shape[0]);
    const Selection selection(lattice, {0, 1, 2, plane, plane + 3});
    const SelectedModes selected(spectrometer, selection);
    // "Shells" of some of the selected modes, the first with k = 0.
    const std::vector<std::int32_t> begin{0, 1, 4};
    const std::vector<std::int32_t> at{0, 1, 3, 4};
    const std::vector<double> weight{1.0 / 256.0, 0.5 / 256.0, 0.25 / 256.0, 0.125 / 256.0};
    const fastcrit::cuda::ChannelProducts products(selected, begin, at, weight);
    const std::size_t bad = n / 2;
    std::vector<float> values = oracle::normal<float>(per_sample * n, 9);
    values[bad * per_sample + per_sample - 3] = std::numeric_limits<float>::infinity();
    const Batch<T> batch(values);

    const fastcrit::RecordSizes sizes{blocks,           channels,       spectrometer.bins(Bins::orbits),
                                      selection.size(), lattice.ndim(), lattice.sites()};
    std::vector<double> offsets;
    for (std::int64_t c = 0; c < channels; ++c) offsets.push_back(static_cast<double>(c % 3 - 1) / 64.0);
    HostRecord exact(sizes, true, offsets);
    const fastcrit::Spectrometer reference(shape);
    const auto to_reference = [&](std::size_t from, std::size_t end) {
        const std::vector<double> part(batch.values.begin() + static_cast<std::ptrdiff_t>(from * per_sample),
                                       batch.values.begin() + static_cast<std::ptrdiff_t>(end * per_sample));
        reference.record<double>(part.data(), static_cast<std::int64_t>(end - from),
                                 first + static_cast<std::int64_t>(from), selection, exact.record(blocks, channels));
    };
    to_reference(0, bad);
    to_reference(bad + 1, n);
    const std::size_t C = static_cast<std::size_t>(channels);
    std::vector<double> exact_cross(static_cast<std::size_t>(blocks) * 2 * C * C);
    for (std::size_t j = 0; j < n; ++j) {
        if (j == bad) continue;
        std::vector<std::vector<std::complex<double>>> modes;
        for (std::size_t c = 0; c < C; ++c) {
            const std::vector<double> field(
                batch.values.begin() + static_cast<std::ptrdiff_t>(j * per_sample + c * sites),
                batch.values.begin() + static_cast<std::ptrdiff_t>(j * per_sample + (c + 1) * sites));
            modes.push_back(oracle::dft(lattice, field.data()));
            modes.back()[0] -= static_cast<double>(sites) * offsets[c];
        }
        const std::int32_t chosen[] = {0, 1, 2, plane, plane + 3};
        const auto block =
            static_cast<std::size_t>(first + static_cast<std::int64_t>(j)) % static_cast<std::size_t>(blocks);
        for (std::size_t shell = 0; shell < 2; ++shell) {
            for (auto m = static_cast<std::size_t>(begin[shell]); m < static_cast<std::size_t>(begin[shell + 1]); ++m) {
                const auto mode = static_cast<std::size_t>(chosen[at[m]]);
                for (std::size_t a = 0; a < C; ++a) {
                    for (std::size_t b = 0; b < C; ++b) {
                        exact_cross[((block * 2 + shell) * C + a) * C + b] +=
                            weight[m] * (modes[a][mode] * std::conj(modes[b][mode])).real();
                    }
                }
            }
        }
    }

    struct Run {
        HostRecord record;
        std::vector<double> cross;
    };
    std::vector<Run> found;
    const std::int64_t splits[] = {samples, samples, samples / 3 + 1, 1};
    for (std::size_t run = 0; run < std::size(splits); ++run) {
        const std::int64_t split = splits[run];
        if (split == 1 && samples > 300) continue;
        use_order(static_cast<unsigned>(run));
        DeviceRecord device(sizes, true, offsets);
        const DeviceArray<double> cross(std::vector<double>(exact_cross.size()));
        const DeviceArray<std::int64_t> first_bad(std::vector<std::int64_t>{INT64_MAX});
        const auto most = static_cast<std::size_t>(split * channels);
        const auto sums = unwritten<float>(most * orbits);
        const auto sign_sums = unwritten<float>(most * orbits);
        const auto modes = unwritten<float>(most * 10);
        const auto totals = unwritten<double>(most);
        const auto scratch =
            unwritten<double>(static_cast<std::size_t>(spectrometer.record_scratch(
                                  type_of<T>(), split, selected, device.record(blocks, channels), &products)) /
                              8);
        for (std::int64_t from = 0; from < samples; from += split) {
            const Fields fields =
                batch.fields(from * channels, std::min(split, samples - from) * channels, lattice.sites());
            const PowerResults results{sums.data(), &selected, modes.data(), totals.data()};
            spectrometer.power(fields, {}, Bins::orbits, results, nullptr);
            spectrometer.power(fields, {nullptr, true}, Bins::orbits, {sign_sums.data()}, nullptr);
            spectrometer.record({fields, first + from, sums.data(), modes.data(), totals.data(), sign_sums.data(),
                                 &products, cross.data(), scratch.data()},
                                selected, device.record(blocks, channels), first_bad.data(), nullptr);
        }
        found.push_back({read_back(device), to_host(cross)});
        CHECK(to_host(first_bad)[0] == (first + static_cast<std::int64_t>(bad)) * channels + channels - 1);
    }
    use_order(0);
    // The same batches in another order of blocks and threads.
    CHECK(same_bits(found[1].record, found[0].record) && same_bits(found[1].cross, found[0].cross));
    // Values of order 1 (modes: sqrt(sites), moments: far below) are summed over the samples of a block.
    const double in_block = static_cast<double>(samples) / static_cast<double>(blocks) + 1.0;
    const auto close = [](const std::vector<double>& a, const std::vector<double>& b, double bound) {
        for (std::size_t i = 0; i < a.size(); ++i) CHECK(std::abs(a[i] - b[i]) <= bound && "record");
    };
    for (const Run& run : found) {
        CHECK(run.record.count == exact.count);
        close(run.record.power, exact.power, kTolerance * 8.0 * in_block);
        close(run.record.sign_power, exact.sign_power, kTolerance * 8.0 * in_block);
        close(run.record.low, exact.low, kTolerance * std::sqrt(static_cast<double>(sites)) * in_block);
        close(run.record.first, exact.first, kTolerance * 4.0 * in_block);
        close(run.record.moments, exact.moments, 1e-13 * in_block);
        close(run.record.field, exact.field, 1e-12 * static_cast<double>(samples));
        close(run.record.sign_field, exact.sign_field, 0.0);
        close(run.cross, exact_cross, kTolerance * 8.0 * in_block);
    }
    // Pieces differ from batches by the rounding of sums in double.
    for (const Run& run : found) close(run.record.power, found[0].record.power, 1e-13 * 64.0 * in_block);
}

/// Offsets as fastcrit/_kernels/offset.py has them: a multiple of a power of two of 8 to 16 standard deviations, or 0.
void offsets_are_fixed_once() {
    const Shape shape{12, 10};
    const Spectrometer spectrometer(shape, 0);
    constexpr std::size_t sites = 120;
    constexpr std::int64_t channels = 4;
    std::vector<float> values = oracle::normal<float>(channels * sites, 5);
    for (std::size_t i = 0; i < sites; ++i) {
        values[i] += 1000.0F;
        values[sites + i] -= 20.0F;
        values[2 * sites + i] = 7.5F;
        values[3 * sites + i] = i == 5 ? std::numeric_limits<float>::infinity() : 1e6F;
    }
    const Batch<float> batch(values);
    const fastcrit::RecordSizes sizes{3, channels, spectrometer.bins(Bins::orbits), 0, 2, 120};
    DeviceRecord device(sizes, false, std::vector<double>(channels));
    const DeviceArray<double> offset(std::vector<double>(channels, 3.0));
    spectrometer.fix_offset(batch.fields(0, channels, sites), device.record(3, channels), offset.data(), nullptr);
    const std::vector<double> found = to_host(offset);
    double mean = 0.0;
    double square = 0.0;
    for (std::size_t i = 0; i < sites; ++i) mean += static_cast<double>(batch.values[i]) / sites;
    for (std::size_t i = 0; i < sites; ++i) square += std::pow(static_cast<double>(batch.values[i]) - mean, 2) / sites;
    int exponent = 0;
    std::frexp(8.0 * std::sqrt(square), &exponent);
    const double unit = std::ldexp(1.0, exponent);
    CHECK(found[0] == std::rint(mean / unit) * unit);
    CHECK(found[1] == 0.0 && found[2] == 7.5 && found[3] == 0.0);
    device.count = DeviceArray<std::int64_t>(std::vector<std::int64_t>{0, 1, 0});
    const DeviceArray<double> kept(std::vector<double>(channels, 3.0));
    spectrometer.fix_offset(batch.fields(0, channels, sites), device.record(3, channels), kept.data(), nullptr);
    CHECK(to_host(kept) == std::vector<double>(channels, 3.0));
}

/// Means of the first shells, and the first field that has none that float holds.
void means_of_shells_and_the_first_bad_field() {
    for (const Shape& shape : {Shape{16, 16}, Shape{64, 64}, Shape{12, 20}}) {
        const Spectrometer spectrometer(shape, 0);
        const Lattice& lattice = spectrometer.lattice();
        const auto sites = static_cast<std::size_t>(lattice.sites());
        constexpr std::size_t count = 9;
        std::vector<float> values = oracle::normal<float>(sites * count, 23);
        for (std::size_t i = 0; i < sites; ++i) values[2 * sites + i] = 0.0F;  // is 0, and has a spectrum of 0
        const auto kept = static_cast<std::size_t>(lattice.shells()) / 2;
        const auto measure = [&](const std::vector<float>& fields) {
            const Batch<float> batch(fields);
            const auto means = unwritten<float>(count * kept);
            const DeviceArray<std::int64_t> bad(std::vector<std::int64_t>{INT64_MAX});
            PowerResults results{means.data()};
            results.kept = static_cast<std::int32_t>(kept);
            results.means = true;
            results.bad = bad.data();
            spectrometer.power(batch.fields(0, count, lattice.sites()), {}, Bins::shells, results, nullptr);
            return std::make_pair(to_host(means), to_host(bad)[0]);
        };
        const auto [means, none] = measure(values);
        CHECK(none == INT64_MAX);
        for (std::size_t f = 0; f < count; ++f) {
            const std::vector<double> field(values.begin() + static_cast<std::ptrdiff_t>(f * sites),
                                            values.begin() + static_cast<std::ptrdiff_t>((f + 1) * sites));
            const std::vector<double> exact = bin_sums(lattice, Bins::shells, oracle::dft(lattice, field.data()));
            for (std::size_t b = 0; b < kept; ++b) {
                const auto modes = static_cast<double>(lattice.shell_multiplicity()[b]);
                CHECK(std::abs(means[f * kept + b] - exact[b] / modes) <= 2.0 * kTolerance && "mean of a shell");
            }
        }
        values[7 * sites + 1] = std::numeric_limits<float>::quiet_NaN();
        CHECK(measure(values).second == 7);
        for (std::size_t i = 0; i < sites; ++i) values[4 * sites + i] = 1e-17F;  // whose square has few digits
        CHECK(measure(values).second == 4);
    }
}

/// Fields of several channels less what `center` says, on double.
std::vector<double> centred(const std::vector<float>& values, std::size_t samples, std::size_t pitch, std::size_t sites,
                            Center center) {
    std::vector<double> out(values.begin(), values.end());
    const bool of_field = center == Center::sample;  // sums over sites, or over samples
    for (std::size_t i = 0; i < (of_field ? out.size() / sites : pitch) && center != Center::none; ++i) {
        const std::size_t n = of_field ? sites : samples;
        const auto at = [&](std::size_t j) -> double& { return out[of_field ? i * sites + j : i + j * pitch]; };
        double total = 0.0;
        for (std::size_t j = 0; j < n; ++j) total += at(j);
        for (std::size_t j = 0; j < n; ++j) at(j) -= total / static_cast<double>(n);
    }
    return out;
}

struct Averages {
    std::vector<double> means, power, first, note;
};

template <class T>
Averages averages(const Spectrometer& spectrometer, const SelectedModes& selected, const Batch<T>& batch,
                  std::int64_t samples, std::int64_t channels, std::int64_t blocks, Center center) {
    const Lattice& lattice = spectrometer.lattice();
    const auto n = [](std::int64_t count) { return static_cast<std::size_t>(count); };
    const std::int64_t shells = spectrometer.bins(Bins::shells);
    const auto means = unwritten<double>(n(2 * channels * shells));
    const auto power = unwritten<double>(n(blocks * channels * spectrometer.bins(Bins::orbits)));
    const auto first = unwritten<double>(n(blocks * channels * lattice.ndim()));
    std::vector<double> nothing(n(1 + channels * (1 + shells)), std::numeric_limits<double>::signaling_NaN());
    const std::int64_t none_bad = INT64_MAX;
    std::memcpy(nothing.data(), &none_bad, sizeof none_bad);
    const DeviceArray<double> note(nothing);
    const std::int64_t count = samples * channels;
    const auto scratch = unwritten<double>(n(spectrometer.average_scratch(count, center, selected) / 8));
    spectrometer.average({batch.fields(0, count, lattice.sites()), channels, blocks, center, &selected, means.data(),
                          static_cast<std::int32_t>(shells), power.data(), first.data(), note.data(), scratch.data()},
                         nullptr);
    return {to_host(means), to_host(power), to_host(first), to_host(note)};
}

template <class T>
void averages_are_those_of_direct_sums(const Shape& shape, std::size_t samples, std::size_t channels,
                                       std::size_t blocks, unsigned seed) {
    const Spectrometer spectrometer(shape, 0);
    const Lattice& lattice = spectrometer.lattice();
    const auto sites = static_cast<std::size_t>(lattice.sites());
    const auto ndim = static_cast<std::size_t>(lattice.ndim());
    const auto orbits = static_cast<std::size_t>(spectrometer.bins(Bins::orbits));
    const auto shells = static_cast<std::size_t>(spectrometer.bins(Bins::shells));
    std::vector<std::int32_t> axes{0};
    if (lattice.sides()[1] > 1) axes.push_back(1);
    if (lattice.sides()[2] > 1) axes.push_back(lattice.plane());
    const SelectedModes selected(spectrometer, Selection(lattice, axes));
    std::vector<float> values = oracle::normal<float>(samples * channels * sites, seed);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += static_cast<float>(i % (channels * sites) % 5);
    const Batch<T> batch(values);
    for (const Center center : {Center::none, Center::sample, Center::ensemble}) {
        const auto n = [](std::size_t count) { return static_cast<std::int64_t>(count); };
        const auto found = [&](unsigned order) {
            use_order(order);
            return averages(spectrometer, selected, batch, n(samples), n(channels), n(blocks), center);
        };
        const Averages got = found(0);
        const std::vector<double> less = centred(batch.values, samples, channels * sites, sites, center);
        std::vector<double> power(blocks * channels * orbits), first(blocks * channels * ndim);
        std::vector<std::vector<double>> by_shell(channels * shells);
        double square = 0.0;
        for (const double value : less) square += value * value / static_cast<double>(less.size());
        for (std::size_t f = 0; f < samples * channels; ++f) {
            const auto modes = oracle::dft(lattice, less.data() + f * sites);
            const std::size_t place = f / channels % blocks * channels + f % channels;
            const auto of_orbits = bin_sums(lattice, Bins::orbits, modes);
            for (std::size_t o = 0; o < orbits; ++o) power[place * orbits + o] += of_orbits[o];
            const auto of_shells = bin_sums(lattice, Bins::shells, modes);
            for (std::size_t s = 0; s < shells; ++s) by_shell[f % channels * shells + s].push_back(of_shells[s]);
            const std::size_t along[2] = {lattice.sides()[1] > 1 ? 1U : 0U,
                                          static_cast<std::size_t>(lattice.sides()[2] > 1 ? lattice.plane() : 0)};
            for (std::size_t axis = 0; axis < ndim; ++axis) {
                first[place * ndim + axis] += std::norm(modes[along[axis]]) / static_cast<double>(sites);
            }
        }
        const double most = kTolerance * square * static_cast<double>(samples);
        for (std::size_t i = 0; i < power.size(); ++i) {
            const auto count = static_cast<double>(members(lattice, Bins::orbits, i % orbits));
            CHECK(std::abs(got.power[i] - power[i]) <= most * count && "power of an orbit");
        }
        for (std::size_t i = 0; i < first.size(); ++i) CHECK(std::abs(got.first[i] - first[i]) <= most && "first mode");
        const auto N = static_cast<double>(samples);
        for (std::size_t i = 0; i < by_shell.size(); ++i) {
            const auto count = static_cast<double>(members(lattice, Bins::shells, i % shells));
            double total = 0.0;
            double scatter = 0.0;
            for (const double sum : by_shell[i]) total += sum;
            for (const double sum : by_shell[i]) scatter += (sum - total / N) * (sum - total / N) / (count * count * N);
            const double unbiased = center == Center::ensemble ? N / (N - 1.0) : 1.0;
            CHECK(std::abs(got.means[i] - total / N / count * unbiased) <= 2.0 * kTolerance * square && "mean");
            const double error = std::sqrt(scatter / (N - 1.0)) * unbiased;
            CHECK(std::abs(got.means[by_shell.size() + i] - error) <= 2.0 * kTolerance * square && "standard error");
            const double noted = got.note[1 + i / shells * (1 + shells) + 1 + i % shells];
            CHECK(std::abs(noted - total) <= most * count && "sum of a shell");
        }
        for (std::size_t c = 0; c < channels; ++c) {  // of the first sample's values, or of all samples' means
            double exact = 0.0;
            if (center == Center::sample) {
                for (std::size_t j = 0; j < samples; ++j) {
                    const std::size_t begin = (j * channels + c) * sites;
                    const double mean = static_cast<double>(batch.values[begin]) - less[begin];
                    exact += mean * mean / N;
                }
            } else {
                for (std::size_t x = 0; x < sites; ++x) {
                    const auto value = static_cast<double>(batch.values[c * sites + x]);
                    exact += value * value / static_cast<double>(sites);
                }
            }
            CHECK(std::abs(got.note[1 + c * (1 + shells)] - exact) <= 1e-12 * exact);
        }
        for (const unsigned order : {1U, 2U}) {
            const Averages again = found(order);
            CHECK(same_bits(again.means, got.means) && same_bits(again.power, got.power));
            CHECK(same_bits(again.first, got.first) && same_bits(again.note, got.note));
        }
        use_order(0);
    }
}

/// Where a field is not finite, or float does not hold its square.
void averages_say_that_a_field_is_bad() {
    const Spectrometer spectrometer({16, 16}, 0);
    const SelectedModes selected(spectrometer, Selection(spectrometer.lattice(), {0, 1, 16}));
    for (const float wrong : {std::numeric_limits<float>::quiet_NaN(), 1e30F, 0.0F}) {
        std::vector<float> values = oracle::normal<float>(256 * 12, 3);
        if (wrong == 0.0F) {
            for (std::size_t i = 256 * 7; i < 256 * 8; ++i) values[i] *= 1e-20F;
        } else {
            values[256 * 7 + 5] = wrong;
        }
        const Averages found = averages(spectrometer, selected, Batch<float>(values), 6, 2, 3, Center::none);
        std::int64_t bad = 0;
        std::memcpy(&bad, found.note.data(), sizeof bad);
        CHECK(bad == 7);
    }
}

void not_finite_fields_are_marked() {
    const Spectrometer spectrometer({16, 16}, 0);
    std::vector<float> values = oracle::normal<float>(256 * 40, 3);
    values[256 * 17 + 5] = std::numeric_limits<float>::quiet_NaN();
    values[256 * 30] = std::numeric_limits<float>::infinity();
    values[256 * 33 + 255] = 1e30F;  // whose power is too large for float
    const Batch<float> batch(values);
    const SelectedModes none(spectrometer, Selection(spectrometer.lattice(), {}));
    const Found found = fused_power(spectrometer, batch, 40, 40, fastcrit::cuda::View{}, Bins::shells, none);
    for (std::size_t f = 0; f < 40; ++f) CHECK(std::isfinite(found.totals[f]) == (f != 17 && f != 30 && f != 33));
}

void misuse_is_refused() {
    const Spectrometer square({16, 16}, 0);
    const Spectrometer other({16, 22}, 0);
    const DeviceArray<float> field(std::vector<float>(16 * 22));
    const PowerResults results{field.data()};
    CHECK(!other.fused());
    CHECK_THROWS(other.power({field.data(), Type::float32, 1}, {}, Bins::shells, results, nullptr), std::logic_error);
    CHECK_THROWS(SelectedModes(square, Selection(other.lattice(), {0})), std::invalid_argument);
    CHECK_THROWS(fastcrit::cuda::parse_type("float64"), std::invalid_argument);
    CHECK_THROWS(fastcrit::cuda::parse_center("mean"), std::invalid_argument);
    const SelectedModes zero(square, Selection(square.lattice(), {0}));
    CHECK_THROWS(square.record({{}, 0, nullptr, nullptr, nullptr, nullptr}, zero, {}, nullptr, nullptr),
                 std::invalid_argument);
    const Spectrometer twin({16, 16}, 0);
    CHECK_THROWS(twin.power({field.data(), Type::float32, 1}, {}, Bins::shells, {results.sums, &zero}, nullptr),
                 std::invalid_argument);
    fastcrit::cuda::Ensemble ensemble{};
    ensemble.fields = {field.data(), Type::float32, 1};
    ensemble.channels = ensemble.blocks = 1;
    ensemble.selected = &zero;
    CHECK_THROWS(square.average(ensemble, nullptr), std::invalid_argument);  // without the first modes
    ensemble.channels = 2;
    CHECK_THROWS(square.average(ensemble, nullptr), std::invalid_argument);
    CHECK_THROWS(Spectrometer({16, 16}, 1 << 20), std::runtime_error);
}

#ifdef __CUDACC__
/// Neither allocation nor synchronisation: a graph made of the calls does what they do.
void calls_can_be_captured(std::int64_t side) {
    constexpr std::int64_t count = 12;
    constexpr std::int64_t blocks = 4;
    const Spectrometer spectrometer({side, side}, 0);
    const auto orbits = static_cast<std::size_t>(spectrometer.bins(Bins::orbits));
    const auto sites = static_cast<std::size_t>(side * side);
    const Batch<float> batch(oracle::normal<float>(count * sites, 5));
    const Selection selection(spectrometer.lattice(), {0, 1, static_cast<std::int32_t>(side)});
    const SelectedModes selected(spectrometer, selection);
    cudaStream_t stream = nullptr;
    FASTCRIT_CUDA_CHECK(cudaStreamCreate(&stream));
    std::vector<HostRecord> found;
    for (const bool captured : {false, true}) {
        DeviceRecord device({blocks, 1, spectrometer.bins(Bins::orbits), selection.size(), 2, side * side}, true,
                            {0.0});
        const DeviceArray<std::int64_t> bad(std::vector<std::int64_t>{INT64_MAX});
        const auto sums = unwritten<float>(count * orbits);
        const auto sign_sums = unwritten<float>(count * orbits);
        const auto modes = unwritten<float>(count * 6);
        const auto totals = unwritten<double>(count);
        const auto first = unwritten<double>(count * 5);
        const auto calls = [&] {
            const Fields fields = batch.fields(0, count, spectrometer.lattice().sites());
            spectrometer.first_modes(fields, first.data(), nullptr, stream);
            spectrometer.power(fields, {}, Bins::orbits, {sums.data(), &selected, modes.data(), totals.data()}, stream);
            spectrometer.power(fields, {nullptr, true}, Bins::orbits, {sign_sums.data()}, stream);
            spectrometer.record({fields, 0, sums.data(), modes.data(), totals.data(), sign_sums.data()}, selected,
                                device.record(blocks, 1), bad.data(), stream);
        };
        if (captured) {
            cudaGraph_t graph = nullptr;
            cudaGraphExec_t ready = nullptr;
            FASTCRIT_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
            calls();
            FASTCRIT_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
            FASTCRIT_CUDA_CHECK(cudaGraphInstantiate(&ready, graph, 0));
            FASTCRIT_CUDA_CHECK(cudaGraphLaunch(ready, stream));
            FASTCRIT_CUDA_CHECK(cudaStreamSynchronize(stream));
            FASTCRIT_CUDA_CHECK(cudaGraphExecDestroy(ready));
            FASTCRIT_CUDA_CHECK(cudaGraphDestroy(graph));
        } else {
            calls();
        }
        found.push_back(read_back(device));
    }
    FASTCRIT_CUDA_CHECK(cudaStreamDestroy(stream));
    CHECK(found[0].count == std::vector<std::int64_t>(blocks, count / blocks));
    CHECK(same_bits(found[1], found[0]));
}
#endif

template <class T>
void all_of_type(unsigned seed) {
    const std::int64_t more = kLargeBatch < 1000 ? 3 : 9;
    for (const std::int64_t side : {16, 32, 64, 128}) {
        for (const std::int64_t count : {std::int64_t{1}, side < 128 ? more : 2}) {
            fused_power_is_that_of_direct_sums<T>({side, side}, count, seed++);
        }
    }
    // Every radix in every place, and the sides that models have.
    for (const Shape& shape : {Shape{4, 2}, Shape{4, 4}, Shape{6, 9}, Shape{10, 7}, Shape{14, 15}, Shape{8, 3},
                               Shape{20, 50}, Shape{24, 24}, Shape{28, 28}, Shape{32, 16}, Shape{16, 64}, Shape{40, 40},
                               Shape{42, 49}, Shape{48, 48}, Shape{60, 35}, Shape{80, 80}, Shape{96, 96}}) {
        if (kLargeBatch < 1000 && shape[0] > 50) continue;
        for (const std::int64_t count : {std::int64_t{1}, shape[0] < 50 ? more : 2}) {
            fused_power_is_that_of_direct_sums<T>(shape, count, seed++);
        }
    }
    for (const Shape& shape :
         {Shape{1}, Shape{2}, Shape{7}, Shape{128}, Shape{40000}, Shape{16411}, Shape{1, 1}, Shape{1, 8}, Shape{8, 1},
          Shape{5, 7}, Shape{28, 28}, Shape{31, 32}, Shape{13, 200}, Shape{150, 152}, Shape{2, 3, 4}, Shape{5, 5, 5},
          Shape{4, 1, 6}, Shape{24, 25, 32}, Shape{47, 3, 8}}) {
        for (const std::int64_t count : {1, 5}) first_modes_are_those_of_direct_sums<T>(shape, count, seed++);
    }
}

void all() {
    all_of_type<float>(1);
    all_of_type<Half>(1001);
    all_of_type<BFloat16>(2001);
    for (const Shape& shape : {Shape{16, 16}, Shape{32, 32}, Shape{64, 64}, Shape{28, 28}, Shape{40, 36}}) {
        fused_power_in_other_units(shape);
    }
    if (kLargeBatch > 1000) {  // large sides
        for (const Shape& shape :
             {Shape{112, 112}, Shape{192, 192}, Shape{224, 224}, Shape{128, 256}, Shape{256, 128}}) {
            fused_power_is_that_of_direct_sums<float>(shape, 2, 77);
        }
    }
    for (const Shape& shape : {Shape{16, 16}, Shape{10, 12}}) {
        fused_power_of_many_fields<float>(shape);
        fused_power_of_many_fields<Half>(shape);
    }
    for (const Shape& shape : {Shape{5, 6}, Shape{3, 2, 8}}) {
        first_modes_are_those_of_direct_sums<float>(shape, kLargeBatch, 5);
        half_spectra_are_summed_by_bin(shape, kLargeBatch, 6);
    }
    unsigned seed = 1;
    for (const Shape& shape : {Shape{1},       Shape{2},       Shape{7},       Shape{97},      Shape{1, 1},
                               Shape{1, 8},    Shape{8, 1},    Shape{5, 7},    Shape{16, 16},  Shape{12, 30},
                               Shape{28, 28},  Shape{31, 32},  Shape{4, 53},   Shape{24, 72},  Shape{97, 60},
                               Shape{2, 3, 4}, Shape{5, 5, 5}, Shape{4, 1, 6}, Shape{7, 2, 9}, Shape{20, 21, 22}}) {
        for (const std::int64_t count : {1, 4}) {
            half_spectra_are_summed_by_bin(shape, count, seed++);
            lags_are_summed_by_shell(shape, count, seed++);
        }
    }
    half_spectra_are_summed_by_bin({80, 80, 90}, 1, 3);  // whole blocks sum its shells
    recording<float>({16, 16}, 70, 3, 7);
    recording<float>({32, 32}, 9, 2, 32);
    recording<Half>({16, 16}, 20, 1, 3);
    recording<BFloat16>({6, 9}, 300, 2, 3);  // sites of two channels are no multiple of four: one by one
    recording<float>({16, 16}, 600, 1, 4);
    averages_are_those_of_direct_sums<float>({16, 16}, 40, 3, 7, 1);
    averages_are_those_of_direct_sums<Half>({10, 7}, 13, 2, 32, 2);  // two channels of 70 sites
    averages_are_those_of_direct_sums<BFloat16>({6, 9}, 300, 1, 3, 3);
    averages_are_those_of_direct_sums<float>({32, 32}, 5, 1, 5, 4);
    averages_say_that_a_field_is_bad();
    offsets_are_fixed_once();
    means_of_shells_and_the_first_bad_field();
    not_finite_fields_are_marked();
    misuse_is_refused();
#ifdef __CUDACC__
    for (const std::int64_t side : {32, 128}) calls_can_be_captured(side);
#endif
}

}  // namespace

int main() {
    try {
        all();
    } catch (const std::exception& error) {  // a race, for one
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    std::puts("cuda: all checks hold");
}
