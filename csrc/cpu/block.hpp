// One block: as many fields as a register has lanes, taken from memory to shell sums without leaving the cache.
//
//   rows      two real rows at a time are one complex row; its transform is separated into two half spectra in the
//             registers of its last pass and stored by column, so that each kx is a contiguous plane;
//   planes    each plane is transformed along y (and z); its last pass hands every mode, with its mirror image, to a
//             sink that adds up powers, so that the spectrum is never written back.
//             The planes kx = 0 and kx = nx/2 hold real rows, and go through one transform together.
//
// Amplitudes inside are twice phi^: the halves of the separation are left to the last multiplication (an exact one).
#pragma once

#include "fft.hpp"

namespace fastcrit::FASTCRIT_ISA {

using cpu::PlanTables;

inline constexpr int kLineBytes = 64;
inline constexpr int kWays = 8;

/// What is read next, brought into the L2 cache two registers' worth at a time while the block is transformed: few
/// lines can be on their way at once, and many at a time would be waited for.
template <class T>
struct Ahead {
    const T* from;
    std::int64_t step = 2 * kLanes<T>;

    Ahead after(std::int64_t steps) const { return {from + steps * step, step}; }
    void fetch(std::int64_t i) const {
        constexpr int line = kLineBytes / static_cast<int>(sizeof(T));
        const T* const begin = from + i * step;
        for (int x = 0; x < 2 * kLanes<T>; x += line) __builtin_prefetch(begin + x, 0, 2);
    }
};

/// What is written next, brought into the L1 cache meanwhile: stores wait for their lines one after the other.
inline void fetch_to_write(const void* at, std::int64_t bytes) {
    for (std::int64_t x = 0; x < bytes; x += kLineBytes) __builtin_prefetch(static_cast<const char*>(at) + x, 1, 3);
}

/// Whether lanes that lie `pitch` values apart crowd one set of the L1 cache: 64 sets of kWays lines repeat every 4096
/// bytes. A line of each lane is then read whole before the next lane's.
template <class T>
inline bool meets_in_one_set(std::int64_t pitch) {
    return kLanes<T> > kWays && pitch * static_cast<std::int64_t>(sizeof(T)) % 4096 == 0;
}

/// Reads pixels of W rows, one a lane, from the `readable` values that begin at each lane[l].
template <class T>
struct RowReader {
    const T* lane[kLanes<T>];
    std::int64_t readable;
    bool by_line = false;       ///< lanes crowd a cache set: read pairs of rows by whole cache lines
    const T* offset = nullptr;  ///< as many values, subtracted; or null
    bool sign = false;          ///< read +1 or -1 instead of the value
    double* totals = nullptr;   ///< per lane, where what is read is summed; or null

    /// to[x * stride] = value `begin + x` of every lane, x < n.
    void read(std::int64_t begin, std::int64_t n, Vec<T>* to, std::int64_t stride) const {
        if (readable < kLanes<T>) {
            for (std::int64_t x = 0; x < n; ++x) {
                for (int l = 0; l < kLanes<T>; ++l) to[x * stride][l] = lane[l][begin + x];
            }
        } else {
            gather(begin, n, to, stride);
        }
        finish(begin, n, to, stride);
    }

    /// Rows `begin` and `begin + n` of every lane: to[2 x] and to[2 x + 1].
    void read_pair(std::int64_t begin, std::int64_t n, Vec<T>* to) const {
        if (!by_line || n % kPiece<T> != 0) {
            read(begin, n, to, 2);
            read(begin + n, n, to + 1, 2);
            return;
        }
        gather_lines(begin, n, to);
        finish(begin, n, to, 2);
        finish(begin + n, n, to + 1, 2);
    }

    /// Registers of Q values each of all lanes, from value `at` on, transposed.
    void turn(std::int64_t at, Vec<T>* square) const {
        unroll<kPiece<T>>([&](auto r) {
            square[r] = load_pieces<T>([&](int p) { return lane[p * kPiece<T> + decltype(r)::value] + at; });
        });
        transpose_pieces<T>(square);
    }

private:
    void finish(std::int64_t begin, std::int64_t n, Vec<T>* to, std::int64_t stride) const {
        if (offset != nullptr) {
            for (std::int64_t x = 0; x < n; ++x) to[x * stride] -= offset[begin + x];
        }
        if (sign) {
            for (std::int64_t x = 0; x < n; ++x) {
                const Vec<T> v = to[x * stride];
                to[x * stride] = v >= Vec<T>{} ? Vec<T>{} + T{1} : Vec<T>{} - T{1};
            }
        }
        if (totals != nullptr) add_to_totals(n, to, stride);
    }

