"""`fastcrit study imagenet` from a folder of every class of network that diffusers saves: what a user would record.

Remote code has no folder here, which test_folders.py says; two text models more are in test_prompts_study.py.
"""

from __future__ import annotations

import functools
import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

import fastcrit as fc
from fastcrit import plot, store
from fastcrit.cli import app
from fastcrit.diffusion import sample
from fastcrit.diffusion.network_classes import TABLE
from fastcrit.report import write_report
from fastcrit.studies import ImageNetStudy
from fastcrit.studies.labels import classes_but
from tests import test_prompts_study, text_pipelines
from tests.test_network_classes import CASES, built, wrapped
from tests.text_pipelines import NEGATIVE, PROMPTS

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

QUICK = {
    "samples": 6, "chunk": 6, "batch": 6, "levels": 5, "high": 10.0, "low": 0.5, "gain_share": 0.4, "gain_every": 4,
    "solver": "euler",
}  # fmt: skip
CLASSES = ("UNet2DModel of EDM", "UNet2DModel of consistency", "UNet1DModel", "DiTTransformer2DModel")
TEXT = (
    "stable_diffusion_xl", "pixart_sigma", "pixart_alpha", "flux", "aura_flow", "sana", "lumina_2"
)  # fmt: skip
# Random networks of flow matching do not know what noise is, and are told so.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*at the noise level:fastcrit.errors.ConventionWarning"),
    pytest.mark.filterwarnings("ignore:.*no posterior mean:fastcrit.errors.ConventionWarning"),  # consistency
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),  # torch's, of mish in UNet1DModel
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),  # numpy's, in diffusers' set_timesteps
]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Drawing takes longer than these runs. FluxPipeline's own states have 128 x 128 sites, whatever its network."""
    monkeypatch.setattr(plot, "save_figures", lambda ds, folder: [])
    made = diffusers.FluxPipeline.__init__

    def small(self, *args, **kwargs):
        made(self, *args, **kwargs)
        self.default_sample_size = 8

    small.__wrapped__ = made  # whose parameters diffusers asks for
    monkeypatch.setattr(diffusers.FluxPipeline, "__init__", small)


def finished(folder, out, **more):
    """The dataset that the command leaves."""
    given = [f"--{name.replace('_', '-')}={value}" for name, value in {**QUICK, **more}.items()]
    done = CliRunner().invoke(app, ["study", "imagenet", *given, f"--diffusers={folder}", f"--out={out}"])
    assert done.exit_code == 0, done.output
    return store.load_dataset(out / "dataset.zarr")


@contextmanager
def watched(kind):
    """What networks of a class are told of all samples together, call by call; not under derivatives."""
    forward, told = kind.forward, []

    @functools.wraps(forward)
    def noted(self, *args, **kwargs):
        known = kwargs.get("class_labels", kwargs.get("encoder_hidden_states"))
        state = kwargs.get("sample", kwargs.get("hidden_states"))
        together = known is not None and len(known) == QUICK["samples"]
        if together and not torch._C._functorch.is_functorch_wrapped_tensor(state):
            told.append(known.detach().clone())
        return forward(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "forward", noted)
        yield told


def assert_is_what_a_user_would_record(ds, D, labels):
    """Powers at all levels; and gains, which are finite where they were measured."""
    assert np.isfinite(ds["S"]).all()
    measured = ds["n_gains"].values > 0
    assert measured.tolist() == [True, False, False, False, True]
    assert np.isfinite(ds["softening"].values[measured]).all()
    rec = fc.Recorder(ds["level"].values, D.shape, ndim=len(D.shape) - 1, data_std=1.0)
    sample(D, labels, QUICK["samples"], ds["level"].values, QUICK["solver"], 0, rec)
    # Kernels of other sizes and numbers of threads round in float32.
    np.testing.assert_allclose(ds["S"], rec.dataset()["S"], rtol=2e-4)


@pytest.mark.parametrize("name", CLASSES)
def test_of_classes(name, tmp_path):
    net, case = built(name), CASES[name]
    net.save_pretrained(tmp_path / "model" / ("unet" if name.startswith("UNet") else "transformer"))
    case.scheduler().save_pretrained(tmp_path / "model" / "scheduler")
    with watched(type(net)) as told:
        ds = finished(tmp_path / "model", tmp_path / "run")
    D = wrapped(name, net)
    classes = classes_but(D.classes, D.null_label)
    labels = [j % classes for j in range(QUICK["samples"])] if classes else None
    assert [each.tolist() for each in told] == [labels] * (QUICK["levels"] if classes else 0)
    assert np.atleast_1d(ds.attrs["lattice"]).tolist() == list(case.shape[1:])
    assert_is_what_a_user_would_record(ds, D, labels)


@pytest.mark.parametrize("name", TEXT)
def test_of_prompts(name, tmp_path):
    pipe = getattr(text_pipelines, name)()
    pipe.save_pretrained(tmp_path / "model")
    pipe = type(pipe).from_pretrained(tmp_path / "model")  # tokenizers may be others once they were saved
    D = fc.diffusion.from_pipeline(pipe, PROMPTS, NEGATIVE)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    with watched(type(getattr(pipe, "transformer", None) or pipe.unet)) as told:
        ds = finished(tmp_path / "model", tmp_path / "run", prompts=tmp_path / "prompts.txt", negative=NEGATIVE)
    config = json.loads(ds.attrs["config"])
    assert (config["prompts"], config["conditioning"]) == (PROMPTS, D.card["prompts"]["sha256"])
    assert len(told) >= QUICK["levels"]
    for rows in told:  # sample j has prompt j mod 3
        assert all(torch.equal(rows[i], rows[j]) == (i % 3 == j % 3) for i in range(6) for j in range(6))
    assert_is_what_a_user_would_record(ds, D, np.arange(QUICK["samples"]) % 3)


def test_on_a_line_is_drawn_and_kept(tmp_path):
    """States of 2 x 16 sites were read as a lattice of 2 x 16."""
    built("UNet1DModel").save_pretrained(tmp_path / "model" / "unet")
    CASES["UNet1DModel"].scheduler().save_pretrained(tmp_path / "model" / "scheduler")
    study = ImageNetStudy(diffusers=str(tmp_path / "model"), **QUICK, save_states=True)
    ds = study.run(tmp_path / "run")
    assert dict(ds["states"].sizes) == {"strip_level": 5, "sample": 3, "channel": 2, "x": 16}
    with xr.open_zarr(tmp_path / "run" / "states.zarr") as kept:
        assert dict(kept["y"].sizes) == {"level": 5, "sample": 6, "channel": 2, "column": 16}
        np.testing.assert_allclose(kept["y"][:, :3], ds["states"], rtol=1e-4, atol=1e-3)
    figure = plot.states(ds)
    for j, name in enumerate(("states", "denoised")):
        lines = [line.get_ydata() for line in figure.axes[5 * j + 4].get_lines()]
        np.testing.assert_array_equal(lines, ds[name][4, 0])
    assert "16 sites" in write_report(tmp_path / "run").path.read_text()
    assert "trajectories on 2 x 16 sites" in (tmp_path / "run" / "summary.txt").read_text()


def test_no_class_of_diffusers_is_left_out():
    pipes = [getattr(text_pipelines, name)() for name in (*TEXT, *test_prompts_study.KINDS)]
    made = {type(getattr(pipe, "transformer", None) or pipe.unet).__name__ for pipe in pipes}
    made |= {type(built(name)).__name__ for name in CLASSES}
    assert made == {name for row in TABLE if not row.remote for name in row.names}
