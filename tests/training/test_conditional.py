"""Conditional networks from a store to a checkpoint: classes of the data are learned, kept, scored and shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gebm.classes import split_labels
from pipeline import config as schema
from pipeline import tasks
from pipeline.data import Position, Store, load_images, load_last_images, open_store, sources, write_store
from pipeline.data.classes import Classes
from pipeline.evaluation import metrics
from pipeline.runtime.errors import UserError
from pipeline.training.build_model import build_model, load_model, make_trainer, model_to_train
from pipeline.training.checkpoint_format import require_same_classes
from pipeline.training.checkpoints import Checkpoints, read
from pipeline.training.step_generator import step_generator

CPU = torch.device("cpu")
CONDITIONAL = {"networks": "dcgan_conditional"}


@pytest.fixture
def conditional(small, stores, classifier, monkeypatch):
    """A config of conditional networks on the digits, with keys of the test's own."""
    monkeypatch.setenv("GEBM_STORES", str(stores))

    def make(**groups) -> schema.Config:
        model = CONDITIONAL | groups.pop("model", {})
        sampler = {"name": "ula", "step_size": 1e-2, "num_steps": 2} | groups.pop("sampler", {})
        evaluation = {"extractor": "classifier"} | groups.pop("evaluation", {})
        return small(model=model, sampler=sampler, evaluation=evaluation, **groups)

    return make


def trained(config: schema.Config, url: Path, steps: int = 2, start: str | None = None) -> str:
    """The checkpoint after some base steps of the loop's own parts; from another, if given."""
    worker = tasks.make(config).open(0, 1, CPU)
    model = model_to_train(config, CPU, worker.classes)
    trainer, position = make_trainer(model, config, CPU), Position()
    if start is not None:
        checkpoint = read(start)
        require_same_classes(checkpoint.url, checkpoint.classes, worker.classes)
        model.load_state_dict(checkpoint.model)
        trainer.load_state_dict(checkpoint.training["trainer"])
        position = Position(**checkpoint.state["position"])
    batches = worker.batches(position)
    while trainer.base_step < steps:
        trainer.step(batches, step_generator(config, "step", trainer.base_step))
    state = {
        "config": schema.to_dict(config),
        "report": {},
        "lr_scale": 1.0,
        "position": batches.position._asdict() if hasattr(batches.position, "_asdict") else vars(batches.position),
        "classes": worker.classes.to_dict(),
    }
    training = {"trainer": trainer.state_dict(), "plateau": {}}
    return Checkpoints(str(url)).save(steps, model=model.state_dict(), training=training, state=state, score=1.0)


SHORT = {"warmup_energy_steps": 1, "energy_steps": 1, "batch_size": 16}


def test_batches_and_held_out_images_have_the_classes_of_the_store(conditional, digits):
    config = conditional(data={"held_out": 5}, train=SHORT)
    worker = tasks.make(config).open(0, 1, CPU)
    images, labels = load_images(digits)
    assert worker.classes == Classes.of(list("0123456789"), torch.bincount(labels).tolist())
    for data, expected in ((worker.held_out, labels[-5:]), (worker.seen, labels[:5])):
        assert split_labels(data, 10)[1].tolist() == expected.tolist()
    assert torch.equal(metrics.to_uint8(split_labels(worker.held_out, 10)[0]), load_last_images(digits, 5))
    # An image of a batch is one of the store, and its class is that one's.
    batch, classes = split_labels(next(worker.batches(Position())), 10)
    by_image = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    assert [by_image[image.numpy().tobytes()] for image in metrics.to_uint8(batch)] == classes.tolist()
    # The same images as without classes.
    plain = next(tasks.make(conditional(model={"networks": "dcgan"}, data={"held_out": 5}, train=SHORT)).open(
        0, 1, CPU).batches(Position()))  # fmt: skip
    assert torch.equal(batch, plain)


def test_the_labels_of_the_reference_are_those_of_its_images(digits):
    images, labels = load_images(digits)
    by_image = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    found = metrics.reference_labels(metrics.class_labels(digits))
    expected = [by_image[image.numpy().tobytes()] for image in metrics.reference_images(digits)]
    assert found.tolist() == expected
    assert torch.equal(metrics.class_labels(digits), labels) and metrics.has_class_labels(digits)


def test_a_run_resumes_bit_for_bit_and_a_checkpoint_names_its_classes(conditional, tmp_path):
    config = conditional(train=SHORT)
    whole = read(trained(config, tmp_path / "whole", 3))
    half = trained(config, tmp_path / "half", 2)
    rest = read(trained(config, tmp_path / "rest", 3, start=half))
    assert all(torch.equal(rest.model[name], tensor) for name, tensor in whole.model.items())
    tensors, resumed = (one.training["trainer"]["tensors"] for one in (whole, rest))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in tensors.items())
    assert rest.classes is not None and rest.classes.names == tuple("0123456789")
    model, *_ = load_model(rest.url, {})
    assert model.num_classes == 10 and model.class_frequencies.sum() == 1


