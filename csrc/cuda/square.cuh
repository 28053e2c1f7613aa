// A square of 16, 32, 64 or 128 real values a side in shared memory. Rows 2 p and 2 p + 1 are the real and imaginary
// part of row p of a complex array, half as high, whose transform holds that of the square:
//   E = Z(ky, kx) + conj Z(-ky, -kx),  O = -i (Z(ky, kx) - conj Z(-ky, -kx)),  2 phi^(ky or ky + height, kx) = E +- w O
// with w = exp(-2 pi i ky / side).
#pragma once

#include "transform.cuh"

namespace fastcrit::cuda {

// Radices of at most 16, so that half of the threads that a multiprocessor can hold fit into its registers.
template <int Side>
struct SquarePasses;
template <>
struct SquarePasses<16> {
    using Columns = Passes<8>;
    using Rows = Passes<4, 4>;
};
template <>
struct SquarePasses<32> {
    using Columns = Passes<16>;
    using Rows = Passes<8, 4>;
};
template <>
struct SquarePasses<64> {
    using Columns = Passes<8, 4>;
    using Rows = Passes<8, 8>;
};
template <>
struct SquarePasses<128> {
    using Columns = Passes<8, 8>;
    using Rows = Passes<16, 8>;
};

template <int Side>
struct Square : SquarePasses<Side> {
    using typename SquarePasses<Side>::Columns;
    using typename SquarePasses<Side>::Rows;
    static_assert(Columns::length * 2 == Side && Rows::length == Side);

    static constexpr int height = Side / 2;
    static constexpr int sites = Side * Side;
    static constexpr int threads = sites / 32 < 16 ? 16 : sites / 32;  ///< of one field
    static constexpr int block = threads < 128 ? 128 : threads;
    static constexpr int fields = block / threads;             ///< of one block
    static constexpr int blocks = 1024 / block;                ///< of one multiprocessor at least
    static constexpr int pitch = height * (Side + Side / 16);  ///< of fields, complex values
    static constexpr int shared_bytes = fields * pitch * 8;

    /// Place of a complex value. One of every 17 is left out, so that the 8-byte accesses of a half warp, which runs
    /// along x or along x in steps of a radix, meet no bank twice.
    __host__ __device__ static constexpr int place(int row, int x) { return row * (Side + Side / 16) + x + x / 16; }

    /// Place of the frequency (ky mod height, kx mod side) after all passes.
    __host__ __device__ static constexpr int place_of_mode(int ky, int kx) {
        return place(Columns::position(ky & (height - 1)), Rows::position(kx & (Side - 1)));
    }
};

/// The array after the transform.
template <int Side>
struct HalfHeightSpectrum {
    Shared<Complex> values;
    int base;  ///< of the field
    const Complex* roots;

    struct Pair {
        Complex lower, upper;  ///< 2 phi^ at (ky, kx) and (ky + height, kx)
    };
    __device__ Pair separate(int here, int mirror, int ky) const {
        const Complex a = values[base + here];
        const Complex b = conj(values[base + mirror]);
        const Complex turned = minus_i(a - b) * roots[ky];
        return {a + b + turned, a + b - turned};
    }
};

}  // namespace fastcrit::cuda
