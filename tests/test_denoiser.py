"""Adapters: D from every kind of network against a conversion done by hand or by its own library."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import fastcrit as fc
from tests.networks import Edm2Contract, KDiffusionVDenoiser, SmallConvolutional, random_unet

diffusers = pytest.importorskip("diffusers")

KINDS = ("epsilon", "sample", "v_prediction")


@pytest.fixture(scope="module")
def unet():
    return random_unet()


def scheduler(kind, **more):
    return diffusers.DDIMScheduler(prediction_type=kind, clip_sample=False, **more)


class TestDiffusers:
    @pytest.mark.parametrize("kind", KINDS)
    def test_equals_the_schedulers_own_predicted_original_sample(self, unet, kind):
        sched = scheduler(kind)
        sched.set_timesteps(1000)
        D = fc.diffusion.from_diffusers(unet, sched)
        generator = torch.Generator().manual_seed(1)
        for t in np.linspace(1, 999, 20).astype(int):
            abar = sched.alphas_cumprod[t].double()
            s = float(((1 - abar) / abar).sqrt())
            y = torch.randn(2, 1, 16, 16, generator=generator) * (1 + s**2) ** 0.5
            with torch.no_grad():
                x = abar.sqrt().float() * y
                expected = sched.step(unet(x, int(t)).sample, int(t), x).pred_original_sample
                found = D(y, s)
            # Both compute in float32; D and eps s are of the size of s.
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, s))

    def test_levels_between_the_steps_are_interpolated_in_log_s(self):
        seen = []

        def model(x, t):
            seen.append(t)
            return x * 0

        D = fc.diffusion.from_diffusers(model, scheduler("epsilon"))
        vp = fc.schedules.VP(scheduler("epsilon").alphas_cumprod.double().numpy())
        s = float(np.sqrt(vp.s(400) * vp.s(401)))
        D(torch.zeros(3, 1, 4, 4), s)
        D(torch.zeros(3, 1, 4, 4), torch.full((3,), s))
        for t in seen:
            assert t.shape == (3,)
            assert t.dtype == torch.float32
            np.testing.assert_allclose(t.numpy(), 400.5, atol=1e-3)

    def test_channels_of_a_learned_variance_are_dropped(self):
        sched = scheduler("epsilon")
        inner = SmallConvolutional(1, out=2)
        y = torch.randn(2, 1, 8, 8)
        both = fc.diffusion.from_diffusers(inner.eval(), sched)(y, 1.0)
        first = fc.diffusion.from_diffusers(lambda x, t: inner(x, t)[:, :1], sched)(y, 1.0)
        torch.testing.assert_close(both, first)

    def test_zero_terminal_snr_is_capped(self):
        sched = scheduler("v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
        assert float(sched.alphas_cumprod[-1]) == 0
        D = fc.diffusion.from_diffusers(random_unet(), sched)
        assert D.highest == pytest.approx(float(sched.alphas_cumprod[-2].double() ** -0.5), rel=1e-5)
        y = torch.randn(1, 1, 16, 16) * D.highest
        assert torch.isfinite(D(y, D.highest)).all()
        with pytest.raises(ValueError, match=r"s: .* is above .*, the highest noise level of UNet2DModel"):
            D(y, 1.01 * D.highest)

    def test_flow_matching_scheduler(self):
        sched = diffusers.FlowMatchEulerDiscreteScheduler()
        inner = SmallConvolutional().eval()
        D = fc.diffusion.from_diffusers(inner, sched)
        y, s = torch.randn(2, 1, 8, 8), 3.0
        t = s / (1 + s)
        x = (1 - t) * y
        expected = x - t * inner(x, torch.full((2,), 1000 * t))
        torch.testing.assert_close(D(y, s), expected, rtol=1e-5, atol=1e-6)

    def test_class_labels_and_the_null_class(self):
        net = random_unet(num_class_embeds=4)
        D = fc.diffusion.from_diffusers(net, scheduler("epsilon"))
        y = torch.randn(2, 1, 16, 16)
        assert D.classes == 4
        with pytest.raises(ValueError, match=r"labels: .* is conditional"):
            D(y, 1.0)
        null = fc.diffusion.from_diffusers(net, scheduler("epsilon"), null_label=3)
        torch.testing.assert_close(null(y, 1.0), D(y, 1.0, 3))
        assert not torch.allclose(D(y, 1.0, 0), D(y, 1.0, 3))

    def test_other_schedulers_are_refused(self, unet):
        with pytest.raises(TypeError, match="IPNDMScheduler has no table"):
            fc.diffusion.from_diffusers(unet, diffusers.IPNDMScheduler())
        with pytest.raises(TypeError, match="expected a scheduler of diffusers, got str"):
            fc.diffusion.from_diffusers(unet, "ddim")


class TestEdm:
    def test_a_network_of_edm2s_contract_works_unchanged(self):
        net = Edm2Contract().eval()
        y = torch.randn(4, 3, 8, 8)
        with pytest.raises(AttributeError):
            net(y, 1.0)
        with pytest.raises(RuntimeError):
            net(y, torch.tensor(1.0), torch.tensor([0, 1, 2, 3]))
        D = fc.diffusion.from_edm(net)
        labels = torch.tensor([0, 1, 2, 3])
        one_hot = torch.nn.functional.one_hot(labels, 5).float()
        expected = net(y, torch.tensor(1.5), one_hot, force_fp32=True)
        for given in (labels, labels.numpy(), [0, 1, 2, 3], one_hot):
            torch.testing.assert_close(D(y, 1.5, given), expected)
        torch.testing.assert_close(D(y, torch.full((4,), 1.5), labels), expected)
        assert set(net.calls) == {torch.float32}
        assert D.shape == (3, 8, 8)

    def test_half_precision_when_it_is_asked_for(self):
        net = Edm2Contract().eval()
        fc.diffusion.from_edm(net, force_fp32=False)(torch.randn(1, 3, 8, 8), 1.0, 0)
        assert net.calls == [torch.float16]

    def test_no_labels_are_not_unconditional(self):
        D = fc.diffusion.from_edm(Edm2Contract().eval())
        with pytest.raises(ValueError, match="conditional, and without labels it is not unconditional"):
            D(torch.zeros(1, 3, 8, 8), 1.0)
        fc.diffusion.from_edm(Edm2Contract().eval(), unlabelled=True)(torch.zeros(1, 3, 8, 8), 1.0)

    def test_labels_of_any_integer_kind(self):
        D = fc.diffusion.from_edm(Edm2Contract().eval())
        y = torch.randn(2, 3, 8, 8)
        expected = D(y, 1.5, [3, 1])
        rows = np.eye(5, dtype=int)[[3, 1]]
        for labels in (
            np.array([3, 1], np.uint16),
            np.array([3, 1], ">i4"),
            torch.tensor([3, 1], dtype=torch.uint8),
            rows,
        ):
            torch.testing.assert_close(D(y, 1.5, labels), expected)

    def test_wrapped_networks_keep_their_contract(self):
        net = Edm2Contract().eval()
        D = fc.diffusion.from_edm(torch.nn.DataParallel(net))
        assert (D.classes, D.shape) == (5, (3, 8, 8))
        y = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(D(y, 1.5, 2), fc.diffusion.from_edm(net)(y, 1.5, 2))
        assert set(net.calls) == {torch.float32}
        assert fc.diffusion.from_edm(torch.compile(net, backend="eager")).classes == 5

    def test_non_square_network(self):
        net = fc.diffusion.Net(fc.diffusion.NetConfig(shape=(1, 8, 16), width=4, multipliers=(1, 2))).eval()
        D = fc.diffusion.from_edm(net, unlabelled=True)
        assert D.shape == (1, 8, 16)
        assert D(torch.zeros(2, 1, 8, 16), 1.0).shape == (2, 1, 8, 16)


class TestOthers:
    def test_k_diffusion_style(self):
        wrapped = KDiffusionVDenoiser(SmallConvolutional()).eval()
        y = torch.randn(3, 1, 8, 8)
        D = fc.diffusion.from_denoiser(wrapped, shape=(1, 8, 8))
        torch.testing.assert_close(D(y, 2.0), wrapped(y, torch.full((3,), 2.0)))

    def test_a_network_with_dropout_left_in_training_mode_is_warned_of(self):
        with pytest.warns(UserWarning, match="training mode"):
            fc.diffusion.from_denoiser(KDiffusionVDenoiser(SmallConvolutional()))

    @pytest.mark.parametrize(
        "schedule",
        [fc.schedules.OrnsteinUhlenbeck(), fc.schedules.Cosine(), fc.schedules.EDM(), fc.schedules.FlowMatching()],
    )
    def test_epsilon_sees_the_schedules_own_x_and_t(self, schedule):
        y = torch.randn(2, 1, 6, 6, dtype=torch.float64)
        s = 1.7
        t = float(schedule.t(s))
        alpha = {"EDM": 1.0, "FlowMatching": 1 - t}.get(type(schedule).__name__, 1 / np.sqrt(1 + s**2))
        seen = {}

        def fn(x, time):
            seen["x"], seen["t"] = x, time
            return 0.3 * x

        D = fc.diffusion.from_epsilon(fn, schedule)(y, s)
        torch.testing.assert_close(seen["x"], alpha * y)
        np.testing.assert_allclose(seen["t"].numpy(), t)
        torch.testing.assert_close(D, y - s * 0.3 * alpha * y)

    def test_velocity_of_gaussian_data_is_the_wiener_filter(self):
        # x0 ~ N(0, v): E[eps - x0 | x] = (t - (1 - t) v) x / ((1 - t)^2 v + t^2).
        v, s = 2.0, 1.3
        y = torch.randn(4, 1, 5, 5, dtype=torch.float64)

        def velocity(x, t):
            t = t[:, None, None, None]
            return (t - (1 - t) * v) * x / ((1 - t) ** 2 * v + t**2)

        torch.testing.assert_close(fc.diffusion.from_velocity(velocity)(y, s), y * v / (v + s**2))

    @pytest.mark.parametrize("boundary", ["periodic", "zero"])
    def test_patch_model_equals_the_compiled_one(self, rng, boundary):
        d = fc.patch.Dictionary.binary(3, 5, seed=2)
        y = rng.normal(size=(3, 9, 11))
        found = fc.diffusion.from_patch(d, boundary=boundary)(torch.from_numpy(y)[:, None], 0.8)[:, 0]
        # float64; weights are exponentials of sums of 9 products.
        np.testing.assert_allclose(found.numpy(), fc.patch.denoise(d, y, 0.8, boundary=boundary), atol=1e-12)

    def test_gaussian_equals_the_theorys_filter(self, rng):
        theory = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=(7, 10))
        y = rng.normal(size=(2, 7, 10))
        found = fc.diffusion.from_gaussian(theory)(torch.from_numpy(y)[:, None], 1.5)[:, 0]
        np.testing.assert_allclose(found.numpy(), theory.denoise(y, 1.5), atol=1e-13)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
    def test_result_has_the_states_type_and_the_network_its_own(self, dtype):
        net = copy.deepcopy(SmallConvolutional()).double().eval()
        y = torch.randn(2, 1, 6, 6, dtype=dtype)
        D = fc.diffusion.from_epsilon(net)
        assert D(y, 1.0).dtype == dtype
        # The states as they are, transformed in float64, rounded once.
        torch.testing.assert_close(D(y, 1.0), D(y.double(), 1.0).to(dtype), rtol=2e-2, atol=2e-2)


class TestLabels:
    """Networks that take labels third, or by keyword alone, as k-diffusion's do."""

    def test_go_where_the_network_takes_them(self):
        def third(x, s, labels):
            return x * labels[:, None, None, None]

        def keyword(x, sigma, *, class_cond=None, scale=1.0):
            return scale * third(x, sigma, class_cond)

        def behind_another(x, sigma, aug_cond=None, class_cond=None):  # of k-diffusion's transformers
            assert aug_cond is None
            return third(x, sigma, class_cond)

        class Module(torch.nn.Module):
            def forward(self, x, t, *, y):
                return third(x, t, y)

        x = torch.randn(2, 1, 4, 4)
        for fn in (third, keyword, behind_another, Module().eval(), lambda x, s, anything: third(x, s, anything)):
            D = fc.diffusion.from_denoiser(fn, classes=4)
            torch.testing.assert_close(D(x, 1.0, [2, 3]), third(x, 1.0, torch.tensor([2, 3])))
            for made in (fc.diffusion.from_epsilon(fn, classes=4), fc.diffusion.from_velocity(fn, classes=4)):
                assert not torch.equal(made(x, 1.0, [2, 3]), made(x, 1.0, [3, 2]))

    def test_that_have_no_clear_place_are_refused_at_once(self):
        for fn, message in (
            (lambda x, s: x, "has 4 classes and takes no third argument"),
            (lambda x, s, **extra: x, "takes no third argument, .* wrap it: lambda x, t, labels: fn"),
            (lambda x, s, *, prompt=None: x, "takes the keywords prompt, which does not say"),
            (lambda x, s, *, y=None, class_cond=None: x, "takes the keywords y, class_cond"),
        ):
            for adapter in (fc.diffusion.from_denoiser, fc.diffusion.from_epsilon, fc.diffusion.from_velocity):
                with pytest.raises(TypeError, match=message):
                    adapter(fn, classes=4)
                adapter(fn)


