"""The pictures of an evaluation show what they say: read back from their pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import open_store
from pipeline.evaluation import metrics, plots
from pipeline.evaluation.plots import image_panels
from pipeline.tasks.images import ImageTaskWorker
from pipeline.training.build_model import build_model

COUNT, SHOWN, CELL = 100, 16, 48 + 2


@pytest.fixture(scope="module")
def evaluated(stores, classifier):
    """A worker, and two models that it evaluated one after the other."""
    from pipeline.config import from_dict

    url = str(stores / "digits-8")
    values = {
        "name": "page",
        "data": {"store": url, "resolution": 8, "channels": 1, "source": {"kind": "digits"}},
        "model": {"networks": "dcgan", "latent_dim": 4, "width": 8},
        "sampler": {"name": "ula", "step_size": 1e-2, "num_steps": 4},
        "evaluation": {"num_samples": COUNT, "batch_size": 60, "chain_points": 2, "grid": SHOWN},
    }
    work = ImageTaskWorker(from_dict(values), open_store(url), classifier, 0, 1, torch.device("cpu"))
    models = [build_model(from_dict({**values, "seed": seed})).eval() for seed in range(2)]
    before = torch.get_rng_state()
    found = [work.evaluate(model) for model in models]
    assert torch.equal(torch.get_rng_state(), before)  # so pictures change nothing of the training around them
    return work, models, found


def pixels(picture: bytes | Image.Image) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture)


def energies(model, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.energy(images)


def test_latents_are_the_same_over_evaluations(evaluated):
    _, models, found = evaluated
    latents = [evaluation.ends["base"].latents for evaluation in found]
    assert torch.equal(*latents) and latents[0].shape == (COUNT, 4)
    for model, evaluation in zip(models, found, strict=True):
        with torch.no_grad():
            images = metrics.to_uint8(model.base(latents[0][:SHOWN]))
        expected = pixels(plots.grid(images, columns=8))
        assert (pixels(evaluation.pictures["base.png"]) == expected).all()
        both = pixels(evaluation.pictures["base_and_gebm.png"])
        assert (both[-len(expected) :, : expected.shape[1]] == expected).all()


def test_each_picture_has_a_first_one_of_the_base_at_the_latents_of_the_evaluations(evaluated):
    work, models, found = evaluated
    for model, evaluation in zip(models, found, strict=True):
        before = torch.get_rng_state()
        first = work.draw_start(model)
        assert torch.equal(torch.get_rng_state(), before)
        assert set(first) == {name for name in evaluation.pictures if name.endswith(".png")}
        base = pixels(evaluation.pictures["base.png"])
        for content in first.values():
            assert (pixels(content)[-len(base) :, : base.shape[1]] == base).all()


def test_samples_along_the_chain_are_rows_from_the_base_to_the_gebm(evaluated):
    _, _, found = evaluated
    for evaluation in found:
        picture, steps = pixels(evaluation.pictures["chain.png"]), sorted(evaluation.frames)
        height = len(picture) // len(steps)
        for row, step in enumerate(steps):
            expected = pixels(plots.grid(evaluation.frames[step][:8], columns=8))
            shown = picture[: (row + 1) * height][-len(expected) :, : expected.shape[1]]
            assert (shown == expected).all()


def test_samples_are_sorted_by_their_energy(evaluated):
    _, models, found = evaluated
    for model, evaluation in zip(models, found, strict=True):
        picture = pixels(evaluation.pictures["by_energy.png"])
        for side, name in enumerate(("base", "gebm")):
            end = evaluation.ends[name]
            with torch.no_grad():
                samples = model.base(end.latents)
            wanted = energies(model, samples)
            assert torch.allclose(end.energies, wanted, atol=1e-4)
            images = metrics.to_uint8(samples)
            left = side * (picture.shape[1] + 24) // 2
            everyone, few = wanted.argsort(), wanted[:SHOWN].argsort()
            for rows, top in ((few, 40), (everyone[:8], None), (everyone[-8:], None)):
                grid = pixels(plots.grid(images[rows], columns=8))
                tops = range(len(picture) - len(grid) + 1) if top is None else [top]
                strip = picture[:, left : left + grid.shape[1]]
                assert any((strip[y : y + len(grid)] == grid).all() for y in tops)


def test_beside_samples_are_the_training_images_nearest_to_them(evaluated, digits, classifier):
    _, models, found = evaluated
    everything = metrics.reference_images(digits)
    features = metrics.features(everything, classifier)["embedding"].double()
    for model, evaluation in zip(models, found, strict=True):
        end = evaluation.ends["gebm"]
        with torch.no_grad():
            images = metrics.to_uint8(model.base(end.latents[end.energies.argsort()[:8]]))
        embedding = metrics.features(images, classifier)["embedding"].double()
        distances = (embedding[:, None] - features[None]).square().sum(2).sqrt()
        picture = pixels(evaluation.pictures["neighbours.png"])[:, : 8 * CELL - 2]
        nearest = distances.argmin(1)
        for row in (images, everything[nearest]):
            strip = pixels(plots.grid(row, columns=8))
            assert any((picture[y : y + len(strip)] == strip).all() for y in range(len(picture) - len(strip) + 1))
        assert evaluation.scores["nearest_gebm"] > 0 and evaluation.scores["nearest_base"] > 0


def test_an_evaluation_says_the_trained_log_partition_beside_its_estimate(evaluated):
    _, models, found = evaluated
    for model, evaluation in zip(models, found, strict=True):
        assert evaluation.scores["log_partition"] == model.log_partition.item()
        assert {"energies.png", "log_partition.png", "chain.gif"} <= set(evaluation.pictures)


def test_words_are_whole_however_few_the_images():
    """A title that is wider than its picture makes room for itself."""
    one = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    payload = {"ratio": 1.0, "among": 10, "of": 1_000_000, "label": "inception-v3-compat"}
    drawn = pixels(image_panels.neighbors(one, torch.zeros(1), one[:, None], torch.ones(1, 1), **payload))
    assert (drawn[:, -1] == 255).all() and (drawn[:20] < 255).any()
