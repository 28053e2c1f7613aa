"""Figures: every function of fc.plot draws the numbers of its dataset, of fields or of channels, where it is told."""

from __future__ import annotations

import json
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import fastcrit as fc
from fastcrit import plot

LEVELS = fc.schedules.log_levels(9, high=20.0, low=0.2)
SHELLS = range(6)
FIGURES = [name for name in plot.__all__ if name != "save_figures"]
# What each curve of a figure of one field is of; of shells the figures show 0, 3 and 5.
DRAWN = {
    "structure_factors": "S",
    "lengths": "xi_efold",
    "gains": "gain_on_trajectories",
    "drift_rates": "drift_rate",
    "softening": "softening",
    "deficits": "response_deficit",
    "order_parameter": "chi",
    "locality": "response_length",
}


def recorded(channels):
    """White noise with gains at every second level, and all else that a study may add; ``channels`` 0: one field."""
    rng = np.random.default_rng(channels)
    shape = (channels, 12, 12) if channels else (12, 12)
    rec = fc.Recorder(LEVELS, shape, gain_shells=SHELLS, blocks=8, binarized=True)
    for i, s in enumerate(LEVELS):
        x = rng.standard_normal((40, *shape))
        rec.update(i, x + s * rng.standard_normal(x.shape), denoised=x)
        if i % 2 == 0:
            rec.update_gain(i, 1 / (1 + s**2) + 0.1 * rng.standard_normal((16, len(SHELLS))))
    ds = rec.dataset()
    gain = ds["gain_on_trajectories"]
    ds["response_deficit"] = 1 - gain * (1 + ds["level"] ** 2)
    ds["response_deficit_stderr"] = 0.1 + 0 * gain
    ds["forward_response_deficit"] = 0.1 + ds["response_deficit"]
    gap = np.exp(-(np.log(LEVELS / 3)[:, None] ** 2)) / np.array([1, 3, 7])
    for name, value in (("locality_gap", gap), ("locality_gap_gaussian", 0.5 * gap)):
        ds[name] = ("level", "radius"), value
    ds["locality_gap_stderr"] = 0.1 * ds["locality_gap"]
    for name in ("class_rate", "response_length"):
        ds[name], ds[f"{name}_stderr"] = ("level", gap[:, 0]), ("level", 0.1 * gap[:, 0])
    peak = {"level": 3.0, "level_low": 2.5, "level_high": 3.5, "low": 1.5, "high": 6.0, "value": 0.3, "stderr": 0.03}
    ds.attrs["locality_peaks"] = json.dumps({"gap": peak, "class": peak})
    ds = ds.assign_coords(radius=[1, 3, 7])
    dims = ("strip_level", "sample", *(["channel"] if channels else []), "y", "x")
    for name in ("states", "denoised"):
        ds[name] = dims, rng.standard_normal((3, 2, *shape))
    return ds.assign_coords(strip_level=[20.0, 2.0, 0.2]).assign_attrs(title="noise")


def experiment():
    """A guidance experiment with four pulses, no network behind it."""
    plain = ["none", "none, the pulses' steps", "constant", "constant, a pulse's dose", "interval"]
    top1 = np.random.default_rng(0).random((9, 50)) < np.linspace(0.3, 0.9, 9)[:, None]
    share = np.array([0.2, 0.5, 0.9])
    return xr.Dataset(
        {
            "top1": (("arm", "sample"), top1.astype(float)), "entropy_rate": ("level", share),
            "entropy_rate_low": ("level", share - 0.1), "entropy_rate_high": ("level", share + 0.1),
            "retained": ("back_level", share), "retained_low": ("back_level", share - 0.1),
            "retained_high": ("back_level", share + 0.1),
        },
        {"arm": [*plain, *(f"pulse {i}" for i in range(4))], "center": ("arm", [*[np.nan] * 5, 9.0, 3.0, 1.0, 0.3]),
         "level": [9.0, 1.0, 0.1], "back_level": [9.0, 1.0, 0.1]},
        {"config": json.dumps({"study": "guidance"}), "title": "guidance of a network",
         "pulses": json.dumps({"sweep": [0, 2], "random": [1, 3], "softening": [2]}),
         "critical": json.dumps({"softening": {"level": 1.1, "low": 0.8, "high": 1.5}})},
    )  # fmt: skip


@pytest.fixture(scope="module")
def datasets():
    return {"field": recorded(0), "channels": recorded(3)}


@pytest.fixture(scope="module")
def guidance():
    return experiment()


