// What the kernels are written in: CUDA by nvcc, or the same language run on the processor by any C++ compiler.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "host/cuda_runtime.hpp"
#endif

#include "error.hpp"

namespace fastcrit::cuda {

#ifdef __CUDACC__

/// An array in shared memory. On the processor every access is checked for races and bounds.
template <class T>
class Shared {
public:
    __device__ explicit Shared(T* base, int) : base_(base) {}
    __device__ T& operator[](int i) const { return base_[i]; }
    /// The same memory as other values.
    template <class U>
    __device__ Shared<U> as() const {
        return Shared<U>(reinterpret_cast<U*>(base_), 0);
    }

private:
    T* base_;
};

/// The block's dynamic shared memory as `n` values.
template <class T>
__device__ Shared<T> dynamic_shared(int n) {
    extern __shared__ float4 fastcrit_dynamic_shared[];
    return Shared<T>(reinterpret_cast<T*>(fastcrit_dynamic_shared), n);
}

#define FASTCRIT_SHARED(T, name, n)   \
    __shared__ T name##_storage[(n)]; \
    const ::fastcrit::cuda::Shared<T> name(name##_storage, (n))

/// Launches a kernel on a stream; throws when it cannot be launched.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, void* stream,
            const Arguments&... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    FASTCRIT_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}

#else

template <class T>
class Shared {
public:
    class Reference {
    public:
        explicit Reference(T* at) : at_(at) {}
        operator T() const { return host::on_read(at_, sizeof(T)), *at_; }
        const Reference& operator=(const T& value) const {
            host::on_write(at_, sizeof(T));
            *at_ = value;
            return *this;
        }

    private:
        T* at_;
    };

    Shared(T* base, int n) : base_(base), size_(n) {}
    Reference operator[](int i) const {
        if (i < 0 || i >= size_) host::out_of_bounds(static_cast<std::size_t>(i), static_cast<std::size_t>(size_));
        return Reference(base_ + i);
    }
    template <class U>
    Shared<U> as() const {
        return Shared<U>(reinterpret_cast<U*>(base_), static_cast<int>(size_ * sizeof(T) / sizeof(U)));
    }

private:
    T* base_;
    int size_;
};

template <class T>
Shared<T> dynamic_shared(int n) {
    return Shared<T>(static_cast<T*>(host::dynamic_shared(0, n * sizeof(T))), n);
}

#define FASTCRIT_SHARED(T, name, n)         \
    static const char name##_key = 0;       \
    const ::fastcrit::cuda::Shared<T> name( \
        static_cast<T*>(::fastcrit::host::static_shared(&name##_key, (n) * sizeof(T))), (n))

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, void*,
            const Arguments&... arguments) {
    host::run(grid, block, shared_bytes, [&] { kernel(arguments...); });
}

#endif

}  // namespace fastcrit::cuda
