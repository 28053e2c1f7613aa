// The processor's half of the bindings: exact dtypes, C-contiguous arrays, no silent casts, GIL released. Shapes are
// checked here once.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "binding.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace {

using fastcrit::Bins;
using fastcrit::Lattice;
using fastcrit::Selection;
using fastcrit::Spectrometer;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T, class Items, class Value>
py::array_t<T> column(const Items& items, const Value& value) {
    py::array_t<T> out(static_cast<py::ssize_t>(items.size()));
    auto view = out.template mutable_unchecked<1>();
    for (py::ssize_t i = 0; i < view.shape(0); ++i) view(i) = value(items[static_cast<std::size_t>(i)]);
    return out;
}

std::string text(const std::vector<py::ssize_t>& shape) {
    std::string out;
    for (py::ssize_t side : shape) out += (out.empty() ? "" : ", ") + std::to_string(side);
    return "(" + out + ")";
}

/// Number of fields in an array of shape (count, N1 .. Nd).
template <class T>
std::int64_t count_fields(const Array<T>& fields, const Lattice& lattice) {
    const std::vector<py::ssize_t> expected = shape_of(lattice);
    const std::vector<py::ssize_t> got(fields.shape(), fields.shape() + fields.ndim());
    if (got.size() != expected.size() + 1 || !std::equal(expected.begin(), expected.end(), got.begin() + 1)) {
        throw std::invalid_argument("fields: expected shape (count, *" + text(expected) + "), got " + text(got));
    }
    return got[0];
}

template <class T>
const T* offset_data(const std::optional<Array<T>>& offset, const Lattice& lattice) {
    if (!offset) return nullptr;
    if (offset->size() != lattice.sites()) {
        throw std::invalid_argument("offset: expected one field of shape " + text(shape_of(lattice)));
    }
    return offset->data();
}

/// Where results go: a C-contiguous array of the right shape, so that large results can be reused.
template <class T>
T* output(Array<T>& out, const std::vector<py::ssize_t>& shape, const char* name) {
    const std::vector<py::ssize_t> got(out.shape(), out.shape() + out.ndim());
    if (got != shape) {
        throw std::invalid_argument(std::string(name) + ": expected shape " + text(shape) + ", got " + text(got));
    }
    return out.mutable_data();  // throws when the array is read-only
}

template <class T>
std::int64_t shell_power(const Spectrometer& self, const Array<T>& fields, Array<T> out) {
    const std::int64_t count = count_fields(fields, self.lattice());
    const py::ssize_t shells = out.ndim() == 2 ? out.shape(1) : 0;
    T* const mean = output(out, {static_cast<py::ssize_t>(count), shells}, "out");
    const T* const in = fields.data();
    const py::gil_scoped_release release;
    return self.shell_power<T>(in, count, shells, mean);
}

template <class T>
py::tuple power(const Spectrometer& self, const Array<T>& fields, const std::string& bins_name,
                const std::optional<Array<T>>& offset, const Selection* selected) {
    const Bins bins = parse_bins(bins_name);
    const std::int64_t count = count_fields(fields, self.lattice());
    const T* const subtract = offset_data(offset, self.lattice());
    const py::ssize_t n_selected = selected != nullptr ? selected->size() : 0;
    py::array_t<T> sums({static_cast<py::ssize_t>(count), static_cast<py::ssize_t>(self.bins(bins))});
    py::array_t<T> modes({static_cast<py::ssize_t>(count), n_selected, py::ssize_t{2}});
    const T* const in = fields.data();
    T* const sums_out = sums.mutable_data();
    T* const modes_out = modes.mutable_data();
    {
        const py::gil_scoped_release release;
        self.power<T>(in, count, subtract, bins, sums_out, selected, modes_out);
    }
    return py::make_tuple(sums, modes);
}

template <class T>
py::array_t<T> autocorrelation(const Spectrometer& self, const Array<T>& fields,
                               const std::optional<Array<T>>& offset) {
    const std::int64_t count = count_fields(fields, self.lattice());
    const T* const subtract = offset_data(offset, self.lattice());
    const auto lags = static_cast<py::ssize_t>(self.lattice().lag_shells().size());
    py::array_t<T> sums({static_cast<py::ssize_t>(count), lags});
    const T* const in = fields.data();
    T* const out = sums.mutable_data();
    {
        const py::gil_scoped_release release;
        self.autocorrelation<T>(in, count, subtract, out);
    }
    return sums;
}

/// One of the arrays of a record, checked; null where the state has none.
template <class Value>
Value* state_data(const py::dict& state, const char* name, const std::vector<py::ssize_t>& shape) {
    if (!state.contains(name)) return nullptr;
    auto array = py::cast<Array<std::remove_const_t<Value>>>(state[name]);
    if (array.ptr() != py::object(state[name]).ptr()) {
        throw std::invalid_argument(std::string(name) + ": expected a C-contiguous array of the exact dtype");
    }
    return output(array, shape, name);
}