def curves(axes):
    """Values of all curves, each as it is drawn."""
    return [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]


class TestEveryFigure:
    @pytest.mark.parametrize("kind", ["field", "channels"])
    @pytest.mark.parametrize("name", FIGURES)
    def test_is_made_where_no_axes_are_given(self, datasets, guidance, kind, name):
        ds = guidance if name == "alignment" else datasets[kind]
        figure = getattr(plot, name)(ds)
        assert isinstance(figure, Figure)
        assert all(axes.has_data() for axes in figure.axes[:2])
        titles = [axes.get_title() for axes in figure.axes] + [figure.get_suptitle()]
        assert any(title.endswith(f"\n{ds.attrs['title']}") for title in titles)

    @pytest.mark.parametrize("kind", ["field", "channels"])
    @pytest.mark.parametrize("name", [name for name in FIGURES if name != "states"])
    def test_is_drawn_into_the_axes_that_are_given(self, datasets, guidance, kind, name):
        figure = Figure()
        part = figure.subfigures(1, 2)[1]
        left, right = part.subplots(1, 2)
        assert getattr(plot, name)(guidance if name == "alignment" else datasets[kind], axes=right) is figure
        assert right.has_data()
        assert right.get_title()
        assert not left.has_data()

    @pytest.mark.parametrize("name", DRAWN)
    def test_shows_the_numbers_of_its_dataset(self, datasets, name):
        ds = datasets["field"]
        axes = getattr(plot, name)(ds).axes[0]
        values = ds[DRAWN[name]].values
        expected = [values]
        if "shell" in ds[DRAWN[name]].dims:  # where gains were taken
            expected = [values[::2, j] for j in (0, 3, 5)]
        elif name == "structure_factors":  # k = 0 is left out
            expected = list(values[:, 1:])
        elif name == "lengths":  # gaps where a length is not known to its own size
            expected = [np.where(ds["xi_efold_stderr"] < ds["xi_efold"], values, np.nan)]
        for curve in expected:
            assert any(curve.shape == drawn.shape and np.array_equal(curve, drawn, True) for drawn in curves(axes))

    @pytest.mark.parametrize("name", [name for name in FIGURES if name not in ("structure_factors", "states")])
    def test_over_levels_runs_from_noise_to_image(self, datasets, guidance, name):
        axes = getattr(plot, name)(guidance if name == "alignment" else datasets["field"]).axes[-1]
        left, right = axes.get_xlim()
        assert left > right > 0
        assert axes.get_xscale() == "log"


class TestChannels:
    def test_are_averaged(self, datasets):
        drawn = curves(plot.structure_factors(datasets["channels"]).axes[0])
        np.testing.assert_allclose(drawn, datasets["channels"]["S"].mean("channel").values[:, 1:], rtol=1e-12)

    def test_have_a_dotted_length_each(self, datasets):
        count = {
            kind: sum(line.get_linestyle() == ":" for line in plot.lengths(ds).axes[0].lines)
            for kind, ds in datasets.items()
        }
        assert count == {"field": 0, "channels": 3 * 3}  # lengths of the states by two ways, and of denoised images

    def test_three_are_a_picture_in_colours_and_two_their_first(self, datasets):
        ds = datasets["channels"]
        for channels, shape in ((3, (12, 12, 3)), (2, (12, 12))):
            figure = plot.states(ds.isel(channel=slice(channels)))
            assert {image.get_array().shape for axes in figure.axes for image in axes.images} == {shape}


class TestStates:
    def test_are_drawn_into_the_axes_that_are_given(self, datasets):
        figure = Figure()
        axes = figure.subplots(2, 3)
        assert plot.states(datasets["field"], axes=axes) is figure
        assert len(figure.axes) == 6
        y, D = (datasets["field"][name].values[1, 0] for name in ("states", "denoised"))
        limit = np.abs(datasets["field"]["denoised"].values).max()
        np.testing.assert_array_equal(axes[0, 1].images[0].get_array(), (y - y.min()) / np.ptp(y))
        np.testing.assert_array_equal(axes[1, 1].images[0].get_array(), (D + limit) / (2 * limit))
        assert axes[0, 1].get_title() == "s = 2"

    def test_need_as_many_axes_as_there_are_levels(self, datasets):
        with pytest.raises(ValueError, match=r"axes: expected an array \(2, 3\) of them, got \(2, 2\)"):
            plot.states(datasets["field"], axes=Figure().subplots(2, 2))
        with pytest.raises(ValueError, match=r"axes: expected an array \(2, 3\) of them, got \(\)"):
            plot.states(datasets["field"], axes=Figure().subplots())


