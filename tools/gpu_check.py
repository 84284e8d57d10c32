"""Check of a machine with a GPU, in some minutes: `make gpu-check`, or ``python tools/gpu_check.py`` in a checkout.

It needs torch, numpy, pytest, hypothesis and safetensors. Each law is tried on the device against the CPU, and the page
that is written says for each what was measured, or what broke. The page holds nothing of the machine but the names of
its GPU and of its software.

    python tools/gpu_check.py --device cpu     # the check itself, where there is no GPU
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor, distributed, multiprocessing, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from gebm import (
    GEBM,
    Alternation,
    StandardNormal,
    Trainer,
    adam,
    folded,
    networks,
    objectives,
    penalties,
    samplers,
)
from gebm.classes import label_images, num_planes
from gebm.precision import arithmetic
from gebm.replay import compiled
from gebm.samplers.replayed import BLOCK
from gebm.training.data_parallel import data_parallel
from pipeline.evaluation.out_of_memory import halve_batch_on_oom


class Law(NamedTuple):
    """A law, and what tries it: returns what was measured, or raises."""

    statement: str
    check: Callable[[torch.device], str]


class Outcome(NamedTuple):
    """What became of a law."""

    statement: str
    holds: bool
    measured: str
    seconds: float


def make_model(name: str = "dcgan", resolution: int = 8, width: int = 8) -> GEBM:
    """Return a model in float64 on the CPU, the same at each call."""
    torch.manual_seed(0)
    part = networks.NAMES.part(name)
    frequencies = [1.0, 2.0, 3.0] if networks.is_conditional(name) else None
    sizes = {} if frequencies is None else {"num_classes": len(frequencies)}
    # Imported networks have widths of their own for base and energy, and a Gaussian has none.
    if name != "gaussian":
        sizes |= dict.fromkeys(
            [key for key in ("base_width", "energy_width") if key in part.settings] or ["width"], width
        )
    # A flow maps between spaces of one dimension.
    channels = 4 if "points" in part.facts["tasks"] else 3
    base, energy = networks.make(name, resolution=resolution, channels=channels, latent_dim=4, **sizes)
    model = GEBM(base, energy, StandardNormal(4), class_frequencies=frequencies)
    return model.double().to(memory_format=torch.channels_last)


def families() -> dict[str, GEBM]:
    """Return a model of each family; flows of layers where zuko is installed."""
    with_zuko = importlib.util.find_spec("zuko") is not None
    names = [name for name in networks.NAMES if with_zuko or name not in networks.flows.FLOWS or name == "gaussian"]
    return {name: make_model(name, min(networks.NAMES.part(name).facts["resolutions"], default=0)) for name in names}


def make_trainer(
    model: GEBM, objective: str = "kale_fenchel", penalty: str = "gradient", **settings: object
) -> Trainer:
    """Return a trainer whose alternations have two energy steps."""
    return Trainer(
        model,
        objective=objectives.make(objective, num_steps=2),
        penalty=penalties.make(penalty),
        energy_optimizer=adam([*model.energy.parameters(), model.log_partition], 1e-3),
        base_optimizer=adam(model.base.parameters(), 1e-3),
        alternation=Alternation(2, warmup_energy_steps=2),
        **settings,
    )


def batches_on(model: GEBM, size: int = 4) -> Iterator[Tensor]:
    """Return the same batch of images again and again, on the model's device."""
    channels, *grid = model.sample_shape()
    planes = num_planes(model.num_classes, grid) if model.num_classes else 0
    images = torch.rand(size, channels - planes, *grid, generator=torch.Generator().manual_seed(1)) * 2 - 1
    if planes:
        images = label_images(images, torch.arange(size) % model.num_classes, model.num_classes)
    return itertools.repeat(images.to(model.log_partition))


def train(model: GEBM, steps: int = 2, rows: slice = slice(None), **settings: object) -> Tensor:
    """Train, and return all the weights on the CPU."""
    return take_steps(make_trainer(model, **settings), steps, rows)


def take_steps(trainer: Trainer, steps: int, rows: slice = slice(None)) -> Tensor:
    """Take steps of a trainer, and return all the weights on the CPU."""
    parts = (batch[rows] for batch in batches_on(trainer.gebm))
    for step in range(steps):
        trainer.step(parts, torch.Generator().manual_seed(step))
    return torch.cat([tensor.detach().cpu().double().flatten() for tensor in trainer.gebm.state_dict().values()])


