// The kernels as functions that launch them, and the tables they read. Everything is on the current device.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "fastcrit/cuda.hpp"
#include "gather.hpp"
#include "memory.hpp"
#include "numbers.cuh"
#include "segments.hpp"

namespace fastcrit::cuda {

/// exp(-2 pi i j / n), j < n.
DeviceArray<Complex> make_roots(std::int32_t n);

// fields.cpp: what the kernels that transform a field in shared memory have in common (finish.cuh)

/// What gives a mode: two places in the array of half a field's height.
struct ModePlace {
    std::uint16_t here, mirror, ky, upper;
};

/// The places of (ky, kx) and (-ky, -kx) in that array, what squares of doubled amplitudes count, and
/// exp(-2 pi i ky / height).
struct alignas(16) Pair {
    std::uint16_t here, mirror;
    float scale;
    Complex root;
};

/// Where the passes leave a frequency: (ky, kx) at rows[ky mod half] + columns[kx].
struct HalfHeightPlaces {
    std::vector<std::uint16_t> rows, columns;
    std::uint16_t hole;  ///< a place that no value takes
    int threads;         ///< of a field, a power of two

    std::int32_t half() const { return static_cast<std::int32_t>(rows.size()); }
    std::int32_t width() const { return static_cast<std::int32_t>(columns.size()); }
    std::uint16_t at(std::int32_t ky, std::int32_t kx) const {
        const std::int32_t row = (ky % half() + half()) % half();
        const std::int32_t column = (kx % width() + width()) % width();
        return static_cast<std::uint16_t>(rows[static_cast<std::size_t>(row)] +
                                          columns[static_cast<std::size_t>(column)]);
    }
    ModePlace mode(std::int32_t mode) const;
};

struct FieldTables {
    FieldTables() = default;
    FieldTables(const Lattice& lattice, HalfHeightPlaces places);

    HalfHeightPlaces places;
    DeviceArray<Complex> roots;  ///< exp(-2 pi i j / height)
    DeviceArray<Pair> pairs;
    GatherTables bins[2];
    DeviceArray<float> per_mode;  ///< 1 / modes of each shell
};

/// What a launch is about: a part of it for one kind of lattice, the rest for all.
struct FieldRequest {
    Fields fields;
    View view;
    const Complex* roots;
    const Pair* pairs;
    std::int32_t n_pairs;
    std::int32_t zero;  ///< word that is to be 0
    float sites;
    Gather bins;
    float* sums;         ///< (count, kept)
    std::int32_t kept;   ///< the first bins
    const float* scale;  ///< (bins) factors, or null
    const ModePlace* selected;
    std::int32_t n_selected;
    Complex* modes;
    double* totals;
    long long* bad;  ///< lowered to the number of a field that has no result; or null
    float least;     ///< power of a field below which float has lost some of it
};

// fused.cu: squares of 16, 32, 64 and 128

bool has_fused(const Lattice& lattice);
HalfHeightPlaces fused_places(const Lattice& lattice);
void launch_fused(int side, const FieldRequest& request, void* stream);

// rectangle.cu: other rectangles of an even height whose sides have no prime factor above 7, where they fit

/// A pass of butterflies over the whole array.
struct Pass {
    std::int32_t radix, count;
    std::int32_t apart;          ///< places from one value of a butterfly to the next
    const std::uint32_t* first;  ///< (count): place of the first value, and n << 16
    const Complex* twiddles;     ///< (n, radix - 1): factors behind the butterfly; null for none
};
constexpr int kMostPasses = 12;

struct RectanglePlan {
    std::int32_t height, width, passes, threads, shared_bytes;
    std::int32_t rows_apart;  ///< pixels between the values of a butterfly of the first pass
    Pass pass[kMostPasses];
};

struct RectangleLayout;

class RectangleTables {
public:
    /// For the current device; nothing for a lattice that is none of these.
    static std::optional<RectangleTables> of(const Lattice& lattice);

    const RectanglePlan& plan() const { return plan_; }
    HalfHeightPlaces places() const { return places_; }

private:
    explicit RectangleTables(const RectangleLayout& layout);

    RectanglePlan plan_{};
    HalfHeightPlaces places_;
    DeviceArray<std::uint32_t> first_;
    DeviceArray<Complex> twiddles_;
};

void launch_rectangle(const RectanglePlan& plan, const FieldRequest& request, void* stream);

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

// average.cu

struct AverageRequest {
    Ensemble ensemble;
    std::int64_t samples;
    std::int32_t sites, orbits, shells, selected, ndim;
    std::int32_t along[3];            ///< among the selected modes, the first of each axis; 0 for an axis of one site
    const std::int32_t* shell_begin;  ///< (shells + 1): the orbits that each shell begins with
    const double* shell_modes;
    const float* sums;    ///< of the centred fields, by orbit
    const float* modes;   ///< and their selected modes
    const double* means;  ///< of each field, where it is taken out; or null
};
/// out (samples, pitch): values less their mean over samples.
void launch_less_mean_field(const Fields& fields, std::int64_t samples, std::int64_t pitch, float* out, void* stream);
/// out (count, sites): fields less their mean over sites, which comes to `means`.
void launch_less_own_mean(const Fields& fields, std::int64_t sites, float* out, double* means, void* stream);
void launch_averages(const AverageRequest& request, void* stream);

// record.cu

/// What a record's sums are many of.
struct RecordSize {
    std::int64_t blocks, channels, orbits, selected, sites, cross_shells;
    bool signs;
};

/// Products of channels in shells: shell s has the selected modes at[begin[s]] .. at[begin[s + 1] - 1], each with a
/// weight.
struct Cross {
    double* sums;  ///< (blocks, shells, channels, channels)
    const std::int32_t* begin;
    const std::int32_t* at;
    const double* weight;
    std::int32_t shells;  ///< 0 where there are none
};

struct RecordRequest {
    Batch batch;
    Record record;
    RecordSize size;
    Cross cross;
    int ndim;
    std::int32_t along[3];  ///< among the selected modes, the first of each axis; 0 for an axis of one site
    std::int64_t* bad;
};
/// Bytes of the batch's scratch.
std::int64_t record_scratch(const RecordSize& size, Type type, std::int64_t samples);
void launch_record(const RecordRequest& request, void* stream);
void launch_fix_offset(const Fields& sample, std::int64_t channels, std::int64_t sites, const std::int64_t* count,
                       std::int64_t blocks, double* offset, void* stream);

}  // namespace fastcrit::cuda
