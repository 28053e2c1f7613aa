"""Prompts as classes: which row a label takes, what is refused, and networks that come with a call of their own."""

from __future__ import annotations

import re
import warnings

import pytest
import torch

import fastcrit as fc
from fastcrit.diffusion import Constant, from_diffusers
from fastcrit.errors import ConventionWarning
from tests.networks import Edm2Contract, remote_edm2, remote_flow
from tests.test_network_classes import CASES, CROSS, DITS, MASK, XL, built, label_of, states, text, told, wrapped

diffusers = pytest.importorskip("diffusers")

LEVELS = [8.0, 2.0, 0.5, 0.0]


def null_of(conditioning):
    return {key: torch.ones_like(value[:1]) for key, value in conditioning.items()}


class TestLabels:
    def test_take_their_row(self):
        """Against the network behind a function, as it had to be passed without."""
        name = "UNet2DConditionModel of SDXL"
        net, given = built(name), CASES[name].conditioning
        null = null_of(given)
        D = from_diffusers(net, CASES[name].scheduler(), conditioning=given, null=null)
        assert (D.classes, D.null_label, D.unlabelled) == (3, 2, True)
        y = states(name, 3)
        found = D(y, 2.0, [1, 0, 2])
        for i, (rows, j) in enumerate([(given, 1), (given, 0), (null, 0)]):
            one = {key: value[j : j + 1] for key, value in rows.items()}
            added = {key: one[key] for key in ("text_embeds", "time_ids")}

            def call(x, t, one=one, added=added):
                return net(x, t, encoder_hidden_states=one["encoder_hidden_states"], added_cond_kwargs=added)

            alone = from_diffusers(call, CASES[name].scheduler(), shape=(2, 8, 8))
            torch.testing.assert_close(found[i : i + 1], alone(y[i : i + 1], 2.0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(D(y, 2.0), D(y, 2.0, 2))

    def test_are_needed_without_a_null_row(self):
        D = wrapped("SD3Transformer2DModel", built("SD3Transformer2DModel"))
        assert (D.classes, D.null_label, D.unlabelled) == (2, None, False)
        with pytest.raises(ValueError, match="labels: SD3Transformer2DModel is conditional"):
            D(states("SD3Transformer2DModel"), 1.0)

    def test_serve_guidance_and_the_rate_of_class_entropy(self):
        name = "UNet2DConditionModel"
        given = CASES[name].conditioning
        D = from_diffusers(built(name), CASES[name].scheduler(), conditioning=given, null=null_of(given))
        y = fc.diffusion.sample(D, [0, 1], 2, LEVELS, guidance=Constant(2.0))
        assert torch.isfinite(y).all()
        rate = fc.diffusion.class_entropy_rate(D, y, [0, 1], LEVELS[:-1])
        assert (rate.rate > 0).all()
        with pytest.raises(ValueError, match='labels: 2 stands for "no label"'):
            fc.diffusion.sample(D, [0, 2], 2, LEVELS, guidance=Constant(2.0))

    def test_rows_are_of_the_networks_type_and_masks_are_not(self):
        seen = {}

        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

            def forward(self, x, t, **given):
                seen.update(given)
                return x

        rows = {"e": torch.randn(2, 3), "mask": torch.ones(2, 3, dtype=torch.int64), "added.size": [[1.0], [2.0]]}
        D = from_diffusers(Net().eval(), diffusers.DDIMScheduler(), conditioning=rows, shape=(1, 4, 4))
        D(torch.zeros(3, 1, 4, 4), 1.0, [1, 0, 1])
        assert (seen["e"].dtype, seen["mask"].dtype) == (torch.bfloat16, torch.int64)
        assert seen["added"]["size"].flatten().tolist() == [2, 1, 2]


class TestNames:
    @pytest.mark.parametrize("how", ["dotted", "nested"])
    def test_of_a_dictionary_may_say_so(self, how):
        name = "UNet2DConditionModel of SDXL"
        given = dict(CASES[name].conditioning)
        inner = {key: given.pop(key) for key in ("text_embeds", "time_ids")}
        if how == "nested":
            given["added_cond_kwargs"] = inner
        else:
            given |= {f"added_cond_kwargs.{key}": value for key, value in inner.items()}
        net = built(name)
        D, expected = from_diffusers(net, CASES[name].scheduler(), conditioning=given), wrapped(name, net)
        assert D.card == expected.card
        torch.testing.assert_close(D(states(name), 1.0, 1), expected(states(name), 1.0, 1), rtol=0, atol=0)

    def test_shapes_and_bytes_are_in_the_checksum(self):
        net = built("UNet2DConditionModel")
        one = text(8)["encoder_hidden_states"]

        def checksum(tensor, null=None):
            null = None if null is None else {"encoder_hidden_states": null}
            given = {"encoder_hidden_states": tensor}
            D = from_diffusers(net, diffusers.DDIMScheduler(), conditioning=given, null=null)
            return D.card["conditioning_sha256"]

        changed = one.clone()
        changed[1, 2, 3] += 1e-6
        all_of_them = [
            checksum(one), checksum(changed), checksum(one[:1]), checksum(one.reshape(2, 1, 5, 8)[:, 0, :4]),
            checksum(one, one[:1]), checksum(one.half()),
        ]  # fmt: skip
        assert len(set(all_of_them)) == len(all_of_them)
        assert checksum(one.clone()) == all_of_them[0]

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("UNet2DConditionModel", None,
             r"needs encoder_hidden_states (P, tokens, 8), encoder_attention_mask (P, tokens) if there is one, with P"),
            ("UNet2DConditionModel", {"pooled": torch.zeros(2, 3)}, "if there is one; pooled not known"),
            ("UNet2DConditionModel", {"encoder_hidden_states": torch.zeros(2, 5, 7)}, "got encoder_hidden_states (2,"),
            ("UNet2DConditionModel", {"encoder_hidden_states": torch.zeros(2, 8)}, "got encoder_hidden_states (2, 8)"),
            ("UNet2DConditionModel", {"encoder_attention_mask": torch.ones(2, 4)}, "got encoder_attention_mask (2, 4)"),
            ("UNet2DConditionModel of SDXL", {"text_embeds": None}, "text_embeds missing"),
            ("UNet2DConditionModel of SDXL", {"time_ids": torch.ones(2, 5)}, "in 30 numbers, and those of text_embeds"),
            ("SD3Transformer2DModel", {"pooled_projections": torch.zeros(3, 6)}, "expected a row a prompt in every"),
            ("SD3Transformer2DModel", {"pooled_projections": torch.zeros(2, 7)}, "pooled_projections (P, 6); got"),
            ("PixArtTransformer2DModel", {"encoder_attention_mask": None}, "encoder_attention_mask missing"),
            ("FluxTransformer2DModel", {"guidance": None}, "guidance (P); guidance missing"),
        ],
    )  # fmt: skip
    def test_that_do_not_fit_are_refused_with_what_is_needed(self, name, change, message):
        given = None
        if change is not None:
            given = {k: v for k, v in (CASES[name].conditioning | change).items() if v is not None}
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            from_diffusers(built(name), CASES[name].scheduler(), conditioning=given, shape=(2, 8, 8))
        assert str(error.value).startswith("conditioning: ")

    def test_of_the_null_row_are_the_same(self):
        name = "SD3Transformer2DModel"
        net, given = built(name), CASES[name].conditioning
        null = null_of(given)
        for wrong, message in (
            ({"encoder_hidden_states": null["encoder_hidden_states"]}, "null: expected one row for each of encoder_"),
            (null | {"encoder_hidden_states": torch.zeros(1, 3, 8)}, "padded to the same number of tokens"),
            (given, "got encoder_hidden_states .2, 5, 8., pooled"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=message):
                from_diffusers(net, CASES[name].scheduler(), conditioning=given, null=wrong)
        for more, error, message in (
            ({"null": null}, ValueError, "null: given without conditioning"),
            ({"conditioning": given, "classes": 3}, ValueError, "classes, null_label: prompts are the classes, 2 of"),
            ({"conditioning": given, "null_label": 1}, ValueError, "classes, null_label: prompts are the classes"),
            ({"conditioning": [1, 2]}, TypeError, "conditioning: expected a dictionary of tensors .*, got list"),
            ({"conditioning": {"encoder_hidden_states": torch.tensor(1.0)}}, ValueError, "pooled_projections missing"),
        ):
            with pytest.raises(error, match=message):
                from_diffusers(net, CASES[name].scheduler(), **more)

    def test_are_none_of_a_network_with_classes(self):
        dit = built("DiTTransformer2DModel")
        with pytest.raises(ValueError, match="DiTTransformer2DModel takes none; its labels are classes of its own"):
            from_diffusers(dit, diffusers.DDIMScheduler(), conditioning=text(8))
        with pytest.raises(ValueError, match="classes: UNet1DModel takes no labels, got 3"):
            from_diffusers(built("UNet1DModel"), diffusers.DDIMScheduler(), classes=3)


class TestMasks:
    def test_that_are_ignored_are_noticed(self):
        name = "PixArtTransformer2DModel"
        from diffusers.models.attention_processor import AttnProcessor2_0

        class Deaf(AttnProcessor2_0):
            def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **more):
                return super().__call__(attn, hidden_states, encoder_hidden_states, None, **more)

        net = built(name)
        net.set_attn_processor(Deaf())
        with pytest.warns(ConventionWarning, match="PixArtTransformer2DModel: encoder_attention_mask is ignored"):
            wrapped(name, net)

    @pytest.mark.parametrize("name", [name for name in CASES if "encoder_attention_mask" in CASES[name].conditioning])
    def test_that_are_taken_are_not(self, name):
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConventionWarning)
            D = wrapped(name, built(name))
        # What a mask hides changes nothing; what it does not, does.
        given = dict(CASES[name].conditioning)
        changed = {k: v.clone() for k, v in given.items()}
        changed["encoder_hidden_states"][0, 3:] += 1.0
        other = from_diffusers(built(name), CASES[name].scheduler(), conditioning=changed, **told(name))
        torch.testing.assert_close(other(states(name), 1.0, 0), D(states(name), 1.0, 0))
        changed["encoder_hidden_states"][0, :3] += 1.0
        other = from_diffusers(built(name), CASES[name].scheduler(), conditioning=changed, **told(name))
        assert not torch.equal(other(states(name), 1.0, 0), D(states(name), 1.0, 0))

    def test_of_a_unet_may_be_given(self):
        name = "UNet2DConditionModel"
        net, y = built(name), states(name)
        given = CASES[name].conditioning
        D = from_diffusers(net, CASES[name].scheduler(), conditioning=given | MASK)
        assert not torch.equal(D(y, 1.0, 0), wrapped(name, net)(y, 1.0, 0))
        torch.testing.assert_close(D(y, 1.0, 1), wrapped(name, net)(y, 1.0, 1))


