"""Cross-spectra of channels, of the lowest shells: P_ab(k) = Re <phi_a^ phi_b^*>/N, averaged over a shell's modes.

k and -k are both in a shell, so that the imaginary part cancels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrit._edge.arrays import is_tensor
from fastcrit._kernels.lattice import Lattice

Floats = NDArray[np.float64]


class CrossShells:
    """Which of some selected modes make up whole shells.

    Parameters
    ----------
    grid : Lattice
    modes : tuple of int
        Ascending indices into the half spectrum, k = 0 first.

    Attributes
    ----------
    count : int
        The shells 0, 1, .. all of whose modes are among those selected.
    """

    def __init__(self, grid: Lattice, modes: tuple[int, ...]) -> None:
        chosen = np.array(modes)
        shell, weight = grid.shell_of_mode[chosen], grid.half_weights[chosen]
        found = np.bincount(shell, weight, minlength=len(grid.shell_k))
        whole = np.rint(found).astype(np.int64) == grid.shell_modes
        self.count = int(np.argmin(np.append(whole, False)))
        self._places = [np.flatnonzero(shell == k) for k in range(self.count)]
        self._weights = [weight[at] / (grid.sites * grid.shell_modes[k]) for k, at in enumerate(self._places)]
        self._uploaded: dict[Any, list[tuple[Any, Any]]] = {}

    @property
    def table(self) -> tuple[list[int], list[int], list[float]]:
        """Where each shell's modes begin and end, which of those selected they are, and what their squares weigh."""
        begin = np.cumsum([0, *map(len, self._places)])
        return begin.tolist(), np.concatenate(self._places).tolist(), np.concatenate(self._weights).tolist()

    def products(self, amplitudes: Any) -> Any:
        """(samples, shells, C, C), float64, from amplitudes (samples, C, modes, 2) of arrays or tensors."""
        if is_tensor(amplitudes):
            import torch

            chosen = [(amplitudes.index_select(2, at).double(), root) for at, root in self._on(amplitudes.device)]
            return torch.stack([self._product(part, root) for part, root in chosen], dim=1)
        roots = [np.sqrt(w)[:, None] for w in self._weights]
        chosen = [(amplitudes[:, :, at].astype(np.float64), root) for at, root in zip(self._places, roots, strict=True)]
        return np.stack([self._product(part, root) for part, root in chosen], axis=1)

    @staticmethod
    def _product(amplitudes: Any, root: Any) -> Any:
        flat = (amplitudes * root).reshape(*amplitudes.shape[:2], -1)
        return flat @ flat.swapaxes(-1, -2)

    def covariance(self, products: Floats, counts: NDArray[np.int64], amplitudes: Floats) -> Floats:
        """Mean products with the ensemble mean removed, (sets, shells, C, C), of sets of samples.

        ``products`` (sets, shells, C, C) and ``amplitudes`` (sets, C, modes, 2) are sums over a set; divided by n - 1.
        """
        out = products.copy()
        for k, (at, w) in enumerate(zip(self._places, self._weights, strict=True)):
            sums = (amplitudes[:, :, at] * np.sqrt(w)[:, None]).reshape(*amplitudes.shape[:2], -1)
            out[:, k] -= (sums @ sums.swapaxes(-1, -2)) / counts[:, None, None]
        return out / (counts - 1)[:, None, None, None]

    def upload(self, device: Any) -> None:
        """Put the tables on a device, which their first use does otherwise (and waits for it)."""
        self._on(device)

    def _on(self, device: Any) -> list[tuple[Any, Any]]:
        if device not in self._uploaded:
            import torch

            self._uploaded[device] = [
                (torch.from_numpy(at).to(device), torch.from_numpy(np.sqrt(w)[:, None]).to(device))
                for at, w in zip(self._places, self._weights, strict=True)
            ]
        return self._uploaded[device]
