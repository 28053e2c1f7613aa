// Adds what was measured in a batch to the sums of a record. A sum has owners, one for each piece of the batch, and the
// pieces' sums are added in their order: how many pieces there are follows from the batch and the record alone, so that
// the same batches give the same bits.
#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "kernels.hpp"

namespace fastcrit::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kWarps = kBlock / 32;
constexpr int kMoments = 8;  // of a place: four moments, three first modes, the number of samples

enum RoleName { kPixels, kOrbits, kLow, kOfPlace, kSignOrbits, kCross, kRoles };

/// One kind of sums: `values` of them, of each of `pieces` pieces of `length` samples.
struct Role {
    int values;
    int pieces;
    int length;
    int blocks;            ///< of one piece
    int end;               ///< where its blocks end, after those of the roles before
    std::int64_t partial;  ///< where its pieces' sums begin in the scratch, [piece][value]
};

struct RecordArguments {
    int samples, channels, blocks;
    std::int64_t first;  ///< number of the first sample
    int first_block;     ///< and the block that it is in
    int places;          ///< blocks that get samples, times channels
    int sites;
    int orbits;
    int low;  ///< values of the selected modes: 2 a mode
    int ndim;
    std::int32_t along[3];
    const float* sums;
    const float* modes;
    const double* totals;
    const float* sign_sums;
    Record record;
    Cross cross;
    long long* bad;
    double* scratch;
    Role roles[kRoles];
};

/// A place among those that get samples: its first sample, and where it is in the record.
struct Place {
    int sample, channel, block, index;

    __device__ Place(const RecordArguments& a, int i)
        : sample(i / a.channels),
          channel(i % a.channels),
          block((a.first_block + sample) % a.blocks),
          index(block * a.channels + channel) {}
    /// Where value i of so many of each place is.
    __device__ std::int64_t value(int values, int i) const { return std::int64_t{index} * values + i; }
};

/// Which jackknife block's, and which product of channels.
struct CrossPlace {
    int sample, shell, a, b;

    __device__ CrossPlace(const RecordArguments& of, int i) {
        const int pairs = of.channels * (of.channels + 1) / 2;
        int pair = i % pairs;
        shell = i / pairs % of.cross.shells;
        sample = i / pairs / of.cross.shells;
        a = 0;
        while (pair >= of.channels - a) pair -= of.channels - a++;
        b = a + pair;
    }
};

/// Adds to a sum of the record.
__device__ void add_to_record(const RecordArguments& a, int role, int i, double value) {
    const int pitch = a.channels * a.sites;
    switch (role) {
        case kPixels: (i < pitch ? a.record.field[i] : a.record.sign_field[i - pitch]) += value; break;
        case kOrbits: a.record.power[Place(a, i / a.orbits).value(a.orbits, i % a.orbits)] += value; break;
        case kLow: a.record.low[Place(a, i / a.low).value(a.low, i % a.low)] += value; break;
        case kSignOrbits: a.record.sign_power[Place(a, i / a.orbits).value(a.orbits, i % a.orbits)] += value; break;
        case kOfPlace: {
            const Place place(a, i / kMoments);
            const int k = i % kMoments;
            if (k < 4) {
                a.record.moments[place.value(4, k)] += value;
            } else if (k < 7) {
                if (k - 4 < a.ndim) a.record.first[place.value(a.ndim, k - 4)] += value;
            } else if (place.channel == 0) {
                a.record.count[place.block] += static_cast<std::int64_t>(value);
            }
            break;
        }
        default: {
            const CrossPlace place(a, i);
            const int block = (a.first_block + place.sample) % a.blocks;
            double* const products =
                a.cross.sums + (std::int64_t{block} * a.cross.shells + place.shell) * a.channels * a.channels;
            products[place.a * a.channels + place.b] += value;
            if (place.a != place.b) products[place.b * a.channels + place.a] += value;
        }
    }
}

