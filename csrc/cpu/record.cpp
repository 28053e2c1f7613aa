// Adds a batch of samples to sums by jackknife block.
//
// The batch is cut into spans. A thread measures the fields of a span and keeps what it finds in its cache; when the
// spans before have had their turn, it adds that to the record, block by block in the order of the samples. Only the
// fields themselves are summed before: they would take too long in the turn.
//
// Two things differ for large fields. A span holds too few of them for a sum of its own: they are summed once all are
// measured, a run of sites at a time. And where the batch has few samples for the blocks, its results are kept until
// then too, and a thread adds to a block what is due there: nobody waits for a turn, and the record need not be copied
// in case a later span fails.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#include "measurement.hpp"

namespace fastcrit {
namespace {

// The cut into spans depends on the batch alone, and so do the sums. A span's turn should be short beside its fields,
// and there should be spans for every thread.
constexpr std::int64_t kSpans = 16;
constexpr std::int64_t kSmallestSpan = std::int64_t{256} << 10;  // bytes
constexpr std::int64_t kLargestSpan = std::int64_t{1} << 20;

constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

// Samples of more bytes than this are summed after all are measured. A span holds few of them, and its sum of fields,
// in double, would be as much to write as the fields are to read.
constexpr std::int64_t kLargestSummedBySpan = std::int64_t{256} << 10;
// Sites whose sums a thread then adds to: they stay in its L1 cache.
constexpr std::int64_t kSitesAtOnce = 2048;

/// What a span gives: sums of fields, and results field by field.
template <class T>
struct Found {
    double* field;       ///< (C, sites), or nothing
    double* sign_field;  ///< likewise
    double* totals;      ///< per field
    T* power;            ///< (fields, orbits)
    T* modes;            ///< (fields, selected, re/im)
    T* sign_power;       ///< as power

    /// Laid out from `memory` on; `end` is the first byte behind.
    Found(char* memory, std::int64_t fields, std::int64_t field_sums, std::int64_t orbits, std::int64_t low, bool signs)
        : begin(memory) {
        const auto take = [&](auto*& part, std::int64_t values) {
            part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(memory);
            memory += round_up(values * static_cast<std::int64_t>(sizeof *part), 64);
        };
        take(field, field_sums);
        take(sign_field, signs ? field_sums : 0);
        take(totals, fields);
        take(power, fields * orbits);
        take(modes, fields * low);
        take(sign_power, signs ? fields * orbits : 0);
        end = memory;
    }
    char *begin, *end;
};

/// How a batch is cut, which depends on the batch alone, and what waits until all its spans are measured.
struct Cut {
    std::int64_t span;  ///< samples: whole groups, and so whole registers, in every span but the last
    std::int64_t spans;
    bool results_last;  ///< results of all samples are kept: they take no more memory than the record
    bool fields_last;

    template <class T>
    static Cut of(std::int64_t samples, std::int64_t sample_bytes, std::int64_t group, std::int64_t blocks) {
        const std::int64_t bytes = std::clamp(samples * sample_bytes / kSpans, kSmallestSpan, kLargestSpan);
        Cut cut{};
        cut.span = std::min(samples, round_up(std::max<std::int64_t>(1, bytes / sample_bytes), group));
        cut.spans = (samples + cut.span - 1) / cut.span;
        cut.results_last = cut.spans == 1 || samples * static_cast<std::int64_t>(sizeof(T)) <=
                                                 blocks * static_cast<std::int64_t>(sizeof(double));
        cut.fields_last = cut.results_last || sample_bytes > kLargestSummedBySpan;
        return cut;
    }
};

/// A batch on its way into a record.
template <class T>
class BatchRecord {
public:
    /// `request` is that of the whole batch, but for what a span gives; there is a sample at least.
    BatchRecord(const cpu::Measurement<T>& measurement, const cpu::PowerRequest<T>& request, std::int64_t first,
                const FirstModes& first_modes, const RecordSizes& sizes, const Record& record)
        : measurement_(measurement),
          request_(request),
          kernel_(cpu::kernels<T>()),
          record_(record),
          sizes_(sizes),
          first_(first),
          first_modes_(first_modes),
          signs_(record.sign_power != nullptr),
          samples_(request.count / sizes.channels),
          cut_(Cut::of<T>(samples_, sizes.channels * sizes.sites * static_cast<std::int64_t>(sizeof(T)),
                          measurement.kernel.fields, sizes.blocks)),
          span_bytes_(found_in(nullptr).end - static_cast<char*>(nullptr)) {}

