"""Training whose steps are replayed learns what plain training learns, for every objective, penalty and setting."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from gebm import (
    GEBM,
    R1,
    Alternation,
    LatentChain,
    Lazy,
    Schedule,
    StandardNormal,
    Trainer,
    adam,
    networks,
    objectives,
    penalties,
    samplers,
)
from gebm.replay import compiled, recording
from tests.helpers import operator_graph

OBJECTIVES = list(objectives.NAMES)
KINDS = Alternation(2, warmup_energy_steps=3, warmup_base_steps=1, warmup_every=4)


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """Replay operators without Python, as a GPU does, and take the graphs that are to be compiled as they are."""
    monkeypatch.setattr(recording, "capture", operator_graph.capture)
    monkeypatch.setattr(compiled, "compile_graph", lambda graph: graph)


def model_of(objective: str) -> GEBM:
    torch.manual_seed(0)
    if objectives.needs_density(objectives.make(objective, num_steps=2)):
        base, energy = networks.make("gaussian", resolution=0, channels=3, latent_dim=3)
        return GEBM(base, energy, StandardNormal(3)).double()
    base, energy = networks.make("dcgan", resolution=8, channels=1, latent_dim=3, width=4)
    return GEBM(base, energy, StandardNormal(3)).double()


def trainer_of(mode: str, objective: str = "kale_fenchel", model: GEBM | None = None, **settings) -> Trainer:
    model = model_of(objective) if model is None else model
    given = {
        "objective": objectives.make(objective, num_steps=2),
        "energy_optimizer": adam([*model.energy.parameters(), model.log_partition], 1e-3, weight_decay=0.1),
        "base_optimizer": adam(model.base.parameters(), 1e-3),
        "alternation": KINDS,
        "cuda_graphs": mode,
    }
    return Trainer(model, **given | settings)


def batches(trainer: Trainer):
    for number in itertools.count():
        generator = torch.Generator().manual_seed(number)
        yield torch.rand(4, *trainer.gebm.sample_shape(), generator=generator, dtype=torch.float64) * 2 - 1


def everything(trainer: Trainer) -> dict[str, Tensor]:
    return {**trainer.gebm.state_dict(), **trainer.state_dict()["tensors"]}


def train(trainer: Trainer, steps: int = 4, first: int = 0) -> list[tuple[float, ...]]:
    data = itertools.islice(batches(trainer), 100 * first, None)
    infos = [trainer.step(data, torch.Generator().manual_seed(first + step)) for step in range(steps)]
    return [tuple(float(entry) for entry in info) for info in infos]


def assert_same(one: Trainer, other: Trainer, infos: list, others: list) -> None:
    torch.testing.assert_close(everything(one), everything(other), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(torch.tensor(infos), torch.tensor(others), rtol=1e-6, atol=1e-9, equal_nan=True)
    assert (one.base_step, one.energy_step) == (other.base_step, other.energy_step)
    for module, same in zip(one.gebm.modules(), other.gebm.modules(), strict=True):
        assert module.training == same.training


def assert_replayed_as_plain(at_least: int, **settings) -> None:
    plain, replayed = trainer_of("false", **settings), trainer_of("true", **settings)
    listed = trainer_of("false", compiled="true", **settings)
    infos = train(plain)
    assert_same(replayed, plain, train(replayed), infos)
    # The graphs that are to be compiled compute the very same.
    torch.testing.assert_close(torch.tensor(train(listed)), torch.tensor(infos), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(everything(listed), everything(plain), rtol=0, atol=0)
    for trainer, path in ((replayed, "cuda_graphs"), (listed, "compiled")):
        replays = trainer.replayed.replays
        assert replays.replayed >= at_least, replays.lines
        assert replays.path == path
        assert not any("are not" in line for line in replays.lines), replays.lines
    assert plain.replayed.replays.replayed == 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_by_any_objective_is_replayed(objective):
    trains_energy = objectives.make(objective, num_steps=2).trains_energy
    assert_replayed_as_plain(7 if trains_energy else 2, objective=objective)


@pytest.mark.parametrize("penalty", [*penalties.NAMES, "lazy"])
def test_training_with_any_penalty_is_replayed(penalty):
    chosen = Lazy(R1(), 2) if penalty == "lazy" else penalties.make(penalty)
    assert_replayed_as_plain(8, penalty=chosen)


PERSISTENT = LatentChain(samplers.MALA(0.1), num_steps=2, persistent=True, restart=0.5)
SETTINGS = {
    "average": {"ema_decay": 0.99},
    "other number of latents": {"latent_batch_size": 3},
    "falling rates": {"schedule": Schedule("cosine", num_steps=6)},
    "persistent chains": {"objective": "pcd", "negatives": PERSISTENT},
    "bfloat16": {"precision": "bfloat16"},
    "energy alone": {"train_base": False},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_training_with_any_setting_is_replayed(setting):
    assert_replayed_as_plain(7, **SETTINGS[setting])


LOADED = {"kale_fenchel": {}, "ml": {}, "pcd": {"negatives": PERSISTENT}}


@pytest.mark.parametrize("objective", LOADED)
@pytest.mark.parametrize("before", [0, 4])
def test_a_loaded_state_is_trained_on(objective, before):
    """An optimizer's state is loaded into other tensors; that of an untrained trainer is empty, and has no chains."""
    trainers = {mode: trainer_of(mode, objective, **LOADED[objective]) for mode in ("false", "true")}
    infos: dict[str, list] = {mode: [] for mode in trainers}
    for mode, trainer in trainers.items():
        train(trainer, before)
        state = copy.deepcopy(trainer.state_dict())
        train(trainer, 2, first=1)
        trainer.load_state_dict(state)
        infos[mode] += train(trainer, 4, first=2)
    assert_same(trainers["true"], trainers["false"], infos["true"], infos["false"])
    assert trainers["true"].replayed.replays.replayed >= 2


