"""Models of classes: latents and samples carry their class, networks tell classes apart, and chains keep them."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gebm import (
    GEBM,
    Alternation,
    ContrastiveDivergence,
    LatentChain,
    StandardNormal,
    Trainer,
    folded,
    log_partition_annealed,
    networks,
    penalties,
    samplers,
)
from gebm.classes import (
    ChainPotential,
    as_labeled_batch,
    as_labels,
    draw_labels,
    join_planes,
    label_images,
    one_hot,
    split_labels,
    split_planes,
)
from gebm.networks.conditional import ConditionalBase, ConditionalEnergy
from tests.helpers.kernels import rng
from tests.helpers.trainers import snapshot, trainer_of

K, D = 3, 4
SIZES = {"dcgan_conditional": 8, "sngan_resnet_conditional": 32}
FAMILIES = pytest.mark.parametrize("name", SIZES)


def model_of(name: str = "dcgan_conditional", frequencies=(1, 2, 3)) -> GEBM:
    """A model whose batch norm and power iterations have seen a few batches."""
    torch.manual_seed(0)
    size = {"resolution": SIZES[name], "channels": 1, "latent_dim": D, "width": 4, "num_classes": len(frequencies)}
    base, energy = networks.make(name, **size)
    with torch.no_grad():
        for parameter in [*base.parameters(), *energy.parameters()]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = GEBM(base, energy, StandardNormal(D), class_frequencies=frequencies)
    for _ in range(3):
        model.energy(model.decode(model.sample_latents(16)))
    return model.eval()


def batches(start: int = 0, resolution: int = 8, num_classes: int = K):
    for number in itertools.count(start):
        g = rng(number)
        labels = torch.randint(0, num_classes, (8,), generator=g)
        yield torch.rand(8, 1, resolution, resolution, generator=g) * 2 - 1, labels


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_an_image_and_its_class_are_one_tensor_and_come_apart_again(data):
    num_classes, side = data.draw(st.integers(1, 70)), data.draw(st.sampled_from([2, 4, 8]))
    labels = data.draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=4))
    images = torch.rand(len(labels), 2, side, side)
    x = label_images(images, labels, num_classes)
    parts, classes = split_planes(x, num_classes)
    assert torch.equal(parts, images)
    assert torch.equal(classes, one_hot(torch.tensor(labels), num_classes))
    assert split_labels(x, num_classes)[1].tolist() == labels
    # As few planes as hold all classes.
    assert (x.shape[1] - 2 - 1) * side * side < num_classes <= (x.shape[1] - 2) * side * side


def test_between_two_samples_the_classes_are_between_too():
    x = label_images(torch.zeros(2, 1, 8, 8), [0, 2], K)
    _, classes = split_planes(torch.lerp(x[:1], x[1:], 0.25), K)
    assert classes.tolist() == [[0.75, 0.0, 0.25]]


@FAMILIES
def test_an_image_depends_on_its_own_class_and_on_no_other_rows(name):
    model, z = model_of(name), torch.randn(4, D, generator=rng(0))
    own = torch.cat([z, torch.eye(K)[[0, 1, 2, 0]]], 1)
    others = torch.cat([z, torch.eye(K)[[0, 2, 0, 1]]], 1)
    with torch.no_grad():
        first, second = model.base(own), model.base(others)
        assert torch.equal(first[0], second[0])
        assert not torch.allclose(first[1, 0], second[1, 0], atol=1e-3)
        one, other = model.energy(first), model.energy(torch.cat([first[:1], second[1:]]))
        assert torch.equal(one[0], other[0])


@FAMILIES
def test_swapped_rows_give_swapped_outputs(name):
    model, order = model_of(name), torch.tensor([2, 0, 3, 1])
    z = model.sample_latents(4, rng(1), labels=[0, 1, 2, 2])
    with torch.no_grad():
        x = model.base(z)
        torch.testing.assert_close(model.base(z[order]), x[order], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.energy(x[order]), model.energy(x)[order], rtol=1e-4, atol=1e-5)


def test_the_projection_energy_is_linear_in_the_embedding_of_the_class():
    energy = model_of("sngan_resnet_conditional").energy.network
    images = torch.rand(3, 1, 32, 32, generator=rng(0)) * 2 - 1
    corners = [energy(label_images(images, label, K)) for label in range(K)]
    weights = torch.tensor([0.2, 0.5, 0.3])
    mixed = energy(join_planes(images, weights.expand(3, K)))
    torch.testing.assert_close(mixed, sum(w * e for w, e in zip(weights, corners, strict=True)))
    # What is left without an embedding is the same for all classes, and each embedding has the norm one.
    network = energy.network
    features, bias = network.features(images), network.linear(network.features(images))
    torch.testing.assert_close(corners[1] - bias, features @ network.embedding.weight[:, 1:2])
    torch.testing.assert_close(network.embedding.weight.norm(dim=0), torch.ones(K))


@FAMILIES
def test_only_the_classes_of_a_batch_learn(name):
    model = model_of(name)
    model.energy(model.base(model.sample_latents(4, rng(0), labels=[0, 2, 2, 0]))).sum().backward()
    embeddings = {
        key: parameter.grad
        for key, parameter in model.named_parameters()
        if any(part in key for part in ("embedding", "scale", "shift"))
    }
    assert len(embeddings) == (2 if name == "dcgan_conditional" else 13)
    for key, gradient in embeddings.items():
        assert gradient[:, 1].abs().max() == 0, key
        assert gradient[:, 0].abs().max() > 0 and gradient[:, 2].abs().max() > 0, key


def test_a_gradient_penalty_is_of_the_image_alone():
    model = model_of()
    x = model.sample_base(4, rng(0)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.energy(x).sum(), x)
    assert gradient[:, 0].abs().max() > 0 and gradient[:, 1:].abs().max() == 0


def test_labels_are_drawn_by_the_frequencies_and_the_first_are_the_same_for_any_number():
    model, n = model_of(frequencies=[1, 0, 3]), 4000
    labels = split_labels(model.sample_base(n, rng(0)), K)[1]
    share = torch.bincount(labels, minlength=K) / n
    assert share[1] == 0
    # Five standard deviations.
    assert abs(share[2] - 0.75) < 5 * (0.75 * 0.25 / n) ** 0.5
    assert torch.equal(model.sample_latents(7, rng(3))[:5], model.sample_latents(5, rng(3)))
    # Whatever the classes are, the rest of a latent is the same.
    assert torch.equal(model.sample_latents(5, rng(3), labels=2)[:, :D], model.sample_latents(5, rng(3))[:, :D])


def test_the_last_class_is_drawn_for_any_rounding():
    frequencies = torch.full((10,), 0.1, dtype=torch.float64)
    assert draw_labels(frequencies, 10_000, rng(0), torch.device("cpu")).unique().tolist() == list(range(10))


KERNELS = {
    name: samplers.make(name, step_size=0.2, friction=1.0, num_leapfrog_steps=2, prior=StandardNormal(D))
    for name in samplers.NAMES
}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_a_chain_keeps_its_class_and_goes_the_way_it_goes_alone(kernel):
    model, labels = model_of(), [0, 1, 2, 2]
    # Cold, so that the energies of two classes lead to different places.
    together = model.sample(4, kernel, 5, 100.0, rng(1), labels=labels)
    alone = model.sample(4, kernel, 5, 100.0, rng(1), batch_size=1, labels=labels)
    assert split_labels(together, K)[1].tolist() == labels
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)


class _Pixels(nn.Module):
    """Images (N, 1, 2, 2) whose pixels are the latents."""

    def forward(self, z: Tensor, classes: Tensor) -> Tensor:
        return z.view(-1, 1, 2, 2)


class _Slopes(nn.Module):
    """Energy with a slope and a constant of each class."""

    def __init__(self, constant: float) -> None:
        super().__init__()
        self.constant = constant

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        number = classes @ torch.arange(K).to(classes)
        return (1 + number) * x[:, 0, 0, 0] + self.constant * number


@given(constant=st.floats(0, 1e3), labels=st.lists(st.integers(0, K - 1), min_size=2, max_size=9))
@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("alone", [False, True], ids=["of the model", "of the starts"])
def test_the_constant_of_optimal_transport_is_of_slopes_within_a_class(alone, constant, labels):
    base, energy = ConditionalBase(_Pixels(), D, K), ConditionalEnergy(_Slopes(constant), K)
    model = GEBM(base, energy, StandardNormal(D), energy_floor=-torch.inf, class_frequencies=[1] * K)
    potential = ChainPotential(model, model.sample_latents(len(labels), rng(0), labels=labels))
    kernel = samplers.DiscriminatorOptimalTransport(0.1, prior=None if alone else model.prior)
    # Without a prior it takes the whole potential for the energy.
    steepest = 1 + max(labels) + float(potential.z.norm(dim=1).max()) if alone else K
    assert 0 < float(kernel.init(potential.z, potential).lipschitz) <= steepest * 1.01


class _Cliff(nn.Module):
    """Energy of which class one is not finite where the first pixel is positive."""

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        lost = (classes[:, 1] > 0) & (x[:, 0, 0, 0] > 0)
        return x.square().flatten(1).sum(1).masked_fill(lost, float("nan"))


@pytest.mark.parametrize("name", ["ula", "mala", "tempering"])
def test_a_lost_chain_restarts_in_its_class(name):
    base, energy = ConditionalBase(_Pixels(), D, K), ConditionalEnergy(_Cliff(), K)
    model, labels = GEBM(base, energy, StandardNormal(D), class_frequencies=[1] * K), [0, 1, 1, 2, 1, 1]
    kernel = samplers.make(name, step_size=0.5, prior=model.prior)
    potential = ChainPotential(model, model.sample_latents(6, rng(2), labels=labels))

    def is_of_its_class(step: int, state) -> None:
        # Where a chain has just restarted, its potential is not known yet.
        known = state.potential != torch.inf
        torch.testing.assert_close(state.potential[known], potential(state.z)[known], equal_nan=True)

    chain = samplers.run(
        kernel,
        potential,
        potential.z,
        20,
        generator=rng(0),
        prior=model.prior,
        every=1,
        callback=is_of_its_class,
    )
    assert chain.divergences[[1, 2, 4, 5]].sum() > 0 and chain.divergences[[0, 3]].sum() == 0
    assert model.split_latents(potential.join(chain.z))[1].argmax(1).tolist() == labels


def test_a_folded_model_is_the_model():
    for name in SIZES:
        model = model_of(name).double()
        z = model.sample_latents(5, rng(0))
        with torch.no_grad():
            torch.testing.assert_close(folded(model, torch.float64).potential(z), model.potential(z))
        assert folded(model.float(), torch.bfloat16).energy.network.precision == torch.bfloat16


def test_annealing_keeps_the_classes_of_its_latents():
    """With classes of different constants the log-partition is the log of their mean."""

    class Constants(nn.Module):
        def forward(self, x: Tensor, classes: Tensor) -> Tensor:
            return classes @ torch.tensor([0.0, 1.0, 2.0]).to(classes) + 0.0 * x.flatten(1).sum(1)

    base, energy = ConditionalBase(_Pixels(), D, K), ConditionalEnergy(Constants(), K)
    model = GEBM(base, energy, StandardNormal(D), class_frequencies=[1, 1, 2])
    estimate = log_partition_annealed(model, 2000, samplers.MALA(0.3), [0.5, 1.0], generator=rng(0))
    expected = (torch.tensor([0.25, 0.25, 0.5]) * (-torch.tensor([0.0, 1.0, 2.0])).exp()).sum().log()
    assert abs(estimate.log_partition - expected) < 5 * estimate.standard_error


@pytest.mark.parametrize("penalty", ["gradient", "r1"])
def test_every_penalty_takes_pairs_and_a_resumed_run_is_the_same_bit_for_bit(penalty):
    def trainer(seed: int) -> Trainer:
        torch.manual_seed(seed)
        sizes = {"resolution": 8, "channels": 1, "latent_dim": D, "width": 4, "num_classes": K}
        model = GEBM(*networks.make("dcgan_conditional", **sizes), StandardNormal(D), class_frequencies=[1, 2, 3])
        negatives = LatentChain(samplers.MALA(0.1), num_steps=2, persistent=True)
        objective = ContrastiveDivergence(negatives)
        return trainer_of(model, objective=objective, penalty=penalties.make(penalty, 0.1), ema_decay=0.9)

    whole, data = trainer(0), batches()
    infos = [whole.step(data, rng(step)) for step in range(3)]
    assert all(info.energy_loss.isfinite() for info in infos)
    first, data = trainer(0), batches()
    for step in range(2):
        first.step(data, rng(step))
    second = trainer(1)
    second.gebm.load_state_dict(snapshot(first.gebm))
    second.load_state_dict(first.state_dict())
    second.step(data, rng(2))
    expected, resumed = whole.gebm.state_dict(), second.gebm.state_dict()
    assert all(torch.equal(resumed[key], value) for key, value in expected.items())
    assert torch.equal(second.chains, whole.chains)
    assert second.gebm.class_frequencies.tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6])


def test_the_classes_of_samples_are_recognized_after_a_short_training():
    """By the nearest class mean of the data, which knows nine in ten of these; by chance it would be one in ten."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = torch.from_numpy(digits.images).float()[:, None] / 8 - 1, torch.from_numpy(digits.target)
    torch.manual_seed(0)
    sizes = {"resolution": 8, "channels": 1, "latent_dim": 8, "width": 8, "num_classes": 10}
    counts = torch.bincount(labels)
    model = GEBM(*networks.make("dcgan_conditional", **sizes), StandardNormal(8), class_frequencies=counts)

    def data():
        g = rng(0)
        while True:
            chosen = torch.randint(len(images), (32,), generator=g)
            yield images[chosen], labels[chosen]

    alternation = Alternation(energy_steps=1, warmup_energy_steps=10, warmup_every=10_000)
    trainer, stream, generator = trainer_of(model, lr=2e-3, alternation=alternation), data(), rng(1)
    for _ in range(250):
        trainer.step(stream, generator)
    n = 500
    wanted = torch.arange(n) % 10
    samples = trainer.sampling_model().sample(n, samplers.make("ula", step_size=1e-3), 10, 1.0, rng(2), labels=wanted)
    means = torch.stack([images[labels == label].mean(0) for label in range(10)]).flatten(1)
    nearest = torch.cdist(split_labels(samples, 10)[0].flatten(1), means).argmin(1)
    # Five standard deviations of a share of n above chance.
    assert (nearest == wanted).float().mean() > 0.1 + 5 * (0.1 * 0.9 / n) ** 0.5