    /// Returns the first field whose result is not finite, or the number of fields. Nothing is added but then.
    std::int64_t run() {
        prepare();
        std::int64_t good = 0;
        try {
            good = measure_spans();
        } catch (...) {
            restore();
            throw;
        }
        if (good < request_.count) {
            restore();
            return good;
        }
        add_what_is_left();
        for (std::int64_t j = 0; j < std::min(sizes_.blocks, samples_); ++j) {
            record_.count[(first_ + j) % sizes_.blocks] += (samples_ - j + sizes_.blocks - 1) / sizes_.blocks;
        }
        return good;
    }

private:
    /// The samples [begin, end) of the batch.
    struct Span {
        std::int64_t begin, end;
    };
    Span span(std::int64_t s) const { return {s * cut_.span, std::min(samples_, (s + 1) * cut_.span)}; }
    Found<T> found_in(char* memory) const {
        return {memory, cut_.span * sizes_.channels, field_sums(), sizes_.orbits, 2 * sizes_.selected, signs_};
    }
    std::int64_t field_sums() const { return cut_.fields_last ? 0 : sizes_.channels * sizes_.sites; }

    /// Memory for all results, or a copy of the record: nothing is to be added when a later span fails or holds a value
    /// that is not finite.
    void prepare() {
        if (cut_.results_last) {
            batch_ = static_cast<char*>(cpu::thread_scratch(cpu::Scratch::batch, cut_.spans * span_bytes_));
            return;
        }
        std::int64_t size = 0;
        each_in_turn([&](const double*, std::int64_t n) { size += n; });
        before_ = static_cast<double*>(
            cpu::thread_scratch(cpu::Scratch::batch, size * static_cast<std::int64_t>(sizeof(double))));
        double* to = before_;
        each_in_turn([&](const double* sums, std::int64_t n) { to = std::copy(sums, sums + n, to); });
    }
    void restore() const {
        if (cut_.results_last) return;  // nothing was added
        const double* from = before_;
        each_in_turn([&](double* sums, std::int64_t n) {
            std::copy(from, from + n, sums);
            from += n;
        });
    }
    /// visit(sums, n) for every array that samples are added to in turns.
    template <class Visit>
    void each_in_turn(const Visit& visit) const {
        for_each_array([&](auto array, const RecordRow& row) {
            if constexpr (std::is_same_v<decltype(array), double * Record::*>) {
                double* const sums = record_.*array;
                if (sums != nullptr && (row.by_block() || !cut_.fields_last)) visit(sums, row.values(sizes_));
            }
        });
    }

    /// Returns as `run` does.
    std::int64_t measure_spans() const {
        std::atomic<std::int64_t> first_bad{request_.count};
        cpu::Turns turns;
        cpu::parallel_for(cut_.spans, [&](std::int64_t s) {
            try {
                const Found<T> found = found_in(memory_of(s));
                const auto [begin, end] = span(s);
                const std::int64_t good = measure(begin * sizes_.channels, end * sizes_.channels, found);
                if (good < end * sizes_.channels) cpu::lower(first_bad, good);
                if (cut_.results_last || !turns.wait_for(s)) return;
                if (first_bad == request_.count) add(begin, end, found);
                turns.pass_on();
            } catch (...) {
                turns.give_up();
                throw;
            }
        });
        return first_bad;
    }
    char* memory_of(std::int64_t s) const {
        return cut_.results_last ? batch_ + s * span_bytes_
                                 : static_cast<char*>(cpu::thread_scratch(cpu::Scratch::results, span_bytes_));
    }

