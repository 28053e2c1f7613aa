// CUDA half of the bindings: addresses in, launches out. Devices, dtypes, contiguity and lifetimes are the business of
// the callers in fastcrit/.
#include "fastcrit/cuda.hpp"

#include <pybind11/stl.h>

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "binding.hpp"
#if FASTCRIT_CUDA_HOST
#include "cuda/host/grid.hpp"
#endif

namespace py = pybind11;
using namespace py::literals;

namespace {

using fastcrit::Bins;
using fastcrit::Selection;
using fastcrit::cuda::ChannelProducts;
using fastcrit::cuda::Fields;
using fastcrit::cuda::PowerResults;
using fastcrit::cuda::SelectedModes;
using fastcrit::cuda::Spectrometer;

using Address = std::uintptr_t;

template <class T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);  // NOLINT(performance-no-int-to-ptr): data_ptr() is an integer
}

std::int64_t check_count(std::int64_t count) {
    if (count < 0) throw std::invalid_argument("count: expected a number of fields, got " + std::to_string(count));
    return count;
}

Fields make_fields(Address data, const std::string& dtype, std::int64_t count) {
    return {pointer<const void>(data), fastcrit::cuda::parse_type(dtype), check_count(count)};
}

PowerResults results(Address sums, const SelectedModes* selected, Address modes, Address totals) {
    PowerResults to{pointer<float>(sums)};
    to.totals = pointer<double>(totals);
    to.selected = selected;
    if (selected != nullptr) to.modes = pointer<float>(modes);
    return to;
}

/// Means of the first shells; *bad as PowerResults has it.
void shell_means(const Spectrometer& self, Address fields, const std::string& dtype, std::int64_t count, Address sums,
                 std::int32_t kept, Address bad, Address stream) {
    PowerResults to{pointer<float>(sums)};
    to.kept = kept;
    to.means = true;
    to.bad = pointer<std::int64_t>(bad);
    self.power(make_fields(fields, dtype, count), {}, Bins::shells, to, pointer<void>(stream));
}

void power(const Spectrometer& self, Address fields, const std::string& dtype, std::int64_t count, Address offset,
           const std::string& bins, Address sums, const SelectedModes* selected, Address modes, Address totals,
           Address stream, bool signs) {
    self.power(make_fields(fields, dtype, count), {pointer<const float>(offset), signs}, parse_bins(bins),
               results(sums, selected, modes, totals), pointer<void>(stream));
}

void power_from_half_spectrum(const Spectrometer& self, Address spectrum, std::int64_t count, const std::string& bins,
                              Address sums, const SelectedModes* selected, Address modes, Address totals,
                              Address stream) {
    self.power_from_half_spectrum(pointer<const float>(spectrum), check_count(count), parse_bins(bins),
                                  results(sums, selected, modes, totals), pointer<void>(stream));
}

void first_modes(const Spectrometer& self, Address fields, const std::string& dtype, std::int64_t count, Address out,
                 Address scratch, Address stream) {
    self.first_modes(make_fields(fields, dtype, count), pointer<double>(out), pointer<void>(scratch),
                     pointer<void>(stream));
}

void lag_sums(const Spectrometer& self, Address correlation, std::int64_t count, Address sums, Address stream) {
    self.lag_sums(pointer<const float>(correlation), check_count(count), pointer<float>(sums), pointer<void>(stream));
}

void average(const Spectrometer& self, Address fields, const std::string& dtype, std::int64_t samples,
             std::int64_t channels, std::int64_t blocks, const std::string& center, const SelectedModes& selected,
             Address means, std::int32_t kept, Address power, Address first, Address note, Address scratch,
             Address stream) {
    const fastcrit::cuda::Ensemble ensemble{make_fields(fields, dtype, samples * channels),
                                            channels,
                                            blocks,
                                            fastcrit::cuda::parse_center(center),
                                            &selected,
                                            pointer<double>(means),
                                            kept,
                                            pointer<double>(power),
                                            pointer<double>(first),
                                            pointer<double>(note),
                                            pointer<void>(scratch)};
    self.average(ensemble, pointer<void>(stream));
}

