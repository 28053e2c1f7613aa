// The part of the CUDA language and runtime that the kernels use, for an ordinary C++ compiler. Device memory is
// memory, streams run at once, and there is one device, number 0.
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "grid.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __grid_constant__

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorMemoryAllocation, cudaErrorInvalidDevice };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = struct CUstream_st*;

inline const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        default: return "invalid argument";
    }
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
template <class T>
cudaError_t cudaMalloc(T** to, std::size_t bytes) {
    *to = static_cast<T*>(std::malloc(bytes));
    return *to != nullptr || bytes == 0 ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
    if (bytes > 0) std::memcpy(to, from, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
/// As much as compute capability 9.0 has.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 227 << 10, cudaSuccess; }
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
    return cudaSuccess;
}

#define threadIdx (::fastcrit::host::thread_index())
#define blockIdx (::fastcrit::host::block_index())
#define blockDim (::fastcrit::host::block_size())
#define gridDim (::fastcrit::host::grid_size())

inline void __syncthreads() { fastcrit::host::sync_block(); }
inline void __syncwarp(unsigned mask = ~0U) { fastcrit::host::sync_warp(mask); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    static_assert(sizeof(T) <= sizeof(std::uint64_t));
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = fastcrit::host::exchange(bits, mask, threadIdx.x % 32 ^ static_cast<unsigned>(lanes));
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline unsigned __ballot_sync(unsigned mask, int predicate) { return fastcrit::host::ballot(predicate != 0, mask); }
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0 ? 1 : 0; }

inline long long atomicMin(long long* at, long long value) {
    const long long before = *at;
    if (value < before) *at = value;
    return before;
}

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

struct __half {
    unsigned short bits;
};
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline float __half2float(__half value) {
    const unsigned sign = (value.bits & 0x8000U) << 16;
    const unsigned exponent = value.bits >> 10 & 31U;
    const unsigned fraction = value.bits & 0x3ffU;
    if (exponent == 0) return (sign != 0 ? -1.0F : 1.0F) * std::ldexp(static_cast<float>(fraction), -24);
    return __uint_as_float(sign | (exponent == 31 ? 255U : exponent + 112U) << 23 | fraction << 13);
}
