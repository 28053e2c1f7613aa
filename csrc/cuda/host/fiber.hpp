// A stack of its own for each thread of a block.
#pragma once

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

/// Runs a function on its own stack, until it calls `suspend` or ends.
class Fiber {
public:
    /// The next resume starts `entry`, which must end by `finish`.
    void start(void (*entry)()) {
        if (!stack_) stack_.reset(new char[kStackBytes]);
        getcontext(&context_);
        context_.uc_stack.ss_sp = stack_.get();
        context_.uc_stack.ss_size = kStackBytes;
        context_.uc_link = nullptr;
        makecontext(&context_, entry, 0);
    }

    void resume() {
#if FASTCRIT_ASAN
        void* fake = nullptr;
        __sanitizer_start_switch_fiber(&fake, stack_.get(), kStackBytes);
#endif
        swapcontext(&caller_, &context_);
#if FASTCRIT_ASAN
        __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
    }

    /// First thing that `entry` does.
    void entered() {
#if FASTCRIT_ASAN
        __sanitizer_finish_switch_fiber(nullptr, &caller_stack_, &caller_bytes_);
#endif
    }

    void suspend() {
#if FASTCRIT_ASAN
        void* fake = nullptr;
        __sanitizer_start_switch_fiber(&fake, caller_stack_, caller_bytes_);
#endif
        swapcontext(&context_, &caller_);
#if FASTCRIT_ASAN
        __sanitizer_finish_switch_fiber(fake, &caller_stack_, &caller_bytes_);
#endif
    }

    [[noreturn]] void finish() {
#if FASTCRIT_ASAN
        __sanitizer_start_switch_fiber(nullptr, caller_stack_, caller_bytes_);
#endif
        setcontext(&caller_);
        __builtin_unreachable();
    }

private:
    static constexpr std::size_t kStackBytes = FASTCRIT_ASAN ? 256 << 10 : 64 << 10;

    std::unique_ptr<char[]> stack_;
    ucontext_t context_;
    ucontext_t caller_;
#if FASTCRIT_ASAN
    const void* caller_stack_ = nullptr;
    std::size_t caller_bytes_ = 0;
#endif
};

}  // namespace fastcrit::host
