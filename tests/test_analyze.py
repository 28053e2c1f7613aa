"""Stored fields of any format, read in blocks: what a recorder would have said, on threads and on workers that die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.numpy import save_file
from typer.testing import CliRunner

import fastcrit as fc
from fastcrit import store
from fastcrit.analyze import cluster
from fastcrit.cli import app

LEVELS = [9.0, 5.0, 3.0, 1.5, 0.7, 0.0]
DIMS = ("level", "sample", "channel", "row", "column")


@pytest.fixture
def trajectory(rng):
    noise = rng.standard_normal((6, 40, 2, 12, 10)).astype(np.float32)
    return xr.DataArray(
        noise * (1 + np.array(LEVELS, np.float32)[:, None, None, None, None]), dims=DIMS, coords={"level": LEVELS},
        name="y",
    )  # fmt: skip


def recorded(y, levels=LEVELS):
    rec = fc.Recorder(levels, shape=y.shape[2:])
    for i, fields in enumerate(y):
        rec.update(i, np.asarray(fields))
    return rec.dataset()


def write(y, path):
    if path.suffix == ".npy":
        np.save(path, y.values)
    elif path.suffix == ".npz":
        np.savez(path, y=y.values)
    elif path.suffix in (".pt", ".pth"):
        torch.save({"y": torch.from_numpy(y.values)}, path)
    elif path.suffix == ".safetensors":
        save_file({"y": y.values}, path)
    elif path.suffix == ".zarr":
        y.chunk(level=1, sample=16).to_dataset().to_zarr(path, zarr_format=2)
    else:
        y.to_dataset().to_netcdf(path)


def close(a, b):
    """Equal but for the order of sums of float64."""
    assert set(a.data_vars) == set(b.data_vars)
    for name in a.data_vars:
        if a[name].dtype.kind == "f":
            np.testing.assert_allclose(a[name], b[name], rtol=1e-7, atol=1e-10, err_msg=str(name))
        else:
            assert (a[name].values == b[name].values).all()


class TestEqualsTheRecorder:
    @pytest.mark.parametrize("suffix", store.ARRAY_SUFFIXES)
    def test_of_a_file_of_every_format(self, trajectory, tmp_path, suffix):
        path = tmp_path / f"y{suffix}"
        write(trajectory, path)
        named = suffix in (".zarr", ".nc", ".h5")
        more = {} if named else {"dims": DIMS, "levels": LEVELS}
        close(fc.analyze(path, **more, block_bytes=10_000), recorded(trajectory.values))

    def test_of_a_data_array_with_dims_in_any_order(self, trajectory):
        turned = trajectory.transpose("row", "sample", "column", "level", "channel")
        expected = recorded(trajectory.transpose(*DIMS).values)
        close(fc.analyze(turned), expected)
        close(fc.analyze(turned.chunk(row=5, sample=7, level=2), block_bytes=30_000), expected)
        renamed = turned.drop_vars("level").values
        close(
            fc.analyze(renamed, dims=("row", "sample", "column", "level", "channel"), levels=LEVELS), expected
        )  # fmt: skip

    def test_without_levels_and_channels(self, rng):
        y = rng.standard_normal((30, 16, 16))
        ds = fc.analyze(y, block_bytes=10_000)
        assert "level" not in ds.dims
        np.testing.assert_allclose(ds.S, fc.structure_factor(y).S, rtol=1e-10)
        np.testing.assert_allclose(ds.C, fc.autocorrelation(y).C, rtol=1e-8, atol=1e-10)
        assert "channel" in fc.analyze(y.reshape(15, 2, 16, 16)).dims

    def test_of_sharded_zarr_and_of_a_bare_array(self, trajectory, tmp_path):
        zarr = pytest.importorskip("zarr")
        array = zarr.create_array(
            tmp_path / "bare.zarr", data=trajectory.values, chunks=(1, 4, 2, 12, 10), shards=(2, 8, 2, 12, 10)
        )
        assert array.shards == (2, 8, 2, 12, 10)
        found = fc.analyze(tmp_path / "bare.zarr", dims=DIMS, levels=LEVELS, block_bytes=40_000)
        close(found, recorded(trajectory.values))

    def test_blocks_do_not_change_the_answer(self, trajectory):
        results = [fc.analyze(trajectory, block_bytes=n) for n in (1, 5_000, 1 << 26)]
        for other in results[1:]:
            close(results[0], other)


class TestOnACluster:
    def test_a_worker_that_is_killed_changes_nothing(self, trajectory, tmp_path):
        from distributed import get_client

        path = tmp_path / "y.zarr"
        write(trajectory, path)
        alone = fc.analyze(path, block_bytes=4_000)
        environment = dict(os.environ)
        with cluster(None, 2, "1GB"):
            client = get_client()
            pids = list(client.run(os.getpid).values())
            killer = threading.Timer(0.15, os.kill, (pids[0], signal.SIGKILL))
            killer.start()
            xr.testing.assert_identical(fc.analyze(path, block_bytes=4_000), alone)
            killer.join()
            client.wait_for_workers(2, timeout=60)  # its nanny has started another
            assert pids[0] not in client.run(os.getpid).values()
            address = client.scheduler.address
            done = subprocess.run(
                [sys.executable, "-m", "fastcrit", "analyze", str(path), f"--dask={address}"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "softening" in done.stdout
        assert dict(os.environ) == environment  # Dask sets threads of BLAS and OpenMP for its workers


class TestCommandLine:
    def test_trajectories(self, trajectory, tmp_path):
        write(trajectory, tmp_path / "y.nc")
        done = CliRunner().invoke(app, ["analyze", str(tmp_path / "y.nc"), f"--out={tmp_path / 'd.zarr'}"])
        assert done.exit_code == 0, done.stderr
        assert done.stdout.count("+-") == 6 * 3
        assert "susceptibility" in done.stdout
        close(store.load_dataset(tmp_path / "d.zarr"), recorded(trajectory.values))
        write(trajectory, tmp_path / "y.npy")
        named = ["--dims=level,sample,channel,row,column", "--levels=9,5,3,1.5,0.7,0"]
        again = CliRunner().invoke(app, ["analyze", str(tmp_path / "y.npy"), *named])
        assert again.stdout == done.stdout

    def test_fields_without_levels(self, rng, tmp_path):
        np.save(tmp_path / "f.npy", rng.standard_normal((30, 8, 8)))
        done = CliRunner().invoke(app, ["analyze", str(tmp_path / "f.npy"), "--dims=sample,y,x"])
        assert done.exit_code == 0, done.stderr
        assert done.stdout.count("+-") == 3


class TestRefused:
    def test_bad_input_is_named(self, trajectory, rng, tmp_path):
        y = rng.standard_normal((6, 8, 8))
        for data, more, error, message in (
            (y, {"dims": ("sample", "y")}, ValueError, r"dims: expected 3 different names for shape \(6, 8, 8\)"),
            (y, {"dims": ("a", "b", "c")}, ValueError, "dims: expected 'sample', 2 of the lattice"),
            (y, {"dims": ("level", "y", "x")}, ValueError, "dims: expected 'sample', 2 of the lattice"),
            (y[None, None], {}, ValueError, "dims: expected names, 'sample' among them"),
            (y[None], {"dims": ("level", "sample", "y", "x")}, ValueError, "levels: expected noise levels, since"),
            (y, {"levels": [1.0]}, ValueError, "levels: given for data without a dim 'level'"),
            (trajectory, {"levels": [2.0, 1.0]}, ValueError, r"levels: expected 6 noise levels, .* got shape \(2,\)"),
            (trajectory[::-1], {}, ValueError, "levels: expected"),
            (y, {"name": "y"}, ValueError, "name: given without a path"),
            (y.astype(complex), {}, TypeError, "data: expected real numbers, got dtype complex128"),
            (y[:0], {}, ValueError, "data: empty array"),
            (y, {"block_bytes": 0}, ValueError, "block_bytes: "),
            (str(tmp_path / "none.npy"), {}, FileNotFoundError, r"none\.npy: no such file"),
        ):
            with pytest.raises(error, match=message):
                fc.analyze(data, **more)

    def test_values_that_are_not_finite_are_found_in_their_block(self, rng):
        y = rng.standard_normal((30, 8, 8))
        y[17] = np.nan
        with pytest.raises(ValueError, match="data: NaN in sample 17"):
            fc.analyze(y, block_bytes=2048)

    def test_pickles_and_truncated_files(self, trajectory, tmp_path):
        torch.save(np.random.default_rng, tmp_path / "code.pt")
        np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        for suffix in (".npy", ".npz", ".pt", ".safetensors", ".nc"):
            path = tmp_path / f"cut{suffix}"
            write(trajectory, path)
            path.write_bytes(path.read_bytes()[:60])
        for path in tmp_path.iterdir():
            with pytest.raises(fc.FileFormatError, match=path.name.replace(".", r"\.")):
                fc.analyze(path)

    def test_npz_compressed_or_not_in_any_order(self, trajectory, tmp_path):
        y = trajectory.values
        np.savez(tmp_path / "stored.npz", other=np.arange(3), y=y, turned=np.asfortranarray(y))
        np.savez_compressed(tmp_path / "compressed.npz", y=y, turned=np.asfortranarray(y))
        for path in (tmp_path / "stored.npz", tmp_path / "compressed.npz"):
            for name in ("y", "turned"):
                array = store.open_array(path, name)
                assert not array.variable._in_memory
                np.testing.assert_array_equal(array[1:3, ::7].values, y[1:3, ::7])
        np.savez(tmp_path / "objects.npz", y=np.array([{"a": 1}], dtype=object))
        with pytest.raises(fc.FileFormatError, match=r"objects\.npz: .*objects"):
            store.open_array(tmp_path / "objects.npz")

    def test_two_clusters(self):
        with pytest.raises(ValueError, match="dask, workers: expected one of them"), cluster("tcp://x:1", 2):
            pass

    def test_a_level_of_0_alone_is_one(self):
        assert fc.Recorder([0.0], shape=(8, 8)).levels.tolist() == [0.0]

    def test_where_the_answer_goes_does_not_change_it(self, tmp_path):
        fields = fc.theory.GaussianTheory.ornstein_zernike(xi=1.5, lattice=32).sample_data(60, seed=4)
        np.save(tmp_path / "f.npy", fields)
        arguments = ["analyze", str(tmp_path / "f.npy"), "--json"]
        whole = json.loads(CliRunner().invoke(app, arguments).output)["lengths"]["ornstein_zernike"]
        stored = json.loads(CliRunner().invoke(app, [*arguments, f"--out={tmp_path / 'd.zarr'}"]).output)
        lengths = stored["levels"][0]["lengths"]["xi_ornstein_zernike"]
        expected = fc.correlation_length(fields)
        # The recorder transforms and adds in another order.
        np.testing.assert_allclose([whole["value"], lengths["value"]], expected.value, rtol=1e-6)
        # Leave-one-out errors: modes above low_modes leave a term of 1/n of them out (`_centred`).
        np.testing.assert_allclose([whole["stderr"], lengths["stderr"]], expected.stderr, rtol=0.05)
