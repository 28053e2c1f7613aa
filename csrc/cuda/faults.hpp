// Faults that the negative tests plant, one in each of their builds, to show that the tests would find it.
#pragma once

namespace fastcrit::cuda {

enum class Fault { none, missing_barrier, partial_warp, wrong_twiddle };

#ifdef FASTCRIT_FAULT
constexpr Fault kFault = Fault::FASTCRIT_FAULT;
#else
constexpr Fault kFault = Fault::none;
#endif

}  // namespace fastcrit::cuda
