"""Extractors: the classifier that is trained on the store, and torch-fidelity's own with weights from a file."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import pickletools
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from pipeline.data import Store, load_images, open_store, sources, write_store
from pipeline.evaluation.metrics import (
    Extractor,
    Reference,
    features,
    make_extractor,
    reference,
    score,
    train_classifier,
)
from pipeline.evaluation.metrics.classifier_training import classifier_url
from pipeline.runtime import safetensors_io
from pipeline.runtime.errors import UserError


def copy_of(store: Store, path: Path, *without: str) -> Store:
    shutil.copytree(store.url, path, ignore=shutil.ignore_patterns(*without))
    return open_store(str(path))


def test_the_classifier_beats_chance_on_digits_it_never_saw(digits: Store, classifier: Extractor) -> None:
    header = safetensors_io.read(classifier_url(digits)).header
    assert header["num_train"] + header["num_held_out"] == 1797
    # Chance is 1/10; five standard deviations of a binomial above it.
    chance = 0.1 + 5 * math.sqrt(0.1 * 0.9 / header["num_held_out"])
    assert header["accuracy"] > chance
    images, labels = load_images(digits)
    right = (features(images, classifier)["logits"].argmax(dim=1) == labels).float().mean().item()
    assert right > chance, "the weights that were saved have to be those that were trained"
    assert classifier.label == f"classifier-{digits.manifest.digest[:8]}"


def test_a_store_without_labels_is_measured_by_the_classifier_of_another(
    digits: Store, classifier: Extractor, tmp_path: Path
) -> None:
    for index, image in enumerate(load_images(digits)[0][:30]):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{index}.png")
    write_store(sources.make("images", str(tmp_path)), str(tmp_path / "unlabelled"), resolution=8, channels=1)
    unlabelled = open_store(str(tmp_path / "unlabelled"))
    with pytest.raises(UserError, match="no labels"):
        make_extractor("classifier", store=unlabelled)
    borrowed = make_extractor("classifier", store=unlabelled, weights=classifier_url(digits))
    images = load_images(digits)[0][:7]
    assert borrowed.label == classifier.label and borrowed.digest == classifier.digest
    assert torch.equal(borrowed(images)["embedding"], classifier(images)["embedding"])


def test_the_same_seed_gives_the_same_classifier(digits: Store, classifier: Extractor, tmp_path: Path) -> None:
    copy = copy_of(digits, tmp_path / "copy", "extractors", "statistics")
    seen: list[tuple[int, int]] = []
    url = train_classifier(copy, progress=lambda done, total: seen.append((done, total)))
    assert Path(url).read_bytes() == Path(classifier_url(digits)).read_bytes()
    assert seen[-1][0] == seen[-1][1] and seen == sorted(seen)


def test_of_two_that_train_at_once_the_first_to_finish_is_used_by_both(digits: Store, tmp_path: Path) -> None:
    copy = copy_of(digits, tmp_path / "copy", "extractors", "statistics")
    path = Path(classifier_url(copy))

    def other_process(done: int, total: int) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"theirs")

    assert train_classifier(copy, progress=other_process) == str(path)
    assert path.read_bytes() == b"theirs"


def test_a_trained_classifier_is_used_again(digits: Store, classifier: Extractor) -> None:
    before = Path(classifier_url(digits)).stat().st_mtime_ns
    again = make_extractor("classifier", store=digits)
    assert Path(classifier_url(digits)).stat().st_mtime_ns == before
    assert again.digest == classifier.digest == hashlib.sha256(Path(classifier_url(digits)).read_bytes()).hexdigest()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def _other_data(path: Path) -> None:
    file = safetensors_io.read(str(path))
    safetensors_io.write(str(path), file.tensors, file.header | {"digest": "0" * 16})


def _other_shape(path: Path) -> None:
    file = safetensors_io.read(str(path))
    safetensors_io.write(str(path), file.tensors | {"head.weight": torch.zeros(3, 64)}, file.header)


def _missing_tensor(path: Path) -> None:
    file = safetensors_io.read(str(path))
    safetensors_io.write(str(path), {k: v for k, v in file.tensors.items() if k != "head.bias"}, file.header)


def _no_header(path: Path) -> None:
    path.write_bytes(safetensors.torch.save(safetensors_io.read(str(path)).tensors))


@pytest.mark.parametrize("damage", [_cut, _other_data, _other_shape, _missing_tensor, _no_header])
def test_a_classifier_that_does_not_fit_is_refused(
    digits: Store, classifier: Extractor, tmp_path: Path, damage: object
) -> None:
    copy = copy_of(digits, tmp_path / "copy", "statistics")
    damage(Path(classifier_url(copy)))
    with pytest.raises(UserError, match="delete it to train anew") as caught:
        make_extractor("classifier", store=copy)
    assert "\n" not in str(caught.value)


def test_a_store_without_labels_cannot_have_a_classifier(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(24):
        pixels = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8, generator=generator).numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
    write_store(sources.make("images", str(folder)), str(tmp_path / "store"), resolution=8, channels=3)
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(UserError, match=r"no labels.*evaluation\.extractor=inception-v3-compat"):
        make_extractor("classifier", store=store)


def test_names_that_are_not_known_or_not_safe_are_refused() -> None:
    for name in ("inception", "clip-vit-b-32", "dinov2-vit-s-14"):
        with pytest.raises(UserError, match="inception-v3-compat"):
            make_extractor(name)
    with pytest.raises(UserError, match=r"data\.store"):
        make_extractor("classifier")


def test_the_standard_fid_is_that_of_torch_fidelity(
    digits: Store, inception_file: str, torch_fidelity_metrics: Callable[..., dict[str, float]]
) -> None:
    """With stand-in weights in the file format of the published ones, features and FID are torch-fidelity's."""
    extractor = make_extractor("inception-v3-compat", weights=inception_file)
    digest = hashlib.sha256(Path(inception_file).read_bytes()).hexdigest()
    assert extractor.label == f"inception-v3-compat-{digest[:8]}", "other weights are another extractor"
    images = load_images(digits)[0]
    data, samples = images[:6], 255 - images[20:26]
    found, ours = features(data, extractor), features(samples, extractor)
    assert found["embedding"].shape == (6, 2048) and found["logits"].shape == (6, 1008)

    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=inception_file
    )
    with torch.no_grad():
        embedding, logits = theirs(data.expand(-1, 3, -1, -1))
    torch.testing.assert_close(found["embedding"], embedding)
    torch.testing.assert_close(found["logits"], logits)

    x = found["embedding"].double()
    statistics = Reference(extractor.label, 6, x.mean(dim=0), x.T.cov(), found["embedding"])
    fid = score(ours, statistics, extractor)["fid"]
    rgb = (images.expand(-1, 3, -1, -1) for images in (samples, data))
    expected = torch_fidelity_metrics(*rgb, feature_extractor_weights_path=inception_file, fid=True)
    assert fid == pytest.approx(expected["frechet_inception_distance"], rel=1e-3) and fid > 1