def distance(tensor: Tensor, other: Tensor) -> float:
    """Return how far two tensors are apart, over the size of the second."""
    tensor, other = tensor.detach().cpu().double(), other.detach().cpu().double()
    return float((tensor - other).norm() / other.norm().clamp_min(1e-30))


def require(holds: bool, measured: str) -> str:
    """Return what was measured, or raise it if the law is broken."""
    if not holds:
        raise AssertionError(measured)
    return measured


def image_objectives() -> list[str]:
    """Return the objectives that need no density."""
    return [name for name in objectives.NAMES if not objectives.needs_density(objectives.make(name))]


def kernels(prior: StandardNormal) -> dict[str, samplers.Kernel]:
    """Return a kernel of each name."""
    common = {"step_size": 0.05, "friction": 1.0, "prior": prior}
    return {name: samplers.make(name, **common) for name in samplers.NAMES}


def check_noise(device: torch.device) -> str:
    """Compare the latents of a seed, from generators of both devices."""
    prior = StandardNormal(100)
    expected = prior.sample(1000, torch.Generator().manual_seed(3))
    drawn = [prior.to(device).sample(1000, torch.Generator(place).manual_seed(3)) for place in ("cpu", device)]
    worst = max(float((one.cpu() - expected).abs().max()) for one in drawn)
    return require(worst < 1e-5, f"largest difference {worst:.1e}")


def check_training(device: torch.device) -> str:
    """Compare what each objective and penalty learns in float64."""
    cases = training_cases()
    apart = {}
    for objective, penalty in cases:
        ends = [train(make_model().to(place), objective=objective, penalty=penalty) for place in ("cpu", device)]
        apart[f"{objective}/{penalty}"] = distance(ends[1], ends[0])
    worst = max(apart, key=lambda case: apart[case])
    return require(apart[worst] < 1e-6, f"{len(cases)} cases, the worst {worst} {apart[worst]:.1e}")


def check_families(device: torch.device) -> str:
    """Compare what each family of networks learns in float64, those of classes included."""
    apart, models = {}, families()
    for name, model in models.items():
        ends = [train(copy.deepcopy(model).to(place)) for place in ("cpu", device)]
        apart[name] = distance(ends[1], ends[0])
    worst = max(apart, key=lambda name: apart[name])
    return require(apart[worst] < 1e-6, f"{len(apart)} families, the worst {worst} {apart[worst]:.1e}")


def check_chains(device: torch.device) -> str:
    """Compare where each kernel leads in float64."""
    apart = {}
    for name in samplers.NAMES:
        ends = []
        for place in ("cpu", device):
            model = make_model().to(place)
            kernel = kernels(model.prior)[name]
            z0 = model.prior.sample(8, torch.Generator().manual_seed(0))
            chain = samplers.run(
                kernel, model.potential, z0, 10, generator=torch.Generator().manual_seed(1), prior=model.prior
            )
            ends.append(chain.z)
        apart[name] = distance(ends[1], ends[0])
    worst = max(apart, key=lambda name: apart[name])
    return require(apart[worst] < 1e-6, f"{len(apart)} kernels, the worst {worst} {apart[worst]:.1e}")


def check_precision(device: torch.device) -> str:
    """Compare energies in each precision with those in float64, over their spread."""
    z = make_model("sngan_convnet", 32, 16).prior.sample(64, torch.Generator().manual_seed(1))
    reference = folded(make_model("sngan_convnet", 32, 16), torch.float64)
    exact = reference.energy(reference.decode(z)).detach()
    errors = {}
    for precision in ("float32", "tf32", "bfloat16"):
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        model = folded(make_model("sngan_convnet", 32, 16).float().to(device), dtype)
        with arithmetic(precision), torch.no_grad():
            energies = model.energy(model.decode(z.float().to(device))).cpu().double()
        errors[precision] = float((energies - exact).abs().max() / exact.std())
    shown = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    return require(errors["float32"] < 1e-3, shown)


