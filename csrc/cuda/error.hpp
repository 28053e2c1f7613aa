// Errors of the CUDA runtime as exceptions that name the place and the call.
#pragma once

#include <stdexcept>
#include <string>

namespace fastcrit::cuda {

[[noreturn]] inline void fail(const char* file, int line, const char* expression, const char* what) {
    throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + expression + ": " + what);
}

}  // namespace fastcrit::cuda

// The runtime also remembers an error for whoever asks next: it is taken from there.
#define FASTCRIT_CUDA_CHECK(expression)                                                                  \
    do {                                                                                                 \
        const cudaError_t fastcrit_error = (expression);                                                 \
        if (fastcrit_error != cudaSuccess) {                                                             \
            static_cast<void>(cudaGetLastError());                                                       \
            ::fastcrit::cuda::fail(__FILE__, __LINE__, #expression, cudaGetErrorString(fastcrit_error)); \
        }                                                                                                \
    } while (false)
