// Adds what was measured in a batch to the sums of a record, one owner for each sum, sample after sample.
#include <algorithm>
#include <stdexcept>

#include "kernels.hpp"

namespace fastcrit::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kAtOnce = 8;  // loads on their way

struct RecordArguments {
    std::int64_t samples;
    std::int64_t first;
    std::int64_t places;  ///< blocks that get samples, times channels
    std::int64_t sites;
    std::int64_t orbits;
    std::int64_t low;  ///< values of the selected modes: 2 a mode
    int ndim;
    std::int32_t along[3];
    const float* sums;
    const float* modes;
    const double* totals;
    const float* sign_sums;
    Record record;
    long long* bad;
    // Where each role's blocks end: pixels, orbits, selected modes, moments, orbits of the signs.
    std::int64_t ends[5];
};

/// Which of the next kBlock samples are finite in all channels: a bit each, a word a warp. All threads call.
__device__ void find_finite(const RecordArguments& a, std::int64_t from, Shared<unsigned> words) {
    __syncthreads();
    const std::int64_t sample = from + threadIdx.x;
    bool good = sample < a.samples;
    for (std::int64_t c = 0; good && c < a.record.channels; ++c) {
        good = finite(a.totals[sample * a.record.channels + c]);
    }
    const unsigned word = __ballot_sync(~0U, good ? 1 : 0);
    if (threadIdx.x % 32 == 0) words[static_cast<int>(threadIdx.x / 32)] = word;
    __syncthreads();
}

/// Calls visit(sample) for the finite samples start, start + step, ..
template <class Visit>
__device__ void for_each_finite(const RecordArguments& a, std::int64_t start, std::int64_t step, const Visit& visit) {
    FASTCRIT_SHARED(unsigned, words, kBlock / 32);
    std::int64_t sample = start;
    for (std::int64_t from = 0; from < a.samples; from += kBlock) {
        find_finite(a, from, words);
        const std::int64_t end = from + kBlock < a.samples ? from + kBlock : a.samples;
        for (; sample < end; sample += step) {
            const int i = static_cast<int>(sample - from);
            const unsigned word = words[i / 32];
            if ((word >> i % 32 & 1U) != 0) visit(sample);
        }
    }
}

/// A place among those that get samples: its first sample, and where it is in the record.
struct Place {
    std::int64_t sample, channel, block, index;

    __device__ Place(const RecordArguments& a, std::int64_t i)
        : sample(i / a.record.channels),
          channel(i % a.record.channels),
          block((a.first + sample) % a.record.blocks),
          index(block * a.record.channels + channel) {}
};

/// One site of one channel: the sum over all samples, and of the signs.
template <class T>
__device__ void add_pixels(const RecordArguments& a, const T* fields, std::int64_t i) {
    FASTCRIT_SHARED(unsigned, words, kBlock / 32);
    const std::int64_t pitch = a.record.channels * a.sites;
    const bool there = i < pitch;
    const bool signs = a.record.sign_field != nullptr;
    double sum = there ? a.record.field[i] : 0.0;
    double sign_sum = there && signs ? a.record.sign_field[i] : 0.0;
    for (std::int64_t from = 0; from < a.samples; from += kBlock) {
        find_finite(a, from, words);
        const int n = static_cast<int>(from + kBlock < a.samples ? kBlock : a.samples - from);
        const T* const pixel = fields + from * pitch + (there ? i : 0);
        for (int begin = 0; begin < n; begin += kAtOnce) {
            T values[kAtOnce] = {};
            FASTCRIT_UNROLL
            for (int r = 0; r < kAtOnce; ++r) {
                if (begin + r < n) values[r] = pixel[(begin + r) * pitch];
            }
            const unsigned word = words[begin / 32];
            FASTCRIT_UNROLL
            for (int r = 0; r < kAtOnce; ++r) {
                // No bit is set past the last sample.
                if ((word >> (begin + r) % 32 & 1U) == 0) continue;
                const float value = to_float(values[r]);
                sum += static_cast<double>(value);
                sign_sum += value >= 0.0F ? 1.0 : -1.0;
            }
        }
    }
    if (!there) return;
    a.record.field[i] = sum;
    if (signs) a.record.sign_field[i] = sign_sum;
}

/// A field's sum over sites less that of its channel's offset.
__device__ double total_about(const RecordArguments& a, std::int64_t field, std::int64_t channel) {
    const double offset = a.record.offset != nullptr ? a.record.offset[channel] : 0.0;
    return a.totals[field] - static_cast<double>(a.sites) * offset;
}

/// One orbit of one place. k = 0 is the first; of fields, as the totals have it.
__device__ void add_power(const RecordArguments& a, const float* sums, double* power, bool zero_from_totals,
                          std::int64_t i) {
    const bool there = i < a.places * a.orbits;
    const std::int64_t orbit = i % a.orbits;
    const Place place(a, there ? i / a.orbits : 0);
    double* const to = power + place.index * a.orbits + orbit;
    double sum = there ? *to : 0.0;
    for_each_finite(a, there ? place.sample : a.samples, a.record.blocks, [&](std::int64_t sample) {
        const std::int64_t field = sample * a.record.channels + place.channel;
        if (zero_from_totals && orbit == 0) {
            const double total = total_about(a, field, place.channel);
            sum += total * (total / static_cast<double>(a.sites));
        } else {
            sum += static_cast<double>(sums[field * a.orbits + orbit]);
        }
    });
    if (there) *to = sum;
}

