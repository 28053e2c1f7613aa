// CUDA half of the bindings: addresses in, launches out. Devices, dtypes, contiguity and lifetimes are the business of
// the callers in fastcrit/.
#include "fastcrit/cuda.hpp"

#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "binding.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace {

using fastcrit::Bins;
using fastcrit::Selection;
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

void record(const Spectrometer& self, Address fields, const std::string& dtype, std::int64_t samples,
            std::int64_t channels, std::int64_t first, const SelectedModes& selected, std::int64_t blocks, Address sums,
            Address modes, Address totals, Address sign_sums, const std::map<std::string, Address>& state, Address bad,
            Address stream) {
    if (samples < 0 || channels < 1 || blocks < 1) {
        throw std::invalid_argument("samples, channels, blocks: expected positive numbers");
    }
    const fastcrit::Record to = make_record(blocks, channels, sign_sums != 0, [&](auto*& array, const auto& row) {
        const auto found = state.find(row.name);
        if (found != state.end()) array = pointer<std::remove_reference_t<decltype(*array)>>(found->second);
    });
    const fastcrit::cuda::Batch batch{make_fields(fields, dtype, samples * channels),
                                      first,
                                      pointer<const float>(sums),
                                      pointer<const float>(modes),
                                      pointer<const double>(totals),
                                      pointer<const float>(sign_sums)};
    self.record(batch, selected, to, pointer<std::int64_t>(bad), pointer<void>(stream));
}

}  // namespace

void add_cuda(py::module_& m) {
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
        .def("record", &record, "fields"_a, "dtype"_a, "samples"_a, "channels"_a, "first"_a, "selected"_a, "blocks"_a,
             "sums"_a, "modes"_a, "totals"_a, "sign_sums"_a, "state"_a, "bad"_a, "stream"_a);
}