def test_an_evaluation_scores_and_draws_a_conditional_model(conditional, digits, classifier):
    config = conditional(evaluation={"num_samples": 60, "grid": 16, "chain_points": 1, "per_class": True})
    worker = tasks.make(config).open(0, 1, CPU)
    model = build_model(config, worker.classes).eval()
    [saved] = (Path(digits.url) / "statistics").glob("labels.*")
    saved.unlink()
    evaluation = worker.evaluate(model)
    assert evaluation.scores["fid_gebm"] > 0 and evaluation.frames[0].shape == (16, 1, 8, 8)
    # Chains keep the classes they start with.
    base, gebm = (evaluation.ends[end].latents[:, 4:] for end in ("base", "gebm"))
    assert torch.equal(base, gebm) and (base.sum(1) == 1).all()
    assert {"base.png", "gebm.png", "by_energy.png", "chain.gif", "energies.png"} <= evaluation.pictures.keys()
    # A class's FID is that of its samples against the images of that class alone.
    end = evaluation.ends["gebm"]
    label = int(gebm.sum(0).argmax())
    images, labels = load_images(digits)
    own = metrics.features(images[labels == label], classifier)["embedding"]
    samples = end.features["embedding"][gebm[:, label] == 1]
    expected = metrics.fid_from_features(samples, metrics.Reference.of_features(classifier.label, own))
    assert evaluation.scores[f"fid_class_{label}_gebm"] == pytest.approx(expected, rel=4e-6)
    assert evaluation.scores[f"fid_class_{label}_gebm_standard_error"] > 0
    assert f"fid_class_{label}_base" in evaluation.scores
    # The labels of the store are read once: nothing has made them again.
    assert evaluation.pictures and not metrics.has_class_labels(digits)
    metrics.class_labels(digits)
    # Class coordinates are no part of the distances and diagnostics.
    assert np.isfinite(evaluation.scores["chain_distance_share"])


class Unlabeled:
    """Digits without labels, or with a label that is none."""

    def __init__(self, labels: tuple[str, ...] | None) -> None:
        self._digits = sources.make("digits")
        self.labels = labels

    def __getattr__(self, name: str):
        return getattr(self._digits, name)

    def __len__(self) -> int:
        return len(self._digits)

    def read(self, index: int):
        image, label = self._digits.read(index)
        return image, label if self.labels else None


def edited(store: Store, **changes) -> None:
    path = Path(store.url, "manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_store_without_labels_or_with_too_many_classes_is_refused_before_anything_starts(
    conditional, tmp_path, monkeypatch
):
    monkeypatch.setenv("GEBM_STORES", str(tmp_path))
    config = conditional(train=SHORT)
    write_store(Unlabeled(None), str(tmp_path / "digits-8"), resolution=8, channels=1)
    store = open_store("digits-8")
    with pytest.raises(UserError, match="have no labels, which conditional networks learn from") as error:
        tasks.make(config).check(store)
    assert "\n" not in str(error.value)
    tasks.make(conditional(model={"networks": "dcgan"}, train=SHORT)).check(store)
    write_store(sources.make("digits"), str(tmp_path / "many"), resolution=8, channels=1)
    edited(open_store("many"), labels=[str(number) for number in range(10_001)])
    with pytest.raises(UserError, match="has 10,001 classes, and conditional networks take 10,000 at most"):
        tasks.make(config).check(open_store("many"))


def test_a_store_in_which_a_sample_has_no_label_is_refused_before_the_extractor_is_trained(
    conditional, tmp_path, monkeypatch
):
    monkeypatch.setenv("GEBM_STORES", str(tmp_path))
    write_store(sources.make("digits"), str(tmp_path / "digits-8"), resolution=8, channels=1)
    # Some other program has made the store, and found no label for the nines.
    edited(open_store("digits-8"), labels=list("012345678"))
    with pytest.raises(UserError, match=r"with a label that is not below 9: make the store again") as error:
        tasks.make(conditional(train=SHORT)).prepare(open_store("digits-8"), CPU)
    assert "\n" not in str(error.value) and not Path(tmp_path, "digits-8", "statistics").exists()