def test_what_is_changed_between_two_steps_is_seen():
    """Rates, penalties, loaded states and steps of the energy alone."""
    trainers = {mode: trainer_of(mode) for mode in ("false", "true")}
    infos: dict[str, list] = {mode: [] for mode in trainers}
    for mode, trainer in trainers.items():
        infos[mode] += train(trainer)
        trainer.scale_learning_rates(0.5, 0.25)
        infos[mode] += train(trainer, 2, first=1)
        saved = {name: tensor.clone() for name, tensor in trainer.gebm.state_dict().items()}, trainer.state_dict()
        saved[1]["tensors"] = {name: tensor.clone() for name, tensor in saved[1]["tensors"].items()}
        trainer.penalty = R1(0.5)
        info = trainer.train_energy(batches(trainer), torch.Generator().manual_seed(9), 5, learning_rate=1e-2)
        infos[mode].append(tuple(float(entry) for entry in info))
        infos[mode] += train(trainer, 1, first=2)
        trainer.gebm.load_state_dict(saved[0])
        trainer.load_state_dict(saved[1])
        infos[mode] += train(trainer, 3, first=3)
    assert_same(trainers["true"], trainers["false"], infos["true"], infos["false"])
    assert trainers["true"].replayed.replays.replayed > 10


class Counting(nn.Module):
    """An energy that keeps a number in Python, which no replay can count."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(3, 1).double(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) * (1 + self.calls % 11)


class Noisy(Counting):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + torch.randn_like(x))


class Hoarding(Counting):
    def forward(self, x: Tensor) -> Tensor:
        KEPT.add_(1)
        return self.layer(x)


KEPT = torch.zeros(())


@pytest.mark.parametrize(
    ("energy", "reason"),
    [
        (Counting, "a replay is off by"),
        (Noisy, "randn_like draws random numbers that are not on the tape"),
        (Hoarding, "add_ changes a tensor that is no part of the state"),
    ],
)
def test_an_energy_that_cannot_be_replayed_is_not(energy, reason):
    torch.manual_seed(0)
    model = GEBM(nn.Linear(3, 3).double(), energy(), StandardNormal(3).double())
    trainer = Trainer(
        model,
        objective=objectives.make("kale_fenchel"),
        energy_optimizer=adam([*model.energy.parameters(), model.log_partition], 1e-3),
        base_optimizer=adam(model.base.parameters(), 1e-3),
        alternation=Alternation(3, warmup_energy_steps=3),
        cuda_graphs="true",
    )
    train(trainer)
    lines = trainer.replayed.replays.lines
    assert any(line.startswith(f"training steps are not replayed: {reason}") for line in lines), lines


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_that_reads_no_rate_from_a_tensor_takes_its_steps_plainly(optimizer):
    """A recording for each rate of a schedule would be made in each alternation, and kept."""
    ends = {}
    for mode in ("false", "true"):
        trainer = trainer_of(mode)
        owned = [group["params"] for group in trainer.energy_optimizer.param_groups]
        trainer = Trainer(
            trainer.gebm,
            objective=trainer.objective,
            energy_optimizer=optimizer(itertools.chain(*owned), lr=1e-3),
            base_optimizer=adam(trainer.gebm.base.parameters(), 1e-3),
            alternation=KINDS,
            schedule=Schedule("cosine", num_steps=6),
            cuda_graphs=mode,
        )
        infos = train(trainer)
        ends[mode] = infos, trainer
    assert_same(ends["true"][1], ends["false"][1], ends["true"][0], ends["false"][0])
    name = optimizer.__name__
    expected = f"training steps are not replayed: {name} reads no learning rate from a tensor: use gebm.adam"
    assert (trainer.replayed.replays.path, trainer.replayed.replays.lines) == ("plain", [expected])


def test_on_the_cpu_nothing_is_replayed_unless_it_is_requested():
    plain, automatic = trainer_of("false"), trainer_of("auto")
    assert train(plain) == train(automatic)
    assert all(map(torch.equal, everything(plain).values(), everything(automatic).values()))
    assert automatic.replayed.replays.lines == []
