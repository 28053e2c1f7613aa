"""Guidance weights and the guided denoiser: against EDM2's and diffusers' rules, with evaluations counted by hooks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fastcrit as fc
from fastcrit.diffusion import Constant, Interval, Probe, Pulse, guided
from tests.networks import Edm2Contract

LEVELS = fc.schedules.EDM().levels(32)


@pytest.fixture
def nets():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Edm2Contract(channels=1).eval(), Edm2Contract(channels=1).eval()


@pytest.fixture
def pair(nets):
    return fc.diffusion.from_edm(nets[0]), fc.diffusion.from_edm(nets[1], unlabelled=True)


class TestWeights:
    def test_interval_is_open_below_and_closed_above_on_edm2s_grid(self):
        # Kynkaanniemi et al.: (sigma_lo, sigma_hi], here with ends that are levels of the grid themselves.
        low, high = LEVELS[20], LEVELS[11]
        weights = Interval(low, high, 2.0)(LEVELS)
        assert np.flatnonzero(weights == 2.0).tolist() == list(range(11, 20))
        assert (weights[[10, 20]] == 1.0).all()

    def test_a_pulse_of_full_width_is_constant_and_of_none_is_no_guidance(self):
        for shape in ("box", "gaussian"):
            np.testing.assert_array_equal(Pulse(1.0, 0.0, 4.0, shape)(LEVELS), 1.0)
        np.testing.assert_array_equal(Pulse(1.0, 100.0, 4.0)(LEVELS), Constant(4.0)(LEVELS))
        np.testing.assert_allclose(Pulse(1.0, 1e9, 4.0, "gaussian")(LEVELS), 4.0)

    def test_a_pulse_is_even_in_log_s_with_its_width_at_half_maximum(self):
        pulse = Pulse(2.0, 0.6, 5.0, "gaussian")
        assert pulse(2.0) == 5.0
        for sign in (-1, 1):
            assert pulse(2.0 * np.exp(sign * 0.3)) == pytest.approx(3.0)
        box = Pulse(2.0, 0.6, 5.0)
        assert [box(2.0 * np.exp(x)) for x in (-0.31, -0.29, 0.29, 0.31)] == [1, 5, 5, 1]

    def test_sums_and_products_act_level_by_level(self):
        both = 0.5 * Constant(3.0) + Pulse(1.0, 1.0, 2.0) * Interval(0.5, 5.0, 3.0)
        expected = 1.5 + Pulse(1.0, 1.0, 2.0)(LEVELS) * Interval(0.5, 5.0, 3.0)(LEVELS)
        np.testing.assert_allclose(both(LEVELS), expected)
        assert isinstance(both(1.0), float)

    def test_bad_values_are_named(self):
        for make, message in (
            (lambda: Pulse(-1.0, 1.0, 2.0), "center: expected a positive"),
            (lambda: Pulse(1.0, -1.0, 2.0), "width: expected a number >= 0"),
            (lambda: Pulse(1.0, 1.0, 2.0, "sine"), "shape: expected one of"),
            (lambda: Interval(2.0, 1.0, 2.0), "low, high: expected 0 <= low < high"),
            (lambda: Constant(np.nan), "weight: expected a finite number, got nan"),
            (lambda: Interval(1.0, 2.0, np.inf), "weight: expected a finite number, got inf"),
            (lambda: Pulse(1.0, 1.0, np.nan), "weight: expected a finite number, got nan"),
            (lambda: Pulse(1.0, np.inf, 2.0), "width: expected a finite number, got inf"),
            (lambda: Pulse(np.nan, 1.0, 2.0), "center: expected a positive"),
        ):
            with pytest.raises(ValueError, match=message):
                make()


class TestGuided:
    def test_is_edm2s_lerp_and_diffusers_rule(self, nets, pair):
        y, labels = torch.randn(3, 1, 8, 8), torch.eye(5)[[0, 2, 4]]
        sigma = torch.tensor(1.5)
        with torch.no_grad():
            main, ref = nets[0](y, sigma, labels, force_fp32=True), nets[1](y, sigma, None, force_fp32=True)
            D = guided(*pair, Constant(2.5))(y, 1.5, [0, 2, 4])
        torch.testing.assert_close(D, ref.lerp(main, 2.5), rtol=0, atol=0)
        torch.testing.assert_close(D, ref + 2.5 * (main - ref), rtol=1e-5, atol=1e-6)

    def test_every_state_has_the_weight_of_its_own_level(self, pair):
        y, s = torch.randn(4, 1, 8, 8), torch.tensor([0.5, 1.0, 2.0, 4.0])
        D = guided(*pair, Pulse(2.0, 0.5, 3.0))
        whole = D(y, s, 1)
        for i in range(4):
            torch.testing.assert_close(whole[i : i + 1], D(y[i : i + 1], float(s[i]), 1))

    @pytest.mark.parametrize("solver", ["euler", "heun", "sde", "dpmpp-2m"])
    def test_counts_what_hooks_on_the_networks_see(self, nets, pair, solver):
        seen = []
        for net in nets:
            net.register_forward_pre_hook(lambda net, args: seen.append((net, len(args[0]))))
        weight = Interval(0.3, 5.0, 2.0)
        D = guided(*pair, weight)
        fc.diffusion.sample(D, 0, 5, LEVELS, solver, batch_size=3)
        assert D.evaluations == sum(n for _, n in seen)
        evaluations = 2 * (len(LEVELS) - 1) if solver == "heun" else len(LEVELS) - 1
        guided_steps = int((weight(LEVELS[:-1]) != 1).sum())
        assert sum(n for net, n in seen if net is nets[0]) == 5 * evaluations
        assert sum(n for net, n in seen if net is nets[1]) == 5 * guided_steps * (2 if solver == "heun" else 1)

    def test_the_weight_is_held_over_both_evaluations_of_a_heun_step(self, nets):
        levels = np.array([4.0, 2.0, 1.0])
        labels, z = torch.eye(5)[[1, 1]], torch.randn(2, 1, 8, 8, dtype=torch.float64)

        def step(y, s, t, w):
            def denoise(y, level):
                sigma = torch.tensor(level)
                main, ref = nets[0](y, sigma, labels, force_fp32=True), nets[1](y, sigma, None, force_fp32=True)
                return ref.lerp(main, w).double()

            slope = (y - denoise(y, s)) / s
            end = y + (t - s) * slope
            return y + (t - s) * (slope + (end - denoise(end, t)) / t) / 2

        with torch.no_grad():
            expected = step(step(z, 4.0, 2.0, 1.0), 2.0, 1.0, 3.0)
        D, other = fc.diffusion.from_edm(nets[0]), fc.diffusion.from_edm(nets[1], unlabelled=True)
        y = fc.diffusion.sample(
            D, 1, 2, levels, "heun", guidance=Pulse(2.0, 0.1, 3.0), unguided=other, initial=z, dtype=torch.float64
        )
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)

    def test_the_same_net_guides_itself_where_it_was_trained_without_labels(self, nets, pair):
        D = fc.diffusion.from_edm(nets[0], unlabelled=True)
        y = torch.randn(2, 1, 8, 8)
        expected = D(y, 1.0) + 2.0 * (D(y, 1.0, 3) - D(y, 1.0))
        torch.testing.assert_close(guided(D, None, Constant(2.0))(y, 1.0, 3), expected)
        with pytest.raises(ValueError, match=r"unguided: .* is conditional"):
            guided(pair[0], None, Constant(2.0))
        with pytest.raises(ValueError, match=r"unguided: .* is conditional"):
            guided(pair[0], pair[0], Constant(2.0))
        with pytest.raises(TypeError, match="weight: expected a Weight, got float"):
            guided(D, None, 2.0)
        with pytest.raises(ValueError, match="unguided: given without guidance"):
            fc.diffusion.sample(D, 0, 2, LEVELS, unguided=D)

    @pytest.mark.parametrize("weight", [Constant(7.5), Interval(0.3, 5.0, 2.0), Pulse(1.0, 1.0, 2.0)])
    def test_that_would_do_nothing_is_refused(self, nets, weight):
        """A prompt inside a function, or no labels: twice the evaluations, and the same result."""

        def prompted(x, s):
            return torch.tanh(x)

        D = fc.diffusion.from_denoiser(prompted, shape=(1, 8, 8))
        for unguided in (None, D):
            with pytest.raises(
                ValueError, match="unguided: prompted takes no labels, so that guided by itself it stays"
            ):
                guided(D, unguided, weight)
            with pytest.raises(ValueError, match="unguided: prompted takes no labels"):
                fc.diffusion.sample(D, n_samples=2, levels=LEVELS, guidance=weight, unguided=unguided)
        with pytest.raises(ValueError, match="unguided: prompted is the network of D, called alike"):
            guided(D, fc.diffusion.from_denoiser(prompted), weight)
        other = fc.diffusion.from_denoiser(lambda x, s: 0.5 * x)
        guided(D, other, weight)(torch.zeros(1, 1, 8, 8), 1.0)  # another prompt, or none

        labelled = fc.diffusion.from_edm(nets[0], unlabelled=True)
        with pytest.raises(ValueError, match=r"labels: .* is guided by itself without labels, and got none"):
            guided(labelled, None, weight)(torch.zeros(1, 1, 8, 8), 1.0)
        with pytest.raises(ValueError, match=r"labels: .* is guided by itself without labels, and got none"):
            fc.diffusion.sample(labelled, None, 2, LEVELS, guidance=weight)
        unlabelled = fc.diffusion.from_edm(nets[0], unlabelled=True)  # the network again, this time without labels
        guided(labelled, unlabelled, weight)(torch.zeros(1, 1, 8, 8), 1.0, 3)
        with pytest.raises(ValueError, match="is the network of D, called alike"):
            guided(fc.diffusion.from_edm(nets[0]), fc.diffusion.from_edm(nets[0]), weight)

    def test_towards_the_label_that_stands_for_none_is_refused(self):
        diffusers = pytest.importorskip("diffusers")

        def net(x, t, class_labels):
            return x * class_labels[:, None, None, None]

        D = fc.diffusion.from_diffusers(net, diffusers.DDIMScheduler(), classes=4, null_label=3, shape=(1, 4, 4))
        G, y = guided(D, None, Constant(2.0)), torch.randn(2, 1, 4, 4)
        assert not torch.equal(G(y, 1.0, [0, 2]), D(y, 1.0, [0, 2]))
        for labels in ([0, 3], 3, np.eye(4)[[0, 3]], torch.tensor([3, 1])):
            with pytest.raises(ValueError, match='labels: 3 stands for "no label"'):
                G(y, 1.0, labels)
            with pytest.raises(ValueError, match='labels: 3 stands for "no label"'):
                fc.diffusion.sample(D, labels, 2, [2.0, 1.0], guidance=Constant(2.0))
        torch.testing.assert_close(D(y, 1.0, 3), D(y, 1.0))
        # The network again, by an adapter of its own, leads away from the same.
        again = fc.diffusion.from_diffusers(net, diffusers.DDIMScheduler(), classes=4, null_label=3, shape=(1, 4, 4))
        G = guided(D, again, Constant(2.0))
        assert not torch.equal(G(y, 1.0, [0, 2]), D(y, 1.0, [0, 2]))
        with pytest.raises(ValueError, match='labels: 3 stands for "no label"'):
            G(y, 1.0, 3)
        with pytest.raises(ValueError, match="guided by itself without labels, and got none"):
            G(y, 1.0)


def test_a_weaker_network_with_the_same_classes_is_given_the_labels():
    nets = [Edm2Contract().eval() for _ in range(2)]
    D, weaker = (fc.diffusion.from_edm(net) for net in nets)
    y = torch.randn(2, 3, 8, 8)
    expected = weaker(y, 1.0, [1, 4]) + 2.0 * (D(y, 1.0, [1, 4]) - weaker(y, 1.0, [1, 4]))
    torch.testing.assert_close(guided(D, weaker, Constant(2.0))(y, 1.0, [1, 4]), expected)
    with pytest.raises(ValueError, match=r"unguided: .* is conditional"):
        guided(D, fc.diffusion.from_edm(Edm2Contract(classes=3).eval()), Constant(2.0))


def test_a_diffusers_pipeline_is_told_the_weight_of_the_next_level():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(20)
    levels = fc.diffusion.scheduler_levels(scheduler, 20)
    pulse = Pulse(2.0, 1.0, 4.0)

    class Pipeline:
        _guidance_scale = 1.001

    pipe, used = Pipeline(), []
    callback = fc.diffusion.to_diffusers_callback(pulse, scheduler)
    for i, t in enumerate(scheduler.timesteps):
        used.append(pipe._guidance_scale)
        assert callback(pipe, i, t, {"latents": 1}) == {"latents": 1}
    np.testing.assert_allclose(used[1:], pulse(levels[1:-1]), atol=2e-6)
    assert max(used) == 4.0


class TestProbe:
    @pytest.fixture
    def labelled(self):
        data = fc.data.fashion_mnist()
        return torch.from_numpy(data.pixels())[:, None], data.labels

    @pytest.fixture
    def backbone(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return torch.nn.Sequential(
                torch.nn.Conv2d(1, 32, 5, stride=3), torch.nn.ReLU(), torch.nn.AvgPool2d(2)
            ).eval()

    @pytest.mark.parametrize("head", ["linear", "neighbours"])
    def test_heads_on_random_features_judge_unseen_images(self, labelled, backbone, head):
        images, labels = labelled
        probe = Probe(torch.nn.Sequential(backbone, torch.nn.Flatten()), images[:1500], labels[:1500], head=head)
        scores = probe(images[1500:])
        torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(500, dtype=torch.float64))
        found = fc.alignment.class_alignment(scores, labels[1500:])
        # Random convolutions; chance is 0.1.
        assert found.top1.mean() > 0.7
        assert np.isfinite(found.log_probability).all()

    def test_takes_what_backbones_return(self, labelled, backbone):
        images, labels = labelled
        pooled = lambda x: SimpleNamespace(pooler_output=backbone(x).mean(dim=(2, 3)))  # noqa: E731 (as transformers)
        expected = Probe(backbone, images[:200], labels[:200]).features(images[200:270])
        for other in (pooled, lambda x: backbone(x[:, :1])):
            preprocess = (lambda x: x.expand(-1, 3, -1, -1)) if other is not pooled else None
            probe = Probe(other, images[:200], labels[:200], preprocess=preprocess, batch_size=33)
            np.testing.assert_allclose(probe.features(images[200:270]), expected, rtol=1e-4, atol=1e-6)

    def test_bad_values_are_named(self, labelled, backbone):
        images, labels = labelled
        for arguments, options, error, message in (
            ((None, images, labels), {}, TypeError, "backbone: expected a callable"),
            ((backbone, images, labels[:5]), {}, ValueError, "labels: expected 2000 integers"),
            ((backbone, images[:5], np.zeros(5, int)), {}, ValueError, "labels: expected classes from 0, two or more"),
            ((backbone, images[:, 0], labels), {}, ValueError, "images: expected shape"),
            ((lambda x: x.sum(), images, labels), {}, ValueError, "backbone: expected features"),
            ((lambda x: x.flatten(1) / 0, images, labels), {}, ValueError, "backbone: features of image 0"),
            ((backbone, images, labels), {"head": "tree"}, ValueError, "head: expected one of"),
            ((backbone, images, labels), {"head": "neighbours", "neighbours": 9999}, ValueError, "neighbours: "),
        ):
            with pytest.raises(error, match=message):
                Probe(*arguments, **options)
