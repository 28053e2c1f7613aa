// Hands groups of fields to the threads.
#include "fastcrit/spectra.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "measurement.hpp"

namespace fastcrit {
namespace {

// Measured with one and two threads on an Intel Xeon (Emerald Rapids, 2 MiB of L2). With 16 lanes (float32, AVX-512),
// 128 x 128, a block of 1.07 MB, is faster as fields by 7 % (orbits: 14 %), 160 x 160, 1.67 MB, as lines; with 8 lanes
// of float64 128 x 128, 1.07 MB, is faster as lines by 5 to 16 %. With AVX2 both take the same time below 160 x 160
// (0.83 MB).
constexpr std::int64_t kLargestBlock = std::int64_t{1} << 20;
constexpr std::int64_t kLargestBlockOf16 = kLargestBlock * 5 / 4;

std::atomic<std::int64_t>& block_limit() {  // negative: the default
    static std::atomic<std::int64_t> bytes{-1};
    return bytes;
}

// A task is a run of groups of fields, so that a thread knows what it will read next: as many as leave every thread
// eight tasks, whose uneven times even out.
constexpr std::int64_t kTasksPerThread = 8;
constexpr std::int64_t kMostGroupsPerTask = 16;

/// Measures all fields. Returns the first whose result is not finite, or the number of fields.
template <class T>
std::int64_t run(const cpu::Measurement<T>& measurement, const cpu::PowerRequest<T>& request) {
    const std::int64_t groups = measurement.groups(request.count);
    const std::int64_t length =
        std::clamp<std::int64_t>(groups / (kTasksPerThread * num_threads()), 1, kMostGroupsPerTask);
    std::atomic<std::int64_t> first_bad{request.count};
    cpu::parallel_for((groups + length - 1) / length, [&](std::int64_t task) {
        for (std::int64_t g = task * length; g < std::min(groups, (task + 1) * length); ++g) {
            const std::int64_t first = g * measurement.kernel.fields;
            const std::int64_t good = measurement.run(request, first);
            if (good < measurement.group_end(request, first)) cpu::lower(first_bad, good);
        }
    });
    return first_bad;
}

}  // namespace

std::int64_t cpu::largest_block(int lanes) {
    const std::int64_t limit = block_limit();
    if (limit >= 0) return limit;
    return lanes == kMostLanes ? kLargestBlockOf16 : kLargestBlock;
}

void set_largest_block(std::int64_t bytes) { block_limit() = bytes; }

Spectrometer::Spectrometer(const std::vector<std::int64_t>& shape) : tables_(std::make_unique<const Tables>(shape)) {}
Spectrometer::~Spectrometer() = default;

const Lattice& Spectrometer::lattice() const { return tables_->lattice; }

std::int64_t Spectrometer::bins(Bins bins) const { return tables_->number_of(bins); }

template <class T>
std::int64_t Spectrometer::shell_power(const T* fields, std::int64_t count, std::int64_t shells, T* mean) const {
    if (shells < 1 || shells > lattice().shells()) {
        throw std::invalid_argument("shells: expected 1 to " + std::to_string(lattice().shells()) + ", got " +
                                    std::to_string(shells));
    }
    cpu::PowerRequest<T> request{};
    request.fields = fields;
    request.count = count;
    request.kept_bins = static_cast<std::int32_t>(shells);
    cpu::set_bounds(request, lattice().sites(), cpu::kOfModes);
    request.scale = tables_->of<T>().shell_scale.data();
    request.out = mean;
    return run(tables_->prepare(request, Bins::shells), request);
}

template <class T>
std::int64_t Spectrometer::power(const T* fields, std::int64_t count, const T* offset, Bins bins, T* sums,
                                 const Selection* selected, T* modes) const {
    cpu::PowerRequest<T> request = tables_->sums<T>(bins, selected);
    request.fields = fields;
    request.count = count;
    request.offset = offset;
    request.out = sums;
    request.modes = modes;
    return run(tables_->prepare(request, bins), request);
}

template <class T>
std::int64_t Spectrometer::autocorrelation(const T* fields, std::int64_t count, const T* offset, T* sums) const {
    const auto sites = static_cast<double>(lattice().sites());
    cpu::PowerRequest<T> request{};
    request.fields = fields;
    request.count = count;
    request.offset = offset;
    request.bin_of_mode = lattice().lag_shell_of_site().data();
    request.bins = request.kept_bins = static_cast<std::int32_t>(lattice().lag_shells().size());
    // 1/4 from the first transform, 1/2 from the second; 1/N for S and 1/N for the inverse.
    request.factor = static_cast<T>(0.125 / sites / sites);
    cpu::set_bounds(request, lattice().sites(), cpu::kOfLags);
    request.out = sums;
    const cpu::PlanTables<T>& plan = tables_->of<T>().plan.tables();
    const cpu::PowerKernel<T>& kernel = cpu::kernels<T>().autocorrelation;
    return run(cpu::Measurement<T>{plan, kernel, kernel.scratch(plan, request), true}, request);
}

template <class T>
std::int64_t Spectrometer::first_modes(const T* fields, std::int64_t count, double* out) const {
    const cpu::PlanTables<T>& plan = tables_->of<T>().plan.tables();
    const cpu::FirstModesRequest<T> request{fields, count, lattice().ndim(), out};
    const cpu::Kernels<T>& kernel = cpu::kernels<T>();
    // Fields are handed out in runs long enough for the processor to see a stream in memory, but a few to a thread.
    constexpr std::int64_t longest = std::int64_t{1} << 20;  // bytes
    const std::int64_t field = lattice().sites() * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t run =
        std::max<std::int64_t>(1, std::min(longest / field, count / (kTasksPerThread * num_threads())));
    std::atomic<std::int64_t> first_bad{count};
    cpu::parallel_for((count + run - 1) / run, [&](std::int64_t task) {
        void* scratch = cpu::thread_scratch(cpu::Scratch::task, kernel.first_modes_scratch(plan));
        const std::int64_t end = std::min(count, (task + 1) * run);
        for (std::int64_t i = task * run; i < end; ++i) {
            i = kernel.first_modes(plan, request, i, end, scratch);
            if (i < end && !cpu::first_modes_again(plan, request, i, scratch)) cpu::lower(first_bad, i);
        }
    });
    return first_bad;
}

template <class T>
void Spectrometer::add_fields(const T* fields, std::int64_t count, double* to) const {
    // As many sites as leave their sums in the L1 cache.
    constexpr std::int64_t longest = 2048;
    const std::int64_t sites = lattice().sites();
    const std::int64_t run = std::min(longest, (sites + num_threads() - 1) / num_threads());
    cpu::parallel_for((sites + run - 1) / run, [&](std::int64_t task) {
        const std::int64_t first = task * run;
        cpu::kernels<T>().add_rows(fields + first, sites, count, to + first, std::min(run, sites - first));
    });
}

// NOLINTBEGIN(bugprone-macro-parentheses): a type in a signature takes no parentheses.
#define FASTCRIT_INSTANTIATE(T)                                                                                    \
    template std::int64_t Spectrometer::shell_power<T>(const T*, std::int64_t, std::int64_t, T*) const;            \
    template std::int64_t Spectrometer::power<T>(const T*, std::int64_t, const T*, Bins, T*, const Selection*, T*) \
        const;                                                                                                     \
    template std::int64_t Spectrometer::autocorrelation<T>(const T*, std::int64_t, const T*, T*) const;            \
    template void Spectrometer::add_fields<T>(const T*, std::int64_t, double*) const;                              \
    template std::int64_t Spectrometer::first_modes<T>(const T*, std::int64_t, double*) const;
// NOLINTEND(bugprone-macro-parentheses)
FASTCRIT_INSTANTIATE(float)
FASTCRIT_INSTANTIATE(double)
#undef FASTCRIT_INSTANTIATE

}  // namespace fastcrit
