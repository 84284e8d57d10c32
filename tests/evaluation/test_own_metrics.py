"""Metrics and feature extractors of one's own: as good as the built-in ones, and refused by file and line."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from pipeline.config import from_dict, metrics, plugins
from pipeline.config.part_settings import named_parts
from pipeline.config.scores import REPORT_GROUPS, at_end
from pipeline.config.validation import validate, validate_rules
from pipeline.data import load_images
from pipeline.evaluation.metrics import (
    Reference,
    compare,
    features,
    make_extractor,
    reference,
    reference_images,
    score,
    score_classes,
)
from pipeline.runtime.errors import UserError
from pipeline.tasks.images import ImageScorer
from pipeline.tracking.metric_names import metric_name
from tests.helpers.plugins import EXTRACTORS, METRICS, load, no_plugins
from tests.runtime.test_cpu_seed import gpu_seeds

__all__ = ["load", "no_plugins"]

pytestmark = pytest.mark.usefixtures("no_plugins")


def config(**groups):
    base = {"name": "x", "data": {"store": "s", "resolution": 8, "channels": 1, "source": {"kind": "digits"}}}
    return from_dict({**base, "model": {"networks": "dcgan", "latent_dim": 4, "width": 4}, **groups})


def test_a_metric_is_known_with_its_scores_its_least_number_of_samples_and_its_direction(load):
    assert "mean_gap" not in metrics.names()
    load(METRICS)
    assert metrics.metric("mean_gap") == metrics.Metric(("mean_gap",), 8, "down", "features")
    evaluation = {"metrics": ["mean_gap", "brightness"], "num_samples": 8}
    validate(config(evaluation=evaluation, sweep={"metric": "mean_gap_base"}))
    ranked = config(evaluation=evaluation, sweep={"metric": "brightness_gebm"})
    validate_rules(ranked)
    assert ranked.sweep.mode == "max"
    for groups, message in (
        ({"evaluation": {**evaluation, "num_samples": 7}}, "evaluation.metrics need 8 at least"),
        (
            {"evaluation": evaluation, "sweep": {"metric": "brightness_gebm", "mode": "min"}},
            "the higher it is; use sweep.mode=max",
        ),
        (
            {"evaluation": evaluation, "sweep": {"metric": "mean_gap_gebm", "mode": "max"}},
            "the lower it is; use sweep.mode=min",
        ),
        ({"evaluation": {"metrics": ["gap"]}}, "they have to be among fid, kid, is, prc, dc, mean_gap, brightness"),
    ):
        with pytest.raises(UserError, match=message):
            validate_rules(config(**groups))
    # In the tracker each is a group; features depend on their extractor, and images on none.
    assert metric_name("mean_gap_gebm_standard_error", "any") == "mean_gap/gebm_standard_error.any"
    assert metric_name("brightness_base", "any") == "brightness/base"
    assert [entry[1] for entry in named_parts(config(evaluation=evaluation)) if entry[0] == "evaluation.metrics"] == [
        "mean_gap",
        "brightness",
    ]


def test_a_metric_is_computed_of_as_many_data_and_has_a_standard_error_if_it_gives_one(load, digits, classifier):
    load(METRICS)
    statistics = reference(digits, classifier)
    images = load_images(digits)[0][:40]
    names = ["mean_gap", "brightness"]
    scorer = ImageScorer(classifier, statistics, names, images=lambda: reference_images(digits))
    scores = scorer.score(scorer.features(images) | {"images": images}, end=True)
    embedding = features(images, classifier)["embedding"]
    assert scores["brightness"] == pytest.approx(images.float().mean().item() / 255)
    assert scores["mean_gap_standard_error"] == pytest.approx((embedding.var(0).sum() / 40).sqrt().item(), rel=1e-5)
    assert "brightness_standard_error" not in scores and scorer.score(scorer.features(images), end=False).keys() == {
        "fid",
        "fid_standard_error",
    }
    among = Reference.of_features(classifier.label, embedding)
    assert compare({"embedding": embedding}, among, ["mean_gap"])["mean_gap"] == 0
    with pytest.raises(UserError, match="brightness is a metric of images"):
        score({"embedding": embedding}, statistics, classifier, ["brightness"])


def test_a_metric_gets_as_many_data_as_samples_and_draws_the_same_numbers_each_time(load, digits, classifier):
    load(
        "import torch\nfrom pipeline.config import metrics\n\n\n@metrics.register('drawn')\n"
        "def drawn(samples, data):\n    assert len(samples) == len(data)\n    samples.zero_()\n"
        "    return torch.rand(()) + len(data)\n"
    )
    validate(config(evaluation={"metrics": ["drawn"]}))
    statistics = reference(digits, classifier)
    sample = statistics.features[:30].clone()
    scores = []
    for seed in range(2):
        before = torch.manual_seed(seed).get_state()
        scores.append(score({"embedding": sample}, statistics, classifier, ["drawn", "fid"]))
    assert scores[0] == scores[1] and 30 <= scores[0]["drawn"] < 31 and scores[0]["fid"] > 0
    # Neither the samples nor the random numbers of the command are touched.
    assert torch.equal(sample, statistics.features[:30]) and torch.equal(before, torch.get_rng_state())


def test_neither_a_metric_nor_an_extractor_seeds_a_gpu(load, digits):
    load(METRICS + EXTRACTORS)
    torch.manual_seed(5)
    before = gpu_seeds()
    assert metrics.measure(metrics.NAMES.part("brightness"), torch.ones(8, 1), torch.ones(8, 1)).value > 0
    make_extractor("drawn")
    assert gpu_seeds() == before


def test_the_command_scores_a_folder_by_ones_own_metric_and_extractor(load, stores, tmp_path, call):
    path = load(METRICS + EXTRACTORS)
    words = (f"plugins=[{path}]", "images=digits-8", "against=digits-8", "evaluation.extractor=linear", "output=out")
    safetensors.torch.save_file({"weight": torch.eye(64)[:, :5].contiguous()}, tmp_path / "five.safetensors")
    status, _, printed = call("evaluate", *words)
    assert (status, printed) == (
        2,
        "error: evaluation.extractor=linear: it needs evaluation.weights=<a file of safetensors>\n",
    )
    status, printed, errors = call("evaluate", *words, f"evaluation.weights={tmp_path / 'five.safetensors'}")
    assert status == 0, errors
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert document["extractor"].startswith("linear-") and document["scores"]["mean_gap"] == pytest.approx(0, abs=1e-5)
    # Without logits there is no Inception score, and all others are taken.
    assert {"fid", "kid", "precision", "density", "mean_gap", "brightness"} < document["scores"].keys()
    assert "is" not in document["scores"] and "mean_gap" in printed
    status, _, printed = call(
        "evaluate", *words, "evaluation.metrics=[is]", f"evaluation.weights={tmp_path / 'five.safetensors'}"
    )
    assert status == 2 and "is needs logits" in printed and printed.count("\n") == 1


def test_an_extractor_is_named_by_its_code_and_its_weights_and_draws_the_same_in_each_process(load, digits, tmp_path):
    load(EXTRACTORS)
    for name, scale in (("one", 1.0), ("two", 2.0)):
        safetensors.torch.save_file({"weight": torch.ones(64, 3) * scale}, tmp_path / f"{name}.safetensors")
    one, two = (make_extractor("linear", weights=str(tmp_path / f"{name}.safetensors")) for name in ("one", "two"))
    images = load_images(digits)[0][:4]
    assert one.label != two.label and torch.equal(
        features(images, one)["embedding"] * 2, features(images, two)["embedding"]
    )
    (tmp_path / "other.py").write_text(EXTRACTORS.replace('"linear"', '"line"').replace('"drawn"', '"other"'))
    plugins.load([str(tmp_path / "other.py")])
    other = make_extractor("line", weights=str(tmp_path / "one.safetensors"))
    assert other.label.rpartition("-")[2] != one.label.rpartition("-")[2], "another code is another extractor"
    before = torch.get_rng_state()
    drawn, again = make_extractor("drawn"), make_extractor("drawn")
    assert torch.equal(before, torch.get_rng_state()) and drawn.label == again.label
    assert torch.equal(features(images, drawn)["logits"], features(images, again)["logits"])
    with pytest.raises(UserError, match="drawn has no weights; leave it out"):
        make_extractor("drawn", weights=str(tmp_path / "one.safetensors"))
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"bad\.safetensors: it is damaged or no file of weights"):
        make_extractor("linear", weights=str(tmp_path / "bad.safetensors"))


RETURNS = [
    ("return None", "it returns NoneType, and has to return a number"),
    ("return 'low'", "it returns str"),
    ("return True", "it returns bool"),
    ("return samples.mean(0)", r"it returns Tensor \(8,\)"),
    ("return 1.0, 2.0, 3.0", "it returns tuple"),
    ("return {'a': 1.0}", "it returns dict"),
    ("return 1j", "it returns complex"),
    ("return float('nan')", "of 16 samples it is nan ± None, and both have to be finite"),
    ("return 1.0, float('inf')", "it is 1.0 ± inf, and both have to be finite"),
    ("return 1.0, -1.0", "its standard error is -1.0"),
    ("return samples @ data", "mine.py:8: .*RuntimeError"),
    ("import sys; sys.exit()", "mine.py:8: .*SystemExit"),
    ("import random; return random.random()", "draw from torch alone"),
    ("return samples.nothing", "mine.py:8: .*AttributeError"),
]


@pytest.mark.parametrize(("body", "message"), RETURNS, ids=[body for body, _ in RETURNS])
def test_a_metric_that_returns_no_number_is_refused_before_anything_starts(load, body, message):
    path = load(
        f"import torch\nfrom pipeline.config import metrics\n\n\n@metrics.register('mine')\ndef mine(samples, data):\n"
        f"    'Doc.'\n    {body}\n"
    )
    with pytest.raises(UserError, match=message) as refusal:
        validate(config(evaluation={"metrics": ["mine"]}))
    assert str(refusal.value).startswith(f"{path}:") and "\n" not in str(refusal.value)


REGISTERED = [
    ("register('fid')", "there is a metric called 'fid' already"),
    ("register('precision')", "there is a metric called 'precision' already"),
    ("register('nearest')", "there is a metric called 'nearest' already"),
    ("register('a b')", "cannot be the name of a metric"),
    ("register('a', better='lower')", "better='lower' has to be among down, up"),
    ("register('a', of='pixels')", "of='pixels' has to be among features, images"),
    ("register('a', fewest=True)", "fewest=True has to be an int"),
    ("register('a', fewest='8')", "fewest='8' has to be an int"),
    ("register('a', up=True)", "a metric is not registered with up"),
    ("register('a', fewest=0)", "fewest=0 has to be from 1 to 10,000"),
    ("register('a', fewest=10_001)", "fewest=10001 has to be from 1 to 10,000"),
    ("register('fid_standard_error')", "already: choose another name"),
    ("register('fid_class_3')", "there is a metric called 'fid_class_3' already"),
    ("register('energy')", "there is a metric called 'energy' already"),
    ("register('gap_standard_error')", "already: choose another name"),
]


@pytest.mark.parametrize(("call", "message"), REGISTERED, ids=[call for call, _ in REGISTERED])
def test_a_metric_is_refused_where_it_is_registered(load, call, message):
    with pytest.raises(UserError, match=message) as refusal:
        load(f"from pipeline.config import metrics\n\n\n@metrics.{call}\ndef mine(samples): return 1.0\n")
    assert "mine.py:4: ValueError" in str(refusal.value)
    with pytest.raises(UserError, match="leave out its parameter bandwidth; it is given samples, data"):
        load("from pipeline.config import metrics\n@metrics.register('a')\ndef mine(samples, bandwidth=1.0): ...\n")


def test_no_metric_takes_the_name_of_a_score_that_this_project_gives(digits, classifier):
    """All names of an evaluation of images are reserved, and other names are free."""
    statistics = reference(digits, classifier)
    scorer = ImageScorer(classifier, statistics, list(metrics.BUILTIN), extrapolate=True)
    measured = scorer.features(load_images(digits)[0][:200])
    names = {at_end(name, "gebm") for name in scorer.score(measured, end=True)}
    labels = torch.arange(200) % 2
    names |= score_classes(measured, labels, {1: statistics}, classifier, "gebm").keys()
    names |= {name for name in REPORT_GROUPS if name.endswith(("_base", "_gebm"))}
    for name in sorted(names):
        stem = name.removesuffix("_standard_error").removesuffix("_gebm").removesuffix("_base")
        with pytest.raises(ValueError, match=f"there is a metric called '{stem}' already"):
            metrics.register(stem)(lambda samples: 1.0)
    for name in ("gap", "energy_gap", "my_fid", "nearest_gap", "fid_classes"):
        assert name not in names and metrics.register(name)(lambda samples: 1.0)


MODULES = [
    ("return 1", r"it returns int, and has to return an nn.Module"),
    ("return 1 / 0", r"mine.py:7: mine: ZeroDivisionError"),
    ("return nn.Flatten(0)", r"it maps images \(3, 1, 8, 8\) to \(192,\), and has to return embedding \(3, ...\)"),
    ("return nn.Identity()", r"to \(3, 1, 8, 8\), and has to return embedding"),
    ("return nn.Linear(2, 2)", r"RuntimeError"),
    ("return nn.Sequential(nn.Flatten(), nn.ZeroPad1d((0, 9000)))", r"it gives 9,064 features, and has to give 8,192"),
]


@pytest.mark.parametrize(("body", "message"), MODULES, ids=[body for body, _ in MODULES])
def test_an_extractor_of_another_shape_is_refused(load, body, message, digits):
    path = load(
        "from torch import nn\nfrom pipeline.evaluation.metrics import extractors\n\n\n"
        "@extractors.register('mine', channels=1)\n"
        f"def mine():\n    {body}\n"
    )
    with pytest.raises(UserError, match=message) as refusal:
        features(load_images(digits)[0][:3], make_extractor("mine"))
    assert str(refusal.value).startswith(f"{path}:") and "\n" not in str(refusal.value)
