// Device memory and the current device, owned.
#pragma once

#include <utility>
#include <vector>

#include "runtime.cuh"

namespace fastcrit::cuda {

/// Makes a device current, and the one before again at the end.
class DeviceGuard {
public:
    explicit DeviceGuard(int device) {
        FASTCRIT_CUDA_CHECK(cudaGetDevice(&before_));
        changed_ = before_ != device;
        if (changed_) FASTCRIT_CUDA_CHECK(cudaSetDevice(device));
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

private:
    int before_ = 0;
    bool changed_ = false;
};

/// An array on the device that was current when it was made.
template <class T>
class DeviceArray {
public:
    DeviceArray() = default;
    explicit DeviceArray(const std::vector<T>& values) : size_(values.size()) {
        if (values.empty()) return;
        FASTCRIT_CUDA_CHECK(cudaMalloc(&data_, values.size() * sizeof(T)));
        const cudaError_t copied = cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice);
        if (copied != cudaSuccess) cudaFree(data_);
        FASTCRIT_CUDA_CHECK(copied);
    }
    ~DeviceArray() { cudaFree(data_); }
    DeviceArray(DeviceArray&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr; }
    DeviceArray& operator=(DeviceArray&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }

    T* data() const { return data_; }
    std::size_t size() const { return size_; }

private:
    T* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace fastcrit::cuda
