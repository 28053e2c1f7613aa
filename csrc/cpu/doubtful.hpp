// Which fields want a second look, by their power.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels.hpp"
#include "simd.hpp"

namespace fastcrit::FASTCRIT_ISA {

using cpu::PowerRequest;

/// Whether a field wants a second look, given its power at k = 0 and in the other bins. Comparisons with NaN are false.
template <class T>
inline bool is_doubtful(const PowerRequest<T>& request, T zero, T rest) {
    const bool light = zero <= cpu::kHeaviest<T> * rest || request.kept_bins == 1;
    return !(light && zero + rest >= request.least && zero + rest <= request.most);
}

/// The same of all lanes, a bit each.
template <class T>
inline std::uint32_t doubtful_lanes(const PowerRequest<T>& request, Vec<T> zero, Vec<T> rest, std::int64_t fields) {
    if (request.sign) return 0;  // all values are of size 1
    const Vec<T> all = zero + rest;
    auto light = zero <= rest * cpu::kHeaviest<T>;
    if (request.kept_bins == 1) light = zero <= zero;
    const typename VectorOf<T>::index good = light & (all >= request.least) & (all <= request.most);
    std::conditional_t<sizeof(T) == sizeof(float), std::int32_t, std::int64_t> lanes[kLanes<T>];
    std::memcpy(lanes, &good, sizeof good);
    std::int64_t every = -1;
    for (int l = 0; l < kLanes<T>; ++l) every &= lanes[l];
    if (every != 0) return 0;
    std::uint32_t doubtful = 0;
    for (std::int64_t l = 0; l < fields; ++l) {
        doubtful |= static_cast<std::uint32_t>(lanes[l] != 0 ? 0 : 1) << l;
    }
    return doubtful;
}

}  // namespace fastcrit::FASTCRIT_ISA
