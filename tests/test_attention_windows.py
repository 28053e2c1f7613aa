"""Attention windows on small transformers of diffusers: dense masks by hand, how far they reach, what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import _get_current_function_mode_stack

import fastcrit as fc
from fastcrit.diffusion import locality
from tests.networks import random_unet

diffusers = pytest.importorskip("diffusers")

from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor  # noqa: E402 (after the check)

SMALL = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "in_channels": 2, "patch_size": 2}
TEXT = {"encoder_hidden_states": 8, "pooled_projections": 6}
NETWORKS = {
    "DiT": lambda side: diffusers.DiTTransformer2DModel(
        **SMALL, sample_size=side, out_channels=4, num_embeds_ada_norm=3, norm_num_groups=2
    ),
    "PixArt": lambda side: diffusers.PixArtTransformer2DModel(
        **SMALL, sample_size=side, out_channels=4, caption_channels=8, cross_attention_dim=16,
        use_additional_conditions=False,
    ),
    "SD3": lambda side: diffusers.SD3Transformer2DModel(
        **SMALL, sample_size=side, out_channels=2, joint_attention_dim=8, caption_projection_dim=16,
        pooled_projection_dim=6, pos_embed_max_size=12, dual_attention_layers=(0,), qk_norm="rms_norm",
    ),
    "Flux": lambda side: diffusers.FluxTransformer2DModel(
        in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=6, axes_dims_rope=(2, 2, 4),
    ),
    "AuraFlow": lambda side: diffusers.AuraFlowTransformer2DModel(
        sample_size=side, patch_size=2, in_channels=2, out_channels=2, num_mmdit_layers=1, num_single_dit_layers=1,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8, caption_projection_dim=16,
        pos_embed_max_size=144,
    ),
}  # fmt: skip
# What of the tokens in an attention are the image's; AuraFlow puts eight tokens of its own before the text.
IMAGE_IS = {"DiT": "all", "PixArt": "all", "SD3": "first", "Flux": "last", "AuraFlow": "last"}


def denoiser(name, shape=(2, 12, 12), net=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = (net or NETWORKS[name](shape[1])).eval()
        if name == "AuraFlow":  # its blocks add next to nothing as they begin
            for parameter in net.parameters():
                parameter.data *= 2.0
        text = {"encoder_hidden_states": torch.randn(2, 5, 8)}
        if name == "PixArt":
            text["encoder_attention_mask"] = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
        if name in ("SD3", "Flux"):
            text["pooled_projections"] = torch.randn(2, 6)
    flow = name in ("SD3", "Flux", "AuraFlow")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler() if flow else diffusers.DDIMScheduler()
    given = {} if name == "DiT" else {"conditioning": text}
    return net, fc.diffusion.from_diffusers(net, scheduler, shape=shape, **given)


def states(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def near(grid, radius, periodic):
    """By loops: whether a token is in the window of another, (tokens, tokens)."""
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]

    def apart(a, b, side):
        return min((a - b) % side, (b - a) % side) if periodic else abs(a - b)

    return torch.tensor(
        [[max(apart(i[0], j[0], grid[0]), apart(i[1], j[1], grid[1])) <= radius for j in places] for i in places]
    )


def dense(window, image):
    """Attention by the definition, with a dense mask where as many keys as queries hold an image's tokens."""

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        weight = query.double() @ key.double().mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        size, tokens = query.shape[-2], len(window)
        if attn_mask is not None:
            weight = weight + (torch.log(attn_mask.double()) if attn_mask.dtype == torch.bool else attn_mask)
        if key.shape[-2] == size >= tokens:
            first = 0 if image in ("all", "first") else size - tokens
            hidden = torch.zeros(size, size, dtype=torch.bool)
            hidden[:, first : first + tokens] = True
            hidden[first : first + tokens, first : first + tokens] = ~window
            weight[..., hidden] = -math.inf
        return (torch.softmax(weight, dim=-1) @ value.double()).to(value)

    return attention


