"""Parts that a name chooses: what is written where they are registered is all that others need to know."""

from __future__ import annotations

import inspect
from typing import Annotated

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gebm import Limits, networks, objectives, penalties, samplers
from gebm.registry import REQUIRED, Registry, load_source
from gebm.samplers import philox

REGISTRIES = {
    "networks": networks.NAMES,
    "samplers": samplers.NAMES,
    "objectives": objectives.NAMES,
    "penalties": penalties.NAMES,
}


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_parameter_of_a_part_is_given_or_a_setting_whose_default_is_within_its_limits(kind):
    registry = REGISTRIES[kind]
    assert all(part.builtin and list(inspect.signature(part.make).parameters) == list(part.parameters)
               for part in registry.parts())  # fmt: skip
    for part in registry.parts():
        for setting in part.settings.values():
            limits, default = setting.limits, setting.default
            assert default is REQUIRED or default is None or not limits.choices or default in limits.choices
            if isinstance(default, int | float):
                assert limits.gt is None or default > limits.gt
                assert limits.ge is None or default >= limits.ge
                assert limits.lt is None or default < limits.lt


def test_the_settings_of_the_samplers_are_those_of_their_kernels():
    assert {name: list(samplers.NAMES.part(name).settings) for name in samplers.NAMES} == {
        "ula": [],
        "kla": ["initial_velocity"],
        "mala": ["inverse_mass"],
        "hmc": ["num_leapfrog_steps", "inverse_mass", "jitter"],
        "rwm": [],
        "imh": [],
        "dot": ["lipschitz"],
        "descent": [],
        "ddls": [],
        "tempering": ["kernel", "betas"],
    }


def test_a_function_and_a_class_of_ones_own_say_their_settings_with_type_default_limits_and_meaning():
    registry = Registry("thing", given=("size",), facts={"tasks": ()})

    @registry.register("mine", tasks=("images",))
    def mine(size: int, *, depth: Annotated[int, Limits(ge=1)] = 2, ladder: tuple[float, ...] | None = None) -> None:
        """Build it.

        Args:
            size: Given.
            depth: How
                deep.
            ladder: Rungs.
        """

    part = registry.part("mine")
    depth, ladder = part.settings["depth"], part.settings["ladder"]
    assert (depth.type, depth.default, depth.limits.ge, depth.help) == (int, 2, 1, "How deep.")
    assert (ladder.type, ladder.optional, ladder.default) == (tuple[float, ...], True, None)
    assert (part.facts, part.builtin, part.help) == ({"tasks": ("images",)}, False, "Build it.")
    assert registry.having("tasks", "images") == ("mine",) and registry.having("tasks", "rows") == ()


def test_what_cannot_be_typed_on_a_command_line_is_no_setting():
    registry = Registry("thing")
    with pytest.raises(ValueError, match="parameter model needs a type"):
        registry.register("a")(lambda model: model)
    with pytest.raises(ValueError, match="cannot be the name"):
        registry.register("a b")
    with pytest.raises(ValueError, match="not registered with colour"):
        registry.register("a", colour=1)
    with pytest.raises(ValueError, match=r"\*\*rest a name"):
        registry.register("a")(lambda **rest: rest)
    assert not registry


@pytest.mark.parametrize(
    ("kind", "limits", "default", "message"),
    [
        (int, {"ge": 1}, 0, "the default 0, which is outside of"),
        (float, {"gt": 0}, 0, "the default 0, which is outside of"),
        (tuple[float, ...], {"lt": 1}, (0.5, 1.5), "the default 1.5, which is outside of"),
        (str, {"choices": ("a", "b")}, "c", "the default 'c', which is outside of"),
        (int, {}, "a", "the default 'a', which is no int"),
        (int, {}, 1.5, "the default 1.5, which is no int"),
        (int, {}, True, "the default True, which is no int"),
        (bool, {}, 1, "the default 1, which is no bool"),
        (float, {}, None, "the default None, which is no float"),
        (tuple[float, ...], {}, (1.0, "a"), "which is no tuple of float"),
        (int, {"ge": "1"}, 1, "gt, ge and lt are numbers, and of numbers"),
        (str, {"lt": 1}, "a", "gt, ge and lt are numbers, and of numbers"),
        (int, {"choices": (1, 2)}, 1, "choices are a tuple of texts, and of a text"),
        (str, {"choices": "ab"}, "a", "choices are a tuple of texts, and of a text"),
    ],
)
def test_limits_and_a_default_that_no_setting_can_have_are_refused_where_they_are_written(
    kind, limits, default, message
):
    registry = Registry("thing")

    def part(own=default): ...

    part.__annotations__["own"] = Annotated[kind, Limits(**limits)]
    with pytest.raises(ValueError, match=f"thing 'a': its parameter own has .*{message}"):
        registry.register("a")(part)
    assert not registry


