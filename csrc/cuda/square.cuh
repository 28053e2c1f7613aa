// A square of 16, 32, 64 or 128 real values a side in shared memory. Rows 2 p and 2 p + 1 are the real and imaginary
// part of row p of a complex array, half as high, whose transform holds that of the square:
//   E = Z(ky, kx) + conj Z(-ky, -kx),  O = -i (Z(ky, kx) - conj Z(-ky, -kx)),  2 phi^(ky or ky + height, kx) = E +- w O
// with w = exp(-2 pi i ky / side).
#pragma once

#include "transform.cuh"

namespace fastcrit::cuda {

// Every thread has 16 complex values of the field (32 pixels), so that 64 registers hold a butterfly of 16, or two
// columns' butterflies of 8, and half of the threads that a multiprocessor can hold fit.
template <int Side>
struct SquarePasses;
template <>
struct SquarePasses<16> {
    using Columns = Passes<8>;
    using Rows = Passes<16>;
    static constexpr int columns_at_once = 2;
};
template <>
struct SquarePasses<32> {
    using Columns = Passes<16>;
    using Rows = Passes<8, 4>;
    static constexpr int columns_at_once = 1;
};
template <>
struct SquarePasses<64> {
    using Columns = Passes<8, 4>;
    using Rows = Passes<8, 8>;
    static constexpr int columns_at_once = 2;
};
template <>
struct SquarePasses<128> {
    using Columns = Passes<8, 8>;
    using Rows = Passes<16, 8>;
    static constexpr int columns_at_once = 2;
};

template <int Side>
struct Square : SquarePasses<Side> {
    using typename SquarePasses<Side>::Columns;
    using typename SquarePasses<Side>::Rows;
    static_assert(Columns::length * 2 == Side && Rows::length == Side);

    static constexpr int height = Side / 2;
    static constexpr int sites = Side * Side;
    static constexpr int threads = sites / 32;  ///< of one field
    static constexpr int block = threads < 128 ? 128 : threads;
    static constexpr int fields = block / threads;    ///< of one block
    static constexpr int blocks = 1024 / block;       ///< of one multiprocessor at least
    static constexpr int spare = Side == 16 ? 8 : 0;  ///< neighbouring fields of 16^2 begin in different banks
    static constexpr int pitch = sites / 2 + spare;   ///< of fields, complex values
    static constexpr int shared_bytes = fields * pitch * 8;

    /// Place of a complex value. Lanes that run along x, or along x and rows in steps of a radix, find 16 different
    /// places modulo 16: a half warp's 8-byte accesses meet no bank twice.
    __host__ __device__ static constexpr int place(int row, int x) { return row * Side + (x ^ turn(row, x)); }

    /// Place of the frequency (ky mod height, kx mod side) after all passes.
    __host__ __device__ static constexpr int place_of_mode(int ky, int kx) {
        return place(Columns::position(ky & (height - 1)), Rows::position(kx & (Side - 1)));
    }

private:
    __host__ __device__ static constexpr int turn(int row, int x) {
        switch (Side) {
            case 16: return row & 7;
            case 32: return (x >> 4 & 1) ^ (row & 1) << 1 ^ (row & 3) << 2;
            case 64: return (x >> 4 & 3) ^ (row & 1) * 12;
            default: return (x >> 4 & 7) ^ (row & 1) << 3;
        }
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
