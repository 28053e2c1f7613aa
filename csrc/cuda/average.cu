// Averages over the samples of an ensemble: the fields less their mean first; then, once these have been measured, sums
// over samples. Every sum has one owner and one order, which the number of samples fixes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "finish.cuh"

namespace fastcrit::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kWarps = kBlock / 32;

/// add(sample, load(sample)) for every `step`th sample, in this order; AtOnce loads are on their way.
template <int AtOnce, class Load, class Add>
__device__ void for_each_sample(std::int64_t sample, std::int64_t samples, int step, const Load& load, const Add& add) {
    for (; sample < samples; sample += AtOnce * step) {
        decltype(load(sample)) values[AtOnce] = {};
        FASTCRIT_UNROLL
        for (int r = 0; r < AtOnce; ++r) {
            if (sample + r * step < samples) values[r] = load(sample + r * step);
        }
        FASTCRIT_UNROLL
        for (int r = 0; r < AtOnce; ++r) {
            if (sample + r * step < samples) add(sample + r * step, values[r]);
        }
    }
}

/// N neighbouring sites less their mean over samples. A block has 32 such groups of sites, and each of its warps a
/// share of the samples.
template <class T, int N>
__global__ void __launch_bounds__(kBlock, 1024 / kBlock)
    less_mean_field(const T* fields, std::int64_t samples, int pitch, float* out) {
    constexpr int at_once = N > 2 ? 4 : 8;
    FASTCRIT_SHARED(double, sums, kBlock* N);
    FASTCRIT_SHARED(double, means, 32 * N);
    const auto thread = static_cast<int>(threadIdx.x);
    const int lane = thread % 32;
    const int row = thread / 32;
    const int site = (static_cast<int>(blockIdx.x) * 32 + lane) * N;
    const bool there = site < pitch;
    const std::int64_t step = pitch / N;  // from a sample to the next
    const auto* const packs = reinterpret_cast<const Pack<T, N>*>(fields + (there ? site : 0));
    const auto load = [&](std::int64_t sample) { return packs[sample * step]; };
    double sum[N] = {};
    for_each_sample<at_once>(row, there ? samples : 0, kWarps, load, [&](std::int64_t, const Pack<T, N>& pack) {
        FASTCRIT_UNROLL
        for (int v = 0; v < N; ++v) sum[v] += static_cast<double>(to_float(pack.values[v]));
    });
    FASTCRIT_UNROLL
    for (int v = 0; v < N; ++v) sums[v * kBlock + thread] = sum[v];
    __syncthreads();
    if (row < N) {  // a warp for each of the N
        double total = 0.0;
        for (int w = 0; w < kWarps; ++w) total += sums[row * kBlock + w * 32 + lane];
        means[row * 32 + lane] = total / static_cast<double>(samples);
    }
    __syncthreads();
    double mean[N];
    FASTCRIT_UNROLL
    for (int v = 0; v < N; ++v) mean[v] = means[v * 32 + lane];
    auto* const to = reinterpret_cast<Pack<float, N>*>(out + (there ? site : 0));
    for_each_sample<at_once>(row, there ? samples : 0, kWarps, load, [&](std::int64_t sample, const Pack<T, N>& pack) {
        Pack<float, N> less;
        FASTCRIT_UNROLL
        for (int v = 0; v < N; ++v) {
            less.values[v] = static_cast<float>(static_cast<double>(to_float(pack.values[v])) - mean[v]);
        }
        to[sample * step] = less;
    });
}

/// A field less its mean over sites. A block a field.
template <class T>
__global__ void __launch_bounds__(kBlock, 1024 / kBlock)
    less_own_mean(const T* fields, int sites, float* out, double* means) {
    FASTCRIT_SHARED(double, of_warps, kWarps);
    FASTCRIT_SHARED(double, of_field, 1);
    const BlockTeam team{static_cast<int>(threadIdx.x), kBlock};
    const std::int64_t begin = std::int64_t{blockIdx.x} * sites;
    const auto value = [&](int site) { return static_cast<double>(to_float(fields[begin + site])); };
    double sum = 0.0;
    for (int site = team.thread; site < sites; site += kBlock) sum += value(site);
    sum = sum_of_team(team, sum, of_warps);
    if (team.thread == 0) {
        of_field[0] = sum / static_cast<double>(sites);
        means[blockIdx.x] = of_field[0];
    }
    __syncthreads();
    const double mean = of_field[0];
    for (int site = team.thread; site < sites; site += kBlock)
        out[begin + site] = static_cast<float>(value(site) - mean);
}

