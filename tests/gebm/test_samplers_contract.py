"""What every kernel promises: what it evaluates, what its state holds, what it is given, what it refuses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gebm import samplers
from tests.helpers.kernels import KERNELS, LinearPosterior, Normal, gaussian_potential, normal, rng

# What a state promises


def counting(potential: Callable[[Tensor], Tensor]) -> tuple[Callable[[Tensor], Tensor], dict[str, int]]:
    """Wraps a potential so that its evaluations and its gradients are counted."""
    counts = {"values": 0, "gradients": 0}

    class Count(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            counts["values"] += 1
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            counts["gradients"] += 1
            return gradient

    return lambda z: Count.apply(potential(z)), counts


@KERNELS
def test_no_kernel_evaluates_anything_twice(kernel):
    potential, counts = counting(gaussian_potential)
    state = kernel.init(normal(4), potential)
    # DOT also looks at the 256 latents that it estimates its constant from, four at a time like its chains.
    assert counts["values"] == (65 if isinstance(kernel, samplers.DiscriminatorOptimalTransport) else 1)
    levels = len(kernel.betas) if isinstance(kernel, samplers.ParallelTempering) else 1
    assert counts["gradients"] == (1 if hasattr(state, "gradient") or (levels > 1 and kernel.gradients_per_step) else 0)
    counts.update(values=0, gradients=0)
    samplers.run(kernel, potential, None, 7, generator=rng(1), state=state)
    calls = kernel.gradients_per_step // levels  # all the levels at once
    assert counts["gradients"] == 7 * calls
    assert counts["values"] == 7 * max(1, calls)
    expected = {samplers.HMC: 3, samplers.RandomWalkMetropolis: 0, samplers.IndependentMetropolis: 0}
    assert calls == expected.get(type(getattr(kernel, "kernel", kernel)), 1)


@KERNELS
def test_what_a_state_remembers_is_what_it_would_compute(kernel):
    chain = samplers.run(kernel, gaussian_potential, normal(50), 9, generator=rng(1))
    potential = gaussian_potential
    if isinstance(kernel, samplers.DiscriminatorOptimalTransport):
        potential = lambda z: gaussian_potential(z) + kernel.prior.log_prob(z)  # noqa: E731
    value, gradient = samplers.value_and_gradient(potential, chain.z)
    if not isinstance(kernel, samplers.KineticLangevin):  # its potential is the midpoint's
        torch.testing.assert_close(chain.state.potential, value)
    if hasattr(chain.state, "gradient"):
        torch.testing.assert_close(chain.state.gradient, gradient)
    assert torch.equal(chain.infos.potential[-1], chain.state.potential)


@KERNELS
@settings(max_examples=8, deadline=None)
@given(cut=st.integers(0, 10), seed=st.integers(0, 2**31))
def test_a_chain_stopped_saved_and_resumed_is_the_uninterrupted_one(kernel, cut, seed):
    z0 = normal(6)
    whole = samplers.run(kernel, gaussian_potential, z0, 10, generator=rng(seed))

    generator = rng(seed)
    first = samplers.run(kernel, gaussian_potential, z0, cut, generator=generator)
    saved = safetensors.torch.save(samplers.state_dict(first.state))
    resumed = torch.Generator()
    resumed.set_state(generator.get_state())
    state = samplers.load_state_dict(safetensors.torch.load(saved))
    assert type(state) is type(first.state)
    second = samplers.run(kernel, gaussian_potential, None, 10 - cut, generator=resumed, state=state)

    assert torch.equal(second.z, whole.z)
    for name, entry in whole.state._asdict().items():
        assert torch.equal(entry, getattr(second.state, name)), name
    for name, entry in whole.infos._asdict().items():
        parts = [getattr(chain.infos, name) for chain in (first, second) if chain.infos is not None]
        torch.testing.assert_close(entry, torch.cat(parts), rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@KERNELS
def test_infos_are_one_row_a_step_and_the_state_has_the_type_of_the_latents(kernel, dtype):
    chain = samplers.run(kernel, gaussian_potential, normal(5).to(dtype), 4, generator=rng(1))
    shapes = {name: entry.shape for name, entry in chain.infos._asdict().items()}
    assert shapes.pop("swap_acceptance", (4, 5, 4)) == (4, 5, 4)  # one for each pair of levels
    assert all(shape == (4, 5) for shape in shapes.values())
    assert chain.z is chain.state.z and chain.z.shape == (5, 3)
    assert chain.state.step.dtype == torch.int64 and int(chain.state.step) == 4
    assert all(entry.dtype in (dtype, torch.int64) for entry in chain.state)
    assert not any(entry.requires_grad for entry in [*chain.state, *chain.infos])
    assert samplers.run(kernel, gaussian_potential, normal(5), 0).infos is None


@KERNELS
def test_all_randomness_is_the_generators(kernel):
    before = torch.get_rng_state()
    a, b, c = (samplers.run(kernel, gaussian_potential, normal(5), 5, generator=rng(seed)).z for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a, b)
    deterministic = isinstance(kernel, samplers.GradientDescent | samplers.DiscriminatorOptimalTransport)
    assert torch.equal(a, c) == deterministic


@KERNELS
def test_a_network_is_not_differentiated_and_may_be_frozen(kernel):
    model = LinearPosterior(1.0)
    chain = samplers.run(kernel, model, normal(5), 5, generator=rng(1))
    assert all(parameter.grad is None for parameter in model.parameters())
    model.requires_grad_(False)
    with torch.inference_mode():
        frozen = samplers.run(kernel, model, normal(5), 5, generator=rng(1))
    assert torch.equal(chain.z, frozen.z)


@KERNELS
def test_chains_do_not_touch_each_other(kernel):
    if isinstance(kernel, samplers.DiscriminatorOptimalTransport):
        kernel = dataclasses.replace(kernel, lipschitz=1.0)  # an estimate looks at all latents, by definition
    z0, generator = normal(6), rng(1)
    state = kernel.init(z0, gaussian_potential)
    alone, _ = kernel.step(state, gaussian_potential, generator)
    others = z0.clone()
    others[3:] += 1
    state = kernel.init(others, gaussian_potential)
    together, _ = kernel.step(state, gaussian_potential, rng(1))
    torch.testing.assert_close(alone.z[:3], together.z[:3])


# Driver and schedule


@settings(max_examples=30, deadline=None)
@given(num_steps=st.integers(1, 12), cut=st.integers(0, 12), every=st.none() | st.integers(1, 5))
def test_the_callback_comes_at_the_chains_own_multiples_and_at_the_end(num_steps, cut, every):
    seen = []
    kernel, cut = samplers.RandomWalkMetropolis(0.1), min(cut, num_steps)
    callback = lambda step, state: seen.append((step, int(state.step)))  # noqa: E731
    first = samplers.run(kernel, gaussian_potential, normal(2), cut, every=every, callback=callback)
    samplers.run(kernel, gaussian_potential, None, num_steps - cut, every=every, callback=callback, state=first.state)
    expected = {step for step in range(1, num_steps + 1) if every and step % every == 0} | {num_steps, cut} - {0}
    assert seen == [(step, step) for step in sorted(expected)]


@given(factor=st.floats(0.01, 1.0), every=st.integers(1, 500), step=st.integers(0, 2_000))
def test_a_schedule_multiplies_once_per_interval(factor, every, step):
    expected = math.prod([factor] * (step // every))
    schedule = samplers.StepDecay(factor, every)
    assert schedule(step) == pytest.approx(expected, rel=1e-9)
    assert schedule(torch.tensor(step)) == schedule(step)


@pytest.mark.parametrize(
    "make",
    [
        lambda h, schedule: samplers.UnadjustedLangevin(h, schedule),
        lambda h, schedule: samplers.KineticLangevin(h, 1.0, schedule),
        lambda h, schedule: samplers.GradientDescent(h, schedule),
    ],
    ids=["ula", "kla", "descent"],
)
def test_a_schedule_is_a_sequence_of_smaller_steps(make):
    scheduled = make(0.4, samplers.StepDecay(factor=0.5, every=2))
    whole = samplers.run(scheduled, gaussian_potential, normal(5), 6, generator=rng(1))
    generator, state = rng(1), make(0.4, None).init(normal(5), gaussian_potential)
    for h in (0.4, 0.2, 0.1):
        state = samplers.run(make(h, None), gaussian_potential, None, 2, generator=generator, state=state).state
    torch.testing.assert_close(whole.z, state.z)


def test_make_takes_from_common_settings_what_a_kernel_has():
    common = {"step_size": 0.1, "friction": 2.0, "schedule": None, "prior": Normal(), "num_leapfrog_steps": 7}
    kernels = {name: samplers.make(name, **common) for name in samplers.NAMES}
    assert {name: type(kernel) for name, kernel in kernels.items()} == samplers.NAMES
    assert kernels["kla"] == samplers.KineticLangevin(step_size=0.1, friction=2.0)
    assert kernels["hmc"] == samplers.HMC(step_size=0.1, num_leapfrog_steps=7)
    assert samplers.make("hmc", step_size=0.1, num_leapfrog_steps=None) == samplers.HMC(step_size=0.1)


# What is refused


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("nuts", {"step_size": 0.1}, "choose one of ula, kla, mala, hmc, rwm, imh, dot, descent"),
        ("ula", {"stepsize": 0.1}, "no sampler has a setting stepsize"),
        ("ula", {}, "needs step_size"),
        ("kla", {"step_size": 0.1, "friction": None}, "needs friction"),
        ("imh", {"step_size": 0.1}, "needs prior"),
    ],
)
def test_make_says_in_one_line_what_is_wrong(name, arguments, words):
    with pytest.raises(ValueError, match=words) as caught:
        samplers.make(name, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, "0.1", None])
@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda value: samplers.UnadjustedLangevin(value), "step_size"),
        (lambda value: samplers.KineticLangevin(value, 1.0), "step_size"),
        (lambda value: samplers.KineticLangevin(0.1, value), "friction"),
        (lambda value: samplers.MALA(value), "step_size"),
        (lambda value: samplers.HMC(value, 5), "step_size"),
        (lambda value: samplers.HMC(0.1, value), "num_leapfrog_steps"),
        (lambda value: samplers.RandomWalkMetropolis(value), "step_size"),
        (lambda value: samplers.DiscriminatorOptimalTransport(value), "step_size"),
        (lambda value: samplers.GradientDescent(value), "step_size"),
        (lambda value: samplers.StepDecay(factor=value), "factor"),
        (lambda value: samplers.StepDecay(every=value), "every"),
        (lambda value: samplers.IndependentMetropolis(value), "prior"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(build, name, bad):
    with pytest.raises((TypeError, ValueError), match=name) as caught:
        build(bad)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: samplers.StepDecay(factor=1.5), "at most 1"),
        (lambda: samplers.KineticLangevin(0.1, 1.0, initial_velocity="ones"), "'zero' or 'normal'"),
        (lambda: samplers.DiscriminatorOptimalTransport(0.1, lipschitz=0.0), "lipschitz"),
        (lambda: samplers.DiscriminatorOptimalTransport(0.1).init(normal(1), gaussian_potential), "at least two"),
        (lambda: samplers.DiscriminatorOptimalTransport(0.1, prior=3), "log_prob"),
        (lambda: samplers.run(samplers.MALA(0.1), gaussian_potential, None, 1), "z0"),
        (lambda: samplers.run(samplers.MALA(0.1), gaussian_potential, normal(2), -1), "num_steps"),
        (lambda: samplers.run(samplers.MALA(0.1), gaussian_potential, normal(2), 1, every=0), "every"),
        (lambda: samplers.run(samplers.MALA(0.1), gaussian_potential, torch.zeros(3), 1), r"\(N, D\)"),
        (lambda: samplers.run(samplers.MALA(0.1), lambda z: z[:, :1], normal(2), 1), "squeeze"),
        (lambda: samplers.run(samplers.MALA(0.1), lambda z: z.detach().sum(1), normal(2), 1), "detach"),
    ],
)
def test_misuse_is_one_clear_line(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_kernels_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        samplers.MALA(0.1).step_size = 0.2