def test_weights_may_be_safetensors(
    digits: Store, inception_file: str, inception_state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = str(tmp_path / "inception.safetensors")
    safetensors.torch.save_file(inception_state, path)
    images = load_images(digits)[0][:2]
    one = features(images, make_extractor("inception-v3-compat", weights=path))
    other = features(images, make_extractor("inception-v3-compat", weights=inception_file))
    assert torch.equal(one["embedding"], other["embedding"])


class _Trap:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    bare, zipped = tmp_path / "bare.pth", tmp_path / "zipped.pth"
    bare.write_bytes(pickle.dumps({"weight": _Trap(str(sprung))}, protocol=2))
    torch.save({"weight": _Trap(str(sprung))}, zipped)
    for path in (bare, zipped):
        with pytest.raises(UserError, match=r"was not loaded.*evaluation\.weights"):
            make_extractor("inception-v3-compat", weights=str(path))
        assert not sprung.exists()
    # REDUCE is the instruction that calls a function when it is read.
    operations = {operation.name for operation, _, _ in pickletools.genops(bare.read_bytes())}
    assert "REDUCE" in operations, "the trap does not work, so the test shows nothing"


def test_wrong_weights_are_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    missing = tmp_path / "none.pth"
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, other)
    junk = tmp_path / "junk.pth"
    junk.write_bytes(b"not weights at all")
    no_dict = tmp_path / "tensor.pth"
    torch.save(torch.zeros(3), no_dict)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x10" + b"\x00" * 40)
    for path in (missing, other, junk, no_dict, broken, tmp_path):
        with pytest.raises(UserError, match=r"evaluation\.weights=<file>.*evaluation\.extractor=classifier") as caught:
            make_extractor("inception-v3-compat", weights=str(path))
        assert "\n" not in str(caught.value)


def test_weights_that_give_no_numbers_are_refused(
    digits: Store, inception_state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "nan.pth"
    torch.save(inception_state | {"fc.weight": torch.full((1008, 2048), math.nan)}, path)
    with pytest.raises(UserError, match="not finite"):
        features(load_images(digits)[0][:2], make_extractor("inception-v3-compat", weights=str(path)))


def test_published_weights_that_cannot_be_had_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a network: a proxy that refuses takes the place of the missing network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies of its first use, and would keep these
    with pytest.raises(UserError, match=r"cannot be downloaded.*evaluation\.weights=<that file>") as refusal:
        make_extractor("inception-v3-compat")
    # The file, its checksum and where it may be put.
    line = str(refusal.value)
    assert "weights-inception-2015-12-05-6726825d.pth from https://" in line and "begins with 6726825d" in line
    assert str(tmp_path / "torch" / "hub" / "checkpoints") in line and "\n" not in line


def test_a_wrong_file_in_torchs_cache_does_not_pass_as_the_published_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, inception_state: dict[str, torch.Tensor]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(inception_state, folder / "weights-inception-2015-12-05-6726825d.pth")
    assert make_extractor("inception-v3-compat").label != "inception-v3-compat"


def test_grey_images_are_repeated_for_networks_of_color(digits: Store, stand_in: Extractor) -> None:
    grey = load_images(digits)[0][:5]
    assert torch.equal(
        features(grey, stand_in)["embedding"], features(grey.expand(-1, 3, -1, -1), stand_in)["embedding"]
    )
    assert reference(digits, stand_in, 100).label == "linear-stand-in"
