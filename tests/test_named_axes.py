"""Which axis is which: the same rule of names for arrays, files and the command; coordinates; images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

import fastcrit as fc
from fastcrit import store
from fastcrit.cli import app

zarr = pytest.importorskip("zarr")

DIMS = ("sample", "y", "x")
# What each function says of an ensemble.
FUNCTIONS = {
    "analyze": lambda x, **options: fc.analyze(x, **options).S.values,
    "structure_factor": lambda x, **options: fc.structure_factor(x, **options).S,
    "autocorrelation": lambda x, **options: fc.autocorrelation(x, **options).C,
    "correlation_length": lambda x, **options: fc.correlation_length(x, **options).value,
    "power_spectrum": lambda x, **options: fc.power_spectrum(x, **options).power,
}


@pytest.fixture
def fields(rng):
    return rng.standard_normal((12, 8, 8))


def command(*arguments):
    """Exit status, standard error, and the JSON of ``fastcrit analyze``."""
    done = CliRunner().invoke(app, ["analyze", *map(str, arguments), "--json"])
    return done.exit_code, str(done.exception), json.loads(done.stdout) if done.exit_code == 0 else None


def write(array, path):
    """A named array as netCDF, in a Zarr group, or as a bare Zarr array of either format."""
    if path.name.startswith("bare"):
        old = path.name.startswith("bare2")
        names = {} if old else {"dimension_names": array.dims}
        made = zarr.create_array(path, data=array.values, zarr_format=2 if old else 3, **names)
        if old:
            made.attrs["_ARRAY_DIMENSIONS"] = list(array.dims)
    elif path.suffix == ".zarr":
        array.to_dataset(name="u").to_zarr(path, zarr_format=2)
    else:
        array.to_dataset(name="u").to_netcdf(path)
    return path


class TestNames:
    @pytest.mark.parametrize("function", FUNCTIONS)
    @pytest.mark.parametrize("axes", [("y", "x", "sample"), ("y", "sample", "x")])
    def test_say_where_the_ensemble_is(self, fields, function, axes):
        turned = xr.DataArray(fields, dims=DIMS).transpose(*axes)
        of = FUNCTIONS[function]
        np.testing.assert_allclose(of(turned), of(fields), rtol=1e-10)

    @pytest.mark.parametrize("file", ["u.nc", "u.h5", "u.zarr", "bare2.zarr", "bare3.zarr"])
    def test_in_files_of_every_format_and_for_the_command(self, fields, tmp_path, file):
        both = xr.DataArray(np.stack([fields, 2 * fields], axis=-1), dims=(*DIMS, "channel"))
        path = write(both.transpose("y", "channel", "x", "sample"), tmp_path / file)
        S = fc.structure_factor(fields).S
        np.testing.assert_allclose(fc.analyze(path).S, [S, 4 * S])
        np.testing.assert_allclose(fc.structure_factor(store.load_array(path)).S, [S, 4 * S])
        status, error, found = command(path)
        assert status == 0, error
        np.testing.assert_allclose(found["S"], 2.5 * S)

    @pytest.mark.parametrize(
        "names", [("time", "y", "x"), ("y", "x", "time"), ("sample", "time", "y", "x"), ("sigma", "sample", "y", "x")]
    )
    def test_that_are_not_understood_are_refused(self, fields, tmp_path, names):
        array = xr.DataArray(fields if len(names) == 3 else fields[None], dims=names)
        for function, of in FUNCTIONS.items():
            if function == "power_spectrum" and names[0] == "sample":
                continue  # asks for no ensemble
            with pytest.raises(ValueError, match=r"expected .*'sample'.* got \['"):
                of(array)
        for file in ("n.nc", "n.zarr", "bare3.zarr"):
            path = write(array, tmp_path / file)
            with pytest.raises(ValueError, match="dims: expected 'sample'"):
                fc.analyze(path)
            status, error, _ = command(path)
            assert status != 0
            assert "--dims sample,y,x" in error
        if len(names) == 3:  # the way out
            given = ",".join("sample" if name == "time" else name for name in names)
            assert command(tmp_path / "n.nc", f"--dims={given}")[0] == 0

    def test_that_are_none_leave_the_order_to_say_it(self, fields, tmp_path):
        S = fc.structure_factor(fields).S
        xr.DataArray(fields, name="u").to_netcdf(tmp_path / "u.nc")  # dim_0, dim_1, dim_2
        zarr.create_array(tmp_path / "u.zarr", data=fields)
        for path in (tmp_path / "u.nc", tmp_path / "u.zarr"):
            np.testing.assert_allclose(fc.analyze(path).S, S)
            np.testing.assert_allclose(command(path)[2]["S"], S)

    def test_of_a_part_of_the_axes_have_to_say_it_all(self, fields, tmp_path):
        zarr.create_array(tmp_path / "s.zarr", data=fields, dimension_names=("sample", None, None))
        np.testing.assert_allclose(fc.analyze(tmp_path / "s.zarr").S, fc.structure_factor(fields).S)
        zarr.create_array(tmp_path / "y.zarr", data=fields, dimension_names=(None, "y", "x"))
        with pytest.raises(ValueError, match="dims: expected 'sample'"):
            fc.analyze(tmp_path / "y.zarr")

    def test_a_dataset_is_no_array(self, fields):
        with pytest.raises(TypeError, match="data: expected one array, got a dataset of u; pick one"):
            fc.analyze(xr.DataArray(fields, dims=DIMS, name="u").to_dataset())


class TestCoordinates:
    @pytest.mark.parametrize("step", [0.5, -2.0, 1 / 3])
    def test_that_are_even_are_the_spacing_unless_one_is_given(self, fields, tmp_path, step):
        at = 100 + step * np.arange(8)
        array = xr.DataArray(fields, dims=DIMS, coords={"y": at, "x": at})
        expected = fc.structure_factor(fields, spacing=abs(step))
        np.testing.assert_allclose(fc.structure_factor(array).k, expected.k)
        np.testing.assert_allclose(fc.power_spectrum(array).k, expected.k)
        np.testing.assert_allclose(fc.autocorrelation(array).r, fc.autocorrelation(fields, spacing=abs(step)).r)
        xi = fc.correlation_length(fields, method="efold", spacing=abs(step))
        np.testing.assert_allclose(fc.correlation_length(array, method="efold").value, xi.value)
        for file in ("u.nc", "u.zarr"):
            path = write(array.astype(np.float32), tmp_path / file)
            np.testing.assert_allclose(fc.analyze(path).k, expected.k)
            np.testing.assert_allclose(command(path)[2]["k"], expected.k)
            np.testing.assert_allclose(command(path, "--spacing=1")[2]["k"], fc.structure_factor(fields).k)

    @pytest.mark.parametrize(
        ("coordinates", "message"),
        [
            ({"y": np.arange(8) ** 2.0}, "spacing: the coordinates of 'y' are not even"),
            ({"y": np.full(8, np.nan)}, "spacing: the coordinates of 'y' are not even"),
            ({"y": np.arange(8), "x": 0.5 * np.arange(8)}, "spacing: the coordinates have 1 along 'y', 0.5 along 'x'"),
            ({"x": 0.5 * np.arange(8)}, "spacing: only 'x' of the axes"),
            ({"x": np.datetime64("2020-01-01") + np.arange(8)}, "spacing: the coordinates of 'x' are of type datetime"),
        ],
        ids=["uneven", "nan", "two distances", "one axis", "dates"],
    )
    def test_that_give_no_distance_are_refused_with_what_to_pass(self, fields, coordinates, message):
        array = xr.DataArray(fields, dims=DIMS, coords=coordinates)
        for of in FUNCTIONS.values():
            with pytest.raises(ValueError, match=f"{message}.*pass spacing="):
                of(array)
            np.testing.assert_allclose(of(array, spacing=1.0), of(fields))

    def test_of_even_numbers_in_float32_far_from_zero_are_even(self, fields):
        at = (1000 + 0.1 * np.arange(8)).astype(np.float32)  # differences between 0.0999756 and 0.1000366
        array = xr.DataArray(fields, dims=DIMS, coords={"y": at, "x": at})
        # The ends are off by at most half an ulp of 1000, 3e-5 each, of a distance of 0.7.
        np.testing.assert_allclose(fc.structure_factor(array).k, fc.structure_factor(fields, spacing=0.1).k, rtol=1e-4)


class TestImages:
    RGB = np.random.default_rng(0).integers(0, 255, (6, 12, 12, 3)).astype(np.uint8)

    @pytest.mark.parametrize(
        "images",
        [RGB, RGB[..., :1], RGB[0], RGB[0, ..., :1], RGB[:, :, :10], RGB / 255, RGB[0] / 255, RGB[0, :, :9] / 255,
         list(RGB), torch.from_numpy(RGB), torch.from_numpy(RGB / 255), np.concatenate([RGB, RGB[..., :1]], -1)],
        ids=["rgb", "grey", "one", "one grey", "oblong", "float", "one float", "one float oblong", "list", "tensor",
             "float tensor", "rgba"],
    )  # fmt: skip
    def test_with_their_channels_last_are_refused(self, images):
        for of in FUNCTIONS.values():
            with pytest.raises(ValueError, match=r"looks like images whose . channels are the last axis.*moveaxis"):
                of(images)

    def test_are_taken_by_name_or_turned(self, tmp_path):
        S = fc.structure_factor(np.moveaxis(self.RGB, -1, 1)).S
        named = xr.DataArray(self.RGB, dims=(*DIMS, "channel"))
        np.testing.assert_allclose(fc.structure_factor(named).S, S)
        np.save(tmp_path / "rgb.npy", self.RGB)
        with pytest.raises(ValueError, match="--dims sample,y,x,channel"):
            fc.analyze(tmp_path / "rgb.npy")
        _, error, _ = command(tmp_path / "rgb.npy")
        assert "--dims sample,y,x,channel" in error
        found = command(tmp_path / "rgb.npy", "--dims=sample,y,x,channel")[2]["levels"][0]["S"]
        np.testing.assert_allclose(found, S.mean(axis=0), rtol=1e-6)

    def test_strips_are_no_images(self, rng):
        y = rng.standard_normal((20, 4, 10, 3))  # 4 channels of 10 x 3 sites
        assert fc.structure_factor(y).S.shape[0] == 4
        assert fc.structure_factor(rng.standard_normal((20, 10, 4))).n_samples == 20
        strip = xr.DataArray(rng.standard_normal((10, 10, 3)), dims=DIMS)
        assert fc.structure_factor(strip).n_samples == 10
