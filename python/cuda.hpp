// The CUDA half of the module, where it was compiled.
#pragma once

#include <pybind11/pybind11.h>

/// Adds CudaSpectrometer.
void add_cuda(pybind11::module_& m);
