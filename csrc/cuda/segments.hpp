// Values sorted by bin: which a kernel sums without atomics, every bin by its owner.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "memory.hpp"

namespace fastcrit::cuda {

/// The values at[begin[b]] .. at[begin[b + 1] - 1] belong to bin b, which `threads` threads sum.
template <class Index>
struct Segments {
    const Index* begin;
    const Index* at;
    std::int32_t bins;
    std::int32_t threads;
};

template <class Index>
class SegmentTables {
public:
    SegmentTables() = default;
    /// Pairs of bin and index; indices of a bin ascend by order(index). Every bin from 0 to bins - 1 may be empty.
    template <class Order>
    SegmentTables(std::vector<std::pair<std::int32_t, Index>> entries, std::int32_t bins, std::int32_t threads,
                  const Order& order)
        : bins_(bins),
          threads_(threads) {
        std::sort(entries.begin(), entries.end(), [&](const auto& a, const auto& b) {
            return a.first != b.first ? a.first < b.first : order(a.second) < order(b.second);
        });
        std::vector<Index> begin(static_cast<std::size_t>(bins) + 1);
        std::vector<Index> at;
        at.reserve(entries.size());
        for (const auto& [bin, index] : entries) {
            at.push_back(index);
            begin[static_cast<std::size_t>(bin) + 1] = static_cast<Index>(at.size());
        }
        for (std::size_t b = 1; b < begin.size(); ++b) begin[b] = std::max(begin[b], begin[b - 1]);
        begin_ = DeviceArray<Index>(begin);
        at_ = DeviceArray<Index>(at);
    }

    Segments<Index> segments() const { return {begin_.data(), at_.data(), bins_, threads_}; }

private:
    DeviceArray<Index> begin_;
    DeviceArray<Index> at_;
    std::int32_t bins_ = 0;
    std::int32_t threads_ = 1;
};

}  // namespace fastcrit::cuda
