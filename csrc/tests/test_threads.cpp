// The pool: every task once, errors reach the caller, several callers at once, and life after fork.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <thread>
#include <vector>

#include "../cpu/threads.hpp"
#include "check.hpp"
#include "fastcrit/spectra.hpp"

namespace {

std::int64_t sum_of_tasks(std::int64_t tasks) {
    std::vector<std::atomic<int>> done(static_cast<std::size_t>(tasks));
    std::atomic<std::int64_t> sum{0};
    fastcrit::cpu::parallel_for(tasks, [&](std::int64_t task) {
        ++done[static_cast<std::size_t>(task)];
        sum += task;
    });
    for (const auto& d : done) CHECK(d == 1);
    return sum;
}

void every_task_runs_once() {
    for (int threads : {1, 2, 7}) {
        fastcrit::set_num_threads(threads);
        for (std::int64_t tasks : {0, 1, 2, 1000}) CHECK(sum_of_tasks(tasks) == tasks * (tasks - 1) / 2);
    }
}

void an_exception_reaches_the_caller_and_the_pool_lives_on() {
    fastcrit::set_num_threads(4);
    const auto failing = [](std::int64_t task) {
        if (task == 13) throw std::runtime_error("thirteen");
    };
    CHECK_THROWS(fastcrit::cpu::parallel_for(100, failing), std::runtime_error);
    CHECK(sum_of_tasks(100) == 4950);
}

void several_callers_at_once() {
    fastcrit::set_num_threads(3);
    std::vector<std::thread> callers;
    for (int i = 0; i < 6; ++i) {
        callers.emplace_back([] {
            for (int j = 0; j < 50; ++j) CHECK(sum_of_tasks(64) == 2016);
        });
    }
    for (std::thread& t : callers) t.join();
}

void scratch_is_aligned_and_kept() {
    void* first = fastcrit::cpu::thread_scratch(fastcrit::cpu::Scratch::task, 1000);
    CHECK(reinterpret_cast<std::uintptr_t>(first) % 64 == 0);
    CHECK(fastcrit::cpu::thread_scratch(fastcrit::cpu::Scratch::task, 500) == first);
}

[[maybe_unused]] void a_forked_child_has_a_pool_of_its_own() {
    fastcrit::set_num_threads(4);
    CHECK(sum_of_tasks(100) == 4950);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) _exit(sum_of_tasks(1000) == 499500 ? 0 : 1);
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(sum_of_tasks(100) == 4950);
}

}  // namespace

int main() {
    every_task_runs_once();
    an_exception_reaches_the_caller_and_the_pool_lives_on();
    several_callers_at_once();
    scratch_is_aligned_and_kept();
    // ThreadSanitizer does not follow a fork that starts threads, and qemu-user 7.2 aborts in the child.
#if !defined(__SANITIZE_THREAD__) && !defined(FASTCRIT_EMULATED)
    a_forked_child_has_a_pool_of_its_own();
#endif
    std::puts("threads: all checks hold");
}
