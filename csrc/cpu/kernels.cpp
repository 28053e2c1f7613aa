// Compiled once per instruction set, with FASTCRIT_ISA naming the namespace and the compiler's flags the set.
#include "modes.hpp"
#include "power.hpp"

namespace fastcrit::FASTCRIT_ISA {

extern const cpu::Kernels<float> kFloatKernels;
extern const cpu::Kernels<double> kDoubleKernels;

const cpu::Kernels<float> kFloatKernels = {
    kLanes<float>,          power_scratch<float>, power<float>, autocorrelation_scratch,
    autocorrelation<float>, modes_scratch<float>, modes<float>};
const cpu::Kernels<double> kDoubleKernels = {
    kLanes<double>,          power_scratch<double>, power<double>, autocorrelation_scratch,
    autocorrelation<double>, modes_scratch<double>, modes<double>};

}  // namespace fastcrit::FASTCRIT_ISA
