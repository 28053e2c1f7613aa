// The kernels of the instruction set in use.
#pragma once

#include "tables.hpp"

namespace fastcrit::cpu {

template <class T>
const Kernels<T>& kernels();

}  // namespace fastcrit::cpu
