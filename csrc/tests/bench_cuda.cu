// Times of the kernels on a device, beside a plain copy of as many bytes: a line for each kernel, size and type.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda/memory.hpp"
#include "cuda/numbers.cuh"
#include "fastcrit/cuda.hpp"
#include "record_arrays.hpp"

using fastcrit::Bins;
using fastcrit::Selection;
using fastcrit::cuda::DeviceArray;
using fastcrit::cuda::Fields;
using fastcrit::cuda::PowerResults;
using fastcrit::cuda::SelectedModes;
using fastcrit::cuda::Spectrometer;
using fastcrit::cuda::Type;

namespace {

constexpr std::size_t kBytes = std::size_t{512} << 20;  // of a batch: well above any cache
int runs = 20;

/// Median microseconds of a call.
template <class Call>
double microseconds(const Call& call) {
    cudaEvent_t begin = nullptr;
    cudaEvent_t end = nullptr;
    FASTCRIT_CUDA_CHECK(cudaEventCreate(&begin));
    FASTCRIT_CUDA_CHECK(cudaEventCreate(&end));
    std::vector<float> times;
    for (int run = -3; run < runs; ++run) {
        FASTCRIT_CUDA_CHECK(cudaEventRecord(begin));
        call();
        FASTCRIT_CUDA_CHECK(cudaEventRecord(end));
        FASTCRIT_CUDA_CHECK(cudaEventSynchronize(end));
        float milliseconds = 0.0F;
        FASTCRIT_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
        if (run >= 0) times.push_back(milliseconds);
    }
    FASTCRIT_CUDA_CHECK(cudaEventDestroy(begin));
    FASTCRIT_CUDA_CHECK(cudaEventDestroy(end));
    std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
    return 1e3 * static_cast<double>(times[static_cast<std::size_t>(runs / 2)]);
}

/// Values of random sign and fraction, 0.5 to 1 in size.
std::vector<char> half_to_one(Type type, std::size_t n) {
    std::mt19937 random(1);
    std::vector<char> bytes;
    const std::size_t size = type == Type::float32 ? 4 : 2;
    std::vector<char> some(size << 20);
    for (std::size_t i = 0; i < some.size(); i += size) {
        const auto bits = static_cast<std::uint32_t>(random());
        const std::uint32_t value = type == Type::float32   ? 0x3f000000U | (bits & 0x807fffffU)
                                    : type == Type::float16 ? 0x3800U | (bits & 0x83ffU)
                                                            : 0x3f00U | (bits & 0x807fU);
        std::memcpy(some.data() + i, &value, size);  // the low bytes come first
    }
    bytes.reserve(n * size);
    while (bytes.size() < n * size) {
        const std::size_t more = std::min(some.size(), n * size - bytes.size());
        bytes.insert(bytes.end(), some.begin(), some.begin() + static_cast<std::ptrdiff_t>(more));
    }
    return bytes;
}

/// `bytes` is what the kernel has to read and write; a copy reads and writes half of that each.
void print(const char* kernel, std::int64_t side, const char* type, std::int64_t count, double time, double bytes) {
    DeviceArray<char> from(std::vector<char>(static_cast<std::size_t>(bytes / 2)));
    DeviceArray<char> to(std::vector<char>(static_cast<std::size_t>(bytes / 2)));
    const double copy = microseconds([&] {
        FASTCRIT_CUDA_CHECK(
            cudaMemcpyAsync(to.data(), from.data(), from.size(), cudaMemcpyDeviceToDevice, cudaStream_t{}));
    });
    std::printf("%-12s %4lld^2 %-9s %8lld %10.1f %8.1f %8.1f %6.2f\n", kernel, static_cast<long long>(side), type,
                static_cast<long long>(count), time, bytes / time / 1e3, bytes / copy / 1e3, copy / time);
}

void bench(std::int64_t side, Type type, const char* name, std::size_t size) {
    const Spectrometer spectrometer({side, side}, 0);
    const auto sites = static_cast<std::size_t>(side * side);
    const auto count = static_cast<std::int64_t>(kBytes / sites / size);
    const auto n = static_cast<std::size_t>(count);
    const DeviceArray<char> data(half_to_one(type, n * sites));
    const Fields fields{data.data(), type, count};
    const auto orbits = static_cast<std::size_t>(spectrometer.bins(Bins::orbits));
    const auto shells = static_cast<std::size_t>(spectrometer.bins(Bins::shells));
    std::vector<std::int32_t> low;
    for (std::int32_t kx = 0; kx < 9; ++kx) {
        for (std::int32_t ky = 0; ky < side; ++ky) {
            if (ky < 9 || ky > side - 9) low.push_back(kx * static_cast<std::int32_t>(side) + ky);
        }
    }
    const SelectedModes selected(spectrometer, Selection(spectrometer.lattice(), low));
    const DeviceArray<float> sums(std::vector<float>(n * orbits));
    const DeviceArray<float> modes(std::vector<float>(n * 2 * low.size()));
    const DeviceArray<double> totals{std::vector<double>(n)};
    const DeviceArray<double> first(std::vector<double>(n * 5));
    const DeviceArray<double> scratch(
        std::vector<double>(static_cast<std::size_t>(spectrometer.first_modes_scratch(count)) / 8));
    const auto batch = static_cast<double>(n * sites * size);
    const auto of_fields = [&](std::size_t bytes) { return static_cast<double>(n * bytes); };

    if (spectrometer.fused()) {
        const double by_shell =
            microseconds([&] { spectrometer.power(fields, {}, Bins::shells, {sums.data()}, nullptr); });
        print("shells", side, name, count, by_shell, batch + of_fields(4 * shells));
        const PowerResults results{sums.data(), &selected, modes.data(), totals.data()};
        const double by_orbit = microseconds([&] { spectrometer.power(fields, {}, Bins::orbits, results, nullptr); });
        print("orbits", side, name, count, by_orbit, batch + of_fields(4 * orbits + 8 * low.size() + 8));

        constexpr std::int64_t blocks = 32;
        const DeviceArray<std::int64_t> bad(std::vector<std::int64_t>{INT64_MAX});
        oracle::RecordArrays<DeviceArray> to(
            {blocks, 1, spectrometer.bins(Bins::orbits), static_cast<std::int64_t>(low.size()), 2, side * side}, false,
            {});
        const DeviceArray<char> pieces(std::vector<char>(static_cast<std::size_t>(
            spectrometer.record_scratch(type, count, selected, to.record(blocks, 1), nullptr))));
        const double step = microseconds([&] {
            spectrometer.record(
                {fields, 0, sums.data(), modes.data(), totals.data(), nullptr, nullptr, nullptr, pieces.data()},
                selected, to.record(blocks, 1), bad.data(), nullptr);
        });
        print("record", side, name, count, step, batch + of_fields(4 * orbits + 8 * low.size() + 8));
    }
    const double modes_time =
        microseconds([&] { spectrometer.first_modes(fields, first.data(), scratch.data(), nullptr); });
    print("first modes", side, name, count, modes_time, batch + of_fields(8 * 5));
}

}  // namespace

/// bench_cuda [SIDE [TYPE [RUNS]]]: one side or 0 for all, one type or "all"; a profiler wants few runs.
int main(int argc, char** argv) {
    const long only_side = argc > 1 ? std::strtol(argv[1], nullptr, 10) : 0;
    const std::string only_type = argc > 2 ? argv[2] : "all";
    if (argc > 3) runs = static_cast<int>(std::strtol(argv[3], nullptr, 10));
    std::printf("%-12s %6s %-9s %8s %10s %8s %8s %6s\n", "kernel", "side", "type", "fields", "us", "GB/s", "copy",
                "ratio");
    for (const std::int64_t side : {16, 24, 28, 32, 40, 48, 64, 80, 96, 112, 128, 192, 224, 256}) {
        if (only_side != 0 && side != only_side) continue;
        if (only_type == "all" || only_type == "float32") bench(side, Type::float32, "float32", 4);
        if (only_type == "all" || only_type == "float16") bench(side, Type::float16, "float16", 2);
        if (only_type == "all" || only_type == "bfloat16") bench(side, Type::bfloat16, "bfloat16", 2);
    }
}
