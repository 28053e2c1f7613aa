"""Samples a second of a study on one and on two Dask workers: python -m benches.dask_studies [SAMPLES [TURNS]].

By turns, in runs of about a minute on one worker, with a core for each worker; fails below 1.8 times the rate.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from fastcrit import plot
from fastcrit.analyze import cluster
from fastcrit.studies import ImageNetStudy
from tests.networks import diffusers_pipeline


def rate(study: ImageNetStudy, out: Path, workers: int) -> float:
    """From when the folder is made to the last chunk: loading the model on the workers is part of it."""
    from distributed import get_client

    with cluster(None, workers, "3GB"):
        client = get_client()
        client.wait_for_workers(workers)
        client.run(load)
        study.run(out, client=client)
    last = max(p.stat().st_mtime for p in (out / "chunks").glob("chunk-*.safetensors"))
    return study.samples / (last - (out / "config.json").stat().st_mtime)


def load() -> None:
    """On a worker, before its time is taken, as with ranks: Python and its packages."""
    for name in ("fastcrit.studies.imagenet.chunk", "diffusers.models.unets.unet_2d", "diffusers.schedulers"):
        import_module(name)


def main(samples: int = 1200, turns: int = 3) -> None:
    plot.save_figures = lambda ds, folder: []  # not what is timed
    with tempfile.TemporaryDirectory() as folder:
        model = diffusers_pipeline(f"{folder}/model", num_class_embeds=10, block_out_channels=(16, 32))
        study = ImageNetStudy(diffusers=model, samples=samples, chunk=8, batch=4, levels=8, gain_share=0.0)
        speed: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(turns):
            for n in speed:
                out = Path(folder) / f"run-{turn}-{n}"
                speed[n].append(rate(study, out, n))
                seconds = json.loads((out / "config.json").read_text())["samples"] / speed[n][-1]
                print(f"{n} workers: {speed[n][-1]:.2f} samples/s, a run of {seconds:.0f} s", flush=True)
    ratio = statistics.median(b / a for a, b in zip(speed[1], speed[2], strict=True))
    print(f"2 workers against 1: {ratio:.2f}")
    assert ratio >= 1.8, ratio


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
