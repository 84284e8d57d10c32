"""Images scored against a store without a model: equal to torch-fidelity's command line, whatever form they come in."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_fidelity.fidelity
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import evaluate
from pipeline.config import from_dict
from pipeline.config.compose import apply
from pipeline.config.schema import Evaluation
from pipeline.data import Store, load_images, open_store, sources, write_store
from pipeline.data.image_codec import resize_center_crop
from pipeline.evaluation import image_sets
from pipeline.evaluation.image_sets import ImageFit, SourceImages, StoreImages
from pipeline.evaluation.metrics import set_features
from pipeline.evaluation.metrics.set_features import extract_all
from pipeline.evaluation.metrics.subsets import evenly_spaced, evenly_spaced_rows
from pipeline.runtime.errors import UserError
from pipeline.tasks import score_images as module
from pipeline.tasks.score_images import _Comparison, score_images
from tests.helpers.plugins import METRICS, load, no_plugins

__all__ = ["load", "no_plugins"]

NAMES = {
    "frechet_inception_distance": "fid",
    "kernel_inception_distance_mean": "kid",
    "kernel_inception_distance_std": "kid_std",
    "inception_score_mean": "is",
    "inception_score_std": "is_std",
    "precision": "precision",
    "recall": "recall",
}


def pixels(count: int, seed: int, side: int = 8, channels: int = 3) -> np.ndarray:
    """Random images uint8 (N, H, W, C) whose means differ, so that no two sets are alike."""
    generator = np.random.default_rng(seed)
    base = generator.integers(30, 200, (count, 1, 1, channels))
    return (base + generator.integers(-30, 30, (count, side, side, channels))).clip(0, 255).astype(np.uint8)


def save(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0]).save(folder / f"{index:03}.png")
    return folder


def make_store(folder: Path, url: Path, side: int = 8, channels: int = 3, **settings: Any) -> Store:
    write_store(
        sources.make("images", str(folder)), str(url), resolution=side, channels=channels, num_processes=1, **settings
    )
    return open_store(str(url))


def score(images: object, against: object, output: Path, **keys: Any) -> dict[str, Any]:
    """Run the body of the command and return its file; dots of keys are double underscores."""
    named = {key.replace("__", "."): value for key, value in keys.items()}
    overrides = {"images": str(images), "against": str(against), "output": str(output), **named}
    overrides = {"evaluation.extractor": "linear-stand-in", **overrides}
    config = from_dict({"name": "x", "data": {"store": "s", "source": {"kind": "x"}}, "model": {"networks": "dcgan"}})
    score_images(apply(config, overrides), overrides)
    return json.loads((output / "evaluation.json").read_text())


def command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, str]:
    """Return what torch-fidelity's command prints, as text."""
    monkeypatch.setattr("sys.argv", ["fidelity", *words, "--kid", "--isc", "--prc", "--cpu", "--silent", "--no-cache"])
    capsys.readouterr()
    # With worker processes it reads the same images in the same batches.
    with monkeypatch.context() as patch:
        patch.setattr("torch_fidelity.utils.multiprocessing.cpu_count", lambda: 0)
        torch_fidelity.fidelity.main()
    lines = (line.partition(": ") for line in capsys.readouterr().out.splitlines())
    return {NAMES[name]: value for name, _, value in lines if name in NAMES}


