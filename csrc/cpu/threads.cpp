#include "threads.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "environment.hpp"
#include "fastcrit/spectra.hpp"

#ifdef __linux__
#include <sched.h>
#endif

namespace fastcrit {
namespace {

// More than this many threads is a mistake in a unit, not a machine.
constexpr int kMostThreads = 4096;

int usable_processors() {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int initial_threads() {
    if (const std::string text = environment("FASTCRIT_NUM_THREADS"); !text.empty()) {
        char* end = nullptr;
        const long value = std::strtol(text.c_str(), &end, 10);
        if (*end != '\0' || value < 1 || value > kMostThreads) {
            throw std::invalid_argument("FASTCRIT_NUM_THREADS: expected 1 to " + std::to_string(kMostThreads) +
                                        ", got '" + text + "'");
        }
        return static_cast<int>(value);
    }
    return usable_processors();
}

std::atomic<int>& thread_setting() {
    static std::atomic<int> threads{initial_threads()};
    return threads;
}

/// One parallel loop: tasks are handed out by a counter, so a slow thread takes fewer.
struct Loop {
    const std::function<void(std::int64_t)>* work;
    std::int64_t tasks;
    std::atomic<std::int64_t> next{0};
    std::mutex failed_mutex;
    std::exception_ptr failed;

    void run() {
        try {
            for (std::int64_t t = next++; t < tasks; t = next++) (*work)(t);
        } catch (...) {  // kept, and rethrown by the caller
            next = tasks;
            const std::lock_guard<std::mutex> lock(failed_mutex);
            if (!failed) failed = std::current_exception();
        }
    }
};

// Waking a sleeping thread takes tens of microseconds, as long as a small batch, and calls often follow each other
// closely: a thread first looks this many times whether there is something to do, 50 microseconds where a pause takes
// 25 ns.
constexpr int kSpins = 2000;

template <class Condition>
void spin_until(const Condition& met) {
    for (int i = 0; i < kSpins && !met(); ++i) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ __volatile__("yield");
#endif
    }
}

class Pool {
public:
    ~Pool() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
        }
        wake_.notify_all();
        for (std::thread& t : threads_) t.join();
    }

    /// False, having done nothing, when another caller holds the pool.
    bool run(Loop& loop, int helpers) {
        const std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
        if (!owner) return false;
        while (static_cast<int>(threads_.size()) < helpers) {
            try {
                threads_.emplace_back([this] { serve(); });
            } catch (const std::system_error&) {
                break;  // no more threads to be had from the system: the loop runs on those there are
            }
        }
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            loop_ = &loop;
            wanted_ = std::min<int>(helpers, static_cast<int>(threads_.size()));
        }
        wake_.notify_all();
        loop.run();
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            wanted_ = 0;
        }
        spin_until([this] { return running_ == 0; });
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return running_ == 0; });
        loop_ = nullptr;
        return true;
    }

private:
    void serve() {
        for (;;) {
            spin_until([this] { return stopping_ || wanted_ > 0; });
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [this] { return stopping_ || wanted_ > 0; });
            if (stopping_) return;
            --wanted_;
            ++running_;
            Loop* const loop = loop_;
            lock.unlock();
            loop->run();
            lock.lock();
            if (--running_ == 0) done_.notify_all();
        }
    }

    std::mutex owner_;  ///< held by the caller whose loop is running
    std::mutex mutex_;  ///< guards what follows
    std::condition_variable wake_;
    std::condition_variable done_;
    Loop* loop_ = nullptr;
    // Changed only under the mutex; read without it by threads that spin.
    std::atomic<int> wanted_{0};
    std::atomic<int> running_{0};
    std::atomic<bool> stopping_{false};
    std::vector<std::thread> threads_;
};

// The child of a fork has none of its parent's threads and perhaps a locked mutex: it forgets the pool (which leaks)
// and makes its own when it needs one.
std::unique_ptr<Pool>* the_pool = nullptr;

void forget_pool() { the_pool = new std::unique_ptr<Pool>(new Pool); }

Pool& pool() {
    static const bool once = [] {
        the_pool = new std::unique_ptr<Pool>(new Pool);
        pthread_atfork(nullptr, nullptr, forget_pool);
        std::atexit([] { the_pool->reset(); });
        return true;
    }();
    static_cast<void>(once);
    return **the_pool;
}

struct Memory {
    void* begin = nullptr;
    std::int64_t size = 0;

    ~Memory() { std::free(begin); }
};

}  // namespace

int num_threads() { return thread_setting(); }

void set_num_threads(int threads) {
    if (threads < 1 || threads > kMostThreads) {
        throw std::invalid_argument("threads: expected 1 to " + std::to_string(kMostThreads) + ", got " +
                                    std::to_string(threads));
    }
    thread_setting() = threads;
}

namespace cpu {

void parallel_for(std::int64_t tasks, const std::function<void(std::int64_t)>& work) {
    Loop loop;
    loop.work = &work;
    loop.tasks = tasks;
    const int helpers = static_cast<int>(std::min<std::int64_t>(num_threads(), tasks)) - 1;
    if (helpers < 1 || !pool().run(loop, helpers)) loop.run();
    if (loop.failed) std::rethrow_exception(loop.failed);
}

bool Turns::wait_for(std::int64_t turn) {
    const auto come = [this, turn] { return turn_ == turn || given_up_; };
    spin_until(come);
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, come);
    return !given_up_;
}

void Turns::pass_on() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        ++turn_;
    }
    changed_.notify_all();
}

void Turns::give_up() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        given_up_ = true;
    }
    changed_.notify_all();
}

void* thread_scratch(Scratch use, std::int64_t bytes) {
    thread_local Memory kept[kScratches];
    Memory& memory = kept[static_cast<int>(use)];
    if (memory.size < bytes) {
        constexpr std::int64_t alignment = 64;
        const std::int64_t rounded = (bytes + alignment - 1) / alignment * alignment;
        std::free(memory.begin);
        memory.size = 0;
        memory.begin = std::aligned_alloc(alignment, static_cast<std::size_t>(rounded));
        if (memory.begin == nullptr) throw std::bad_alloc();
        memory.size = rounded;
    }
    return memory.begin;
}

}  // namespace cpu
}  // namespace fastcrit
