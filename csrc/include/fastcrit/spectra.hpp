// What the core computes: batches of real fields in, sums over modes out. Deterministic: every field is computed alone,
// in one lane, so the result does not depend on the batch, its order or the number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "fastcrit/lattice.hpp"

namespace fastcrit {

/// How modes are gathered: in shells of |k|, or in the finer classes that lattice symmetry makes equal.
enum class Bins { shells, orbits };

/// A lattice with its tables in both precisions. Immutable and shared freely between threads.
class Spectrometer {
public:
    explicit Spectrometer(const std::vector<std::int64_t>& shape);
    ~Spectrometer();
    Spectrometer(const Spectrometer&) = delete;
    Spectrometer& operator=(const Spectrometer&) = delete;

    const Lattice& lattice() const;
    std::int64_t bins(Bins bins) const;

    /// sums (count, bins): sum over the bin's modes of |phi^|^2 / N, phi = field - offset. offset may be null.
    /// selected: indices into the half spectrum [kx][z][y], ascending; modes (count, selected, re/im): their phi^.
    template <class T>
    void power(const T* fields, std::int64_t count, const T* offset, Bins bins, T* sums,
               const std::vector<std::int32_t>& selected = {}, T* modes = nullptr) const;

    /// sums (count, lag shells): sum over the lags of the shell of C(r) = 1/N sum_x phi(x) phi(x + r), periodic.
    template <class T>
    void autocorrelation(const T* fields, std::int64_t count, const T* offset, T* sums) const;

    /// out (count, 2 + 2 ndim): sum, sum of squares, then re and im of phi^ at 2 pi / L of each axis, slowest first.
    template <class T>
    void modes(const T* fields, std::int64_t count, double* out) const;

private:
    struct Tables;
    std::unique_ptr<const Tables> tables_;
};

/// Name of the instruction set in use: "baseline", "avx2" or "avx512".
const char* instruction_set();
/// Sets that this processor can run, best first.
std::vector<const char*> available_instruction_sets();
/// Throws std::invalid_argument when the processor lacks the set or it was not compiled in.
void use_instruction_set(const char* name);

/// Threads that a call may use, this one included. At least 1.
int num_threads();
void set_num_threads(int threads);

}  // namespace fastcrit
