// Which threads touched each word of a block's shared memory, and whether a barrier lay between.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastcrit::host {

/// A thread at a moment: moments are apart when the block's barrier, or the warp's, lies between.
struct Moment {
    std::int32_t thread = -1;
    std::uint64_t block_epoch = 0;
    std::uint64_t warp_epoch = 0;

    bool unordered_with(const Moment& other) const {
        if (thread < 0 || thread == other.thread || block_epoch != other.block_epoch) return false;
        return thread / 32 != other.thread / 32 || warp_epoch == other.warp_epoch;
    }
};

class RaceCheck {
public:
    void cover(std::size_t bytes) {
        if (words_.size() < (bytes + 3) / 4) words_.resize((bytes + 3) / 4);
    }

    void read(std::size_t offset, std::size_t bytes, const Moment& now) {
        for (std::size_t w = offset / 4; w < (offset + bytes + 3) / 4; ++w) {
            Word& word = words_[w];
            if (word.write.unordered_with(now)) refuse(w, "written", word.write, "read", now);
            // Two readers are remembered: one of them is not the thread that writes next.
            if (word.reads[0].thread != now.thread && word.reads[0].block_epoch == now.block_epoch) {
                word.reads[1] = now;
            } else {
                word.reads[0] = now;
            }
        }
    }

    void write(std::size_t offset, std::size_t bytes, const Moment& now) {
        for (std::size_t w = offset / 4; w < (offset + bytes + 3) / 4; ++w) {
            Word& word = words_[w];
            if (word.write.unordered_with(now)) refuse(w, "written", word.write, "written", now);
            for (const Moment& read : word.reads) {
                if (read.unordered_with(now)) refuse(w, "read", read, "written", now);
            }
            word.write = now;
        }
    }

private:
    struct Word {
        Moment write;
        Moment reads[2];
    };

    [[noreturn]] static void refuse(std::size_t word, const char* did, const Moment& before, const char* does,
                                    const Moment& now) {
        throw std::runtime_error("race: shared word " + std::to_string(word) + " is " + did + " by thread " +
                                 std::to_string(before.thread) + " and " + does + " by thread " +
                                 std::to_string(now.thread) + " with no barrier between");
    }

    std::vector<Word> words_;
};

}  // namespace fastcrit::host
