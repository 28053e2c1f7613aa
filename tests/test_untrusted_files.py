"""Files from elsewhere: nothing in them runs, whatever the libraries that read them would allow."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zlib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

import fastcrit as fc
from fastcrit import store
from fastcrit.cli import app

zarr = pytest.importorskip("zarr")
numcodecs = pytest.importorskip("numcodecs")

# HDF5 with half: float16, v: float32 of 4 x 3 x 5 with the labels y, x, sample, and on: v > 3. (Made by h5py.)
HDF5 = zlib.decompress(bytes.fromhex(
    "78daed963f4bc35010c0ef5eda10434bda522975b1821fc041d0a1605b93da626ca15570930e4a876a4541ea64c1c945f41b3828b8bbb859"
    "5c9d9cc5cfa083bbbe34171b0242519122f74b5e8ebb7b7fef5d78efa46416a3fa84ae681a78bc139769579f21fb74bb775a2d9935011d91"
    "f057f4d00520806a8014a166a3b575432dd58863c2833b243deae8a2bdf320bcbe61289e1fafe6fb5390bde12c80501043e4534886497e65"
    "579280f18c01eed031d0c3a01b8e5fce5ed135b9320581a2d1f1063e83d163eeedfc77623149fe0ca434481d0562d1a158bc529bf184533d"
    "b8f7913da7f73824e5036679c5aad4cbd5ca869d2f58761dd2e844da2d6e0e6820105109cccbf135c72849027a986c9e1ef22d2cf1d25bfe"
    "712ca600d7853b664c1bccb398b7eb16acd6d62c69f307a649ff47d6db90e391488ba785fb5b60188619822ce4a000265850fc43ad4f7741"
    "7e72f295a52bcb852cbddc7ff42d2d566d043a017d87904a72bfb1bddbda1c1c467451fabc80a801fb616013af0d4e648661188661188661"
    "1886190510f15be20315548722"
))  # fmt: skip
RAN = []


def _ran():
    RAN.append(True)
    return np.zeros((4, 8, 8))


class Evil:
    """Unpickled, it leaves a mark."""

    def __reduce__(self):
        return _ran, ()


@pytest.fixture(autouse=True)
def careless(monkeypatch):
    """As with versions of numcodecs that decode pickles unasked."""
    monkeypatch.setattr(import_module("numcodecs.pickles"), "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    RAN.clear()
    yield
    assert RAN == []


def array_of_format_2(path, codec=None, filters=None, dtype="<f8"):
    """Metadata of an array with one chunk, which holds a pickle."""
    path.mkdir(parents=True)
    about = {
        "zarr_format": 2, "shape": [4, 8, 8], "chunks": [4, 8, 8], "dtype": dtype, "order": "C", "fill_value": 0,
        "filters": filters, "compressor": codec,
    }  # fmt: skip
    (path / ".zarray").write_text(json.dumps(about))
    (path / "0.0.0").write_bytes(pickle.dumps(Evil()))
    return path


def array_of_format_3(path, codecs):
    path.mkdir(parents=True)
    chunks = {"name": "regular", "configuration": {"chunk_shape": [4, 8, 8]}}
    about = {
        "zarr_format": 3, "node_type": "array", "shape": [4, 8, 8], "data_type": "float64", "chunk_grid": chunks,
        "chunk_key_encoding": {"name": "default"}, "fill_value": 0, "codecs": codecs, "attributes": {},
    }  # fmt: skip
    (path / "zarr.json").write_text(json.dumps(about))
    (path / "c/0/0").mkdir(parents=True)
    (path / "c/0/0/0").write_bytes(pickle.dumps(Evil()))
    return path


PICKLE = {"id": "pickle"}
OBJECTS = (PICKLE, [{"id": "vlen-utf8"}], "|O")  # which zarr opens; with numbers it refuses the codec itself
STORES = {
    "compressor": lambda p: array_of_format_2(p / "x.zarr", PICKLE),
    "filter": lambda p: array_of_format_2(p / "x.zarr", None, [PICKLE]),
    "filter behind a good one": lambda p: array_of_format_2(p / "x.zarr", {"id": "zlib", "level": 1}, [PICKLE]),
    "objects": lambda p: array_of_format_2(p / "x.zarr", *OBJECTS),
    "objects by json": lambda p: array_of_format_2(p / "x.zarr", None, [{"id": "json2"}], "|O"),
    "format 3": lambda p: array_of_format_3(p / "x.zarr", [{"name": "numcodecs.pickle", "configuration": {}}]),
    "in a shard": lambda p: array_of_format_3(p / "x.zarr", [{
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [4, 8, 8], "codecs": [{"name": "numcodecs.pickle", "configuration": {}}],
            "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        },
    }]),
}  # fmt: skip


class TestZarr:
    @pytest.mark.parametrize("make", STORES.values(), ids=STORES)
    def test_codecs_that_are_not_on_the_list_are_refused(self, make, tmp_path):
        path = make(tmp_path)
        for read in (store.load_array, store.open_array, fc.analyze, store.load_dataset):
            with pytest.raises(fc.FileFormatError, match=r"x\.zarr"):
                read(path)
        assert CliRunner().invoke(app, ["analyze", str(path)]).exit_code != 0

    def test_the_codec_is_named(self, tmp_path):
        with pytest.raises(fc.FileFormatError, match=r"'array' cannot be .* codecs 'vlen-utf8', 'pickle' may .* zstd"):
            store.open_array(array_of_format_2(tmp_path / "x.zarr", *OBJECTS))
        with pytest.raises(fc.FileFormatError, match=r"'array' cannot be read: its codecs 'base64' may run code"):
            store.open_array(array_of_format_2(tmp_path / "y.zarr", {"id": "base64"}))

    @pytest.mark.parametrize("asked", ["coordinate", "beside"])
    def test_in_a_group_only_what_is_asked_for_is_decoded(self, tmp_path, asked):
        path = tmp_path / "g.zarr"
        group = zarr.open_group(path, mode="w", zarr_format=2)
        u = group.create_array("u", data=np.random.default_rng(0).standard_normal((4, 8, 8)))
        u.attrs["_ARRAY_DIMENSIONS"] = ["sample", "y", "x"]
        name = "x" if asked == "coordinate" else "other"
        array_of_format_2(path / name, *OBJECTS)
        about = json.loads((path / name / ".zarray").read_text())
        if asked == "coordinate":
            about |= {"shape": [8], "chunks": [8]}
            (path / name / ".zarray").write_text(json.dumps(about))
            (path / name / "0").write_bytes(pickle.dumps(Evil()))
            (path / name / ".zattrs").write_text('{"_ARRAY_DIMENSIONS": ["x"]}')
        assert fc.analyze(path, name="u").n_samples == 4
        with pytest.raises(fc.FileFormatError, match="pickle"):
            store.load_dataset(path)

    def test_consolidated_metadata_that_say_otherwise_are_what_counts(self, tmp_path):
        path = tmp_path / "g.zarr"
        zarr.open_group(path, mode="w", zarr_format=2).create_array("u", data=np.ones((4, 8, 8)), compressors=None)
        zarr.consolidate_metadata(path)
        said = json.loads((path / ".zmetadata").read_text())
        said["metadata"]["u/.zarray"]["compressor"] = PICKLE
        (path / ".zmetadata").write_text(json.dumps(said))
        next(p for p in (path / "u").iterdir() if not p.name.startswith(".")).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(fc.FileFormatError, match="pickle"):
            fc.analyze(path)

    def test_a_run_whose_dataset_names_the_pickle_codec(self, tmp_path):
        array_of_format_2(tmp_path / "run/dataset.zarr/S", *OBJECTS)
        (tmp_path / "run/dataset.zarr/.zgroup").write_text('{"zarr_format": 2}')
        done = CliRunner().invoke(app, ["analyze", str(tmp_path / "run")])
        assert "pickle" in str(done.exception)

    @pytest.mark.parametrize("chunks", [None, {}], ids=["lazy", "dask"])
    def test_references_and_far_stores_that_xarray_opened(self, tmp_path, chunks):
        path = tmp_path / "far.zarr"
        path.mkdir()
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        array_of_format_2(path / "u", {"id": "base64"})  # objects xarray itself decodes as soon as it opens them
        (path / "u/.zattrs").write_text('{"_ARRAY_DIMENSIONS": ["sample", "y", "x"]}')
        reference = pytest.importorskip("fsspec.implementations.reference")
        refs = {str(p.relative_to(path)): [str(p)] for p in path.rglob("*") if p.is_file()}
        files = reference.ReferenceFileSystem({"version": 1, "refs": refs})
        for place in (path, files.get_mapper("")):
            with xr.open_dataset(place, engine="zarr", chunks=chunks, consolidated=False) as ds:
                for read in (fc.analyze, fc.structure_factor, fc.correlation_length, fc.power_spectrum):
                    with pytest.raises(fc.FileFormatError, match="not read: its codecs 'base64'"):
                        read(ds["u"])

    def test_codecs_of_numbers_are_read(self, tmp_path):
        y = np.random.default_rng(0).standard_normal((4, 8, 8)).round(2)
        for i, codec in enumerate([None, numcodecs.Blosc(), numcodecs.LZ4(), numcodecs.BZ2(), numcodecs.LZMA()]):
            zarr.create_array(tmp_path / f"{i}.zarr", data=y, compressors=codec, zarr_format=2)
            np.testing.assert_array_equal(store.load_array(tmp_path / f"{i}.zarr"), y)
        zarr.create_array(
            tmp_path / "f.zarr", data=y, zarr_format=2, filters=[numcodecs.FixedScaleOffset(0, 100, "f8", "i4")]
        )
        np.testing.assert_allclose(store.load_array(tmp_path / "f.zarr"), y)


class TestPickles:
    @pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".pth", ".safetensors", ".nc", ".h5", ".zarr"])
    def test_under_any_name_are_refused_and_not_recommended(self, tmp_path, suffix):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(pickle.dumps(Evil(), protocol=2))
        for read in (store.load_array, fc.analyze):
            with pytest.raises(fc.FileFormatError, match=rf"x\{suffix}") as refused:
                read(path)
            assert "weights_only" not in str(refused.value)
            assert "allow_pickle" not in str(refused.value)

    @pytest.mark.parametrize("new", [True, False], ids=["zip", "old format"])
    @pytest.mark.parametrize("holds", [lambda: Evil(), lambda: {"u": torch.ones(4, 8, 8), "more": Evil()}])
    def test_in_files_of_torch(self, tmp_path, new, holds):
        torch.save(holds(), tmp_path / "x.pt", _use_new_zipfile_serialization=new)
        done = CliRunner().invoke(app, ["analyze", str(tmp_path / "x.pt")])
        assert done.exit_code != 0
        assert "x.pt" in str(done.exception)
        assert "weights_only" not in str(done.exception)
        assert "_ran" in str(done.exception)  # what it asks for is named

    def test_a_torch_that_can_be_made_to_run_code_reads_nothing(self, tmp_path, monkeypatch):
        torch.save(torch.ones(4, 8, 8), tmp_path / "x.pt")
        monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
        with pytest.raises(fc.FileFormatError, match=r"x\.pt: not read by torch 2\.5\.1.*update torch to 2\.6"):
            store.load_array(tmp_path / "x.pt")

    def test_beside_an_array_of_numbers_it_is_read(self, tmp_path):
        np.savez(tmp_path / "x.npz", u=np.ones((4, 8, 8)), evil=np.array([Evil()], dtype=object))
        np.testing.assert_array_equal(store.load_array(tmp_path / "x.npz", "u"), np.ones((4, 8, 8)))
        np.testing.assert_array_equal(store.load_array(tmp_path / "x.npz"), np.ones((4, 8, 8)))
        with pytest.raises(fc.FileFormatError, match=r"x\.npz: 'evil' cannot be read: it holds Python objects"):
            store.load_array(tmp_path / "x.npz", "evil")

    def test_headers_of_numpy_are_not_evaluated(self, tmp_path):
        header = b"{'descr': __import__('tests.test_untrusted_files').RAN.append(1), 'fortran_order': 0, 'shape': (1,)}"
        file = io.BytesIO()
        file.write(b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n")
        (tmp_path / "x.npy").write_bytes(file.getvalue())
        with pytest.raises(fc.FileFormatError, match=r"x\.npy"):
            store.load_array(tmp_path / "x.npy")


class TestTypesThatEndTheProcess:
    @pytest.fixture
    def path(self, tmp_path):
        pytest.importorskip("netCDF4")
        (tmp_path / "x.h5").write_bytes(HDF5)
        return tmp_path / "x.h5"

    @pytest.mark.parametrize("how", ["store.load_array(p, 'half')", "fastcrit.analyze(p, name='half')"])
    def test_float16_of_hdf5_is_named_by_a_process_that_lives(self, path, how):
        code = "import sys, fastcrit; from fastcrit import store; p = sys.argv[1]\n"
        code += f"try: {how}\nexcept ValueError as e: print(e)"
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "x.h5: 'half' cannot be read" in done.stdout
        assert "float16" in done.stdout

    def test_what_lies_beside_it_is_read_with_its_labels(self, path):
        v = np.arange(60.0).reshape(4, 3, 5) % 7
        np.testing.assert_array_equal(store.load_array(path, "v"), np.moveaxis(v, -1, 0))
        np.testing.assert_array_equal(store.load_array(path, "on"), v > 3)
        with pytest.raises(ValueError, match=r"x\.h5 holds 3 arrays \(half, on, v\); say which"):
            store.load_array(path)


def test_config_json_of_any_depth_is_damaged_not_a_traceback(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(fc.FileFormatError, match=r"config\.json"):
        store.check_run(Path(tmp_path), {"a": 1}, finished=None)