    /// Transposes Q values at a time. When the last Q would reach past what is readable, they are taken from further
    /// back.
    FASTCRIT_FLATTEN void gather(std::int64_t begin, std::int64_t n, Vec<T>* to, std::int64_t stride) const {
        constexpr std::int64_t q = kPiece<T>;
        Vec<T> square[q];
        std::int64_t x = 0;
        for (; x + q <= n; x += q) {
            turn(begin + x, square);
            unroll<q>([&](auto i) { to[(x + i) * stride] = square[i]; });
        }
        if (x < n) {
            const std::int64_t past_end = begin + x + q - readable;
            const std::int64_t back = past_end > 0 ? past_end : 0;
            turn(begin + x - back, square);
            for (std::int64_t i = 0; i < n - x; ++i) to[(x + i) * stride] = square[back + i];
        }
    }

    /// Two rows, both multiples of Q, as one run: a cache line of each lane is read whole before the next lane's.
    FASTCRIT_FLATTEN void gather_lines(std::int64_t begin, std::int64_t n, Vec<T>* to) const {
        constexpr std::int64_t q = kPiece<T>;
        constexpr int squares = kLineBytes / kPieceBytes;
        const auto put = [&](std::int64_t x, const Vec<T>* square) {
            Vec<T>* const place = x < n ? to + 2 * x : to + 2 * (x - n) + 1;
            unroll<q>([&](auto i) { place[2 * i] = square[i]; });
        };
        Vec<T> line[squares][q];
        std::int64_t x = 0;
        // Up to where lines begin. All lanes lie alike: they are a multiple of 4096 bytes apart.
        for (; x < 2 * n && reinterpret_cast<std::uintptr_t>(lane[0] + begin + x) % kLineBytes >= kPieceBytes; x += q) {
            turn(begin + x, line[0]);
            put(x, line[0]);
        }
        for (; x + squares * q <= 2 * n; x += squares * q) {
            unroll<q>([&](auto r) {
                unroll<squares>([&](auto k) {
                    line[k][r] = load_pieces<T>(
                        [&](int p) { return lane[p * q + decltype(r)::value] + begin + x + decltype(k)::value * q; });
                });
            });
            unroll<squares>([&](auto k) {
                transpose_pieces<T>(line[k]);
                put(x + k * q, line[k]);
            });
        }
        for (; x < 2 * n; x += q) {
            turn(begin + x, line[0]);
            put(x, line[0]);
        }
    }

    // Sums of up to 64 values are kept in the precision of the field before they go to double.
    FASTCRIT_FLATTEN void add_to_totals(std::int64_t n, const Vec<T>* values, std::int64_t stride) const {
        constexpr std::int64_t run = 64;
        for (std::int64_t begin = 0; begin < n; begin += run) {
            Vec<T> part[4] = {};  // four chains of additions
            const std::int64_t end = begin + run < n ? begin + run : n;
            std::int64_t x = begin;
            for (; x + 4 <= end; x += 4) {
                unroll<4>([&](auto i) { part[i] += values[(x + i) * stride]; });
            }
            for (; x < end; ++x) part[0] += values[x * stride];
            const Vec<T> sum = (part[0] + part[1]) + (part[2] + part[3]);
            T lanes[kLanes<T>];
            store(lanes, sum);
            for (int l = 0; l < kLanes<T>; ++l) totals[l] += static_cast<double>(lanes[l]);
        }
    }
};

/// Reads a block that already lies in lanes.
template <class T>
struct LaneRows {
    const Vec<T>* block;

    void read(std::int64_t begin, std::int64_t n, Vec<T>* to, std::int64_t stride) const {
        for (std::int64_t x = 0; x < n; ++x) to[x * stride] = block[begin + x];
    }
    void read_pair(std::int64_t begin, std::int64_t n, Vec<T>* to) const {
        read(begin, n, to, 2);
        read(begin + n, n, to + 1, 2);
    }
};

/// Sequences a and b from z = a + i b: A_k = Z_k + conj Z_(n-k) and B_k = (Z_k - conj Z_(n-k)) / i, both doubled.
template <class T>
inline void separate(const Complex<T>& z, const Complex<T>& mirror, Complex<T>& a, Complex<T>& b) {
    a = {z.re + mirror.re, z.im - mirror.im};
    b = {z.im + mirror.im, mirror.re - z.re};
}

/// The same of sequences that were doubled before.
template <class T>
inline void separate_doubled(const Complex<T>& z, const Complex<T>& mirror, Complex<T>& a, Complex<T>& b) {
    constexpr T half = static_cast<T>(0.5);
    separate(z, mirror, a, b);
    a = {a.re * half, a.im * half};
    b = {b.re * half, b.im * half};
}

/// Sink that separates two rows and stores A_k and B_k side by side, `stride` from one k to the next.
template <class T>
struct SplitRows {
    Complex<T>* column;
    std::int64_t stride;
    Ahead<T> ahead;

