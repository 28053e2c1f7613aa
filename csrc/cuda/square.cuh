// A square of 16, 32, 64 or 128 real values a side in shared memory, as a complex array of half the height: finish.cuh.
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
};

}  // namespace fastcrit::cuda
