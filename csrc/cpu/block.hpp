// One block: as many fields as a register has lanes, taken from memory to shell sums without leaving the cache.
//
//   rows      two real rows at a time are one complex row; its transform is separated into two half spectra and
//             stored by column, so that each kx is a contiguous plane;
//   planes    each plane is transformed along y (and z) and handed on at once: the spectrum is never written back.
//             The planes kx = 0 and kx = nx/2 hold real rows, and go through one transform together.
//
// Amplitudes inside are twice phi^: the halves of the separation are left to the last multiplication (an exact one).
#pragma once

#include "fft.hpp"

namespace fastcrit::FASTCRIT_ISA {

using cpu::PlanTables;

/// Reads W fields of the batch into lanes. Lanes past the end of the batch repeat its last field.
template <class T>
struct FieldRows {
    const T* lane[kLanes<T>];
    const T* offset;
    std::int64_t sites;

    FieldRows(const T* fields, std::int64_t first, std::int64_t count, std::int64_t n_sites, const T* subtract)
        : offset(subtract),
          sites(n_sites) {
        for (int l = 0; l < kLanes<T>; ++l) {
            const std::int64_t field = first + l < count ? first + l : count - 1;
            lane[l] = fields + field * n_sites;
        }
    }

    /// to[x * stride] = pixel `begin + x` of every field, x < n.
    void read(std::int64_t begin, std::int64_t n, Vec<T>* to, std::int64_t stride) const {
        constexpr int w = kLanes<T>;
        if (sites < w) {
            read_one_by_one(begin, n, to, stride);
        } else {
            for (std::int64_t x = 0; x < n; x += w) {
                // A square that would reach past the field moves back; it may well reach into the next row.
                const std::int64_t past_end = begin + x + w - sites;
                const std::int64_t skip = past_end > 0 ? past_end : 0;
                Vec<T> square[w];
                for (int l = 0; l < w; ++l) square[l] = load(lane[l] + begin + x - skip);
                transpose<T>(square);
                const std::int64_t take = n - x < w ? n - x : w;
                for (std::int64_t i = 0; i < take; ++i) to[(x + i) * stride] = square[skip + i];
            }
        }
        if (offset != nullptr) {
            for (std::int64_t x = 0; x < n; ++x) to[x * stride] -= offset[begin + x];
        }
    }

private:
    void read_one_by_one(std::int64_t begin, std::int64_t n, Vec<T>* to, std::int64_t stride) const {
        for (std::int64_t x = 0; x < n; ++x) {
            for (int l = 0; l < kLanes<T>; ++l) to[x * stride][l] = lane[l][begin + x];
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
};

/// Rows y and y + 1 from z_x = a_x + i b_x: A_k = Z_k + conj Z_(n-k) and B_k = (Z_k - conj Z_(n-k)) / i, both doubled.
template <class T>
inline void separate(const Complex<T>& z, const Complex<T>& mirror, Complex<T>& a, Complex<T>& b) {
    a = {z.re + mirror.re, z.im - mirror.im};
    b = {z.im + mirror.im, mirror.re - z.re};
}

/// Half spectra of all rows, by column: block[kx * plane_stride + row].
template <class T, class Rows>
inline void transform_rows(const PlanTables<T>& plan, const Rows& rows, Complex<T>* block, Complex<T>* work) {
    const std::int64_t n = plan.along_x.n;
    const std::int64_t stride = plan.plane_stride;
    if (plan.split_row) {
        rows.read(0, plan.n2, &work[0].re, 1);  // x_2j + i x_(2j+1)
        const Complex<T>* z = fft(plan.along_x, work, work + n, 1);
        for (std::int64_t k = 0; k <= n; ++k) {
            Complex<T> even;
            Complex<T> odd;
            separate(z[k < n ? k : 0], z[k > 0 ? n - k : 0], even, odd);
            block[k * stride] = even + times(odd, plan.split_twiddles[2 * k], plan.split_twiddles[2 * k + 1]);
        }
        return;
    }
    for (std::int64_t row = 0; row < plan.plane; row += 2) {
        const bool pair = row + 1 < plan.plane;
        rows.read(row * n, n, &work[0].re, 2);
        if (pair) {
            rows.read((row + 1) * n, n, &work[0].im, 2);
        } else {
            for (std::int64_t x = 0; x < n; ++x) work[x].im = Vec<T>{};
        }
        const Complex<T>* z = fft(plan.along_x, work, work + n, 1);
        Complex<T>* column = block + row;
        for (std::int64_t k = 0; k < plan.half; ++k, column += stride) {
            Complex<T> second;
            separate(z[k], z[k > 0 ? n - k : 0], column[0], second);
            if (pair) column[1] = second;
        }
    }
}

/// Transform of one plane along y and z. Returns where the result lies: in the plane or in work.
template <class T>
inline Complex<T>* transform_plane(const PlanTables<T>& plan, Complex<T>* plane, Complex<T>* work) {
    Complex<T>* from = plane;
    Complex<T>* to = work;
    if (plan.n1 > 1) {
        Complex<T>* result = plane;
        for (std::int64_t z = 0; z < plan.n0; ++z) {
            result = fft(plan.along_y, plane + z * plan.n1, work + z * plan.n1, 1) - z * plan.n1;
        }
        from = result;
        to = result == plane ? work : plane;
    }
    return plan.n0 > 1 ? fft(plan.along_z, from, to, plan.n1) : from;
}

/// Calls consume(kx, plane, weight) with the finished plane of every kx; weight counts the mirror image of the plane.
/// Amplitudes are doubled.
template <class T, class Consume>
inline void transform_planes(const PlanTables<T>& plan, Complex<T>* block, Complex<T>* work, const Consume& consume) {
    const bool has_nyquist = plan.n2 % 2 == 0;
    const std::int64_t last = plan.half - 1;
    if (has_nyquist) {
        Complex<T>* zero = block;
        Complex<T>* nyquist = block + last * plan.plane_stride;
        for (std::int64_t j = 0; j < plan.plane; ++j) zero[j].im = nyquist[j].re;
        const Complex<T>* z = transform_plane(plan, zero, work);
        if (z == zero) {  // separation writes to both planes, and reads each value twice
            for (std::int64_t j = 0; j < plan.plane; ++j) work[j] = z[j];
            z = work;
        }
        constexpr T half = static_cast<T>(0.5);
        for (std::int64_t j = 0; j < plan.plane; ++j) {
            Complex<T> a;
            Complex<T> b;
            separate(z[j], z[plan.mirror[j]], a, b);
            zero[j] = {a.re * half, a.im * half};
            nyquist[j] = {b.re * half, b.im * half};
        }
        consume(std::int64_t{0}, static_cast<const Complex<T>*>(zero), static_cast<T>(1));
        consume(last, static_cast<const Complex<T>*>(nyquist), static_cast<T>(1));
    } else {
        consume(std::int64_t{0}, static_cast<const Complex<T>*>(transform_plane(plan, block, work)), static_cast<T>(1));
    }
    const std::int64_t end = has_nyquist ? last : last + 1;
    for (std::int64_t kx = 1; kx < end; ++kx) {
        const Complex<T>* z = transform_plane(plan, block + kx * plan.plane_stride, work);
        consume(kx, z, static_cast<T>(2));
    }
}

}  // namespace fastcrit::FASTCRIT_ISA
