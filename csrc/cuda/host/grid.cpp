#include "grid.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fiber.hpp"
#include "races.hpp"

namespace fastcrit::host {
namespace {

constexpr std::uint32_t kWarp = 32;
constexpr std::size_t kStaticBytes = std::size_t{48} << 10;

/// Thrown into the threads of a block that is given up.
struct Cancelled {};

enum class State { ready, at_block, at_warp, done };

struct Thread {
    explicit Thread(void (*entry)()) : fiber(entry) {}

    Fiber fiber;
    State state = State::done;
    bool entered = false;  ///< the kernel of this block
    unsigned parity = 0;   ///< of the warp's two buffers, the one for this thread's next exchange
};

struct Warp {
    std::uint64_t epoch = 0;
    std::uint32_t arrived = 0;
    std::uint32_t mask = 0;
    bool exchanging = false;
    std::uint64_t slots[2][kWarp];
};

/// One block at a time; its threads and memory are kept for the next.
class Machine {
public:
    void run(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& kernel);

    void sync_block();
    void sync_warp(std::uint32_t mask) { arrive(mask, false); }
    const std::uint64_t* exchange(std::uint64_t value, std::uint32_t mask);
    void* shared(std::size_t offset, std::size_t bytes);
    void* static_shared(const void* key, std::size_t bytes);
    void touch(const void* at, std::size_t bytes, bool write);

    dim3 thread() const { return unflatten(current_, block_); }
    dim3 block_index() const { return block_index_; }
    dim3 block() const { return block_; }
    dim3 grid() const { return grid_; }

    std::uint64_t seed = 0;

private:
    static dim3 unflatten(std::size_t i, dim3 size) {
        const auto n = static_cast<unsigned>(i);
        return {n % size.x, n / size.x % size.y, n / size.x / size.y};
    }
    static void entry();
    void run_block();
    void resume(std::size_t t);
    void cancel();
    void wait(State state);
    void arrive(std::uint32_t mask, bool exchanging);
    Warp& warp() { return warps_[current_ / kWarp]; }