    /// Measures the fields [begin, end). Returns the first whose result is not finite, or the end.
    std::int64_t measure(std::int64_t begin, std::int64_t end, const Found<T>& found) const {
        const std::int64_t group = measurement_.kernel.fields;
        std::memset(found.begin, 0, static_cast<std::size_t>(reinterpret_cast<char*>(found.totals) - found.begin));
        for (std::int64_t f = begin; f < end; f += group) {
            const std::int64_t i = f - begin;
            cpu::PowerRequest<T> request = request_;
            request.fields = request_.fields + f * sizes_.sites;
            request.count = std::min(group, end - f);
            request.out = found.power + i * sizes_.orbits;
            request.modes = found.modes + i * 2 * sizes_.selected;
            request.totals = found.totals + i;
            // First, since the group before had these fields brought into the cache, and the transform displaces them.
            if (!cut_.fields_last) sum_by_channel(kernel_.add_rows, request, f, found.field);
            const std::int64_t good = measurement_.run(request, 0);
            if (good < request.count) return f + good;
            if (!signs_) continue;
            request.sign = true;
            request.out = found.sign_power + i * sizes_.orbits;
            request.n_selected = 0;
            request.totals = nullptr;
            measurement_.run(request, 0);
            if (!cut_.fields_last) sum_by_channel(kernel_.add_signs, request, f, found.sign_field);
        }
        return end;
    }
    /// Adds the fields of a group, of which f is the first, to those of their channels.
    template <class AddRows>
    void sum_by_channel(const AddRows& add_rows, const cpu::PowerRequest<T>& group, std::int64_t f, double* to) const {
        const std::int64_t C = sizes_.channels;
        const std::int64_t sites = sizes_.sites;
        for (std::int64_t c = 0; c < std::min(C, group.count); ++c) {
            const std::int64_t rows = (group.count - c + C - 1) / C;
            add_rows(group.fields + c * sites, C * sites, rows, to + (f + c) % C * sites, sites);
        }
    }

    /// Adds the samples [begin, end) to the record in the turn of their span.
    void add(std::int64_t begin, std::int64_t end, const Found<T>& found) const {
        const cpu::Kernels<double>& doubles = cpu::kernels<double>();
        doubles.add_rows(found.field, 0, 1, record_.field, field_sums());
        if (signs_) doubles.add_rows(found.sign_field, 0, 1, record_.sign_field, field_sums());
        for (std::int64_t j = begin; j < std::min(end, begin + sizes_.blocks); ++j) add_to_block(j, begin, end, found);
    }

    /// Adds samples j, j + B, .. < end of the span that begins at `begin` to their block, but for fields and counts.
    void add_to_block(std::int64_t j, std::int64_t begin, std::int64_t end, const Found<T>& found) const {
        const std::int64_t B = sizes_.blocks;
        const std::int64_t C = sizes_.channels;
        const std::int64_t orbits = sizes_.orbits;
        const std::int64_t low = 2 * sizes_.selected;
        const std::int64_t rows = (end - j + B - 1) / B;
        for (std::int64_t channel = 0; channel < C; ++channel) {
            const std::int64_t place = (first_ + j) % B * C + channel;
            const std::int64_t row = (j - begin) * C + channel;
            const double offset = record_.offset != nullptr ? record_.offset[channel] : 0.0;
            for (std::int64_t r = 0; r < rows; ++r) add_first_modes(found, row + r * B * C, place, offset);
            const auto add_rows = [&](const T* from, double* to, std::int64_t n) {
                kernel_.add_rows(from + row * n, B * C * n, rows, to + place * n, n);
            };
            add_rows(found.power, record_.power, orbits);
            add_rows(found.modes, record_.low, low);
            if (signs_) add_rows(found.sign_power, record_.sign_power, orbits);
        }
    }

    /// Adds k = 0 of the i-th field of a span, as float64 has it, about the offset c, and leaves zeros in its place;
    /// and what is summed of the mean and of the first modes.
    void add_first_modes(const Found<T>& found, std::int64_t i, std::int64_t place, double c) const {
        const auto sites = static_cast<double>(sizes_.sites);
        T* const modes = found.modes + i * 2 * sizes_.selected;
        const double total = found.totals[i] - sites * c;
        const double u = total / sites;
        const double m = c + u;
        // |m| - |c|, without a difference of large numbers where the signs are those of most fields. The first question
        // is whether there is an offset: the signs of fields about zero cannot be foretold.
        const double v = c == 0.0                 ? std::abs(u)
                         : (m < 0.0) == (c < 0.0) ? (c < 0.0 ? -u : u)
                                                  : std::abs(m) - std::abs(c);
        record_.power[place * sizes_.orbits] += total * u;
        record_.low[place * 2 * sizes_.selected] += total;
        found.power[i * sizes_.orbits] = modes[0] = modes[1] = T{0};
        const double terms[4] = {u, v, v * v, m * m * m * m};
        for (int n = 0; n < 4; ++n) record_.moments[place * 4 + n] += terms[n];
        for (std::int64_t axis = 0; axis < sizes_.ndim; ++axis) {
            const std::int64_t at = first_modes_.at[static_cast<std::size_t>(axis)];
            const double re = at == 0 ? total : static_cast<double>(modes[2 * at]);
            const double im = at == 0 ? 0.0 : static_cast<double>(modes[2 * at + 1]);
            record_.first[place * sizes_.ndim + axis] += (re * re + im * im) / sites;
        }
    }