/// What a piece adds: to the record where it is the only one, otherwise noted.
__device__ void give(const RecordArguments& a, int role, int piece, int i, double sum) {
    const Role& of = a.roles[role];
    if (of.pieces == 1) {
        add_to_record(a, role, i, sum);
    } else {
        a.scratch[of.partial + std::int64_t{piece} * of.values + i] = sum;
    }
}

/// Which of the next kBlock samples are finite in all channels: a bit each, a word a warp. All threads call.
__device__ void find_finite(const RecordArguments& a, int from, int end, const Shared<unsigned>& words) {
    __syncthreads();
    const int sample = from + static_cast<int>(threadIdx.x);
    bool good = sample < end;
    for (int c = 0; good && c < a.channels; ++c) {
        good = finite(a.totals[sample * a.channels + c]);
    }
    const unsigned word = __ballot_sync(~0U, good ? 1 : 0);
    if (threadIdx.x % 32 == 0) words[static_cast<int>(threadIdx.x / 32)] = word;
    __syncthreads();
}

/// add(load(sample)) for the finite samples of a piece that are `start`, modulo the blocks; AtOnce loads on their way.
template <int AtOnce, class Load, class Add>
__device__ void for_each_finite(const RecordArguments& a, const Role& role, int piece, bool there, int start, int step,
                                const Load& load, const Add& add) {
    FASTCRIT_SHARED(unsigned, words, kWarps);
    const int begin = piece * role.length;
    const int end = begin + role.length < a.samples ? begin + role.length : a.samples;
    int sample = begin + (start + step - begin % step) % step;
    for (int from = begin; from < end; from += kBlock) {
        find_finite(a, from, end, words);
        const int to = from + kBlock < end ? from + kBlock : end;
        while (there && sample < to) {
            decltype(load(sample)) values[AtOnce] = {};
            FASTCRIT_UNROLL
            for (int r = 0; r < AtOnce; ++r) {
                if (sample + r * step < to) values[r] = load(sample + r * step);
            }
            FASTCRIT_UNROLL
            for (int r = 0; r < AtOnce; ++r) {
                if (sample >= to) break;
                const auto i = static_cast<int>(sample - from);
                if ((words[i / 32] >> i % 32 & 1U) != 0) add(values[r]);
                sample += step;
            }
        }
    }
}

/// N neighbouring sites of one channel: sums over samples, and of the signs.
template <class T, int N>
__device__ void add_pixels(const RecordArguments& a, const T* fields, int piece, int i) {
    const int pitch = a.channels * a.sites;
    const bool there = i * N < pitch;
    const bool signs = a.record.sign_field != nullptr;
    double sums[N] = {};
    int above[N] = {};
    int samples = 0;
    const auto* const packs = reinterpret_cast<const Pack<T, N>*>(fields + (there ? i * N : 0));
    for_each_finite<(N > 2 ? 6 : 8)>(
        a, a.roles[kPixels], piece, there, 0, 1, [&](int sample) { return packs[std::int64_t{sample} * (pitch / N)]; },
        [&](const Pack<T, N>& pack) {
            FASTCRIT_UNROLL
            for (int v = 0; v < N; ++v) {
                const float value = to_float(pack.values[v]);
                sums[v] += static_cast<double>(value);
                above[v] += value >= 0.0F ? 1 : 0;
            }
            ++samples;
        });
    if (!there) return;
    FASTCRIT_UNROLL
    for (int v = 0; v < N; ++v) {
        give(a, kPixels, piece, i * N + v, sums[v]);
        if (signs) give(a, kPixels, piece, pitch + i * N + v, static_cast<double>(2 * above[v] - samples));
    }
}

/// A field's sum over sites less that of its channel's offset.
__device__ double total_about(const RecordArguments& a, int field, int channel) {
    const double offset = a.record.offset != nullptr ? a.record.offset[channel] : 0.0;
    return a.totals[field] - static_cast<double>(a.sites) * offset;
}

