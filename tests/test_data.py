"""Fashion-MNIST: the shipped subset, the full files wherever they lie, and refusal of damaged ones."""

from __future__ import annotations

import gzip
import hashlib
import sys

import numpy as np
import pytest

import fastcrit as fc
from fastcrit import data


class TestSubset:
    def test_is_balanced_and_small(self):
        d = data.fashion_mnist()
        assert d.images.shape == (2000, 28, 28)
        assert d.images.dtype == np.uint8
        np.testing.assert_array_equal(np.bincount(d.labels), 200)
        assert data._SUBSET.stat().st_size <= 750_000
        assert len(data.FASHION_MNIST_CLASSES) == 10

    def test_pixels_are_in_minus_one_to_one(self):
        x = data.fashion_mnist().pixels()
        assert x.dtype == np.float32
        assert (x.min(), x.max()) == (-1.0, 1.0)

    def test_damage_is_refused_by_name(self, tmp_path):
        copy = tmp_path / "subset.npz"
        content = bytearray(data._SUBSET.read_bytes())
        content[1000] ^= 1
        copy.write_bytes(content)
        with pytest.raises(fc.FileFormatError, match=r"subset\.npz: damaged"):
            data._load_subset(copy)

    def test_python_without_lzma_is_told_the_way_out(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "lzma", None)
        with pytest.raises(ImportError, match=r"without the module lzma: .*liblzma, or fashion_mnist\('train'\)") as e:
            data.fashion_mnist()
        assert "\n" not in str(e.value)

    def test_its_licence_ships_with_it(self):
        text = (data._SUBSET.parent / "LICENSE-fashion-mnist").read_text()
        assert "MIT License" in text
        assert "Zalando" in text


@pytest.fixture
def small_files(tmp_path, monkeypatch):
    """Two files in IDX format that stand for the training set, and the table of checksums that fits them."""
    images = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    labels = np.array([2, 0, 1], np.uint8)
    sums = {}
    for name, array in (("train-images-idx3-ubyte.gz", images), ("train-labels-idx1-ubyte.gz", labels)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
        content = header + array.tobytes()
        (tmp_path / name).write_bytes(gzip.compress(content))
        sums[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(data._FILES, "train", sums)
    monkeypatch.setattr(data, "_DEBIAN_FOLDER", tmp_path / "no such folder")
    monkeypatch.delenv("FASTCRIT_DATA", raising=False)
    return tmp_path, images, labels


class TestFullFiles:
    def test_from_a_folder(self, small_files):
        folder, images, labels = small_files
        d = data.fashion_mnist("train", folder=folder)
        np.testing.assert_array_equal(d.images, images)
        np.testing.assert_array_equal(d.labels, labels)
        assert str(folder) in d.source

    @pytest.mark.parametrize("inside", ["", "fashion-mnist"])
    def test_from_the_environment(self, small_files, monkeypatch, inside, tmp_path):
        folder, images, _ = small_files
        monkeypatch.setenv("FASTCRIT_DATA", str(folder))
        if inside:
            (folder / inside).mkdir()
            for file in folder.glob("*.gz"):
                file.rename(folder / inside / file.name)
        np.testing.assert_array_equal(data.fashion_mnist("train").images, images)

    def test_debians_folder_comes_first(self, small_files, monkeypatch, tmp_path):
        folder, images, _ = small_files
        monkeypatch.setattr(data, "_DEBIAN_FOLDER", folder)
        monkeypatch.setenv("FASTCRIT_DATA", str(tmp_path / "elsewhere"))
        np.testing.assert_array_equal(data.fashion_mnist("train").images, images)

    def test_downloaded_last_and_checked(self, small_files, monkeypatch):
        import pooch

        folder, images, _ = small_files
        asked = []

        def retrieve(url, known_hash, fname, path, progressbar):
            asked.append((url, known_hash))
            return str(folder / fname)

        monkeypatch.setattr(pooch, "retrieve", retrieve)
        np.testing.assert_array_equal(data.fashion_mnist("train").images, images)
        assert [known for _, known in asked] == [data._PUBLISHED[name] for name in data._FILES["train"]]
        assert all(url.startswith(data._DOWNLOAD_FROM) for url, _ in asked)

    def test_a_failed_download_says_what_to_do(self, small_files, monkeypatch):
        import pooch

        def retrieve(*args, **options):
            raise ConnectionError("no route")

        monkeypatch.setattr(pooch, "retrieve", retrieve)
        with pytest.raises(OSError, match=r"train-images-idx3-ubyte\.gz: not in .* the download failed \(no route\)"):
            data.fashion_mnist("train")

    def test_damage_is_refused_by_name(self, small_files):
        folder, _, _ = small_files
        path = folder / "train-images-idx3-ubyte.gz"
        whole = path.read_bytes()
        for content, reason in (
            (whole[:-10], "damaged, or not a gzip file"),
            (b"hello", "damaged, or not a gzip file"),
            (gzip.compress(b"something else"), "the checksum does not match"),
        ):
            path.write_bytes(content)
            with pytest.raises(fc.FileFormatError, match=rf"train-images-idx3-ubyte\.gz: .*{reason}"):
                data.fashion_mnist("train", folder=folder)
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r"folder: .*train-images-idx3-ubyte.gz does not exist"):
            data.fashion_mnist("train", folder=folder)

    def test_unknown_split(self):
        with pytest.raises(ValueError, match="split: expected one of 'subset', 'train', 'test', got 'all'"):
            data.fashion_mnist("all")

    @pytest.mark.skipif(not data._DEBIAN_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
    def test_the_real_set_where_it_is_installed(self):
        train, test = data.fashion_mnist("train"), data.fashion_mnist("test")
        assert (len(train), len(test)) == (60_000, 10_000)
        subset = data.fashion_mnist()
        with np.load(data._SUBSET) as file:
            np.testing.assert_array_equal(train.images[file["index"]], subset.images)
            np.testing.assert_array_equal(train.labels[file["index"]], subset.labels)
