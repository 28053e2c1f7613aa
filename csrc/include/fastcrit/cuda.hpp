// The same measurements on a CUDA device. Pointers are device pointers (float and double arrays, aligned as such unless
// said), streams are cudaStream_t, results are those of spectra.hpp. Methods only launch kernels on the stream: they
// neither allocate nor synchronise, and can be captured in a graph. No floating-point atomics: a field's results are
// the same bits in every run, batch and place in the batch.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fastcrit/spectra.hpp"

namespace fastcrit::cuda {

enum class Type { float32, float16, bfloat16 };

/// Throws std::invalid_argument unless the name is one of the enumerators'.
Type parse_type(const std::string& name);

/// A batch of real fields, each after the other.
struct Fields {
    const void* data;
    Type type;
    std::int64_t count;
};

/// How `power` sees a field.
struct View {
    const float* offset = nullptr;  ///< (sites), subtracted from every field; or null
    bool signs = false;             ///< the signs of the values (+1 for >= 0, else -1) instead of the values
};

class Spectrometer;
class SelectedModes;

/// What is subtracted from the samples of an ensemble: nothing, each field's mean over sites, their mean over samples.
enum class Center { none, sample, ensemble };

/// Throws std::invalid_argument unless the name is one of the enumerators'.
Center parse_center(const std::string& name);

/// How `average` sees an ensemble, and where it puts what it finds. Fields are (samples, channels, sites), sample j is
/// in block j mod blocks; all sums are of the centred fields.
struct Ensemble {
    Fields fields;
    std::int64_t channels, blocks;
    Center center;
    const SelectedModes* selected;  ///< those of the first modes along each axis among them
    double* means;  ///< (2, channels, kept): mean over samples of the first shells, unbiased; its standard error
    std::int32_t kept;
    double* power;  ///< (blocks, channels, orbits): |phi^|^2 / N over the modes of the orbit
    double* first;  ///< (blocks, channels, ndim): the same at 2 pi / L along each axis alone
    /// (1 + channels (1 + shells)), in the host's memory where the device writes to it: the first, an int64, is lowered
    /// to the number of a field with a result that is not finite, or whose square float does not hold to its last
    /// digit. Of each channel the mean square of the first sample, with Center::sample that of all samples' means; then
    /// sums over samples by shell.
    double* note;
    void* scratch;  ///< as many bytes as `average_scratch` says, 16-byte aligned
};

/// Selected modes with their tables on the device of a spectrometer, which it must not outlive.
class SelectedModes {
public:
    /// Allocates and synchronises.
    SelectedModes(const Spectrometer& spectrometer, const Selection& selection);
    ~SelectedModes();
    SelectedModes(SelectedModes&&) noexcept;

    std::int64_t size() const;
    const Spectrometer& of() const;
    /// Throws std::invalid_argument unless they were made for this spectrometer.
    void check(const Spectrometer& spectrometer) const;

private:
    friend class Spectrometer;
    struct Tables;
    std::unique_ptr<const Tables> tables_;
};

/// Where `power` puts what it finds, field by field.
struct PowerResults {
    float* sums;                              ///< (count, bins): sum over the bin's modes of |phi^|^2 / N
    const SelectedModes* selected = nullptr;  ///< or null
    float* modes = nullptr;                   ///< (count, selected, re/im), 8-byte aligned: phi^; or null
    /// (count); or null. NaN where a result of the field is not finite, or lost since its square is too small for float
    double* totals = nullptr;
    std::int32_t kept = 0;  ///< `power`: the first bins are wanted; 0 for all
    bool means = false;     ///< `power`, of shells: divided by the shell's modes
    /// `power`: lowered to the number of the first field with a result that is not finite, or whose square is below
    /// what float holds to its last digit; or null.
    std::int64_t* bad = nullptr;
};

/// Which of the selected modes make up shells, for products of channels in them.
class ChannelProducts {
public:
    /// Shell s has the selected modes at[begin[s]] .. at[begin[s + 1] - 1], whose squares weigh as much. Allocates and
    /// synchronises.
    ChannelProducts(const SelectedModes& selected, const std::vector<std::int32_t>& begin,
                    const std::vector<std::int32_t>& at, const std::vector<double>& weight);
    ~ChannelProducts();
    ChannelProducts(ChannelProducts&&) noexcept;