def check_waits(device: torch.device) -> str:
    """Train and sample, step by step and replayed, where CUDA raises an error at each wait."""
    if device.type != "cuda":
        return "not on a CPU; the tests do it on a pretended GPU"
    waits = []
    cases = {name: (make_model(), name) for name in image_objectives()}
    cases |= {name: (model, "kale_fenchel") for name, model in families().items()}
    for name, (made, objective) in cases.items():
        for mode in ("false", "true"):
            model = copy.deepcopy(made).float().to(device)
            trainer, batches = make_trainer(model, objective, cuda_graphs=mode), batches_on(model)
            waits += _waits(name, partial(trainer.step, batches, torch.Generator()))
    model = make_model().float().to(device)
    z0 = model.prior.sample(8, torch.Generator())
    for name, kernel in kernels(model.prior).items():
        state = kernel.init(z0, model.potential)
        chain = partial(samplers.run, kernel, model.potential, None, generator=torch.Generator(), prior=model.prior)
        waits += _waits(name, partial(chain, 3, state=state))
        steps = samplers.ReplayedSteps("true")
        waits += _waits(name, partial(chain, BLOCK, state=state, steps=steps))
    return require(not waits, "; ".join(waits) or "none")


def _waits(name: str, compute: Callable[[], object]) -> list[str]:
    """Return a line if something waits for the device once it has run a few times: replays are checked by then."""
    for _ in range(3):
        compute()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        compute()
    except RuntimeError as error:
        return [f"{name}: {str(error).splitlines()[0]}"]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return []


def check_graph(device: torch.device) -> str:
    """Capture a step of a chain, its potential and gradient, and replay it."""
    if device.type != "cuda":
        return "not on a CPU"
    model = folded(make_model("sngan_convnet", 32, 16).float().to(device))
    z = model.prior.sample(64, torch.Generator().manual_seed(0))
    expected = samplers.value_and_gradient(model.potential, z)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            samplers.value_and_gradient(model.potential, z)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = samplers.value_and_gradient(model.potential, z)
    graph.replay()
    apart = max(distance(one, other) for one, other in zip(captured, expected, strict=True))
    return require(apart < 1e-5, f"differs by {apart:.1e}")


def check_replayed_chains(device: torch.device) -> str:
    """Replay blocks of steps of every kernel, and compare with the plain steps in float64."""
    apart, lines = {}, {}
    for name in samplers.NAMES:
        model, ends = make_model().to(device), []
        kernel = kernels(model.prior)[name]
        z0 = model.prior.sample(8, torch.Generator().manual_seed(0))
        steps = samplers.ReplayedSteps("true")
        for ways in ({}, {"steps": steps}):
            generator = torch.Generator().manual_seed(1)
            chain = samplers.run(kernel, model.potential, z0, 55, generator=generator, prior=model.prior, **ways)
            ends.append(chain.z)
        apart[name] = distance(ends[1], ends[0])
        if steps.replays.path != ("cuda_graphs" if device.type == "cuda" else "static"):
            lines[name] = " ".join(steps.replays.lines)
    worst = max(apart, key=lambda name: apart[name])
    measured = f"{len(apart)} kernels, the worst {worst} {apart[worst]:.1e}"
    return require(apart[worst] < 1e-6 and not lines, f"{measured}; {lines}" if lines else measured)


def measure_replayed_chains(device: torch.device) -> str:
    """Measure a chain of images as an evaluation runs it, plain and replayed, in each precision."""
    name, resolution, width, size, steps = measured_sizes(device)
    shown = []
    for precision in ("float32", "bfloat16"):
        model = folded(make_model(name, resolution, width).float().to(device), getattr(torch, precision))
        kernel, z0 = samplers.UnadjustedLangevin(1e-4), model.prior.sample(size, torch.Generator().manual_seed(0))
        replayed = samplers.ReplayedSteps("true", precision)
        times = []
        for ways in ({}, {}, {"steps": replayed}, {"steps": replayed}):
            generator = torch.Generator().manual_seed(1)
            chain = partial(samplers.run, kernel, model.potential, z0, steps, generator=generator, prior=model.prior)
            times.append(milliseconds(device, partial(chain, **ways)) / steps)
        line = replayed.replays.lines[0]
        shown.append(f"{precision} {times[1]:.3g} ms a step, replayed {times[3]:.3g} ms ({line})")
        require(replayed.replays.path != "plain", shown[-1])
    return "; ".join(shown)


