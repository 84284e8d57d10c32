"""Settings of the chosen kernel: each kernel has its own, and a key that is set for all of them wins."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gebm import samplers
from pipeline.config import apply, from_dict, to_dict
from pipeline.config.kernels import KERNEL_KEYS, kernel_group, kernel_settings, used_settings
from pipeline.config.schema import KineticKernel, LangevinKernel, Sampler, StepKernel
from pipeline.config.validation import validate
from pipeline.runtime.errors import UserError
from pipeline.sweep.points import plan_trials
from pipeline.sweep.search_space import parse_space

STEPS = st.floats(1e-6, 1.0)
BY_KERNEL = {"ula": {"log_uniform": [1e-4, 1e-3]}, "kla": {"log_uniform": [1e-2, 1e-1]}}


def a_config(small, space=None, **sampler):
    presets = {"ula": {"step_size": 5e-4, "decay": 0.1}, "kla": {"step_size": 0.02, "friction": 100.0}}
    sweep = {"space": space or {}, "num_trials": 12}
    return small(sampler={**presets, **sampler}, sweep=sweep, checkpoint="anything")


@given(st.sampled_from(sorted(samplers.NAMES)), STEPS, STEPS, STEPS, st.none() | STEPS)
@settings(max_examples=40)
def test_a_set_key_wins_then_the_kernels_own_then_the_counterpart(name, h_ula, h_kla, h_hmc, typed):
    sampler = Sampler(
        name=name,
        step_size=typed,
        ula=LangevinKernel(step_size=h_ula),
        kla=KineticKernel(step_size=h_kla),
        hmc=StepKernel(step_size=h_hmc),
    )
    used = kernel_settings(sampler)
    own = {"ula": h_ula, "kla": h_kla, "hmc": h_hmc, "rwm": math.sqrt(2 * h_ula)}
    assert used.step_size == (typed if typed is not None else own.get(kernel_group(name), h_ula))
    assert all(getattr(used, key) is not None for key in KERNEL_KEYS)
    assert kernel_settings(used) == used and not any(
        isinstance(value, dict) for value in used_settings(sampler).values()
    )


def test_without_any_setting_a_chain_is_what_it_was():
    used = kernel_settings(Sampler())
    assert (used.step_size, used.friction, used.decay, used.decay_every) == (1e-4, 0.1, 1.0, 200)


def test_the_square_of_a_time_decays_as_the_squared_length_of_ula_does():
    sampler = Sampler(name="kla", ula=LangevinKernel(step_size=5e-5, decay=0.1, decay_every=150))
    used = kernel_settings(sampler)
    assert (used.step_size, used.decay_every) == (math.sqrt(1e-4), 150) and used.decay == pytest.approx(math.sqrt(0.1))


def test_a_config_of_an_earlier_run_keeps_its_numbers(small):
    values = to_dict(small())
    values["sampler"] = {"name": "kla", "step_size": 5e-5, "friction": 0.3, "decay": 0.5, "decay_every": 10}
    used = kernel_settings(from_dict(values).sampler)
    assert (used.step_size, used.friction, used.decay, used.decay_every) == (5e-5, 0.3, 0.5, 10)


def test_a_space_by_kernel_gives_each_kernel_its_own_range(small):
    space = {
        "sampler.name": {"choice": ["ula", "kla"]},
        "sampler.step_size": BY_KERNEL,
        "sampler.beta": {"choice": [1.0]},
    }
    config = a_config(small, space)
    trials, _ = plan_trials(config, parse_space(config), [])
    assert {trial.params["sampler.name"] for trial in trials} == {"ula", "kla"}
    for trial in trials:
        used = kernel_settings(apply(config, trial.params).sampler)
        low, high = BY_KERNEL[used.name]["log_uniform"]
        assert low <= used.step_size <= high


@pytest.mark.parametrize(
    ("name", "keys"), [("kla", ["sampler.kla.step_size"]), ("ddls", ["sampler.ula.step_size"]), ("rwm", [])]
)
def test_ranges_of_kernels_that_no_trial_has_are_left_out(small, name, keys):
    form = {**BY_KERNEL, "ddls": BY_KERNEL["ula"]}
    assert list(parse_space(a_config(small, {"sampler.step_size": form}, name=name))) == keys


def test_a_grid_has_no_two_trials_that_are_the_same(small):
    space = {"sampler.name": {"choice": ["ula", "kla"]}, "sampler.step_size": BY_KERNEL}
    config = a_config(small, space)
    config.sweep.search, config.sweep.grid_size = "grid", 3
    trials, _ = plan_trials(config, parse_space(config), [])
    used = [kernel_settings(apply(config, trial.params).sampler) for trial in trials]
    assert len(trials) == len({(one.name, one.step_size) for one in used}) == 6


@pytest.mark.parametrize(
    ("space", "sampler", "expected"),
    [
        ({"sampler.step_size": BY_KERNEL}, {"step_size": 1e-3}, "sampler.step_size=null"),
        ({"sampler.beta": BY_KERNEL}, {}, "the same for all kernels"),
        ({"sampler.friction": {"ula": {"uniform": [0.1, 1.0]}}}, {}, "sampler.ula.friction"),
        (
            {"sampler.step_size": {"uniform": [0.1, 0.2]}, "sampler.ula.step_size": {"uniform": [0.1, 0.2]}},
            {},
            "leave one of them out",
        ),
    ],
)
def test_a_search_without_an_effect_is_refused(small, space, sampler, expected):
    with pytest.raises(UserError, match=r"^sweep\.space: ") as refusal:
        parse_space(a_config(small, space, **sampler))
    assert expected in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("key", ["ula.step_size", "kla.step_size", "kla.friction", "ula.decay", "hmc.step_size"])
def test_settings_by_kernel_have_bounds(small, key):
    with pytest.raises(UserError, match=rf"sampler\.{key}=-1"):
        validate(apply(small(), {f"sampler.{key}": -1.0}))
