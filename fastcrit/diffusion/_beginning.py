"""Where sampling begins the state is noise, and the denoised image hardly depends on it: what a wrong network tells.

A posterior mean answers to noise with P/(P + s^2), the variance of the data over that of the state. So the response
that is seen there, times s^2, is a variance that data may have. A flow network whose time or sign is the opposite
answers with 2/(1 + s) or so, one that has learned nothing (v = 0) with 1/(1 + s): variances of 2 s and s, which no data
have.
"""

from __future__ import annotations

from torch import Tensor

from fastcrit.diffusion.denoiser import Denoiser

# Of images in [-1, 1] and of latents the variance is 1 at most, but for the rounding of what a few states tell.
_MOST = 1.5
# A correlation of so many standard errors, of half at least, is no accident.
_ERRORS, _CORRELATION = 5.0, 0.5


def wrong_convention(D: Denoiser, y: Tensor, denoised: Tensor, s: float) -> str | None:
    """What is wrong with a flow network, in words, by pure noise ``y`` of level ``s`` and D(y; s); None: nothing seen.

    Other networks are not looked at. Waits for the device.
    """
    if D.flow is None or not y.numel():
        return None
    y, denoised = y.double(), denoised.double()
    both, power, answered = ((a * b).sum().item() for a, b in ((y, denoised), (y, y), (denoised, denoised)))
    if not (power > 0 and answered > 0):
        return None
    # Below 0 where the network is asked far outside of what it knows.
    variance = abs(both) / power * s**2
    correlation = both / (power * answered) ** 0.5
    least = max(_CORRELATION, _ERRORS / y.numel() ** 0.5)
    if variance <= _MOST * (D.data_std or 1.0) ** 2 or abs(correlation) < least:
        return None
    return (
        f"{D.name}: at the noise level s = {s:.4g}, where the state is noise, the denoised image follows it "
        f"(correlation {correlation:.2f}), as it would for data of standard deviation {variance**0.5:.3g}. Either "
        f"time or sign of the network is not what was said, or it has learned nothing. It was "
        f"taken for {D.flow}; others are "
        "from_velocity(.., reverse=True), time 0 at the noise, from_velocity(.., sign=-1), v = x0 - noise, and both of "
        "them (SiT). Where the data are as wide as that, say so by D.data_std"
    )
