// Chooses the instruction set at run time and hands groups of fields to the threads.
#include "fastcrit/spectra.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "plan.hpp"
#include "tables.hpp"
#include "threads.hpp"

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
    {"baseline", [] { return true; }, &baseline::kFloatKernels, &baseline::kDoubleKernels},
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
    if (const char* name = std::getenv("FASTCRIT_ISA")) return find_set(name);
    for (const InstructionSet& set : kSets) {
        if (set.available()) return &set;
    }
    return &kSets[0];  // not reached: the baseline is always available
}

std::atomic<const InstructionSet*>& current_set() {
    static std::atomic<const InstructionSet*> set{initial_set()};
    return set;
}

template <class T>
const cpu::Kernels<T>& kernels();
template <>
const cpu::Kernels<float>& kernels<float>() {
    return *current_set().load()->single;
}
template <>
const cpu::Kernels<double>& kernels<double>() {
    return *current_set().load()->twice;
}

std::int64_t groups(std::int64_t count, int lanes) { return (count + lanes - 1) / lanes; }

}  // namespace

const char* instruction_set() { return current_set().load()->name; }

std::vector<const char*> available_instruction_sets() {
    std::vector<const char*> names;
    for (const InstructionSet& set : kSets) {
        if (set.available()) names.push_back(set.name);
    }
    return names;
}

void use_instruction_set(const char* name) { current_set() = find_set(name); }

struct Spectrometer::Tables {
    explicit Tables(const std::vector<std::int64_t>& shape) : lattice(shape), single(lattice), twice(lattice) {}

    template <class T>
    const cpu::PlanTables<T>& of() const {
        if constexpr (sizeof(T) == sizeof(float)) {
            return single.tables();
        } else {
            return twice.tables();
        }
    }

    Lattice lattice;
    cpu::Plan<float> single;
    cpu::Plan<double> twice;
};

Spectrometer::Spectrometer(const std::vector<std::int64_t>& shape) : tables_(std::make_unique<const Tables>(shape)) {}
Spectrometer::~Spectrometer() = default;

const Lattice& Spectrometer::lattice() const { return tables_->lattice; }

std::int64_t Spectrometer::bins(Bins bins) const {
    return bins == Bins::shells ? lattice().shells() : static_cast<std::int64_t>(lattice().orbits().size());
}

template <class T>
void Spectrometer::power(const T* fields, std::int64_t count, const T* offset, Bins bins, T* sums,
                         const std::vector<std::int32_t>& selected, T* modes) const {
    const cpu::PlanTables<T>& plan = tables_->of<T>();
    const std::int64_t half_modes = static_cast<std::int64_t>(plan.half) * plan.plane;
    for (std::size_t i = 0; i < selected.size(); ++i) {
        if (selected[i] < 0 || selected[i] >= half_modes || (i > 0 && selected[i] <= selected[i - 1])) {
            throw std::invalid_argument("selected: expected ascending indices below " + std::to_string(half_modes));
        }
    }
    const std::vector<std::int32_t>& bin = bins == Bins::shells ? lattice().shell_of_mode() : lattice().orbit_of_mode();
    const cpu::PowerRequest<T> request{fields,
                                       count,
                                       offset,
                                       bin.data(),
                                       static_cast<std::int32_t>(this->bins(bins)),
                                       sums,
                                       selected.data(),
                                       static_cast<std::int32_t>(selected.size()),
                                       modes};
    const cpu::Kernels<T>& kernel = kernels<T>();
    cpu::parallel_for(groups(count, kernel.lanes), [&](std::int64_t group) {
        kernel.power(plan, request, group * kernel.lanes, cpu::thread_scratch(kernel.power_scratch(plan, request)));
    });
}

template <class T>
void Spectrometer::autocorrelation(const T* fields, std::int64_t count, const T* offset, T* sums) const {
    const cpu::PlanTables<T>& plan = tables_->of<T>();
    const cpu::PowerRequest<T> request{fields,
                                       count,
                                       offset,
                                       lattice().lag_shell_of_site().data(),
                                       static_cast<std::int32_t>(lattice().lag_shells().size()),
                                       sums,
                                       nullptr,
                                       0,
                                       nullptr};
    const cpu::Kernels<T>& kernel = kernels<T>();
    cpu::parallel_for(groups(count, kernel.lanes), [&](std::int64_t group) {
        kernel.autocorrelation(plan, request, group * kernel.lanes,
                               cpu::thread_scratch(kernel.autocorrelation_scratch(plan, request)));
    });
}

template <class T>
void Spectrometer::modes(const T* fields, std::int64_t count, double* out) const {
    const cpu::PlanTables<T>& plan = tables_->of<T>();
    const cpu::ModesRequest<T> request{fields, count, lattice().ndim(), out};
    const cpu::Kernels<T>& kernel = kernels<T>();
    // Fields are handed out in runs: one small field is less work than taking a task.
    constexpr std::int64_t run = 16;
    cpu::parallel_for((count + run - 1) / run, [&](std::int64_t task) {
        void* scratch = cpu::thread_scratch(kernel.modes_scratch(plan));
        for (std::int64_t i = task * run; i < count && i < (task + 1) * run; ++i) {
            kernel.modes(plan, request, i, scratch);
        }
    });
}

// NOLINTBEGIN(bugprone-macro-parentheses): a type in a signature takes no parentheses.
#define FASTCRIT_INSTANTIATE(T)                                                                                        \
    template void Spectrometer::power<T>(const T*, std::int64_t, const T*, Bins, T*, const std::vector<std::int32_t>&, \
                                         T*) const;                                                                    \
    template void Spectrometer::autocorrelation<T>(const T*, std::int64_t, const T*, T*) const;                        \
    template void Spectrometer::modes<T>(const T*, std::int64_t, double*) const;
// NOLINTEND(bugprone-macro-parentheses)
FASTCRIT_INSTANTIATE(float)
FASTCRIT_INSTANTIATE(double)
#undef FASTCRIT_INSTANTIATE

}  // namespace fastcrit
