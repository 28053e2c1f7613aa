// What the core computes: batches of real fields in, sums over modes out. Deterministic: every field is computed alone,
// in one lane, so the result does not depend on the batch, its order or the number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "fastcrit/lattice.hpp"
#include "fastcrit/record.hpp"
#include "fastcrit/selection.hpp"

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

    // Each of the following returns the number of the first field whose result is not finite, or `count`. A result that
    // T is too narrow for is no result: neither one that is too large, nor that of a field which is not 0 and whose
    // mean square is below the smallest normal number. Power and modes of a field whose uniform part outweighs the rest
    // are right to eps of the rest.

    /// mean (count, shells): mean of |phi^|^2 / N over the modes of each of the first `shells` shells.
    template <class T>
    std::int64_t shell_power(const T* fields, std::int64_t count, std::int64_t shells, T* mean) const;

    /// sums (count, bins): sum over the bin's modes of |phi^|^2 / N, phi = field - offset. offset may be null.
    /// modes (count, selected, re/im): phi^ of the selected modes; both null, or neither.
    template <class T>
    std::int64_t power(const T* fields, std::int64_t count, const T* offset, Bins bins, T* sums,
                       const Selection* selected = nullptr, T* modes = nullptr) const;

    /// sums (count, lag shells): sum over the lags of the shell of C(r) = 1/N sum_x phi(x) phi(x + r), periodic.
    template <class T>
    std::int64_t autocorrelation(const T* fields, std::int64_t count, const T* offset, T* sums) const;

    /// Adds a batch of samples, each of `record.channels` fields; sample j goes to block (first + j) mod blocks. k = 0
    /// is summed in double. `selected` holds k = 0 and the modes at 2 pi / L along each axis. Nothing is added when a
    /// result is not finite.
    template <class T>
    std::int64_t record(const T* fields, std::int64_t samples, std::int64_t first, const Selection& selected,
                        const Record& record) const;

    /// Adds every field to `to` (sites), site by site and in their order: the bits do not depend on how many come in a
    /// call.
    template <class T>
    void add_fields(const T* fields, std::int64_t count, double* to) const;

    /// out (1 + 2 ndim, count): sum, then re and im of phi^ at 2 pi / L of each axis, slowest first. In one read,
    /// without a transform.
    template <class T>
    std::int64_t first_modes(const T* fields, std::int64_t count, double* out) const;

private:
    struct Tables;
    std::unique_ptr<const Tables> tables_;
};

/// Name of the instruction set in use: "baseline" (SSE2), "avx2" or "avx512" on x86-64, "neon" on aarch64.
const char* instruction_set();
/// Sets that this processor can run, best first.
std::vector<const char*> available_instruction_sets();
/// Throws std::invalid_argument when the processor lacks the set or it was not compiled in.
void use_instruction_set(const char* name);

/// Fields are transformed side by side, one in each lane of a register, while their block of half spectra takes no more
/// than this many bytes a thread; larger ones are transformed one at a time. Negative: the default, 1.25
/// MiB for 16 lanes and 1 MiB for fewer.
void set_largest_block(std::int64_t bytes);

/// Threads that a call may use, this one included. At least 1.
int num_threads();
void set_num_threads(int threads);

}  // namespace fastcrit