def bad_batches():
    images, labels = next(batches())
    yield "images alone", images, "a batch has no labels: yield"
    yield "no class", (images, labels.clone().fill_(-1)), "a label is -1: classes are 0 to 2"
    yield "a class too many", (images, labels.clone().fill_(3)), "a label is 3: classes are 0 to 2"
    yield "too few", (images, labels[:5]), r"labels are \(5,\) for 8 samples"
    yield "numbers", (images, labels.float()), "labels are torch.float32"
    yield "no labels in a mapping", {"image": images}, "a batch has no labels"


@pytest.mark.parametrize(("batch", "line"), [pytest.param(*case[1:], id=case[0]) for case in bad_batches()])
def test_data_without_a_class_for_each_image_are_refused_in_a_line(batch, line):
    trainer = trainer_of(model_of())
    with pytest.raises((TypeError, ValueError), match=line) as error:
        trainer.step(itertools.repeat(batch), rng(0))
    assert "\n" not in str(error.value)


def test_a_batch_is_a_pair_or_a_mapping_or_has_its_classes_already():
    images, labels = next(batches())
    expected, shape = label_images(images, labels, K), (2, 8, 8)
    for batch in ((images, labels), [images, labels.int()], {"image": images, "label": labels}, expected):
        assert torch.equal(as_labeled_batch(batch, shape, K, torch.float32, torch.device("cpu")), expected)


