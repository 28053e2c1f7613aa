// What a spectrometer keeps on its device, and how its methods launch the kernels with it.
#include <algorithm>
#include <array>
#include <cfloat>
#include <stdexcept>

#include "common/roots.hpp"
#include "fastcrit/cuda.hpp"
#include "kernels.hpp"

namespace fastcrit::cuda {
namespace {

// A bin is summed by a thread, a warp or a block of 256, so that its owner has some values to sum and a field some
// thousand owners. Looks at the lattice alone, as does every sum's order.
std::int32_t threads_of_bin(std::size_t values, std::int32_t bins) {
    const std::size_t mean = values / static_cast<std::size_t>(bins);
    return mean <= 8 ? 1 : mean <= 4096 ? 32 : 256;
}

SegmentTables<std::int32_t> make_segments(std::vector<std::pair<std::int32_t, std::int32_t>> entries,
                                          std::int32_t bins) {
    const std::int32_t threads = threads_of_bin(entries.size(), bins);
    return {std::move(entries), bins, threads, [](std::int32_t at) { return at < 0 ? ~at : at; }};
}

/// Index in row-major order, `width` values a row, of an index in the order [x][z][y].
std::int32_t by_rows(const Lattice& lattice, std::int32_t index, std::int32_t width) {
    return index % lattice.plane() * width + index / lattice.plane();
}

/// Entries of the half lattice [x][z][y], whose bins are given, for values whose rows are of a width.
std::vector<std::pair<std::int32_t, std::int32_t>> half_lattice(const Lattice& lattice,
                                                                const std::vector<std::int32_t>& bins,
                                                                std::int32_t width) {
    std::vector<std::pair<std::int32_t, std::int32_t>> entries;
    for (std::int32_t i = 0; i < static_cast<std::int32_t>(bins.size()); ++i) {
        const std::int32_t at = by_rows(lattice, i, width);
        entries.emplace_back(bins[static_cast<std::size_t>(i)], lattice.weight(i / lattice.plane()) == 1 ? ~at : at);
    }
    return entries;
}

std::int32_t count_bins(const Lattice& lattice, Bins bins) {
    return bins == Bins::shells ? lattice.shells() : static_cast<std::int32_t>(lattice.orbits().size());
}

}  // namespace

DeviceArray<Complex> make_roots(std::int32_t n) {
    std::vector<Complex> roots;
    for (const std::complex<float>& root : single_roots(n)) roots.push_back({root.real(), root.imag()});
    return DeviceArray<Complex>(roots);
}

Type parse_type(const std::string& name) {
    if (name == "float32") return Type::float32;
    if (name == "float16") return Type::float16;
    if (name == "bfloat16") return Type::bfloat16;
    throw std::invalid_argument("dtype: expected 'float32', 'float16' or 'bfloat16', got '" + name + "'");
}

Center parse_center(const std::string& name) {
    if (name == "none") return Center::none;
    if (name == "sample") return Center::sample;
    if (name == "ensemble") return Center::ensemble;
    throw std::invalid_argument("center: expected 'none', 'sample' or 'ensemble', got '" + name + "'");
}

struct Spectrometer::Tables {
    Tables(const std::vector<std::int64_t>& shape, int device_number)
        : lattice(shape),
          device(device_number),
          square(has_fused(lattice)) {
        const DeviceGuard guard(device);
        if (!square) rectangle = RectangleTables::of(lattice);
        fused = square || rectangle.has_value();
        const auto [n0, n1, n2] = lattice.sides();
        for (const Bins b : {Bins::shells, Bins::orbits}) {
            const auto& of_mode = b == Bins::shells ? lattice.shell_of_mode() : lattice.orbit_of_mode();
            bins[static_cast<int>(b)] =
                make_segments(half_lattice(lattice, of_mode, lattice.half()), count_bins(lattice, b));
        }
        lags = make_segments(half_lattice(lattice, lattice.lag_shell_of_site(), n2),
                             static_cast<std::int32_t>(lattice.lag_shells().size()));
        for (int axis = 0; axis < 3; ++axis) waves[axis] = make_roots(lattice.sides()[axis]);
        if (square) {
            fields = FieldTables(lattice, fused_places(lattice));
        } else if (fused) {
            fields = FieldTables(lattice, rectangle->places());
        }
        if (!fused) return;
        std::vector<std::int32_t> begin;
        std::vector<double> modes;
        const std::vector<Orbit>& orbits = lattice.orbits();
        for (std::size_t i = 0; i < orbits.size(); ++i) {
            if (i == 0 || orbits[i].shell != orbits[i - 1].shell) begin.push_back(static_cast<std::int32_t>(i));
        }
        begin.push_back(static_cast<std::int32_t>(orbits.size()));
        for (const std::int64_t n : lattice.shell_multiplicity()) modes.push_back(static_cast<double>(n));
        shell_begin = DeviceArray<std::int32_t>(begin);
        shell_modes = DeviceArray<double>(modes);
    }

