// The kernels of the instruction set in use.
#pragma once

#include "kernels.hpp"

namespace fastcrit::cpu {

template <class T>
const Kernels<T>& kernels();

}  // namespace fastcrit::cpu