/// state is a dict of C-contiguous arrays that is added to.
template <class T>
std::int64_t record(const Spectrometer& self, const Array<T>& fields, std::int64_t channels, std::int64_t first,
                    const Selection& selected, std::int64_t blocks, const py::dict& state) {
    const std::int64_t count = count_fields(fields, self.lattice());
    if (channels < 1 || blocks < 1 || count % channels != 0) {
        throw std::invalid_argument("channels, blocks: expected positive numbers that fit " + std::to_string(count) +
                                    " fields");
    }
    const fastcrit::RecordSizes sizes{
        blocks, channels, self.bins(Bins::orbits), selected.size(), self.lattice().ndim(), self.lattice().sites()};
    bool signs = false;
    fastcrit::for_each_array([&](auto, const fastcrit::RecordRow& row) {
        signs = signs || (row.kept == fastcrit::Kept::signs && state.contains(row.name));
    });
    const fastcrit::Record to = make_record(blocks, channels, signs, [&](auto*& array, const auto& row) {
        std::vector<py::ssize_t> shape;
        for (std::size_t i = 0; i < row.ndim; ++i) shape.push_back(row.sides[i].in(sizes));
        array = state_data<std::remove_reference_t<decltype(*array)>>(state, row.name, shape);
    });
    const T* const in = fields.data();
    const py::gil_scoped_release release;
    return self.record<T>(in, count / channels, first, selected, to);
}

template <class T>
std::int64_t first_modes(const Spectrometer& self, const Array<T>& fields, Array<double> out) {
    const std::int64_t count = count_fields(fields, self.lattice());
    double* const modes = output(out, {1 + 2 * self.lattice().ndim(), static_cast<py::ssize_t>(count)}, "out");
    const T* const in = fields.data();
    const py::gil_scoped_release release;
    return self.first_modes<T>(in, count, modes);
}

template <class T>
void add_fields(const Spectrometer& self, const Array<T>& fields, Array<double> to) {
    const std::int64_t count = count_fields(fields, self.lattice());
    double* const sums = output(to, shape_of(self.lattice()), "to");
    const T* const in = fields.data();
    const py::gil_scoped_release release;
    self.add_fields<T>(in, count, sums);
}

template <class T>
void add_precision(py::class_<Spectrometer>& spectrometer) {
    spectrometer.def("shell_power", &shell_power<T>, "fields"_a.noconvert(), "out"_a.noconvert())
        .def("power", &power<T>, "fields"_a.noconvert(), "bins"_a, "offset"_a.noconvert() = py::none(),
             "selected"_a = py::none())
        .def("record", &record<T>, "fields"_a.noconvert(), "channels"_a, "first"_a, "selected"_a, "blocks"_a, "state"_a)
        .def("autocorrelation", &autocorrelation<T>, "fields"_a.noconvert(), "offset"_a.noconvert() = py::none())
        .def("add_fields", &add_fields<T>, "fields"_a.noconvert(), "to"_a.noconvert())
        .def("first_modes", &first_modes<T>, "fields"_a.noconvert(), "out"_a.noconvert());
}

}  // namespace

void add_host(py::module_& m) {
    py::class_<Spectrometer> spectrometer(m, "Spectrometer");
    py::class_<Selection>(m, "Selection")
        .def(py::init([](const Spectrometer& s, const std::vector<std::int32_t>& indices) {
                 return Selection(s.lattice(), indices);
             }),
             "spectrometer"_a, "indices"_a)
        .def("__len__", &Selection::size);
    spectrometer.def(py::init<const std::vector<std::int64_t>&>(), "shape"_a)
        .def_property_readonly("shape",
                               [](const Spectrometer& s) { return py::tuple(py::cast(shape_of(s.lattice()))); })
        .def_property_readonly("shell_width", [](const Spectrometer& s) { return s.lattice().shell_width(); })
        .def_property_readonly("shells", [](const Spectrometer& s) { return s.lattice().shells(); })
        .def_property_readonly("shells_below_nyquist",
                               [](const Spectrometer& s) { return s.lattice().shells_below_nyquist(); })
        .def_property_readonly("orbit_k",
                               [](const Spectrometer& s) {
                                   return column<double>(s.lattice().orbits(), [](const auto& o) { return o.k; });
                               })
        .def_property_readonly("orbit_k2_lattice",
                               [](const Spectrometer& s) {
                                   return column<double>(s.lattice().orbits(),
                                                         [](const auto& o) { return o.k2_lattice; });
                               })
        .def_property_readonly("orbit_multiplicity",
                               [](const Spectrometer& s) {
                                   return column<std::int64_t>(s.lattice().orbits(),
                                                               [](const auto& o) { return o.multiplicity; });
                               })
        .def_property_readonly("orbit_shell",
                               [](const Spectrometer& s) {
                                   return column<std::int64_t>(s.lattice().orbits(),
                                                               [](const auto& o) { return o.shell; });
                               })
        .def_property_readonly("orbit_of_mode",
                               [](const Spectrometer& s) {
                                   return column<std::int64_t>(s.lattice().orbit_of_mode(),
                                                               [](std::int32_t id) { return id; });
                               })
        .def_property_readonly("lag_shell_of_site",
                               [](const Spectrometer& s) {
                                   return column<std::int64_t>(s.lattice().lag_shell_of_site(),
                                                               [](std::int32_t id) { return id; });
                               })
        .def_property_readonly("lag_r",
                               [](const Spectrometer& s) {
                                   return column<double>(s.lattice().lag_shells(), [](const auto& l) { return l.r; });
                               })
        .def_property_readonly("lag_multiplicity",
                               [](const Spectrometer& s) {
                                   return column<std::int64_t>(s.lattice().lag_shells(),
                                                               [](const auto& l) { return l.multiplicity; });
                               })
        .def_property_readonly("lag_shells_inside",
                               [](const Spectrometer& s) { return s.lattice().lag_shells_inside(); });
    add_precision<float>(spectrometer);
    add_precision<double>(spectrometer);
}
