"""What a study of a large model is to do: its configuration, its network, and which samples lie in which chunk."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrit import schedules
from fastcrit._edge.arrays import (
    check_choice,
    check_finite_number,
    check_integer,
    check_positive,
    check_seed,
    check_threads,
)
from fastcrit._kernels.lattice import lattice
from fastcrit.studies import checks
from fastcrit.studies.labels import classes_but, labels_of

if TYPE_CHECKING:
    from fastcrit.diffusion.denoiser import Denoiser

Floats = NDArray[np.float64]

# Of waves, whose cost is that of their number.
_SHELLS = 6
# Where the model lies on this machine; what it is, its checksum says.
_PLACES = ("edm2", "guide", "diffusers", "trust_pickle")


@dataclass(frozen=True)
class ImageNetPlan:
    """The fields of an `ImageNetStudy`, which are described there, and what follows from them."""

    edm2: str | None = None
    guide: str | None = None
    trust_pickle: bool = False
    diffusers: str | None = None
    null_label: int | None = None
    samples: int = 50_000
    chunk: int = 256
    batch: int = 0
    levels: int = 32
    high: float = 80.0
    low: float = 0.02
    solver: str = "heun"
    classes: int | None = None
    gain_share: float = 0.02
    gain_every: int = 1
    probes: int = 1
    waves: int | None = None
    guidance_weight: float | None = None
    guidance_center: float | None = None
    guidance_width: float = 1.0
    data_std: float | None = None
    blocks: int = 32
    seed: int = 0
    save_states: bool = False
    threads: int = 1

    def __post_init__(self) -> None:
        if (self.edm2 is None) == (self.diffusers is None):
            raise ValueError(f"edm2, diffusers: expected one of them, got {self.edm2!r} and {self.diffusers!r}")
        if self.guide is not None and self.guidance_weight is None:
            raise ValueError("guide: given without guidance_weight")
        if self.guidance_center is not None and self.guidance_weight is None:
            raise ValueError("guidance_center: given without guidance_weight")
        if self.null_label is not None and self.diffusers is None:
            raise ValueError("null_label: given without diffusers")
        check_integer(self.chunk, "chunk", 2)
        if self.batch == 0:
            object.__setattr__(self, "batch", max(n for n in range(1, 65) if self.chunk % n == 0))
        for name, lowest in (
            ("samples", 3), ("chunk", 2), ("batch", 1), ("levels", 5), ("gain_every", 1), ("probes", 1), ("waves", 1),
            ("seed", 0), ("blocks", 2), ("threads", 1),
        ):  # fmt: skip
            if not (name == "waves" and self.waves is None):
                object.__setattr__(self, name, check_integer(getattr(self, name), name, lowest))
        check_seed(self.seed)
        check_threads(self.threads)
        if self.chunk % self.batch:
            raise ValueError(f"batch: expected a divisor of chunk = {self.chunk}, got {self.batch}")
        if self.classes is not None:
            check_integer(self.classes, "classes", 0)
        if self.guidance_weight is not None:
            object.__setattr__(self, "guidance_weight", check_finite_number(self.guidance_weight, "guidance_weight"))
            if self.guidance_weight == 1.0:
                raise ValueError("guidance_weight: expected another one than 1, which is no guidance")
            if self.classes == 0 and self.guide is None:
                raise ValueError("guidance_weight: a network is guided by itself with labels alone, got classes = 0")
        for name in ("high", "low", "guidance_width", "guidance_center", "data_std"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_positive(getattr(self, name), name))
        if not self.high > self.low:
            raise ValueError(f"high, low: expected high > low, got {self.high} and {self.low}")
        if not 0.0 <= check_finite_number(self.gain_share, "gain_share") <= 1.0:
            raise ValueError(f"gain_share: expected a share from 0 to 1, got {self.gain_share!r}")
        check_choice(self.solver, ("heun", "euler", "sde", "dpmpp-2m"), "solver")

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.samples // self.chunk)

    @property
    def blocks_a_chunk(self) -> int:
        """Jackknife blocks of a chunk's recorder: together they make up ``blocks``, but two each at least."""
        return max(2, self.blocks // self.chunks)

    def grid(self, D: Denoiser) -> Floats:
        """The noise levels of a run of this denoiser."""
        return schedules.log_levels(self.levels, high=min(self.high, D.highest), low=self.low)

    def span(self, chunk: int) -> range:
        """Numbers of the samples of a chunk."""
        return range(chunk * self.chunk, min((chunk + 1) * self.chunk, self.samples))

    def labels(self, D: Denoiser, samples: range) -> NDArray[np.int64] | None:
        """Classes of these samples, as `labels_of` has them; None without labels."""
        classes = self.known_classes(D) if self.classes is None else self.classes
        return labels_of(samples, classes, self.null_label) if classes else None

    def known_classes(self, D: Denoiser) -> int:
        """Number of classes but the one that stands for "no label"."""
        return classes_but(D.classes, self.null_label)

    def config(self, D: Denoiser) -> dict[str, Any]:
        """What the result follows from: the fields, the kind of device, the networks by their files' checksums."""
        fields = {name: value for name, value in asdict(self).items() if name not in _PLACES}
        device = "cpu" if D.device is None else D.device.type
        return {
            "study": "imagenet", **fields, "device": device, "weights": D.card["sha256"], "guide": D.card.get("guide")
        }  # fmt: skip

    def denoiser(self, device: str = "cpu") -> Denoiser:
        """The denoiser that is sampled, guided where the configuration says so.

        Raises
        ------
        ValueError
            A pickle that is not trusted; more classes than the network knows; guidance without a network to lead away
            from, or at none of the levels.
        FileNotFoundError, FileFormatError, ModuleNotFoundError
            As for `fastcrit.diffusion.load_edm2` and `fastcrit.diffusion.load_diffusers`.
        """
        from fastcrit import diffusion
        from fastcrit.diffusion.checkpoints import load_pair

        D, unguided = load_pair(
            self.edm2, self.diffusers, self.guide, trust_pickle=self.trust_pickle, null_label=self.null_label,
            device=device,
        )  # fmt: skip
        if D.shape is None:
            raise ValueError(f"edm2, diffusers: {D.name} does not say what shape its states have")
        if (self.classes or 0) > self.known_classes(D):
            raise ValueError(
                f"classes: expected at most {self.known_classes(D)}, which {D.name} knows, got {self.classes}"
            )
        if self.guidance_weight is None:
            return D
        checks.check_leads_away(D, unguided)
        if unguided is not None:
            D.card["guide"] = unguided.card["sha256"]
        weight = (
            diffusion.Constant(self.guidance_weight)
            if self.guidance_center is None
            else diffusion.Pulse(self.guidance_center, self.guidance_width, self.guidance_weight)
        )
        guided = diffusion.guided(D, unguided, weight)
        checks.check_guides(weight, self.grid(guided), "guidance_center, guidance_width")
        return guided

    def recorder_options(self, D: Denoiser, blocks: int, data_std: float | None = None) -> dict[str, Any]:
        """Arguments of the run's recorder, or with fewer blocks of a chunk's."""
        assert D.shape is not None
        shells = lattice(tuple(D.shape[1:])).shells_below_nyquist
        return {
            "levels": self.grid(D),
            "shape": D.shape,
            "blocks": blocks,
            "data_std": data_std or self.data_std or D.data_std or 1.0,
            "gain_shells": range(shells if self.waves is None else min(_SHELLS, shells)),
        }
