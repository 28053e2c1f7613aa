// Tables of what follows a field's transform in shared memory, from where its passes leave the frequencies.
#include <algorithm>
#include <complex>
#include <cstddef>
#include <deque>
#include <utility>
#include <vector>

#include "common/roots.hpp"
#include "kernels.hpp"

namespace fastcrit::cuda {
namespace {

/// In an order in which the places of sixteen neighbours, half a warp, are in as many banks, here and mirrored, as far
/// as a short search finds it. The first stays where it is.
std::vector<Pair> spread_over_banks(const std::vector<Pair>& pairs) {
    constexpr std::size_t banks = 16;
    constexpr std::size_t search = 32;
    std::deque<Pair> of_bank[banks];
    for (std::size_t i = 1; i < pairs.size(); ++i) of_bank[pairs[i].here % banks].push_back(pairs[i]);
    std::vector<Pair> out{pairs.front()};
    bool here[banks] = {};
    bool mirror[banks] = {};
    here[out[0].here % banks] = mirror[out[0].mirror % banks] = true;
    while (out.size() < pairs.size()) {
        if (out.size() % banks == 0) std::fill_n(here, banks, false), std::fill_n(mirror, banks, false);
        // Of the fullest bank that is free, so that none is left with many in the end.
        std::size_t from = banks;
        std::size_t at = 0;
        for (const bool strict : {true, false}) {
            for (std::size_t b = 0; b < banks; ++b) {
                if (of_bank[b].empty() || (strict && here[b])) continue;
                if (from < banks && of_bank[b].size() <= of_bank[from].size()) continue;
                std::size_t i = 0;
                const std::size_t end = std::min(search, of_bank[b].size());
                while (i < end && mirror[of_bank[b][i].mirror % banks]) ++i;
                if (i == end && strict) continue;
                from = b;
                at = i < end ? i : 0;
            }
            if (from < banks) break;
        }
        out.push_back(of_bank[from][at]);
        of_bank[from].erase(of_bank[from].begin() + static_cast<std::ptrdiff_t>(at));
        here[from] = mirror[out.back().mirror % banks] = true;
    }
    return out;
}

}  // namespace

ModePlace HalfHeightPlaces::mode(std::int32_t mode) const {
    const std::int32_t kx = mode / (2 * half());
    const std::int32_t ky = mode % (2 * half());
    return {at(ky, kx), at(-ky, -kx), static_cast<std::uint16_t>(ky % half()), static_cast<std::uint16_t>(ky / half())};
}

FieldTables::FieldTables(const Lattice& lattice, HalfHeightPlaces where)
    : places(std::move(where)),
      roots(make_roots(2 * places.half())) {
    const std::int32_t half = places.half();
    const std::int32_t width = places.width();
    const std::vector<std::complex<float>> waves = single_roots(2 * half);
    const float once = 0.25F / static_cast<float>(lattice.sites());
    std::vector<Pair> all;
    std::vector<std::pair<std::int32_t, std::uint16_t>> powers[2];
    for (std::int32_t kx = 0; kx <= width / 2; ++kx) {
        // Of a kx that is its own mirror image, ky and -ky are one pair.
        const bool own_mirror = 2 * kx % width == 0;
        for (std::int32_t ky = 0; ky < (own_mirror ? half / 2 + 1 : half); ++ky) {
            const std::uint16_t here = places.at(ky, kx);
            const std::uint16_t mirror = places.at(-ky, -kx);
            // Modes that are their own mirror images, or each other's, count once.
            const std::complex<float>& wave = waves[static_cast<std::size_t>(ky)];
            all.push_back({here, mirror, here == mirror ? once : 2.0F * once, {wave.real(), wave.imag()}});
            for (int upper = 0; upper < 2; ++upper) {
                const auto mode = static_cast<std::size_t>(kx * 2 * half + ky + upper * half);
                const auto word = static_cast<std::uint16_t>(2 * here + upper);
                powers[static_cast<int>(Bins::shells)].emplace_back(lattice.shell_of_mode()[mode], word);
                powers[static_cast<int>(Bins::orbits)].emplace_back(lattice.orbit_of_mode()[mode], word);
            }
        }
    }
    pairs = DeviceArray<Pair>(spread_over_banks(all));
    const auto zero = static_cast<std::uint16_t>(2 * places.hole);
    for (const Bins b : {Bins::shells, Bins::orbits}) {
        const auto i = static_cast<int>(b);
        const auto n = b == Bins::shells ? lattice.shells() : static_cast<std::int32_t>(lattice.orbits().size());
        bins[i] = GatherTables(std::move(powers[i]), n, places.threads, zero);
    }
    std::vector<float> factors;
    for (const std::int64_t modes : lattice.shell_multiplicity()) {
        factors.push_back(static_cast<float>(1.0 / static_cast<double>(modes)));
    }
    per_mode = DeviceArray<float>(factors);
}

}  // namespace fastcrit::cuda
