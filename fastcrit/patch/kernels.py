"""Compiled loops of the patch model: denoise one sample, its response, and steps of the solvers.

One sample is worked on at a time and all of it stays in the cache; threads take different samples, so their number
changes nothing. Lanes are the pixels of a row. (No annotations here: numba infers every type.)
"""

from __future__ import annotations

import numpy as np

from fastcrit.patch.random import compiled, exp, fill_normal

# Patterns whose logits are held at a time, 32 KiB of float32 for a run. Larger dictionaries are folded in chunk by
# chunk with a running maximum.
_CHUNK = 16
# Pixels worked on at a time: long enough to hide the start of each loop, and short enough that the logits of a pattern
# stay in the first-level cache while the taps are added up.
_RUN = 512
# Pixels of a row multiplied at a time. Rows of taps are padded with zeros to whole groups.
TAPS = 5

EULER, HEUN, SDE = 0, 1, 2

# Contraction into fused multiply-adds is allowed; reordering of sums is not, save where a sum says so.
_FLAGS = {"contract"}


@compiled()
def pad(y, half, periodic, out):
    """Copy y (H, W) into out at (half, half), with wrapped or zero margins of `half`; what lies beyond is untouched."""
    height, width = y.shape
    for r in range(height + 2 * half):
        i = r - half
        if periodic:
            i %= height
        elif i < 0 or i >= height:
            out[r] = 0
            continue
        out[r, half : half + width] = y[i]
        for c in range(half):
            out[r, c] = y[i, (c - half) % width] if periodic else 0
            out[r, half + width + c] = y[i, c % width] if periodic else 0


@compiled(fastmath=_FLAGS)
def logits(flat, base, stride, length, taps, bias, first, last, out):
    """out[mu - first, x] = bias_mu + sum_(i,j) taps[mu, i, j] flat[base + i stride + j + x] for mu = first .. last - 1.

    Five neighbouring pixels at a time: with one pointer to read from and one to write to, the compiler vectorises the
    loop. (Two or four patterns at once, to share the loads, measured slower: 90 and 107 against 61 us a sample.)
    """
    for mu in range(first, last):
        a = out[mu - first]
        for x in range(length):
            a[x] = bias[mu]
        for i in range(taps.shape[1]):
            for j in range(0, taps.shape[2], TAPS):
                p0, p1, p2 = taps[mu, i, j], taps[mu, i, j + 1], taps[mu, i, j + 2]
                p3, p4 = taps[mu, i, j + 3], taps[mu, i, j + 4]
                y = flat[base + i * stride + j :]
                for x in range(length):
                    a[x] = a[x] + p0 * y[x] + p1 * y[x + 1] + p2 * y[x + 2] + p3 * y[x + 3] + p4 * y[x + 4]


