"""Published layouts: what their generators and discriminators compute is what base and energy compute here."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from gebm import GEBM, StandardNormal, folded, networks
from gebm.classes import split_labels
from tests.helpers import published

BASES = {
    **{
        f"mimicry-{size}": (
            size,
            partial(published.mimicry_generator, size),
            lambda state, z, size=size: published.run_mimicry_generator(state, z, size),
        )
        for size in published.MIMICRY_BASES
    },
    **{
        f"studiogan-{size}": (
            size,
            partial(published.studiogan_generator, size),
            published.run_studiogan_generator,
        )
        for size in published.STUDIOGAN_BASES
    },
    "deep-conv": (32, published.deep_conv_generator, published.run_deep_conv_generator),
}
ENERGIES = {
    **{
        f"mimicry-{size}-{'sngan' if normalized else 'dcgan'}": (
            size,
            partial(published.mimicry_discriminator, size, normalized=normalized),
            lambda state, x, size=size: published.run_mimicry_discriminator(state, x, size),
        )
        for size in published.MIMICRY_ENERGIES
        for normalized in (True, False)
    },
    **{
        f"studiogan-{size}-{norm}": (
            size,
            partial(published.studiogan_discriminator, size, norm=norm),
            lambda state, x, size=size: published.run_studiogan_discriminator(state, x, size),
        )
        for size in published.STUDIOGAN_ENERGIES
        for norm in ("spectral", "batch", "none")
    },
    **{
        f"deep-conv-{norm}": (
            32,
            partial(published.deep_conv_discriminator, norm=norm),
            published.run_deep_conv_discriminator,
        )
        for norm in ("spectral", "batch", "none")
    },
}


def built(base_state=None, energy_state=None, **sizes):
    """Return the base and the energy that weights say, with these weights."""
    readings = [
        networks.published.read(half, state)
        for half, state in (("base", base_state), ("energy", energy_state))
        if state is not None
    ]
    settings = {name: value for reading in readings for name, value in reading.settings.items()}
    for reading in readings:
        sizes |= reading.sizes
    pair = networks.make("imported", **{"latent_dim": 6, **sizes}, **settings)
    for reading, module in zip(readings, pair if base_state is not None else pair[1:], strict=False):
        module.load_state_dict(reading.state)
    return pair


@pytest.mark.parametrize("name", BASES)
def test_a_base_is_the_published_generator(name):
    size, make, run = BASES[name]
    state, z = make(), torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    base, _ = built(state)
    with torch.no_grad():
        images = base.eval()(z)
        assert images.shape == (3, 3, size, size)
        assert images.std() > 0.02 and torch.allclose(images, run(state, z), atol=1e-5)


@pytest.mark.parametrize("name", ENERGIES)
def test_an_energy_is_minus_the_published_logit(name):
    size, make, run = ENERGIES[name]
    state, x = make(), 2 * torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(2)) - 1
    _, energy = built(energy_state=state)
    with torch.no_grad():
        values, logit = energy.eval()(x), run(state, x)
        assert values.shape == (3, 1) and torch.allclose(values, -logit, rtol=1e-5, atol=1e-5)
        # The map of a fresh energy is not this one.
        other = networks.make("imported", resolution=size, channels=3, latent_dim=6, energy_width=16)[1]
        assert not torch.allclose(other.eval()(x), values, rtol=1e-2, atol=1e-2)


LABELS = torch.tensor([2, 0, 1, 2])
CONDITIONAL = {
    **{
        f"studiogan-{size}": (
            partial(published.studiogan_generator, size, num_classes=3),
            published.run_studiogan_generator,
            partial(published.studiogan_discriminator, size, num_classes=3),
            lambda state, x, labels, size=size: published.run_studiogan_discriminator(state, x, size, labels),
        )
        for size in published.STUDIOGAN_BASES
    },
    "deep-conv": (
        partial(published.deep_conv_generator, num_classes=3),
        published.run_deep_conv_generator,
        partial(published.deep_conv_discriminator, num_classes=3),
        published.run_deep_conv_discriminator,
    ),
}


def built_conditional(base_state, energy_state):
    """Return the pair of class-conditional weights, which say all that it needs."""
    readings = [
        networks.published.read_conditional(half, state)
        for half, state in (("base", base_state), ("energy", energy_state))
    ]
    pair = networks.make(
        "imported_conditional",
        **{name: value for reading in readings for name, value in (*reading.settings.items(), *reading.sizes.items())},
    )
    for reading, module in zip(readings, pair, strict=True):
        module.load_state_dict(reading.state)
    return pair


@pytest.mark.parametrize("norm", ["spectral", "batch", "none"])
@pytest.mark.parametrize("name", CONDITIONAL)
def test_a_conditional_pair_is_the_published_one_of_an_image_and_its_class(name, norm):
    make_base, run_base, make_energy, run_energy = CONDITIONAL[name]
    states = make_base(), make_energy(norm=norm)
    base, energy = built_conditional(*states)
    model = GEBM(base, energy, StandardNormal(6), class_frequencies=[1, 1, 1]).eval()
    z = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        x = model.decode(torch.cat([z, torch.eye(3)[LABELS]], 1))
        images, labels = split_labels(x, 3)
        assert torch.equal(labels, LABELS) and images.std() > 0.02
        assert torch.allclose(images, run_base(states[0], z, LABELS), atol=1e-5)
        logit = run_energy(states[1], images, LABELS)
        assert torch.allclose(energy(x), -logit, rtol=1e-4, atol=1e-4)
        # Both depend on the class.
        assert not torch.allclose(images, run_base(states[0], z, LABELS.flip(0)), atol=1e-3)
        assert not torch.allclose(logit, run_energy(states[1], images, LABELS.flip(0)), rtol=1e-2)
        chain = torch.cat([z, torch.eye(3)[LABELS]], 1)
        assert torch.allclose(folded(model).potential(chain), model.potential(chain), rtol=1e-4, atol=1e-4)


def test_the_energy_of_another_conditional_family_on_an_imported_base():
    sizes = {"resolution": 32, "channels": 3, "latent_dim": 6, "num_classes": 3, "base_width": 4}
    base, energy = networks.make("imported_conditional", **sizes, energy="dcgan_conditional", width=4)
    assert energy(base(torch.zeros(2, 9))).shape == (2, 1)
    with pytest.raises(ValueError, match="choose the energy of one of dcgan_conditional, sngan_resnet_conditional"):
        networks.make("imported_conditional", **sizes, energy="dcgan")


@pytest.mark.parametrize(
    ("half", "tensors", "message"),
    [
        ("base", published.studiogan_generator(32), "without batch norm by class, and networks=imported reads"),
        ("energy", published.studiogan_discriminator(32), "without a projection on classes"),
        ("base", published.mimicry_generator(32), "of mimicry, of which no class-conditional ones"),
        (
            "energy",
            published.studiogan_discriminator(32, num_classes=3) | {"linear2.weight": torch.zeros(8, 8)},
            "with linear2.weight: embeddings of classes that are no part of its logit",
        ),
        (
            "base",
            published.studiogan_generator(32, num_classes=3) | {"info_proj_linear.weight": torch.zeros(1)},
            "with info_proj_linear.weight, which studiogan_resnet has not",
        ),
    ],
)
def test_what_is_no_conditional_half_of_a_layout_is_refused(half, tensors, message):
    with pytest.raises(ValueError, match=message):
        networks.published.read_conditional(half, tensors)


def test_names_may_be_those_of_wrappers_and_of_present_spectral_normalization():
    state = published.mimicry_discriminator(32)
    renamed = {
        f"module.{name}".replace("weight_orig", "parametrizations.weight.original")
        .replace("weight_u", "parametrizations.weight.0._u")
        .replace("weight_v", "parametrizations.weight.0._v"): tensor
        for name, tensor in state.items()
    }
    first, second = (networks.published.read("energy", tensors) for tensors in (state, renamed))
    assert first.state.keys() == second.state.keys()
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)
    assert second.names["linear.bias"] == "module.l5.bias"


def test_what_the_logit_does_not_depend_on_is_left():
    state = published.studiogan_discriminator(32)
    extra = {"linear2.weight": torch.zeros(10, 8), "info_conti_mu_linear.weight": torch.zeros(1, 8)}
    assert networks.published.read("energy", state | extra).left == tuple(extra)


@pytest.mark.parametrize(
    ("half", "tensors", "message"),
    [
        ("base", {"x": torch.zeros(2)}, "of no layout of mimicry"),
        ("base", published.mimicry_discriminator(32), "of no layout"),
        ("energy", published.mimicry_generator(32), "of no layout"),
        ("energy", published.studiogan_discriminator(32) | {"embedding.weight": torch.zeros(10, 8)}, "class-cond"),
        ("base", published.studiogan_generator(32) | {"blocks.0.0.bn1.gain.weight": torch.zeros(9, 9)}, "class-cond"),
        ("base", published.studiogan_generator(32) | {"blocks.9.0.conv1x1_phi.weight": torch.zeros(1)}, "conv1x1_phi"),
        # Of a width of zero, or with other dimensions.
        ("base", {name: tensor[:0] for name, tensor in published.mimicry_generator(32).items() if tensor.dim()}, "no"),
        ("energy", dict.fromkeys(published.deep_conv_discriminator(), torch.zeros(())), "of no layout"),
    ],
)
def test_what_is_no_half_of_a_layout_is_refused(half, tensors, message):
    with pytest.raises(ValueError, match=message):
        networks.published.read(half, tensors)


def test_an_energy_is_the_same_in_training_and_of_one_sample():
    state = published.studiogan_discriminator(32, norm="batch")
    _, energy = built(energy_state=state)
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(energy.train()(x)[:1], energy.eval()(x[:1]), atol=1e-5)


def test_an_imported_pair_is_folded_for_a_chain():
    base, energy = built(published.mimicry_generator(32), published.mimicry_discriminator(32))
    model, z = GEBM(base, energy, StandardNormal(6)).eval(), torch.randn(2, 6)
    with torch.no_grad():
        assert torch.allclose(folded(model).potential(z), model.potential(z), rtol=1e-4, atol=1e-4)


def test_the_energy_of_another_family_on_an_imported_base():
    base, energy = networks.make(
        "imported", resolution=32, channels=3, latent_dim=6, base_width=16, energy="sngan_convnet", width=8
    )
    assert energy(base(torch.zeros(2, 6))).shape == (2, 1)
    with pytest.raises(ValueError, match="choose the energy of one of dcgan"):
        networks.make("imported", resolution=32, channels=3, latent_dim=6, energy="maf")


def test_a_pair_of_uniform_latents_and_pixels_from_zero_to_one():
    state = published.mimicry_generator(32)
    pair = networks.make(
        "imported", resolution=32, channels=3, latent_dim=6, base_width=16, energy_width=16,
        latents="uniform", output="sigmoid",
    )  # fmt: skip
    base, energy = (networks.conventions.inner(module) for module in pair)
    base.load_state_dict(networks.published.read("base", state).state)
    weights = published.mimicry_discriminator(32)
    energy.load_state_dict(networks.published.read("energy", weights).state)
    z = torch.randn(3, 6)
    with torch.no_grad():
        images = pair[0].eval()(z)
        # The hyperbolic tangent of half as much is the logistic function on [-1, 1].
        logit = torch.atanh(published.run_mimicry_generator(state, torch.erf(z / 2**0.5), 32).double())
        assert torch.allclose(images.double(), (logit / 2).tanh(), atol=1e-4)
        logits = published.run_mimicry_discriminator(weights, (images + 1) / 2, 32)
        assert torch.allclose(pair[1].eval()(images), -logits, rtol=1e-4, atol=1e-4)
