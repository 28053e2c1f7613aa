// CUDA half of the bindings: addresses in, launches out. Devices, dtypes, contiguity and lifetimes are the business of
// the callers in fastcrit/.
#include "cuda.hpp"

#include <pybind11/stl.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "fastcrit/cuda.hpp"

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

Bins parse_bins(const std::string& name) {
    if (name == "shells") return Bins::shells;
    if (name == "orbits") return Bins::orbits;
    throw std::invalid_argument("bins: expected 'shells' or 'orbits', got '" + name + "'");
}

std::int64_t check_count(std::int64_t count) {
    if (count < 0) throw std::invalid_argument("count: expected a number of fields, got " + std::to_string(count));
    return count;
}

Fields make_fields(Address data, const std::string& dtype, std::int64_t count) {
    return {pointer<const void>(data), fastcrit::cuda::parse_type(dtype), check_count(count)};
}

/// A spectrometer, and the selections that were used with it, uploaded.
class CudaSpectrometer {
public:
    CudaSpectrometer(const std::vector<std::int64_t>& shape, int device) : spectrometer_(shape, device) {}

    const Spectrometer& spectrometer() const { return spectrometer_; }

    const SelectedModes& upload(const py::object& selected) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = uploads_.find(selected.ptr());
        if (found != uploads_.end()) return found->second.modes;
        SelectedModes modes(spectrometer_, py::cast<const Selection&>(selected));
        return uploads_.emplace(selected.ptr(), Upload{selected, std::move(modes)}).first->second.modes;
    }

    PowerResults results(Address sums, const py::object& selected, Address modes, Address totals) {
        PowerResults to{pointer<float>(sums)};
        to.totals = pointer<double>(totals);
        if (selected.is_none()) return to;
        to.selected = &upload(selected);
        to.modes = pointer<float>(modes);
        return to;
    }

private:
    struct Upload {
        py::object selection;  ///< kept alive, so that no other can have its address
        SelectedModes modes;
    };
    Spectrometer spectrometer_;
    std::mutex mutex_;
    std::map<const PyObject*, Upload> uploads_;
};

void power(CudaSpectrometer& self, Address fields, const std::string& dtype, std::int64_t count, Address offset,
           const std::string& bins, Address sums, const py::object& selected, Address modes, Address totals,
           Address stream, bool signs) {
    self.spectrometer().power(make_fields(fields, dtype, count), {pointer<const float>(offset), signs},
                              parse_bins(bins), self.results(sums, selected, modes, totals), pointer<void>(stream));
}

void power_from_half_spectrum(CudaSpectrometer& self, Address spectrum, std::int64_t count, const std::string& bins,
                              Address sums, const py::object& selected, Address modes, Address totals, Address stream) {
    self.spectrometer().power_from_half_spectrum(pointer<const float>(spectrum), check_count(count), parse_bins(bins),
                                                 self.results(sums, selected, modes, totals), pointer<void>(stream));
}

void first_modes(const CudaSpectrometer& self, Address fields, const std::string& dtype, std::int64_t count,
                 Address out, Address scratch, Address stream) {
    self.spectrometer().first_modes(make_fields(fields, dtype, count), pointer<double>(out), pointer<void>(scratch),
                                    pointer<void>(stream));
}

void lag_sums(const CudaSpectrometer& self, Address correlation, std::int64_t count, Address sums, Address stream) {
    self.spectrometer().lag_sums(pointer<const float>(correlation), check_count(count), pointer<float>(sums),
                                 pointer<void>(stream));
}

template <class T>
T* state_data(const std::map<std::string, Address>& state, const char* name) {
    const auto found = state.find(name);
    return found == state.end() ? nullptr : pointer<T>(found->second);
}

void record(CudaSpectrometer& self, Address fields, const std::string& dtype, std::int64_t samples,
            std::int64_t channels, std::int64_t first, const py::object& selected, std::int64_t blocks, Address sums,
            Address modes, Address totals, Address sign_sums, const std::map<std::string, Address>& state, Address bad,
            Address stream) {
    if (samples < 0 || channels < 1 || blocks < 1) {
        throw std::invalid_argument("samples, channels, blocks: expected positive numbers");
    }
    const bool signs = sign_sums != 0;
    const fastcrit::Record to{blocks,
                              channels,
                              state_data<std::int64_t>(state, "count"),
                              state_data<double>(state, "power"),
                              state_data<double>(state, "low"),
                              state_data<double>(state, "first"),
                              state_data<double>(state, "moments"),
                              state_data<double>(state, "field"),
                              signs ? state_data<double>(state, "sign_power") : nullptr,
                              signs ? state_data<double>(state, "sign_field") : nullptr,
                              state_data<double>(state, "offset")};
    if (to.count == nullptr || to.power == nullptr || to.low == nullptr || to.first == nullptr ||
        to.moments == nullptr || to.field == nullptr ||
        (signs && (to.sign_power == nullptr || to.sign_field == nullptr))) {
        throw std::invalid_argument(
            "state: expected count, power, low, first, moments, field, and with sign_sums sign_power and sign_field");
    }
    const fastcrit::cuda::Batch batch{make_fields(fields, dtype, samples * channels),
                                      first,
                                      pointer<const float>(sums),
                                      pointer<const float>(modes),
                                      pointer<const double>(totals),
                                      pointer<const float>(sign_sums)};
    self.spectrometer().record(batch, self.upload(selected), to, pointer<std::int64_t>(bad), pointer<void>(stream));
}

}  // namespace

void add_cuda(py::module_& m) {
    py::class_<CudaSpectrometer>(m, "CudaSpectrometer")
        .def(py::init<const std::vector<std::int64_t>&, int>(), "shape"_a, "device"_a)
        .def_property_readonly("shape",
                               [](const CudaSpectrometer& self) {
                                   const fastcrit::Lattice& lattice = self.spectrometer().lattice();
                                   py::list sides;
                                   for (int a = 3 - lattice.ndim(); a < 3; ++a) sides.append(lattice.sides()[a]);
                                   return py::tuple(sides);
                               })
        .def_property_readonly("device", [](const CudaSpectrometer& self) { return self.spectrometer().device(); })
        .def_property_readonly("fused", [](const CudaSpectrometer& self) { return self.spectrometer().fused(); })
        .def(
            "upload", [](CudaSpectrometer& self, const py::object& selected) { self.upload(selected); }, "selected"_a)
        .def("power", &power, "fields"_a, "dtype"_a, "count"_a, "offset"_a, "bins"_a, "sums"_a, "selected"_a, "modes"_a,
             "totals"_a, "stream"_a, "signs"_a = false)
        .def("power_from_half_spectrum", &power_from_half_spectrum, "spectrum"_a, "count"_a, "bins"_a, "sums"_a,
             "selected"_a, "modes"_a, "totals"_a, "stream"_a)
        .def(
            "first_modes_scratch",
            [](const CudaSpectrometer& self, std::int64_t count) {
                return self.spectrometer().first_modes_scratch(check_count(count));
            },
            "count"_a)
        .def("first_modes", &first_modes, "fields"_a, "dtype"_a, "count"_a, "out"_a, "scratch"_a, "stream"_a)
        .def("lag_sums", &lag_sums, "correlation"_a, "count"_a, "sums"_a, "stream"_a)
        .def("record", &record, "fields"_a, "dtype"_a, "samples"_a, "channels"_a, "first"_a, "selected"_a, "blocks"_a,
             "sums"_a, "modes"_a, "totals"_a, "sign_sums"_a, "state"_a, "bad"_a, "stream"_a);
}
