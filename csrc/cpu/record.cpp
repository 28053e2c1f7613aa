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
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <stdexcept>

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

/// The arrays of a record that samples are added to in turns, and their sizes.
struct Part {
    double* data;
    std::int64_t size;
};
std::array<Part, 7> parts(const Record& record, std::int64_t orbits, std::int64_t low, std::int64_t ndim,
                          std::int64_t field_sums) {
    const std::int64_t places = record.blocks * record.channels;
    const std::int64_t signs = record.sign_power != nullptr ? 1 : 0;
    return {{{record.power, places * orbits},
             {record.low, places * low},
             {record.first, places * ndim},
             {record.moments, places * 4},
             {record.field, field_sums},
             {record.sign_power, signs * places * orbits},
             {record.sign_field, signs * field_sums}}};
}

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
    Found(char* memory, std::int64_t fields, std::int64_t field_sums, std::int64_t orbits, std::int64_t low,
          bool signs) {
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
    char* end;
};

// Sample numbers leave room for the batch behind them.
constexpr std::int64_t kLastSample = std::int64_t{1} << 62;

}  // namespace

template <class T>
std::int64_t Spectrometer::record(const T* fields, std::int64_t samples, std::int64_t first, const Selection& selected,
                                  const Record& record) const {
    selected.check(lattice());
    if (first < 0 || first > kLastSample) {
        throw std::invalid_argument("first: expected the number of a sample, 0 to 2^62, got " + std::to_string(first));
    }
    std::vector<std::int64_t> along;  // place among the selected of the first mode of each axis
    for (int axis = 3 - lattice().ndim(); axis < 3; ++axis) {
        const std::int64_t step[3] = {lattice().sides()[1], 1, lattice().plane()};
        const std::int64_t mode = lattice().sides()[axis] > 1 ? step[axis] : 0;
        along.push_back(selected.slot()[static_cast<std::size_t>(mode)]);
    }
    if (selected.slot()[0] != 0 || *std::min_element(along.begin(), along.end()) < 0) {
        throw std::invalid_argument("selected: expected k = 0 and the modes at 2 pi / L along each axis among them");
    }
    if (samples == 0) return 0;
    const std::int64_t B = record.blocks;
    const std::int64_t C = record.channels;
    const std::int64_t sites = lattice().sites();
    const std::int64_t orbits = bins(Bins::orbits);
    const std::int64_t low = 2 * std::int64_t{selected.size()};
    const auto ndim = static_cast<std::int64_t>(along.size());
    const bool signs = record.sign_power != nullptr;

    cpu::PowerRequest<T> common = tables_->sums<T>(Bins::orbits, &selected);
    cpu::set_bounds(common, sites, cpu::kOfModes, true);
    const cpu::Measurement<T> measurement = tables_->prepare(common, Bins::orbits);
    const cpu::Kernels<T>& kernel = cpu::kernels<T>();

    const std::int64_t group = measurement.kernel.fields;
    const std::int64_t sample_bytes = C * sites * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t span_bytes = std::clamp(samples * sample_bytes / kSpans, kSmallestSpan, kLargestSpan);
    // Whole groups, and so whole registers, in every span but the last.
    const std::int64_t span = std::min(samples, round_up(std::max<std::int64_t>(1, span_bytes / sample_bytes), group));
    const std::int64_t spans = (samples + span - 1) / span;
    // Results of all samples then take no more memory than the record.
    const bool keep =
        spans == 1 || samples * static_cast<std::int64_t>(sizeof(T)) <= B * static_cast<std::int64_t>(sizeof(double));
    const bool fields_last = keep || sample_bytes > kLargestSummedBySpan;
    const std::int64_t field_sums = fields_last ? 0 : C * sites;
    const std::int64_t memory =
        Found<T>(nullptr, span * C, field_sums, orbits, low, signs).end - static_cast<char*>(nullptr);
    const auto found_in = [&](char* own) { return Found<T>(own, span * C, field_sums, orbits, low, signs); };

    // Measures the fields [begin, end). Returns the first whose result is not finite, or the end.
    const auto measure = [&](std::int64_t begin, std::int64_t end, const Found<T>& found) {
        for (std::int64_t f = begin; f < end; f += group) {
            const std::int64_t i = f - begin;
            cpu::PowerRequest<T> request = common;
            request.fields = fields + f * sites;
            request.count = std::min(group, end - f);
            request.out = found.power + i * orbits;
            request.modes = found.modes + i * low;
            request.totals = found.totals + i;
            const auto sum_by_channel = [&](const auto& add_rows, double* to) {
                for (std::int64_t c = 0; c < std::min(C, request.count); ++c) {
                    const std::int64_t rows = (request.count - c + C - 1) / C;
                    add_rows(request.fields + c * sites, C * sites, rows, to + (f + c) % C * sites, sites);
                }
            };
            // First, since the group before had these fields brought into the cache, and the transform displaces them.
            if (!fields_last) sum_by_channel(kernel.add_rows, found.field);
            const std::int64_t good = measurement.run(request, 0);
            if (good < request.count) return f + good;
            if (!signs) continue;
            request.sign = true;
            request.out = found.sign_power + i * orbits;
            request.n_selected = 0;
            request.totals = nullptr;
            measurement.run(request, 0);
            if (!fields_last) sum_by_channel(kernel.add_signs, found.sign_field);
        }
        return end;
    };

    // Adds samples j, j + B, .. < end of the span that begins at `begin` to their block, but for fields and counts.
    const auto add_to_block = [&](std::int64_t j, std::int64_t begin, std::int64_t end, const Found<T>& found) {
        const std::int64_t b = (first + j) % B;
        const std::int64_t rows = (end - j + B - 1) / B;
        for (std::int64_t channel = 0; channel < C; ++channel) {
            const std::int64_t place = b * C + channel;
            const std::int64_t row = (j - begin) * C + channel;
            for (std::int64_t r = 0; r < rows; ++r) {
                const std::int64_t i = row + r * B * C;
                T* const modes = found.modes + i * low;
                // k = 0, the first orbit and the first selected mode, as float64 has it, about the offset.
                const double c = record.offset != nullptr ? record.offset[channel] : 0.0;
                const double total = found.totals[i] - static_cast<double>(sites) * c;
                const double u = total / static_cast<double>(sites);
                const double m = c + u;
                // |m| - |c|, without a difference of large numbers where the signs are those of most fields. The first
                // question is whether there is an offset: the signs of fields about zero cannot be foretold.
                const double v = c == 0.0                 ? std::abs(u)
                                 : (m < 0.0) == (c < 0.0) ? (c < 0.0 ? -u : u)
                                                          : std::abs(m) - std::abs(c);
                record.power[place * orbits] += total * u;
                record.low[place * low] += total;
                found.power[i * orbits] = modes[0] = modes[1] = T{0};
                const double terms[4] = {u, v, v * v, m * m * m * m};
                for (int n = 0; n < 4; ++n) record.moments[place * 4 + n] += terms[n];
                for (std::int64_t axis = 0; axis < ndim; ++axis) {
                    const std::int64_t at = along[static_cast<std::size_t>(axis)];
                    const double re = at == 0 ? total : static_cast<double>(modes[2 * at]);
                    const double im = at == 0 ? 0.0 : static_cast<double>(modes[2 * at + 1]);
                    record.first[place * ndim + axis] += (re * re + im * im) / static_cast<double>(sites);
                }
            }
            kernel.add_rows(found.power + row * orbits, B * C * orbits, rows, record.power + place * orbits, orbits);
            kernel.add_rows(found.modes + row * low, B * C * low, rows, record.low + place * low, low);
            if (!signs) continue;
            kernel.add_rows(found.sign_power + row * orbits, B * C * orbits, rows, record.sign_power + place * orbits,
                            orbits);
        }
    };

    // Adds the samples [begin, end) to the record in the turn of their span.
    const auto add = [&](std::int64_t begin, std::int64_t end, const Found<T>& found) {
        const cpu::Kernels<double>& doubles = cpu::kernels<double>();
        doubles.add_rows(found.field, 0, 1, record.field, field_sums);
        if (signs) doubles.add_rows(found.sign_field, 0, 1, record.sign_field, field_sums);
        for (std::int64_t j = begin; j < std::min(end, begin + B); ++j) add_to_block(j, begin, end, found);
    };

    // What is left when all spans are measured: blocks, if results were kept, and fields, if they were left for last.
    const std::int64_t last_blocks = keep ? std::min(B, samples) : 0;
    const std::int64_t runs = (sites + kSitesAtOnce - 1) / kSitesAtOnce;
    char* batch = nullptr;  // results of all spans
    const std::function<void(std::int64_t)> add_last = [&](std::int64_t task) {
        if (task < last_blocks) {
            for (std::int64_t s = 0; s < spans; ++s) {
                const std::int64_t begin = s * span;
                const std::int64_t end = std::min(samples, begin + span);
                const std::int64_t j = begin + (B + task - begin % B) % B;  // the first with task = j mod B
                if (j < end) add_to_block(j, begin, end, found_in(batch + s * memory));
            }
            return;
        }
        const std::int64_t c = (task - last_blocks) / runs;
        const std::int64_t x = (task - last_blocks) % runs * kSitesAtOnce;
        const std::int64_t at = c * sites + x;
        const std::int64_t n = std::min(kSitesAtOnce, sites - x);
        kernel.add_rows(fields + at, C * sites, samples, record.field + at, n);
        if (signs) kernel.add_signs(fields + at, C * sites, samples, record.sign_field + at, n);
    };

    // So that nothing is added when a later span fails or holds a value that is not finite.
    const auto all = parts(record, orbits, low, ndim, field_sums);
    double* before = nullptr;
    if (keep) {
        batch = static_cast<char*>(cpu::thread_scratch(cpu::Scratch::batch, spans * memory));
    } else {
        std::int64_t size = 0;
        for (const Part& part : all) size += part.size;
        before = static_cast<double*>(
            cpu::thread_scratch(cpu::Scratch::batch, size * static_cast<std::int64_t>(sizeof(double))));
        double* to = before;
        for (const Part& part : all) to = std::copy(part.data, part.data + part.size, to);
    }
    const auto restore = [&] {
        if (keep) return;  // nothing was added
        const double* from = before;
        for (const Part& part : all) {
            std::copy(from, from + part.size, part.data);
            from += part.size;
        }
    };
    std::atomic<std::int64_t> first_bad{samples * C};
    cpu::Turns turns;
    try {
        cpu::parallel_for(spans, [&](std::int64_t s) {
            try {
                auto* const own =
                    keep ? batch + s * memory : static_cast<char*>(cpu::thread_scratch(cpu::Scratch::results, memory));
                const Found<T> found = found_in(own);
                std::memset(own, 0, static_cast<std::size_t>(reinterpret_cast<char*>(found.totals) - own));
                const std::int64_t begin = s * span;
                const std::int64_t end = std::min(samples, begin + span);
                const std::int64_t good = measure(begin * C, end * C, found);
                if (good < end * C) cpu::lower(first_bad, good);
                if (keep || !turns.wait_for(s)) return;
                if (first_bad == samples * C) add(begin, end, found);
                turns.pass_on();
            } catch (...) {
                turns.give_up();
                throw;
            }
        });
    } catch (...) {
        restore();
        throw;
    }
    if (first_bad < samples * C) {
        restore();
        return first_bad;
    }
    const std::int64_t last = last_blocks + (fields_last ? C * runs : 0);
    if (samples * sample_bytes > kSmallestSpan) {
        cpu::parallel_for(last, add_last);
    } else {  // less work than to wake a thread
        for (std::int64_t task = 0; task < last; ++task) add_last(task);
    }
    for (std::int64_t j = 0; j < std::min(B, samples); ++j) {
        record.count[(first + j) % B] += (samples - j + B - 1) / B;
    }
    return samples * C;
}

template std::int64_t Spectrometer::record<float>(const float*, std::int64_t, std::int64_t, const Selection&,
                                                  const Record&) const;
template std::int64_t Spectrometer::record<double>(const double*, std::int64_t, std::int64_t, const Selection&,
                                                   const Record&) const;

}  // namespace fastcrit
