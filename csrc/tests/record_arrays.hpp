// The arrays of a record, for tests: members, sizes and comparisons are made of its table, so a new row is in them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "fastcrit/record.hpp"

namespace oracle {

template <class T>
using Values = std::vector<T>;

/// Zeros but for the offsets, which are given. Array<T> is made of a std::vector<T>, and has data() and size().
template <template <class> class Array>
struct RecordArrays {
#define FASTCRIT_ROW(name, type, ...) Array<std::remove_const_t<type>> name;
    FASTCRIT_RECORD(FASTCRIT_ROW)
#undef FASTCRIT_ROW

    RecordArrays() = default;
    RecordArrays(const fastcrit::RecordSizes& sizes, bool signs, const std::vector<double>& offsets) {
        std::vector<std::size_t> values;
        fastcrit::for_each_array([&](auto, const fastcrit::RecordRow& row) {
            const bool there = row.kept == fastcrit::Kept::always || (row.kept == fastcrit::Kept::signs && signs);
            values.push_back(there ? static_cast<std::size_t>(row.values(sizes)) : 0);
        });
        std::size_t row = 0;
#define FASTCRIT_ROW(name, type, ...)                                                             \
    name = Array<std::remove_const_t<type>>(std::vector<std::remove_const_t<type>>(values[row])); \
    ++row;
        FASTCRIT_RECORD(FASTCRIT_ROW)
#undef FASTCRIT_ROW
        offset = Array<double>(offsets);
    }

    fastcrit::Record record(std::int64_t blocks, std::int64_t channels) {
        fastcrit::Record to{blocks, channels};
#define FASTCRIT_ROW(name, ...) \
    if (name.size() > 0) to.name = name.data();
        FASTCRIT_RECORD(FASTCRIT_ROW)
#undef FASTCRIT_ROW
        return to;
    }
};

/// With read(array), which gives a vector, of each of another's.
template <template <class> class Array, class Read>
RecordArrays<Values> to_values(const RecordArrays<Array>& from, const Read& read) {
    RecordArrays<Values> to;
#define FASTCRIT_ROW(name, ...) to.name = read(from.name);
    FASTCRIT_RECORD(FASTCRIT_ROW)
#undef FASTCRIT_ROW
    return to;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

inline bool same_bits(const RecordArrays<Values>& a, const RecordArrays<Values>& b) {
    bool same = true;
#define FASTCRIT_ROW(name, ...) same = same && same_bits(a.name, b.name);
    FASTCRIT_RECORD(FASTCRIT_ROW)
#undef FASTCRIT_ROW
    return same;
}

}  // namespace oracle