    void pair(std::int64_t k, std::int64_t, const Complex<T>& z, const Complex<T>& mirror) const {
        ahead.fetch(k);
        Complex<T>* const rows = column + k * stride;
        fetch_to_write(rows + stride, 2 * sizeof(Complex<T>));
        separate(z, mirror, rows[0], rows[1]);
    }
    void alone(std::int64_t k, const Complex<T>& z) const { pair(k, k, z, z); }
};

/// Half spectra of all rows, by column: block[kx * plane_stride + row].
template <class T, class Rows>
inline void transform_rows(const PlanTables<T>& plan, const Rows& rows, Complex<T>* block, Complex<T>* work,
                           Ahead<T> ahead) {
    const std::int64_t n = plan.n2;
    for (std::int64_t row = 0; row < plan.plane; row += 2) {
        if (row + 1 < plan.plane) {
            rows.read_pair(row * n, n, &work[0].re);
        } else {  // its partner's spectrum goes to the gap between planes
            rows.read(row * n, n, &work[0].re, 2);
            for (std::int64_t x = 0; x < n; ++x) work[x].im = Vec<T>{};
        }
        fft_pairs(plan.along_x, work, work + n, work + plan.spare,
                  SplitRows<T>{block + row, plan.plane_stride, ahead.after(row / 2 * (n / 2))});
    }
}

/// Sink that puts together the half spectrum of a single row of even length from z_j = x_2j + i x_(2j+1), doubled:
/// X_k = E_k + w^k O_k and X_(n/2-k) = conj(E_k - w^k O_k), w = exp(-2 pi i / n).
template <class T, class Emit>
struct SplitHalves {
    const T* twiddles;
    std::int64_t half;  ///< n/2
    const Emit& emit;   ///< called with (k, X_k)

    void pair(std::int64_t k, std::int64_t opposite, const Complex<T>& z, const Complex<T>& mirror) const {
        Complex<T> even;
        Complex<T> odd;
        separate(z, mirror, even, odd);
        odd = times(odd, twiddles[2 * k], twiddles[2 * k + 1]);
        emit(k, even + odd);
        emit(opposite, conj(even - odd));
    }
    void alone(std::int64_t k, const Complex<T>& z) const {
        if (k == 0) {  // E_0 and O_0 are real
            emit(0, Complex<T>{(z.re + z.im) * T{2}, Vec<T>{}});
            emit(half, Complex<T>{(z.re - z.im) * T{2}, Vec<T>{}});
        } else {  // w^(n/4) = -i
            emit(k, Complex<T>{z.re * T{2}, z.im * T{-2}});
        }
    }
};

/// Sink of a single row of odd length, whose imaginary part is zero.
template <class T, class Emit>
struct RealRow {
    const Emit& emit;

    void pair(std::int64_t k, std::int64_t, const Complex<T>& z, const Complex<T>&) const { alone(k, z); }
    void alone(std::int64_t k, const Complex<T>& z) const { emit(k, Complex<T>{z.re * T{2}, z.im * T{2}}); }
};

/// The half spectrum of fields that are a single row: emit(kx, X_kx) for every kx, doubled.
template <class T, class Rows, class Emit>
inline void transform_single_row(const PlanTables<T>& plan, const Rows& rows, Complex<T>* work, const Emit& emit) {
    const std::int64_t n = plan.along_x.n;
    if (plan.split_row) {
        rows.read(0, plan.n2, &work[0].re, 1);  // x_2j + i x_(2j+1)
        fft_pairs(plan.along_x, work, work + n, work + plan.spare, SplitHalves<T, Emit>{plan.split_twiddles, n, emit});
    } else {
        rows.read(0, n, &work[0].re, 2);
        for (std::int64_t x = 0; x < n; ++x) work[x].im = Vec<T>{};
        fft_pairs(plan.along_x, work, work + n, work + plan.spare, RealRow<T, Emit>{emit});
    }
}

/// A sequence that lies in memory with others.
template <class T>
struct Strided {
    const Complex<T>* first;
    std::int64_t step;