def test_a_checkpoint_of_other_classes_is_refused(conditional, tmp_path):
    checkpoint = read(trained(conditional(train=SHORT), tmp_path / "trial", 1))
    require_same_classes(checkpoint.url, checkpoint.classes, checkpoint.classes)
    with pytest.raises(UserError, match="its classes are 0 to 9: 0, 1, 2") as error:
        require_same_classes(checkpoint.url, checkpoint.classes, Classes.of(["cat", "dog"], [1, 1]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("classes", "line"),
    [
        ({"names": ["a"], "counts": [1, 2]}, "a count for each name"),
        ({"names": ["a"], "counts": [0]}, "not all zero"),
        ({"names": ["a"], "counts": [-1]}, "damaged"),
        ({"names": [3], "counts": [1]}, "damaged"),
        ({"names": ["a"] * 10_001, "counts": [1] * 10_001}, "damaged"),
        (None, "names its classes"),
    ],
)
def test_classes_that_somebody_has_written_into_a_checkpoint_are_checked(conditional, tmp_path, classes, line):
    url = trained(conditional(train=SHORT), tmp_path / "trial", 1)
    path = Path(url, "state.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"classes": classes}))
    with pytest.raises(UserError, match=line) as error:
        load_model(url, {})
    assert "\n" not in str(error.value)


def test_sampling_takes_a_class_and_a_grid_has_one_class_a_row(conditional, tmp_path, call):
    url = trained(conditional(train=SHORT, seed=3), tmp_path / "trial", 1)
    common = [f"checkpoint={url}", "sampler.num_samples=40", "evaluation.grid=80"]
    status, printed, _ = call("sample", *common, f"output={tmp_path}/all")
    labels, samples = (np.load(tmp_path / "all" / f"{name}.npy") for name in ("labels", "samples"))
    assert status == 0 and samples.shape == (40, 1, 8, 8) and len(set(labels.tolist())) > 5
    assert "a class a row" in printed and "labels.npy" in printed
    # The latents are the same whatever the class is, so that samples of that class among all are those alone.
    assert call("sample", *common, "class=3", f"output={tmp_path}/three")[0] == 0
    # No class is called so: it is the number.
    assert call("sample", *common, "class=03", f"output={tmp_path}/again")[0] == 0
    three = np.load(tmp_path / "three" / "samples.npy")
    assert np.load(tmp_path / "three" / "labels.npy").tolist() == [3] * 40
    assert np.abs(three[labels == 3].astype(int) - samples[labels == 3].astype(int)).max() <= 1
    assert (three[labels != 3] != samples[labels != 3]).any()
    assert np.array_equal(np.load(tmp_path / "again" / "samples.npy"), three)
    assert json.loads((tmp_path / "three" / "settings.json").read_text())["class"] == "3"


def test_classes_that_are_not_there_are_refused_by_sampling(conditional, small, tmp_path, refused, stores):
    url = trained(conditional(train=SHORT), tmp_path / "trial", 1)
    assert "class=cat: there is no such class; classes are 0 to 9: 0, 1, 2" in refused(
        "sample", f"checkpoint={url}", "class=cat"
    )
    assert "class=10: there is no such class" in refused("sample", f"checkpoint={url}", "class=10")
    assert "class=-1: there is no such class" in refused("sample", f"checkpoint={url}", "class=-1")
    config = small(evaluation={"extractor": "classifier"})
    plain = build_model(config)
    training = {"trainer": make_trainer(plain, config, CPU).state_dict(), "plateau": {}}
    state = {"config": schema.to_dict(config), "report": {}, "lr_scale": 1.0}
    other = Checkpoints(str(tmp_path / "plain")).save(
        1, model=plain.state_dict(), training=training, state=state, score=1.0
    )
    assert "was trained without classes; leave it out" in refused("sample", f"checkpoint={other}", "class=3")
    with pytest.raises(UserError, match="trained on no image of that class"):
        Classes.of(["a", "b"], [0, 1]).label("a")


@pytest.mark.usefixtures("mlflow_tables")
def test_a_served_model_takes_a_class_and_names_those_of_its_samples(conditional, tmp_path):
    mlflow, pd = pytest.importorskip("mlflow"), pytest.importorskip("pandas")
    from pipeline.training.export import write_package

    url = trained(conditional(train=SHORT, seed=3), tmp_path / "trial", 1)
    write_package(url, tmp_path / "package")
    served = mlflow.pyfunc.load_model(str(tmp_path / "package"))
    request = pd.DataFrame({"num_samples": [30]})
    everything = served.predict(request)
    assert len(set(everything["class"])) > 5
    three = served.predict(request, params={"class": "3"})
    assert set(three["class"]) == {"3"}
    same = everything["class"] == "3"
    assert same.any() and np.allclose(three["energy"][same], everything["energy"][same], atol=1e-4)
    for name in ("cat", "10", "-1"):
        with pytest.raises(Exception, match=f"class={name}: choose one of 10: 0, 1, 2"):
            served.predict(request, params={"class": name})


def test_scores_by_class_need_classes_and_few_of_them(conditional, small, tmp_path, monkeypatch):
    from pipeline.config.validation import validate_rules

    with pytest.raises(UserError, match=r"evaluation.per_class=true: model.networks=dcgan has no classes"):
        validate_rules(small(evaluation={"extractor": "classifier", "per_class": True}))
    monkeypatch.setenv("GEBM_STORES", str(tmp_path))
    write_store(sources.make("digits"), str(tmp_path / "digits-8"), resolution=8, channels=1)
    edited(open_store("digits-8"), labels=[str(number) for number in range(101)])
    config = conditional(evaluation={"per_class": True}, train=SHORT)
    monkeypatch.setenv("GEBM_STORES", str(tmp_path))
    with pytest.raises(UserError, match="has 101 classes, and 100 at most have scores of their own"):
        tasks.make(config).check(open_store("digits-8"))