def test_what_does_not_go_together_is_refused_in_a_line():
    base, energy = networks.make("dcgan_conditional", resolution=8, channels=1, latent_dim=D, width=4, num_classes=K)
    plain = GEBM(*networks.make("dcgan", resolution=8, channels=1, latent_dim=D, width=4), StandardNormal(D))
    unlabeled = GEBM(base, energy, StandardNormal(D))
    cases = [
        (lambda: unlabeled.sample_base(2), "give the GEBM class_frequencies of 3"),
        (lambda: GEBM(base, energy, StandardNormal(D), class_frequencies=[1, 2]).sample_base(2), "of 3"),
        (lambda: GEBM(base, energy, StandardNormal(D), class_frequencies=[0, 0]), "not all zero"),
        (lambda: GEBM(base, energy, StandardNormal(D), class_frequencies=[1, -1]), "zero or more"),
        (lambda: GEBM(base, energy, StandardNormal(D), class_frequencies=[1] * 10_001), "10,000 at most"),
        (lambda: plain.sample_base(2, labels=0), "the model has no classes"),
        (lambda: model_of().sample_base(2, labels=3), "a label is 3"),
        (lambda: model_of().potential(torch.zeros(2, D)), "with their classes"),
        (lambda: model_of().energy(torch.zeros(2, 1, 8, 8)), "images with their classes"),
        (lambda: networks.make("dcgan_conditional", resolution=8, channels=1, latent_dim=D), "needs num_classes"),
        (lambda: networks.make("dcgan", resolution=8, channels=1, latent_dim=D, num_classes=2), "has no classes"),
        (
            lambda: networks.make("dcgan_conditional", resolution=8, channels=1, latent_dim=D, num_classes=20_000),
            "from 1 to 10,000",
        ),
        (lambda: as_labels([0, 1], 3, K), r"labels are \(2,\) for 3"),
    ]
    for call, line in cases:
        with pytest.raises((TypeError, ValueError), match=line) as error:
            call()
        assert "\n" not in str(error.value)