class TestOtherNetworksOfDiffusers:
    def test_are_refused_by_their_class_with_the_way_out(self):
        net = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
        message = r"AutoencoderKL is not in the table .*UNet2DModel, .*call=lambda model, x, t, labels, conditions"
        for model in (net, torch.nn.DataParallel(net)):
            with pytest.raises(TypeError, match=message):
                fc.diffusion.from_diffusers(model, scheduler("epsilon"))

    def test_may_still_come_as_a_function(self):
        torch.manual_seed(0)
        small = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "sample_size": 8, "patch_size": 2}
        dit = diffusers.DiTTransformer2DModel(**small, in_channels=4, out_channels=8, num_embeds_ada_norm=10,
                                              norm_num_groups=4).eval()  # fmt: skip
        sched = scheduler("epsilon")
        D = fc.diffusion.from_diffusers(
            lambda x, t, class_labels: dit(x, t, class_labels=class_labels), sched, classes=11, null_label=10,
            shape=(4, 8, 8),
        )  # fmt: skip
        y = torch.randn(2, 4, 8, 8)
        abar = 1 / (1 + 1.0**2)
        t = float(fc.schedules.VP(sched.alphas_cumprod.double().numpy()).t(1.0))
        out = dit(abar**0.5 * y, torch.full((2,), t), class_labels=torch.tensor([2, 7])).sample
        torch.testing.assert_close(D(y, 1.0, [2, 7]), y - out[:, :4])
        assert D(y, 1.0).shape == y.shape
        same = fc.diffusion.from_diffusers(dit, sched)
        assert (same.classes, same.null_label, same.shape) == (D.classes, D.null_label, D.shape)
        torch.testing.assert_close(same(y, 1.0, [2, 7]), D(y, 1.0, [2, 7]), rtol=0, atol=0)

    def test_in_half_precision_behind_a_function(self):
        inner = torch.nn.Conv2d(1, 1, 3, padding=1).to(torch.bfloat16).eval()
        D = fc.diffusion.from_diffusers(lambda x, t: inner(x), scheduler("epsilon"))
        with pytest.raises(TypeError, match="computes in half precision, which a function around it does not tell"):
            D(torch.randn(1, 1, 8, 8), 1.0)

    def test_classes_that_the_config_does_not_know(self):
        with pytest.raises(ValueError, match=r"null_label: the network takes no labels, .* pass classes="):
            fc.diffusion.from_diffusers(lambda x, t: x, scheduler("epsilon"), null_label=3)
        D = fc.diffusion.from_diffusers(lambda x, t: x, scheduler("epsilon"))
        with pytest.raises(ValueError, match=r"takes no labels, as far as its adapter was told; .* classes="):
            D(torch.zeros(1, 1, 4, 4), 1.0, 3)


