// Compiled once per instruction set, with FASTCRIT_ISA naming the namespace and the compiler's flags the set.
#include "accumulate.hpp"
#include "first_modes.hpp"
#include "lines.hpp"
#include "power.hpp"

namespace fastcrit::FASTCRIT_ISA {

template <class T>
constexpr cpu::Kernels<T> kKernels = {{kLanes<T>, power_scratch<T>, power<T>},
                                      {1, lines_scratch<T>, lines<T>},
                                      {kLanes<T>, autocorrelation_scratch<T>, autocorrelation<T>},
                                      first_modes_scratch<T>,
                                      first_modes<T>,
                                      add_rows<T>,
                                      add_signs<T>};

extern const cpu::Kernels<float> kFloatKernels;
extern const cpu::Kernels<double> kDoubleKernels;

const cpu::Kernels<float> kFloatKernels = kKernels<float>;
const cpu::Kernels<double> kDoubleKernels = kKernels<double>;

}  // namespace fastcrit::FASTCRIT_ISA
