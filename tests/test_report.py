"""The report: one page that opens offline, says what the dataset says, and works in a browser."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil

import netCDF4
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import fastcrit as fc
from fastcrit import plot, store
from fastcrit.cli import app
from fastcrit.diffusion import Net, NetConfig, save_net
from fastcrit.report import words, write_report
from fastcrit.studies import FashionMnistStudy, GuidanceStudy, ImageNetStudy, PatchStudy
from fastcrit.studies.fashion_mnist import run_all
from fastcrit.studies.guidance.verdict import ARMS, AT_LEVELS, SWEEP, sentences
from tests.networks import edm2_pickle

LARGEST = 8e6
PANELS = {"patch": 7, "network": 8, "guidance": 3, "large": 4, "several": 20}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of each kind, and a folder of two networks; without figures, which no page needs."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plot, "save_figures", lambda ds, folder: [])
        fill(root)
    return root


def fill(root):
    PatchStudy(patterns=0, lattice=24, samples=40, levels=16, substeps=2).run(root / "patch")
    nets = []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = Net(NetConfig(width=4, multipliers=(1, 2)))
            for weights in net.parameters():  # fresh networks only scale their input
                torch.nn.init.normal_(weights, std=0.3)
        nets.append(root / f"net-{seed}.safetensors")
        save_net(nets[-1], net, {"training": {"label_dropout": 0.2}})
    quick = {"samples": 20, "levels": 9, "high": 20.0, "low": 0.1, "gain_samples": 8, "blocks": 8}
    run_all({str(net): FashionMnistStudy(net=str(net), **quick) for net in nets}, root / "several")
    GuidanceStudy(
        str(root / "several" / "net-0"), samples=30, steps=12, high=20.0, low=0.1, guided_steps=2, centres=4,
        random_centres=3, decision_samples=6, chunk=30,
    ).run(root / "guidance")  # fmt: skip
    ImageNetStudy(
        edm2_pickle(root / "net.pkl", side=140), trust_pickle=True, samples=8, chunk=4, levels=9, high=20.0, low=0.1
    ).run(root / "large")  # fmt: skip
    shutil.copytree(root / "several" / "net-0", root / "network")


@pytest.fixture(scope="module")
def pages(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("reports")
    return {kind: write_report(runs / kind, out / f"{kind}.html").path for kind in PANELS}


def download(page, suffix):
    """Content of the page's first download of that name's end."""
    data = re.search(rf'download="[^"]*{re.escape(suffix)}" href="data:[^,"]*,([^"]*)"', page)[1]
    return base64.b64decode(data)


class TestPage:
    @pytest.mark.parametrize("kind", PANELS)
    def test_is_one_small_file_that_fetches_nothing(self, pages, kind):
        page = pages[kind].read_text()
        assert pages[kind].stat().st_size < LARGEST
        assert not re.findall(r'(?:src|href)="(?!data:)', page)
        assert "@import" not in page
        assert page.count('id="plotly"') == 1

    @pytest.mark.parametrize("kind", PANELS)
    def test_every_figure_has_words_for_who_cannot_see_it_and_how_to_read_it(self, pages, kind):
        page = pages[kind].read_text()
        alts = re.findall(r'class="plot" role="img" aria-label="([^"]{40,})"', page)
        assert len(alts) == page.count('class="plot"') == PANELS[kind]
        assert page.count("How to read this") == PANELS[kind] + page.count('class="panel strip"')

    @pytest.mark.parametrize("kind", ["patch", "network", "guidance", "large"])
    def test_says_what_was_run(self, runs, pages, kind):
        page = pages[kind].read_text()
        for key, value in json.loads((runs / kind / "config.json").read_text()).items():
            if not isinstance(value, dict):
                assert f"<dt>{key}</dt>" in page
            if isinstance(value, int):
                assert f"<dt>{key}</dt><dd>{value}</dd>" in page
        assert "<dt>begun</dt><dd>20" in page
        assert f"fastcrit {fc.__version__}, Python 3" in page

    def test_holds_the_dataset(self, runs, pages):
        ds = store.load_dataset(runs / "network" / "dataset.zarr")
        page = pages["network"].read_text()
        with netCDF4.Dataset("in memory", memory=download(page, ".nc")) as file:
            assert set(file.variables) == set(map(str, ds.variables))
            np.testing.assert_array_equal(file["S"][:].filled(np.nan), ds.S.values)
        table = pd.read_csv(io.BytesIO(download(page, "-level-shell.csv")))
        np.testing.assert_allclose(table.softening, ds.softening.values.ravel(), rtol=1e-6)
        by_level = pd.read_csv(io.BytesIO(download(page, "-level.csv")))
        np.testing.assert_allclose(by_level.chi, ds.chi, rtol=1e-6)

    def test_a_large_dataset_loses_replicates_and_says_so(self, runs, tmp_path, monkeypatch):
        monkeypatch.setattr("fastcrit.report.page._LARGEST_NETCDF", 1000)
        page = write_report(runs / "patch", tmp_path / "small.html").path.read_text()
        assert "without jackknife replicates and states, netCDF" in page
        with netCDF4.Dataset("in memory", memory=download(page, ".nc")) as file:
            assert "S" in file.variables
            assert not {"chi_jackknife", "states"} & set(file.variables)

    def test_text_from_a_run_is_escaped(self, runs, tmp_path):
        ds = store.load_dataset(runs / "patch" / "dataset.zarr").assign_attrs(title="<script>alert(1)</script>")
        (tmp_path / "run").mkdir()
        shutil.copy(runs / "patch" / "config.json", tmp_path / "run")
        store.save_dataset(ds, tmp_path / "run" / "dataset.zarr")
        page = write_report(tmp_path / "run").path.read_text()
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert(1)" in page


class TestWords:
    @staticmethod
    def of(**found):
        nothing = {"level": None, "low": None, "high": None, "reason": "prominence within noise"}
        critical = {name: {"name": name, **nothing} for name in ("softening", "xi_eq", "growth", "susceptibility")}
        for name, (level, low, high) in found.items():
            critical[name] = {"name": name, "level": level, "low": low, "high": high, "reason": ""}
        return xr.Dataset(attrs={"critical_point": json.dumps(critical)})

    def test_of_a_transition(self):
        said = words.verdict(self.of(softening=(3.0, 2.5, 3.5), xi_eq=(1.5, 1.0, 2.0)))
        assert said[0] == "On trajectories modes are softest at noise level s = 3.00 (95 % interval 2.50 to 3.50)."
        assert said[1] == "The equilibrium correlation length is largest at s = 1.50 [1.00, 2.00]."
        assert said[2].startswith("No transition shows in growth (prominence within noise) or in susceptibility")
        assert said[3] == "The levels found lie within a factor of 2.00, and their intervals do not all overlap."

    def test_of_none(self):
        assert words.verdict(self.of())[0].startswith("No transition")
        rows = words.critical_rows(self.of())
        assert [row["about"] for row in rows] == ["no transition: prominence within noise"] * 4

    def test_of_a_guidance_experiment_say_first_what_it_asks(self, runs):
        ds = store.load_dataset(runs / "guidance" / "dataset.zarr")
        said, kept = words.verdict(ds), sentences(ds)
        assert sorted(said) == sorted(text for _, text in kept)
        assert " ".join(text for _, text in kept) == ds.attrs["verdict"]
        assert said[0] == next((text for role, text in kept if role == AT_LEVELS), kept[0][1])

    def test_of_several_pulses_at_critical_levels_keep_their_order(self):
        said = [(ARMS, "80 %."), (AT_LEVELS, "At a. Better."), (SWEEP, "s = 4.5."), (AT_LEVELS, "At b."), ("new", "x.")]
        attrs = {"verdict": "as one", "verdict_sentences": json.dumps(said)}
        assert words.verdict(xr.Dataset(attrs=attrs)) == ["At a. Better.", "At b.", "80 %.", "s = 4.5.", "x."]

    def test_of_an_older_guidance_experiment_are_its_paragraph(self):
        text = "30 samples an arm. At the level of softening (3.27) better. Of the sweep, s = 4.53."
        assert words.verdict(xr.Dataset(attrs={"verdict": text})) == [text]

    def test_of_several_runs(self):
        said = words.comparison(
            {"a": self.of(softening=(3.0, 2.5, 3.5)), "b": self.of(softening=(4.0, 3.6, 4.4)), "c": self.of()}
        )
        together = "in 2 of 3 runs, at s = 3.00 to 4.00; their 95 % intervals do not all overlap."
        assert said[0] == f"Softening: {together}"
        assert said[1] == "Xi_eq: no transition in any run."


def test_runs_without_gains_are_compared(runs, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(runs / "large", tmp_path / name)
    shutil.copytree(runs / "patch", tmp_path / "c")
    assert len(write_report(tmp_path).runs) == 3


class TestCommandLine:
    def test_writes_beside_the_run_and_never_over_a_report(self, runs, tmp_path, capsys):
        run = tmp_path / "run"
        shutil.copytree(runs / "patch", run)
        app(["report", str(run)], standalone_mode=False)
        assert capsys.readouterr().out.startswith(f"{run / 'report.html'}: run (")
        written = (run / "report.html").read_text()
        (run / "report.html").write_text("mine")
        with pytest.raises(FileExistsError, match=r"report\.html exists already; --force"):
            app(["report", str(run)], standalone_mode=False)
        assert (run / "report.html").read_text() == "mine"
        app(["report", str(run), "--force"], standalone_mode=False)
        made = re.compile("Made .* with")
        assert made.sub("", (run / "report.html").read_text()) == made.sub("", written)
        assert not [p for p in run.iterdir() if p.name.startswith(".")]

    def test_runs_that_are_not_finished_are_named_and_end_in_1(self, runs, tmp_path, capsys):
        shutil.copytree(runs / "several", tmp_path / "runs")
        shutil.rmtree(tmp_path / "runs" / "net-1" / "dataset.zarr")
        assert app(["report", str(tmp_path / "runs")], standalone_mode=False) == 1
        assert capsys.readouterr().err == "left out, not finished: net-1\n"
        assert "not finished: net-1" in (tmp_path / "runs" / "report.html").read_text()

    def test_refuses_what_is_not_a_finished_run(self, runs, tmp_path):
        (tmp_path / "begun").mkdir()
        (tmp_path / "begun" / "config.json").write_text("{}")
        (tmp_path / "empty").mkdir()
        for name, message in (
            ("begun", r"run: the study in .* is not finished; its command with --resume goes on"),
            ("empty", "run: expected the folder of a finished study, or one that holds some"),
            ("missing", "run: there is no folder"),
        ):
            with pytest.raises(FileNotFoundError, match=message):
                write_report(tmp_path / name)
        with pytest.raises(FileNotFoundError, match="out: there is no folder"):
            write_report(runs / "patch", tmp_path / "nowhere" / "report.html")
        shutil.copytree(runs / "patch", tmp_path / "damaged")
        next((tmp_path / "damaged" / "dataset.zarr" / "S").glob("[0-9]*")).write_bytes(b"x")
        with pytest.raises(fc.FileFormatError, match=r"dataset\.zarr: damaged"):
            write_report(tmp_path / "damaged")
        assert not (tmp_path / "damaged" / "report.html").exists()


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium: $FASTCRIT_TEST_BROWSER, which has to be there, or one that the system has."""
    path = os.environ.get("FASTCRIT_TEST_BROWSER") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium here (CI has one)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium refuses its sandbox to root, whom containers run as.
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, pages):
    """Opens a report offline; whatever the page logs, throws or asks of the network fails the test."""
    complaints = []
    contexts = []

    def visit(kind, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or complaints.append(r.url))
        page.goto(pages[kind].as_uri())
        page.wait_for_function("typeof Plotly !== 'undefined'")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


