"""Arrays in files of every kind: types, groups, missing values, damage, and memory that the blocks bound."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import warnings

import cloudpickle
import dask
import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import save_file
from typer.testing import CliRunner

import fastcrit as fc
from fastcrit import store
from fastcrit._edge.files import raw
from fastcrit.cli import app

zarr = pytest.importorskip("zarr")
netCDF4 = pytest.importorskip("netCDF4")  # noqa: N816

DIMS = ("sample", "y", "x")


@pytest.fixture
def fields(rng):
    return rng.standard_normal((12, 8, 8))


@pytest.fixture
def S(fields):  # noqa: N802
    return fc.structure_factor(fields).S


def error_of(path):
    """What ``fastcrit analyze`` says of a file that it refuses."""
    done = CliRunner().invoke(app, ["analyze", str(path)])
    assert done.exit_code != 0
    return str(done.exception)


def netcdf(path, values, kind, *, count=None, fill=None, **attributes):
    with netCDF4.Dataset(path, "w", format="NETCDF3_CLASSIC" if "classic" in path.name else "NETCDF4") as file:
        for name, side in zip(DIMS, values.shape, strict=True):
            file.createDimension(name, side)
        variable = file.createVariable("u", kind, DIMS, fill_value=fill)
        variable.set_auto_maskandscale(False)
        variable.setncatts(attributes)
        variable[:count] = values[:count]
    return path


class TestSlices:
    @pytest.mark.parametrize("piece", [100, 1 << 22])
    def test_of_arrays_in_either_order_are_what_numpy_has(self, tmp_path, monkeypatch, piece):
        monkeypatch.setattr(raw, "_PIECE", piece)
        monkeypatch.setattr(raw, "_SKIPPED", piece)
        a = np.arange(840, dtype=np.float32).reshape(4, 5, 6, 7)
        arrays = {"c": a, "f": np.asfortranarray(a)}
        np.savez(tmp_path / "s.npz", **arrays)
        np.savez_compressed(tmp_path / "z.npz", **arrays)
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}.npy", array)
        whole = xr.DataArray(a)
        keys = [
            (slice(1, 3), slice(0, 5, 2), 3, slice(2, 7, 3)), (2, slice(None), slice(4, 1, -1), slice(None)),
            (slice(3, 0, -2), 1, 1, 1), (0, 0, 0, 0), ([0, 2], slice(None), [1, 5], 0), (slice(2, 2), 0, 0, 0),
        ]  # fmt: skip
        for path, name in [(p, n) for p in ("s.npz", "z.npz") for n in arrays] + [("c.npy", None), ("f.npy", None)]:
            array = store.open_array(tmp_path / path, name)
            for key in keys:
                np.testing.assert_array_equal(array[key], whole[key])
            np.testing.assert_array_equal(store.load_array(tmp_path / path, name), a)


class TestTypes:
    @pytest.mark.parametrize("kind", ["bfloat16", "bool", "uint16", "uint32", "float16"])
    def test_of_safetensors_and_of_torch(self, fields, tmp_path, kind):
        t = torch.from_numpy(fields)
        t = t > 0 if kind == "bool" else ((t + 20) * 100 if kind[0] == "u" else t).to(getattr(torch, kind))
        save_file({"u": t}, tmp_path / "u.safetensors")
        torch.save(t, tmp_path / "u.pt")
        expected = t.double().numpy()
        for path in (tmp_path / "u.safetensors", tmp_path / "u.pt"):
            np.testing.assert_array_equal(store.load_array(path), expected)
            # float32 has 6e-8 of relative rounding, of values of which S sees the differences: 2200 of 100 at most.
            np.testing.assert_allclose(fc.analyze(path).S, fc.structure_factor(expected).S, rtol=1e-4)

    def test_that_numpy_does_not_have_are_named_and_never_passed_over(self, fields, tmp_path):
        t = torch.from_numpy(fields)
        save_file({"latents": t.to(torch.float8_e4m3fn), "images": 3 * t}, tmp_path / "two.safetensors")
        torch.save({"latents": t.to(torch.float8_e5m2), "images": 3 * t}, tmp_path / "two.pt")
        for path, kind in ((tmp_path / "two.safetensors", "F8_E4M3"), (tmp_path / "two.pt", "float8_e5m2")):
            with pytest.raises(ValueError, match=r"holds 2 arrays .*; say which"):
                fc.analyze(path)
            with pytest.raises(fc.FileFormatError, match=f"'latents' cannot be read: its type is .*{kind}"):
                fc.analyze(path, name="latents")

    @pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
    def test_tensors_with_a_graph_a_sign_to_be_done_or_another_order(self, fields, S, tmp_path, old):
        t = torch.from_numpy(fields)
        for i, (saved, more) in enumerate([
            (t.clone().requires_grad_(), {}), ({"u": torch.nn.Parameter(t)}, {}), (torch._neg_view(-t), {}),
            (torch.complex(t, -t).conj().imag, {}), ({"run": {"u": t, "step": 3}}, {"name": "run/u"}),
            (t.permute(1, 2, 0), {"dims": ("y", "x", "sample")}),
        ]):  # fmt: skip
            torch.save(saved, tmp_path / f"{i}.pt", _use_new_zipfile_serialization=not old)
            np.testing.assert_allclose(fc.analyze(tmp_path / f"{i}.pt", **more).S, S)
        for i in range(4):
            np.testing.assert_array_equal(store.load_array(tmp_path / f"{i}.pt"), fields)

    def test_sparse_tensors_and_tensors_without_values_are_named(self, fields, tmp_path):
        empty = torch.ones(4, 8, 8, device="meta")
        for name, saved in (("sparse", torch.from_numpy(fields).to_sparse()), ("meta", empty)):
            torch.save(saved, tmp_path / f"{name}.pt")
            with pytest.raises(fc.FileFormatError, match=rf"{name}\.pt: 'tensor' cannot be read: .*{name}"):
                store.load_array(tmp_path / f"{name}.pt")


class TestGroups:
    @pytest.mark.parametrize("file", ["u.nc", "u.h5", "u2.zarr", "u3.zarr"])
    def test_are_named_like_folders(self, fields, S, tmp_path, file):
        path = tmp_path / file
        if path.suffix == ".zarr":
            group = zarr.open_group(path, mode="w", zarr_format=int(file[1])).create_group("run")
            group.create_array("u", data=fields)
        else:
            with netCDF4.Dataset(path, "w") as whole:
                group = whole.createGroup("run")
                for name, side in zip(DIMS, fields.shape, strict=True):
                    group.createDimension(name, side)
                group.createVariable("u", "f8", DIMS)[:] = fields
        for name in ("run/u", "/run/u"):
            np.testing.assert_allclose(fc.analyze(path, name=name).S, S)
        with pytest.raises(ValueError, match=r"holds no array but in groups \(run/u\); say name='run/u'"):
            fc.analyze(path)
        assert "run/u" in error_of(path)

    @pytest.mark.parametrize("version", [2, 3])
    def test_plain_groups_of_zarr_without_names_of_axes(self, fields, S, tmp_path, version):
        group = zarr.open_group(tmp_path / "g.zarr", mode="w", zarr_format=version)
        group.create_array("u", data=fields)
        np.testing.assert_array_equal(store.load_array(tmp_path / "g.zarr"), fields)
        np.testing.assert_allclose(fc.analyze(tmp_path / "g.zarr").S, S)


class TestMissing:
    @pytest.mark.parametrize("file", ["u.nc", "u-classic.nc"])
    @pytest.mark.parametrize("kind", ["f8", "f4", "i2", "i4"])
    def test_records_that_were_never_written(self, fields, tmp_path, file, kind):
        path = netcdf(tmp_path / file, fields * 100, kind, count=7)
        with pytest.raises(ValueError, match=r"NaN.* in sample 7|NaN in sample 7"):
            fc.analyze(path)
        assert "NaN" in error_of(path)
        whole = netcdf(tmp_path / file, fields * 100, kind)
        assert fc.analyze(whole).n_samples == 12

    @pytest.mark.parametrize(
        "attributes",
        [{"valid_max": 100.0}, {"valid_range": [-50.0, 100.0]}, {"missing_value": 1e4}, {"missing_value": [5e5, 1e4]},
         {"fill": 1e4}, {"kind": "f4", "fill": 1e4}, {"kind": "i2", "valid_max": np.int16(50)},
         {"kind": "i2", "fill": 10_000}, {"kind": "i2", "scale_factor": 0.1, "valid_max": np.int16(2000)},
         {"kind": "i2", "scale_factor": 0.1, "valid_max": 200.0}],
        ids=str,
    )  # fmt: skip
    def test_what_the_file_calls_missing_is_named_by_sample(self, fields, tmp_path, attributes):
        values = np.round(10 * fields)
        values[9, 3, 4] = 1e4
        path = netcdf(tmp_path / "u.nc", values, **({"kind": "f8"} | attributes))
        with pytest.raises(ValueError, match=r"data: NaN in sample 9 .*(fill value|valid range)"):
            fc.analyze(path)
        assert np.isnan(store.load_array(path)[9, 3, 4])
        assert np.isnan(store.load_array(path)).sum() == 1

    def test_packed_and_unsigned_numbers(self, fields, tmp_path):
        packed = np.round(fields / 0.01).astype(np.int16)
        path = netcdf(tmp_path / "p.nc", packed, "i2", scale_factor=0.01, add_offset=3.0)
        np.testing.assert_allclose(store.load_array(path), packed * 0.01 + 3.0)
        unsigned = (packed.astype(np.int32) + 33_000).astype(np.uint16)  # the same bytes as negative int16
        valid = np.array([0, -6], "i2")
        path = netcdf(tmp_path / "n.nc", unsigned.view("i2"), "i2", _Unsigned="true", valid_range=valid)
        np.testing.assert_array_equal(store.load_array(path), unsigned)

    def test_a_fill_value_says_nothing_of_the_sign_of_data(self, fields, tmp_path):
        path = netcdf(tmp_path / "u.nc", -np.abs(fields) - 1, "f8", fill=0.0)
        np.testing.assert_array_equal(store.load_array(path), -np.abs(fields) - 1)

    @pytest.mark.parametrize("version", [2, 3])
    @pytest.mark.parametrize("kind", ["f4", "u1", "bool"])
    def test_zeros_of_zarr_are_numbers(self, fields, tmp_path, version, kind):
        values = (fields > 0).astype(kind)
        group = zarr.open_group(tmp_path / "g.zarr", mode="w", zarr_format=version)
        u = group.create_array("u", data=values, **({"dimension_names": DIMS} if version == 3 else {}))
        if version == 2:
            u.attrs["_ARRAY_DIMENSIONS"] = list(DIMS)
        np.testing.assert_allclose(fc.analyze(tmp_path / "g.zarr").S, fc.structure_factor(values).S, rtol=1e-6)

    @pytest.mark.parametrize("version", [2, 3])
    def test_chunks_of_zarr_that_are_not_there_are_told(self, fields, tmp_path, version):
        options = {"shape": fields.shape, "chunks": (4, 8, 8), "dtype": "f8", "zarr_format": version}
        u = zarr.create_array(tmp_path / "u.zarr", **options)
        u[:8] = fields[:8]
        with pytest.warns(UserWarning, match=r"1 of 3 chunks of 'array' are not there: .* the fill value 0\.0"):
            ds = fc.analyze(tmp_path / "u.zarr")
        written = np.concatenate([fields[:8], np.zeros((4, 8, 8))])
        np.testing.assert_allclose(ds.S, fc.structure_factor(written).S)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            u[8:] = fields[8:]
            fc.analyze(tmp_path / "u.zarr")

    @pytest.mark.parametrize("version", [2, 3])
    def test_fill_values_of_xarray_in_zarr(self, fields, tmp_path, version):
        fields[3, 0, 0] = np.nan
        ds = xr.DataArray(fields, dims=DIMS, name="u").to_dataset()
        for kind in ({"_FillValue": -999.0}, {"dtype": "i2", "scale_factor": 0.01, "_FillValue": -32768}):
            ds.to_zarr(tmp_path / "u.zarr", mode="w", zarr_format=version, consolidated=False, encoding={"u": kind})
            with pytest.raises(ValueError, match=r"data: NaN in sample 3 .*the fill value -"):
                fc.analyze(tmp_path / "u.zarr")
            np.testing.assert_allclose(store.load_array(tmp_path / "u.zarr"), fields, atol=0.0051)


class TestDamage:
    @pytest.mark.parametrize("version", [2, 3])
    def test_in_a_chunk_that_is_read_in_a_block_names_the_file(self, fields, tmp_path, version):
        path = tmp_path / "u.zarr"
        zarr.create_array(path, data=fields, chunks=(4, 8, 8), zarr_format=version)
        chunk = sorted(p for p in path.rglob("*") if p.is_file() and "zarr" not in p.name and p.name[0] != ".")[1]
        chunk.write_bytes(b"xx")
        with pytest.raises(fc.FileFormatError, match=r"u\.zarr: damaged"):
            fc.analyze(path, block_bytes=2000)
        assert "u.zarr: damaged" in error_of(path)
        # Nothing is left that would write below the error when the process ends.
        sync = pytest.importorskip("zarr.core.sync").sync

        async def running():
            return len(asyncio.all_tasks())

        assert sync(running()) == 1

    def test_of_a_member_of_npz_is_found_by_its_checksum(self, fields, tmp_path):
        np.savez(tmp_path / "u.npz", u=fields)
        content = bytearray((tmp_path / "u.npz").read_bytes())
        content[len(content) // 2] ^= 0xFF
        (tmp_path / "u.npz").write_bytes(content)
        with pytest.raises(fc.FileFormatError, match=r"u\.npz: damaged.*CRC"):
            store.load_array(tmp_path / "u.npz")

    def test_folders_say_what_they_are(self, tmp_path):
        for name in ("a", "b"):
            (tmp_path / "runs" / name).mkdir(parents=True)
            (tmp_path / "runs" / name / "config.json").write_text("{}")
        (tmp_path / "nothing").mkdir()
        for folder, message in (
            ("runs/a", "a run that is not finished.*--resume"),
            ("runs", r"a folder of 2 runs \(a, b\).*fastcrit report"),
            ("nothing", r"a folder, but no run and no \.zarr"),
        ):  # fmt: skip
            with pytest.raises(fc.FileFormatError, match=message):
                fc.analyze(tmp_path / folder)
            assert folder in error_of(tmp_path / folder)

    def test_an_existing_result_is_refused_before_anything_is_read(self, fields, tmp_path):
        np.save(tmp_path / "u.npy", fields)
        (tmp_path / "out.zarr").mkdir()
        done = CliRunner().invoke(app, ["analyze", str(tmp_path / "u.npy"), f"--out={tmp_path / 'out.zarr'}"])
        assert "out.zarr exists already" in str(done.exception)


# Prints how many MiB the analysis of each file adds while it runs; small files go before, with which the formats'
# libraries load.
_PEAK = """
import sys
import dask, fastcrit as fc
def memory(which):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(which)) >> 10
dask.config.set(scheduler="threads", num_workers=1)
for folder in sys.argv[1:]:
    for name in "u.npy last.npy z.npz u.pt u.safetensors u.nc last.zarr level.zarr channel.zarr".split():
        open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
        before = memory("VmRSS")
        fc.analyze(f"{folder}/{name}", dims=("y", "x", "sample") if name == "last.npy" else None, block_bytes=1 << 20)
        print(name, memory("VmHWM") - before)
