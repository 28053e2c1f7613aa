"""Networks in half precision, wrapped, checkpointed or left in training mode: right, or refused with the way out.

Every wrapping of one conditional network: D, samples, guided samples and gains against the plain float32 network.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fastcrit as fc

SHAPE = (2, 6, 6)
LEVELS = [2.0, 1.0]
LABELS = [0, 1]
# A reentrant checkpoint says so wherever no gradient is asked for.
REENTRANT = "ignore:None of the inputs have requires_grad:UserWarning"


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.conv = torch.nn.GroupNorm(2, width), torch.nn.Conv2d(width, width, 3, padding=1)
        self.drop, self.qkv = torch.nn.Dropout(0.1), torch.nn.Linear(width, 3 * width)

    def forward(self, h):
        h = h + self.drop(self.conv(torch.nn.functional.silu(self.norm(h))))
        q, k, v = self.qkv(h.flatten(2).transpose(1, 2))[:, None].chunk(3, -1)
        t = torch.nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]
        return h + t.transpose(1, 2).reshape(h.shape)


class Net(torch.nn.Module):
    """A denoiser with classes 0 to 3, the last of them "none", whose inner block is run in one of several ways."""

    def __init__(self, way=lambda block, h: block(h)):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(2, 8, 3, padding=1), torch.nn.Conv2d(8, 2, 3, padding=1)
        self.block, self.label, self.way = Block(8), torch.nn.Embedding(4, 8), way

    def forward(self, x, sigma, labels=None):
        labels = torch.full((len(x),), 3, device=x.device) if labels is None else labels
        c = (1 + sigma**2)[:, None, None, None] ** -0.5
        h = self.way(self.block, self.first(x * c) + self.label(labels)[:, :, None, None])
        return x * c**2 + self.last(h) * sigma[:, None, None, None] * c


def network(*way):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return Net(*way).eval().requires_grad_(False)


def without_gradient(block, h):
    with torch.no_grad():
        return block(h)


def in_inference(block, h):
    with torch.inference_mode():
        return block(h)


def denoiser(net):
    return fc.diffusion.from_denoiser(net, shape=SHAPE, classes=4, unlabelled=True)


def states(n=2):
    return 1.4 * torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(1))


def gains(D, method="auto", **options):
    return fc.mode_response(D, states(), 1.3, [0, 1], LABELS, method=method, **options)


def accelerated(precision):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    return Accelerator(cpu=True, mixed_precision=precision).prepare_model(network(), evaluation_mode=True)


def offloaded(where, tmp_path):
    import accelerate

    net, cpu = network(), torch.device("cpu")
    if where == "disk":
        accelerate.disk_offload(net, str(tmp_path), execution_device=cpu)
    else:
        accelerate.cpu_offload(net, execution_device=cpu)
    return net


# How it is made; the largest error of D and of gains, by the type's rounding: float32 eps 1e-7 of numbers of order 1
# summed some hundred times, float16 1e-3 and bfloat16 8e-3 through a dozen operations; and the method that it takes.
# Differences in float32 err by some eps^(4/5) = 3e-6 each. Gains average over sites.
EXACT, HALF, BRAIN = (1e-5, 1e-5), (4e-3, 1e-3), (3e-2, 6e-3)
DIFFERENCES = (1e-5, 1e-4)
MATRIX = {
    "channels_last": (lambda _: network().to(memory_format=torch.channels_last), EXACT, "jvp"),
    "float16": (lambda _: network().half(), HALF, "jvp"),
    "bfloat16": (lambda _: network().to(torch.bfloat16), BRAIN, "jvp"),
    "compiled": (lambda _: torch.compile(network(), backend="aot_eager"), EXACT, "jvp"),
    "compiled in bfloat16": (lambda _: torch.compile(network().to(torch.bfloat16), backend="aot_eager"), BRAIN, "jvp"),
    "compiled, checkpointed": (
        lambda _: torch.compile(network(lambda b, h: checkpoint(b, h, use_reentrant=False)), backend="aot_eager"),
        EXACT, "jvp",
    ),
    "DataParallel": (lambda _: torch.nn.DataParallel(network()), EXACT, "jvp"),
    "accelerate": (lambda _: accelerated("no"), EXACT, "jvp"),
    "accelerate in bfloat16": (lambda _: accelerated("bf16"), BRAIN, "jvp"),
    "offloaded": (lambda path: offloaded("cpu", path), DIFFERENCES, "central"),
    "offloaded to disk": (lambda path: offloaded("disk", path), DIFFERENCES, "central"),
    "checkpointed": (lambda _: network(lambda b, h: checkpoint(b, h, use_reentrant=False)), EXACT, "jvp"),
    "checkpointed, reentrant": (
        lambda _: network(lambda b, h: checkpoint(b, h, use_reentrant=True)), DIFFERENCES, "central"
    ),
    "no_grad inside": (lambda _: network(without_gradient), EXACT, "jvp"),
    "inference_mode inside": (lambda _: network(in_inference), DIFFERENCES, "central"),
    "detached inside": (lambda _: network(lambda b, h: b(h.detach())), DIFFERENCES, "central"),
    "a part detached": (lambda _: network(lambda b, h: h + (b(h) - h).detach()), DIFFERENCES, "central"),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain():
    D = denoiser(network())
    weight = fc.diffusion.Constant(2.0)
    return {
        "D": D(states(), 1.3, LABELS),
        "sample": fc.diffusion.sample(D, LABELS, 2, LEVELS, seed=1),
        "guided": fc.diffusion.sample(D, LABELS, 2, LEVELS, seed=1, guidance=weight),
        "gains": gains(D).matrix_samples,
        "guided gains": gains(fc.diffusion.guided(D, None, weight)).matrix_samples,
    }


class TestMatrix:
    @pytest.mark.filterwarnings(REENTRANT)
    @pytest.mark.parametrize("name", MATRIX)
    def test_gives_the_numbers_of_the_plain_network(self, name, plain, tmp_path):
        make, (of_D, of_gains), method = MATRIX[name]
        torch.compiler.reset()
        D, weight = denoiser(make(tmp_path)), fc.diffusion.Constant(2.0)
        for first in (True, False):  # and it is left as it was
            with torch.no_grad():  # without which torch compiles no attention in a checkpoint
                np.testing.assert_allclose(D(states(), 1.3, LABELS), plain["D"], atol=of_D)
            sampled = fc.diffusion.sample(D, LABELS, 2, LEVELS, seed=1)
            # Steps from s = 2: as much again. Batches of one state differ by rounding.
            np.testing.assert_allclose(sampled, plain["sample"], atol=2 * of_D)
            if first:
                g = gains(D)
                assert g.method == method
                np.testing.assert_allclose(g.matrix_samples, plain["gains"], atol=of_gains)
        alone = fc.diffusion.sample(D, LABELS, 2, LEVELS, seed=1, batch_size=1)
        np.testing.assert_allclose(alone, plain["sample"], atol=2 * of_D)
        guided = fc.diffusion.sample(D, LABELS, 2, LEVELS, seed=1, guidance=weight)
        np.testing.assert_allclose(guided, plain["guided"], atol=6 * of_D)  # 2 D - D', twice
        g = gains(fc.diffusion.guided(D, None, weight))
        np.testing.assert_allclose(g.matrix_samples, plain["guided gains"], atol=3 * of_gains)

    def test_under_autocast(self, plain):
        D = denoiser(network())
        with torch.autocast("cpu", torch.bfloat16):
            np.testing.assert_allclose(D(states(), 1.3, LABELS), plain["D"], atol=BRAIN[0])
            np.testing.assert_allclose(gains(D).matrix_samples, plain["gains"], atol=BRAIN[1])
        sampled = fc.diffusion.sample(D, LABELS, 2, LEVELS, seed=1, autocast=torch.bfloat16)
        np.testing.assert_allclose(sampled, plain["sample"], atol=2 * BRAIN[0])


class TestExplicitMethods:
    @pytest.mark.parametrize(
        "way", [without_gradient, lambda b, h: b(h.detach()), lambda b, h: h + (b(h) - h).detach()]
    )
    def test_a_lost_part_is_warned_of_once(self, way):
        D = denoiser(network(way))
        with pytest.warns(UserWarning, match="method: 'vjp' says other than central differences of Net"):
            gains(D, "vjp", waves=1)
        gains(D, "vjp", waves=1)

    @pytest.mark.parametrize("method", ["jvp", "vjp"])
    @pytest.mark.filterwarnings(REENTRANT)
    def test_a_derivative_that_is_not_there_is_refused(self, method):
        D = denoiser(network(lambda b, h: checkpoint(b, h, use_reentrant=True)))
        with pytest.raises(ValueError, match=f"method: '{method}' cannot go through D; expected \"central\" or"):
            gains(D, method)

    def test_right_ones_are_taken_as_they_are(self, plain):
        for D in (denoiser(network()), denoiser(network(lambda b, h: checkpoint(b, h, use_reentrant=False)))):
            for method in ("jvp", "vjp"):
                np.testing.assert_allclose(gains(D, method).matrix_samples, plain["gains"], atol=EXACT[1])


class TestEightBits:
    def test_quantised_layers_of_torch_are_warned_of(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch is about to replace this way of quantising
            net = torch.ao.quantization.quantize_dynamic(network(), {torch.nn.Linear}, dtype=torch.qint8)
        with pytest.warns(UserWarning, match="D: a part of Net computes in integers, .* before it was quantised"):
            gains(denoiser(net), waves=1)


class TestTrainingMode:
    def test_is_warned_of_where_it_can_be_seen(self):
        net = network()
        for made, message in (
            (lambda: network().train(), "Net is in training mode, .* call .eval"),
            (lambda: torch.nn.DataParallel(network().train()), "DataParallel is in training mode"),
            (lambda: (net.block.drop.train(), net)[1], r"its block.drop \(Dropout\) is in training mode"),
        ):
            with pytest.warns(UserWarning, match=message):
                denoiser(made())
        trained = network().train()
        with pytest.warns(UserWarning, match="<lambda> calls Net, which is in training mode"):
            denoiser(lambda x, sigma, labels=None: trained(x, sigma, labels))

    def test_that_comes_later_is_warned_of_by_the_sampler(self):
        net = network()
        D = denoiser(net)
        net.train()
        with pytest.warns(UserWarning, match="Net is in training mode"):
            fc.diffusion.sample(D, LABELS, 2, LEVELS, guidance=fc.diffusion.Constant(2.0))

    def test_has_no_derivative(self):
        nets = [network().train()]  # out of sight of the adapter
        D = denoiser(lambda x, sigma, labels=None: nets[0](x, sigma, labels))
        with pytest.raises(ValueError, match=r"D: <lambda> answers the same state otherwise each time .* call .eval"):
            gains(D)

    def test_a_state_that_depends_on_its_batch_is_warned_of(self):
        nets = [network()]
        nets[0].block.norm = torch.nn.BatchNorm2d(8, track_running_stats=False)
        D = denoiser(lambda x, sigma, labels=None: nets[0](x, sigma, labels))
        with pytest.warns(UserWarning, match="depends on the others in its batch .* batch normalisation"):
            gains(D, waves=1)


class TestNetworksOfDiffusers:
    def test_what_is_kept_in_float32_is_not_the_type_of_the_network(self):
        class Mixed(Net):
            _keep_in_fp32_modules = ("first",)

        net = Mixed().to(torch.bfloat16).eval()
        net.first.float()
        assert denoiser(net).dtype == torch.bfloat16

    def test_one_that_keeps_earlier_answers_is_refused(self):
        net = network()
        net.is_cache_enabled = True
        with pytest.raises(ValueError, match=r"Net keeps parts of earlier answers .* call .disable_cache"):
            denoiser(net)

    def test_with_gradient_checkpointing(self):
        pytest.importorskip("diffusers")
        from diffusers import DDPMScheduler

        from tests.networks import PLAIN, random_unet

        found = []
        for on in (False, True):
            unet = random_unet(num_class_embeds=4, **PLAIN)
            if on:
                unet.enable_gradient_checkpointing()
            D = fc.diffusion.from_diffusers(unet, DDPMScheduler(), null_label=3)
            y = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
            options = {"shells": [0, 1], "labels": 1, "waves": 1}
            found += [fc.mode_response(D, y, 1.0, method=method, **options) for method in ("auto", "vjp")]
        assert {g.method for g in found[::2]} == {"jvp"}
        for g in found[1:]:
            np.testing.assert_allclose(g.matrix_samples, found[0].matrix_samples, atol=1e-5)


def test_a_network_may_answer_in_a_buffer_of_its_own():
    """As compiled ones do that replay CUDA graphs: the next call overwrites it."""
    kept = torch.empty(2, *SHAPE)

    def fn(x, sigma, labels):
        return kept.copy_(x / (1 + sigma[:, None, None, None] ** 2) + (0 if labels is None else labels[0]))

    def fresh(x, sigma, labels):
        return fn(x, sigma, labels).clone()

    run = {"n_samples": 2, "levels": [3.0, 2.0, 1.0], "solver": "dpmpp-2m", "guidance": fc.diffusion.Constant(2.0)}
    one, other = (fc.diffusion.sample(denoiser(f), 1, **run) for f in (fn, fresh))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_no_warning_for_networks_in_evaluation_mode():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        denoiser(lambda x, sigma, labels=None: network()(x, sigma, labels))
