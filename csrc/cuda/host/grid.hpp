// Runs a grid on the processor: the threads of a block are fibers of one thread of the system, switched at barriers and
// warp exchanges only. The order of blocks and threads is a seed's permutation, so that a run can be repeated, and a
// result that depends on the order is found by another seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace fastcrit::host {

/// Runs the kernel for every thread of the grid. What a kernel throws, a race or a barrier that only some threads reach
/// stops the launch with a std::runtime_error.
void run(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& kernel);

/// 0: blocks and threads in ascending order; otherwise permuted, threads anew after every switch.
void set_order(std::uint64_t seed);

/// Launches so far.
std::int64_t launches();
/// From here on a launch is counted and does nothing, or does what it should: what callers cost by themselves.
void set_idle(bool idle);

// For the running thread.
dim3 thread_index();
dim3 block_index();
dim3 block_size();
dim3 grid_size();

void sync_block();
void sync_warp(std::uint32_t mask);

/// What the lane `source` of the warp passes in the same call; `source` may differ by lane. Orders no memory.
std::uint64_t exchange(std::uint64_t value, std::uint32_t mask, unsigned source);
/// Bit l: the lane l of the warp passes true.
std::uint32_t ballot(bool value, std::uint32_t mask);

/// The block's shared memory from an offset on, filled with NaN when the block begins.
void* dynamic_shared(std::size_t offset, std::size_t bytes);
/// Memory of the block that belongs to the declaration `key`.
void* static_shared(const void* key, std::size_t bytes);

/// Notes that the running thread touches shared memory. Throws when another thread touched it since the last barrier
/// of the block, or of the warp if both are of one warp, and one of the two wrote.
void on_read(const void* at, std::size_t bytes);
void on_write(const void* at, std::size_t bytes);
[[noreturn]] void out_of_bounds(std::size_t index, std::size_t size);

}  // namespace fastcrit::host