class TestOtherCalls:
    def test_are_refused_by_what_the_config_says(self):
        def unet(**config):
            return diffusers.UNet2DConditionModel(**(CROSS | config))

        sana = diffusers.SanaTransformer2DModel(**DITS, out_channels=2, num_cross_attention_heads=2,
                                                cross_attention_head_dim=8, cross_attention_dim=16,
                                                caption_channels=8, guidance_embeds=True)  # fmt: skip
        for net, message in (
            (unet(in_channels=5), "takes 5 channels and returns 2: something is put beside the state; say how .*call="),
            (unet(num_class_embeds=7), "UNet2DConditionModel with num_class_embeds=7 is called in another way"),
            (unet(time_cond_proj_dim=4), "with time_cond_proj_dim=4 is called in another way"),
            (sana, "with guidance_embeds=True is called in another way"),
        ):
            with pytest.raises(TypeError, match=message):
                from_diffusers(net.eval(), diffusers.FlowMatchEulerDiscreteScheduler(), conditioning=text(8))

    def test_are_refused_of_classes_that_are_not_in_the_table(self):
        class Mine(diffusers.UNet2DModel):
            def forward(self, timestep, sample, class_labels=None):
                return super().forward(sample, timestep, class_labels)

        with pytest.raises(
            TypeError, match=r"model: Mine is not in the table of networks that are known \(UNet2DModel"
        ):
            from_diffusers(Mine(8, 1, 1, block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownBlock2D",),
                                up_block_types=("UpBlock2D",)).eval(), diffusers.DDIMScheduler())  # fmt: skip
        odd = type("Odd", (remote_flow("SiTTransformer2DModel"),), {})
        assert from_diffusers(odd().eval(), diffusers.FlowMatchEulerDiscreteScheduler()).classes == 4
        nameless = type("EDM2UNet2DModel", (diffusers.ModelMixin,), {"forward": lambda self, x: x, "config": {}})
        with pytest.raises(
            TypeError, match="as one of that name with sample_size, in_channels, num_class_embeds, sigm"
        ):
            from_diffusers(nameless(), diffusers.EDMEulerScheduler())

    def test_may_be_given(self):
        """The hook sees the scheduler's x and t, class numbers and the rows of the prompts."""
        net, seen = built("SD3Transformer2DModel"), []

        def call(model, x, t, labels, conditions):
            seen.append((float(t[0]), labels.tolist(), sorted(conditions)))
            return model(x, timestep=t, encoder_hidden_states=conditions["e"], pooled_projections=conditions["p"])

        given = CASES["SD3Transformer2DModel"].conditioning
        rows = {"e": given["encoder_hidden_states"], "p": given["pooled_projections"]}
        scheduler = CASES["SD3Transformer2DModel"].scheduler()
        D = from_diffusers(net, scheduler, conditioning=rows, shape=(2, 8, 8), call=call)
        y = states("SD3Transformer2DModel", 2)
        torch.testing.assert_close(D(y, 3.0, [1, 0]), wrapped("SD3Transformer2DModel", net)(y, 3.0, [1, 0]))
        assert seen == [(750.0, [1, 0], ["e", "p"])]

    def test_of_ones_own_may_have_classes(self):
        labels_seen = []

        def call(model, x, t, labels, conditions):
            assert conditions == {}
            labels_seen.append(labels.tolist())
            return model(x, t)

        D = from_diffusers(
            lambda x, t: 0 * x, diffusers.DDIMScheduler(), call=call, classes=4, null_label=3, shape=(1, 4, 4)
        )
        D(torch.zeros(2, 1, 4, 4), 1.0)
        D(torch.zeros(2, 1, 4, 4), 1.0, [0, 2])
        assert labels_seen == [[3, 3], [0, 2]]
        with pytest.raises(TypeError, match="call: expected a network or another callable"):
            from_diffusers(lambda x, t: x, diffusers.DDIMScheduler(), call=3)

    def test_of_a_velocity_need_a_scheduler_of_flow_matching(self):
        net = built("SD3Transformer2DModel")
        given = CASES["SD3Transformer2DModel"].conditioning
        with pytest.raises(
            ValueError, match=r"SD3Transformer2DModel predicts a velocity, noise - x0, and DDIMScheduler says 'epsilon'"
        ):
            from_diffusers(net, diffusers.DDIMScheduler(), conditioning=given)
        solver = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
        y = states("SD3Transformer2DModel")
        found = from_diffusers(net, solver, conditioning=given)(y, 2.0, 1)
        torch.testing.assert_close(found, wrapped("SD3Transformer2DModel", net)(y, 2.0, 1))

    def test_of_flux_take_even_sides(self):
        name = "FluxTransformer2DModel"
        D = from_diffusers(built(name), CASES[name].scheduler(), conditioning=CASES[name].conditioning)
        assert D.shape is None
        assert D(torch.zeros(1, 2, 4, 6), 1.0, 0).shape == (1, 2, 4, 6)
        with pytest.raises(ValueError, match="y: expected even sides, which are packed two by two, got 5 x 6"):
            D(torch.zeros(1, 2, 5, 6), 1.0, 0)


