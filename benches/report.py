"""docs/benchmarks.md and its figure: python -m benches.report FILE.json KEPT.json, made as in the Makefile."""
# ruff: noqa: RUF001 - the page is typeset: a product has a ×, an empty cell a dash.

from __future__ import annotations

import json
import sys
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from benches.batches import DTYPES, SITES, THREADS
from benches.pairing import duration
from benches.peers import BATCHED, PACKAGES, Peer

DOCS = Path(__file__).parent.parent / "docs"
FIGURE = Path("figures/benchmarks.png")
MIB = 2**20

Row = dict[str, Any]


def rows_by_table(results: Row) -> dict[str, list[Row]]:
    """What the benchmarks left in extra_info, with the median time of pytest-benchmark's own rounds."""
    tables = defaultdict(list)
    for benchmark in results["benchmarks"]:
        info = benchmark["extra_info"]
        tables[info.get("table", "sampler")].append(info | {"seconds": benchmark["stats"]["median"]})
    return tables


def table(header: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return "Not measured in this run.\n"
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def ratio(r: Row) -> str:
    return f"**{digits(r['median'])}** [{digits(r['low'])}, {digits(r['high'])}]"


def digits(x: float) -> str:
    return f"{x:.2f}" if x < 10 else f"{x:.1f}" if x < 100 else f"{x:.0f}"


def between(values: list[float]) -> str:
    low, high = digits(min(values)), digits(max(values))
    return low if low == high else f"{low} to {high}"


def lattice(row: Row) -> str:
    sides = " × ".join(map(str, row["lattice"]))
    return f"{row['channels']} channels of {sides}" if row.get("channels", 1) > 1 else sides


def sites(row: Row) -> int:
    return int(np.prod(row["lattice"]))


def square(row: Row) -> bool:
    return len(row["lattice"]) == 2 and row["channels"] == 1


def fastest(rows: list[Row], peers: list[str]) -> list[float]:
    """Ratio of the fastest of ``peers`` in each row that has one."""
    found = [[r["peers"][p]["median"] for p in peers if "median" in r["peers"].get(p, {})] for r in rows]
    return [min(values) for values in found if values]


def headline(rows: list[Row], kept: list[Row], machine: Row) -> str:
    cpu = f"{machine['fastcrit']['cores']} cores of {article(machine['cpu']['brand_raw'])}"
    images = sorted((r for r in rows if square(r) and r["dtype"] == "float32"), key=sites)
    if not images:
        return f"On {cpu}: a part of the benchmarks."
    claims = {
        "FFTW's planned transform of the same batch, without power and shells, takes": ["FFTW"],
        "torch's transform alone takes": ["torch.fft"],
        "finished spectra by torch, the faster of two ways for each size, take": ["torch, matmul", "torch, index_add"],
        "by scipy and bincount": ["scipy"],
        **{f"by {peer.name}": [peer.name] for peer in PACKAGES},
    }
    told = [f"{what} {between(values)}" for what, peers in claims.items() if (values := fastest(images, peers))]
    ahead = [
        f"{name} ({lattice(r)}, {r['dtype']}{where}: {digits(p['median'])})"
        for measured, where in ((rows, ""), (kept, ", memory kept"))
        for r in measured
        for name, p in r["peers"].items()
        if "median" in p and p["median"] < 1
    ]
    speeds = [1e9 * r["ours"] / sites(r) for r in images]
    text = (
        f"On {cpu}, with {THREADS} threads: finished radial spectra of float32 images, {lattice(images[0])} to "
        f"{lattice(images[-1])}, take {between(speeds)} ns per site. In units of that time, {'; '.join(told)}. "
        + (f"Ahead of fastcrit: {'; '.join(ahead)}." if ahead else "No peer in any table below is ahead of fastcrit.")
    )
    return textwrap.fill(text, 120)


def article(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOU' else 'a'} {noun}"


def spectra(rows: list[Row], peers: tuple[Peer, ...]) -> str:
    text = ""
    for dtype in DTYPES:
        lines = []
        for r in rows:
            if r["dtype"] == dtype and any(p.name in r["peers"] for p in peers):
                ours = [lattice(r), str(r["samples"]), duration(r["ours"]), f"{1e9 * r['ours'] / sites(r):.2f}"]
                lines.append(ours + [cell(r["peers"].get(p.name)) for p in peers])
        if lines:
            header = [dtype, "samples", "fastcrit, per field", "ns per site", *(p.name for p in peers)]
            text += table(header, lines) + "\n"
    return text or "Not measured in this run.\n\n"


def cell(result: Row | None) -> str:
    if result is None:
        return "–"
    if "skipped" in result:
        return f"skipped: {result['skipped']}"
    return f"{ratio(result)}, {duration(result['peers'])}"


def definitions(peers: tuple[Peer, ...]) -> str:
    return "".join(f"* **{p.name}**: {p.does}.\n" for p in peers)


def by_side(rows: list[Row], value: Any, column: Any = lambda r: r["dtype"]) -> str:
    """A line for each lattice, a column for each dtype or what else tells the rows of a lattice apart."""
    columns = list(dict.fromkeys(column(r) for r in rows))
    lines: dict[str, list[str]] = {}
    for r in rows:
        lines.setdefault(lattice(r), ["–"] * len(columns))[columns.index(column(r))] = value(r)
    return table(["lattice", *columns], [[name, *values] for name, values in lines.items()])


def units(rows: list[Row], column: Any = lambda r: r["dtype"]) -> str:
    return by_side(rows, lambda r: f"{ratio(r['ratio'])}, {duration(r['ratio']['peers'])}", column)


def samples(rows: list[Row]) -> str:
    lines = [
        [
            str(r["samples"]),
            duration(r["seconds"] / r["samples"]),
            f"{1e9 * r['seconds'] / r['samples'] / sites(r):.2f}",
        ]
        for r in rows
    ]
    return table(["fields of 32 × 32, float32", "per field", "ns per site"], lines)


def threads(rows: list[Row]) -> str:
    lines = [[lattice(r), duration(r["ratio"]["peers"]), duration(r["ratio"]["ours"]), ratio(r["ratio"])] for r in rows]
    return table(["float32", "1 thread, per field", "2 threads, per field", "speed-up"], lines)


def memory(rows: list[Row]) -> str:
    def value(r: Row) -> str:
        return f"{r['extra'] / r['threads'] / MIB:.2f} ({r['extra'] / MIB:.2f} in all)"

    return by_side(rows, value)


def sampler(rows: list[Row]) -> str:
    lines = [[r["dictionary"], duration(r["seconds"]), digits(r["torch over fastcrit"])] for r in rows]
    return table(["dictionary", "fastcrit", "torch"], lines)


def recording(rows: list[Row]) -> str:
    lines = [[r["solver"], duration(r["ratio"]["ours"]), ratio(r["ratio"]), f"{100 * r['share']:.2f} %"] for r in rows]
    return table(["solver", "bare", "recorded, over bare", "time in Recorder.update"], lines)


def machine_notes(machine: Row, date: str) -> str:
    cpu, ours = machine["cpu"], machine["fastcrit"]
    core, build = ours["core"], dict(ours["compiler"])
    compiler = build.pop("compiler", "unknown")
    flags = "; ".join(f"{isa}: `{flags}`" for isa, flags in build.items()) or "unknown"
    versions = dict(ours["versions"])
    versions["torch"] += " (with MKL)" if ours["mkl"] else " (without MKL)"
    return (
        f"* CPU: {cpu['brand_raw']}, {ours['cores']} cores; "
        f"{machine['system']}; {date[:10]}\n"
        f"* fastcrit {core['version']}: instruction set {core['instruction_set']} of {', '.join(core['available'])}; "
        f"{THREADS} threads\n"
        f"* compiler: {compiler}; flags of the kernels by instruction set: {flags}\n"
        f"* Python {ours['python']}; {', '.join(f'{name} {v}' for name, v in versions.items())}\n"
        f"* command: `make bench`, which is `{ours['command']}`\n"
    )


def figure(rows: list[Row], path: Path) -> None:
    """Peers' time over ours against the side of square lattices; bars are quartiles over pairs."""
    lines = {  # colours of Okabe and Ito
        "FFTW": ("FFTW, transform alone", "#0072B2", "o", "--"),
        "torch.fft": ("torch.fft, transform alone", "#56B4E9", "s", "--"),
        "torch, matmul": ("torch and a matrix product", "#D55E00", "^", "-"),
        "torch, index_add": ("torch and index_add", "#E69F00", "v", "-"),
        "scipy": ("scipy and bincount", "#009E73", "D", "-"),
    }
    style = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "axes.titlesize": 10}
    with mpl.rc_context(style):
        fig, axes = plt.subplots(1, len(DTYPES), figsize=(8.5, 3.6), sharey=True, layout="constrained")
        for ax, dtype in zip(axes, DTYPES, strict=True):
            squares = sorted((r for r in rows if square(r) and r["dtype"] == dtype), key=sites)
            for name, (label, color, marker, line) in lines.items():
                found = [(r["lattice"][0], r["peers"][name]) for r in squares if "median" in r["peers"].get(name, {})]
                if not found:
                    continue
                middle = np.array([p["median"] for _, p in found])
                bars = [middle - [p["low"] for _, p in found], [p["high"] for _, p in found] - middle]
                ax.errorbar(
                    [side for side, _ in found], middle, bars, color=color, marker=marker, linestyle=line,
                    label=label, markersize=4.5, linewidth=1.3, elinewidth=1,
                )  # fmt: skip
            ax.axhline(1, color="0.4", linewidth=1)
            ax.set(xscale="log", yscale="log", title=dtype, xlabel="side of the lattice (sites)")
            sides = [r["lattice"][0] for r in squares]
            ax.set_xticks(sides, [str(n) if n not in (28, 80) else "" for n in sides])
            ax.xaxis.minorticks_off()
            ax.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
            ax.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
            ax.grid(axis="y", color="0.9")
        axes[0].set_ylim(bottom=min(0.75, axes[0].get_ylim()[0]))
        axes[0].set_ylabel("peer's time / fastcrit's time")
        axes[0].annotate("fastcrit, finished spectra", (0.99, 1), (0, -3), xycoords=("axes fraction", "data"),
                         textcoords="offset points", ha="right", va="top", color="0.4", fontsize=8)  # fmt: skip
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(path, dpi=150)
        plt.close(fig)


def page(results: Row, kept: Row) -> str:
    tables, machine = rows_by_table(results), results["machine_info"]
    spectrum = tables["spectrum"]
    kept_spectrum = rows_by_table(kept)["spectrum"]
    allocating = tuple(peer for peer in BATCHED if peer.name != "FFTW")  # which has arrays of its own
    return f"""# Benchmarks

{headline(spectrum, kept_spectrum, machine)}

These are CPU figures. No GPU was measured.

![Time of each peer in units of fastcrit's time against the side of the lattice]({FIGURE})

Every peer's numbers were compared with fastcrit's before it was timed. Peer and fastcrit were timed in turn, A B A B,
in one process with {THREADS} threads each. A ratio is the peer's time over fastcrit's: **median** over the pairs and
[quartiles]; above 1, fastcrit is faster. Times are medians. Taking turns, each finds the caches full of the other's
data. The fields are white noise, about 2^{np.log2(SITES):.0f} sites in a batch.

`make bench` writes this page; no figure in it is typed by hand.

## Radial spectra: transforms and pipelines

fastcrit's time is that of `fc.power_spectrum(fields).power`: the finished spectrum of every field, the check for NaN
and Inf included. Peers, with the time per field beside the ratio:

{definitions(BATCHED)}
{spectra(spectrum, BATCHED)}## Peers whose memory is kept

Results of more than 32 MiB are mapped afresh by glibc in every call, and the pages are cleared. With
`GLIBC_TUNABLES` such that freed memory is kept (fastcrit allocates little beside its output):

{spectra(kept_spectrum, allocating)}## Radial spectra: packages

fastcrit has the whole batch. A package that takes one field at a time is called in a loop over a part of the batch: its
time per field does not depend on how many there are. Ratios are of times per field.

{definitions(PACKAGES)}
{spectra(spectrum, PACKAGES)}## Other statistics

`fc.correlation_length(fields, method="second_moment", center="none", errors=None)`, in units of `torch.sum` of the same
array, and its time for the batch. Arrays of 256 MiB come from memory, the smaller ones partly from the cache:

{units(tables["second moment"], lambda r: f"{r['dtype']}, {r['MiB']} MiB")}
`fc.structure_factor(fields)`, with errors and the sums for a jackknife, and its time. The ratio is of torch's time over
it: the mean over samples, `torch.fft.rfftn` of what is left, \\|.\\|² and its mean, without shells and errors:

{by_side(tables["factor"], lambda r: f"{ratio(r['ratio'])}, {duration(r['ratio']['ours'])}")}
`Recorder.update` with its default statistics, in units of the radial spectra of the same batch, and its time:

{units(tables["recorder"])}
## Scaling

{samples(tables["samples"])}
{threads(tables["threads"])}
The scaling with the side is the column "ns per site" of the first table.

## Memory

What the first call of a process needs at its peak beside its input and output, the tables of the lattice included:
MiB per thread with {THREADS} threads, from the high-water mark of a fresh process (good to about 0.3 MiB).

{memory(tables["memory"])}
## Patch sampler

20 steps of the reverse SDE, 64 samples of 80 × 80, float32, {THREADS} threads, in units of fastcrit's time:

{sampler(tables["sampler"])}
## Recording a trained network

128 samples of the shipped Fashion-MNIST network, recorded at each of 7 levels, {THREADS} threads. The whole run in
units of the bare one, and the time that the recorder itself takes, in per cent of the bare run:

{recording(tables["recording"])}
## The machine

{machine_notes(machine, results["datetime"])}"""


def main(path: str, kept: str) -> None:
    results = json.loads(Path(path).read_text())
    figure(rows_by_table(results)["spectrum"], DOCS / FIGURE)
    (DOCS / "benchmarks.md").write_text(page(results, json.loads(Path(kept).read_text())))


if __name__ == "__main__":
    main(*sys.argv[1:])
