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

#include <cstdint>

#include "fft.hpp"
#include "reader.hpp"

namespace fastcrit::FASTCRIT_ISA {

using cpu::PlanTables;

template <class T>
inline Vec<T> square(const Complex<T>& z) {
    return z.re * z.re + z.im * z.im;
}

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
template <class T, class Emit>
inline constexpr bool kOddLength<RealRow<T, Emit>> = true;

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
