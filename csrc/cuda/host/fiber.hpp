// A stack of its own for each thread of a block.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define FASTCRIT_ASAN 1
#else
#define FASTCRIT_ASAN 0
#endif

namespace fastcrit::host {

/// Runs a function that never returns on its own stack, from one `suspend` to the next.
class Fiber {
public:
    explicit Fiber(void (*entry)()) : stack_(new char[kStackBytes]) {
        getcontext(&context_);
        context_.uc_stack.ss_sp = stack_.get();
        context_.uc_stack.ss_size = kStackBytes;
        context_.uc_link = nullptr;
        makecontext(&context_, entry, 0);
    }

#if FASTCRIT_ASAN
    void resume() {
        void* fake = nullptr;
        __sanitizer_start_switch_fiber(&fake, stack_.get(), kStackBytes);
        swapcontext(&caller_, &context_);
        __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
    }
    /// First thing that the function does.
    void entered() { __sanitizer_finish_switch_fiber(nullptr, &caller_stack_, &caller_bytes_); }
    void suspend() {
        void* fake = nullptr;
        __sanitizer_start_switch_fiber(&fake, caller_stack_, caller_bytes_);
        swapcontext(&context_, &caller_);
        __sanitizer_finish_switch_fiber(fake, &caller_stack_, &caller_bytes_);
    }
#else
    // Jumps, once the stack is made: swapcontext asks the system to save the signal mask, five times as slow.
    void resume() {
        if (_setjmp(caller_) != 0) return;
        if (started_) _longjmp(own_, 1);
        started_ = true;
        setcontext(&context_);
    }
    void entered() {}
    void suspend() {
        if (_setjmp(own_) == 0) _longjmp(caller_, 1);
    }
#endif

private:
    static constexpr std::size_t kStackBytes = FASTCRIT_ASAN ? 256 << 10 : 64 << 10;

    std::unique_ptr<char[]> stack_;
    ucontext_t context_;
#if FASTCRIT_ASAN
    ucontext_t caller_;
    const void* caller_stack_ = nullptr;
    std::size_t caller_bytes_ = 0;
#else
    jmp_buf own_;
    jmp_buf caller_;
    bool started_ = false;
#endif
};

}  // namespace fastcrit::host
