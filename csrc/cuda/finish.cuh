// What a field's threads do once its transform lies in shared memory: selected modes, powers, sums by bin, and whether
// they are numbers. The same for every shape.
//
// Rows 2 p and 2 p + 1 of a field are the real and imaginary part of row p of a complex array, half as high, whose
// transform Z holds that of the field:
//   E = Z(ky, kx) + conj Z(-ky, -kx),  O = -i (Z(ky, kx) - conj Z(-ky, -kx)),  2 phi^(ky or ky + half, kx) = E +- w O
// with w = exp(-2 pi i ky / height).
#pragma once

#include <cfloat>
#include <cmath>
#include <limits>

#include "faults.hpp"
#include "kernels.hpp"

namespace fastcrit::cuda {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// The threads of one field, a number known when the kernel is compiled; several fields may share a block.
template <int Threads>
struct FixedTeam {
    static constexpr int threads = Threads;
    static constexpr int most_warps = Threads / 32 > 1 ? Threads / 32 : 1;
    int thread;

    __device__ void wait() const {
        if (Threads <= 32) {
            __syncwarp();
        } else {
            __syncthreads();
        }
    }
};

/// All threads of a block, whole warps.
struct BlockTeam {
    static constexpr int most_warps = 32;
    int thread;
    int threads;