/// Sums over samples of one channel in one shell, and what follows from them.
__device__ void average_shell(const AverageRequest& a, int channel, int shell) {
    FASTCRIT_SHARED(double, of_totals, kWarps);
    FASTCRIT_SHARED(double, of_squares, kWarps);
    const Ensemble& to = a.ensemble;
    const BlockTeam team{static_cast<int>(threadIdx.x), kBlock};
    const std::int32_t begin = a.shell_begin[shell];
    const std::int32_t end = a.shell_begin[shell + 1];
    const double modes = a.shell_modes[shell];
    const auto power = [&](std::int64_t sample) {
        const float* const sums = a.sums + (sample * to.channels + channel) * a.orbits;
        double sum = 0.0;
        for (std::int32_t orbit = begin; orbit < end; ++orbit) sum += static_cast<double>(sums[orbit]);
        return sum;
    };
    const double first = power(0) / modes;  // about which squares have digits of small scatter
    double total = 0.0;
    double squares = 0.0;
    for (std::int64_t sample = team.thread; sample < a.samples; sample += kBlock) {
        const double sum = power(sample);
        const double apart = sum / modes - first;
        total += sum;
        squares += apart * apart;
    }
    total = sum_of_team(team, total, of_totals);
    squares = sum_of_team(team, squares, of_squares);
    if (team.thread != 0) return;
    to.note[1 + channel * (1 + a.shells) + 1 + shell] = total;
    if (shell >= to.kept) return;
    const auto n = static_cast<double>(a.samples);
    const bool ensemble = to.center == Center::ensemble;
    const double mean = total / modes / n;
    const double variance = fmax(squares / n - (mean - first) * (mean - first), 0.0);
    double* const means = to.means + std::int64_t{channel} * to.kept + shell;
    const double unbiased = ensemble ? n / (n - 1.0) : 1.0;
    means[0] = mean * unbiased;
    const bool few = a.samples < (ensemble ? 3 : 2);  // of which scatter cannot be told
    means[to.channels * to.kept] = few ? kNaN : sqrt(variance / (n - 1.0)) * unbiased;
}

/// The mean square of a channel's first sample, or of all samples' means: what rounding is measured by.
template <class T>
__device__ void note_square(const AverageRequest& a, const T* fields, int channel) {
    FASTCRIT_SHARED(double, of_squares, kWarps);
    const BlockTeam team{static_cast<int>(threadIdx.x), kBlock};
    const std::int64_t values = a.means != nullptr ? a.samples : a.sites;
    double square = 0.0;
    for (std::int64_t i = team.thread; i < values; i += kBlock) {
        const double value = a.means != nullptr
                                 ? a.means[i * a.ensemble.channels + channel]
                                 : static_cast<double>(to_float(fields[std::int64_t{channel} * a.sites + i]));
        square += value * value;
    }
    square = sum_of_team(team, square, of_squares);
    if (team.thread == 0) a.ensemble.note[1 + channel * (1 + a.shells)] = square / static_cast<double>(values);
}

/// One orbit of one place, of which there are blocks times channels.
__device__ void add_power(const AverageRequest& a, std::int64_t i) {
    const Ensemble& to = a.ensemble;
    const auto orbit = static_cast<int>(i % a.orbits);
    const std::int64_t place = i / a.orbits;
    const std::int64_t channel = place % to.channels;
    double sum = 0.0;
    for_each_sample<8>(
        place / to.channels, a.samples, static_cast<int>(to.blocks),
        [&](std::int64_t sample) { return a.sums[(sample * to.channels + channel) * a.orbits + orbit]; },
        [&](std::int64_t, float value) { sum += static_cast<double>(value); });
    to.power[i] = sum;
}

