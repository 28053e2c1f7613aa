"""Large runs, each started once by hand: python -m benches.scale memory|cost|ranks|kills|disk|dask.

They take minutes, gigabytes of disk, and for `disk` the right to mount. Each prints what it found and fails if it is
not what docs/cluster.md says.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import xarray as xr

import fastcrit as fc
from fastcrit import store
from fastcrit._kernels.lattice import selection
from fastcrit.studies import ImageNetStudy
from tests.networks import diffusers_pipeline, edm2_pickle

SHAPES = ((3, 64, 64), (4, 64, 64), (3, 256, 256))
SMALL = {"samples": 96, "chunk": 8, "batch": 4, "levels": 8, "gain-share": 0.1}


def memory() -> None:
    """A million states of 3 x 64 x 64 through a recorder: resident memory and rate."""
    fc.set_num_threads(1)
    batch, total = 512, 1_000_000
    rng = np.random.default_rng(0)
    y = [rng.standard_normal((batch, 3, 64, 64), dtype=np.float32) for _ in range(4)]
    rec = fc.Recorder([1.0], shape=(3, 64, 64))
    process = psutil.Process()
    resident, times = [], {"recorded": [], "by its kernel alone": [], "transformed and squared alone": []}
    alone = fc.Recorder([1.0], shape=(3, 64, 64))
    level = {name: values[0] for name, values in alone.state.items()}
    modes = selection(alone.grid.shape, alone._record.layout.selected)

    def timed(name, call, *arguments, **options):
        begin = time.process_time()  # other processes on the machine do not count
        call(*arguments, **options)
        times[name].append(time.process_time() - begin)

    for n in range(0, total, batch):
        fields, flat = y[n // batch % 4], y[(n // batch + 2) % 4].reshape(-1, 64, 64)
        timed("recorded", rec.update, 0, fields)
        if n // batch % 4 == 0:  # in turn with it, on a batch that is no more in a cache either
            timed("by its kernel alone", rec.grid.core.record, flat, 3, n, modes, 32, level)
        if n // batch % 4 == 2:
            timed("transformed and squared alone", rec.grid.core.power, flat, "orbits")
        if n // batch % 64 == 8:
            resident.append(process.memory_info().rss / 2**20)
    spread = max(resident) - min(resident)
    rates = {name: batch / statistics.median(t) for name, t in times.items()}
    print(f"{rec.state['count'].sum()} states: resident {min(resident):.0f} to {max(resident):.0f} MiB")
    print(", ".join(f"{rate:.0f} states/s {name}" for name, rate in rates.items()))
    assert spread < 20, spread
    assert rates["recorded"] > 0.8 * rates["by its kernel alone"], rates


def cost() -> None:
    """Seconds, bytes and flops a state of the recorder and a chunk's file, one thread."""
    fc.set_num_threads(1)
    for shape in SHAPES:
        batch = max(8, (1 << 24) // np.prod(shape))
        y = np.random.default_rng(0).standard_normal((batch, *shape), dtype=np.float32)
        rec = fc.Recorder(np.geomspace(80, 0.02, 32), shape=shape, blocks=2, gain_shells=range(6))
        times = []
        for _ in range(30):
            begin = time.perf_counter()
            rec.update(0, y)
            times.append((time.perf_counter() - begin) / batch)
        sites = int(np.prod(shape[1:]))
        flops = shape[0] * (2.5 * sites * np.log2(sites) + 3 * sites)
        size = sum(a.nbytes for a in rec.state.values())
        print(
            f"{' x '.join(map(str, shape))}: "
            f"{1e6 * statistics.median(times):.0f} us a state, {y[0].nbytes / 1024:.0f} KiB "
            f"read, {flops / 1e6:.2f} Mflop; a chunk of 32 levels {size / 2**20:.1f} MiB"
        )


def ranks() -> None:
    """Samples a second of 1 and 2 ranks, one thread each, by turns."""
    with tempfile.TemporaryDirectory() as folder:
        model = diffusers_pipeline(f"{folder}/model", num_class_embeds=10, block_out_channels=(16, 32))
        options = {**SMALL, "samples": 960, "gain-share": 0.0}
        speed: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(5):
            for n in (1, 2):
                out = Path(folder) / f"run-{turn}-{n}"
                _torchrun(n, [*_options(options), f"--diffusers={model}", f"--out={out}"])
                speed[n].append(_samples_a_second(out))
                print(f"{n} ranks: {speed[n][-1]:.2f} samples/s")
        ratio = statistics.median(b / a for a, b in zip(speed[1], speed[2], strict=True))
        print(f"2 ranks against 1: {ratio:.2f}")
        assert ratio >= 1.8, ratio


def kills() -> None:
    """A run that is killed at 20 random moments and resumed each time, against one that was not."""
    with tempfile.TemporaryDirectory() as folder:
        model = edm2_pickle(f"{folder}/net.pkl", side=16)
        options = {**SMALL, "samples": 1200, "levels": 8, "gain-share": 0.3}
        call = [*_options(options), f"--edm2={model}", "--trust-pickle"]
        whole, out = Path(folder) / "whole", Path(folder) / "killed"
        _torchrun(1, [*call, f"--out={whole}"])
        rng, killed = random.Random(0), 0
        while not (out / "dataset.zarr").exists():
            process = subprocess.Popen(
                [sys.executable, "-m", "fastcrit", "study", "imagenet", *call, f"--out={out}", "--resume"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            before, writing = _chunks(out), _writing(out)
            while process.poll() is None and _chunks(out) == before:
                time.sleep(0.001)
            # Every other kill comes at a random moment, the others while a chunk is written.
            while killed % 2 and killed < 20 and process.poll() is None and _writing(out) == writing:
                pass
            try:
                process.wait((0.0 if killed % 2 else rng.uniform(0.0, 0.6)) if killed < 20 else None)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed += 1
        left = len(_writing(out))
        xr.testing.assert_identical(
            store.load_dataset(out / "dataset.zarr"), store.load_dataset(whole / "dataset.zarr")
        )
        print(f"{killed} kills, {left} of them in the middle of a write; the datasets are identical")
        assert killed == 20


def disk() -> None:
    """A run on a file system of 800 KiB, and one on a read-only one; needs the right to mount."""
    with tempfile.TemporaryDirectory() as folder:
        model = edm2_pickle(f"{folder}/net.pkl", side=16)
        small = Path(folder) / "small"
        small.mkdir()
        study = ImageNetStudy(model, trust_pickle=True, samples=96, chunk=8, batch=4, levels=8, gain_share=0.0)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", str(small)], check=True)
        try:
            _fails(study, small / "run", resume=False)
            there = _chunks(small / "run")
            subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
            _fails(study, small / "run", resume=True)
            subprocess.run(["mount", "-o", "remount,rw,size=64m", str(small)], check=True)
            assert _chunks(small / "run") == there
            ds = study.run(small / "run", resume=True)
        finally:
            subprocess.run(["umount", str(small)], check=True)
        xr.testing.assert_identical(ds, study.run(Path(folder) / "whole"))
        print(f"{len(there)} chunks were there when the disk was full, none was lost; resumed to the same dataset")


def dask(gigabytes: float = 4.0, limit: str = "1GB") -> None:
    """A compressed Zarr trajectory, analysed by two workers of limited memory, one of them killed."""
    import zarr

    from fastcrit.analyze import cluster

    levels, shape, samples = [20.0, 5.0, 1.0, 0.2], (3, 64, 64), 0
    samples = int(gigabytes * 2**30 / 4 / np.prod(shape) / len(levels)) // 256 * 256
    with tempfile.TemporaryDirectory() as folder:
        y = zarr.create_array(
            f"{folder}/y.zarr", shape=(4, samples, *shape), dtype="float32", chunks=(1, 32, *shape),
            shards=(1, 256, *shape), dimension_names=["level", "sample", "channel", "row", "column"],
        )  # fmt: skip
        rec = fc.Recorder(levels, shape=shape)
        for i, s in enumerate(levels):
            for first in range(0, samples, 256):
                noise = np.random.default_rng([i, first]).standard_normal((256, *shape), dtype=np.float32)
                part = np.round(s * noise, 3)
                y[i, first : first + 256] = part
                rec.update(i, part)
        print(f"{y.nbytes / 2**30:.1f} GiB, {samples} samples of 4 levels")
        with cluster(None, 2, limit):
            from distributed import get_client

            client = get_client()
            peak = [0.0, 0.0]

            def watch() -> None:
                for pid in client.run(os.getpid).values():
                    peak[0] = max(peak[0], psutil.Process(pid).memory_info().rss / 2**20)

            results = []
            for kill in (False, True):
                future = _in_thread(
                    lambda: fc.analyze(f"{folder}/y.zarr", levels=levels, dims=y.metadata.dimension_names)
                )
                begin = time.perf_counter()
                killed = False
                while future.is_alive():
                    if kill and not killed and time.perf_counter() - begin > 3:
                        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
                        killed = True
                    elif not killed:
                        watch()
                    time.sleep(0.2)
                print(f"{'with a kill' if kill else 'undisturbed'}: {time.perf_counter() - begin:.0f} s")
                results.append(future.result)
        xr.testing.assert_identical(results[0], results[1])
        expected = rec.dataset()
        for name in ("S", "C", "chi", "xi_ornstein_zernike", "xi_ornstein_zernike_stderr"):
            np.testing.assert_allclose(results[0][name], expected[name], rtol=1e-6, err_msg=name)
        print(f"equal to the in-memory answer, with and without the kill; a worker's memory at most {peak[0]:.0f} MiB")


def _in_thread(call):
    import threading

    class Call(threading.Thread):
        def run(self) -> None:
            self.result = call()

    thread = Call()
    thread.start()
    return thread


def _fails(study: ImageNetStudy, out: Path, resume: bool) -> None:
    try:
        study.run(out, resume=resume)
    except OSError as error:
        print(f"error: {error}".replace(str(out.parent), ""))
    else:
        raise AssertionError("the run should have failed")


def _options(options: dict[str, float]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def _torchrun(n: int, arguments: list[str]) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={n}"] if n > 1 else [sys.executable]
    subprocess.run(
        [*launch, "-m", "fastcrit", "study", "imagenet", *arguments], check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _chunks(out: Path) -> list[str]:
    return sorted(p.name for p in (out / "chunks").glob("chunk-*.safetensors"))


def _writing(out: Path) -> set[str]:
    """Temporary files of chunks: what is being written, and what kills left."""
    return {name for name in os.listdir(out / "chunks") if name[0] == "."} if (out / "chunks").is_dir() else set()


def _samples_a_second(out: Path) -> float:
    """From when rank 0 has loaded the model and made the folder to the last chunk; the start of Python is left out."""
    samples = json.loads((out / "config.json").read_text())["samples"]
    last = max(p.stat().st_mtime for p in (out / "chunks").glob("chunk-*.safetensors"))
    return samples / (last - (out / "config.json").stat().st_mtime)


if __name__ == "__main__":
    {f.__name__: f for f in (memory, cost, ranks, kills, disk, dask)}[sys.argv[1]](*map(float, sys.argv[2:]))
