// Chooses the instruction set at run time.
#include "instruction_sets.hpp"

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "environment.hpp"
#include "fastcrit/spectra.hpp"

namespace fastcrit {

#define FASTCRIT_DECLARE(isa)                         \
    namespace isa {                                   \
    extern const cpu::Kernels<float> kFloatKernels;   \
    extern const cpu::Kernels<double> kDoubleKernels; \
    }
FASTCRIT_DECLARE(baseline)
#ifdef FASTCRIT_X86
FASTCRIT_DECLARE(avx2)
FASTCRIT_DECLARE(avx512)
#endif
#undef FASTCRIT_DECLARE

namespace {

struct InstructionSet {
    const char* name;
    bool (*available)();
    const cpu::Kernels<float>* single;
    const cpu::Kernels<double>* twice;
};

// Best first.
const InstructionSet kSets[] = {
#ifdef FASTCRIT_X86
    {"avx512",
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
     },
     &avx512::kFloatKernels, &avx512::kDoubleKernels},
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }, &avx2::kFloatKernels,
     &avx2::kDoubleKernels},
#endif
#ifdef __aarch64__
    {"neon",  // which every aarch64 processor has
#else
    {"baseline",
#endif
     [] { return true; }, &baseline::kFloatKernels, &baseline::kDoubleKernels},
};

const InstructionSet* find_set(const std::string& name) {
    std::string known;
    for (const InstructionSet& set : kSets) {
        if (name == set.name && set.available()) return &set;
        if (set.available()) known += std::string(known.empty() ? "" : ", ") + set.name;
    }
    throw std::invalid_argument("instruction set: '" + name + "' is not available here; expected one of " + known);
}

const InstructionSet* initial_set() {
    if (const std::string name = environment("FASTCRIT_ISA"); !name.empty()) return find_set(name);
    for (const InstructionSet& set : kSets) {
        if (set.available()) return &set;
    }
    return &kSets[0];  // not reached: the baseline is always available
}

std::atomic<const InstructionSet*>& current_set() {
    static std::atomic<const InstructionSet*> set{initial_set()};
    return set;
}

}  // namespace

namespace cpu {

template <>
const Kernels<float>& kernels<float>() {
    return *current_set().load()->single;
}
template <>
const Kernels<double>& kernels<double>() {
    return *current_set().load()->twice;
}

}  // namespace cpu

const char* instruction_set() { return current_set().load()->name; }

std::vector<const char*> available_instruction_sets() {
    std::vector<const char*> names;
    for (const InstructionSet& set : kSets) {
        if (set.available()) names.push_back(set.name);
    }
    return names;
}

void use_instruction_set(const char* name) { current_set() = find_set(name); }

}  // namespace fastcrit
