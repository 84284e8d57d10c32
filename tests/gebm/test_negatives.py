"""Negatives: long chains make contrastive divergence the gradient of the likelihood, and persistent ones persist."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from gebm import (
    GEBM,
    Alternation,
    ContrastiveDivergence,
    MaximumLikelihood,
    StandardNormal,
    Trainer,
    adam,
    networks,
    objectives,
    samplers,
)
from gebm.networks.flows import GaussianFlow
from gebm.objectives.negatives import BaseDraws, DataChain, LatentChain
from gebm.objectives.penalties import NoPenalty


class Quadratic(nn.Module):
    """E(x) = a |x|^2 / 2 - b^T x: over a Gaussian base, the model is a Gaussian."""

    def __init__(self, a: float, b: list[float]) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))
        self.b = nn.Parameter(torch.tensor(b))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * x.square().sum(1) / 2 - x @ self.b


def gaussian_model(a: float = 0.8, b: tuple[float, float] = (0.5, -1.0)) -> tuple[GEBM, Tensor, Tensor]:
    """A model and its mean and covariance: the precisions of base and energy add up."""
    base = GaussianFlow(2)
    with torch.no_grad():
        base.mean.copy_(torch.tensor([0.3, -0.2]))
        base.log_diagonal.copy_(torch.tensor([0.2, -0.3]))
        base.lower.copy_(torch.tensor([[0.0, 0.0], [0.4, 0.0]]))
    model = GEBM(base, Quadratic(a, list(b)), StandardNormal(2))
    precision = torch.linalg.inv(base.factor @ base.factor.T).detach()
    covariance = torch.linalg.inv(precision + a * torch.eye(2))
    return model, covariance @ (precision @ base.mean.detach() + torch.tensor(b)), covariance


SOURCES = {
    "latent, hmc": LatentChain(samplers.HMC(0.5, num_leapfrog_steps=3), num_steps=30),
    "latent, independent": LatentChain(samplers.IndependentMetropolis(StandardNormal(2)), num_steps=60),
    "data from data": DataChain(samplers.HMC(0.4, num_leapfrog_steps=3), num_steps=40),
    "data from base": DataChain(samplers.MALA(0.3), num_steps=60, start="base"),
}


@pytest.mark.parametrize("source", list(SOURCES))
def test_long_exact_chains_give_the_gradient_of_the_likelihood(source):
    # Of -E_P[E] - log Z: in a it is (E_Q - E_P)[|x|^2 / 2], in b it is (E_P - E_Q)[x], Gaussian moments of Q.
    model, mean, covariance = gaussian_model()
    n = 4_000
    x_data = torch.randn(n, 2, generator=torch.Generator().manual_seed(0)) * 0.5 + 1.0
    objective = ContrastiveDivergence(SOURCES[source])
    draw = objective.negatives.draw(model, n, torch.Generator().manual_seed(1), x_data)
    assert draw.x.shape == (n, 2) and not draw.x.requires_grad and draw.positions is None
    objective.energy_loss(model.energy(x_data), model.energy(draw.x), None).backward()

    second_moment = covariance.trace() + mean @ mean
    expected_a = (x_data.square().sum(1).mean() - second_moment) / 2
    expected_b = mean - x_data.mean(0)
    # |x|^2 of a Gaussian has variance 2 tr(S^2) + 4 m' S m; five standard errors of independent chains.
    error_a = ((2 * (covariance @ covariance).trace() + 4 * mean @ covariance @ mean) / n).sqrt() / 2
    energy = model.energy.network
    assert abs(energy.a.grad - expected_a) <= 5 * error_a
    assert ((energy.b.grad - expected_b).abs() <= 5 * (covariance.diag() / n).sqrt()).all()


def test_the_bias_of_short_chains_is_towards_where_they_start():
    model, mean, _ = gaussian_model(b=(3.0, 0.0))
    kernel, generator = samplers.MALA(0.02), torch.Generator().manual_seed(0)
    x_data = torch.full((2_000, 2), 5.0)
    short = LatentChain(kernel, num_steps=1).draw(model, 2_000, generator, x_data).x.mean(0)
    base_mean = model.base.mean.detach()
    assert (short - base_mean).norm() < 0.3 * (mean - base_mean).norm()
    at_data = DataChain(kernel, num_steps=1).draw(model, 2_000, generator, x_data).x.mean(0)
    assert (at_data - 5.0).norm() < 0.3 * (mean - 5.0).norm()


@pytest.mark.parametrize("chain", [LatentChain, DataChain])
def test_persistent_chains_reach_the_model_over_many_short_draws(chain):
    model, mean, covariance = gaussian_model()
    n, source = 2_000, chain(samplers.MALA(0.3), num_steps=2, persistent=True)
    generator, positions = torch.Generator().manual_seed(0), None
    for _ in range(40):
        x, positions = source.draw(model, n, generator, torch.zeros(n, 2), positions)
    assert ((x.mean(0) - mean).abs() <= 5 * (covariance.diag() / n).sqrt()).all()
    expected = positions if chain is DataChain else model.base(positions).detach()
    assert torch.equal(x, expected)


def test_persistent_draws_are_one_long_chain_where_the_kernel_remembers_nothing():
    model, _, _ = gaussian_model()
    kernel = samplers.UnadjustedLangevin(0.05)
    whole = LatentChain(kernel, num_steps=6).draw(model, 5, torch.Generator().manual_seed(0), torch.zeros(5, 2)).x
    source, generator, positions = LatentChain(kernel, num_steps=2, persistent=True), torch.Generator(), None
    generator.manual_seed(0)
    for _ in range(3):
        x, positions = source.draw(model, 5, generator, torch.zeros(5, 2), positions)
    torch.testing.assert_close(x, whole)


def test_restarts_happen_as_often_as_they_are_asked_for():
    model, _, _ = gaussian_model()
    n, away = 2_000, torch.full((2_000, 2), 40.0)
    for restart in (0.0, 0.25, 1.0):
        source = LatentChain(samplers.MALA(1e-6), num_steps=1, persistent=True, restart=restart)
        _, positions = source.draw(model, n, torch.Generator().manual_seed(0), torch.zeros(n, 2), away)
        share = (positions < 20).all(1).double().mean()
        assert abs(share - restart) <= 5 * math.sqrt(restart * (1 - restart) / n)


def test_more_chains_than_before_are_started_and_fewer_leave_the_others_waiting():
    model, _, _ = gaussian_model()
    source = DataChain(samplers.MALA(1e-6), num_steps=1, persistent=True)
    draw = source.draw(model, 5, torch.Generator().manual_seed(0), torch.full((2, 2), 1.0), torch.full((3, 2), 7.0))
    torch.testing.assert_close(draw.x.mean(1), torch.tensor([7.0, 7.0, 7.0, 1.0, 1.0]), rtol=0, atol=0.02)

    trainer = trainer_of(model, DataChain(samplers.MALA(1e-6), num_steps=1, persistent=True))
    trainer.alternation, trainer.train_base = Alternation(1, warmup_energy_steps=1), False
    generator = torch.Generator().manual_seed(0)
    trainer.step(iter([torch.full((6, 2), 3.0)]), generator)
    before = trainer.chains.clone()
    trainer.step(iter([torch.full((4, 2), 9.0)]), generator)
    assert trainer.chains.shape == (6, 2)
    assert torch.equal(trainer.chains[4:], before[4:]) and not torch.equal(trainer.chains[:4], before[:4])


def trainer_of(model: GEBM, negatives: object) -> Trainer:
    return Trainer(
        model,
        objective=ContrastiveDivergence(),
        energy_optimizer=adam([*model.energy.parameters(), model.log_partition], 1e-2),
        base_optimizer=adam(model.base.parameters(), 1e-2),
        alternation=Alternation(energy_steps=2, warmup_energy_steps=2),
        negatives=negatives,
    )


def test_trainer_takes_the_negatives_it_is_given_over_the_objectives_own():
    model, _, _ = gaussian_model()
    given = DataChain(samplers.MALA(0.1), num_steps=2, persistent=True)
    assert trainer_of(model, given).negatives is given
    assert trainer_of(model, None).negatives == LatentChain()


@pytest.mark.parametrize("chain", [LatentChain(), DataChain()], ids=lambda chain: type(chain).__name__)
@pytest.mark.parametrize("name", objectives.NAMES)
def test_only_an_objective_of_chains_is_given_chains(name, chain):
    """Those of the others learn from the base: KALE on samples of the model would have ``exp(-2 E) dB`` be the data."""
    model, objective = gaussian_model()[0], objectives.make(name)
    settings = {
        "energy_optimizer": adam([*model.energy.parameters(), model.log_partition], 1e-2),
        "base_optimizer": adam(model.base.parameters(), 1e-2),
        "negatives": chain,
    }
    if name in ("cd", "pcd", "cd_data", "pcd_data"):
        assert Trainer(model, objective=objective, **settings).negatives is chain
        assert Trainer(model, objective=MaximumLikelihood(objective), **settings).negatives is chain
        return
    with pytest.raises(
        ValueError, match=f"not from the ends of a {type(chain).__name__}: leave negatives out"
    ) as error:
        Trainer(model, objective=objective, **settings)
    assert "\n" not in str(error.value)


def test_a_chain_that_diverges_is_restarted():
    # Steps of ULA ten times beyond what this curvature is stable for: without restarts all would be infinite.
    model, _, _ = gaussian_model(a=200.0)
    for source in (
        LatentChain(samplers.UnadjustedLangevin(0.5), num_steps=60, persistent=True),
        DataChain(samplers.UnadjustedLangevin(0.5), num_steps=60, persistent=True),
    ):
        draw = source.draw(model, 20, torch.Generator().manual_seed(0), torch.zeros(20, 2))
        assert draw.x.isfinite().all() and draw.positions.isfinite().all()


@pytest.mark.parametrize("name", ["cd", "pcd", "cd_data", "pcd_data"])
def test_contrastive_divergence_learns_a_gaussian(name):
    # P = N((1, -0.5), 0.6 I) is N(0, I) tilted by E = a |x|^2 / 2 - b'x with a = 1 / 0.6 - 1, b = m / 0.6.
    torch.manual_seed(0)
    model = GEBM(GaussianFlow(2), Quadratic(0.0, [0.0, 0.0]), StandardNormal(2))
    mean, variance = torch.tensor([1.0, -0.5]), 0.6
    objective = objectives.make(name, kernel=samplers.HMC(0.5, num_leapfrog_steps=3), num_steps=3)
    trainer = Trainer(
        model,
        objective=objective,
        penalty=NoPenalty(),
        energy_optimizer=adam([*model.energy.parameters(), model.log_partition], 4e-2),
        alternation=Alternation(energy_steps=5, warmup_energy_steps=5),
        train_base=False,
    )
    generator = torch.Generator().manual_seed(0)
    batches = iter(lambda: mean + math.sqrt(variance) * torch.randn(256, 2, generator=generator), None)
    for step in range(30):
        trainer.step(batches, generator)
        if step == 20:
            trainer.scale_learning_rates(0.1, 0.1)
    energy = model.energy.network
    # Batches of 256 leave a noise of some hundredths; a quarter of where it started from zero is far outside of it.
    assert abs(energy.a.item() - (1 / variance - 1)) < 0.15
    assert (energy.b.detach() - mean / variance).norm() < 0.2


def test_base_draws_are_the_models_own():
    torch.manual_seed(0)
    base, energy = networks.make("dcgan", resolution=8, channels=1, latent_dim=4, width=4)
    model = GEBM(base, energy, StandardNormal(4))
    drawn = BaseDraws().draw(model, 5, torch.Generator().manual_seed(1), torch.zeros(2, 1, 8, 8)).x
    assert torch.equal(drawn, model.sample_base(5, torch.Generator().manual_seed(1)))
    images = LatentChain(samplers.MALA(0.1), num_steps=2).draw(model, 5, None, torch.zeros(2, 1, 8, 8)).x
    assert images.shape == (5, 1, 8, 8)


def test_drawing_changes_nothing_of_the_model():
    torch.manual_seed(0)
    base, energy = networks.make("realnvp", resolution=0, channels=2, latent_dim=2, width=8)
    model = GEBM(base, energy, StandardNormal(2)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for source in (LatentChain(num_steps=3), DataChain(num_steps=3)):
        source.draw(model, 5, None, torch.zeros(5, 2))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LatentChain(num_steps=0), "chain of 0 steps: choose at least 1"),
        (lambda: DataChain(restart=1.5), "probability 1.5: choose a number from 0 to 1"),
        (lambda: DataChain(start="noise"), "cannot start at 'noise': choose 'data' or 'base'"),
        (
            lambda: DataChain().draw(
                GEBM(nn.Linear(2, 2), nn.Linear(2, 1), StandardNormal(2)), 4, None, torch.zeros(4, 2)
            ),
            "no density",
        ),
        (
            lambda: DataChain().draw(gaussian_model()[0], 4, None, torch.zeros(4, 1, 2)),
            r"positions of shape \(N, D\)",
        ),
        (
            lambda: trainer_of(GEBM(nn.Linear(2, 2), nn.Linear(2, 1), StandardNormal(2)), DataChain()),
            "needs a base with a density",
        ),
    ],
)
def test_what_is_refused_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
