"""A trained pair comes in: what is taken of its files, and what is refused before anything starts."""

from __future__ import annotations

import dataclasses
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gebm import networks
from pipeline import config as schema
from pipeline.evaluation import metrics
from pipeline.runtime.errors import UserError
from pipeline.sweep.plan import _import_pair
from pipeline.training.build_model import build_model, load_model
from pipeline.training.checkpoint_format import load_state
from pipeline.training.checkpoints import read
from pipeline.training.import_weights import IMPORTED, forget_files, read_pair
from tests.helpers import published
from tests.helpers.plugins import load, no_plugins

__all__ = ["load", "no_plugins"]

GENERATOR = published.mimicry_generator(32, latent_dim=6)
DISCRIMINATOR = published.mimicry_discriminator(32)
VALUES = {
    "name": "x",
    "data": {"store": "s", "source": {"kind": "digits"}, "resolution": 32},
    "model": {"networks": "imported", "latent_dim": 6},
}


def config_of(base, energy, **keys) -> schema.Config:
    keys = {"model.base": str(base), "model.energy": None if energy is None else str(energy)} | keys
    return schema.apply(schema.from_dict(VALUES), keys)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """The two as torch_mimicry saves them."""
    folder = tmp_path_factory.mktemp("weights")
    for name, state in (("G", GENERATOR), ("D", DISCRIMINATOR)):
        torch.save({"model_state_dict": state, "optimizer_state_dict": None, "global_step": 7}, folder / f"{name}.pth")
    return {"G": folder / "G.pth", "D": folder / "D.pth"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train.batch_size": 0}, r"train\.batch_size=0"),
        ({"sampler.settings": {"jitters": 1.0}}, r"no such key: sampler\.settings\.jitters"),
        ({"sweep.metric": "fid_gan"}, r"sweep\.metric=fid_gan"),
        ({"sampler.name": "mela"}, r"sampler\.name=mela"),
    ],
)
def test_a_config_that_is_not_valid_is_refused_before_any_weights_are_read(tmp_path, keys, message):
    """They may be gigabytes, and somewhere far away; these are nowhere."""
    with pytest.raises(UserError, match=message):
        _import_pair(config_of(tmp_path / "G.pth", tmp_path / "D.pth", **keys))
    with pytest.raises(UserError, match=r"model\.base=.*G\.pth"):
        _import_pair(config_of(tmp_path / "G.pth", tmp_path / "D.pth"))


def test_a_pair_is_a_checkpoint_that_the_model_is_loaded_from(files, tmp_path, digits):
    config = config_of(files["G"], files["D"])
    pair = read_pair(config)
    assert config.model.settings == {
        "layout": "mimicry",
        "base_width": 16,
        "energy_layout": "mimicry",
        "energy_width": 16,
        "energy_norm": "spectral",
    }
    forget_files(config)
    pair.write(str(tmp_path / "imported"), config, digits)
    checkpoint = read(str(tmp_path / "imported"))
    model = build_model(config)
    load_state(model, checkpoint)
    z = torch.randn(2, 6)
    with torch.no_grad():
        images = model.eval().decode(z)
        assert torch.allclose(images, published.run_mimicry_generator(GENERATOR, z, 32), atol=1e-5)
        logit = published.run_mimicry_discriminator(DISCRIMINATOR, images, 32)[:, 0]
        assert torch.allclose(model.energy(images), -logit, rtol=1e-5, atol=1e-5)
    state = checkpoint.state
    assert (state["base_step"], state[IMPORTED]["base"]["taken"]) == (0, "model_state_dict")
    # Nothing of it names the files as something to read.
    assert state["config"]["model"]["base"] is state["config"]["model"]["energy"] is None
    [base, energy] = pair.notes
    assert base == (
        f"model.base={files['G']}: a generator of mimicry, 32x32, width 16; taken: model_state_dict; left over: "
        "optimizer_state_dict, global_step"
    )
    assert "a discriminator of mimicry" in energy


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> dict[str, Path]:
    """Class-conditional ones as StudioGAN saves them: of ten classes, and a discriminator of three."""
    folder = tmp_path_factory.mktemp("conditional")
    states = {
        "G": published.studiogan_generator(32, num_classes=10),
        "D": published.studiogan_discriminator(32, num_classes=10),
        "D3": published.studiogan_discriminator(32, num_classes=3),
    }
    for name, state in states.items():
        torch.save({"state_dict": state, "optimizer": None, "step": 7, "best_fid": 9.5}, folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in states}