/// One orbit of one place. k = 0 is the first; of fields, as the totals have it.
__device__ void add_power(const RecordArguments& a, const float* sums, int role, int piece, int i) {
    const bool there = i < a.places * a.orbits;
    const int orbit = i % a.orbits;
    const Place place(a, there ? i / a.orbits : 0);
    const bool zero = role == kOrbits && orbit == 0;
    double sum = 0.0;
    for_each_finite<8>(
        a, a.roles[role], piece, there, place.sample, a.blocks,
        [&](int sample) {
            const int field = sample * a.channels + place.channel;
            if (!zero) return static_cast<double>(sums[std::int64_t{field} * a.orbits + orbit]);
            const double total = total_about(a, field, place.channel);
            return total * (total / static_cast<double>(a.sites));
        },
        [&](double value) { sum += value; });
    if (there) give(a, role, piece, i, sum);
}

/// Real or imaginary part of one selected mode of one place. k = 0 is the first, and real.
__device__ void add_low(const RecordArguments& a, int piece, int i) {
    const bool there = i < a.places * a.low;
    const int part = i % a.low;
    const Place place(a, there ? i / a.low : 0);
    double sum = 0.0;
    for_each_finite<8>(
        a, a.roles[kLow], piece, there && part != 1, place.sample, a.blocks,
        [&](int sample) {
            const int field = sample * a.channels + place.channel;
            if (part == 0) return total_about(a, field, place.channel);
            return static_cast<double>(a.modes[std::int64_t{field} * a.low + part]);
        },
        [&](double value) { sum += value; });
    if (there) give(a, kLow, piece, i, sum);
}

/// One moment, first mode or the number of samples of one place, and what is wrong with it.
__device__ void add_moment(const RecordArguments& a, int piece, int i) {
    const bool there = i < a.places * kMoments;
    const Place place(a, there ? i / kMoments : 0);
    const int k = i % kMoments;
    const std::int32_t along = k < 4 || k > 6 ? 0 : k == 4 ? a.along[0] : k == 5 ? a.along[1] : a.along[2];
    const auto sites = static_cast<double>(a.sites);
    const double offset = a.record.offset != nullptr ? a.record.offset[place.channel] : 0.0;
    const int step = a.blocks;
    double sum = 0.0;
    for_each_finite<2>(
        a, a.roles[kOfPlace], piece, there, place.sample, step,
        [&](int sample) {
            const int field = sample * a.channels + place.channel;
            if (along != 0) {
                const float* const mode = a.modes + std::int64_t{field} * a.low + 2 * along;
                const auto re = static_cast<double>(mode[0]);
                const auto im = static_cast<double>(mode[1]);
                return (re * re + im * im) / sites;
            }
            const double u = total_about(a, field, place.channel) / sites;
            const double m = u + offset;
            if (k == 0) return u;
            if (k == 3) return m * m * m * m;
            if (k == 7) return 1.0;
            if (k > 3) return u * (u * sites);
            // |m| - |offset|, without a difference of large numbers where the signs are those of most fields
            const double v = (m < 0.0) == (offset < 0.0) ? (offset < 0.0 ? -u : u) : fabs(m) - fabs(offset);
            return k == 1 ? v : v * v;
        },
        [&](double value) { sum += value; });
    if (!there) return;
    give(a, kOfPlace, piece, i, sum);
    if (k != 7) return;
    const Role& role = a.roles[kOfPlace];
    const int begin = piece * role.length;
    const int end = begin + role.length < a.samples ? begin + role.length : a.samples;
    for (int sample = begin + (place.sample + step - begin % step) % step; sample < end; sample += step) {
        if (finite(a.totals[sample * a.channels + place.channel])) continue;
        atomicMin(a.bad, static_cast<long long>((a.first + sample) * a.channels + place.channel));
        break;
    }
}

