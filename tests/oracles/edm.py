"""EDM's sampler, written from Karras et al. 2206.00364: algorithm 1 with the rho-grid of equation 5, in float64."""

from __future__ import annotations

import torch


def edm_sampler(net, latents, *, class_labels=None, num_steps=18, sigma_min=0.002, sigma_max=80.0, rho=7.0):
    step = torch.arange(num_steps, dtype=torch.float64)
    root_max, root_min = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    t = (root_max + step / (num_steps - 1) * (root_min - root_max)) ** rho
    t = torch.cat([t, torch.zeros(1, dtype=torch.float64)])
    x = latents.to(torch.float64) * t[0]
    for i in range(num_steps):
        d = (x - net(x, t[i], class_labels).to(torch.float64)) / t[i]
        euler = x + (t[i + 1] - t[i]) * d
        if t[i + 1] > 0:
            end = (euler - net(euler, t[i + 1], class_labels).to(torch.float64)) / t[i + 1]
            euler = x + (t[i + 1] - t[i]) * (d + end) / 2
        x = euler
    return x
