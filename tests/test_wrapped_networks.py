"""Networks that are compiled, traced, kept elsewhere or stored in another type: measured, and left as they were."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import fastcrit as fc
from tests.networks import SmallConvolutional


class Inner(torch.nn.Module):
    def forward(self, x):
        return torch.tanh(x)


class Net(torch.nn.Module):
    """x and sigma to D, with no assertions, which would break a graph."""

    def __init__(self):
        super().__init__()
        self.first, self.inner = torch.nn.Conv2d(1, 4, 3, padding=1), Inner()
        self.last = torch.nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x, sigma):
        return self.last(self.inner(self.first(x))) / (1 + sigma[:, None, None, None])


def network():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return Net().eval().requires_grad_(False)


def states(channels=1):
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(1))


class TestCompiled:
    @pytest.mark.parametrize(
        ("how", "fullgraph"),
        [("wrapped", True), ("wrapped", False), ("in place", True), ("a function", False), ("one module inside", True)],
    )
    def test_its_graph_is_used_before_and_after(self, how, fullgraph):
        runs = []

        def backend(graph, examples):
            return lambda *args: runs.append(1) or graph(*args)

        torch.compiler.reset()
        net = network()
        options = {"backend": backend, "fullgraph": fullgraph}
        if how == "wrapped":
            net = torch.compile(net, **options)
        elif how == "in place":
            net.compile(**options)
        elif how == "a function":
            plain = net
            net = torch.compile(lambda x, sigma: plain(x, sigma), **options)
        else:
            net.inner.compile(**options)
        y = states()
        D, expected = fc.diffusion.from_denoiser(net), fc.diffusion.from_denoiser(network())
        for method in ("auto", "central"):  # the first of them before anything was compiled
            g = fc.mode_response(D, y, 1.0, [0], method=method)
            np.testing.assert_array_equal(g.gain, fc.mode_response(expected, y, 1.0, [0], method=method).gain)
            assert not runs  # nothing but what was written
            np.testing.assert_allclose(D(y, 1.0), expected(y, 1.0), atol=1e-6)
            assert len(runs) == 1
            fc.diffusion.sample(D, n_samples=2, shape=(1, 8, 8), levels=[2.0, 1.0], solver="euler")
            assert len(runs) == 2
            runs.clear()


class TestTraced:
    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
    def test_networks_without_a_signature_are_measured_as_what_they_were(self):
        y, sigma = states(), torch.ones(2)
        net = network()
        traced = torch.jit.trace(net, (y, sigma))
        function = torch.jit.trace(lambda x, s: net(x, s), (y, sigma))
        expected = fc.mode_response(fc.diffusion.from_edm(net), y, 1.0, [0, 1])
        for wrapped, adapter in (
            (traced, fc.diffusion.from_edm), (torch.jit.freeze(traced), fc.diffusion.from_denoiser),
            (function, fc.diffusion.from_edm),
        ):  # fmt: skip
            g = fc.mode_response(adapter(wrapped), y, 1.0, [0, 1])
            assert g.method == "jvp"
            np.testing.assert_allclose(g.gain, expected.gain, atol=1e-6)

    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
    def test_their_schema_says_what_they_take(self):
        class Half(torch.nn.Module):
            def forward(self, x: torch.Tensor, sigma: torch.Tensor, force_fp32: bool = False) -> torch.Tensor:
                return x / 2 if force_fp32 else x / 4

        D = fc.diffusion.from_edm(torch.jit.freeze(torch.jit.script(Half().eval())))
        assert float(D(torch.ones(1, 1, 4, 4), 1.0).mean()) == 0.5


def moving(kind):
    """A network whose weights are elsewhere, or of another type, between calls."""
    import accelerate
    from diffusers import hooks

    net, cpu = network(), torch.device("cpu")
    if kind == "offloaded as a whole":
        net, _ = accelerate.cpu_offload_with_hook(net, execution_device="cpu")
    elif kind == "offloaded module by module":
        accelerate.cpu_offload(net, execution_device=cpu)
    elif kind == "offloaded in groups":
        hooks.apply_group_offloading(net, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    elif kind == "stored in 8 bits":
        hooks.apply_layerwise_casting(net, torch.float8_e4m3fn, torch.float32)
    elif kind == "stored in 16 bits":
        hooks.apply_layerwise_casting(net, torch.bfloat16, torch.float32)
    return net


# How far D and its gains are from those of the plain network: weights of 8 and 16 bits are rounded by 2^-4 and 2^-9,
# of numbers below 1; differences in float32 err by some 1e-5.
KINDS = {
    "offloaded as a whole": 1e-4,
    "offloaded module by module": 1e-4,
    "offloaded in groups": 1e-4,
    "stored in 8 bits": 0.1,
    "stored in 16 bits": 4e-3,
}


class TestMoved:
    @pytest.mark.parametrize("kind", KINDS)
    def test_is_measured_by_differences(self, kind):
        net, plain = (fc.diffusion.from_denoiser(net) for net in (moving(kind), network()))
        assert (net.device, net.dtype) == (torch.device("cpu"), torch.float32)
        y, tolerance = states(), KINDS[kind]
        for _ in range(2):  # and it is left as it was
            np.testing.assert_allclose(net(y, 1.0), plain(y, 1.0), atol=tolerance)
            g, expected = (fc.mode_response(D, y, 1.0, [0, 1]) for D in (net, plain))
            assert (g.method, expected.method) == ("central", "jvp")
            np.testing.assert_allclose(g.gain, expected.gain, atol=tolerance)
        for method in ("jvp", "vjp"):
            with pytest.raises(
                ValueError, match=f"method: '{method}' cannot go through D, whose modules change device"
            ):
                fc.mode_response(net, y, 1.0, [0], method=method)
        levels = {"n_samples": 2, "shape": (1, 8, 8), "levels": [2.0, 1.0], "solver": "euler"}
        sampled, expected = (fc.diffusion.sample(D, **levels) for D in (net, plain))
        np.testing.assert_allclose(sampled, expected, atol=4 * tolerance)  # y is up to 4 times as large

    def test_the_process_outlives_a_derivative_of_an_offloaded_network(self):
        """In a process of its own: forward-mode derivatives of modules that move end it."""
        code = (
            "import torch, accelerate, fastcrit as fc\n"
            "from tests.test_wrapped_networks import network, states\n"
            "net, hook = accelerate.cpu_offload_with_hook(network(), execution_device='cpu')\n"
            "g = fc.mode_response(fc.diffusion.from_denoiser(lambda x, s: net(x, s)), states(), 1.0, [0])\n"
            "print(g.method)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.split()) == (0, ["central"]), done.stderr

    def test_a_network_that_moves_itself(self):
        """.to() inside forward, which leaves a network without data after one forward-mode derivative."""

        class Mover(Net):
            def forward(self, x, sigma):
                self.first.to(x.device)
                return super().forward(x, sigma)

        net = Mover().eval()
        g = fc.mode_response(fc.diffusion.from_denoiser(net), states(), 1.0, [0])
        assert g.method == "central"
        assert torch.isfinite(net(states(), torch.ones(2))).all()

    def test_buffers_and_caches_that_a_network_renews_are_no_weights(self):
        class Renews(Net):
            def forward(self, x, sigma):
                self.kept = torch.arange(8.0, device=x.device).mul(0.01)
                self.register_buffer("table", self.kept + 1, persistent=False)
                return super().forward(x, sigma) * self.table

        net = Renews().eval()
        D = fc.diffusion.from_denoiser(net)
        first, second = (fc.mode_response(D, states(), 1.0, [0]) for _ in range(2))
        assert first.method == "jvp"
        np.testing.assert_array_equal(first.gain, second.gain)
        assert torch.isfinite(net(states(), torch.ones(2))).all()

    def test_quantised_weights_are_no_type_of_states(self):
        class Quantised(Net):
            def __init__(self):
                super().__init__()
                self.codes = torch.nn.Parameter(torch.ones(3, dtype=torch.uint8), requires_grad=False)

        assert fc.diffusion.from_denoiser(Quantised().eval()).dtype == torch.float32
        assert fc.diffusion.from_epsilon(SmallConvolutional().double().eval()).dtype == torch.float64