class TestEdm2:
    def test_refuses_missing_labels_and_passes_them_on(self):
        net = remote_edm2()().eval()
        D = from_diffusers(net, diffusers.EDMEulerScheduler())
        y = 2 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        assert (D.classes, D.unlabelled, D.null_label) == (5, False, None)
        with pytest.raises(ValueError, match="labels: EDM2UNet2DModel is conditional, and without labels it is not"):
            D(y, 2.0)
        torch.testing.assert_close(D(y, 2.0, [1, 4]), fc.diffusion.from_edm(net.net)(y, 2.0, [1, 4]), rtol=0, atol=0)
        assert not torch.equal(D(y, 2.0, [1, 4]), D(y, 2.0, [1, 3]))
        assert set(net.net.calls) == {torch.float32}  # forced

    def test_without_classes_takes_none(self):
        D = from_diffusers(remote_edm2()(num_class_embeds=0).eval(), diffusers.EDMEulerScheduler())
        assert (D.classes, D.unlabelled) == (0, True)
        with pytest.raises(ValueError, match="takes no labels"):
            D(torch.zeros(1, 3, 8, 8), 1.0, 0)

    def test_has_levels_of_edm(self):
        with pytest.raises(ValueError, match=r"EDM2UNet2DModel is a network of EDM.*; got DDIMScheduler"):
            from_diffusers(remote_edm2()().eval(), diffusers.DDIMScheduler())

    def test_of_that_name_without_a_config_is_called_as_it_was(self):
        """No class of diffusers: today's rule."""
        assert from_diffusers(Edm2Contract().eval(), diffusers.DDIMScheduler()).classes == 0


@pytest.mark.parametrize(("dropout", "classes", "null"), [(0.1, 4, 3), (0.0, 3, None)])
def test_a_sit_has_a_null_label_where_it_was_trained_with_one(dropout, classes, null):
    net = remote_flow("SiTTransformer2DModel")(class_dropout_prob=dropout).eval()
    D = from_diffusers(net, diffusers.FlowMatchEulerDiscreteScheduler())
    assert (D.classes, D.null_label, D.unlabelled) == (classes, null, null is not None)
    assert D.shape == (1, 8, 8)


@pytest.mark.parametrize("name", ["DiTTransformer2DModel", "UNet2DConditionModel", "SD3Transformer2DModel"])
def test_in_a_wrapper_it_is_the_same(name):
    net, y = built(name), states(name)
    D = wrapped(name, torch.nn.DataParallel(net))
    torch.testing.assert_close(D(y, 1.0, label_of(name)), wrapped(name, net)(y, 1.0, label_of(name)), rtol=0, atol=0)
    assert XL["projection_class_embeddings_input_dim"] == 6 + 6 * XL["addition_time_embed_dim"]
