// The runtime that runs kernels on the processor: order, barriers, warps, and what it refuses.
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"
#include "cuda/runtime.cuh"

using fastcrit::cuda::dynamic_shared;
using fastcrit::cuda::launch;
using fastcrit::cuda::Shared;

namespace {

enum class Barrier { none, block, warp };

/// Every thread writes a word and reads its neighbour's.
void neighbours(int* out, Barrier barrier) {
    const int n = static_cast<int>(blockDim.x);
    const int t = static_cast<int>(threadIdx.x);
    const Shared<int> words = dynamic_shared<int>(n);
    words[t] = t + 1;
    if (barrier == Barrier::block) __syncthreads();
    if (barrier == Barrier::warp) __syncwarp();
    out[blockIdx.x * blockDim.x + threadIdx.x] = words[(t + 1) % n];
}

void run_neighbours(unsigned threads, Barrier barrier) {
    std::vector<int> out(std::size_t{3} * threads);
    launch(&neighbours, dim3(3), dim3(threads), threads * sizeof(int), nullptr, out.data(), barrier);
    for (std::size_t i = 0; i < out.size(); ++i) CHECK(out[i] == static_cast<int>((i + 1) % threads) + 1);
}

/// What a launch is refused for.
template <class Launch>
std::string refusal(const Launch& launch_it) {
    try {
        launch_it();
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "";
}

bool starts_with(const std::string& text, const char* with) { return text.rfind(with, 0) == 0; }

void races_are_found() {
    for (const unsigned seed : {0U, 1U, 2U}) {
        fastcrit::host::set_order(seed);
        run_neighbours(96, Barrier::block);
        run_neighbours(32, Barrier::warp);
        CHECK(starts_with(refusal([] { run_neighbours(96, Barrier::none); }), "race"));
        CHECK(starts_with(refusal([] { run_neighbours(32, Barrier::none); }), "race"));
        CHECK(starts_with(refusal([] { run_neighbours(96, Barrier::warp); }), "race"));  // across warps
    }
    fastcrit::host::set_order(0);
}

void warp_functions(double* sums, unsigned* votes) {
    double value = threadIdx.x;
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0U, value, step);
    sums[threadIdx.x] = value;
    votes[threadIdx.x] = __ballot_sync(~0U, threadIdx.x % 3 == 0 ? 1 : 0);
    CHECK(__any_sync(~0U, threadIdx.x == 5 || threadIdx.x == 40 ? 1 : 0) == 1);
}

void warps_exchange_and_vote() {
    std::vector<double> sums(64);
    std::vector<unsigned> votes(64);
    launch(&warp_functions, dim3(1), dim3(64), 0, nullptr, sums.data(), votes.data());
    for (std::size_t i = 0; i < 64; ++i) {
        CHECK(sums[i] == (i < 32 ? 496.0 : 1520.0));
        for (unsigned l = 0; l < 32; ++l) CHECK((votes[i] >> l & 1) == ((i / 32 * 32 + l) % 3 == 0 ? 1U : 0U));
    }
}

void past_the_end(int) {
    FASTCRIT_SHARED(int, words, 8);
    words[static_cast<int>(threadIdx.x)] = 1;
}
void barrier_for_some(int) {
    if (threadIdx.x != 3) __syncthreads();
}
void different_calls(int) {
    if (threadIdx.x % 2 == 0) {
        __syncwarp();
    } else {
        __ballot_sync(~0U, 1);
    }
}
void unset_memory(int* seen) {
    FASTCRIT_SHARED(float, words, 4);
    const float value = words[0];
    if (value != value) ++*seen;
}

void misuse_is_refused() {
    CHECK(starts_with(refusal([] { launch(&past_the_end, dim3(1), dim3(9), 0, nullptr, 0); }), "shared memory"));
    CHECK(starts_with(refusal([] { launch(&barrier_for_some, dim3(1), dim3(8), 0, nullptr, 0); }), "barrier"));
    CHECK(starts_with(refusal([] { launch(&different_calls, dim3(1), dim3(8), 0, nullptr, 0); }), "warp"));
    CHECK(starts_with(refusal([] { launch(&past_the_end, dim3(1), dim3(2048), 0, nullptr, 0); }), "launch"));
    // Memory that no thread has written is NaN, in every block.
    int seen = 0;
    launch(&unset_memory, dim3(4), dim3(2), 0, nullptr, &seen);
    CHECK(seen == 8);
}

void half_values_are_converted() {
    CHECK(__half2float(__ushort_as_half(0x3c00)) == 1.0F);
    CHECK(__half2float(__ushort_as_half(0xc500)) == -5.0F);
    CHECK(__half2float(__ushort_as_half(0x0001)) == std::ldexp(1.0F, -24));
    CHECK(__half2float(__ushort_as_half(0x83ff)) == -std::ldexp(1023.0F, -24));
    CHECK(__half2float(__ushort_as_half(0x7bff)) == 65504.0F);
    CHECK(std::isinf(__half2float(__ushort_as_half(0x7c00))) && std::isnan(__half2float(__ushort_as_half(0x7e00))));
}

}  // namespace

int main() {
    races_are_found();
    warps_exchange_and_vote();
    misuse_is_refused();
    races_are_found();  // also after launches that were given up
    half_values_are_converted();
    std::puts("cuda runtime: all checks hold");
}
