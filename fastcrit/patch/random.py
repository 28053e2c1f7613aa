"""Counter-based normal numbers and the exponential, written so that the compiler can vectorise them.

The generator is Philox-4x32-10 (Salmon et al., SC'11): the numbers of a sample are a function of the seed, the sample,
the step and the site alone, so no order of computation, batch or thread can change them. (No annotations here: numba
infers every type, and refuses overloads whose annotations differ from the signature.)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload, register_jitable

_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint32(0x9E3779B9)
_W1 = np.uint32(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

# Counters worked on at a time: words and normals together stay in half of a 32 KiB first-level cache.
_BLOCK = 400

_intrinsic: Any = intrinsic  # Any: its type in numba leaves out that the caller does not pass the typing context

# Contraction into fused multiply-adds only: reassociation would undo the two-part reduction in exp.
_FLAGS = {"contract"}


def compiled(**options):
    """numba.njit without the GIL, its machine code kept on disk where there is a place to keep it."""

    def decorate(function):
        try:
            return njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # no writable folder: a read-only installation without a home
            return njit(nogil=True, **options)(function)

    return decorate


@_intrinsic
def _float_of_bits(typingctx, bits):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@_intrinsic
def _bits_of_float(typingctx, value):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


def exp(x):
    """e**x for x <= 0 in compiled code, in the precision of x: float32 to 2 ulp (0 below -87), or libm's float64."""
    return math.exp(x)


@overload(exp, jit_options={"fastmath": _FLAGS})
def _exp(x):
    if x != types.float32:
        return lambda x: math.exp(x)

    def exp32(x):
        # 2^n * exp(r), |r| <= log(2)/2; the polynomial is the Taylor series to r^6 (next term 1e-7 at the ends).
        t = max(x, np.float32(-87.0))
        n = np.floor(t * np.float32(1.44269504) + np.float32(0.5))
        r = (t - n * np.float32(0.693359375)) - n * np.float32(-2.12194440e-4)
        p = np.float32(1.0 / 720.0)
        p = p * r + np.float32(1.0 / 120.0)
        p = p * r + np.float32(1.0 / 24.0)
        p = p * r + np.float32(1.0 / 6.0)
        p = p * r + np.float32(0.5)
        p = p * r + np.float32(1.0)
        p = p * r + np.float32(1.0)
        scaled = p * _float_of_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))
        return scaled if x > np.float32(-87.0) else np.float32(0.0)

    return exp32


@register_jitable
def _log32(u):
    """Log of a positive normal float32, within 2 ulp (polynomial of Cephes logf)."""
    bits = _bits_of_float(u)
    e = np.float32((bits >> np.int32(23)) - np.int32(126))
    m = _float_of_bits(np.int32((bits & np.int32(0x007FFFFF)) | np.int32(0x3F000000)))  # [0.5, 1)
    low = m < np.float32(0.70710678)
    e = e - np.float32(1.0) if low else e
    f = (m + m if low else m) - np.float32(1.0)
    z = f * f
    p = np.float32(7.0376836292e-2)
    p = p * f + np.float32(-1.1514610310e-1)
    p = p * f + np.float32(1.1676998740e-1)
    p = p * f + np.float32(-1.2420140846e-1)
    p = p * f + np.float32(1.4249322787e-1)
    p = p * f + np.float32(-1.6668057665e-1)
    p = p * f + np.float32(2.0000714765e-1)
    p = p * f + np.float32(-2.4999993993e-1)
    p = p * f + np.float32(3.3333331174e-1)
    y = p * f * z + np.float32(-2.12194440e-4) * e - np.float32(0.5) * z
    return f + y + np.float32(0.693359375) * e