/// One product of channels in one shell, of one jackknife block, by a warp: a lane for some of the shell's modes.
__device__ void add_cross(const RecordArguments& a, int piece, int chunk) {
    const int i = chunk * kWarps + static_cast<int>(threadIdx.x / 32);
    const bool there = i < a.roles[kCross].values;
    const CrossPlace place(a, there ? i : 0);
    const std::int32_t begin = a.cross.begin[place.shell];
    const std::int32_t end = a.cross.begin[place.shell + 1];
    double sum = 0.0;
    for_each_finite<1>(
        a, a.roles[kCross], piece, there, place.sample, a.blocks,
        [&](int sample) {
            const int field[2] = {sample * a.channels + place.a, sample * a.channels + place.b};
            double product = 0.0;
            for (std::int32_t m = begin + static_cast<int>(threadIdx.x % 32); m < end; m += 32) {
                const std::int32_t at = a.cross.at[m];
                double re[2];
                double im[2];
                FASTCRIT_UNROLL
                for (int n = 0; n < 2; ++n) {
                    const float* const mode = a.modes + std::int64_t{field[n]} * a.low + 2 * at;
                    re[n] =
                        at == 0 ? total_about(a, field[n], n == 0 ? place.a : place.b) : static_cast<double>(mode[0]);
                    im[n] = at == 0 ? 0.0 : static_cast<double>(mode[1]);
                }
                product += a.cross.weight[m] * (re[0] * re[1] + im[0] * im[1]);
            }
            return product;
        },
        [&](double value) { sum += value; });
    sum = sum_lanes(sum, 32);
    if (there && threadIdx.x % 32 == 0) give(a, kCross, piece, i, sum);
}

template <class T, int N>
__global__ void __launch_bounds__(kBlock, 1024 / kBlock)
    record(const T* fields, const __grid_constant__ RecordArguments a) {
    int role = 0;
    const auto all = static_cast<int>(blockIdx.x);
    while (all >= a.roles[role].end) ++role;
    const int block = all - (role == 0 ? 0 : a.roles[role - 1].end);
    const int piece = block / a.roles[role].blocks;
    const int chunk = block % a.roles[role].blocks;
    const int i = chunk * kBlock + static_cast<int>(threadIdx.x);
    switch (role) {
        case kPixels: return add_pixels<T, N>(a, fields, piece, i);
        case kOrbits: return add_power(a, a.sums, kOrbits, piece, i);
        case kLow: return add_low(a, piece, i);
        case kOfPlace: return add_moment(a, piece, i);
        case kSignOrbits: return add_power(a, a.sign_sums, kSignOrbits, piece, i);
        default: return add_cross(a, piece, chunk);
    }
}

/// Adds the pieces' sums of every value, in their order.
__global__ void __launch_bounds__(kBlock, 1024 / kBlock) add_pieces(const __grid_constant__ RecordArguments a) {
    std::int64_t i = std::int64_t{blockIdx.x} * kBlock + threadIdx.x;
    for (int role = 0; role < kRoles; ++role) {
        const Role& of = a.roles[role];
        if (of.pieces == 1) continue;
        if (i < of.values) {
            double sum = 0.0;
            const double* const partial = a.scratch + of.partial + i;
            FASTCRIT_UNROLL_BY(8)
            for (int piece = 0; piece < of.pieces; ++piece) sum += partial[std::int64_t{piece} * of.values];
            return add_to_record(a, role, static_cast<int>(i), sum);
        }
        i -= of.values;
    }
}

constexpr double kSmallestRatio = 64.0;  // as in fastcrit/_kernels/offset.py
constexpr double kLeastScatter = 1.0 / static_cast<double>(std::int64_t{1} << 40);

/// Sum of a value of each of the block's threads, for all of them.
__device__ double sum_block(double value, const Shared<double>& of_warps) {
    value = sum_lanes(value, 32);
    __syncthreads();
    if (threadIdx.x % 32 == 0) of_warps[static_cast<int>(threadIdx.x / 32)] = value;
    __syncthreads();
    value = 0.0;
    for (int w = 0; w < kWarps; ++w) value += of_warps[w];
    return value;
}