    Lattice lattice;
    int device;
    bool square;
    bool fused = false;
    SegmentTables<std::int32_t> bins[2];
    SegmentTables<std::int32_t> lags;
    DeviceArray<Complex> waves[3];
    std::optional<RectangleTables> rectangle;
    FieldTables fields;
    DeviceArray<std::int32_t> shell_begin;  ///< (shells + 1) orbits
    DeviceArray<double> shell_modes;
};

struct SelectedModes::Tables {
    std::int32_t size;
    DeviceArray<std::int32_t> at;   ///< in a half spectrum by rows
    DeviceArray<ModePlace> places;  ///< of a fused lattice
    FirstModes first_modes;
    const Spectrometer* of;
};

SelectedModes::SelectedModes(const Spectrometer& spectrometer, const Selection& selection) {
    const Lattice& lattice = spectrometer.lattice();
    selection.check(lattice);
    std::vector<std::int32_t> modes(static_cast<std::size_t>(selection.size()));
    for (std::size_t i = 0; i < selection.slot().size(); ++i) {
        if (selection.slot()[i] >= 0)
            modes[static_cast<std::size_t>(selection.slot()[i])] = static_cast<std::int32_t>(i);
    }
    std::vector<std::int32_t> at;
    for (const std::int32_t mode : modes) at.push_back(by_rows(lattice, mode, lattice.half()));

    const DeviceGuard guard(spectrometer.device());
    auto tables = std::make_unique<Tables>();
    tables->size = selection.size();
    tables->at = DeviceArray<std::int32_t>(at);
    if (spectrometer.fused()) {
        std::vector<ModePlace> places;
        for (const std::int32_t mode : modes) places.push_back(spectrometer.tables_->fields.places.mode(mode));
        tables->places = DeviceArray<ModePlace>(places);
    }
    tables->first_modes = selection.first_modes();
    tables->of = &spectrometer;
    tables_ = std::move(tables);
}
SelectedModes::~SelectedModes() = default;
SelectedModes::SelectedModes(SelectedModes&&) noexcept = default;

std::int64_t SelectedModes::size() const { return tables_->size; }
const Spectrometer& SelectedModes::of() const { return *tables_->of; }

struct ChannelProducts::Tables {
    std::int64_t shells;
    DeviceArray<std::int32_t> begin, at;
    DeviceArray<double> weight;
};

ChannelProducts::ChannelProducts(const SelectedModes& selected, const std::vector<std::int32_t>& begin,
                                 const std::vector<std::int32_t>& at, const std::vector<double>& weight) {
    const auto n = static_cast<std::int32_t>(at.size());
    if (begin.empty() || begin.front() != 0 || begin.back() != n || weight.size() != at.size() ||
        !std::is_sorted(begin.begin(), begin.end())) {
        throw std::invalid_argument("begin, at, weight: expected ascending bounds of as many modes as weights");
    }
    for (const std::int32_t i : at) {
        if (i < 0 || i >= selected.size()) throw std::invalid_argument("at: expected places among the selected modes");
    }
    const DeviceGuard guard(selected.of().device());
    tables_ = std::make_unique<const Tables>(Tables{static_cast<std::int64_t>(begin.size()) - 1,
                                                    DeviceArray<std::int32_t>(begin), DeviceArray<std::int32_t>(at),
                                                    DeviceArray<double>(weight)});
}
ChannelProducts::~ChannelProducts() = default;
ChannelProducts::ChannelProducts(ChannelProducts&&) noexcept = default;

std::int64_t ChannelProducts::shells() const { return tables_->shells; }

void SelectedModes::check(const Spectrometer& spectrometer) const {
    if (tables_->of != &spectrometer) throw std::invalid_argument("selected: modes of another spectrometer");
}

Spectrometer::Spectrometer(const std::vector<std::int64_t>& shape, int device)
    : tables_(std::make_unique<const Tables>(shape, device)) {}
Spectrometer::~Spectrometer() = default;

const Lattice& Spectrometer::lattice() const { return tables_->lattice; }
int Spectrometer::device() const { return tables_->device; }
bool Spectrometer::fused() const { return tables_->fused; }
std::int64_t Spectrometer::bins(Bins bins) const { return count_bins(lattice(), bins); }

void Spectrometer::power(const Fields& fields, const View& view, Bins bins, const PowerResults& results,
                         void* stream) const {
    if (!fused()) throw std::logic_error("power: not for this shape; see power_from_half_spectrum");
    if (fields.count == 0) return;
    const DeviceGuard guard(device());
    const FieldTables& tables = tables_->fields;
    FieldRequest request{};
    request.fields = fields;
    request.view = view;
    request.roots = tables.roots.data();
    request.pairs = tables.pairs.data();
    request.n_pairs = static_cast<std::int32_t>(tables.pairs.size());
    request.zero = 2 * tables.places.hole;
    request.sites = static_cast<float>(lattice().sites());
    request.bins = tables.bins[static_cast<int>(bins)].gather();
    request.sums = results.sums;
    request.kept = results.kept > 0 ? results.kept : request.bins.bins;
    if (results.means && bins == Bins::shells) request.scale = tables.per_mode.data();
    request.totals = results.totals;
    request.bad = reinterpret_cast<long long*>(results.bad);
    request.least = FLT_MIN * request.sites * (results.bad != nullptr ? 2.0F / FLT_EPSILON : 1.0F);
    if (results.selected != nullptr) {
        results.selected->check(*this);
        request.selected = results.selected->tables_->places.data();
        request.n_selected = results.selected->tables_->size;
        request.modes = reinterpret_cast<Complex*>(results.modes);
    }
    if (tables_->square) {
        launch_fused(lattice().sides()[2], request, stream);
    } else {
        launch_rectangle(tables_->rectangle->plan(), request, stream);
    }
}

void Spectrometer::power_from_half_spectrum(const float* spectrum, std::int64_t count, Bins bins,
                                            const PowerResults& results, void* stream) const {
    if (count == 0) return;
    const DeviceGuard guard(device());
    SegmentRequest request{};
    request.count = count;
    request.pitch = std::int64_t{lattice().half()} * lattice().plane();
    request.bins = tables_->bins[static_cast<int>(bins)].segments();
    request.factor = static_cast<float>(1.0 / static_cast<double>(lattice().sites()));
    request.sums = results.sums;
    request.totals = results.totals;
    if (results.selected != nullptr) {
        results.selected->check(*this);
        request.selected = results.selected->tables_->at.data();
        request.n_selected = results.selected->tables_->size;
        request.modes = reinterpret_cast<Complex*>(results.modes);
    }
    launch_segments(reinterpret_cast<const Complex*>(spectrum), request, stream);
}

std::int64_t Spectrometer::first_modes_scratch(std::int64_t count) const {
    const std::int64_t parts = field_parts(lattice().sites());
    return parts > 1 ? (1 + 2 * lattice().ndim()) * parts * count * static_cast<std::int64_t>(sizeof(double)) : 0;
}

void Spectrometer::first_modes(const Fields& fields, double* out, void* scratch, void* stream) const {
    if (fields.count == 0) return;
    const DeviceGuard guard(device());
    FirstModesRequest request{};
    request.fields = fields;
    request.ndim = lattice().ndim();
    for (int axis = 0; axis < 3; ++axis) {
        request.sides[axis] = lattice().sides()[axis];
        request.waves[axis] = tables_->waves[axis].data();
    }
    request.out = out;
    request.parts = static_cast<double*>(scratch);
    launch_first_modes(request, stream);
}

void Spectrometer::lag_sums(const float* correlation, std::int64_t count, float* sums, void* stream) const {
    if (count == 0) return;
    const DeviceGuard guard(device());
    SegmentRequest request{};
    request.count = count;
    request.pitch = lattice().sites();
    request.bins = tables_->lags.segments();
    request.factor = 1.0F;
    request.sums = sums;
    launch_segments(correlation, request, stream);
}

namespace {

RecordSize size_of(const SelectedModes& selected, const Record& record, const ChannelProducts* products) {
    const Lattice& lattice = selected.of().lattice();
    return {record.blocks,
            record.channels,
            static_cast<std::int64_t>(lattice.orbits().size()),
            selected.size(),
            lattice.sites(),
            products != nullptr ? products->shells() : 0,
            record.sign_field != nullptr};
}

}  // namespace

std::int64_t Spectrometer::record_scratch(Type type, std::int64_t samples, const SelectedModes& selected,
                                          const Record& record, const ChannelProducts* products) const {
    return cuda::record_scratch(size_of(selected, record, products), type, samples);
}

void Spectrometer::record(const Batch& batch, const SelectedModes& selected, const Record& record, std::int64_t* bad,
                          void* stream) const {
    selected.check(*this);
    selected.tables_->first_modes.check();
    check_first_sample(batch.first);
    if (batch.fields.count == 0) return;
    const DeviceGuard guard(device());
    RecordRequest request{};
    request.batch = batch;
    request.record = record;
    request.size = size_of(selected, record, batch.products);
    if (batch.products != nullptr) {
        const ChannelProducts::Tables& tables = *batch.products->tables_;
        request.cross = {batch.cross, tables.begin.data(), tables.at.data(), tables.weight.data(),
                         static_cast<std::int32_t>(tables.shells)};
    }
    request.ndim = lattice().ndim();
    const std::array<std::int32_t, 3>& along = selected.tables_->first_modes.at;
    std::copy(along.begin(), along.end(), request.along);
    request.bad = bad;
    launch_record(request, stream);
}

namespace {

/// Where things lie in the scratch of `average`, in bytes.
struct AverageLayout {
    std::int64_t sums = 0, modes, centred, means, end;

