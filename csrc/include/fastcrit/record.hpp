// The arrays that `record` adds to, said once: the struct, what the bindings check and what Python allocates are made
// of the rows below. A new sum is a row here and the code that sums it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace fastcrit {

// ROW(name, type, when it is there, sides). All sums are in double. Jackknife blocks come first, where there are any;
// what has none is summed over all samples.
//
// What is summed of k = 0 is about an offset of the channel, which is taken from the field's mean, so that squares
// keep the digits of small fluctuations about it: 0, and no array, for fields about zero.
#define FASTCRIT_RECORD(ROW)                                                              \
    /* samples */                                                                         \
    ROW(count, std::int64_t, always, blocks)                                              \
    /* |phi^|^2 / N over the modes of the orbit */                                        \
    ROW(power, double, always, blocks, channels, orbits)                                  \
    /* phi^ of the selected modes, re and im */                                           \
    ROW(low, double, always, blocks, channels, selected, 2)                               \
    /* |phi^|^2 / N at 2 pi / L along each axis alone, slowest axis first */              \
    ROW(first, double, always, blocks, channels, ndim)                                    \
    /* of the mean m of a field and the offset c: m - c, |m| - |c|, (|m| - |c|)^2, m^4 */ \
    ROW(moments, double, always, blocks, channels, 4)                                     \
    /* the field itself, whatever the offset */                                           \
    ROW(field, double, always, channels, sites)                                           \
    /* as power and field, of the signs: +1 for values >= 0, else -1 */                   \
    ROW(sign_power, double, signs, blocks, channels, orbits)                              \
    ROW(sign_field, double, signs, channels, sites)                                       \
    /* no sum, but read */                                                                \
    ROW(offset, const double, given, channels)

/// Where `record` adds a batch; arrays that are not there are null.
struct Record {
    std::int64_t blocks;
    std::int64_t channels;
#define FASTCRIT_ROW(name, type, ...) type* name = nullptr;
    FASTCRIT_RECORD(FASTCRIT_ROW)
#undef FASTCRIT_ROW
};

/// What the sides of its arrays are.
struct RecordSizes {
    std::int64_t blocks, channels, orbits, selected, ndim, sites;
};

/// One side of an array: one of the above, by name, or a number.
struct RecordSide {
    using Size = std::int64_t RecordSizes::*;
    const char* name = nullptr;
    Size size = nullptr;
    std::int64_t number = 0;

    constexpr RecordSide() = default;
    constexpr RecordSide(int fixed) : number(fixed) {}
    constexpr RecordSide(const char* side, Size member) : name(side), size(member) {}

    constexpr std::int64_t in(const RecordSizes& sizes) const { return name != nullptr ? sizes.*size : number; }
};

/// When an array is there: always; with all others of the signs, or none of them; where it is given.
enum class Kept { always, signs, given };

/// A row of the table.
struct RecordRow {
    const char* name;
    Kept kept;
    const char* kept_word;
    std::array<RecordSide, 4> sides;
    std::size_t ndim;

    template <class... Sides>
    constexpr RecordRow(const char* array, Kept when, const char* word, const Sides&... of)
        : name(array),
          kept(when),
          kept_word(word),
          sides{RecordSide(of)...},
          ndim(sizeof...(of)) {}

    constexpr bool by_block() const { return sides[0].size == &RecordSizes::blocks; }
    constexpr std::int64_t values(const RecordSizes& sizes) const {
        std::int64_t product = 1;
        for (std::size_t i = 0; i < ndim; ++i) product *= sides[i].in(sizes);
        return product;
    }
};

/// visit(&Record::name, row) for every row.
template <class Visit>
void for_each_array(const Visit& visit) {
    constexpr RecordSide blocks("blocks", &RecordSizes::blocks);
    constexpr RecordSide channels("channels", &RecordSizes::channels);
    constexpr RecordSide orbits("orbits", &RecordSizes::orbits);
    constexpr RecordSide selected("selected", &RecordSizes::selected);
    constexpr RecordSide ndim("ndim", &RecordSizes::ndim);
    constexpr RecordSide sites("sites", &RecordSizes::sites);
#define FASTCRIT_ROW(name, type, when, ...) visit(&Record::name, RecordRow(#name, Kept::when, #when, __VA_ARGS__));
    FASTCRIT_RECORD(FASTCRIT_ROW)
#undef FASTCRIT_ROW
}

/// Throws std::invalid_argument unless this is the number of a batch's first sample. There is room for the batch behind
/// it.
inline void check_first_sample(std::int64_t first) {
    if (first < 0 || first > std::int64_t{1} << 62) {
        throw std::invalid_argument("first: expected the number of a sample, 0 to 2^62, got " + std::to_string(first));
    }
}

}  // namespace fastcrit