/// What the sums of k = 0 of a level without samples are about: see fastcrit/_kernels/offset.py. A block a channel.
template <class T>
__global__ void __launch_bounds__(kBlock, 1024 / kBlock)
    fix_offset(const T* sample, std::int64_t sites, const std::int64_t* count, std::int64_t blocks, double* offset) {
    FASTCRIT_SHARED(double, of_warps, kWarps);
    const T* const field = sample + blockIdx.x * sites;
    double samples = 0.0;
    double sum = 0.0;
    for (std::int64_t i = threadIdx.x; i < blocks; i += kBlock) samples += static_cast<double>(count[i]);
    for (std::int64_t i = threadIdx.x; i < sites; i += kBlock) sum += static_cast<double>(to_float(field[i]));
    samples = sum_block(samples, of_warps);
    const double mean = sum_block(sum, of_warps) / static_cast<double>(sites);
    double squares = 0.0;
    for (std::int64_t i = threadIdx.x; i < sites; i += kBlock) {
        const double less = static_cast<double>(to_float(field[i])) - mean;
        squares += less * less;
    }
    squares = sum_block(squares, of_warps);
    if (threadIdx.x != 0 || samples > 0.0) return;
    const double scatter = fmax(sqrt(squares / static_cast<double>(sites)), kLeastScatter * fabs(mean));
    const bool heavy = finite(scatter) && finite(mean) && fabs(mean) > kSmallestRatio * scatter;
    const double unit = heavy ? ldexp(1.0, ilogb(8.0 * scatter) + 1) : 1.0;
    offset[blockIdx.x] = heavy ? rint(mean / unit) * unit : 0.0;
}

std::int64_t divided(std::int64_t n, std::int64_t by) { return (n + by - 1) / by; }

/// Threads that keep any device busy; pieces of which so many are worth adding up.
constexpr std::int64_t kThreads = std::int64_t{1} << 17;
constexpr std::int64_t kMostPieces = 256;

struct Plan {
    Role roles[kRoles] = {};
    std::int64_t scratch = 0;   ///< values
    std::int64_t combined = 0;  ///< sums of several pieces

    /// `pack` sites are a thread's.
    Plan(const RecordSize& size, std::int64_t samples, int pack) {
        const std::int64_t blocks = std::min(size.blocks, samples);
        const std::int64_t places = blocks * size.channels;
        const std::int64_t pixels = size.channels * size.sites;
        const std::int64_t powers = places * size.orbits;
        const std::int64_t products = blocks * size.cross_shells * size.channels * (size.channels + 1) / 2;
        // Values, threads of one piece, and the most pieces: each thread is to have some samples.
        const std::int64_t most = samples / size.blocks / 8;
        set(kPixels, size.signs ? 2 * pixels : pixels, divided(pixels, pack), samples, samples / 64);
        set(kOrbits, powers, powers, samples, most);
        set(kLow, places * 2 * size.selected, places * 2 * size.selected, samples, most);
        set(kOfPlace, places * kMoments, places * kMoments, samples, most);
        set(kSignOrbits, size.signs ? powers : 0, size.signs ? powers : 0, samples, most);
        set(kCross, products, 32 * products, samples, most);
        std::int64_t end = 0;
        for (Role& role : roles) {
            end += std::int64_t{role.blocks} * role.pieces;
            if (end > INT32_MAX) too_large();
            role.end = static_cast<int>(end);
        }
    }

private:
    [[noreturn]] static void too_large() { throw std::invalid_argument("record: too large for one launch"); }

    void set(RoleName name, std::int64_t values, std::int64_t threads, std::int64_t samples, std::int64_t most) {
        if (samples > INT32_MAX / 2 || std::max(values, threads) > INT32_MAX / 2) too_large();
        Role& role = roles[name];
        role.values = static_cast<int>(values);
        role.blocks = static_cast<int>(divided(threads, kBlock));
        std::int64_t pieces = threads == 0 ? 1 : std::min({kThreads / threads, kMostPieces, most});
        const std::int64_t length = divided(samples, std::max<std::int64_t>(pieces, 1));
        pieces = divided(samples, length);
        role.length = static_cast<int>(length);
        role.pieces = static_cast<int>(pieces);
        role.partial = scratch;
        if (pieces > 1) scratch += pieces * values, combined += values;
    }
};

