// The kernels as functions that launch them, and the tables they read. Everything is on the current device.
#pragma once

#include <cstdint>
#include <vector>

#include "fastcrit/cuda.hpp"
#include "memory.hpp"
#include "numbers.cuh"
#include "segments.hpp"

namespace fastcrit::cuda {

// fused.cu

/// What gives a mode: two places in a HalfHeightSpectrum.
struct ModePlace {
    std::uint16_t here, mirror, ky, upper;
};

/// exp(-2 pi i j / n), j < n.
DeviceArray<Complex> make_roots(std::int32_t n);

struct FusedTables {
    DeviceArray<Complex> roots;  ///< exp(-2 pi i j / side)
    SegmentTables<std::uint16_t> bins[2];
};

bool has_fused(const Lattice& lattice);
FusedTables make_fused_tables(const Lattice& lattice);
std::vector<ModePlace> mode_places(const Lattice& lattice, const std::vector<std::int32_t>& modes);

struct FusedRequest {
    Fields fields;
    View view;
    const Complex* roots;
    Segments<std::uint16_t> bins;
    float* sums;
    const ModePlace* selected;
    std::int32_t n_selected;
    Complex* modes;
    double* totals;
};
void launch_fused(int side, const FusedRequest& request, void* stream);

// segments.cu

/// Entries are ~i for a value that stands for itself, i for one that stands for its mirror image as well.
struct SegmentRequest {
    std::int64_t count;
    std::int64_t pitch;  ///< values from a field to the next
    Segments<std::int32_t> bins;
    float factor;
    float* sums;
    const std::int32_t* selected;
    std::int32_t n_selected;
    Complex* modes;
    double* totals;
};
void launch_segments(const Complex* spectra, const SegmentRequest& request, void* stream);
void launch_segments(const float* correlations, const SegmentRequest& request, void* stream);

// first_modes.cu

struct FirstModesRequest {
    Fields fields;
    int ndim;
    std::int32_t sides[3];
    const Complex* waves[3];  ///< exp(-2 pi i j / side) for each axis
    double* out;
    double* parts;
};
/// Parts that a field is read in, each by its own block.
std::int64_t field_parts(std::int64_t sites);
void launch_first_modes(const FirstModesRequest& request, void* stream);

// record.cu

struct RecordRequest {
    Batch batch;
    Record record;
    std::int64_t sites;
    std::int64_t orbits;
    std::int64_t n_selected;
    int ndim;
    std::int32_t along[3];  ///< among the selected modes, the first of each axis; 0 for an axis of one site
    std::int64_t* bad;
};
void launch_record(const RecordRequest& request, void* stream);

}  // namespace fastcrit::cuda
