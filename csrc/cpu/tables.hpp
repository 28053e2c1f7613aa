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
    const std::int32_t* radices;  ///< product n; 4, 2, 3, 5, then other primes
    const T* twiddles;  ///< per pass, for p = 0 .. m-1, u = 1 .. radix-1: re, im of exp(-2 pi i p u / (radix m))
    const T* roots;     ///< per pass of a radix without a codelet: re, im of exp(-2 pi i j / radix)
};

/// What one lattice needs in one precision.
template <class T>
struct PlanTables {
    std::int32_t n0, n1, n2;  ///< sides, slowest first
    std::int32_t plane;       ///< n0 n1
    std::int32_t half;        ///< n2/2 + 1
    /// Distance between consecutive planes of a block, in complex lanes.
    std::int32_t plane_stride;
    std::int32_t work;  ///< complex lanes of work space beside the block: a row pair twice, or one plane
    bool split_row;     ///< a single row of even length: transformed as its even and odd halves
    FftTables<T> along_z, along_y, along_x;
    const T* split_twiddles;       ///< re, im of exp(-2 pi i k / n2), k = 0 .. n2/2, when split_row
    const std::int32_t* mirror;    ///< index in a plane of the mode with (z, y) negated
    const double* fundamental[3];  ///< re, im of exp(-2 pi i j / side), j = 0 .. side-1
};

/// Power of every mode, summed within bins, field by field. Fields are contiguous and `count` of them follow each
/// other.
template <class T>
struct PowerRequest {
    const T* fields;
    std::int64_t count;
    const T* offset;                  ///< one field, subtracted from each; or null
    const std::int32_t* bin_of_mode;  ///< [kx][z][y]
    std::int32_t bins;
    T* sums;                       ///< (count, bins): sum over the full lattice of |phi^|^2 / N in the bin
    const std::int32_t* selected;  ///< indices into [kx][z][y], ascending
    std::int32_t n_selected;
    T* modes;  ///< (count, n_selected, 2): phi^ of the selected modes
};

/// Sums that need no transform: (count, 2 + 2 ndim) doubles: sum, sum of squares, then phi^ at the first wavevector of
/// each axis, slowest axis first.
template <class T>
struct ModesRequest {
    const T* fields;
    std::int64_t count;
    int ndim;
    double* out;
};

/// The kernels of one instruction set in one precision. Each call handles the fields from `first` on: one group of
/// `lanes` fields (power, autocorrelation) or one field (modes). Scratch is 64-byte aligned.
template <class T>
struct Kernels {
    int lanes;
    std::int64_t (*power_scratch)(const PlanTables<T>&, const PowerRequest<T>&);  ///< bytes
    void (*power)(const PlanTables<T>&, const PowerRequest<T>&, std::int64_t first, void* scratch);
    std::int64_t (*autocorrelation_scratch)(const PlanTables<T>&, const PowerRequest<T>&);
    void (*autocorrelation)(const PlanTables<T>&, const PowerRequest<T>&, std::int64_t first, void* scratch);
    std::int64_t (*modes_scratch)(const PlanTables<T>&);
    void (*modes)(const PlanTables<T>&, const ModesRequest<T>&, std::int64_t first, void* scratch);
};

}  // namespace fastcrit::cpu