class Explicit:
    """A processor that takes a dense mask of its own, and none from elsewhere."""

    def __init__(self, window=None):
        self.window = window

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        of_heads = (
            part(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for part in (attn.to_q, attn.to_k, attn.to_v)
        )
        window = torch.ones((hidden_states.shape[1],) * 2, dtype=torch.bool) if self.window is None else self.window
        out = dense(window, "all")(*of_heads).transpose(1, 2).flatten(2)
        return attn.to_out[0](out)


class Pretends(Explicit):
    """It calls torch's attention, and answers with another."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        q = hidden_states[:, None]
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
        return super().__call__(attn, hidden_states)


def assert_close(found, expected):
    """To 1e-5: sums of 36 weights in two blocks of float32 round to some 1e-6 of values of order 1."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class TestEqualsDenseMasks:
    @pytest.mark.parametrize("periodic", [False, True])
    @pytest.mark.parametrize("radius", [0, 1, 2])
    def test_dit_is_that_with_processors_that_mask_by_hand(self, radius, periodic):
        net, D = denoiser("DiT")
        y = states(2, 2, 12, 12)
        whole = D(y, 1.5, [0, 2])
        with fc.diffusion.attention_window(D, radius, periodic=periodic):
            found = D(y, 1.5, [0, 2])
        for block in net.transformer_blocks:
            block.attn1.set_processor(Explicit(near((6, 6), radius, periodic)))
        assert_close(found, D(y, 1.5, [0, 2]))
        assert (found - whole).abs().max() > 1e-2

    @pytest.mark.parametrize("radius", [0, 1])
    @pytest.mark.parametrize("name", ["PixArt", "SD3", "Flux", "AuraFlow"])
    def test_rectangles_beside_text_are_those_with_attention_by_the_definition(self, monkeypatch, name, radius):
        _, D = denoiser(name, (2, 12, 8))
        y = states(2, 2, 12, 8)
        whole = D(y, 1.5, [0, 1])
        with fc.diffusion.attention_window(D, radius) as window:
            found = D(y, 1.5, [0, 1])
        assert (window.grid, window.blocks, window.patch) == ((6, 4), 2, 2)
        attention = dense(near((6, 4), radius, False), IMAGE_IS[name])
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
        assert_close(found, D(y, 1.5, [0, 1]))
        assert (found - whole).abs().max() > 1e-2

    @pytest.mark.parametrize("name", NETWORKS)
    def test_a_window_of_the_whole_grid_and_leaving_give_the_network_itself(self, name):
        _, D = denoiser(name)
        y = states(1, 2, 12, 12)
        whole = D(y, 1.0, 0)
        for radius, periodic in ((5, False), (3, True)):
            with fc.diffusion.attention_window(D, radius, periodic=periodic) as window:
                assert window.covers
                assert torch.equal(D(y, 1.0, 0), whole)
            with fc.diffusion.attention_window(D, radius - 1, periodic=periodic) as window:
                assert not window.covers
                assert not torch.equal(D(y, 1.0, 0), whole)
        assert torch.equal(D(y, 1.0, 0), whole)


class TestReach:
    @pytest.mark.parametrize(("name", "periodic"), [*((name, False) for name in NETWORKS), ("DiT", True)])
    def test_exactly_the_tokens_within_reach_change(self, name, periodic):
        _, D = denoiser(name, (2, 20, 20))
        y = states(1, 2, 20, 20)
        other = y.clone()
        other[:, :, 0, 18] += 5  # of the token at (0, 9)
        with torch.no_grad(), fc.diffusion.attention_window(D, 1, periodic=periodic) as window:
            changed = (D(y, 1.0, 0) != D(other, 1.0, 0)).any(dim=1)[0]
        assert (window.reach, window.reach_sites) == (2, 5)
        for of, reach, middle in ((2, window.reach, (0, 9)), (1, window.reach_sites, (0, 18))):
            apart = [(torch.arange(20) // of - at).abs() for at in middle]
            if periodic:
                apart = [torch.minimum(n, 20 // of - n) for n in apart]
            far = torch.maximum(apart[0][:, None], apart[1][None])
            assert int(far[changed].max()) == reach
            if of == 2:
                assert torch.equal(changed, far <= reach)

    def test_it_is_said_in_a_line(self):
        said = fc.diffusion.AttentionWindow(radius=1, blocks=28, patch=2, grid=(32, 32))
        assert (said.reach, said.reach_sites) == (28, 57)
        assert str(said) == "windows of 3 x 3 tokens, which reach 28 tokens (57 sites) over 28 blocks"
        assert str(fc.diffusion.AttentionWindow(2, 28, 2, (32, 16))).endswith(": all of 32 x 16 tokens")
        assert str(fc.diffusion.AttentionWindow(1, 8, 1, (16, 16), periodic=True)).endswith(": all of 16 x 16 tokens")


class TestLocalityGap:
    def test_it_falls_to_nothing_and_says_its_reach(self, monkeypatch):
        said = []

        class Bar(locality.tqdm):
            def set_description(self, desc=None, refresh=True):
                said.append(desc)

        monkeypatch.setattr(locality, "tqdm", Bar)
        net, D = denoiser("DiT")
        calls = []
        net.register_forward_hook(lambda *_: calls.append(1))
        x0, labels = states(5, 2, 12, 12), [0, 1, 2, 0, 1]
        found = fc.diffusion.locality_gap(
            D, x0, [2.0, 0.5], [0, 1, 3, 5], labels, method="masked", periodic=False, sites=6, batch_size=3,
            progress=True,
        )  # fmt: skip
        assert found.method == "masked"
        assert found.reach.tolist() == [1, 5, 13, 21]
        assert "reach=array([ 1,  5, 13, 21])" in repr(found)
        assert "windows of 3 x 3 tokens, which reach 2 tokens (5 sites) over 2 blocks" in said
        assert (np.diff(found.gap, axis=1) < 0).all()
        assert not found.gap[:, -1].any()
        # Two to look at the mask; each batch and level takes one, and one a radius whatever the sites.
        assert len(calls) == 2 + 2 * 2 * (1 + 4)
        assert fc.diffusion.locality_gap(D, x0, [2.0], [0], labels).reach is None

    def test_it_is_the_mean_square_of_what_windows_change(self):
        """At a low level the state is the image, within 2 %."""
        _, D = denoiser("DiT")
        x0, labels = states(8, 2, 12, 12), torch.arange(8) % 3
        found = fc.diffusion.locality_gap(
            D, x0, [0.02], [1], labels, method="masked", periodic=False, sites=300, seed=2
        )  # fmt: skip
        with torch.no_grad(), fc.diffusion.attention_window(D, 1):
            near = D(x0, 0.02, labels)
        expected = (near - D(x0, 0.02, labels)).square().mean()
        # Squares scatter by about their mean: 300 sites of 8 images are within 5 of 2 %, with 4 % of the states.
        assert found.gap[0, 0] == pytest.approx(float(expected.detach()), rel=0.15)
        other = fc.diffusion.locality_gap(
            D, x0, [0.02], [1], labels.flip(0), method="masked", periodic=False, sites=300, seed=2
        )  # fmt: skip
        assert (other.samples != found.samples).any()


class TestHooks:
    def hooks(self, net):
        return [h for m in net.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]

    def test_they_go_on_exit_and_after_errors(self):
        net, D = denoiser("DiT")
        with fc.diffusion.attention_window(D, 1):
            assert len(self.hooks(net)) == 4
        assert not self.hooks(net)

        class Broken(AttnProcessor):
            def __call__(self, *args, **kwargs):
                raise ZeroDivisionError

        def fails_inside():
            with fc.diffusion.attention_window(D, 1):
                net.transformer_blocks[1].attn1.set_processor(Broken())
                D(states(1, 2, 12, 12), 1.0, 0)

        with pytest.raises(ZeroDivisionError):
            fails_inside()
        assert not self.hooks(net)
        assert not _get_current_function_mode_stack()
        with pytest.raises(ZeroDivisionError):
            fc.diffusion.locality_gap(D, states(2, 2, 12, 12), [1.0], [0], method="masked")
        assert not self.hooks(net)
        assert not _get_current_function_mode_stack()

    def test_windows_inside_windows_are_refused_and_the_first_stay(self):
        net, D = denoiser("DiT")
        y = states(1, 2, 12, 12)
        with fc.diffusion.attention_window(D, 0):
            narrow = D(y, 1.0, 0)
            with pytest.raises(RuntimeError, match="has attention windows already"):  # noqa: SIM117 (inside of it)
                with fc.diffusion.attention_window(D, 2):
                    pass
            assert torch.equal(D(y, 1.0, 0), narrow)
        assert not self.hooks(net)

    def test_half_precision_is_looked_at_as_closely(self):
        net, D = denoiser("DiT", net=NETWORKS["DiT"](12).to(torch.bfloat16))
        with fc.diffusion.attention_window(D, 1):
            assert torch.isfinite(D(states(1, 2, 12, 12), 1.0, 0)).all()
        net.transformer_blocks[1].attn1.set_processor(Pretends())
        with pytest.raises(ValueError, match="changes by"), fc.diffusion.attention_window(D, 1):
            pass


class TestRefusals:
    @pytest.mark.parametrize(
        ("processor", "message"),
        [
            (AttnProcessor(), r"^D: 1 of 2 attentions .*ignore .*blocks\.1\.attn1 with AttnProcessor the first"),
            (SlicedAttnProcessor(1), r"^D: 1 of 2 .* with SlicedAttnProcessor .*locality_gap\(method=\"resampled\"\)"),
            (Explicit(), r"^D: 1 of 2 attentions of DiTTransformer2DModel .* with Explicit the first"),
            (Pretends(), r"^D: DiTTransformer2DModel at a token changes by .* \(AttnProcessor2_0, Pretends\) ignores"),
        ],
    )
    def test_processors_that_ignore_the_mask(self, processor, message):
        net, D = denoiser("DiT")
        net.transformer_blocks[1].attn1.set_processor(processor)
        with pytest.raises(ValueError, match=message), fc.diffusion.attention_window(D, 1):
            pass
        with pytest.raises(ValueError, match=message):
            fc.diffusion.locality_gap(D, states(2, 2, 12, 12), [1.0], [1], method="masked")

    @pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
    def test_backends_that_do_not_come_to_the_mask_or_cannot_take_it(self):
        net, D = denoiser("Flux")
        try:
            net.set_attention_backend("flex")
            with pytest.raises(ValueError, match="with FluxAttnProcessor on flex the first"):  # noqa: SIM117 (one raises)
                with fc.diffusion.attention_window(D, 1):
                    pass
        finally:
            net.set_attention_backend("native")  # diffusers keeps it for all networks
        _, D = denoiser("DiT")
        # A kernel of CUDA's, which is not there on a CPU.
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION), pytest.raises(ValueError, match=r"^D: .* takes no mask"):  # noqa: SIM117
            with fc.diffusion.attention_window(D, 1):
                pass
        assert not _get_current_function_mode_stack()

    def test_tokens_that_see_each_other_otherwise(self):
        class Mixed(diffusers.DiTTransformer2DModel):
            """A share of the mean over tokens in all of them."""

            def forward(self, hidden_states, **given):
                return super().forward(hidden_states + 0.01 * hidden_states.mean(dim=(2, 3), keepdim=True), **given)

        net = Mixed(**SMALL, sample_size=12, out_channels=4, num_embeds_ada_norm=3, norm_num_groups=2)
        D = fc.diffusion.from_diffusers(
            net.eval(), diffusers.DDIMScheduler(), shape=(2, 12, 12), classes=4,
            call=lambda model, x, t, labels, conditions: model(x, timestep=t, class_labels=labels).sample[:, :2],
        )  # fmt: skip
        with pytest.raises(ValueError, match=r"something else lets tokens see"), fc.diffusion.attention_window(D, 1):
            pass

    def test_networks_without_windows(self):
        sana = diffusers.SanaTransformer2DModel(
            **SMALL, sample_size=8, out_channels=2, num_cross_attention_heads=2, cross_attention_head_dim=8,
            cross_attention_dim=16, caption_channels=8,
        )  # fmt: skip
        text = {"encoder_hidden_states": torch.zeros(1, 5, 8), "encoder_attention_mask": torch.ones(1, 5)}
        others = [
            fc.diffusion.from_diffusers(random_unet(), diffusers.DDIMScheduler()),
            fc.diffusion.from_diffusers(sana.eval(), diffusers.FlowMatchEulerDiscreteScheduler(), conditioning=text),
            fc.diffusion.from_denoiser(lambda y, s: 0.5 * y, shape=(1, 8, 8)),
        ]
        for D in others:
            with pytest.raises(TypeError, match=rf"^D: attention windows .* got {D.name}; take locality_gap"):  # noqa: SIM117
                with fc.diffusion.attention_window(D, 1):
                    pass
        with pytest.raises(TypeError, match=r"^D: expected a Denoiser, got int"), fc.diffusion.attention_window(3, 1):
            pass

    @pytest.mark.parametrize("how", ["around", "inside"])
    def test_compiled_networks(self, how):
        net, _ = denoiser("DiT")
        if how == "around":
            net = torch.compile(net, backend="eager")
        else:
            net.transformer_blocks[0].compile(backend="eager")
        D = fc.diffusion.from_diffusers(net, diffusers.DDIMScheduler())
        with pytest.raises(ValueError, match=r"inside torch\.compile"), fc.diffusion.attention_window(D, 1):
            pass

    def test_values(self):
        net, D = denoiser("DiT")
        with pytest.raises(ValueError, match=r"^radius: expected an integer"), fc.diffusion.attention_window(D, -1):
            pass
        flux = NETWORKS["Flux"](12).eval()
        free = fc.diffusion.from_diffusers(
            flux, diffusers.FlowMatchEulerDiscreteScheduler(),
            conditioning={"encoder_hidden_states": torch.zeros(1, 5, 8), "pooled_projections": torch.zeros(1, 6)},
        )  # fmt: skip
        with pytest.raises(ValueError, match=r"^D: windows need the shape"), fc.diffusion.attention_window(free, 1):
            pass
        with torch.no_grad():
            net.proj_out_2.bias.fill_(math.nan)
        with pytest.raises(FloatingPointError, match=r"^D: .* of noise is NaN"), fc.diffusion.attention_window(D, 1):
            pass