class TestErrors:
    def test_messages_name_the_argument(self):
        D = fc.diffusion.from_edm(Edm2Contract().eval(), unlabelled=True)
        y = torch.zeros(2, 3, 8, 8)
        numbers = fc.diffusion.from_denoiser(lambda x, s, labels: x, classes=5)
        for call, error, message in (
            (
                lambda: D(torch.zeros(2, 3, 8, 9), 1.0),
                ValueError,
                r"y: .* takes states of shape \(batch, \*\(3, 8, 8\)\)",
            ),
            (lambda: D(np.zeros((2, 3, 8, 8)), 1.0), TypeError, "y: expected a floating-point tensor"),
            (lambda: D(y.int(), 1.0), TypeError, "torch.int32"),
            (lambda: D(y, 0.0), ValueError, "s: expected a positive noise level, got 0.0"),
            (lambda: D(y, float("nan")), ValueError, "s: expected a positive noise level"),
            (lambda: D(y, torch.ones(3)), ValueError, r"s: expected a float or shape \(2,\), got \(3,\)"),
            (lambda: D(y, 1.0, [0, 5]), ValueError, "labels: expected classes from 0 to 4, got 0 to 5"),
            (lambda: D(y, 1.0, [-1, 0]), ValueError, "labels: expected classes from 0 to 4, got -1 to 0"),
            (lambda: D(y, 1.0, [0, 1, 2]), ValueError, "labels: expected one for each of 2 states"),
            (lambda: D(y, torch.tensor([1.0, -1.0])), ValueError, "s: expected a positive noise level"),
            (lambda: D(y, "high"), TypeError, "s: expected a noise level, got 'high'"),
            (lambda: D(y, 1.0, ["a", "b"]), ValueError, "labels: expected class numbers or one-hot rows, got <U1"),
            (lambda: numbers(y, 1.0, torch.zeros(2, 5)), ValueError, "labels: .* expected rows with a single 1 each"),
            (lambda: D(y, 1.0, [0.5, 1.5]), ValueError, "labels: expected class numbers, or one-hot"),
            (lambda: fc.diffusion.from_edm(3), TypeError, "net: expected a network or another callable, got int"),
            (lambda: fc.diffusion.from_denoiser(lambda x, s: x)(y, 1.0, 0), ValueError, "labels: .* takes no labels"),
            (lambda: fc.diffusion.from_denoiser(lambda x, s: x[:1])(y, 1.0), ValueError, "expected a result of shape"),
            (lambda: fc.diffusion.from_epsilon(lambda x, t: "no")(y, 1.0), TypeError, "the network returned str"),
        ):
            with pytest.raises(error, match=message):
                call()