int sites_of_thread(const RecordSize& size, Type type) {
    const int pack = type == Type::float32 ? 2 : 4;
    return size.channels * size.sites % pack == 0 ? pack : 1;
}

}  // namespace

std::int64_t record_scratch(const RecordSize& size, Type type, std::int64_t samples) {
    if (samples == 0) return 0;
    return Plan(size, samples, sites_of_thread(size, type)).scratch * static_cast<std::int64_t>(sizeof(double));
}

void launch_record(const RecordRequest& request, void* stream) {
    const Record& to = request.record;
    RecordArguments a{};
    const std::int64_t samples = request.batch.fields.count / to.channels;
    const Type type = request.batch.fields.type;
    const int pack = sites_of_thread(request.size, type);
    const Plan plan(request.size, samples, pack);  // all numbers below fit, where this does
    a.samples = static_cast<int>(samples);
    a.channels = static_cast<int>(to.channels);
    a.blocks = static_cast<int>(to.blocks);
    a.first = request.batch.first;
    a.first_block = static_cast<int>(request.batch.first % to.blocks);
    a.places = static_cast<int>(std::min(to.blocks, samples) * to.channels);
    a.sites = static_cast<int>(request.size.sites);
    a.orbits = static_cast<int>(request.size.orbits);
    a.low = static_cast<int>(2 * request.size.selected);
    a.ndim = request.ndim;
    std::copy(request.along, request.along + 3, a.along);
    a.sums = request.batch.sums;
    a.modes = request.batch.modes;
    a.totals = request.batch.totals;
    a.sign_sums = request.batch.sign_sums;
    a.record = to;
    a.cross = request.cross;
    a.bad = reinterpret_cast<long long*>(request.bad);
    a.scratch = static_cast<double*>(request.batch.scratch);
    std::copy(plan.roles, plan.roles + kRoles, a.roles);
    if (plan.scratch > 0 && a.scratch == nullptr) throw std::invalid_argument("scratch: this batch needs some");

    const dim3 blocks(static_cast<unsigned>(plan.roles[kRoles - 1].end));
    const auto run = [&](auto* fields, auto wide) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(fields)>>;
        if (pack > 1) {
            launch(&record<T, decltype(wide)::value>, blocks, dim3(kBlock), 0, stream, fields, a);
        } else {
            launch(&record<T, 1>, blocks, dim3(kBlock), 0, stream, fields, a);
        }
    };
    const void* const data = request.batch.fields.data;
    using Two = std::integral_constant<int, 2>;
    using Four = std::integral_constant<int, 4>;
    switch (type) {
        case Type::float32: run(static_cast<const float*>(data), Two()); break;
        case Type::float16: run(static_cast<const Half*>(data), Four()); break;
        case Type::bfloat16: run(static_cast<const BFloat16*>(data), Four()); break;
    }
    if (plan.combined == 0) return;
    launch(&add_pieces, dim3(static_cast<unsigned>(divided(plan.combined, kBlock))), dim3(kBlock), 0, stream, a);
}

void launch_fix_offset(const Fields& sample, std::int64_t channels, std::int64_t sites, const std::int64_t* count,
                       std::int64_t blocks, double* offset, void* stream) {
    const auto run = [&](auto* fields) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(fields)>>;
        launch(&fix_offset<T>, dim3(static_cast<unsigned>(channels)), dim3(kBlock), 0, stream, fields, sites, count,
               blocks, offset);
    };
    switch (sample.type) {
        case Type::float32: return run(static_cast<const float*>(sample.data));
        case Type::float16: return run(static_cast<const Half*>(sample.data));
        case Type::bfloat16: return run(static_cast<const BFloat16*>(sample.data));
    }
}

}  // namespace fastcrit::cuda