CONDITIONAL = {"model.networks": "imported_conditional"}


def test_a_conditional_pair_is_a_checkpoint_with_the_classes_of_the_store(classes, tmp_path, digits):
    config = config_of(classes["G"], classes["D"], **CONDITIONAL)
    pair = read_pair(config)
    pair.require_classes(digits)
    assert (pair.num_classes, config.model.settings["layout"]) == (10, "studiogan_resnet")
    assert "a generator of studiogan_resnet, 32x32, width 4, 10 classes; taken: state_dict" in pair.notes[0]
    forget_files(config)
    pair.write(str(tmp_path / "imported"), config, digits)
    model, *_, learned, _ = load_model(str(tmp_path / "imported"), {})
    assert learned == metrics.classes_of(digits, metrics.class_labels(digits))
    labels = torch.tensor([3, 9])
    z = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = model.decode(torch.cat([z, torch.eye(10)[labels]], 1))
        images = published.run_studiogan_generator(torch.load(classes["G"], weights_only=True)["state_dict"], z, labels)
        assert torch.allclose(x[:, :3], images, atol=1e-5)
        logit = published.run_studiogan_discriminator(
            torch.load(classes["D"], weights_only=True)["state_dict"], images, 32, labels
        )
        assert torch.allclose(model.energy(x), -logit[:, 0], rtol=1e-4, atol=1e-4)


def test_classes_that_do_not_go_together_are_refused(classes, files, digits):
    for base, energy, keys, message in (
        ("G", "D3", CONDITIONAL, r"D3\.pth: .* 3 classes: it has 3 classes, and the generator has 10"),
        ("G", "D", {}, "class-conditional .*networks=imported_conditional reads those of studiogan_resnet"),
        ("G", None, CONDITIONAL, "whose energy is trained on it, of dcgan_conditional, sngan_resnet_conditional"),
    ):
        with pytest.raises(UserError, match=message):
            read_pair(config_of(classes[base], energy and classes[energy], **keys))
    with pytest.raises(UserError, match="no class-conditional ones are read; give a generator with classes of studio"):
        read_pair(config_of(files["G"], "none", **CONDITIONAL))
    pair = read_pair(config_of(classes["G"], "none", **CONDITIONAL))
    few = dataclasses.replace(digits, manifest=dataclasses.replace(digits.manifest, labels=("a", "b")))
    with pytest.raises(UserError, match=r"G\.pth: it has 10 classes, and the store .*digits-8 has 2: give a store of"):
        pair.require_classes(few)


@pytest.mark.parametrize("extension", ["safetensors", "pt"])
def test_a_file_may_be_the_state_dict_itself(tmp_path, extension):
    path = tmp_path / f"G.{extension}"
    (save_file if extension == "safetensors" else torch.save)(dict(GENERATOR), path)
    config = config_of(path, "none")
    pair = read_pair(config)
    assert pair.notes == (
        f"model.base={path}: a generator of mimicry, 32x32, width 16; taken: the whole file; nothing is left over",
    )
    assert set(pair.halves) == {"base"} and config.model.settings["layout"] == "mimicry"


@pytest.mark.parametrize("name", ["g_ema", "netG_ema", "ema", "average", "Gen_ema"])
def test_of_two_generators_the_moving_average_is_taken(tmp_path, name):
    average = published.mimicry_generator(32, latent_dim=6, seed=5)
    torch.save({"g": GENERATOR, "d": DISCRIMINATOR, "step": 3, name: average}, tmp_path / "all.pt")
    pair = read_pair(config_of(tmp_path / "all.pt", tmp_path / "all.pt"))
    assert torch.equal(pair.halves["base"].state["linear.weight"], average["l1.weight"])
    assert re.search(rf"taken: {name}, the moving average; left over: g, d, step$", pair.notes[0])
    assert "taken: d; left over: g," in pair.notes[1]


