"""What a guidance experiment says: its table, and a verdict in words that its numbers give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from fastcrit._edge.arrays import check_choice
from fastcrit._edge.plain import strict_json
from fastcrit._estimates.attributes import carried_levels, config_of, pulses_of
from fastcrit.alignment import Paired, paired
from fastcrit.studies.prompts import lines_of_prompts

MEASURES = ("top1", "log_probability", "margin")
# Names of the arms without a pulse.
NONE, SHARED, CONSTANT, DOSE, INTERVAL = (
    "none", "none, the pulses' steps", "constant", "constant, a pulse's dose", "interval"
)  # fmt: skip
# What the sentences of a verdict are about: all arms, pulses at critical levels (what the experiment asks) and levels
# without one, the best of the sweep, where the class is decided.
ARMS, AT_LEVELS, NO_PULSE, SWEEP, DECISION = "arms", "pulse at a critical level", "no pulse", "sweep", "decision"


@dataclass(frozen=True)
class Placement:
    """A pulse against the mean of the pulses at random levels, on the same seeds and labels.

    Attributes
    ----------
    comparison : Paired
        Of each sample with its mean over the random pulses; these alone, as if they were all there are.
    low, high : float
        95 % bootstrap interval over samples and random pulses.
    others, better : int
        Random pulses but itself, and how many of these align as many samples or more.
    """

    comparison: Paired
    low: float
    high: float
    others: int
    better: int


def placement(
    ds: xr.Dataset, first: int, measure: str = "top1", *, n_bootstrap: int = 2000, seed: int = 0
) -> Placement:
    """How much better a pulse (by its first guided step) is than the random ones of a finished experiment."""
    check_choice(measure, MEASURES, "measure")
    values = ds[measure].values
    random = pulses_of(ds)["random"]
    own, others = values[_arm(ds, first)], values[[_arm(ds, i) for i in random]]
    d = own - others
    rng = np.random.default_rng(seed)
    R, n = d.shape
    centres = rng.multinomial(R, np.full(R, 1 / R), size=n_bootstrap) / R
    samples = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(n_bootstrap)]) / n
    low, high = np.percentile(((centres @ d) * samples).sum(axis=1), [2.5, 97.5])
    as_good = [i for i, other in zip(random, others, strict=True) if i != first and other.mean() >= own.mean()]
    compared = paired(own, others.mean(axis=0), seed=seed)
    return Placement(compared, float(low), float(high), len(set(random) - {first}), len(as_good))


def best_centre(ds: xr.Dataset, measure: str = "top1", *, n_bootstrap: int = 2000, seed: int = 0) -> dict[str, float]:
    """Where the sweep's alignment is highest: ``level``, its 95 % bootstrap interval (over samples), and ``value``."""
    sweep = [_arm(ds, i) for i in pulses_of(ds)["sweep"]]
    values, centres = ds[measure].values[sweep], ds["center"].values[sweep]
    rng = np.random.default_rng(seed)
    n = values.shape[1]
    weights = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(n_bootstrap)]) / n
    drawn = centres[(weights @ values.T).argmax(axis=1)]
    best = int(values.mean(axis=1).argmax())
    low, high = np.percentile(drawn, [2.5, 97.5], method="nearest")
    return {
        "level": float(centres[best]), "low": float(low), "high": float(high), "value": float(values[best].mean())
    }  # fmt: skip


def verdict(ds: xr.Dataset) -> str:
    """One paragraph, computed from the numbers: what a pulse at the critical level gains, and what it costs."""
    return str(verdict_attributes(ds)["verdict"])


def verdict_attributes(ds: xr.Dataset) -> dict[str, str]:
    """Attributes that hold the verdict: as one paragraph, and sentence by sentence, each with its role."""
    said = sentences(ds)
    return {"verdict": " ".join(text for _, text in said), "verdict_sentences": strict_json(said)}


def sentences(ds: xr.Dataset) -> list[tuple[str, str]]:
    """The verdict as (role, text)."""
    config, pulses = config_of(ds), pulses_of(ds)
    critical = carried_levels(ds)
    top1 = ds["top1"].values.mean(axis=1)
    none = _arm(ds, NONE)
    random = [_arm(ds, i) for i in pulses["random"]]
    about_arms = (
        f"{ds.sizes['sample']} samples an arm. Pulses of weight {config['weight']:g} over {config['guided_steps']} of "
        f"{config['steps']} steps at {len(random)} random levels give {_percent(top1[random].mean())} of them their "
        f"class; no guidance {_percent(top1[none])}, constant guidance of that weight "
        f"{_percent(top1[_arm(ds, CONSTANT)])}, of a pulse's dose "
        f"{_percent(top1[_arm(ds, DOSE)])}, in the interval {_percent(top1[_arm(ds, INTERVAL)])}."
    )
    said = [(ARMS, about_arms)]
    if not critical:
        none_found = "The study found no critical level, so there is no pulse to compare with the random ones."
        said.append((NO_PULSE, none_found))
    places: dict[int, list[str]] = {}
    for name in critical:
        if name in pulses:
            places.setdefault(pulses[name][0], []).append(name)
        else:
            said.append((NO_PULSE, f"No pulse comes near the level of {name} ({critical[name]['level']:.2f})."))
    for first, names in places.items():
        at, found = _arm(ds, first), placement(ds, first)
        levels = " and ".join(f"{name} ({critical[name]['level']:.2f})" for name in names)
        if found.low > 0:
            outcome = "better than a random one"
        elif found.high < 0:
            outcome = "worse than a random one"
        else:
            outcome = f"not shown to differ from a random one ({_points(found.comparison.detectable)} would be seen)"
        spread = ds["diversity"].values
        error = np.hypot(ds["diversity_stderr"][at] / spread[at], ds["diversity_stderr"][none] / spread[none])
        about_pulse = (
            f"At the level of {levels} a pulse, centred on {float(ds['center'][at]):.2f}, gives {_percent(top1[at])}, "
            f"{_points(found.comparison.difference)} "
            f"[{_points(found.low)}, {_points(found.high)}] against the random ones: {outcome}; {found.better} of "
            f"{found.others} of these are as good. Its samples of a class lie {spread[at] / spread[none]:.3f} +- "
            f"{float(error) * spread[at] / spread[none]:.3f} times as far apart as without guidance"
            + (
                f"; coverage {float(ds['coverage'][at]):.3f} against {float(ds['coverage'][none]):.3f}."
                if "coverage" in ds
                else "."
            )
        )
        said.append((AT_LEVELS, about_pulse))
    best, margin = best_centre(ds), best_centre(ds, "log_probability")
    about_sweep = (
        f"Of the sweep, the pulse at s = {best['level']:.2f} [{best['low']:.2f}, {best['high']:.2f}] is best "
        f"({_percent(best['value'])}); by the log-probability of the class, the one at s = {margin['level']:.2f} "
        f"[{margin['low']:.2f}, {margin['high']:.2f}]."
    )
    said.append((SWEEP, about_sweep))
    if "retained" in ds:  # nothing where no network works without labels
        said.append((DECISION, _decision(ds)))
    return said