    __device__ void wait() const { __syncthreads(); }
};

/// Sum over a field's threads, for the first of them. `of_warps` holds a value for each warp; all threads call.
template <class Team, class T>
__device__ T sum_of_team(const Team& team, T value, const Shared<T>& of_warps) {
    value = sum_lanes(value, team.threads < 32 ? team.threads : 32);
    if (team.threads <= 32) return value;
    if (team.thread % 32 == 0) of_warps[team.thread / 32] = value;
    __syncthreads();
    if (team.thread != 0) return value;
    value = T{};
    for (int w = 0; w < team.threads / 32; ++w) value += of_warps[w];
    return value;
}

__device__ inline float sign(float value) { return value >= 0.0F ? 1.0F : -1.0F; }

/// What is nearly all of a field, if it has that: it would drown the rest in the rounding of the transform. The middle
/// one of three pixels, where it is so many times as large as its distance from the next; otherwise 0.
template <class T>
__device__ float uniform_part(const T* field, const View& view, int height, int width) {
    if (view.signs) return 0.0F;
    const int places[3] = {0, height * width / 2 + width / 3, height * width - 1};
    float pixel[3] = {};
    FASTCRIT_UNROLL
    for (int i = 0; i < 3; ++i) {
        pixel[i] = to_float(field[places[i]]) - (view.offset != nullptr ? view.offset[places[i]] : 0.0F);
    }
    const float low = fminf(pixel[0], pixel[1]);
    const float high = fmaxf(pixel[0], pixel[1]);
    const float middle = fmaxf(low, fminf(high, pixel[2]));
    const float next = fminf(middle - fminf(low, pixel[2]), fmaxf(high, pixel[2]) - middle);
    constexpr float heavy = 32.0F;
    return finite(middle) && fabsf(middle) > heavy * next ? middle : 0.0F;
}

/// 2 phi^ at (ky, kx) and (ky + half, kx).
struct Separated {
    Complex lower, upper;
};

/// From Z(ky, kx), Z(-ky, -kx) and exp(-2 pi i ky / height).
__device__ inline Separated separate(Complex here, Complex mirror, Complex root) {
    const Complex b = conj(mirror);
    const Complex turned = minus_i(here - b) * root;
    return {here + b + turned, here + b - turned};
}

/// A butterfly's values, whose real parts are in row 2 r of the field and imaginary parts in row 2 r + 1, `apart`
/// pixels from one to the next: as `view` sees them, less what is uniform. Adds them to `total`, if wanted.
template <int Radix, class T>
__device__ void read_pixels(const T* pixels, const float* offset, const View& view, float uniform, int apart, int width,
                            bool want_total, double& total, Complex (&z)[Radix]) {
    FASTCRIT_UNROLL
    for (int j = 0; j < Radix; ++j) z[j] = {to_float(pixels[j * apart]), to_float(pixels[j * apart + width])};
    if (view.signs) {
        FASTCRIT_UNROLL
        for (int j = 0; j < Radix; ++j) z[j] = {sign(z[j].re), sign(z[j].im)};
    } else if (view.offset != nullptr) {
        FASTCRIT_UNROLL
        for (int j = 0; j < Radix; ++j) z[j] = z[j] - Complex{offset[j * apart], offset[j * apart + width]};
    }
    if (want_total) {
        FASTCRIT_UNROLL
        for (int j = 0; j < Radix; ++j) total += static_cast<double>(z[j].re) + static_cast<double>(z[j].im);
    }
    if (uniform != 0.0F) {
        FASTCRIT_UNROLL
        for (int j = 0; j < Radix; ++j) z[j] = z[j] - Complex{uniform, uniform};
    }
}

/// Writes the powers of the modes (ky, kx) and (ky + half, kx), with those of their mirror images, over Z(ky, kx); to
/// k = 0, the first pair, comes what is uniform.
template <class Team>
__device__ void square_all(const Team& team, const FieldRequest& request, const Shared<Complex>& values, int base,
                           float uniform) {
    FASTCRIT_UNROLL_BY(2)
    for (int i = team.thread; i < request.n_pairs; i += team.threads) {
        const Pair pair = request.pairs[i];
        auto both = separate(values[base + pair.here], values[base + pair.mirror], pair.root);
        if (i == 0) both.lower.re += 2.0F * request.sites * uniform;
        values[base + pair.here] = {norm(both.lower) * pair.scale, norm(both.upper) * pair.scale};
    }
}

/// Sums by bin. Returns whether all that this thread knows are finite; `power` becomes the sum of those that are its
/// own.
template <class Team>
__device__ bool sum_bins(const Team& team, const FieldRequest& request, const Shared<float>& powers, int base,
                         float* out, float& power) {
    const Gather& bins = request.bins;
    const int lanes = 1 << bins.lane_bits;
    const int groups = team.threads >> bins.lane_bits;
    const int group = team.thread >> bins.lane_bits;
    const bool first_lane = (team.thread & (lanes - 1)) == 0;
    bool good = true;
    int step = 0;
    for (int round = 0; round < bins.rounds; ++round) {
        float sums[2] = {};  // of at most eight values
        const int end = bins.begin[round + 1];
        FASTCRIT_UNROLL_BY(2)
        for (; step < end; ++step) {
            const Pack<std::uint16_t, 4> at = bins.at[step * team.threads + team.thread];
            FASTCRIT_UNROLL
            for (int v = 0; v < 4; ++v) {
                if (kFault == Fault::partial_warp && v == 0 && lanes > 1 && step == end - 1) continue;
                sums[v % 2] += powers[base + at.values[v]];
            }
        }
        const float all = sum_lanes(sums[0] + sums[1], lanes);
        good = good && finite(all);
        const int bin = round * groups + group;
        if (!first_lane || bin >= bins.bins) continue;
        power += all;
        if (out != nullptr && bin < request.kept) out[bin] = request.scale != nullptr ? all * request.scale[bin] : all;
    }
    return good;
}

/// Whether one of this thread's share of a field's values, as `view` sees them, is not 0.
template <class Team, class T>
__device__ bool any_nonzero(const Team& team, const T* field, const View& view, int sites) {
    bool found = view.signs;
    for (int i = team.thread; i < sites; i += team.threads) {
        found = found || to_float(field[i]) - (view.offset != nullptr ? view.offset[i] : 0.0F) != 0.0F;
    }
    return found;
}

/// From the transform, of which all threads know, to what was asked for. `total` is the thread's share of the sum over
/// sites.
template <class Team, class T>
__device__ void finish_field(const Team& team, const FieldRequest& request, const Shared<Complex>& values, int base,
                             std::int64_t field, bool active, const T* pixels, float uniform, double total) {
    const Shared<float> words = values.template as<float>();
    FASTCRIT_SHARED(double, parts, Team::most_warps);
    FASTCRIT_SHARED(float, of_warps, Team::most_warps);
    FASTCRIT_SHARED(float, whole, 1);
    if (request.totals != nullptr) {
        total = sum_of_team(team, total, parts);
        if (active && team.thread == 0) request.totals[field] = total;
    }
    if (team.thread == 0) words[2 * base + request.zero] = 0.0F;
    if (request.modes != nullptr) {
        for (int i = team.thread; i < request.n_selected; i += team.threads) {
            const ModePlace place = request.selected[i];
            const auto both = separate(values[base + place.here], values[base + place.mirror], request.roots[place.ky]);
            Complex mode = place.upper != 0 ? both.upper : both.lower;
            if (place.here == request.pairs[0].here && place.upper == 0) mode.re += 2.0F * request.sites * uniform;
            if (active) request.modes[field * request.n_selected + i] = {0.5F * mode.re, 0.5F * mode.im};
        }
        team.wait();
    }
    square_all(team, request, values, base, uniform);
    team.wait();
    float power = 0.0F;
    const bool good =
        sum_bins(team, request, words, 2 * base, active ? request.sums + field * request.kept : nullptr, power);
    if (request.totals == nullptr && request.bad == nullptr) return;

    // After the barriers, and so after the total. All who write write the same.
    const auto refuse = [&] {
        if (!active) return;
        if (request.totals != nullptr) request.totals[field] = kNaN;
        if (request.bad != nullptr) atomicMin(request.bad, static_cast<long long>(field));
    };
    if (!good) refuse();
    power = sum_of_team(team, power, of_warps);
    if (team.threads > 32) {
        if (team.thread == 0) whole[0] = power;
        __syncthreads();
        power = whole[0];
    }
    // float does not hold the squares of such a field, unless it is 0 everywhere.
    if (power < request.least && any_nonzero(team, pixels, request.view, static_cast<int>(request.sites))) refuse();
}

}  // namespace fastcrit::cuda