def test_the_counters_that_early_versions_did_not_write_begin_at_zero(tmp_path):
    state = {name: tensor for name, tensor in GENERATOR.items() if "num_batches" not in name}
    torch.save(state, tmp_path / "G.pth")
    pair = read_pair(config_of(tmp_path / "G.pth", "none"))
    assert pair.notes[0].endswith("missing: 7 counters of batches, which begin at 0")
    assert int(pair.halves["base"].state["norm.num_batches_tracked"]) == 0


def test_numbers_of_numpy_next_to_the_weights_are_no_code(tmp_path):
    torch.save({"state_dict": DISCRIMINATOR, "best_fid": np.float64(8.5), "step": np.int64(3)}, tmp_path / "D.pth")
    torch.save({"state_dict": GENERATOR}, tmp_path / "G.pth")
    assert "left over: best_fid, step" in read_pair(config_of(tmp_path / "G.pth", tmp_path / "D.pth")).notes[1]


def test_a_family_of_ones_own_takes_weights_by_the_names_of_its_modules(tmp_path):
    base, energy = networks.make("sngan_convnet", resolution=32, channels=3, latent_dim=6, width=4)
    torch.save({"G": base.state_dict()}, tmp_path / "G.pth")
    save_file(energy.state_dict(), tmp_path / "D.safetensors")
    keys = {"model.networks": "sngan_convnet", "model.width": 4}
    pair = read_pair(config_of(tmp_path / "G.pth", tmp_path / "D.safetensors", **keys))
    assert pair.halves["base"].state.keys() == base.state_dict().keys()
    assert pair.halves["energy"].state.keys() == energy.state_dict().keys()
    with pytest.raises(UserError, match=r"0\.weight is \(512, 6\) there, and would be \(256, 6\) here"):
        read_pair(config_of(tmp_path / "G.pth", "none", **keys | {"model.width": 2}))


READERS = [
    ("return tensors['nothing']", r"mine.py:6: mine: KeyError: 'nothing'"),
    ("return None", r"mine.py:\d+: mine: what it is registered with as weights= has to return a Reading"),
    ("return dict(tensors)", "has to return a Reading of tensors"),
    ("return Reading({'0.weight': [1.0]})", "has to return a Reading of tensors"),
    ("raise ValueError('of no GAN of mine')", r"model\.base=.*G\.pt: its tensors are of no GAN of mine"),
    ("return Reading(dict(tensors), settings={'depth': 3})", "mine has no setting depth"),
]


@pytest.mark.parametrize(("body", "message"), READERS, ids=[body for body, _ in READERS])
def test_a_reader_of_ones_own_that_fails_is_refused_in_one_line(tmp_path, load, body, message):
    load(
        "from torch import nn\nimport gebm\nfrom gebm.networks.weights import Reading\n\n"
        f"def read(half, tensors):\n    {body}\n\n@gebm.networks.register('mine', weights=read)\n"
        "def mine(latent_dim: int):\n    return nn.Sequential(nn.Linear(latent_dim, 3072), "
        "nn.Unflatten(1, (3, 32, 32))), nn.Sequential(nn.Flatten(), nn.Linear(3072, 1))\n"
    )
    torch.save({"0.weight": torch.zeros(3072, 6), "0.bias": torch.zeros(3072)}, tmp_path / "G.pt")
    with pytest.raises(UserError, match=message) as refusal:
        read_pair(config_of(tmp_path / "G.pt", "none", **{"model.networks": "mine"}))
    assert "\n" not in str(refusal.value)


class Code:
    def __reduce__(self):
        return (print, ("never",))


