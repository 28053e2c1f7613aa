// A pool of threads that outlives calls, is dropped by a forked child, and never blocks a second caller.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>

namespace fastcrit::cpu {

/// Runs work(task) for task = 0 .. tasks-1 on up to num_threads() threads. If another thread is using the pool, the
/// caller runs everything itself. The first exception thrown by work is thrown here, after all threads have stopped.
void parallel_for(std::int64_t tasks, const std::function<void(std::int64_t)>& work);

/// Threads take turns 0, 1, 2, ..: each waits for its own, and passes it on.
class Turns {
public:
    /// False when the turns were given up.
    bool wait_for(std::int64_t turn);
    void pass_on();
    /// Nobody waits for a turn that will not come.
    void give_up();

private:
    std::atomic<std::int64_t> turn_{0};
    std::atomic<bool> given_up_{false};
    std::mutex mutex_;
    std::condition_variable changed_;
};

/// What a thread keeps memory for: the work of one task, its results before they are added up, what a whole batch
/// needs (all its results, or a copy of what they are added to), and fields that are measured a second time.
enum class Scratch { task, results, batch, again };
constexpr int kScratches = 4;

/// At least `bytes` of 64-byte aligned memory that belongs to the calling thread and is kept between calls.
void* thread_scratch(Scratch use, std::int64_t bytes);

}  // namespace fastcrit::cpu
