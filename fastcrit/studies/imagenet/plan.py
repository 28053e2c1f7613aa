"""What a study of a large model is to do: its configuration, its network, and which samples lie in which chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrit import schedules
from fastcrit._edge.arrays import check_finite_number, check_integer, check_positive
from fastcrit._kernels.lattice import lattice
from fastcrit.studies import checks
from fastcrit.studies.labels import classes_but, labels_of
from fastcrit.studies.locality import LocalitySums
from fastcrit.studies.options import check_falling, check_options, option, seed, threads, without_what_is_new
from fastcrit.studies.prompts import check_without_prompts, config_of_prompts, load_prompted, prompts, text
from fastcrit.studies.shared.spans import InChunks

if TYPE_CHECKING:
    from fastcrit.diffusion.denoiser import Denoiser

Floats = NDArray[np.float64]

# Of waves, whose cost is that of their number.
_SHELLS = 6
# Where the model lies on this machine; what it is, its checksum says.
_PLACES = ("edm2", "guide", "diffusers", "trust_pickle")
# What a configuration says of these, `config_of_prompts` does.
_PROMPTS = ("prompts", "negative")


def _share(value: float, name: str) -> float:
    if not 0.0 <= check_finite_number(value, name) <= 1.0:
        raise ValueError(f"{name}: expected a share from 0 to 1, got {value!r}")
    return value  # an integer stays one: the chunks of a run name the hash of its configuration


@dataclass(frozen=True)
class ImageNetPlan(InChunks):
    """The fields of an `ImageNetStudy`, which are described there, and what follows from them."""

    edm2: str | None = field(
        default=None, metadata=option("Pickle of EDM or EDM2 (its network under 'ema').", path=True)
    )
    guide: str | None = field(
        default=None, metadata=option("Pickle of the network that guidance leads away from.", path=True)
    )
    trust_pickle: bool = field(default=False, metadata=option("Pickles run code: say that you may."))
    diffusers: str | None = field(
        default=None,
        metadata=option("Folder with unet/ or transformer/, and scheduler/, as save_pretrained writes it.", path=True),
    )
    null_label: int | None = field(default=None, metadata=option("With --diffusers: the class for no label."))
    samples: int = field(default=50_000, metadata=option("Trajectories.", lowest=3))
    chunk: int = field(default=256, metadata=option("Samples that are recorded and saved together.", lowest=2))
    batch: int = field(
        default=0, metadata=option("Samples in the network at once: a divisor of --chunk; 0: up to 64.", lowest=1)
    )
    levels: int = field(default=32, metadata=option("Noise levels: steps of the solver, all recorded.", lowest=5))
    high: float = field(default=80.0, metadata=option("Highest noise level, or the network's.", check=check_positive))
    low: float = field(default=0.02, metadata=option("Lowest noise level.", check=check_positive))
    solver: str = field(
        default="heun", metadata=option("Of the reverse process.", choices=("heun", "euler", "sde", "dpmpp-2m"))
    )
    classes: int | None = field(
        default=None, metadata=option("Sample j has label j mod this; default: all. 0: none.", lowest=0)
    )
    gain_share: float = field(
        default=0.02, metadata=option("Share of the samples whose gains are measured.", check=_share)
    )
    gain_every: int = field(default=1, metadata=option("Gains at every so many levels.", lowest=1))
    probes: int = field(
        default=1, metadata=option("Tangents of random phases for each of these states: all shells.", lowest=1)
    )
    waves: int | None = field(default=None, metadata=option("Instead, so many wavevectors of each shell.", lowest=1))
    guidance_weight: float | None = field(
        default=None, metadata=option("Guide with this weight.", check=check_finite_number)
    )
    guidance_center: float | None = field(
        default=None, metadata=option("At this noise level; default: everywhere.", check=check_positive)
    )
    guidance_width: float = field(default=1.0, metadata=option("Width there, in log s.", check=check_positive))
    data_std: float | None = field(
        default=None,
        metadata=option("Of the data; default: the network's, or of the first chunk.", check=check_positive),
    )
    blocks: int = field(default=32, metadata=option(lowest=2))
    seed: int = field(default=0, metadata=option("Of the trajectories.", lowest=0, check=seed))
    save_states: bool = field(default=False, metadata=option("Keep all states in RUN/states.zarr."))
    threads: int = field(
        default=1,
        metadata=option("Of torch on a CPU, for each rank; others round otherwise.", lowest=1, check=threads),
    )
    prompts: Sequence[str] | None = field(
        default=None,
        metadata=option(
            "With --diffusers, then a whole text pipeline: file with a prompt, which is a class, a line.",
            path=True, check=prompts,
        ),
    )  # fmt: skip
    negative: str | None = field(
        default=None, metadata=option("With --prompts: the prompt that stands for no label; default: none.", check=text)
    )
    locality: bool = field(
        default=False,
        metadata=option("Also measure, on that share of the samples, how far the network looks and when it matters."),
    )

    def __post_init__(self) -> None:
        if (self.edm2 is None) == (self.diffusers is None):
            raise ValueError(f"edm2, diffusers: expected one of them, got {self.edm2!r} and {self.diffusers!r}")
        if self.guide is not None and self.guidance_weight is None:
            raise ValueError("guide: given without guidance_weight")
        if self.guidance_center is not None and self.guidance_weight is None:
            raise ValueError("guidance_center: given without guidance_weight")
        if self.null_label is not None and self.diffusers is None:
            raise ValueError("null_label: given without diffusers")
        if self.prompts is None and self.negative is not None:
            raise ValueError("negative: given without prompts")
        for name in ("edm2", "guide", "null_label") if self.prompts is not None else ():
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: given with prompts, which are those of a pipeline in the folder diffusers")
        if self.prompts is not None and self.negative is None:
            object.__setattr__(self, "negative", "")
        if self.batch == 0:
            check_integer(self.chunk, "chunk", 2)
            object.__setattr__(self, "batch", max(n for n in range(1, 65) if self.chunk % n == 0))
        check_options(self)
        if self.chunk % self.batch:
            raise ValueError(f"batch: expected a divisor of chunk = {self.chunk}, got {self.batch}")
        if self.guidance_weight == 1.0:
            raise ValueError("guidance_weight: expected another one than 1, which is no guidance")
        if self.guidance_weight is not None and self.classes == 0 and self.guide is None:
            raise ValueError("guidance_weight: a network is guided by itself with labels alone, got classes = 0")
        check_falling(self.high, self.low)
        if self.locality and self.gain_share == 0:
            raise ValueError("locality: measured on gain_share of the samples, expected more than 0 of them, got 0")

    @property
    def blocks_a_chunk(self) -> int:
        """Jackknife blocks of a chunk's recorder: together they make up ``blocks``, but two each at least."""
        return max(2, self.blocks // self.chunks)

    @property
    def locality_blocks_a_chunk(self) -> int:
        """The same of a chunk's sums of locality, whose images are few: more than one where chunks are fewer."""
        return max(1, self.blocks // self.chunks)

    def grid(self, D: Denoiser) -> Floats:
        """The noise levels of a run of this denoiser."""
        return schedules.log_levels(self.levels, high=min(self.high, D.highest), low=self.low)

    def labels(self, D: Denoiser, samples: range) -> NDArray[np.int64] | None:
        """Classes of these samples, as `labels_of` has them; None without labels."""
        classes = self.known_classes(D) if self.classes is None else self.classes
        return labels_of(samples, classes, D.null_label) if classes else None

    def known_classes(self, D: Denoiser) -> int:
        """Number of classes but the one that stands for "no label"."""
        return classes_but(D.classes, D.null_label)

    def config(self, D: Denoiser) -> dict[str, Any]:
        """What the result follows from: the fields, the kind of device, the networks by their files' checksums."""
        fields = {name: value for name, value in asdict(self).items() if name not in (*_PLACES, *_PROMPTS)}
        device = "cpu" if D.device is None else D.device.type
        return {
            "study": "imagenet", **without_what_is_new(fields), "device": device, "weights": D.card["sha256"],
            "guide": D.card.get("guide"), **config_of_prompts(D),
        }  # fmt: skip

    def denoiser(self, device: str = "cpu") -> Denoiser:
        """The denoiser that is sampled, guided where the configuration says so.

        Raises
        ------
        ValueError
            A pickle that is not trusted; more classes than the network knows, or none where it needs one; guidance
            without a network to lead away from, or at none of the levels; a text model without prompts, or prompts that
            it cannot tell apart.
        FileNotFoundError, FileFormatError, ModuleNotFoundError
            As for `fastcrit.diffusion.load_edm2` and `fastcrit.diffusion.load_diffusers`.
        """
        from fastcrit import diffusion
        from fastcrit.diffusion.checkpoints import load_pair

        if self.prompts is not None:
            assert self.negative is not None
            D, unguided = load_prompted(self.diffusers, self.prompts, self.negative, self.threads, device), None
        else:
            check_without_prompts(self.diffusers)
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
        if self.classes == 0 and not D.unlabelled:
            raise ValueError(
                f"classes: {D.name} was trained with labels alone, got 0; leave it out for all "
                f"{self.known_classes(D)}, or give null_label where one of them stands for no label"
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
            "ndim": len(D.shape) - 1,
            "blocks": blocks,
            "data_std": data_std or self.data_std or D.data_std or 1.0,
            "gain_shells": range(shells if self.waves is None else min(_SHELLS, shells)),
        }

    def locality_sums(self, D: Denoiser, blocks: int) -> LocalitySums:
        """Empty sums of locality, of a run or of a chunk."""
        assert D.shape is not None
        return LocalitySums(self.grid(D)[:: self.gain_every], tuple(D.shape[1:]), blocks)