/// Real or imaginary part of one selected mode of one place. k = 0 is the first.
__device__ void add_low(const RecordArguments& a, std::int64_t i) {
    const bool there = i < a.places * a.low;
    const std::int64_t part = i % a.low;
    const Place place(a, there ? i / a.low : 0);
    double* const to = a.record.low + place.index * a.low + part;
    double sum = there ? *to : 0.0;
    for_each_finite(a, there ? place.sample : a.samples, a.record.blocks, [&](std::int64_t sample) {
        const std::int64_t field = sample * a.record.channels + place.channel;
        if (part == 0) {
            sum += total_about(a, field, place.channel);
        } else if (part > 1) {
            sum += static_cast<double>(a.modes[field * a.low + part]);
        }
    });
    if (there) *to = sum;
}

/// Moments, first modes and number of samples of one place, and what is wrong with it.
__device__ void add_moments(const RecordArguments& a, std::int64_t i) {
    const bool there = i < a.places;
    const Place place(a, there ? i : 0);
    double moments[4] = {};
    double first[3] = {};
    long long samples = 0;
    if (there) {
        for (int n = 0; n < 4; ++n) moments[n] = a.record.moments[place.index * 4 + n];
        FASTCRIT_UNROLL
        for (int axis = 0; axis < 3; ++axis) {
            if (axis < a.ndim) first[axis] = a.record.first[place.index * a.ndim + axis];
        }
    }
    const auto sites = static_cast<double>(a.sites);
    const double offset = a.record.offset != nullptr ? a.record.offset[place.channel] : 0.0;
    for_each_finite(a, there ? place.sample : a.samples, a.record.blocks, [&](std::int64_t sample) {
        const std::int64_t field = sample * a.record.channels + place.channel;
        const double u = (a.totals[field] - sites * offset) / sites;
        const double m = u + offset;
        // |m| - |offset|, without a difference of large numbers where the signs are those of most fields
        const double v = (m < 0.0) == (offset < 0.0) ? (offset < 0.0 ? -u : u) : fabs(m) - fabs(offset);
        moments[0] += u;
        moments[1] += v;
        moments[2] += v * v;
        moments[3] += m * m * m * m;
        FASTCRIT_UNROLL
        for (int axis = 0; axis < 3; ++axis) {
            if (axis >= a.ndim) continue;
            const std::int32_t at = a.along[axis];
            const float* const mode = a.modes + field * a.low + 2 * at;
            const double re = at == 0 ? u * sites : static_cast<double>(mode[0]);
            const double im = at == 0 ? 0.0 : static_cast<double>(mode[1]);
            first[axis] += (re * re + im * im) / sites;
        }
        ++samples;
    });
    if (!there) return;
    for (int n = 0; n < 4; ++n) a.record.moments[place.index * 4 + n] = moments[n];
    FASTCRIT_UNROLL
    for (int axis = 0; axis < 3; ++axis) {
        if (axis < a.ndim) a.record.first[place.index * a.ndim + axis] = first[axis];
    }
    if (place.channel == 0) a.record.count[place.block] += samples;
    for (std::int64_t sample = place.sample; sample < a.samples; sample += a.record.blocks) {
        if (finite(a.totals[sample * a.record.channels + place.channel])) continue;
        atomicMin(a.bad, static_cast<long long>((a.first + sample) * a.record.channels + place.channel));
        break;
    }
}

template <class T>
__global__ void __launch_bounds__(kBlock, 1024 / kBlock) record(const T* fields, RecordArguments a) {
    int role = 0;
    while (blockIdx.x >= a.ends[role]) ++role;
    const std::int64_t begin = role == 0 ? 0 : a.ends[role - 1];
    const std::int64_t i = (blockIdx.x - begin) * kBlock + threadIdx.x;
    switch (role) {
        case 0: return add_pixels(a, fields, i);
        case 1: return add_power(a, a.sums, a.record.power, true, i);
        case 2: return add_low(a, i);
        case 3: return add_moments(a, i);
        default: return add_power(a, a.sign_sums, a.record.sign_power, false, i);
    }
}

}  // namespace

void launch_record(const RecordRequest& request, void* stream) {
    const Record& to = request.record;
    RecordArguments a{};
    a.samples = request.batch.fields.count / to.channels;
    a.first = request.batch.first;
    a.places = std::min(to.blocks, a.samples) * to.channels;
    a.sites = request.sites;
    a.orbits = request.orbits;
    a.low = 2 * request.n_selected;
    a.ndim = request.ndim;
    std::copy(request.along, request.along + 3, a.along);
    a.sums = request.batch.sums;
    a.modes = request.batch.modes;
    a.totals = request.batch.totals;
    a.sign_sums = request.batch.sign_sums;
    a.record = to;
    a.bad = reinterpret_cast<long long*>(request.bad);
    const std::int64_t sizes[5] = {to.channels * a.sites, a.places * a.orbits, a.places * a.low, a.places,
                                   to.sign_power != nullptr ? a.places * a.orbits : 0};
    std::int64_t blocks = 0;
    for (int role = 0; role < 5; ++role) a.ends[role] = blocks += (sizes[role] + kBlock - 1) / kBlock;
    if (blocks > INT32_MAX) throw std::invalid_argument("record: too large for one launch");

    const auto run = [&](auto* fields) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(fields)>>;
        launch(&record<T>, dim3(static_cast<unsigned>(blocks)), dim3(kBlock), 0, stream, fields, a);
    };
    switch (request.batch.fields.type) {
        case Type::float32: return run(static_cast<const float*>(request.batch.fields.data));
        case Type::float16: return run(static_cast<const Half*>(request.batch.fields.data));
        case Type::bfloat16: return run(static_cast<const BFloat16*>(request.batch.fields.data));
    }
}

}  // namespace fastcrit::cuda