    /// What is left when all spans are measured: blocks, if results were kept, and fields, if they were left for last.
    void add_what_is_left() const {
        const std::int64_t blocks = cut_.results_last ? std::min(sizes_.blocks, samples_) : 0;
        const std::int64_t runs = (sizes_.sites + kSitesAtOnce - 1) / kSitesAtOnce;
        const std::int64_t tasks = blocks + (cut_.fields_last ? sizes_.channels * runs : 0);
        const std::function<void(std::int64_t)> add_one = [&](std::int64_t task) {
            if (task < blocks) {
                add_kept_block(task);
            } else {
                add_sites((task - blocks) / runs, (task - blocks) % runs * kSitesAtOnce);
            }
        };
        if (request_.count * sizes_.sites * static_cast<std::int64_t>(sizeof(T)) > kSmallestSpan) {
            cpu::parallel_for(tasks, add_one);
        } else {  // less work than to wake a thread
            for (std::int64_t task = 0; task < tasks; ++task) add_one(task);
        }
    }
    /// Adds samples j, j + B, .. of the batch to their block, whichever span they are in.
    void add_kept_block(std::int64_t j) const {
        const std::int64_t B = sizes_.blocks;
        for (std::int64_t s = 0; s < cut_.spans; ++s) {
            const auto [begin, end] = span(s);
            const std::int64_t here = begin + (B + j - begin % B) % B;
            if (here < end) add_to_block(here, begin, end, found_in(batch_ + s * span_bytes_));
        }
    }
    /// Adds a run of sites, from x on, of one channel of all samples.
    void add_sites(std::int64_t channel, std::int64_t x) const {
        const std::int64_t at = channel * sizes_.sites + x;
        const std::int64_t pitch = sizes_.channels * sizes_.sites;
        const std::int64_t n = std::min(kSitesAtOnce, sizes_.sites - x);
        kernel_.add_rows(request_.fields + at, pitch, samples_, record_.field + at, n);
        if (signs_) kernel_.add_signs(request_.fields + at, pitch, samples_, record_.sign_field + at, n);
    }

    const cpu::Measurement<T>& measurement_;
    const cpu::PowerRequest<T>& request_;
    const cpu::Kernels<T>& kernel_;
    const Record& record_;
    const RecordSizes sizes_;
    const std::int64_t first_;
    const FirstModes first_modes_;
    const bool signs_;
    const std::int64_t samples_;
    const Cut cut_;
    const std::int64_t span_bytes_;
    char* batch_ = nullptr;     ///< results of all spans, or
    double* before_ = nullptr;  ///< the sums before
};

}  // namespace

template <class T>
std::int64_t Spectrometer::record(const T* fields, std::int64_t samples, std::int64_t first, const Selection& selected,
                                  const Record& record) const {
    selected.check(lattice());
    check_first_sample(first);
    selected.first_modes().check();
    if (samples == 0) return 0;
    const RecordSizes sizes{record.blocks,   record.channels,  bins(Bins::orbits),
                            selected.size(), lattice().ndim(), lattice().sites()};
    cpu::PowerRequest<T> request = tables_->sums<T>(Bins::orbits, &selected);
    cpu::set_bounds(request, sizes.sites, cpu::kOfModes, true);
    request.fields = fields;
    request.count = samples * record.channels;
    const cpu::Measurement<T> measurement = tables_->prepare(request, Bins::orbits);
    return BatchRecord<T>(measurement, request, first, selected.first_modes(), sizes, record).run();
}

template std::int64_t Spectrometer::record<float>(const float*, std::int64_t, std::int64_t, const Selection&,
                                                  const Record&) const;
template std::int64_t Spectrometer::record<double>(const double*, std::int64_t, std::int64_t, const Selection&,
                                                   const Record&) const;

}  // namespace fastcrit