@pytest.mark.parametrize("kind", REGISTRIES)
def test_a_name_is_registered_once(kind):
    before = dict(REGISTRIES[kind])
    with pytest.raises(ValueError, match="already: choose another name"):
        REGISTRIES[kind].register(next(iter(before)))(lambda: None)
    assert dict(REGISTRIES[kind]) == before


def test_a_text_is_executed_once_under_its_name_and_leaves_nothing_where_it_fails():
    module = load_source("import random\nVALUE = random.random()", "mine.py", "gebm_test_once")
    assert load_source("VALUE = 1", "mine.py", "gebm_test_once") is module
    with pytest.raises(ZeroDivisionError):
        load_source("1 / 0", "mine.py", "gebm_test_failing")
    assert load_source("VALUE = 2", "mine.py", "gebm_test_failing").VALUE == 2


def test_networks_take_their_own_settings_and_no_others(monkeypatch):
    monkeypatch.setattr(networks.NAMES, "_parts", dict(networks.NAMES._parts))

    @networks.register("plain")
    def plain(latent_dim: int, channels: int, depth: int = 1):
        return torch.nn.Linear(latent_dim, channels * depth), torch.nn.Linear(channels * depth, 1)

    base, _ = networks.make("plain", resolution=8, channels=3, latent_dim=4, depth=2)
    assert base.out_features == 6
    with pytest.raises(ValueError, match="plain has no setting breadth: those it has are depth"):
        networks.make("plain", resolution=8, channels=3, latent_dim=4, breadth=2)
    with pytest.raises(ValueError, match="plain has no width"):
        networks.make("plain", resolution=8, channels=3, latent_dim=4, width=2)


def _moments(kernel: samplers.HMC, steps: int) -> torch.Tensor:
    """Return the variances of chains that start far out in a Gaussian of one period a trajectory."""
    generator = torch.Generator().manual_seed(0)
    z0 = torch.full((256, 2), 3.0, dtype=torch.float64)
    chain = samplers.run(kernel, lambda z: z.square().sum(1) / 2, z0, steps, generator=generator)
    return (chain.z.mean(0).abs() + (chain.z.var(0) - 1).abs()).max()


def test_a_trajectory_of_a_whole_period_comes_back_and_with_jitter_it_does_not():
    # 2 pi in 20 steps: the leapfrog's own period at this step size is a little shorter than the target's.
    step = 2 * torch.sin(torch.tensor(torch.pi / 20)).item()
    fixed, jittered = (samplers.HMC(step, 20, jitter=jitter) for jitter in (0.0, 0.5))
    assert _moments(fixed, 30) > 1
    assert _moments(jittered, 30) < 0.3


@settings(max_examples=5, deadline=None)
@given(st.floats(0.05, 0.9), st.integers(1, 6))
def test_jitter_is_a_chains_own_and_one_factor_for_a_whole_trajectory(jitter, count):
    kernel, potential = samplers.HMC(0.1, 3, jitter=jitter), lambda z: z.square().sum(1) / 2
    z = torch.randn(count, 2, generator=torch.Generator().manual_seed(1))
    together = samplers.run(kernel, potential, z, 2, generator=torch.Generator().manual_seed(0))
    last = samplers.run(kernel, potential, z[-1:], 2, generator=torch.Generator().manual_seed(0), first_chain=count - 1)
    assert torch.equal(together.z[-1:], last.z)
    key = philox.draw_key(torch.Generator().manual_seed(0), "cpu")
    factor = 1 + jitter * (2 * philox.uniform(key, torch.tensor([count - 1]), philox.TRAJECTORY).item() - 1)
    alike = samplers.HMC(0.1 * factor, 3)
    once = samplers.run(alike, potential, z[-1:], 1, generator=torch.Generator().manual_seed(0), first_chain=count - 1)
    first = samplers.run(kernel, potential, z[-1:], 1, generator=torch.Generator().manual_seed(0),
                         first_chain=count - 1)  # fmt: skip
    assert torch.allclose(once.z, first.z, atol=1e-6)