/// One axis of one place.
__device__ void add_first(const AverageRequest& a, std::int64_t i) {
    const Ensemble& to = a.ensemble;
    const auto axis = static_cast<int>(i % a.ndim);
    const std::int64_t place = i / a.ndim;
    const std::int64_t channel = place % to.channels;
    const std::int32_t at = axis == 0 ? a.along[0] : axis == 1 ? a.along[1] : a.along[2];
    const auto* const modes = reinterpret_cast<const Complex*>(a.modes);
    double sum = 0.0;
    for_each_sample<8>(
        place / to.channels, a.samples, static_cast<int>(to.blocks),
        [&](std::int64_t sample) { return modes[(sample * to.channels + channel) * a.selected + at]; },
        [&](std::int64_t, const Complex& mode) {
            const auto re = static_cast<double>(mode.re);
            const auto im = static_cast<double>(mode.im);
            sum += re * re + im * im;
        });
    to.first[i] = sum / static_cast<double>(a.sites);
}

template <class T>
__global__ void __launch_bounds__(kBlock, 1024 / kBlock)
    averages(const T* fields, const __grid_constant__ AverageRequest a) {
    const auto channels = static_cast<int>(a.ensemble.channels);
    auto block = static_cast<int>(blockIdx.x);
    if (block < channels * a.shells) return average_shell(a, block / a.shells, block % a.shells);
    block -= channels * a.shells;
    if (block < channels) return note_square(a, fields, block);
    block -= channels;
    const std::int64_t places = a.ensemble.blocks * channels;
    std::int64_t i = std::int64_t{block} * kBlock + threadIdx.x;
    if (i < places * a.orbits) return add_power(a, i);
    i -= places * a.orbits;
    if (i < places * a.ndim) add_first(a, i);
}

template <class T>
void launch_typed(const T* fields, const AverageRequest& request, void* stream) {
    const Ensemble& to = request.ensemble;
    const std::int64_t values = to.blocks * to.channels * (request.orbits + request.ndim);
    const std::int64_t blocks = to.channels * (request.shells + 1) + (values + kBlock - 1) / kBlock;
    if (blocks > INT32_MAX) throw std::invalid_argument("average: too large for one launch");
    launch(&averages<T>, dim3(static_cast<unsigned>(blocks)), dim3(kBlock), 0, stream, fields, request);
}

template <class T, int N>
void launch_mean_field(const T* fields, std::int64_t samples, std::int64_t pitch, float* out, void* stream) {
    constexpr int sites = 32 * N;
    if (pitch % N != 0) return launch_mean_field<T, 1>(fields, samples, pitch, out, stream);
    const dim3 blocks(static_cast<unsigned>((pitch + sites - 1) / sites));
    launch(&less_mean_field<T, N>, blocks, dim3(kBlock), 0, stream, fields, samples, static_cast<int>(pitch), out);
}

}  // namespace

void launch_less_mean_field(const Fields& fields, std::int64_t samples, std::int64_t pitch, float* out, void* stream) {
    if (pitch > INT32_MAX / 2) throw std::invalid_argument("average: too large for one launch");
    const void* const data = fields.data;
    switch (fields.type) {
        case Type::float32:
            return launch_mean_field<float, 2>(static_cast<const float*>(data), samples, pitch, out, stream);
        case Type::float16:
            return launch_mean_field<Half, 4>(static_cast<const Half*>(data), samples, pitch, out, stream);
        case Type::bfloat16:
            return launch_mean_field<BFloat16, 4>(static_cast<const BFloat16*>(data), samples, pitch, out, stream);
    }
}

void launch_less_own_mean(const Fields& fields, std::int64_t sites, float* out, double* means, void* stream) {
    if (fields.count > INT32_MAX) throw std::invalid_argument("average: too large for one launch");
    const auto run = [&](auto* data) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
        launch(&less_own_mean<T>, dim3(static_cast<unsigned>(fields.count)), dim3(kBlock), 0, stream, data,
               static_cast<int>(sites), out, means);
    };
    switch (fields.type) {
        case Type::float32: return run(static_cast<const float*>(fields.data));
        case Type::float16: return run(static_cast<const Half*>(fields.data));
        case Type::bfloat16: return run(static_cast<const BFloat16*>(fields.data));
    }
}

void launch_averages(const AverageRequest& request, void* stream) {
    const void* const data = request.ensemble.fields.data;
    switch (request.ensemble.fields.type) {
        case Type::float32: return launch_typed(static_cast<const float*>(data), request, stream);
        case Type::float16: return launch_typed(static_cast<const Half*>(data), request, stream);
        case Type::bfloat16: return launch_typed(static_cast<const BFloat16*>(data), request, stream);
    }
}

}  // namespace fastcrit::cuda
