"""Settings of networks and samplers are keys like all others: typed, bounded, searchable, and written nowhere twice."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Annotated

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gebm import Limits, networks, samplers
from pipeline.config import Config, apply, from_dict, from_saved, part_settings, to_dict
from pipeline.config.arguments import quote_texts
from pipeline.config.kernels import kernel_settings, used_settings
from pipeline.config.validation import validate_rules
from pipeline.evaluation.chains import make_kernel
from pipeline.runtime.errors import UserError
from pipeline.sweep.kernel_ranges import kernels_that_use
from pipeline.sweep.search_space import is_searchable, parse_space
from pipeline.training.build_model import build_model


def config(**groups) -> Config:
    base = {"name": "x", "data": {"store": "s", "resolution": 8, "channels": 1, "source": {"kind": "digits"}}}
    model = {"networks": "dcgan", "latent_dim": 4, "width": 4} | groups.pop("model", {})
    return from_dict({**base, "model": model, **groups})


@pytest.fixture
def own_parts(monkeypatch):
    """Registries that a test may add to."""
    for registry in (networks.NAMES, samplers.NAMES):
        monkeypatch.setattr(registry, "_parts", dict(registry._parts))


def _register_plain() -> None:
    @networks.register("plain", tasks=("images",))
    def plain(resolution: int, channels: int, latent_dim: int, *, gain: float, depth: Annotated[int, Limits(ge=1)] = 1):
        size = channels * resolution**2
        base = torch.nn.Sequential(
            torch.nn.Linear(latent_dim, size), torch.nn.Unflatten(1, (channels, resolution, resolution))
        )
        energy = torch.nn.Sequential(torch.nn.Flatten(), *(torch.nn.Linear(size, size) for _ in range(depth - 1)))
        return base, energy.append(torch.nn.Linear(size, 1))


SETTINGS = [
    (group, part.name, setting)
    for group in part_settings.GROUPS
    for part in part_settings.registry(group).parts()
    for setting in part.settings.values()
]


@pytest.mark.parametrize(("group", "name", "setting"), SETTINGS, ids=lambda value: getattr(value, "name", value))
def test_every_setting_of_a_part_is_a_key_with_a_meaning_that_takes_its_default_and_nothing_out_of_bounds(
    group, name, setting
):
    key = f"{group}.{setting.name}"
    known = part_settings.find_key(key)
    assert known is not None and known.rule.help and is_searchable(key)
    values = apply(config(), {part_settings.GROUPS[group]: name})
    validate_rules(apply(values, {key: part_settings.read(values, key)}))
    limits = setting.limits
    outside = [
        limits.gt,
        None if limits.ge is None else limits.ge - 1,
        limits.lt,
        "nonsense" if limits.choices else None,
    ]
    for value in [value for value in outside if value is not None]:
        with pytest.raises(UserError, match=f"^{key}={value}.*: it has to|^{key}={value}.*: it cannot"):
            validate_rules(apply(values, {key: value}))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            {"sampler": {"settings": {"nope": 1}}},
            "no such key: sampler.settings.nope; sampler.name=ula has no settings",
        ),
        ({"sampler": {"name": "hmc", "settings": {"jitter": "a"}}}, "sampler.settings.jitter: Value 'a'"),
        ({"model": {"settings": {"depth": 1}}}, "no such key: model.settings.depth; model.networks=dcgan has no"),
        ({"sampler": {"settings": 3}}, "sampler.settings"),
        ({"sampler": {"name": "hmc", "settings": {"jitter": "${oc.env:HOME}"}}}, "cannot have"),
        ({"sampler": {"name": "hmc", "settings": {"inverse_mass": [1.0, -1.0]}}}, "inverse_mass"),
    ],
)
def test_what_is_no_setting_or_has_no_such_value_is_one_line(groups, message):
    with pytest.raises(UserError, match=message) as refusal:
        validate_rules(config(**groups))
    assert "\n" not in str(refusal.value)


def test_settings_of_ones_own_networks_are_checked_and_reach_them(own_parts):
    _register_plain()
    values = config(model={"networks": "plain", "width": None, "settings": {"gain": 2, "depth": "3"}})
    validate_rules(values)
    # As their types have them, whoever wrote them.
    assert values.model.settings == {"gain": 2.0, "depth": 3} and isinstance(values.model.settings["gain"], float)
    assert len(build_model(values).energy.network) == 4
    with pytest.raises(UserError, match=r"model.networks=plain needs model.settings.gain: give it a value"):
        validate_rules(config(model={"networks": "plain", "width": None}))
    with pytest.raises(UserError, match=r"model.settings.depth=0: it has to be 1 at least"):
        validate_rules(apply(values, {"model.settings.depth": 0}))
    # The experiment's file may have set what these networks do not take, so the line says how to undo it.
    for key, value in (("model.width", 32), ("model.energy", "mlp"), ("model.energy_offset", 1.5)):
        with pytest.raises(UserError) as refusal:
            validate_rules(apply(values, {key: value}))
        assert str(refusal.value).startswith(f"{key}={value}: model.networks=plain has ")
        name, _, reset = str(refusal.value).rpartition("; set ")[2].partition("=")
        validate_rules(apply(values, {name: {"null": None, "0.0": 0.0}[reset]}))
    assert from_saved(json.loads(json.dumps(to_dict(values)))) == values


def test_a_sampler_may_have_the_settings_of_others_and_uses_its_own():
    values = config(sampler={"name": "hmc", "settings": {"num_leapfrog_steps": 3, "betas": [1.0, 0.0]}})
    validate_rules(values)
    model = build_model(values)
    assert make_kernel(values.sampler, model).num_leapfrog_steps == 3
    assert used_settings(values.sampler)["settings"] == {"num_leapfrog_steps": 3}
    ula = apply(values, {"sampler.name": "ula"})
    validate_rules(ula)
    assert "settings" not in used_settings(ula.sampler)
    tempering = apply(values, {"sampler.name": "tempering", "sampler.settings.kernel": "hmc"})
    kernel = make_kernel(tempering.sampler, model)
    assert (kernel.kernel.num_leapfrog_steps, kernel.betas) == (3, (1.0, 0.0))


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([name for name in samplers.NAMES if name != "tempering"]))
def test_without_settings_a_kernel_is_what_it_was(name):
    values = config(sampler={"name": name})
    used = kernel_settings(values.sampler)
    kernel = make_kernel(values.sampler, build_model(values))
    plain = {key: setting.default for key, setting in samplers.NAMES.part(name).settings.items()}
    assert all(getattr(kernel, key) == default for key, default in plain.items())
    assert "settings" not in used_settings(values.sampler) and "warm_up_steps" not in used_settings(values.sampler)
    assert getattr(kernel, "step_size", used.step_size) == used.step_size


def test_a_search_draws_a_setting_for_the_samplers_that_have_it():
    space = {
        "sampler.name": {"choice": ["ula", "hmc"]},
        "sampler.settings.num_leapfrog_steps": {"int_uniform": [2, 4]},
        "sampler.settings.jitter": {"uniform": [0.0, 0.5], "when": {"sampler.settings.num_leapfrog_steps": 3}},
    }
    with pytest.raises(UserError, match="it is searched, and conditions can only be on a choice"):
        parse_space(config(sweep={"space": space}))
    del space["sampler.settings.jitter"]["when"]
    parsed = parse_space(config(sweep={"space": space}))
    assert {name: parsed.condition(name).allowed for name in parsed if name != "sampler.name"} == {
        name: {"sampler.name": ("hmc",)} for name in ("sampler.settings.num_leapfrog_steps", "sampler.settings.jitter")
    }
    assert kernels_that_use("sampler.settings.jitter") == ("hmc", "tempering")
    wide = {"sampler.settings.jitter": {"uniform": [0.0, 1.5]}}
    with pytest.raises(UserError, match="it has to be at least 0 and below 1"):
        parse_space(config(sweep={"space": wide}, sampler={"name": "hmc"}))
    assert not is_searchable("sampler.settings") and not is_searchable("sampler.settings.nope")


def test_a_setting_is_typed_as_any_other_key():
    args = ["sampler.settings.jitter=0.1", "++model.settings.depth=4", "sampler.beta=2"]
    assert quote_texts(args, frozenset()) == ["++sampler.settings.jitter=0.1", *args[1:]]
    # Of every group of settings, and no key beside them.
    for group in part_settings.GROUPS:
        assert quote_texts([f"{group}.any=1", f"{group}=1"], frozenset()) == [f"++{group}.any=1", f"{group}=1"]


def test_of_two_parts_with_one_name_for_a_setting_the_chosen_ones_rule_holds(own_parts):
    _register_plain()
    for name, limit in (("shallow", 3), ("deep", 9)):
        make = functools.partial(networks.NAMES["plain"], gain=1.0)
        networks.register(name, settings={"depth": Annotated[int, Limits(ge=1, lt=limit)], "gain": float})(make)
    del networks.NAMES._parts["plain"]
    for name, allowed in (("shallow", 2), ("deep", 8)):
        values = config(model={"networks": name, "width": None})
        known = part_settings.find_key("model.settings.depth", values)
        assert known is not None and known.rule.limits() == f">= 1, < {allowed + 1}"
        space = {"train.base_lr": {"log_uniform": [1e-4, 1e-3], "when": {"model.settings.depth": allowed}}}
        parse_space(apply(values, {"model.settings.depth": allowed, "sweep.space": space}))
        space["train.base_lr"]["when"] = {"model.settings.depth": allowed + 1}
        with pytest.raises(UserError, match=rf"when model.settings.depth={allowed + 1}: it has to be"):
            parse_space(apply(values, {"sweep.space": space}))


def test_what_a_kernel_is_built_of_is_what_it_was_registered_with(own_parts):
    """A text that happens to be the name of a kernel is a text."""

    @samplers.register("texts", like="mala")
    @dataclasses.dataclass(frozen=True)
    class Texts(samplers.MALA):
        mode: Annotated[str, Limits(choices=("hmc", "ula"))] = "hmc"

    @samplers.register("outer", like="mala", inner="by")
    @dataclasses.dataclass(frozen=True)
    class Outer:
        step_size: float
        by: Annotated[str, Limits(choices=("hmc", "mala"))] = "hmc"

    uses = {name for name in samplers.NAMES if part_settings.uses("sampler.settings", name, "num_leapfrog_steps")}
    assert uses == {"hmc", "tempering", "outer"}
    given_to_all = {"step_size": 0.1, "num_leapfrog_steps": 3}
    assert samplers.make("texts", **given_to_all).mode == "hmc"
    assert samplers.make("outer", **given_to_all).by == samplers.HMC(0.1, num_leapfrog_steps=3)
    assert samplers.make("outer", by="mala", **given_to_all).by == samplers.MALA(0.1)
    for inner in ("mode", "step_size", "none"):
        with pytest.raises(ValueError, match=f"inner='{inner}' has to be a setting of it, whose choices are names"):

            @samplers.register("wrong", inner=inner)
            def wrong(step_size: float, mode: Annotated[str, Limits(choices=("fast",))] = "fast"): ...
