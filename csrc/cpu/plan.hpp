// Owner of the tables of one lattice in one precision. Immutable once built: any number of threads may share it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "fastcrit/lattice.hpp"
#include "kernels.hpp"

namespace fastcrit::cpu {

template <class T>
class Plan {
public:
    explicit Plan(const Lattice& lattice);
    Plan(const Plan&) = delete;
    Plan& operator=(const Plan&) = delete;

    const PlanTables<T>& tables() const { return tables_; }

private:
    struct Fft {
        explicit Fft(std::int32_t n);
        void use_passes();
        void use_convolution();

        FftTables<T> tables;
        std::vector<std::int32_t> radices;
        std::vector<T> twiddles;
        std::vector<T> roots;
        std::unique_ptr<const Fft> convolution;
        std::vector<T> chirp;
        std::vector<T> chirp_spectrum;
    };

    bool split_row_;
    Fft along_z_, along_y_, along_x_;
    std::vector<T> split_twiddles_;
    std::vector<std::int32_t> mirror_, mode_of_half_, row_of_;
    std::array<std::vector<T>, 3> wave_re_;
    std::array<std::vector<T>, 3> wave_im_;
    std::array<std::array<T, kTileValues>, 4> tile_;  ///< along x: re, im; along y: re, im
    PlanTables<T> tables_{};
};

}  // namespace fastcrit::cpu