def _decision(ds: xr.Dataset) -> str:
    """Where the class is decided without guidance."""
    decided = float(ds["class_decided"])
    kept, back = ds["retained"].values, ds["back_level"].values
    half = np.flatnonzero(kept >= 0.5)
    rate = (
        "The class-entropy rate has no interior maximum; "
        if np.isnan(decided)
        else f"The class-entropy rate has its maximum at s = {decided:.2f}; "
    )
    if half.size:
        return f"{rate}half of the images keep their class when noised to s = {back[half[0]]:.2f} and denoised."
    return f"{rate}fewer than half of the images keep their class when noised and denoised, from every level."


def summary(ds: xr.Dataset) -> str:
    """The table of a finished experiment, and its verdict."""
    pulses = pulses_of(ds)
    roles: dict[str, list[str]] = {}
    for role, places in pulses.items():
        for first in places:
            roles.setdefault(f"pulse {first}", []).append(role)
    head = (
        f"{'arm':26}{'centre s':>9}{'evaluations':>12}{'top-1':>8}{'+-':>7}{'log p':>9}{'margin':>8}"
        f"{'diversity':>11}" + (f"{'coverage':>9}" if "coverage" in ds else "") + "  role"
    )
    lines = [ds.attrs["title"], "", head]
    n = ds.sizes["sample"]
    for i, name in enumerate(ds["arm"].values):
        top1, logp, margin = (ds[m].values[i] for m in MEASURES)
        centre = "" if np.isnan(ds["center"][i]) else f"{float(ds['center'][i]):.3f}"
        lines.append(
            f"{name!s:26}{centre:>9}{int(ds['evaluations'][i]):12d}{top1.mean():8.3f}"
            f"{top1.std(ddof=1) / np.sqrt(n):7.3f}{logp.mean():9.3f}{margin.mean():8.2f}"
            f"{float(ds['diversity'][i]):11.3f}"
            + (f"{float(ds['coverage'][i]):9.3f}" if "coverage" in ds else "")
            + f"  {', '.join(roles.get(str(name), []))}"
        )
    if "class_entropy" in ds:
        H, error = float(ds["class_entropy"]), float(ds["class_entropy_stderr"])
        classes = config_of(ds)["classes"]
        lines += [
            "",
            f"Class entropy from its rate: {H:.3f} +- {error:.3f} nats; the posterior gives log {classes} = "
            f"{np.log(classes):.3f}, and what is above it is where the network with labels and without disagree more "
            "than the posterior would.",
        ]
    warned = ["", f"warning: {ds.attrs['warning']}"] if "warning" in ds.attrs else []
    return "\n".join([*lines, "", ds.attrs["verdict"], *warned, *lines_of_prompts(config_of(ds))])


def as_json(ds: xr.Dataset) -> str:
    """The table and the verdict as one JSON object."""
    columns = [n for n in ("evaluations", "diversity", "diversity_stderr", "coverage") if n in ds]
    arms = []
    for i, name in enumerate(ds["arm"].values):
        row = {"arm": str(name), "center": float(ds["center"][i])}
        row |= {n: ds[n].values[i].item() for n in columns} | {m: float(ds[m].values[i].mean()) for m in MEASURES}
        arms.append(row)
    about = {"samples": ds.sizes["sample"], "arms": arms, "verdict": ds.attrs["verdict"]}
    about |= {"warning": ds.attrs["warning"]} if "warning" in ds.attrs else {}
    about |= {n: float(ds[n]) for n in ("class_entropy", "class_entropy_stderr", "class_decided") if n in ds}
    return strict_json(about | {"pulses": pulses_of(ds), "critical": carried_levels(ds)})


def _arm(ds: xr.Dataset, which: int | str) -> int:
    """Place of an arm, by name or by the first guided step of a pulse."""
    name = which if isinstance(which, str) else f"pulse {which}"
    return int(np.flatnonzero(ds["arm"].values == name)[0])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"