    AverageLayout(const Lattice& lattice, std::int64_t count, Center center, std::int64_t selected) {
        const auto after = [](std::int64_t begin, std::int64_t bytes) { return begin + (bytes + 15) / 16 * 16; };
        modes = after(sums, 4 * count * static_cast<std::int64_t>(lattice.orbits().size()));
        centred = after(modes, 8 * count * selected);
        means = after(centred, center == Center::none ? 0 : 4 * count * lattice.sites());
        end = after(means, center == Center::sample ? 8 * count : 0);
    }
};

}  // namespace

std::int64_t Spectrometer::average_scratch(std::int64_t count, Center center, const SelectedModes& selected) const {
    return AverageLayout(lattice(), count, center, selected.size()).end;
}

void Spectrometer::average(const Ensemble& ensemble, void* stream) const {
    const std::int64_t count = ensemble.fields.count;
    if (ensemble.channels < 1 || ensemble.blocks < 1 || count < 1 || count % ensemble.channels != 0) {
        throw std::invalid_argument("average: expected samples of some channels, and some blocks");
    }
    ensemble.selected->check(*this);
    const FirstModes& first_modes = ensemble.selected->tables_->first_modes;
    first_modes.check();
    const DeviceGuard guard(device());
    const AverageLayout layout(lattice(), count, ensemble.center, ensemble.selected->size());
    auto* const base = static_cast<char*>(ensemble.scratch);
    auto* const sums = reinterpret_cast<float*>(base + layout.sums);
    auto* const modes = reinterpret_cast<float*>(base + layout.modes);
    auto* const centred = reinterpret_cast<float*>(base + layout.centred);
    auto* const means = reinterpret_cast<double*>(base + layout.means);
    const std::int64_t samples = count / ensemble.channels;

    Fields fields{centred, Type::float32, count};
    switch (ensemble.center) {
        case Center::none: fields = ensemble.fields; break;
        case Center::sample: launch_less_own_mean(ensemble.fields, lattice().sites(), centred, means, stream); break;
        case Center::ensemble:
            launch_less_mean_field(ensemble.fields, samples, ensemble.channels * lattice().sites(), centred, stream);
    }
    PowerResults results{sums, ensemble.selected, modes};
    results.bad = reinterpret_cast<std::int64_t*>(ensemble.note);
    power(fields, {}, Bins::orbits, results, stream);

    AverageRequest request{};
    request.ensemble = ensemble;
    request.samples = samples;
    request.sites = static_cast<std::int32_t>(lattice().sites());
    request.orbits = static_cast<std::int32_t>(lattice().orbits().size());
    request.shells = lattice().shells();
    request.selected = static_cast<std::int32_t>(ensemble.selected->size());
    request.ndim = lattice().ndim();
    std::copy(first_modes.at.begin(), first_modes.at.end(), request.along);
    request.shell_begin = tables_->shell_begin.data();
    request.shell_modes = tables_->shell_modes.data();
    request.sums = sums;
    request.modes = modes;
    request.means = ensemble.center == Center::sample ? means : nullptr;
    launch_averages(request, stream);
}

void Spectrometer::fix_offset(const Fields& fields, const Record& record, double* offset, void* stream) const {
    if (fields.count < record.channels) return;
    const DeviceGuard guard(device());
    launch_fix_offset(fields, record.channels, lattice().sites(), record.count, record.blocks, offset, stream);
}

}  // namespace fastcrit::cuda