/// Sums of one level, and what it takes to add batches to them.
class Recording {
public:
    Recording(const Spectrometer& spectrometer, const SelectedModes& selected, std::int64_t channels,
              std::int64_t blocks, const std::map<std::string, Address>& state, const ChannelProducts* products,
              Address bad)
        : spectrometer_(spectrometer),
          selected_(selected),
          products_(products),
          record_(make_record(checked(blocks), checked(channels), state.count("sign_power") > 0,
                              [&](auto*& array, const auto& row) {
                                  array = at<std::remove_reference_t<decltype(*array)>>(state, row.name);
                              })),
          offset_(at<double>(state, "offset")),
          cross_(at<double>(state, "cross")),
          bad_(pointer<std::int64_t>(bad)) {
        selected.check(spectrometer);
        if (products != nullptr && cross_ == nullptr) throw std::invalid_argument("state: expected cross");
    }

    /// Where things lie in a workspace for so many samples, in bytes.
    struct Layout {
        std::int64_t sums = 0, sign_sums = 0, modes = 0, totals = 0, scratch = 0, end = 0;
    };
    Layout layout(const std::string& dtype, std::int64_t samples) const {
        const std::int64_t fields = check_count(samples) * record_.channels;
        const std::int64_t sums = fields * spectrometer_.bins(Bins::orbits) * 4;
        Layout to;
        const auto after = [](std::int64_t begin, std::int64_t bytes) { return begin + (bytes + 15) / 16 * 16; };
        to.sign_sums = after(to.sums, sums);
        to.modes = after(to.sign_sums, record_.sign_power != nullptr ? sums : 0);
        to.totals = after(to.modes, fields * selected_.size() * 8);
        to.scratch = after(to.totals, fields * 8);
        to.end = after(to.scratch, spectrometer_.record_scratch(fastcrit::cuda::parse_type(dtype), samples, selected_,
                                                                record_, products_));
        return to;
    }
    std::int64_t workspace(const std::string& dtype, std::int64_t samples) const { return layout(dtype, samples).end; }

    void fix_offset(Address fields, const std::string& dtype, std::int64_t samples, Address stream) const {
        if (offset_ == nullptr) return;
        spectrometer_.fix_offset(make_fields(fields, dtype, samples * record_.channels), record_, offset_,
                                 pointer<void>(stream));
    }

    void add(Address fields, const std::string& dtype, std::int64_t samples, std::int64_t first, Address workspace,
             Address stream) const {
        const Layout to = layout(dtype, samples);
        const Fields batch = make_fields(fields, dtype, samples * record_.channels);
        auto* const base = pointer<char>(workspace);
        auto* const sums = reinterpret_cast<float*>(base + to.sums);
        auto* const modes = reinterpret_cast<float*>(base + to.modes);
        auto* const totals = reinterpret_cast<double*>(base + to.totals);
        float* const sign_sums =
            record_.sign_power != nullptr ? reinterpret_cast<float*>(base + to.sign_sums) : nullptr;
        spectrometer_.power(batch, {}, Bins::orbits, {sums, &selected_, modes, totals}, pointer<void>(stream));
        if (sign_sums != nullptr) {
            spectrometer_.power(batch, {nullptr, true}, Bins::orbits, {sign_sums}, pointer<void>(stream));
        }
        record({batch, first, sums, modes, totals, sign_sums, products_, cross_, base + to.scratch}, stream);
    }

    void add_measured(Address fields, const std::string& dtype, std::int64_t samples, std::int64_t first, Address sums,
                      Address modes, Address totals, Address sign_sums, Address workspace, Address stream) const {
        if ((sign_sums != 0) != (record_.sign_power != nullptr)) {
            throw std::invalid_argument("sign_sums: expected where the record has signs, and only there");
        }
        record({make_fields(fields, dtype, check_count(samples) * record_.channels), first, pointer<const float>(sums),
                pointer<const float>(modes), pointer<const double>(totals), pointer<const float>(sign_sums), products_,
                cross_, pointer<char>(workspace) + layout(dtype, samples).scratch},
               stream);
    }

private:
    static std::int64_t checked(std::int64_t n) {
        if (n < 1) throw std::invalid_argument("channels, blocks: expected positive numbers");
        return n;
    }
    template <class T>
    static T* at(const std::map<std::string, Address>& state, const char* name) {
        const auto found = state.find(name);
        return found != state.end() ? pointer<T>(found->second) : nullptr;
    }
    void record(const fastcrit::cuda::Batch& batch, Address stream) const {
        spectrometer_.record(batch, selected_, record_, bad_, pointer<void>(stream));
    }