class TestAlignment:
    def test_shows_every_arm(self, guidance):
        axes = plot.alignment(guidance).axes[0]
        share = guidance["top1"].values.mean(axis=1)
        drawn = curves(axes)
        assert any(np.array_equal(share[[5, 7]], curve) for curve in drawn)  # the sweep
        assert any(np.array_equal(share[[6, 8]], curve) for curve in drawn)  # at random
        labels = axes.get_legend_handles_labels()[1]
        assert {*map(str, guidance["arm"].values[:5]), "softening: 1.10"} <= set(labels)

    def test_shows_the_decision_below_where_there_is_one_and_room(self, guidance):
        assert len(plot.alignment(guidance).axes) == 3  # the decision has two scales
        assert len(plot.alignment(guidance.drop_vars("retained")).axes) == 1
        figure = Figure()
        plot.alignment(guidance, axes=figure.subplots())
        assert len(figure.axes) == 1


class TestCriticalLevels:
    def test_are_marked_with_their_interval(self, datasets):
        found = {"softening": {"name": "softening", "level": 3.0, "low": 2.0, "high": 4.0, "reason": ""}}
        missed = {"growth": {"name": "growth", "level": 9.0, "low": 8.0, "high": 9.5, "reason": "within noise"}}
        ds = datasets["field"].assign_attrs(
            critical_point=json.dumps({**found, **missed, "instability": {"reason": "not recorded"}}),
            theory_critical_level=5.0,
        )
        axes = plot.gains(ds).axes[0]
        labels = axes.get_legend_handles_labels()[1]
        assert {"softening: 3.00", "theory, y = 0: 5.00"} <= set(labels)
        assert not any("growth" in label for label in labels)
        upright = [line.get_xdata()[0] for line in axes.lines if len({*line.get_xdata()}) == 1 < len(line.get_xdata())]
        assert sorted(upright) == [3.0, 5.0]


class TestSaveFigures:
    @pytest.mark.parametrize(
        ("kind", "names"),
        [
            ("field", {*FIGURES} - {"alignment", "deficits"} | {"response_deficit"}),
            ("channels", {*FIGURES} - {"alignment", "deficits"} | {"response_deficit"}),
            ("without gains", {"structure_factors", "lengths", "order_parameter"}),
            ("guidance", {"alignment"}),
            ("nothing", set()),
        ],
    )
    def test_writes_those_that_there_are_data_for(self, datasets, guidance, kind, names, tmp_path):
        rec = fc.Recorder(LEVELS[:3], (12, 12))
        for i in range(3):
            rec.update(i, np.random.default_rng(i).standard_normal((10, 12, 12)))
        others = {"without gains": rec.dataset(lengths=("efold",)), "guidance": guidance, "nothing": xr.Dataset()}
        paths = plot.save_figures({**datasets, **others}[kind], tmp_path)
        assert {p.name for p in paths} == {f"{name}.{suffix}" for name in names for suffix in ("png", "svg")}
        assert sorted(paths) == sorted(tmp_path.iterdir())
        for path in paths:
            if path.suffix == ".png":
                assert path.read_bytes().startswith(b"\x89PNG")
            else:
                assert ElementTree.parse(path).getroot().tag.endswith("svg")

    def test_writes_the_same_svg_every_time(self, datasets, tmp_path):
        ds = datasets["field"][["chi", "chi_stderr", "binder", "binder_stderr"]]
        written = []
        for _ in range(2):
            plot.save_figures(ds, tmp_path)
            written.append((tmp_path / "order_parameter.svg").read_bytes())
        assert written[0] == written[1]


class TestRefusals:
    @pytest.mark.parametrize("name", FIGURES)
    def test_without_matplotlib_the_extra_is_named(self, datasets, guidance, name, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ModuleNotFoundError, match=r"needs matplotlib: pip install 'fastcrit\[plot\]'"):
            getattr(plot, name)(guidance if name == "alignment" else datasets["field"])

    @pytest.mark.parametrize("name", [name for name in DRAWN if name != "lengths"])  # which draws those that there are
    def test_what_is_not_in_the_dataset_is_named(self, datasets, name):
        """xarray says which variable is missing."""
        needed = "locality_gap" if name == "locality" else DRAWN[name]  # the length is drawn where there is one
        with pytest.raises(KeyError, match=needed):
            getattr(plot, name)(datasets["field"].drop_vars(needed))
