"""Datasets that know whether they are whole, arrays from every format, and folders that are not overwritten."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.numpy import save_file

import fastcrit as fc
from fastcrit import store


@pytest.fixture
def ds(rng):
    rec = fc.Recorder([2.0, 1.0], shape=(2, 8, 8), gain_shells=(0, 1))
    for i in range(2):
        rec.update(i, rng.standard_normal((20, 2, 8, 8)))
        rec.update_gain(i, rng.random((20, 2)))
    return rec.dataset().assign_attrs(note="a string", number=3)


class TestDatasets:
    def test_come_back_identical(self, ds, tmp_path):
        store.save_dataset(ds, tmp_path / "d.zarr")
        xr.testing.assert_identical(store.load_dataset(tmp_path / "d.zarr"), ds)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_come_back_with_any_kind_of_nan(self, tmp_path, dtype):
        with np.errstate(invalid="ignore"):
            other = np.zeros(3, dtype) / np.zeros(3, dtype)  # its bits need not be np.nan's
        values = {"nothing": ("x", -np.abs(other)), "some": ("x", np.where([True, False, True], other, dtype(2)))}
        ds = xr.Dataset(values, {"at": ("x", other), "x": ("x", np.where([True, False, False], other, dtype(1)))})
        assert ds["nothing"].dtype == dtype
        store.save_dataset(ds, tmp_path / "d.zarr")
        xr.testing.assert_identical(store.load_dataset(tmp_path / "d.zarr"), ds)

    def test_are_plain_zarr_for_everyone_else(self, ds, tmp_path):
        store.save_dataset(ds, tmp_path / "d.zarr")
        with xr.open_zarr(tmp_path / "d.zarr") as other:
            np.testing.assert_array_equal(other.S, ds.S)

    def test_nothing_is_overwritten(self, ds, tmp_path):
        store.save_dataset(ds, tmp_path / "d.zarr")
        with pytest.raises(FileExistsError, match=r"d\.zarr: exists already"):
            store.save_dataset(ds, tmp_path / "d.zarr")
        assert [p.name for p in tmp_path.iterdir()] == ["d.zarr"]

    @pytest.mark.parametrize("damage", ["chunk", "missing chunk", "metadata", "attribute", "missing array"])
    def test_damage_is_refused_by_name(self, ds, tmp_path, damage):
        path = tmp_path / "d.zarr"
        store.save_dataset(ds, path)
        chunk = next(p for p in (path / "S").iterdir() if not p.name.startswith("."))
        if damage == "chunk":
            content = bytearray(chunk.read_bytes())
            content[-5] ^= 0xFF
            chunk.write_bytes(content)
        elif damage == "missing chunk":
            chunk.unlink()  # zarr fills it with NaN: only the checksum can tell
        elif damage == "metadata":
            (path / ".zmetadata").write_text((path / ".zmetadata").read_text()[:200])
        elif damage == "attribute":
            for file in (path / ".zmetadata", path / ".zattrs"):
                file.write_text(file.read_text().replace("a string", "a strong"))
        else:
            file = path / ".zmetadata"
            file.write_text(file.read_text().replace('"S/.z', '"lost/.z'))
        with pytest.raises(fc.FileFormatError, match=r"d\.zarr: damaged"):
            store.load_dataset(path)

    def test_foreign_and_absent_folders(self, ds, tmp_path):
        ds.to_zarr(tmp_path / "foreign.zarr", zarr_format=2, consolidated=True)
        with pytest.raises(fc.FileFormatError, match=r"foreign\.zarr: not a fastcrit dataset"):
            store.load_dataset(tmp_path / "foreign.zarr")
        with pytest.raises(FileNotFoundError, match=r"none\.zarr: no such dataset"):
            store.load_dataset(tmp_path / "none.zarr")
        (tmp_path / "empty.zarr").mkdir()
        with pytest.raises(fc.FileFormatError, match=r"empty\.zarr: damaged, or not a Zarr dataset"):
            store.load_dataset(tmp_path / "empty.zarr")

    def test_what_zarr_would_change_is_normalised_or_refused(self, tmp_path):
        big = xr.Dataset({"x": ("n", np.arange(3.0).astype(">f8"))}, attrs={"n": np.int64(3)})
        big.x.encoding = {"dtype": "int16", "scale_factor": 0.1}
        store.save_dataset(big, tmp_path / "big.zarr")
        np.testing.assert_array_equal(store.load_dataset(tmp_path / "big.zarr").x, [0, 1, 2])
        with pytest.raises(TypeError, match=r"ds: cannot store 'x' of type object; expected numbers or strings"):
            store.save_dataset(xr.Dataset({"x": ("n", np.array(["a", None], object))}), tmp_path / "o.zarr")

    def test_another_version(self, ds, tmp_path, monkeypatch):
        monkeypatch.setattr(store.datasets, "FORMAT_VERSION", 99)
        store.save_dataset(ds, tmp_path / "d.zarr")
        monkeypatch.undo()
        with pytest.raises(fc.FileFormatError, match="version 99; this fastcrit reads version 1"):
            store.load_dataset(tmp_path / "d.zarr")


class TestArrays:
    @pytest.fixture
    def array(self, rng):
        return rng.standard_normal((3, 4, 5))

    def write(self, array, path):
        if path.suffix == ".npy":
            np.save(path, array)
        elif path.suffix == ".npz":
            np.savez(path, x=array)
        elif path.suffix in (".pt", ".pth"):
            torch.save(torch.from_numpy(array), path)
        elif path.suffix == ".safetensors":
            save_file({"x": array}, path)
        elif path.suffix == ".zarr":
            xr.Dataset({"x": (("sample", "h", "w"), array)}).to_zarr(path, zarr_format=2, consolidated=True)
        else:
            xr.Dataset({"x": (("sample", "h", "w"), array)}).to_netcdf(path)

    @pytest.mark.parametrize("suffix", store.ARRAY_SUFFIXES)
    def test_of_every_format(self, array, tmp_path, suffix):
        path = tmp_path / f"fields{suffix}"
        self.write(array, path)
        np.testing.assert_array_equal(store.load_array(path), array)

    @pytest.mark.parametrize("suffix", [s for s in store.ARRAY_SUFFIXES if s != ".zarr"])
    def test_a_truncated_file_is_refused_by_name(self, array, tmp_path, suffix):
        path = tmp_path / f"fields{suffix}"
        self.write(array, path)
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(fc.FileFormatError, match=rf"fields\{suffix}: damaged, truncated"):
            store.load_array(path)

    def test_pickles_are_refused(self, tmp_path):
        np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        with pytest.raises(fc.FileFormatError, match=r"objects\.npy"):
            store.load_array(tmp_path / "objects.npy")
        torch.save(np.random.default_rng, tmp_path / "code.pt")
        with pytest.raises(fc.FileFormatError, match=r"code\.pt"):
            store.load_array(tmp_path / "code.pt")

    def test_several_arrays_need_a_name(self, array, tmp_path):
        np.savez(tmp_path / "two.npz", a=array, b=array + 1)
        np.testing.assert_array_equal(store.load_array(tmp_path / "two.npz", "b"), array + 1)
        with pytest.raises(ValueError, match=r"name: .*two\.npz holds 2 arrays \(a, b\); say which"):
            store.load_array(tmp_path / "two.npz")
        with pytest.raises(ValueError, match=r"name: .*two\.npz holds no 'c', only a, b"):
            store.load_array(tmp_path / "two.npz", "c")

    def test_unknown_and_absent_files(self, tmp_path):
        (tmp_path / "x.bmp").write_text("")
        with pytest.raises(fc.FileFormatError, match=r"x\.bmp: unknown kind of file; expected one of \.npy"):
            store.load_array(tmp_path / "x.bmp")
        with pytest.raises(FileNotFoundError, match=r"y\.npy: no such file"):
            store.load_array(tmp_path / "y.npy")


class TestRunFolders:
    def test_an_existing_folder_is_refused(self, tmp_path):
        assert store.create_run(tmp_path / "a" / "b").is_dir()
        store.create_run(tmp_path / "a" / "b")  # still empty
        (tmp_path / "a" / "b" / "result").write_text("x")
        with pytest.raises(FileExistsError, match=r"out: .*b exists already"):
            store.create_run(tmp_path / "a" / "b")
        with pytest.raises(FileExistsError, match=r"out: .*result exists already"):
            store.create_run(tmp_path / "a" / "b" / "result")

    @pytest.mark.parametrize("links", [True, False], ids=["with links", "without"])
    def test_the_configuration_appears_whole_and_once(self, tmp_path, monkeypatch, links):
        def refuse(source, target):
            raise PermissionError("no links here")

        if not links:
            monkeypatch.setattr("os.link", refuse)
        store.write_config(tmp_path, {"seed": 1})
        with pytest.raises(FileExistsError):
            store.write_config(tmp_path, {"seed": 2})
        assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
        assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 1}