    const Spectrometer& spectrometer_;
    const SelectedModes& selected_;
    const ChannelProducts* products_;
    fastcrit::Record record_;
    double* offset_;
    double* cross_;
    std::int64_t* bad_;
};

}  // namespace

void add_cuda(py::module_& m) {
#if FASTCRIT_CUDA_HOST
    m.def("cuda_launches", &fastcrit::host::launches);
    m.def("set_cuda_idle", &fastcrit::host::set_idle, "idle"_a);
#endif
    py::class_<Spectrometer> spectrometer(m, "CudaSpectrometer");
    py::class_<SelectedModes>(m, "CudaSelection")
        .def(py::init([](const Spectrometer& s, const std::vector<std::int32_t>& indices) {
                 return SelectedModes(s, Selection(s.lattice(), indices));
             }),
             "spectrometer"_a, "indices"_a, py::keep_alive<1, 2>())
        .def("__len__", &SelectedModes::size);
    spectrometer.def(py::init<const std::vector<std::int64_t>&, int>(), "shape"_a, "device"_a)
        .def_property_readonly("shape",
                               [](const Spectrometer& s) { return py::tuple(py::cast(shape_of(s.lattice()))); })
        .def_property_readonly("device", &Spectrometer::device)
        .def_property_readonly("fused", &Spectrometer::fused)
        .def("power", &power, "fields"_a, "dtype"_a, "count"_a, "offset"_a, "bins"_a, "sums"_a, "selected"_a, "modes"_a,
             "totals"_a, "stream"_a, "signs"_a = false)
        .def("power_from_half_spectrum", &power_from_half_spectrum, "spectrum"_a, "count"_a, "bins"_a, "sums"_a,
             "selected"_a, "modes"_a, "totals"_a, "stream"_a)
        .def(
            "first_modes_scratch",
            [](const Spectrometer& self, std::int64_t count) { return self.first_modes_scratch(check_count(count)); },
            "count"_a)
        .def("first_modes", &first_modes, "fields"_a, "dtype"_a, "count"_a, "out"_a, "scratch"_a, "stream"_a)
        .def("lag_sums", &lag_sums, "correlation"_a, "count"_a, "sums"_a, "stream"_a)
        .def("shell_means", &shell_means, "fields"_a, "dtype"_a, "count"_a, "means"_a, "kept"_a, "bad"_a, "stream"_a)
        .def(
            "average_scratch",
            [](const Spectrometer& self, std::int64_t count, const std::string& center, const SelectedModes& selected) {
                return self.average_scratch(check_count(count), fastcrit::cuda::parse_center(center), selected);
            },
            "count"_a, "center"_a, "selected"_a)
        .def("average", &average, "fields"_a, "dtype"_a, "samples"_a, "channels"_a, "blocks"_a, "center"_a,
             "selected"_a, "means"_a, "kept"_a, "power"_a, "first"_a, "note"_a, "scratch"_a, "stream"_a);
    py::class_<ChannelProducts>(m, "CudaChannelProducts")
        .def(py::init<const SelectedModes&, const std::vector<std::int32_t>&, const std::vector<std::int32_t>&,
                      const std::vector<double>&>(),
             "selected"_a, "begin"_a, "at"_a, "weight"_a);
    py::class_<Recording>(m, "CudaRecording")
        .def(py::init<const Spectrometer&, const SelectedModes&, std::int64_t, std::int64_t,
                      const std::map<std::string, Address>&, const ChannelProducts*, Address>(),
             "spectrometer"_a, "selected"_a, "channels"_a, "blocks"_a, "state"_a, "products"_a, "bad"_a,
             py::keep_alive<1, 2>(), py::keep_alive<1, 3>(), py::keep_alive<1, 7>())
        .def("workspace", &Recording::workspace, "dtype"_a, "samples"_a)
        .def("fix_offset", &Recording::fix_offset, "fields"_a, "dtype"_a, "samples"_a, "stream"_a)
        .def("add", &Recording::add, "fields"_a, "dtype"_a, "samples"_a, "first"_a, "workspace"_a, "stream"_a)
        .def("add_measured", &Recording::add_measured, "fields"_a, "dtype"_a, "samples"_a, "first"_a, "sums"_a,
             "modes"_a, "totals"_a, "sign_sums"_a, "workspace"_a, "stream"_a);
}
