"""``python -m benchmarks.training``: how fast the alternation trains, the plain trainer against ``gebm.Trainer``.

*Images per second*: images of the data that the energy steps of one alternation have seen, by the seconds of the whole
alternation, its base step included. Energy step and base step are timed apart as well. Batches lie on the device
already: readers are not measured here. With ``--compile`` there is also gebm in float32 with steps that are compiled,
and on a GPU replayed as CUDA graphs.

*Losses*: trainers that start from the same weights get the same images, latents and points of the penalty. In float32
they are the same but for rounding and for the power iteration of the energy's weights, which plain moves at each of its
three forwards and gebm once a step.

*Roofline*: floating-point operations and memory traffic of one alternation, counted, against ceilings measured here.
*of ceiling* is the share of the fastest matrix product's rate; *of roofline* is the share of the rate that operators
not fused with each other could have, each bound by its own arithmetic or traffic. Caches, and convolutions by faster
algorithms than the counted one, can lift either above one. Speed is compared by images per second, not by these:
plain spends operations on results that are not used.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import baseline, cli, flops, harness
from gebm import GEBM, KALE, Alternation, GradientPenalty, StandardNormal, Trainer, adam

__all__ = ["PRECISIONS", "Side", "gebm_side", "main", "plain_side"]

PRECISIONS = (torch.float32, torch.bfloat16)
_REFERENCE = "plain float32"
_COMPILED = " compiled"
_BATCHES = 4


class Side(NamedTuple):
    """A trainer as it is measured.

    Attributes:
        alternate: Takes the energy steps and a base step; returns the loss of the last energy step and of the base
            step, two scalars.
        step_energy: Takes one energy step.
        step_base: Takes one base step.
    """

    alternate: Callable[[], tuple[Tensor, Tensor]]
    step_energy: Callable[[], object]
    step_base: Callable[[], object]


def plain_side(arguments: argparse.Namespace, name: str, device: torch.device, same_latents: bool = False) -> Side:
    """Return the plain trainer, with latents of ``torch.randn`` or with gebm's."""
    base, energy = cli.build(arguments, name, device)
    prior = StandardNormal(arguments.latent_dim).to(device)
    trainer = baseline.PlainTrainer(
        base,
        energy,
        arguments.latent_dim,
        lr=arguments.lr,
        energy_steps=arguments.energy_steps,
        draw_latents=prior.sample if same_latents else None,
    )
    batches, generator = _batches(arguments, device), torch.Generator().manual_seed(arguments.seed)
    return Side(
        alternate=lambda: trainer.step(batches, generator),
        step_energy=lambda: trainer.step_energy(next(batches), generator),
        step_base=lambda: trainer.step_base(next(batches), generator),
    )


def gebm_side(
    arguments: argparse.Namespace, name: str, device: torch.device, precision: torch.dtype, compiled: bool = False
) -> Side:
    """Return gebm's trainer in a precision, with plain steps or with compiled ones."""
    model = GEBM(*cli.build(arguments, name, device), StandardNormal(arguments.latent_dim)).to(device)
    model = model.to(memory_format=torch.channels_last)
    trainer = Trainer(
        model,
        objective=KALE(),
        penalty=GradientPenalty(1.0),
        energy_optimizer=adam([*model.energy.parameters(), model.log_partition], lr=arguments.lr),
        base_optimizer=adam(model.base.parameters(), lr=arguments.lr),
        latent_batch_size=arguments.batch,
        precision=precision,
        cuda_graphs="auto" if compiled else "false",
        compiled="true" if compiled else "false",
    )
    batches, generator = _batches(arguments, device), torch.Generator().manual_seed(arguments.seed)

    def steps(energy_steps: int, train_base: bool) -> tuple[Tensor, Tensor]:
        trainer.alternation = Alternation(energy_steps, warmup_energy_steps=energy_steps)
        trainer.train_base = train_base
        info = trainer.step(batches, generator)
        return info.energy_loss, info.base_loss

    return Side(
        alternate=lambda: steps(arguments.energy_steps, True),
        step_energy=lambda: steps(1, False),
        step_base=lambda: steps(0, True),
    )


def _batches(arguments: argparse.Namespace, device: torch.device) -> Iterator[Tensor]:
    """Yield batches of random images (N, 3, H, W) in [-1, 1], the same few over and over."""
    generator = torch.Generator().manual_seed(arguments.seed)
    shape = arguments.batch, 3, arguments.resolution, arguments.resolution
    images = [(torch.rand(shape, generator=generator) * 2 - 1).to(device) for _ in range(_BATCHES)]
    return itertools.cycle(images)


def _sides(arguments: argparse.Namespace, name: str, device: torch.device, same_latents: bool) -> dict[str, Side]:
    sides = {_REFERENCE: plain_side(arguments, name, device, same_latents)}
    for precision in PRECISIONS:
        sides[f"gebm {cli.precision_name(precision)}"] = gebm_side(arguments, name, device, precision)
    if arguments.compile:
        sides[f"gebm float32{_COMPILED}"] = gebm_side(arguments, name, device, torch.float32, compiled=True)
    return sides