    std::int64_t shells() const;

private:
    friend class Spectrometer;
    struct Tables;
    std::unique_ptr<const Tables> tables_;
};

/// What `power` found in a batch, and the batch itself.
struct Batch {
    Fields fields;           ///< count: samples times channels
    std::int64_t first;      ///< number of the first sample
    const float* sums;       ///< by orbit
    const float* modes;      ///< of the selected modes
    const double* totals;    ///< sums over sites
    const float* sign_sums;  ///< as sums, of the signs; null where the record has none
    const ChannelProducts* products = nullptr;
    double* cross = nullptr;  ///< (blocks, shells, channels, channels), to which the products are added
    void* scratch = nullptr;  ///< as many bytes as `record_scratch` says, 8-byte aligned
};

/// A lattice with its tables on one device.
class Spectrometer {
public:
    /// Allocates and synchronises.
    Spectrometer(const std::vector<std::int64_t>& shape, int device);
    ~Spectrometer();
    Spectrometer(const Spectrometer&) = delete;
    Spectrometer& operator=(const Spectrometer&) = delete;

    const Lattice& lattice() const;
    int device() const;
    std::int64_t bins(Bins bins) const;
    /// Whether `power` serves this lattice: rectangles of an even height whose sides have no prime factor above 7, as
    /// far as half their values fit into a block's shared memory.
    bool fused() const;

    /// From pixels to sums in one kernel; totals are sums over sites in double. Throws std::logic_error unless fused.
    void power(const Fields& fields, const View& view, Bins bins, const PowerResults& results, void* stream) const;

    /// The same from the half spectra (count, N1, .., Nd/2 + 1, re/im), 8-byte aligned, that rfftn makes of real
    /// fields. totals are set to NaN where a sum is not finite and otherwise left as they are.
    void power_from_half_spectrum(const float* spectrum, std::int64_t count, Bins bins, const PowerResults& results,
                                  void* stream) const;

    /// Bytes that `first_modes` needs, 8-byte aligned.
    std::int64_t first_modes_scratch(std::int64_t count) const;
    /// out (1 + 2 ndim, count): sum, then re and im of phi^ at 2 pi / L of each axis, slowest first. Accumulated in
    /// float over at most 64 values, then in double; the sum in double.
    void first_modes(const Fields& fields, double* out, void* scratch, void* stream) const;

    /// sums (count, lag shells) over the lags of each shell of correlation (count, N1, .., Nd), which is even.
    void lag_sums(const float* correlation, std::int64_t count, float* sums, void* stream) const;

    /// Bytes that `record` needs for a batch of so many samples.
    std::int64_t record_scratch(Type type, std::int64_t samples, const SelectedModes& selected, const Record& record,
                                const ChannelProducts* products) const;
    /// Adds to a record whose arrays are on the device, as Spectrometer::record does, but leaves out samples with a
    /// total that is not finite; (first + j) C + c of their first such field lowers *bad. A batch is summed in pieces
    /// that its number of samples fixes: the same batches give the same bits, other batches the same to rounding.
    void record(const Batch& batch, const SelectedModes& selected, const Record& record, std::int64_t* bad,
                void* stream) const;
    /// Sets the offsets of a record without samples from the first of a batch; those of one that has some stay.
    void fix_offset(const Fields& fields, const Record& record, double* offset, void* stream) const;

    /// Bytes that `average` needs for so many fields.
    std::int64_t average_scratch(std::int64_t count, Center center, const SelectedModes& selected) const;
    /// Averages over the samples of an ensemble, in three launches, or two where nothing is subtracted. Throws
    /// std::logic_error unless fused.
    void average(const Ensemble& ensemble, void* stream) const;

private:
    friend class SelectedModes;
    struct Tables;
    std::unique_ptr<const Tables> tables_;
};

}  // namespace fastcrit::cuda