def check_replayed_training(device: torch.device) -> str:
    """Replay the steps of each objective, and compare what is learned with the plain steps in float64."""
    cases = training_cases()
    apart, lines = {}, {}
    for objective, penalty in cases:
        ends = []
        for mode in ("false", "true"):
            trainer = make_trainer(make_model().to(device), objective, penalty, cuda_graphs=mode, ema_decay=0.9)
            ends.append(take_steps(trainer, 5))
        case, replays = f"{objective}/{penalty}", trainer.replayed.replays
        apart[case] = distance(ends[1], ends[0])
        if refused := [line for line in replays.lines if "are not replayed" in line]:
            lines[case] = " ".join(refused)
    worst = max(apart, key=lambda case: apart[case])
    measured = f"{len(cases)} cases, the worst {worst} {apart[worst]:.1e}"
    # Rates are read in float32, which Adam's kernels take for granted.
    return require(apart[worst] < 1e-6 and not lines, f"{measured}; {lines}" if lines else measured)


class Reading(nn.Module):
    """A network whose output the host reads, so that no graph can be captured of it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, ...) to (N,)."""
        energies = self.network(x)
        float(energies.detach().sum())
        return energies


def check_failed_captures(device: torch.device) -> str:
    """Train where captures fail, and compare with the plain steps; later captures and random numbers are to work."""
    ends = []
    for mode in ("false", "true"):
        model = make_model()
        model.energy.network = Reading(model.energy.network)
        trainer = make_trainer(model.to(device), cuda_graphs=mode)
        ends.append(take_steps(trainer, 5))
    torch.rand(1, device=device)
    refused = [line for line in trainer.replayed.replays.lines if "are not replayed" in line]
    apart, replayed = distance(ends[1], ends[0]), trainer.replayed.replays.replayed
    holds = apart < 1e-6 and replayed > 0 and (bool(refused) or device.type != "cuda")
    return require(holds, f"differs by {apart:.1e}, {replayed} steps replayed; {' '.join(refused) or 'none refused'}")


def measure_replayed_training(device: torch.device) -> str:
    """Measure an alternation on images, plain and replayed, in each precision."""
    name, resolution, width, size, _ = measured_sizes(device)
    shown = []
    for precision in ("float32", "bfloat16"):
        times, lines = [], []
        for mode in ("false", "true"):
            model = make_model(name, resolution, width).float().to(device)
            trainer, batches = make_trainer(model, precision=precision, cuda_graphs=mode), batches_on(model, size)
            each = [milliseconds(device, partial(trainer.step, batches, torch.Generator())) for _ in range(8)]
            # The first ones record.
            times.append(sum(each[5:]) / 3)
            lines = trainer.replayed.replays.lines
        shown.append(f"{precision} {times[0]:.3g} ms an alternation, replayed {times[1]:.3g} ms ({'; '.join(lines)})")
        require(trainer.replayed.replays.replayed > 0, shown[-1])
    return "; ".join(shown)


def training_cases() -> list[tuple[str, str]]:
    """Return pairs of an objective and a penalty in which each of them occurs, as far as they need no density."""
    return [(name, "gradient") for name in image_objectives()] + [("kale_fenchel", name) for name in penalties.NAMES]


def check_listed_training(device: torch.device) -> str:
    """Take the graphs that would be compiled as they are, and compare what is learned with the plain steps."""
    models = [(f"{objective}/{penalty}", make_model(), objective, penalty) for objective, penalty in training_cases()]
    models += [(name, model, "kale_fenchel", "gradient") for name, model in families().items()]
    apart, lines = {}, {}
    for case, model, objective, penalty in models:
        ends = []
        for mode in ("false", "true"):
            trainer = make_trainer(copy.deepcopy(model).to(device), objective, penalty, compiled=mode)
            with mock.patch.object(compiled, "compile_graph", lambda graph: graph):
                ends.append(take_steps(trainer, 4))
        apart[case] = distance(ends[1], ends[0])
        if refused := [line for line in trainer.replayed.replays.lines if "are not" in line]:
            lines[case] = " ".join(refused)
    worst = max(apart, key=lambda case: apart[case])
    measured = f"{len(apart)} cases, the worst {worst} {apart[worst]:.1e}"
    return require(apart[worst] < 1e-6 and not lines, f"{measured}; {lines}" if lines else measured)


def check_compiled_training(device: torch.device) -> str:
    """Compile the steps of one objective, and compare what is learned with the plain steps in float64."""
    ends = []
    started = time.monotonic()
    for cuda_graphs, mode in (("false", "false"), (as_graphs(device), "true")):
        trainer = make_trainer(make_model(width=4).to(device), cuda_graphs=cuda_graphs, compiled=mode)
        ends.append(take_steps(trainer, 5))
    seconds, replays = time.monotonic() - started, trainer.replayed.replays
    measured = f"differs by {distance(ends[1], ends[0]):.1e}, after {seconds:.0f} s; {'; '.join(replays.lines)}"
    return require(distance(ends[1], ends[0]) < 1e-6 and replays.path.startswith("compiled"), measured)