def _speed(arguments: argparse.Namespace, name: str, device: torch.device, sides: dict[str, Side]) -> list[dict]:
    """Time the alternation and its two kinds of step."""

    def timed(part: str) -> dict[str, harness.Timing]:
        works = {trainer: getattr(side, part) for trainer, side in sides.items()}
        return harness.interleaved(works, device, arguments.repeat)

    # A kind of step is compiled when it occurs the second time: a base step so is in the round that warms up.
    for side in sides.values():
        side.alternate()
    whole, energy, base = timed("alternate"), timed("step_energy"), timed("step_base")
    return [
        {
            "networks": name,
            "trainer": trainer,
            "images/s": arguments.batch * arguments.energy_steps / whole[trainer].median,
            "ratio": harness.ratio(whole[_REFERENCE], whole[trainer]),
            "alternation, s": whole[trainer],
            "energy step, s": energy[trainer],
            "ratio, energy": harness.ratio(energy[_REFERENCE], energy[trainer]),
            "base step, s": base[trainer],
            "ratio, base": harness.ratio(base[_REFERENCE], base[trainer]),
        }
        for trainer in sides
    ]


def _losses(arguments: argparse.Namespace, name: str, device: torch.device) -> list[dict[str, Any]]:
    """Train from the same weights on the same images and noise, and note the losses of each alternation."""
    sides = _sides(arguments, name, device, same_latents=True)
    rows = []
    for step in range(arguments.steps):
        row: dict[str, Any] = {"networks": name, "step": step}
        for trainer, side in sides.items():
            energy_loss, base_loss = side.alternate()
            row |= {f"{trainer}: energy": energy_loss.item(), f"{trainer}: base": base_loss.item()}
        rows.append(row)
    return rows


def _roofline(
    speed: list[dict[str, Any]], sides: dict[str, Side], ceilings: dict[str, float], device: torch.device
) -> list[dict[str, Any]]:
    """Hold what was timed against what was counted and what the machine can reach."""
    rows = []
    for row in speed:
        # The operators of compiled steps are those that were compiled.
        counts = flops.count(sides[row["trainer"].removesuffix(_COMPILED)].alternate)
        seconds = row["alternation, s"].median
        ceiling = ceilings[_arithmetic(row["trainer"].split()[1], device)]
        rows.append(
            {
                "networks": row["networks"],
                "trainer": row["trainer"],
                "GFLOP": counts.flops / 1e9,
                "GB moved": counts.bytes / 1e9,
                "GFLOP/s": counts.flops / seconds / 1e9,
                "of ceiling": counts.flops / seconds / ceiling,
                "of roofline": counts.least_seconds(ceiling, ceilings["copy"]) / seconds,
            }
        )
    return rows


def _arithmetic(precision: str, device: torch.device) -> str:
    """Return what convolutions in a precision are really computed in."""
    # torch makes this attribute at run time, where no type checker sees it.
    convolutions = torch.backends.cudnn.conv.fp32_precision  # pyright: ignore[reportAttributeAccessIssue]
    tf32 = device.type == "cuda" and convolutions == "tf32"
    return "tf32" if precision == "float32" and tf32 else precision


def _ceilings(device: torch.device, budget: float) -> dict[str, float]:
    """Measure FLOP/s of the precisions that are used, and bytes per second of a copy."""
    names = [_arithmetic(cli.precision_name(precision), device) for precision in PRECISIONS]
    found = {name: harness.matmul_ceiling(device, name, budget) for name in names}
    return found | {"copy": harness.copy_ceiling(device, budget)}


def _arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__, repeat=5)
    cli.add_networks(parser)
    parser.add_argument("--batch", type=cli.positive, default=64, help="images in a batch, and base samples of a step")
    parser.add_argument("--energy-steps", type=cli.positive, default=5, help="energy steps per base step")
    parser.add_argument("--steps", type=int, default=5, help="alternations whose losses are compared; 0: none")
    parser.add_argument("--lr", type=float, default=1e-4, help="learning rate of both parts")
    parser.add_argument("--compile", action="store_true", help="a row of compiled steps, each kind a minute or more")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds that each ceiling is looked for")
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write the JSON file."""
    arguments = _arguments()
    device = cli.pick_device(arguments.device)
    ceilings = _ceilings(device, arguments.budget)
    tables: dict[str, list[dict[str, Any]]] = {"speed": [], "roofline": [], "losses": []}
    for name in arguments.networks:
        sides = _sides(arguments, name, device, same_latents=False)
        speed = _speed(arguments, name, device, sides)
        tables["speed"] += speed
        tables["roofline"] += _roofline(speed, sides, ceilings, device)
        tables["losses"] += _losses(arguments, name, device)
    for rows in tables.values():
        if rows:
            print(harness.table(rows), end="\n\n")
    gigas = ", ".join(f"{name} {value / 1e9:.4g}" for name, value in ceilings.items() if name != "copy")
    print(f"ceilings: products in GFLOP/s: {gigas}; copies in GB/s: {ceilings['copy'] / 1e9:.4g}")
    results = {**tables, "ceilings": ceilings}
    print(f"written: {harness.write(arguments.out, 'training', device, vars(arguments), results)}")


if __name__ == "__main__":
    main()
