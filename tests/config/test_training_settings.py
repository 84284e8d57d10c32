"""Settings of objectives and penalties are keys like those of networks and samplers, and own ones are tried first."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gebm import objectives, penalties
from pipeline.config import from_dict, from_saved, to_dict
from pipeline.config.arguments import quote_texts
from pipeline.config.training_parts import make_objective, make_penalty
from pipeline.config.validation import validate
from pipeline.runtime.errors import UserError
from pipeline.sweep.search_space import is_searchable, parse_space
from pipeline.training.build_model import build_model, make_energy_phase, make_trainer
from tests.helpers.plugins import LOSSES, load, no_plugins

__all__ = ["load", "no_plugins"]

pytestmark = pytest.mark.usefixtures("no_plugins")


def config(**train):
    data = {"store": "s", "resolution": 8, "channels": 1, "source": {"kind": "digits"}}
    model = {"networks": "dcgan", "latent_dim": 4, "width": 4}
    return from_dict({"name": "x", "data": data, "model": model, "train": train})


OWN = {
    "objective": "soft",
    "objective_settings": {"margin": 2},
    "penalty_kind": "slope",
    "penalty_settings": {"power": 3},
}


def test_the_target_of_a_gradient_penalty_is_a_key():
    set_ = config(penalty=0.5, penalty_settings={"target": 1})
    validate(set_)
    assert make_penalty(set_.train, 0.5) == penalties.GradientPenalty(0.5, target=1.0)
    assert from_saved(to_dict(set_)).train.penalty_settings == {"target": 1.0}
    assert make_energy_phase(replace(set_, train=replace(set_.train, final_energy_steps=5))).penalty.target == 1.0
    assert make_penalty(config(penalty_kind="wgan_gp").train, None) == penalties.make("wgan_gp")
    # Configs of before there were such keys.
    old = to_dict(config())
    del old["train"]["penalty_settings"], old["train"]["objective_settings"]
    assert from_saved(old).train.objective_settings == {}
    typed = quote_texts(["train.penalty_settings.target=1", "train.objective_settings.a=b"], frozenset())
    assert typed == ["++train.penalty_settings.target=1", "++train.objective_settings.a=b"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"penalty_settings": {"target": -1}}, "train.penalty_settings.target=-1.0: it cannot be negative"),
        ({"penalty_settings": {"target": float("nan")}}, "train.penalty_settings.target=nan"),
        ({"penalty_settings": {"targets": 1}}, "no such key: train.penalty_settings.targets; train.penalty_kind="),
        ({"penalty_kind": "r1", "penalty_settings": {"target": 1}}, "train.penalty_kind=r1 has no settings of its own"),
        ({"objective_settings": {"form": "fenchel"}}, "no such key: train.objective_settings.form"),
        ({"objective": "gan", "objective_settings": {"margin": 1}}, "train.objective=gan has no settings of its own"),
        ({"objective": "soft"}, "train.objective=soft needs train.objective_settings.margin: give it a value"),
        ({**OWN, "objective_settings": {"margin": 0}}, "train.objective_settings.margin=0.0: it has to be positive"),
    ],
)
def test_a_setting_that_the_chosen_part_does_not_have_is_refused(load, train, message):
    load(LOSSES)
    with pytest.raises(UserError, match=message):
        validate(config(**train))


def test_settings_of_ones_own_losses_are_trained_with_saved_and_searched(load):
    load(
        LOSSES.replace(
            "margin: Annotated[float, gebm.Limits(gt=0)]", "margin: Annotated[float, gebm.Limits(gt=0)] = 1.0"
        )
    )
    own = config(**OWN)
    validate(own)
    assert make_objective(own.train).margin == 2.0 and make_penalty(own.train, None).power == 3
    trainer = make_trainer(build_model(own), own, torch.device("cpu"))
    assert trainer.objective.margin == 2.0 and trainer.penalty.power == 3
    assert from_saved(to_dict(own)).train == own.train
    assert is_searchable("train.objective_settings.margin") and not is_searchable("train.objective_settings")
    searched = {
        "train.objective": {"choice": ["soft", "gan"]},
        "train.objective_settings.margin": {"uniform": [0.5, 4.0], "when": {"train.objective": "soft"}},
    }
    base = config(**{**OWN, "objective": "gan", "objective_settings": {}})
    space = parse_space(replace(base, sweep=replace(base.sweep, space=searched)))
    assert set(space) == {"train.objective", "train.objective_settings.margin"}
    with pytest.raises(UserError, match="it has to be positive"):
        wide = {"train.objective_settings.margin": {"uniform": [-1.0, 4.0]}}
        parse_space(replace(own, sweep=replace(own.sweep, space=wide)))


LOSS = [
    ("return (energy_data - energy_base).mean()", "return energy_data - energy_base", r"energy_loss is \(8,\)"),
    ("- energy_base).mean()", "- energy_base).mean().detach()", "energy_loss has no gradient"),
    ("return energy_base.mean()", "return 1.0", "base_loss is float, and has to be a tensor without dimensions"),
    ("return (energy_data - energy_base).mean()", "return energy_data.mean() / 0", "energy_loss is .*has to be finite"),
    ("trains_energy = True", "trains_energy = 1", "trains_energy is 1, and has to be True or False"),
    ('base_learns_from = "energy"', 'base_learns_from = "both"', "base_learns_from is 'both'"),
    ("negatives = BaseDraws()", "nothing = 1", "AttributeError"),
    ("def base_loss", "def other_loss", "AttributeError"),
    ("return self.weight * slope.mean()", "return slope", r"its value is \(4,\)"),
    ("return torch.zeros(n)", "return torch.zeros(n, 2)", r"draw gives \(4, 2\) for 4 points"),
    ("return torch.zeros(n)", "return 1 / 0", "ZeroDivisionError"),
]


@pytest.mark.parametrize(("old", "new", "message"), LOSS, ids=[new for _, new, _ in LOSS])
def test_losses_that_are_no_numbers_are_refused_before_anything_starts(load, old, new, message):
    assert LOSSES.count(old) == 1
    path = load(LOSSES.replace(old, new))
    with pytest.raises(UserError, match=message) as refusal:
        validate(config(**OWN))
    assert str(refusal.value).startswith(f"{path}:") and "\n" not in str(refusal.value)


def test_the_library_takes_the_same_settings_and_no_others(load):
    load(LOSSES)
    assert objectives.make("soft", margin=3.0, num_steps=5).margin == 3.0
    for make, name in ((objectives.make, "kale_dv"), (penalties.make, "r1")):
        with pytest.raises(ValueError, match=f"{name} has no setting margin: those it has are none"):
            make(name, margin=1.0)