    dim3 grid_, block_, block_index_;
    std::size_t size_ = 0;  ///< threads of a block
    std::size_t current_ = 0;
    std::size_t waiting_ = 0;  ///< threads at the block's barrier
    std::size_t left_ = 0;     ///< threads that have not ended
    std::uint64_t epoch_ = 0;
    bool cancelling_ = false;
    std::string error_;
    const std::function<void()>* kernel_ = nullptr;
    std::vector<std::unique_ptr<Thread>> threads_;
    std::vector<Warp> warps_;
    std::vector<double> memory_;  ///< dynamic shared memory, then static
    std::size_t dynamic_bytes_ = 0;
    std::map<const void*, std::size_t> static_offsets_;
    std::size_t static_used_ = 0;
    RaceCheck races_;
    std::mt19937_64 engine_;
};

thread_local Machine machine;

void Machine::run(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& kernel) {
    size_ = std::size_t{block.x} * block.y * block.z;
    if (size_ == 0 || size_ > 1024) throw std::runtime_error("launch: blocks of " + std::to_string(size_) + " threads");
    if (std::size_t{grid.x} * grid.y * grid.z == 0) throw std::runtime_error("launch: empty grid");
    grid_ = grid;
    block_ = block;
    kernel_ = &kernel;
    while (threads_.size() < size_) threads_.push_back(std::make_unique<Thread>(&Machine::entry));
    dynamic_bytes_ = (shared_bytes + 15) / 16 * 16;
    memory_.resize((dynamic_bytes_ + kStaticBytes) / sizeof(double));
    races_.cover(dynamic_bytes_ + kStaticBytes);
    static_offsets_.clear();
    static_used_ = 0;
    engine_.seed(seed);

    std::vector<std::size_t> order(std::size_t{grid.x} * grid.y * grid.z);
    std::iota(order.begin(), order.end(), std::size_t{0});
    if (seed != 0) std::shuffle(order.begin(), order.end(), engine_);
    for (const std::size_t b : order) {
        block_index_ = unflatten(b, grid_);
        run_block();
    }
}

void Machine::run_block() {
    std::memset(memory_.data(), 0xff, dynamic_bytes_ + static_used_);
    warps_.assign((size_ + kWarp - 1) / kWarp, {});
    ++epoch_;
    waiting_ = 0;
    left_ = size_;
    for (std::size_t t = 0; t < size_; ++t) {
        threads_[t]->state = State::ready;
        threads_[t]->entered = false;
        threads_[t]->parity = 0;
    }
    std::vector<std::size_t> order(size_);
    std::iota(order.begin(), order.end(), std::size_t{0});
    while (left_ > 0) {
        if (seed != 0) std::shuffle(order.begin(), order.end(), engine_);
        bool moved = false;
        for (const std::size_t t : order) {
            if (threads_[t]->state != State::ready) continue;
            moved = true;
            resume(t);
            if (!error_.empty()) return cancel();
        }
        if (!moved) {
            error_ = "barrier: " + std::to_string(left_) + " threads wait for others that have ended or wait elsewhere";
            return cancel();
        }
    }
}

void Machine::resume(std::size_t t) {
    current_ = t;
    Thread& thread = *threads_[t];
    thread.entered = true;
    thread.fiber.resume();
}

/// Unwinds the stacks of all threads and throws what stopped them.
void Machine::cancel() {
    cancelling_ = true;
    for (std::size_t t = 0; t < size_; ++t) {
        if (threads_[t]->state != State::done && threads_[t]->entered) resume(t);
        threads_[t]->state = State::done;
    }
    cancelling_ = false;
    const std::string error = std::move(error_);
    error_.clear();
    throw std::runtime_error(error);
}

/// What a fiber does: its thread's share of one block after the other.
void Machine::entry() {
    Machine& self = machine;
    Thread& thread = *self.threads_[self.current_];
    thread.fiber.entered();
    for (;;) {
        try {
            (*self.kernel_)();
        } catch (const Cancelled&) {  // NOLINT(bugprone-empty-catch): `cancel` asked for it
        } catch (const std::exception& e) {
            self.error_ = std::string(e.what()) + " (block " + std::to_string(self.block_index_.x) + ", thread " +
                          std::to_string(self.current_) + ")";
        }
        thread.state = State::done;
        --self.left_;
        thread.fiber.suspend();
    }
}

void Machine::wait(State state) {
    Thread& thread = *threads_[current_];
    thread.state = state;
    thread.fiber.suspend();
    if (cancelling_) throw Cancelled{};
}

void Machine::sync_block() {
    if (++waiting_ < size_) return wait(State::at_block);
    waiting_ = 0;
    ++epoch_;
    for (std::size_t t = 0; t < size_; ++t) threads_[t]->state = State::ready;
}

void Machine::arrive(std::uint32_t mask, bool exchanging) {
    Warp& w = warp();
    const std::uint32_t bit = std::uint32_t{1} << current_ % kWarp;
    if ((mask & bit) == 0) throw std::runtime_error("warp: a lane that its mask does not name");
    if (w.arrived == 0) {
        w.mask = mask;
        w.exchanging = exchanging;
    } else if (w.mask != mask || w.exchanging != exchanging) {
        throw std::runtime_error("warp: lanes meet in different calls");
    }
    w.arrived |= bit;
    // Lanes past the end of a partial warp do not exist.
    const std::size_t first = current_ / kWarp * kWarp;
    const std::size_t lanes = std::min<std::size_t>(kWarp, size_ - first);
    const std::uint32_t existing = lanes == kWarp ? ~std::uint32_t{0} : (std::uint32_t{1} << lanes) - 1;
    if (w.arrived != (mask & existing)) return wait(State::at_warp);
    w.arrived = 0;
    if (!exchanging) ++w.epoch;
    for (std::size_t l = 0; l < lanes; ++l) {
        if ((mask >> l & 1) != 0) threads_[first + l]->state = State::ready;
    }
}

const std::uint64_t* Machine::exchange(std::uint64_t value, std::uint32_t mask) {
    // A lane may begin the next exchange while others read this one's values, but not the one after that.
    Warp& w = warp();
    std::uint64_t* const slots = w.slots[threads_[current_]->parity];
    threads_[current_]->parity ^= 1;
    slots[current_ % kWarp] = value;
    arrive(mask, true);
    return slots;
}

void* Machine::shared(std::size_t offset, std::size_t bytes) {
    if (offset + bytes > dynamic_bytes_) out_of_bounds(offset + bytes, dynamic_bytes_);
    return reinterpret_cast<char*>(memory_.data()) + offset;
}

void* Machine::static_shared(const void* key, std::size_t bytes) {
    auto found = static_offsets_.find(key);
    if (found == static_offsets_.end()) {
        if (static_used_ + bytes > kStaticBytes) throw std::runtime_error("static shared memory: more than 48 KiB");
        found = static_offsets_.emplace(key, static_used_).first;
        std::memset(reinterpret_cast<char*>(memory_.data()) + dynamic_bytes_ + static_used_, 0xff, bytes);
        static_used_ += (bytes + 15) / 16 * 16;
    }
    return reinterpret_cast<char*>(memory_.data()) + dynamic_bytes_ + found->second;
}

void Machine::touch(const void* at, std::size_t bytes, bool write) {
    const auto offset =
        static_cast<std::size_t>(static_cast<const char*>(at) - reinterpret_cast<char*>(memory_.data()));
    const Moment now{static_cast<std::int32_t>(current_), epoch_, warp().epoch};
    write ? races_.write(offset, bytes, now) : races_.read(offset, bytes, now);
}

std::atomic<std::int64_t> launched{0};
std::atomic<bool> idle{false};

}  // namespace

void run(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& kernel) {
    ++launched;
    if (!idle) machine.run(grid, block, shared_bytes, kernel);
}

std::int64_t launches() { return launched; }
void set_idle(bool now) { idle = now; }

void set_order(std::uint64_t seed) { machine.seed = seed; }

dim3 thread_index() { return machine.thread(); }
dim3 block_index() { return machine.block_index(); }
dim3 block_size() { return machine.block(); }
dim3 grid_size() { return machine.grid(); }

void sync_block() { machine.sync_block(); }
void sync_warp(std::uint32_t mask) { machine.sync_warp(mask); }

std::uint64_t exchange(std::uint64_t value, std::uint32_t mask, unsigned source) {
    return machine.exchange(value, mask)[source % kWarp];
}

std::uint32_t ballot(bool value, std::uint32_t mask) {
    const std::uint64_t* const slots = machine.exchange(value ? 1 : 0, mask);
    std::uint32_t bits = 0;
    for (std::uint32_t l = 0; l < kWarp; ++l) {
        if ((mask >> l & 1) != 0 && slots[l] == 1) bits |= std::uint32_t{1} << l;
    }
    return bits;
}

void* dynamic_shared(std::size_t offset, std::size_t bytes) { return machine.shared(offset, bytes); }
void* static_shared(const void* key, std::size_t bytes) { return machine.static_shared(key, bytes); }
void on_read(const void* at, std::size_t bytes) { machine.touch(at, bytes, false); }
void on_write(const void* at, std::size_t bytes) { machine.touch(at, bytes, true); }

void out_of_bounds(std::size_t index, std::size_t size) {
    throw std::runtime_error("shared memory: index " + std::to_string(index) + " of " + std::to_string(size));
}

}  // namespace fastcrit::host