def as_graphs(device: torch.device) -> str:
    """Return the mode of CUDA graphs in which a device replays them."""
    return "true" if device.type == "cuda" else "false"


def check_compiled_chains(device: torch.device) -> str:
    """Compile the steps of a few kernels, and compare with the plain steps in float64."""
    shown, holds = [], True
    for name in ("ula", "mala"):
        model, ends = make_model(width=4).to(device), []
        z0 = model.prior.sample(8, torch.Generator().manual_seed(0))
        steps = samplers.ReplayedSteps(as_graphs(device), compiled="true")
        for ways in ({}, {"steps": steps}):
            chain = partial(samplers.run, kernels(model.prior)[name], model.potential, z0, 35, prior=model.prior)
            ends.append(chain(generator=torch.Generator().manual_seed(1), **ways).z)
        apart = distance(ends[1], ends[0])
        holds &= apart < 1e-6 and steps.replays.path.startswith("compiled")
        shown.append(f"{name} {apart:.1e} ({'; '.join(steps.replays.lines)})")
    return require(holds, ", ".join(shown))


def measure_compiled(device: torch.device) -> str:
    """Measure an alternation and a step of ULA on images: plain, replayed, and compiled."""
    name, resolution, width, size, _ = measured_sizes(device)
    graphs = as_graphs(device)
    ways = {"plain": ("false", "false"), "replayed": ("true", "false"), "compiled": (graphs, "true")}
    shown = []
    for way, (cuda_graphs, compile_) in ways.items():
        model = make_model(name, resolution, width).float().to(device)
        trainer = make_trainer(model, cuda_graphs=cuda_graphs, compiled=compile_)
        alternation = partial(trainer.step, batches_on(model, size), torch.Generator())
        fixed = folded(make_model(name, resolution, width).float().to(device))
        steps = samplers.ReplayedSteps(cuda_graphs, compiled=compile_)
        z0, kernel = fixed.prior.sample(size, torch.Generator().manual_seed(0)), samplers.UnadjustedLangevin(1e-4)
        chain = partial(samplers.run, kernel, fixed.potential, z0, 10 * BLOCK, prior=fixed.prior, steps=steps)
        for what, run, count, replays in (
            ("an alternation", alternation, 1, trainer.replayed.replays),
            ("a step of ULA", chain, 10 * BLOCK, steps.replays),
        ):
            # The first ones record and compile.
            times = torch.tensor([milliseconds(device, run) / count for _ in range(25)])[5:]
            error = times.std() / len(times) ** 0.5
            shown.append(f"{what} {way} {times.mean():.3g} ms (standard error {error:.2g}, {replays.path})")
    return "; ".join(shown)


def measured_sizes(device: torch.device) -> tuple[str, int, int, int, int]:
    """Return networks, resolution, width, batch and steps of a chain: the paper's on a GPU, small ones on the CPU."""
    return ("sngan_resnet", 32, 128, 128, 50) if device.type == "cuda" else ("dcgan", 8, 8, 16, 30)


def milliseconds(device: torch.device, run: Callable[[], object]) -> float:
    """Return the time that a function takes, including all that it queues on a device."""
    synchronize(device)
    started = time.monotonic()
    run()
    synchronize(device)
    return 1000 * (time.monotonic() - started)


