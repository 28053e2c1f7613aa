"""What users' scripts and stored runs rely on: public names, where the reference says they are, configurations."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import pytest

import fastcrit as fc
from fastcrit.studies import FashionMnistStudy, GuidanceStudy, ImageNetStudy, PatchStudy

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"

# Public names by module that scripts may rely on: none is taken away. New ones come in here with a release.
PUBLIC = {
    "fastcrit": """
        METHODS CorrelationLength CriticalPoint FileFormatError ModeResponse NoTransitionError RadialCorrelation
        RadialSpectrum Recorder ResponseFunction StructureFactor alignment analyze autocorrelation core_info
        correlation_length critical_point data diffusion dispersion_length errors mode_response patch plot
        power_spectrum report response_function schedules set_num_threads store structure_factor studies theory""",
    "fastcrit.alignment": """
        Alignment Paired class_alignment coverage minimal_detectable_difference paired pairwise_distance""",
    "fastcrit.data": "FASHION_MNIST_CLASSES LabelledImages fashion_mnist roll",
    "fastcrit.diffusion": """
        AttentionWindow Constant Denoiser EntropyRate FoundPulse Guided Information InformationCurve Interval Judge
        LevelWindow LocalityGap Net NetConfig Probe Pulse Retention SHIPPED Training Weight attention_window
        class_entropy_rate fashion_mnist find_pulse forward_backward from_denoiser from_diffusers from_edm
        from_epsilon from_gaussian from_mixture from_patch from_pipeline from_velocity guided information
        load_diffusers load_edm2 load_judge load_net locality_gap pretrained sample save_net scheduler_levels
        to_diffusers_callback""",
    "fastcrit.errors": "ConventionWarning FileFormatError IncompleteRunError NoTransitionError",
    "fastcrit.patch": "Dictionary denoise response sample",
    "fastcrit.plot": """
        alignment deficits drift_rates gains lengths order_parameter save_figures softening states structure_factors""",
    "fastcrit.report": "Report write_report",
    "fastcrit.schedules": "Cosine EDM FlowMatching OrnsteinUhlenbeck Schedule VP log_levels",
    "fastcrit.store": "create_run load_array load_dataset open_array save_dataset",
    "fastcrit.studies": "FashionMnistStudy GuidanceStudy ImageNetStudy PatchStudy",
    "fastcrit.theory": """
        GaussianMixture GaussianTheory GinzburgLandau PatchTheory Pitchfork pitchfork speciation_level""",
}
# What the reference shows besides, and where.
DEEPER = {
    "fastcrit.critical": "Signature",
    "fastcrit.diffusion.fashion_mnist": """
        classifier denoising_errors quality train_and_save_classifier train_denoiser write_card""",
    "fastcrit.modes": "drift_rate gaussian_bound response_deficit",
    "fastcrit.patch.sampler": "Response denoise response sample",
}


def documented():
    """Dotted names of everything that the reference names, members that it lists one by one among them."""
    for page in sorted(REFERENCE.glob("*.md")):
        for name, options in re.findall(r"^::: (\S+)\n((?:    .*\n)*)", page.read_text() + "\n", flags=re.MULTILINE):
            yield name
            listed = re.search(r"members: \[(.*)\]", options)
            yield from (f"{name}.{member}" for member in (listed[1].split(", ") if listed else ()))


def imported(name):
    """What ``from .. import ..`` gives for a dotted name; None where there is nothing of that name."""
    module, _, last = name.rpartition(".")
    return getattr(import_module(module), last, None)


class TestNames:
    @pytest.mark.parametrize("name", PUBLIC)
    def test_of_the_list_are_there(self, name):
        module, names = import_module(name), PUBLIC[name].split()
        assert set(names) <= set(dir(module))
        assert set(names) <= set(getattr(module, "__all__", names))
        assert all(getattr(module, n) is not None for n in names)

    def test_dir_shows_the_package_and_its_version(self):
        assert {*PUBLIC["fastcrit"].split(), "__version__"} <= set(dir(fc))

    @pytest.mark.parametrize("module", DEEPER)
    def test_that_lie_deeper_are_where_they_were(self, module):
        assert all(callable(imported(f"{module}.{name}")) for name in DEEPER[module].split())

    def test_of_the_reference_are_where_it_says(self):
        names = list(documented())
        assert len(names) > 80
        assert [name for name in names if imported(name) is None] == []


def digest(value, *, sort_keys):
    return hashlib.sha256(json.dumps(value, sort_keys=sort_keys).encode()).hexdigest()[:16]


# Fields that runs were begun without, which a configuration has where they are given.
WHERE_GIVEN = ("prompts", "negative", "locality")


# A run goes on only with the configuration that it was begun with, and its chunks name the hash of it. Other fields,
# defaults or names would make every stored run another one; another order, another config.json.
class TestConfigurations:
    @pytest.mark.parametrize(
        ("study", "by_name", "in_order"),
        [
            (PatchStudy(), "bc7c396dbb9a6b28", "03ef23ae09a177d5"),
            (FashionMnistStudy(), "19a041b0a61b4fe3", "fc9622c3acecee17"),
            (ImageNetStudy(diffusers="model"), "4b4919b5f699ea28", "83b3b0b75ebe12c8"),
            (GuidanceStudy("run"), "1ea14b7264e81cba", "3cc99cea529a3521"),
        ],
        ids=["patch", "fashion-mnist", "imagenet", "guidance"],
    )
    def test_fields_keep_their_names_values_and_order(self, study, by_name, in_order):
        fields = {name: value for name, value in asdict(study).items() if name not in WHERE_GIVEN}
        assert (digest(fields, sort_keys=True), digest(fields, sort_keys=False)) == (by_name, in_order)

    def test_of_a_patch_study_is_that_of_older_runs(self):
        ds = PatchStudy(patterns=0, lattice=8, samples=3, levels=5, substeps=1).run()
        assert digest(json.loads(ds.attrs["config"]), sort_keys=True) == "29ee7dc3a94389a3"
        assert digest({"study": "patch", **asdict(PatchStudy())}, sort_keys=True) == "55331248ad5e8f1a"

    @pytest.mark.parametrize(
        ("study", "by_name", "in_order"),
        [
            (FashionMnistStudy(), "435d39f113b54427", "9d1dcc270960c8c5"),
            (ImageNetStudy(diffusers="model"), "7a016cd31b6ce37a", "00434f65e8520446"),
        ],
        ids=["fashion-mnist", "imagenet"],
    )
    def test_of_a_study_of_a_shipped_network_is_that_of_older_runs(self, study, by_name, in_order):
        config = study.config(fc.diffusion.pretrained("circular-0"))
        assert (digest(config, sort_keys=True), digest(config, sort_keys=False)) == (by_name, in_order)