@compiled(fastmath=_FLAGS)
def denoise_equivariant(padded, half, taps, bias, center, scratch, D, top, total):
    """D from padded states; top and total receive the largest logit and the sum of weights against it.

    Rows are worked on in runs, margins included, so that the loops are long; all maps therefore have the stride of the
    padded state, and what they hold beyond the lattice's width means nothing.
    """
    height, stride = D.shape
    count = bias.size
    flat, flat_D, flat_top, flat_total = padded.ravel(), D.ravel(), top.ravel(), total.ravel()
    run = max(1, _RUN // stride)
    for row in range(0, height, run):
        base = row * stride
        # The last pixels of the last row are margin: their windows would reach past the padded state.
        length = min(run, height - row) * stride - (2 * half + TAPS - 1)
        peak, weight, mean = flat_top[base:], flat_total[base:], flat_D[base:]
        for first in range(0, count, _CHUNK):
            last = min(first + _CHUNK, count)
            logits(flat, base, stride, length, taps, bias, first, last, scratch)
            high = scratch[_CHUNK]
            line = scratch[0]
            for x in range(length):
                high[x] = line[x]
            for mu in range(1, last - first):
                line = scratch[mu]
                for x in range(length):
                    high[x] = max(high[x], line[x])
            if first == 0:
                for x in range(length):
                    peak[x] = high[x]
                    weight[x] = 0
                    mean[x] = 0
            else:
                for x in range(length):
                    higher = max(peak[x], high[x])
                    shrink = exp(peak[x] - higher)
                    weight[x] *= shrink
                    mean[x] *= shrink
                    peak[x] = higher
            for mu in range(last - first):
                line = scratch[mu]
                value = center[first + mu]
                for x in range(length):
                    w = exp(line[x] - peak[x])
                    weight[x] += w
                    mean[x] += w * value
        for x in range(length):
            mean[x] /= weight[x]


@compiled(fastmath=_FLAGS)
def respond(padded, width, taps, bias, scratch, D, top, total, half, periodic, W, V):
    """Site sums of the weights, W, and of the weights times D, V, by class of site: (n, n, P) each.

    With zero boundaries a site near the border has fewer neighbours, so sites are classed by their distance from it
    (class `half` is the interior); on a periodic lattice all are interior. A second pass over the logits, because the
    weights are only known once every pattern has been seen.
    """
    height, stride = D.shape
    flat = padded.ravel()
    W[:] = 0
    V[:] = 0
    low = 0 if periodic else min(half, width)
    high = width if periodic else max(width - half, low)
    for row in range(height):
        i = half if periodic else border_class(row, height, half)
        for first in range(0, bias.size, _CHUNK):
            last = min(first + _CHUNK, bias.size)
            logits(flat, row * stride, stride, width, taps, bias, first, last, scratch)
            for mu in range(last - first):
                line = scratch[mu]
                for x in range(width):
                    line[x] = exp(line[x] - top[row, x]) / total[row, x]
                w = 0.0
                v = 0.0
                for x in range(low, high):
                    w += line[x]
                    v += line[x] * D[row, x]
                W[i, half, first + mu] += w
                V[i, half, first + mu] += v
                for x in range(low):
                    j = border_class(x, width, half)
                    W[i, j, first + mu] += line[x]
                    V[i, j, first + mu] += line[x] * D[row, x]
                for x in range(high, width):
                    j = border_class(x, width, half)
                    W[i, j, first + mu] += line[x]
                    V[i, j, first + mu] += line[x] * D[row, x]


@compiled()
def border_class(i, side, half):
    """Distance from the lower border, or `half` inside, or 2 half less the distance from the upper border."""
    if i < half:
        return i
    if side - 1 - i < half:
        return 2 * half - (side - 1 - i)
    return half


@compiled(fastmath=_FLAGS)
def denoise_by_site(y, images, log_prior, half, periodic, inverse, scratch, D, top, total):
    """D (H, W) when image mu may only explain its own sites: the distance is summed over each site's window."""
    height, width = y.shape
    term, summed, wide = scratch[0], scratch[1], scratch[2]
    for mu in range(len(images)):
        x = images[mu]
        for i in range(height):
            for j in range(width):
                term[i, j] = x[i, j] * (y[i, j] - x[i, j] / 2) * inverse
        # Down the columns, then along the rows.
        for i in range(height):
            line = wide[i, half : half + width]
            line[:] = 0
            for k in range(i - half, i + half + 1):
                if periodic or 0 <= k < height:
                    other = term[k % height, :width]
                    for j in range(width):
                        line[j] += other[j]
            for j in range(half):
                wide[i, j] = wide[i, width + j] if periodic else 0
                wide[i, half + width + j] = wide[i, half + j] if periodic else 0
        for i in range(height):
            line = summed[i]
            for j in range(width):
                line[j] = log_prior[mu]
            for k in range(2 * half + 1):
                other = wide[i, k : k + width]
                for j in range(width):
                    line[j] += other[j]
            peak, weight, mean, value = top[i], total[i], D[i], x[i]
            if mu == 0:
                for j in range(width):
                    peak[j] = line[j]
                    weight[j] = 1
                    mean[j] = value[j]
            else:
                for j in range(width):
                    higher = max(peak[j], line[j])
                    shrink = exp(peak[j] - higher)
                    w = exp(line[j] - higher)
                    weight[j] = weight[j] * shrink + w
                    mean[j] = mean[j] * shrink + w * value[j]
                    peak[j] = higher
    for i in range(height):
        for j in range(width):
            D[i, j] /= total[i, j]


@compiled(fastmath=_FLAGS)
def _denoise(y, by_site, patterns, taps, bias, center, half, periodic, inverse, padded, scratch, D, top, total):
    if by_site:
        denoise_by_site(y, patterns, bias, half, periodic, inverse, scratch, D, top, total)
    else:
        pad(y, half, periodic, padded)
        denoise_equivariant(padded, half, taps, bias, center, scratch[0], D, top, total)


@compiled(fastmath=_FLAGS)
def denoise_samples(states, begin, end, by_site, patterns, taps, bias, center, half, periodic, inverse, out):
    """out[j] = D(states[j]) for j = begin .. end - 1."""
    padded, scratch, D, top, total = work_space(states, by_site, half)
    for j in range(begin, end):
        _denoise(
            states[j], by_site, patterns, taps, bias, center, half, periodic, inverse, padded, scratch, D, top, total
        )
        out[j] = D[:, : states.shape[2]]


@compiled(fastmath=_FLAGS)
def respond_samples(states, begin, end, patterns, taps, bias, center, half, periodic, W, V):
    """Response sums W[j], V[j] (n, n, P) of states, equivariant dictionaries only."""
    padded, scratch, D, top, total = work_space(states, False, half)
    for j in range(begin, end):
        _denoise(
            states[j], False, patterns, taps, bias, center, half, periodic, bias[0], padded, scratch, D, top, total
        )
        respond(padded, states.shape[2], taps, bias, scratch[0], D, top, total, half, periodic, W[j], V[j])


@compiled()
def work_space(states, by_site, half):
    """Padded state, scratch rows, and three maps with the rows of a state and the stride of the padded one."""
    _, height, width = states.shape
    # The zero taps of the last group of a row reach up to TAPS - 1 columns past the margin.
    stride = width + 2 * half + TAPS - 1
    padded = np.zeros((height + 2 * half, stride), states.dtype)
    if by_site:
        scratch = np.zeros((3, height, width + 2 * half), states.dtype)
    else:
        scratch = np.zeros((1, _CHUNK + 1, max(_RUN, stride)), states.dtype)
    D = np.zeros((height, stride), states.dtype)
    return padded, scratch, D, np.zeros_like(D), np.zeros_like(D)


@compiled(fastmath=_FLAGS)
def advance(
    states, begin, end, levels, first_step, solver, seed, first_sample,
    by_site, patterns, all_taps, all_bias, center, half, periodic, inverse,
):  # fmt: skip
    """Take states[begin:end] in place from levels[0] to levels[-1]; tables have one entry a level.

    inverse[i] is 1/levels[i]^2 in the precision of the states.
    """
    _, height, width = states.shape
    padded, scratch, D, top, total = work_space(states, by_site, half)
    slope = np.empty((height, width), states.dtype)
    extra = np.empty((height, width), states.dtype)  # the noise of the SDE, or where a Heun step began
    one = inverse[0] * 0 + 1
    for sample in range(begin, end):
        y = states[sample]
        for i in range(len(levels) - 1):
            s, t = levels[i], levels[i + 1]
            _denoise(
                y, by_site, patterns, all_taps[i], all_bias[i], center, half, periodic, inverse[i],
                padded, scratch, D, top, total,
            )  # fmt: skip
            ratio = t / s
            if solver == SDE and t > 0:
                keep = one * (ratio * ratio)
                spread = one * (t * np.sqrt(1.0 - ratio * ratio))
                fill_normal(extra.ravel(), seed, first_sample + sample, first_step + i + 1)
                for r in range(height):
                    for x in range(width):
                        y[r, x] = D[r, x] + keep * (y[r, x] - D[r, x]) + spread * extra[r, x]
            elif solver == HEUN and t > 0:
                for r in range(height):
                    for x in range(width):
                        slope[r, x] = (y[r, x] - D[r, x]) / (one * s)
                        extra[r, x] = y[r, x]
                        y[r, x] += (one * (t - s)) * slope[r, x]
                _denoise(
                    y, by_site, patterns, all_taps[i + 1], all_bias[i + 1], center, half, periodic,
                    inverse[i + 1], padded, scratch, D, top, total,
                )  # fmt: skip
                step = one * (0.5 * (t - s))
                for r in range(height):
                    for x in range(width):
                        y[r, x] = extra[r, x] + step * (slope[r, x] + (y[r, x] - D[r, x]) / (one * t))
            else:  # an Euler step; at t = 0 every solver ends on the denoised image
                keep = one * ratio
                for r in range(height):
                    for x in range(width):
                        y[r, x] = D[r, x] + keep * (y[r, x] - D[r, x])


@compiled()
def start(states, begin, end, seed, first_sample, level):
    """states[j] = level times the normal numbers of step 0."""
    for j in range(begin, end):
        fill_normal(states[j].ravel(), seed, first_sample + j, 0)
        for r in range(states.shape[1]):
            for x in range(states.shape[2]):
                states[j, r, x] *= level