@compiled()
def philox(words, first, c1, c2, c3, k0, k1):
    """Random words (4, n) for the counters (first + i, c1, c2, c3), i < n, and the key (k0, k1).

    Round after round over the whole array: with the rounds inside, the compiler leaves the loop scalar (2.5 times
    slower).
    """
    n = words.shape[1]
    for i in range(n):
        words[0, i] = np.uint32(first + i)
        words[1, i] = c1
        words[2, i] = c2
        words[3, i] = c3
    for _ in range(10):
        for i in range(n):
            p0 = _M0 * np.uint64(words[0, i])
            p1 = _M1 * np.uint64(words[2, i])
            words[0, i] = np.uint32(np.uint32(p1 >> _32) ^ words[1, i] ^ k0)
            words[1, i] = np.uint32(p1 & _LOW)
            words[2, i] = np.uint32(np.uint32(p0 >> _32) ^ words[3, i] ^ k1)
            words[3, i] = np.uint32(p0 & _LOW)
        k0 = np.uint32(k0 + _W0)
        k1 = np.uint32(k1 + _W1)


@register_jitable
def _pair32(a, b):
    """Two normal float32 from two words (Box-Muller)."""
    u = (np.float32(a) + np.float32(0.5)) * np.float32(2.0**-32)
    radius = np.sqrt(np.float32(-2.0) * _log32(u))
    # The angle 2 pi b / 2^32 is a quarter turn (the top two bits) and a signed rest of at most an eighth turn.
    shifted = np.uint32(b + np.uint32(0x20000000))
    quarter = shifted >> np.uint32(30)
    rest = np.int32(np.uint32(shifted & np.uint32(0x3FFFFFFF))) - np.int32(0x20000000)
    f = np.float32(rest) * np.float32(math.pi / 2 / 2**30)
    z = f * f
    sine = f + f * z * (np.float32(-1 / 6) + z * (np.float32(8.3333310e-3) + z * np.float32(-1.9515296e-4)))
    cosine = np.float32(1.0) + z * (
        np.float32(-0.5)
        + z * (np.float32(4.166664568e-2) + z * (np.float32(-1.388731625e-3) + z * np.float32(2.4433157e-5)))
    )
    swap = (quarter & np.uint32(1)) != 0
    x = sine if swap else cosine
    y = cosine if swap else sine
    x = -x if (quarter == np.uint32(1)) | (quarter == np.uint32(2)) else x
    y = -y if quarter >= np.uint32(2) else y
    return radius * x, radius * y


def pair(a, b, like):
    """Two normal numbers of the type of ``like`` from two random words; compiled code only."""
    raise TypeError("pair() is for compiled code")


@overload(pair, jit_options={"fastmath": _FLAGS})
def _pair(a, b, like):
    if like == types.float32:
        return lambda a, b, like: _pair32(a, b)

    def pair64(a, b, like):
        radius = math.sqrt(-2.0 * math.log((np.float64(a) + 0.5) * 2.0**-32))
        angle = np.float64(b) * (2.0 * math.pi * 2.0**-32)
        return radius * math.cos(angle), radius * math.sin(angle)

    return pair64


@compiled(fastmath=_FLAGS)
def fill_normal(out, seed, sample, step):
    """Fill a flat array with the normal numbers of (seed, sample, step): counter i gives out[4 i .. 4 i + 3]."""
    n = out.size
    words = np.empty((4, _BLOCK), np.uint32)
    normal = np.empty((4, _BLOCK), out.dtype)
    like = normal[0, 0]
    for begin in range(0, n, 4 * _BLOCK):
        philox(
            words,
            begin // 4,
            np.uint32(step),
            np.uint32(np.uint64(sample) & _LOW),
            np.uint32(np.uint64(sample) >> _32),
            np.uint32(seed & _LOW),
            np.uint32(seed >> _32),
        )
        for i in range(_BLOCK):
            normal[0, i], normal[1, i] = pair(words[0, i], words[1, i], like)
        for i in range(_BLOCK):
            normal[2, i], normal[3, i] = pair(words[2, i], words[3, i], like)
        whole = min(_BLOCK, (n - begin) // 4)
        for i in range(whole):
            for j in range(4):
                out[begin + 4 * i + j] = normal[j, i]
        for j in range(n - begin - 4 * whole if whole < _BLOCK else 0):
            out[begin + 4 * whole + j] = normal[j, whole]