def draw_all(page):
    """Scroll through the page, so that every figure is drawn; how many are."""
    for figure in page.locator(".plot:visible").all():
        figure.scroll_into_view_if_needed()
        figure.locator(".main-svg").first.wait_for()
    return page.locator(".plot:visible").count()


class TestInABrowser:
    @pytest.mark.parametrize("kind", ["patch", "network", "guidance", "large"])
    def test_every_figure_is_drawn(self, opened, kind):
        page = opened(kind)
        assert draw_all(page) == PANELS[kind]
        assert page.locator(".plot .plot-container").count() == PANELS[kind]

    @pytest.mark.parametrize("kind", ["patch", "network", "large"])
    def test_the_slider_changes_the_picture(self, opened, kind):
        page = opened(kind)
        pictures = "[...document.querySelectorAll('.frames canvas')].map((c) => c.toDataURL())"
        last, said = page.evaluate(pictures), page.locator(".strip output").text_content()
        page.locator(".strip input").press("Home")
        first = page.evaluate(pictures)
        assert all(a != b for a, b in zip(first, last, strict=True))
        assert page.locator(".strip output").text_content() != said
        page.locator(".film canvas").last.click()
        assert page.evaluate(pictures) == last
        assert "at noise level" in page.locator("canvas.states").get_attribute("aria-label")

    def test_the_picture_is_the_state(self, runs, opened):
        ds = store.load_dataset(runs / "network" / "dataset.zarr")
        page = opened("network")
        pixels = page.evaluate(
            "[...document.querySelector('canvas.states').getContext('2d').getImageData(0, 0, 28, 28).data]"
        )
        y = ds.states.values[-1, 0]
        expected = np.round(255 * (y - y.min()) / (y.max() - y.min()))
        np.testing.assert_allclose(np.reshape(pixels, (28, 28, 4))[..., 0], expected, atol=1)

    def test_the_picture_of_channels_is_in_colours(self, runs, opened):
        ds = store.load_dataset(runs / "large" / "dataset.zarr")
        assert ds.states.dims == ("strip_level", "sample", "channel", "y", "x")
        page = opened("large")
        assert "One site in 2 of a line is shown" in page.locator(".strip aside").text_content()
        pixels = page.evaluate(
            "[...document.querySelector('canvas.denoised').getContext('2d').getImageData(0, 0, 70, 70).data]"
        )
        D = ds.denoised.values[..., ::2, ::2]
        expected = np.moveaxis(np.round(255 * (D[-1, 0] / np.abs(D).max() + 1) / 2), 0, -1)
        np.testing.assert_allclose(np.reshape(pixels, (70, 70, 4))[..., :3], expected, atol=1)

    def test_the_theme_follows_the_system_and_the_button(self, opened):
        look = "getComputedStyle(document.documentElement).backgroundColor"
        ink = "document.querySelector('.plot .xtitle').style.fill"
        seen = {}
        for scheme in ("light", "dark"):
            page = opened("patch", scheme=scheme)
            draw_all(page)
            seen[scheme] = (page.evaluate(look), page.evaluate(ink))
            page.locator("#theme").click()
            page.wait_for_function(
                "(old) => document.querySelector('.plot .xtitle').style.fill !== old", arg=seen[scheme][1]
            )
            seen[f"not {scheme}"] = (page.evaluate(look), page.evaluate(ink))
        assert seen["light"] == seen["not dark"]
        assert seen["dark"] == seen["not light"]
        assert seen["light"][0] != seen["dark"][0]

    @pytest.mark.parametrize("kind", PANELS)
    def test_nothing_is_wider_than_a_phone(self, opened, kind):
        page = opened(kind, width=390)
        draw_all(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 390

    def test_several_runs_are_a_click_apart(self, opened):
        page = opened("several")
        assert page.locator("article.run:visible h2").text_content() == "network net-0.safetensors for Fashion-MNIST"
        page.locator("[role=tab]").last.click()
        assert page.locator("article.run:visible h2").text_content() == "network net-1.safetensors for Fashion-MNIST"
        assert draw_all(page) == 12

    def test_hovering_shows_the_value(self, opened):
        page = opened("patch")
        plot = page.locator(".plot").nth(2)
        plot.scroll_into_view_if_needed()
        plot.locator(".scatterlayer .point").first.wait_for()
        plot.locator(".scatterlayer .point").nth(4).hover(force=True)
        page.wait_for_function("document.querySelectorAll('.hoverlayer .hovertext').length > 0")

    def test_downloads_are_files(self, opened, tmp_path):
        page = opened("patch")
        with page.expect_download() as waiting:
            page.locator(".downloads a").first.click()
        waiting.value.save_as(tmp_path / "patch.nc")
        assert waiting.value.suggested_filename == "patch.nc"
        with xr.open_dataset(tmp_path / "patch.nc") as ds:
            assert "S" in ds