def as_printed(scores: dict[str, float]) -> dict[str, str]:
    return {name: f"{scores[name]:.7g}" for name in NAMES.values() if name in scores}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A folder of 150 images, a store of 131 others, and the folder that it was made of."""
    root = tmp_path_factory.mktemp("sets")
    samples, data = save(root / "samples", pixels(150, 0)), save(root / "data", pixels(131, 1))
    return samples, Path(make_store(data, root / "store", samples_per_shard=50).url), data


@pytest.fixture(scope="module")
def scored(sets: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return score(sets[0], sets[1], tmp_path_factory.mktemp("scored"))


def test_inception_scores_are_what_the_command_line_of_torch_fidelity_prints(
    inception_file: str,
    digits: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The FID of 2,048 features takes half a minute; that of fewer is compared below.
    images = load_images(digits)[0].permute(0, 2, 3, 1).numpy()
    samples, data = save(tmp_path / "samples", 255 - images[:11]), save(tmp_path / "data", images[20:32])
    make_store(data, tmp_path / "store", channels=1)
    words = [f"images={samples}", f"against={tmp_path / 'store'}", f"output={tmp_path / 'out'}"]
    words += [f"evaluation.weights={inception_file}", "evaluation.metrics=[kid,is,prc]"]
    monkeypatch.setattr("sys.argv", ["pipeline.evaluate", *words])
    with pytest.raises(SystemExit) as ended:
        evaluate.main()
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    assert "kid_std" in printed.out and "±" in printed.out and "images/s" in printed.err
    payload = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert payload["extractor"].startswith("inception-v3-compat-") and payload["num_samples"] == 11
    theirs = command_line(
        *(capsys, monkeypatch),
        *("--input1", str(samples), "--input2", str(data), "--kid-subset-size", "5"),
        *("--feature-extractor", "inception-v3-compat", "--feature-extractor-weights-path", inception_file),
    )
    assert as_printed(payload["scores"]) == theirs


def test_scores_of_several_batches_and_shards_are_those_of_torch_fidelity(
    sets: tuple[Path, Path, Path],
    scored: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store has its images in another order than the folder, and a third of the samples are more than the data."""
    samples, _, data = sets
    theirs = command_line(
        *(capsys, monkeypatch),
        *("--input1", str(samples), "--input2", str(data), "--kid-subset-size", "65", "--fid"),
        *("--feature-extractor", "linear-stand-in"),
    )
    assert as_printed(scored["scores"]) == theirs
    errors = {name.removesuffix("_standard_error") for name in scored["scores"] if name.endswith("_standard_error")}
    assert errors == {"fid", "kid", "is", "precision", "density", "coverage"}
    assert (scored["num_samples"], scored["num_data"], scored["resize"]) == (150, 131, False)


def zipped(images: np.ndarray, path: Path) -> Path:
    with zipfile.ZipFile(path / "images.zip", "w") as archive:
        for file in sorted(save(path / "files", images).iterdir()):
            archive.write(file, f"deep/{file.name}")
    return path / "images.zip"


def npy(images: np.ndarray, path: Path) -> Path:
    np.save(path / "images.npy", images.transpose(0, 3, 1, 2))
    return path / "images.npy"


def npz(images: np.ndarray, path: Path) -> Path:
    np.savez(path / "images.npz", images, np.arange(len(images)))
    return path / "images.npz"


def compressed(images: np.ndarray, path: Path) -> Path:
    np.savez_compressed(path / "images.npz", other=images[:1], samples=images, labels=np.zeros(3, np.float32))
    return path / "images.npz"


def store(images: np.ndarray, path: Path) -> Path:
    return Path(make_store(save(path / "files", images), path / "store", encoding="images").url)


@pytest.mark.parametrize("form", [zipped, npy, npz, compressed, store])
def test_the_same_images_have_the_same_scores_in_every_form(
    form: Callable[[np.ndarray, Path], Path], sets: tuple[Path, Path, Path], scored: dict[str, Any], tmp_path: Path
) -> None:
    found = score(form(pixels(150, 0), tmp_path), sets[1], tmp_path / "out")
    assert found["scores"] == scored["scores"] and found["num_samples"] == 150


