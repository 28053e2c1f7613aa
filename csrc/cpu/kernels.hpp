// What the kernels read, as plain pointers and sizes: code compiled for a newer instruction set must not instantiate
// anything (a std::vector member, say) that the linker could also hand to an older processor.
#pragma once

#include <cstdint>

namespace fastcrit::cpu {

/// One complex transform of length n as a chain of Stockham passes.
template <class T>
struct FftTables {
    std::int32_t n;
    std::int32_t passes;
    const std::int32_t* radices;  ///< product n; primes without a codelet first, powers of two last
    const T* twiddles;  ///< per pass, for p = 0 .. m-1, u = 1 .. radix-1: re, im of exp(-2 pi i p u / (radix m))
    const T* roots;     ///< per pass of a radix without a codelet: re, im of exp(-2 pi i j / radix)
    // Only where a prime factor is large: then there are no passes.
    const FftTables* convolution;  ///< transform of a smooth length >= 2 n - 1; or null
    const T* chirp;                ///< re, im of exp(-pi i j^2 / n), j < n
    const T* chirp_spectrum;       ///< transform of the conjugate chirp over that length
};

/// Values in the widest register.
inline constexpr std::int32_t kMostLanes = 16;

/// Powers that are added side by side, since an addition takes a few cycles.
inline constexpr int kPlaceChains = 8;

/// Values in the largest tile of `first_modes`.
inline constexpr std::int32_t kTileValues = 8 * kMostLanes;

/// What one lattice needs in one precision.
template <class T>
struct PlanTables {
    std::int32_t n0, n1, n2;  ///< sides, slowest first
    std::int32_t plane;       ///< n0 n1
    std::int32_t half;        ///< n2/2 + 1
    /// Distance between consecutive planes of a block, in complex lanes.
    std::int32_t plane_stride;
    std::int32_t spare;          ///< complex lanes of work space beside the block: a row pair twice, or one plane
    std::int32_t lines_along_z;  ///< behind it and what convolutions need, two lines along z, twice
    std::int32_t work;           ///< all of it
    bool split_row;              ///< a single row of even length: transformed as its even and odd halves
    FftTables<T> along_z, along_y, along_x;
    const T* split_twiddles;     ///< re, im of exp(-2 pi i k / n2), k = 0 .. n2/2, when split_row
    const std::int32_t* mirror;  ///< index in a plane of the mode with (z, y) negated
    // One mode of every two that are each other's mirror image in a plane is a row of `lines`; see lines.hpp.
    std::int32_t rows;
    std::int32_t own_mirrors;          ///< modes that are their own mirror image, two to a row: 1, 2 or 4
    const std::int32_t* mode_of_half;  ///< these first, then one of each pair, in the order of the rows
    const std::int32_t* row_of;        ///< row of a mode of the plane, or ~row for the second of two in a row
    // Where `lines` leaves their powers: at kx * power_pitch + row, those of the second of two in a row at
    // second_powers + kx * kMostLanes + row.
    std::int64_t power_pitch;
    std::int64_t second_powers;
    std::int64_t powers;  ///< all places
    const T* wave_re[3];  ///< of exp(-2 pi i j / side), j = 0 .. side-1, for each axis
    const T* wave_im[3];
    // Of the first values of a field, in the order of memory: the first mode along x and along y.
    const T* tile_x_re;
    const T* tile_x_im;
    const T* tile_y_re;
    const T* tile_y_im;
};

/// Power of every mode, summed within bins, field by field. Fields are contiguous and `count` of them follow each
/// other.
template <class T>
struct PowerRequest {
    const T* fields;
    std::int64_t count;
    const T* offset = nullptr;  ///< one field, subtracted from each; or null
    bool sign = false;          ///< transform the signs, +1 or -1, of the values instead

    std::int32_t bins;
    const std::int32_t* bin_of_mode;  ///< [kx][z][y]
    // For `lines`: the places of the powers of each bin, where `powers` of the plan, the place of a zero, stands for
    // none. Bin after bin, a multiple of kPlaceChains each, the last before places_end; or, if bins have few, (layers,
    // bins).
    const std::int32_t* places = nullptr;
    const std::int32_t* places_end = nullptr;
    std::int32_t layers = 0;   ///< even
    std::int32_t kept_bins;    ///< bins written, from the first on
    const T* scale = nullptr;  ///< per bin, what the sum of (2 |phi^|)^2 is multiplied with; or null for
    T factor = T{1};           ///< the same in all bins
    T* out;                    ///< (count, kept_bins)

    std::int32_t n_selected = 0;
    const std::int32_t* slot = nullptr;  ///< [kx][z][y]: place among the selected modes, or -1
    std::int32_t selected_columns = 0;   ///< kx of all selected modes are below this
    T* modes = nullptr;                  ///< (count, n_selected, re/im): phi^ of the selected modes
    double* totals = nullptr;            ///< (count): sum over sites in double; or null. Not with an offset.

    // Fields whose first bin (k = 0; of autocorrelations the lag 0) and all bins together are not in these bounds,
    // before they are scaled, are reported by the kernel, and measured again in other units: see again.cpp.
    T least = T{0};
    T most = T{0};
    // The mean square over sites for which results are to be had; outside, and unless 0, a field counts as not finite.
    double lowest = 0.0;
    double highest = 0.0;
};

/// A uniform part is taken out of a field before it is transformed where its square is so many times the variance: the
/// transform errs by eps of the field's size in every mode, here 32 (in double, 4096) standard deviations. Below that,
/// fields are transformed as they are.
template <class T>
inline constexpr T kHeaviest = sizeof(T) == sizeof(float) ? T{1 << 10} : T{1 << 24};

/// Modes that need no transform: (1 + 2 ndim, count) doubles: sum over the field, then re and im of phi^ at the first
/// wavevector of each axis, slowest axis first.
template <class T>
struct FirstModesRequest {
    const T* fields;
    std::int64_t count;
    int ndim;
    double* out;
};

/// One kind of measurement of one instruction set. A call handles the `fields` fields from `first` on and returns which
/// of them want a second look, a bit each: those with a result that is not finite, outside the bounds of the request,
/// or with a uniform part that outweighs the rest. Scratch is 64-byte aligned.
template <class T>
struct PowerKernel {
    int fields;
    std::int64_t (*scratch)(const PlanTables<T>&, const PowerRequest<T>&);  ///< bytes
    std::uint32_t (*run)(const PlanTables<T>&, const PowerRequest<T>&, std::int64_t first, void* scratch);
};

/// The kernels of one instruction set in one precision.
template <class T>
struct Kernels {
    PowerKernel<T> power;            ///< a field in each lane
    PowerKernel<T> lines;            ///< power again, of one field with its lines in the lanes
    PowerKernel<T> autocorrelation;  ///< a field in each lane
    std::int64_t (*first_modes_scratch)(const PlanTables<T>&);
    /// The fields from begin on, up to the first with a value that is not finite or with a uniform part that outweighs
    /// the rest: returns it, or end.
    std::int64_t (*first_modes)(const PlanTables<T>&, const FirstModesRequest<T>&, std::int64_t begin, std::int64_t end,
                                void* scratch);
    void (*add_rows)(const T* from, std::int64_t pitch, std::int64_t rows, double* to, std::int64_t n);
    void (*add_signs)(const T* from, std::int64_t pitch, std::int64_t rows, double* to, std::int64_t n);
};

}  // namespace fastcrit::cpu
