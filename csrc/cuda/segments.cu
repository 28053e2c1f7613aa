// Sums over bins of what lies in memory: powers of a half spectrum by shell or orbit, correlations by shell of lags. A
// bin has one owner: a thread, a warp or a block.
#include <limits>
#include <stdexcept>

#include "faults.hpp"
#include "kernels.hpp"

namespace fastcrit::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kWarps = kBlock / 32;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

__device__ float measure(Complex value) { return norm(value); }
__device__ float measure(float value) { return value; }

/// The selected modes of one field.
__device__ void copy_selected(const Complex* spectrum, const SegmentRequest& request, std::int64_t field) {
    for (int i = static_cast<int>(threadIdx.x); i < request.n_selected; i += kBlock) {
        request.modes[field * request.n_selected + i] = spectrum[request.selected[i]];
    }
}
__device__ void copy_selected(const float*, const SegmentRequest&, std::int64_t) {}

template <class Value>
__global__ void __launch_bounds__(kBlock, 1024 / kBlock)
    segments(const Value* fields, SegmentRequest request, std::int64_t chunks) {
    const int thread = static_cast<int>(threadIdx.x);
    const int owners = kBlock / request.bins.threads;
    const std::int64_t field = blockIdx.x / chunks;
    const std::int64_t chunk = blockIdx.x % chunks;
    const Value* const values = fields + field * request.pitch;
    if (chunk * owners >= request.bins.bins) return copy_selected(values, request, field);

    const std::int64_t bin = chunk * owners + thread / request.bins.threads;
    const bool there = bin < request.bins.bins;
    CompensatedSum sum;
    if (there) {
        const int end =
            request.bins.begin[bin + 1] - (kFault == Fault::partial_warp && request.bins.threads > 1 ? 1 : 0);
        for (int i = request.bins.begin[bin] + thread % request.bins.threads; i < end; i += request.bins.threads) {
            const int at = request.bins.at[i];
            sum.add(at < 0 ? measure(values[~at]) : 2.0F * measure(values[at]));
        }
    }
    float all = sum_lanes(sum.value(), request.bins.threads < 32 ? request.bins.threads : 32);
    FASTCRIT_SHARED(float, parts, kWarps);
    if (request.bins.threads == kBlock) {
        if (thread % 32 == 0) parts[thread / 32] = all;
        __syncthreads();
        if (thread == 0) {
            CompensatedSum of_warps;
            for (int w = 0; w < kWarps; ++w) of_warps.add(parts[w]);
            all = of_warps.value();
        }
    }
    if (!there || thread % request.bins.threads != 0) return;
    all *= request.factor;
    request.sums[field * request.bins.bins + bin] = all;
    // Any thread that writes here writes the same.
    if (request.totals != nullptr && !finite(all)) request.totals[field] = kNaN;
}

template <class Value>
void launch_typed(const Value* fields, const SegmentRequest& request, void* stream) {
    const std::int64_t owners = kBlock / request.bins.threads;
    const std::int64_t chunks = (request.bins.bins + owners - 1) / owners + (request.modes != nullptr ? 1 : 0);
    if (request.count > INT32_MAX / chunks) throw std::invalid_argument("count: too many fields for one launch");
    launch(&segments<Value>, dim3(static_cast<unsigned>(request.count * chunks)), dim3(kBlock), 0, stream, fields,
           request, chunks);
}

}  // namespace

void launch_segments(const Complex* spectra, const SegmentRequest& request, void* stream) {
    launch_typed(spectra, request, stream);
}

void launch_segments(const float* correlations, const SegmentRequest& request, void* stream) {
    launch_typed(correlations, request, stream);
}

}  // namespace fastcrit::cuda