def _cut(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


BAD = {
    "html": (b"<!DOCTYPE html><html>Google Drive</html>", "it is a web page"),
    "empty": (b"", "the file is empty"),
    "noise": (b"\x93noise" * 99, "damaged or no file of weights"),
    "short": (b"PK\x03\x04", "damaged or no file of weights"),
    "code": (pickle.dumps({"w": Code()}), "more than tensors|damaged or no file"),
    "torch-code": ({"state_dict": GENERATOR, "hook": Code()}, "it holds more than tensors"),
    "list": ([torch.zeros(2)], "it has no tensors by name"),
    "nothing": ({}, "it has no tensors by name"),
    "missing": (_cut(GENERATOR, "block3.b1.running_var"), r"block3.b1.running_var is missing \(1 of"),
    "shape": (GENERATOR | {"block3.c1.bias": torch.zeros(3)}, r"block3.c1.bias is \(3,\) there, and would be \(16,\)"),
    "extra": (GENERATOR | {"attention.weight": torch.zeros(3)}, "with attention.weight, which mimicry has not"),
    "nan": (GENERATOR | {"c5.bias": torch.full((3,), torch.nan)}, "c5.bias has entries that are no finite numbers"),
    "discriminator": (DISCRIMINATOR, "are of no layout of mimicry, .*; give a generator of mimicry"),
    "latent": (published.mimicry_generator(32, latent_dim=9), "latents of 9 numbers, and model.latent_dim=6: set it"),
    "resolution": (published.mimicry_generator(48, latent_dim=6), "48x48 pixels, and data.resolution=32: set it to 48"),
    "gray": ({**GENERATOR, "c5.weight": torch.zeros(1, 16, 3, 3), "c5.bias": torch.zeros(1)}, "1 color channels"),
    "claimed": (
        {**GENERATOR, "c5.weight": torch.zeros(1).expand(2**20, 2**10, 3, 3)},
        "its tensors claim more than its .* bytes",
    ),
    "sparse": (GENERATOR | {"c5.bias": torch.eye(3).to_sparse()}, "sparse or quantized|damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_generator_is_refused_in_one_line(tmp_path, name, capsys):
    content, message = BAD[name]
    path = tmp_path / "G.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match=message) as error:
        read_pair(config_of(path, "none"))
    assert "\n" not in str(error.value) and str(error.value).startswith(f"model.base={path}: ")
    assert "never" not in capsys.readouterr().out


def test_a_discriminator_of_another_resolution_is_refused(files, tmp_path):
    torch.save(published.mimicry_discriminator(64), tmp_path / "D.pth")
    with pytest.raises(UserError, match=r"model.energy=.*64x64.* and data.resolution=32"):
        read_pair(config_of(files["G"], tmp_path / "D.pth"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"model.energy": None},
            "comes without model.energy: add the weights of its discriminator; none for an energy .*, of dcgan, sngan",
        ),
        ({"model.base": "none-there.pth"}, "model.base=none-there.pth: there is no such file"),
        ({"model.base": "/dev/zero"}, "model.base=/dev/zero: it is no file"),
        ({"model.base": "."}, "it is no file"),
        ({"model.base": "nope://x/y.pth"}, "nope"),
        ({"model.networks": "biggan"}, "model.networks=biggan: it has to be one of dcgan"),
        ({"model.networks": "dcgan_conditional"}, "has classes, and the names of its weights do not say how many"),
        ({"model.settings.base_width": 32}, "model.settings.base_width=32: model.base=.* has 16; leave it out"),
        ({"checkpoint": "results/x"}, "checkpoint=results/x has its weights already"),
        ({"resume": "results/x"}, "resume=results/x has its weights already"),
        ({"model.base": None}, "comes without model.base: add the weights of a trained generator"),
        ({"model.base": None, "model.energy": "none"}, "model.networks=imported comes without model.base"),
    ],
)
def test_keys_that_name_no_pair_are_refused_in_one_line(files, keys, message):
    config = config_of(files["G"], files["D"])
    for key, value in keys.items():
        config = schema.apply(config, {key: value})
    with pytest.raises(UserError, match=message) as error:
        _import_pair(config)
    assert "\n" not in str(error.value)


def test_an_archive_that_is_larger_inside_is_refused(files, tmp_path):
    import zipfile

    with (
        zipfile.ZipFile(files["G"]) as archive,
        zipfile.ZipFile(tmp_path / "G.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
        packed.writestr("archive/data/zeros", bytes(2**22))
    with pytest.raises(UserError, match="it is compressed"):
        read_pair(config_of(tmp_path / "G.pth", "none"))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_change_of_a_file_is_read_or_refused_in_one_line(files, data):
    content = bytearray(files["G"].read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = files["G"].with_name("changed.pth")
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        read_pair(config_of(path, "none"))
    except UserError as error:
        assert "\n" not in str(error)


def test_fields_of_the_pair_are_plain(files):
    pair = read_pair(config_of(files["G"], files["D"]))
    assert {half: set(facts) for half, facts in pair.facts.items()} == {
        half: {"url", "sha256", "taken", "kind"} for half in ("base", "energy")
    }
    assert dataclasses.is_dataclass(pair)