    const Complex<T>& operator()(std::int64_t i) const { return first[i * step]; }
};

/// The lines along z at y and at -y of a plane transformed along y: transformed, and handed to the sink.
template <class T, class Sink>
inline void transform_along_z(const PlanTables<T>& plan, const Complex<T>* plane, std::int64_t y, Complex<T>* work,
                              const Sink& sink) {
    const std::int64_t n0 = plan.n0;
    const std::int64_t opposite = y > 0 ? plan.n1 - y : 0;
    Complex<T>* const lines = work + plan.lines_along_z;
    const auto line = [&](std::int64_t at, Complex<T>* a) {
        const Strided<T> source{plane + at, plan.n1};
        return fft_of(plan.along_z, source, a, a + n0, work + plan.spare);
    };
    const Complex<T>* const here = line(y, lines);
    const Complex<T>* const there = opposite == y ? here : line(opposite, lines + 2 * n0);
    for (std::int64_t z = 0; z < n0; ++z) {
        const std::int64_t mirror = z > 0 ? n0 - z : 0;
        const std::int64_t j = z * plan.n1 + y;
        const std::int64_t image = mirror * plan.n1 + opposite;
        if (j < image) {
            sink.pair(j, image, here[z], there[mirror]);
        } else if (j == image) {
            sink.alone(j, here[z]);
        } else if (y != opposite) {
            sink.pair(image, j, there[mirror], here[z]);
        }
    }
}

/// Transforms one plane along y (and z) and hands it to the sink: sink.pair(j, mirror, Z_j, Z_mirror), j < mirror, once
/// for every two modes that are each other's mirror image in the plane, sink.alone(j, Z_j) for those that are their
/// own. read(z) is called before the row z of the plane is read.
template <class T, class Read, class Sink>
inline void transform_plane(const PlanTables<T>& plan, const Read& read, Complex<T>* plane, Complex<T>* work,
                            const Sink& sink) {
    if (plan.n0 == 1) {
        read(0);
        return fft_pairs(plan.along_y, plane, work, work + plan.spare, sink);
    }
    const Complex<T>* result = plane;
    for (std::int64_t z = 0; z < plan.n0; ++z) {
        const std::int64_t begin = z * plan.n1;
        read(z);
        result = fft(plan.along_y, plane + begin, work + begin, 1, work + plan.spare) - begin;
    }
    for (std::int64_t y = 0; 2 * y <= plan.n1; ++y) transform_along_z(plan, result, y, work, sink);
}
template <class T, class Sink>
inline void transform_plane(const PlanTables<T>& plan, Complex<T>* plane, Complex<T>* work, const Sink& sink) {
    transform_plane(plan, [](std::int64_t) {}, plane, work, sink);
}

/// Sink for the planes kx = 0 and kx = nx/2 transformed together: separates them and hands each to its own sink.
template <class T, class Sink>
struct SplitPlanes {
    Sink zero;
    Sink nyquist;

    void pair(std::int64_t j, std::int64_t mirror, const Complex<T>& z, const Complex<T>& opposite) const {
        Complex<T> a;
        Complex<T> b;
        separate_doubled(z, opposite, a, b);
        zero.pair(j, mirror, a, conj(a));
        nyquist.pair(j, mirror, b, conj(b));
    }
    void alone(std::int64_t j, const Complex<T>& z) const {
        zero.alone(j, Complex<T>{z.re, Vec<T>{}});
        nyquist.alone(j, Complex<T>{z.im, Vec<T>{}});
    }
};

/// Hands every plane of a block to sink_of(kx, weight); weight counts the mirror image of the plane.
template <class T, class SinkOf>
inline void transform_planes(const PlanTables<T>& plan, Complex<T>* block, Complex<T>* work, const SinkOf& sink_of) {
    using Sink = decltype(sink_of(std::int64_t{0}, T{1}));
    std::int64_t last = plan.half;
    if (plan.n2 % 2 == 0) {
        --last;
        const Complex<T>* const nyquist = block + last * plan.plane_stride;
        for (std::int64_t j = 0; j < plan.plane; ++j) block[j].im = nyquist[j].re;
        transform_plane(plan, block, work, SplitPlanes<T, Sink>{sink_of(0, T{1}), sink_of(last, T{1})});
    } else {
        transform_plane(plan, block, work, sink_of(0, T{1}));
    }
    for (std::int64_t kx = 1; kx < last; ++kx) {
        transform_plane(plan, block + kx * plan.plane_stride, work, sink_of(kx, T{2}));
    }
}

}  // namespace fastcrit::FASTCRIT_ISA