def test_a_name_is_a_store_and_a_path_that_exists_comes_first(
    sets: tuple[Path, Path, Path], scored: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEBM_STORES", str(sets[1].parent))
    monkeypatch.chdir(tmp_path)
    same = score("store", "store", tmp_path / "out", evaluation__metrics=["dc"])
    assert same["scores"]["density"] == pytest.approx(1) and same["scores"]["coverage"] == 1
    shutil.copytree(sets[0], tmp_path / "store")
    assert score("store", "store", tmp_path / "out")["scores"] == scored["scores"]


def test_a_store_is_read_in_the_order_of_its_source_and_a_large_one_in_equal_batches(
    sets: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, images = open_store(str(sets[1])), torch.from_numpy(pixels(131, 1)).permute(0, 3, 1, 2)
    chosen = torch.arange(131) % 3 > 0
    data = StoreImages(opened)
    assert torch.equal(torch.cat(list(data.batches(64))), images)
    assert torch.equal(torch.cat(list(data.batches(10, chosen))), images[chosen])
    monkeypatch.setattr(image_sets, "_MAX_REORDERED_BYTES", 0)
    stored = load_images(opened)[0]
    assert [len(batch) for batch in data.batches(64)] == [64, 64, 3]
    assert torch.equal(torch.cat(list(data.batches(64))), stored)
    assert torch.equal(torch.cat(list(data.batches(10, chosen))), stored[chosen])


def test_images_of_another_form_are_refused_or_resized_as_the_stores_own(
    sets: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    large = pixels(12, 2, side=20)
    for name, images in {"large": large, "gray": pixels(12, 2, channels=1)}.items():
        with pytest.raises(UserError, match=r"have 8x8 pixels and 3 channels: set evaluation\.resize=true") as refusal:
            score(save(tmp_path / name, images), sets[1], tmp_path / "out")
        assert "\n" not in str(refusal.value) and "000.png" in str(refusal.value)
    boxes = make_store(sets[2], tmp_path / "boxes", resize_filter="box")
    fit = ImageFit(boxes, resize=True)
    found = next(SourceImages(sources.make("images", str(tmp_path / "large")), fit).batches(12)).numpy()
    assert (found == np.stack([resize_center_crop(image, 8, 3, "box") for image in large])).all()
    made = make_store(tmp_path / "large", tmp_path / "store-20", side=20)
    with pytest.raises(UserError, match=r"20x20 pixels and 3 channels.*evaluation\.resize=true"):
        StoreImages(made, ImageFit(boxes, resize=False))
    assert (next(StoreImages(made, fit).batches(12)).numpy() == found).all()


def test_a_part_of_the_images_is_a_seeded_one_and_many_data_are_a_cached_statistic(
    sets: tuple[Path, Path, Path], scored: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = [score(*sets[:2], tmp_path / str(i), evaluation__num_samples=100, seed=i // 2) for i in range(3)]
    assert part[0]["scores"] == part[1]["scores"] != part[2]["scores"] and part[0]["num_samples"] == 100
    with pytest.raises(UserError, match=r"evaluation\.num_samples=151: .* has 150 images"):
        score(*sets[:2], tmp_path / "out", evaluation__num_samples=151)
    monkeypatch.setattr(module, "MAX_COMPARED", 120)
    many = score(*sets[:2], tmp_path / "out")
    assert (many["num_samples"], many["num_data"]) == (120, 131)
    assert many["scores"]["fid"] == pytest.approx(scored["scores"]["fid"], rel=0.5)


def test_features_of_a_store_are_saved_with_it_and_made_again_where_they_are_damaged(
    sets: tuple[Path, Path, Path], scored: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(sets[1], tmp_path / "store")
    (file,) = (copy / "statistics").glob("linear-stand-in-features-131.safetensors")
    calls: list[int] = []
    extract = set_features.extract_all
    monkeypatch.setattr(set_features, "extract_all", lambda *args: calls.append(1) or extract(*args))
    assert score(sets[0], copy, tmp_path / "out")["scores"] == scored["scores"] and not calls
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="computed again"):
        assert score(sets[0], copy, tmp_path / "out")["scores"] == scored["scores"]
    assert calls == [1]


def cut(path: Path) -> str:
    save(path / "cut", pixels(12, 0))
    (path / "cut" / "003.png").write_bytes((path / "cut" / "003.png").read_bytes()[:60])
    return "cut"


def pickled(path: Path) -> str:
    np.save(path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    return "objects.npy"


def promised(path: Path) -> str:
    """A header of more numbers than any memory has."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 64, 64, 3)})
    (path / "many.npy").write_bytes(header.getvalue() + b"\0" * 100)
    return "many.npy"


def floats(path: Path) -> str:
    np.save(path / "floats.npy", np.zeros((12, 8, 8, 3), np.float32))
    return "floats.npy"


def several(path: Path) -> str:
    np.savez(path / "several.npz", a=pixels(12, 0), b=pixels(12, 0))
    return "several.npz"


def bomb(path: Path) -> str:
    np.savez_compressed(path / "bomb.npz", np.zeros((20_000, 8, 8, 3), np.uint8))
    return "bomb.npz"


def few(path: Path) -> str:
    save(path / "few", pixels(9, 0))
    return "few"


def none(path: Path) -> str:
    (path / "none").mkdir()
    (path / "none" / "notes.txt").write_text("x")
    return "none"


def empty(path: Path) -> str:
    np.save(path / "empty.npy", np.zeros((0, 8, 8, 3), np.uint8))
    return "empty.npy"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (cut, r"003\.png of .*cut cannot be read .*: repair it or take it out"),
        (pickled, r"objects\.npy is no NumPy file of plain numbers .*: write it by np\.save"),
        (promised, r"many\.npy is no NumPy file of plain numbers"),
        (floats, r"floats\.npy is an array float32 \(12, 8, 8, 3\): images are uint8"),
        (several, r"several\.npz has 2 arrays of images \(a uint8 .*\): call one of them images"),
        (bomb, "unpacks to more than 100 times its size"),
        (few, r"is needs 10 images on both sides, and of .*few there are 9: .*evaluation\.metrics"),
        (none, r"there are no images in .*none"),
        (empty, r"there are no images in .*empty\.npy|is no NumPy file"),
        (lambda path: "nowhere", "images=.*nowhere: no file or folder is there, and no finished store"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_scored_is_one_line(
    make: Callable[[Path], str],
    message: str,
    sets: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.data.sources.compression._MOST_UNPACKED", 2**20)
    url = tmp_path / make(tmp_path)
    with pytest.raises(UserError, match=message) as refusal:
        score(url, sets[1], tmp_path / "out")
    assert "\n" not in str(refusal.value) and not (tmp_path / "out" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"checkpoint": "trials/000"}, r"checkpoint=trials/000: images=.* without a model; leave it out"),
        ({"against": None}, r"images=.*: images are scored against a store; add against=<the store>"),
        ({"images": None}, r"against=.*: images are scored against a store; add images="),
        ({"evaluation.metrics": ["fdi"]}, r"evaluation\.metrics=\['fdi'\]: they have to be among fid, kid"),
        ({"evaluation.metrics": []}, r"evaluation\.metrics=\[\]: name some"),
        ({"evaluation.extractor": "classifier"}, r"no labels.*evaluation\.extractor=inception-v3-compat"),
        ({"evaluation.extractor": "dinov2-vit-s-14"}, r"no feature extractor 'dinov2-vit-s-14': choose one of"),
        ({"evaluation.num_samples": 0}, r"evaluation\.num_samples=0"),
        ({"against": "nothing"}, r"against=nothing: no finished store at .*pipeline\.shards"),
        ({"data.timeout": 0}, r"data\.timeout=0"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_key_is_one_line(
    keys: dict[str, Any], message: str, sets: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEBM_STORES", str(tmp_path))
    config = from_dict({"name": "x", "data": {"store": "s", "source": {"kind": "x"}}, "model": {"networks": "dcgan"}})
    overrides = {"images": str(sets[0]), "against": str(sets[1]), "output": str(tmp_path / "out"), **keys}
    with pytest.raises(UserError, match=message) as refusal:
        score_images(apply(config, overrides), overrides)
    assert "\n" not in str(refusal.value)


def test_a_set_is_read_once_whatever_is_measured(load, digits, classifier):
    load(METRICS)

    class Counting(StoreImages):
        read = 0

        def batches(self, size, chosen=None):
            for images in super().batches(size, chosen):
                self.read += len(images)
                yield images

    images, settings = Counting(digits), Evaluation(metrics=["fid", "brightness"])
    scores = _Comparison(settings, images, None, digits, StoreImages(digits)).score(classifier)
    assert images.read == len(images) == 1797
    assert scores["brightness"] == pytest.approx(load_images(digits)[0].float().mean().item() / 255, rel=1e-5)


@given(st.integers(1, 300), st.integers(0, 40), st.integers(1, 50))
def test_the_images_that_are_kept_are_those_that_were_asked_for(total, count, batch):
    images = torch.arange(total, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    kept = evenly_spaced_rows(total, count)
    advanced = []
    found = extract_all(
        lambda size: iter(images.split(batch)), lambda part: {"embedding": part[:, 0, 0].float()}, advanced.append, kept
    )
    assert torch.equal(found["images"], evenly_spaced(images, count)) and sum(advanced) == total
    assert torch.equal(found["embedding"], images[:, 0, 0].float()) and kept.sum() == min(count, total)