"""


class TestMemory:
    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
    def test_is_that_of_the_blocks_for_every_format(self, tmp_path):
        y = np.random.default_rng(0).standard_normal((8000, 32, 32)).astype(np.float32)  # 31 MiB
        for folder, samples in ((tmp_path / "small", 1000), (tmp_path / "large", 8000)):
            folder.mkdir()
            fields = y[:samples]
            np.save(folder / "u.npy", fields)
            np.save(folder / "last.npy", np.ascontiguousarray(np.moveaxis(fields, 0, -1)))
            np.savez_compressed(folder / "z.npz", u=fields > 1)
            torch.save(torch.from_numpy(fields), folder / "u.pt")
            save_file({"u": torch.from_numpy(fields).bfloat16()}, folder / "u.safetensors")
            ds = xr.DataArray(fields, dims=DIMS, name="u").to_dataset()
            ds.to_netcdf(folder / "u.nc")
            zarr_of = {"zarr_format": 2, "encoding": {"u": {"compressors": None}}}
            ds.transpose("y", "x", "sample").chunk(sample=500).to_zarr(folder / "last.zarr", **zarr_of)
            ds.expand_dims(level=[1.0]).chunk(sample=500).to_zarr(folder / "level.zarr", **zarr_of)
            channels = xr.DataArray(fields.reshape(-1, 2, 32, 32), dims=("sample", "channel", "y", "x"), name="u")
            channels.chunk(sample=250).to_dataset().to_zarr(folder / "channel.zarr", **zarr_of)
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, str(tmp_path / "small"), str(tmp_path / "large")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        added = [(line.split()[0], int(line.split()[1])) for line in done.stdout.splitlines()][9:]
        assert len(added) == 9
        # A block of 1 MiB, chunks of 2, pieces of 4, and the sums of 32 blocks, 0.2 MiB each: less than half of a file.
        assert max(size for _, size in added) < 15, added

    def test_what_goes_to_workers_is_where_data_lie_not_the_data(self, fields, tmp_path, monkeypatch):
        y = np.concatenate([fields] * 100)  # 600 KiB
        np.savez_compressed(tmp_path / "z.npz", u=y)
        torch.save(torch.from_numpy(y), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
        xr.DataArray(y, dims=DIMS, name="u").to_netcdf(tmp_path / "u.nc")
        zarr.create_array(tmp_path / "u.zarr", data=y)
        sizes = []

        def compute(*collections, **options):
            graphs = [dict(c.__dask_graph__()) for c in collections]
            sizes.append(len(cloudpickle.dumps(graphs)))
            # As a worker has it that was started elsewhere.
            monkeypatch.chdir("/")
            return original(*collections, **options)

        original = dask.compute
        monkeypatch.setattr(dask, "compute", compute)
        S = fc.structure_factor(y).S
        for name in ("z.npz", "old.pt", "u.nc", "u.zarr"):
            monkeypatch.chdir(tmp_path)
            np.testing.assert_allclose(fc.analyze(name).S, S)
        assert max(sizes) < 20_000

    def test_a_reader_in_another_process_finds_a_relative_path(self, fields, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        np.save("u.npy", fields)
        sent = pickle.dumps(store.open_array("u.npy"))
        os.chdir("/")
        np.testing.assert_array_equal(pickle.loads(sent), fields)
