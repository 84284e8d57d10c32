"""Every key says what it means, and refuses by name what is out of its bounds or choices."""

from __future__ import annotations

import copy
import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline import config as schema
from pipeline.config.fields import Key, keys
from pipeline.config.key_reference import markdown, reference
from pipeline.config.launcher_schema import KubeRay, RayJobs, Slurm, check
from pipeline.config.part_settings import GROUPS, registry
from pipeline.config.validation import validate
from pipeline.runtime.errors import UserError

KEYS = reference()
BOUNDED = [key for key in KEYS if key.rule.bounds is not None]
CHOICES = [key for key in KEYS if key.rule.choices]
NUMBERS = {"int": st.integers(-(2**40), 2**40), "float": st.floats()}


VALID = schema.from_dict(
    {
        "name": "small",
        "data": {"store": "digits-8", "resolution": 8, "channels": 1, "source": {"kind": "digits"}},
        "model": {"networks": "dcgan", "latent_dim": 4, "width": 8},
    }
)


def with_value(key: Key, value: object) -> schema.Config:
    """A config that is valid but for one key, which no type checks."""
    config = copy.deepcopy(VALID)
    *groups, name = key.name.split(".")
    group = config
    for part in groups:
        group = getattr(group, part)
    setattr(group, name, value)
    return config


@given(key=st.sampled_from(BOUNDED), data=st.data())
def test_what_is_out_of_bounds_is_refused_by_name(key, data):
    value = data.draw(NUMBERS[key.type.removesuffix(" | None")])
    assume(value not in key.rule.bounds)
    with pytest.raises(UserError) as refusal:
        validate(with_value(key, value))
    assert str(refusal.value) == f"{key.name}={value}: it {key.rule.bounds.requirement}"


def test_a_limit_that_is_excluded_is_refused():
    excluded = [
        (key, limit) for key in BOUNDED for limit in (key.rule.bounds.gt, key.rule.bounds.lt) if limit is not None
    ]
    assert {limit for _, limit in excluded} >= {0, 1}
    for key, limit in excluded:
        with pytest.raises(UserError) as refusal:
            validate(with_value(key, limit))
        assert str(refusal.value) == f"{key.name}={limit}: it {key.rule.bounds.requirement}"


@given(key=st.sampled_from(CHOICES), value=st.text("abcdefgh_", min_size=1))
def test_what_is_no_choice_is_refused_by_name(key, value):
    assume(value not in key.rule.names())
    with pytest.raises(UserError) as refusal:
        validate(with_value(key, value))
    assert str(refusal.value) == f"{key.name}={value}: it has to be one of {', '.join(key.rule.names())}"


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_has_a_meaning_and_a_default_that_it_takes(key):
    assert key.rule.help.endswith(".") and key.rule.help[0] != " "
    if key.default != "???":
        assert key.rule.refusal(key.default) is None


@pytest.mark.parametrize("launcher", [RayJobs, KubeRay, Slurm])
def test_every_key_of_a_launcher_has_a_meaning_and_bounds_that_are_checked(launcher):
    required = {"image": "registry/gebm:1"} if launcher is KubeRay else {}
    for key in keys(launcher):
        assert key.rule.help.endswith(".") or key.name == "kind"
        if key.rule.bounds is not None:
            with pytest.raises(UserError, match=rf"^launch\.{key.name}=-1: it "):
                check(dataclasses.replace(launcher(**required), **{key.name: -1}))


def test_the_reference_is_a_page_with_every_key():
    page = markdown()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    settings = [setting for group in GROUPS for part in registry(group).parts() for setting in part.settings]
    launched = [key for launcher in (RayJobs, KubeRay, Slurm) for key in keys(launcher)]
    assert len(rows) == len(KEYS) + len(settings) + len(launched)
    assert "| `train.penalty_settings.target` | `float` | `0.0` | >= 0 | Norm that the gradient is drawn to. |" in page
    assert "| `train.energy_lr` | `float` | `0.0001` | > 0 | Learning rate of the energy. |" in page
    assert "| `data.store` | `str` | required |" in page and "int \\| None" in page
