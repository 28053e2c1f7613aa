// Powers in shared memory by bin: which a field's threads sum in rounds, every bin by neighbouring lanes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "memory.hpp"
#include "numbers.cuh"

namespace fastcrit::cuda {

/// In round r, group g of 2^lane_bits threads sums bin r * groups + g: a thread what four places at a time name, of
/// step begin[r] to begin[r + 1]. A place that is none names a word that is 0.
struct Gather {
    const Pack<std::uint16_t, 4>* at;  ///< [step][thread]
    const std::int32_t* begin;
    std::int32_t rounds, lane_bits, bins;
};

class GatherTables {
public:
    GatherTables() = default;
    /// Pairs of bin and place of a word. `threads`, those of a field, is a power of two.
    GatherTables(std::vector<std::pair<std::int32_t, std::uint16_t>> entries, std::int32_t bins, int threads,
                 std::uint16_t zero)
        : bins_(bins) {
        std::sort(entries.begin(), entries.end());
        std::vector<std::size_t> first(static_cast<std::size_t>(bins) + 1);
        for (const auto& entry : entries) ++first[static_cast<std::size_t>(entry.first) + 1];
        for (std::size_t b = 1; b < first.size(); ++b) first[b] += first[b - 1];

        std::int64_t best = -1;
        for (int bits = 0; bits <= 5 && 1 << bits <= threads; ++bits) {
            const auto steps = steps_of_rounds(first, threads, bits);
            std::int64_t cost = 0;
            for (const std::int32_t n : steps) {
                // Instructions: of a step, of a round, and of adding lanes up. Long sums would lose digits.
                cost += 14 * n + 30 + 4 * bits + (n > kMostSteps ? 1000 * n : 0);
            }
            if (best < 0 || cost < best) best = cost, lane_bits_ = bits;
        }
        const auto steps = steps_of_rounds(first, threads, lane_bits_);
        std::vector<std::int32_t> begin(steps.size() + 1);
        for (std::size_t r = 0; r < steps.size(); ++r) begin[r + 1] = begin[r] + steps[r];
        Pack<std::uint16_t, 4> none{};
        for (auto& value : none.values) value = zero;
        std::vector<Pack<std::uint16_t, 4>> at(static_cast<std::size_t>(begin.back() * threads), none);
        const int groups = threads >> lane_bits_;
        for (std::int32_t bin = 0; bin < bins; ++bin) {
            const auto b = static_cast<std::size_t>(bin);
            for (std::size_t i = first[b]; i < first[b + 1]; ++i) {
                const auto n = static_cast<std::int32_t>(i - first[b]);
                const std::int32_t lane = n & ((1 << lane_bits_) - 1);
                const std::int32_t of_lane = n >> lane_bits_;
                const std::int32_t step = begin[static_cast<std::size_t>(bin / groups)] + of_lane / 4;
                const std::int32_t thread = (bin % groups << lane_bits_) + lane;
                at[static_cast<std::size_t>(step * threads + thread)].values[of_lane % 4] = entries[i].second;
            }
        }
        rounds_ = static_cast<std::int32_t>(steps.size());
        begin_ = DeviceArray<std::int32_t>(begin);
        at_ = DeviceArray<Pack<std::uint16_t, 4>>(at);
    }

    Gather gather() const { return {at_.data(), begin_.data(), rounds_, lane_bits_, bins_}; }

private:
    static constexpr std::int32_t kMostSteps = 4;  ///< sixteen values, in two sums

    static std::vector<std::int32_t> steps_of_rounds(const std::vector<std::size_t>& first, int threads, int bits) {
        const auto groups = static_cast<std::size_t>(threads >> bits);
        std::vector<std::int32_t> steps((first.size() - 1 + groups - 1) / groups);
        for (std::size_t b = 0; b + 1 < first.size(); ++b) {
            const std::size_t of_lane = (first[b + 1] - first[b] + (std::size_t{1} << bits) - 1) >> bits;
            std::int32_t& most = steps[b / groups];
            most = std::max(most, static_cast<std::int32_t>((of_lane + 3) / 4));
        }
        return steps;
    }

    DeviceArray<Pack<std::uint16_t, 4>> at_;
    DeviceArray<std::int32_t> begin_;
    std::int32_t rounds_ = 0, lane_bits_ = 0, bins_ = 0;
};

}  // namespace fastcrit::cuda
