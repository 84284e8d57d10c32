"""Data parallelism: what is learned does not depend on the number of processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from gebm import GEBM, KALE, StandardNormal, networks, objectives
from gebm.objectives.losses import BaseLoss
from gebm.training.data_parallel import data_parallel
from tests.helpers.processes import run_in_processes
from tests.helpers.trainers import digits_model, family_model, flow_model, images, trainer_of, vectors


def flattened(tensors) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


TOGETHER = ("dcgan", "kale_fenchel", "ml", "ml_kale", "pcd", "pcd_data", "base kept")


def trained_together(case: str, rank: int, world_size: int) -> Tensor:
    """What three alternations leave behind on one of so many processes.

    Each begins with weights of its own; the batches of 8 are shared out among them.
    """
    # In double precision, so that what is left is no rounding; chains keep to float32.
    torch.set_default_dtype(torch.float32 if case.startswith("pcd") else torch.float64)
    if case in networks.NAMES:
        torch.manual_seed(rank)
        base, energy = networks.make(case, resolution=8, channels=1, latent_dim=4, width=8)
        model, batches = GEBM(base, energy, StandardNormal(4)), images()
        settings = {"objective": KALE("donsker_varadhan"), "ema_decay": 0.9}
    else:
        model, batches = flow_model(rank), vectors()
        kept = case == "base kept"
        objective = objectives.make("kale_fenchel" if kept else case)
        settings = {"objective": objective, "train_base": not kept, "ema_decay": 0.9}
    trainer = trainer_of(model, parallel=data_parallel if world_size > 1 else lambda module: module, **settings)
    mine = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    parts = (batch[mine] for batch in batches)
    for step in range(3):
        assert trainer.step(parts, torch.Generator().manual_seed(step)).num_nonfinite == 0
    state = trainer.state_dict()["tensors"]  # optimizers, average, and the chains of all
    return flattened([*model.state_dict().values(), *(state[name] for name in sorted(state))])


# Families of images, and the published layout whose energy keeps statistics of batches.
FAMILIES = networks.NAMES.having("tasks", "images")
PUBLISHED = {"layout": "studiogan_resnet", "energy_norm": "batch"}


def sends_buffers(name: str, **settings: object) -> bool:
    """Whether data parallelism sends buffers at a forward pass of the energy's or of the base's loss."""
    wrapped: list[DistributedDataParallel] = []

    def parallel(loss: nn.Module) -> nn.Module:
        wrapped.append(data_parallel(loss))
        return wrapped[-1]

    trainer_of(family_model(name, **settings), parallel=parallel)
    assert len(wrapped) == 2
    return any(loss.will_sync_module_buffers() for loss in wrapped)


WORLD_SIZES = (4, 2)


def train_one_process(rank: int, folder: str) -> None:
    """Train among four, and then the first two processes between them: to start one takes longer than it all."""
    torch.set_num_threads(1)
    for world_size in WORLD_SIZES:
        if rank < world_size:
            rendezvous = f"file://{folder}/rendezvous-{world_size}"
            distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
            found = {case: trained_together(case, rank, world_size) for case in TOGETHER}
            safetensors.torch.save_file(found, f"{folder}/{world_size}-{rank}.safetensors")
            if world_size == 2:
                torch.set_default_dtype(torch.float32)
                sending = [name for name in FAMILIES if sends_buffers(name)]
                sending += ["published"] if sends_buffers("imported", **PUBLISHED) else []
                Path(folder, f"sending-{rank}.json").write_text(json.dumps(sending))
            distributed.destroy_process_group()


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Path:
    """The folder of what each process has learned, each among so many."""
    folder = tmp_path_factory.mktemp("learned")
    run_in_processes(train_one_process, (str(folder),), max(WORLD_SIZES))
    return folder


@pytest.fixture(scope="module")
def learned_alone() -> dict[str, Tensor]:
    found = {case: trained_together(case, 0, 1) for case in TOGETHER}
    torch.set_default_dtype(torch.float32)
    return found


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_any_number_of_processes_learns_what_one_does(world_size, learned, learned_alone):
    # Networks, running statistics, average, optimizers, log-partition and chains, of the same batches altogether.
    found = [safetensors.torch.load_file(learned / f"{world_size}-{rank}.safetensors") for rank in range(world_size)]
    for case, alone in learned_alone.items():
        tolerance = {"rtol": 1e-3, "atol": 1e-6} if case.startswith("pcd") else {"rtol": 1e-6, "atol": 1e-8}
        torch.testing.assert_close(found[0][case], alone, **tolerance)
        # Bit for bit the same on all of them, or they would drift apart.
        assert all(torch.equal(one[case], found[0][case]) for one in found)


def test_no_family_of_images_has_buffers_that_data_parallelism_sends(learned):
    # Running statistics are those of all processes, and the rest are functions of the weights, or constants.
    assert [json.loads((learned / f"sending-{rank}.json").read_text()) for rank in range(2)] == [[], []]


def test_base_loss_hides_the_energy_from_data_parallelism():
    model = digits_model()
    assert {id(p) for p in BaseLoss(model, KALE()).parameters()} == {id(p) for p in model.base.parameters()}
