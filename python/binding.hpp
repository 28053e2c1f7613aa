// What both halves of the module are made with.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "fastcrit/spectra.hpp"

/// Adds Spectrometer and Selection.
void add_host(pybind11::module_& m);
/// Adds CudaSpectrometer and CudaSelection, where they were compiled.
void add_cuda(pybind11::module_& m);

inline fastcrit::Bins parse_bins(const std::string& name) {
    if (name == "shells") return fastcrit::Bins::shells;
    if (name == "orbits") return fastcrit::Bins::orbits;
    throw std::invalid_argument("bins: expected 'shells' or 'orbits', got '" + name + "'");
}

inline std::vector<pybind11::ssize_t> shape_of(const fastcrit::Lattice& lattice) {
    return {lattice.sides().end() - lattice.ndim(), lattice.sides().end()};
}

/// Names of the arrays of a record that are kept alike.
inline std::string names_of(fastcrit::Kept kept) {
    std::string names;
    fastcrit::for_each_array([&](auto, const fastcrit::RecordRow& row) {
        if (row.kept == kept) names += (names.empty() ? "" : ", ") + std::string(row.name);
    });
    return names;
}

/// A record of the arrays that find(pointer to array, row) sets, where they are there: with the signs all of theirs,
/// without them none.
template <class Find>
fastcrit::Record make_record(std::int64_t blocks, std::int64_t channels, bool signs, const Find& find) {
    using fastcrit::Kept;
    fastcrit::Record record{blocks, channels};
    bool complete = true;
    fastcrit::for_each_array([&](auto array, const fastcrit::RecordRow& row) {
        if (row.kept == Kept::signs && !signs) return;
        find(record.*array, row);
        complete = complete && (record.*array != nullptr || row.kept == Kept::given);
    });
    if (!complete) {
        throw std::invalid_argument("state: expected " + names_of(Kept::always) + ", and with signs " +
                                    names_of(Kept::signs) + "; " + names_of(Kept::given) + " may be among them");
    }
    return record;
}
