// Bindings are glue; units, conversions and conventions are the business of fastcrit/*.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <type_traits>

#include "binding.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace {

/// The table of the arrays of a record: (name, sides, dtype, when it is there).
py::list record_rows() {
    py::list rows;
    fastcrit::for_each_array([&](auto array, const fastcrit::RecordRow& row) {
        using Value = std::remove_cv_t<std::remove_reference_t<decltype(*(fastcrit::Record{}.*array))>>;
        py::list sides;
        for (std::size_t i = 0; i < row.ndim; ++i) {
            const fastcrit::RecordSide& side = row.sides[i];
            if (side.name != nullptr) {
                sides.append(side.name);
            } else {
                sides.append(side.number);
            }
        }
        rows.append(py::make_tuple(row.name, py::tuple(sides), py::dtype::of<Value>(), row.kept_word));
    });
    return rows;
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
    m.doc() = "Compiled core of fastcrit: see _core.pyi.";

    add_host(m);
#ifdef FASTCRIT_CUDA
    m.attr("cuda_compiled") = true;
    m.attr("cuda_host") = FASTCRIT_CUDA_HOST != 0;
    add_cuda(m);
#else
    m.attr("cuda_compiled") = false;
    m.attr("cuda_host") = false;
#endif

    m.def("record_rows", &record_rows);
    m.def("instruction_set", &fastcrit::instruction_set);
    m.def("available_instruction_sets", &fastcrit::available_instruction_sets);
    m.def("use_instruction_set", &fastcrit::use_instruction_set, "name"_a);
    m.def("set_largest_block", &fastcrit::set_largest_block, "size"_a);
    m.def("num_threads", &fastcrit::num_threads);
    m.def("set_num_threads", &fastcrit::set_num_threads, "threads"_a);
}