def synchronize(device: torch.device) -> None:
    """Wait for all that is queued on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_processes(device: torch.device) -> str:
    """Compare what one process learns with data parallelism of one process and of a process for each GPU."""
    alone = train(make_model().to(device))
    counts = sorted({1, torch.cuda.device_count()}) if device.type == "cuda" else [1]
    apart = {}
    for count in counts:
        # Shares of a batch of 4.
        if 4 % count:
            continue
        with tempfile.TemporaryDirectory() as folder:
            multiprocessing.spawn(_train_one, (count, device.type, folder), nprocs=count)
            apart[count] = distance(torch.load(f"{folder}/weights.pt", weights_only=True), alone)
    shown = ", ".join(f"{count} of them {value:.1e}" for count, value in apart.items())
    return require(max(apart.values()) < 1e-6, shown)


def _train_one(rank: int, world_size: int, kind: str, folder: str) -> None:
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if kind == "cuda" else "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size
    )
    share = 4 // world_size
    weights = train(make_model().to(device), rows=slice(rank * share, (rank + 1) * share), parallel=data_parallel)
    if rank == 0:
        torch.save(weights, f"{folder}/weights.pt")
    distributed.destroy_process_group()


def check_memory(device: torch.device) -> str:
    """Run more chains than fit into two gigabytes, which are then run in smaller batches."""
    if device.type != "cuda":
        return "not on a CPU; the tests do it with errors of the same kinds"
    model = folded(make_model("sngan_convnet", 32, 64).float().to(device))
    lines: list[str] = []
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2 * 2**30 / torch.cuda.get_device_properties(device).total_memory)

    def work(size: int, advance: Callable[[int], None]) -> int:
        samplers.run(samplers.UnadjustedLangevin(1e-4), model.potential, model.prior.sample(size), 1)
        return size

    try:
        halve_batch_on_oom(work, 32768, 32768, advance=lambda steps: None, notify=lines.append)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return require(bool(lines), lines[0] if lines else "all of them fit into 2 GiB")


LAWS = (
    Law("A seed means the same latents on any device", check_noise),
    Law("Training in float64 learns what the CPU learns", check_training),
    Law("Every family of networks learns what it learns on the CPU", check_families),
    Law("Chains in float64 go where the CPU's go", check_chains),
    Law("Energies in float32 are right to a thousandth of their spread", check_precision),
    Law("Neither an alternation nor a step of a chain waits for the device", check_waits),
    Law("A CUDA graph of a potential and its gradient replays them", check_graph),
    Law("Replayed blocks of every kernel's steps are the plain steps", check_replayed_chains),
    Law("A chain of images is replayed", measure_replayed_chains),
    Law("Replayed training learns what plain training learns", check_replayed_training),
    Law("A capture that fails leaves the plain steps, and the captures after it", check_failed_captures),
    Law("An alternation on images is replayed", measure_replayed_training),
    Law("The graphs that are compiled compute what training steps compute", check_listed_training),
    Law("Compiled training learns what plain training learns", check_compiled_training),
    Law("Compiled steps of chains are the plain steps", check_compiled_chains),
    Law("An alternation and a chain of images are compiled", measure_compiled),
    Law("Data parallelism learns what one process learns", check_processes),
    Law("Chains that do not fit the memory are split", check_memory),
)
"""The laws, in the order in which they are tried."""


def try_law(law: Law, device: torch.device) -> Outcome:
    """Try a law; whatever is raised is its outcome."""
    started = time.monotonic()
    try:
        holds, measured = True, law.check(device)
    except Exception as error:
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        holds, measured = False, kind + " ".join(str(error).split())[:300]
    return Outcome(law.statement, holds, measured, time.monotonic() - started)


def describe(device: torch.device) -> str:
    """Return the names of the GPU and of the software."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    cudnn = torch.backends.cudnn.version() if device.type == "cuda" else None
    return (
        f"GPU {gpu}, {torch.cuda.device_count()} in all; torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"cuDNN {cudnn}; Python {platform.python_version()}"
    )


def page(outcomes: list[Outcome], software: str) -> str:
    """Return the page of results."""
    rows = []
    for one in outcomes:
        holds, measured = "yes" if one.holds else "**no**", one.measured.replace("|", "/")
        rows.append(f"| {one.statement} | {holds} | {measured} | {one.seconds:.1f} |")
    head = ["# GPU check", "", software, "", "| law | holds | measured | s |", "|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Try the laws, write the page, and return 1 if one is broken."""
    parser = argparse.ArgumentParser(description="Check the laws of a GPU against the CPU.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("gpu-check.md"), help="file of the page")
    options = parser.parse_args(arguments)
    device, outcomes = torch.device(options.device), []
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no GPU: install a driver, or give --device cpu", file=sys.stderr)
        return 2
    software = describe(device)
    print(software)
    for law in LAWS:
        outcomes.append(try_law(law, device))
        print(f"{'holds ' if outcomes[-1].holds else 'BROKEN'}  {law.statement}: {outcomes[-1].measured}", flush=True)
        # After each law, so that what was measured is there should the machine be taken away.
        options.output.write_text(page(outcomes, software), encoding="utf-8")
    print(f"the page to send in: {options.output}")
    return int(not all(one.holds for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
