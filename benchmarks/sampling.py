"""``python -m benchmarks.sampling``: how fast chains walk on latent space, plain ULA against gebm's.

*Chain-steps per second*: chains times steps, by the seconds of a whole run from latents to latents. Plain is
``benchmarks.baseline.ula``; gebm is ``samplers.run`` on ``GEBM.potential`` under ``frozen``, as ``GEBM.sample`` does
it, its restarts of diverged chains and its record of every step included. Its first position costs a gradient more. It
walks the model as it was trained and the folded one (:mod:`gebm.folding`) in each precision; folding is done once
before a chain of any length, and timed apart.

*The same chain*: given the same noise all must walk the same way. The largest difference from plain of a coordinate at
the end is printed next to the largest distance that the energy moved one, against a chain at beta 0: in float32 the
first must be far smaller than the second, or the comparison says nothing.

*Peak memory*: each of two numbers of steps in a process of its own. A chain's memory must not grow with its length.

Networks are freshly initialized: what a step costs does not depend on the weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import baseline, cli, harness, memory
from gebm import GEBM, StandardNormal, folded, frozen, samplers

__all__ = ["WAYS", "gebm_chain", "main", "plain_chain"]

_REFERENCE = "plain float32"

WAYS: dict[str, Callable[[GEBM], GEBM]] = {
    "gebm float32": lambda model: model,
    "gebm folded float32": lambda model: folded(model, torch.float32),
    "gebm folded bfloat16": lambda model: folded(model, torch.bfloat16),
}
"""What gebm makes of a model before its chains start: every precision that is for speed."""


def plain_chain(
    arguments: argparse.Namespace, model: GEBM, z0: Tensor, noise: Callable[[Tensor], Tensor] = torch.randn_like
) -> Tensor:
    """Run plain ULA on a model's own networks, from latents (N, D) to latents (N, D)."""
    return baseline.ula(
        model.base,
        model.energy.network,
        z0,
        arguments.steps,
        step_size=arguments.step_size,
        beta=arguments.beta,
        noise=noise,
    )


def gebm_chain(arguments: argparse.Namespace, model: GEBM, z0: Tensor) -> Tensor:
    """Run gebm's ULA on a model as one of ``WAYS`` made it, from latents (N, D) to latents (N, D)."""
    with frozen(model.base, model.energy):
        return samplers.run(
            samplers.UnadjustedLangevin(arguments.step_size),
            lambda z: model.potential(z, arguments.beta),
            z0,
            arguments.steps,
            generator=torch.Generator().manual_seed(arguments.seed),
            prior=model.prior,
        ).z


def _model(arguments: argparse.Namespace, name: str, device: torch.device) -> tuple[GEBM, Tensor]:
    """Return a model and where its chains start (N, D)."""
    model = GEBM(*cli.build(arguments, name, device), StandardNormal(arguments.latent_dim)).to(device)
    return model, model.prior.sample(arguments.chains, torch.Generator().manual_seed(arguments.seed))


def _speed(arguments: argparse.Namespace, name: str, device: torch.device) -> list[dict[str, Any]]:
    """Time plain and gebm, each on networks of its own."""
    reference, z0 = _model(arguments, name, device)
    baseline.literal(reference)
    model, _ = _model(arguments, name, device)
    works: dict[str, Callable[[], object]] = {_REFERENCE: lambda: plain_chain(arguments, reference, z0)}
    works |= {way: partial(gebm_chain, arguments, prepare(model), z0) for way, prepare in WAYS.items()}
    seconds = harness.interleaved(works, device, arguments.repeat)
    before = harness.interleaved({way: partial(prepare, model) for way, prepare in WAYS.items()}, device, 1)
    return [
        {
            "networks": name,
            "sampler": sampler,
            "seconds": timing,
            "chain-steps/s": arguments.chains * arguments.steps / timing.median,
            "ratio": harness.ratio(seconds[_REFERENCE], timing),
            "before the chain, s": before[sampler].median if sampler in before else 0.0,
        }
        for sampler, timing in seconds.items()
    ]


def _agreement(arguments: argparse.Namespace, name: str, device: torch.device) -> list[dict[str, Any]]:
    """Hold gebm's chains against the plain one with the same noise."""
    model, z0 = _model(arguments, name, device)
    reference = plain_chain(arguments, model, z0, _noise_of_run(arguments.seed))
    prior_alone = argparse.Namespace(**{**vars(arguments), "beta": 0.0})
    without = plain_chain(prior_alone, model, z0, _noise_of_run(arguments.seed))
    return [
        {
            "networks": name,
            "sampler": way,
            "largest difference": (gebm_chain(arguments, prepare(model), z0) - reference).abs().max().item(),
            "moved by the energy": (reference - without).abs().max().item(),
        }
        for way, prepare in WAYS.items()
    ]


def _noise_of_run(seed: int) -> Callable[[Tensor], Tensor]:
    """Return the noise that ``samplers.run`` gives to its chains, step by step."""
    generators: dict[torch.device, torch.Generator] = {}

    def noise(z: Tensor) -> Tensor:
        generator = generators.setdefault(z.device, torch.Generator().manual_seed(seed))
        key = samplers.philox.draw_key(generator, z.device)
        samplers.philox.draw_key(generator, z.device)  # the second key of a step is that of restarts
        return samplers.philox.normal(key, torch.arange(len(z), device=z.device), z.shape[1])

    return noise


def _memory(arguments: argparse.Namespace, name: str, device: torch.device) -> list[dict[str, Any]]:
    """Measure the peak of each number of steps, in MiB."""
    rows = []
    for sampler in (_REFERENCE, *WAYS):
        row: dict[str, Any] = {"networks": name, "sampler": sampler}
        for steps in arguments.memory_steps:
            peak = memory.peak_bytes(device, _one_chain, arguments, name, device, steps, sampler)
            row[f"MiB, {steps} steps"] = peak / 2**20
        rows.append(row)
    return rows


def _one_chain(arguments: argparse.Namespace, name: str, device: torch.device, steps: int, sampler: str) -> None:
    arguments.steps = steps
    model, z0 = _model(arguments, name, device)
    if sampler == _REFERENCE:
        baseline.literal(model)
        plain_chain(arguments, model, z0)
    else:
        gebm_chain(arguments, WAYS[sampler](model), z0)


def _arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__, repeat=5)
    cli.add_networks(parser)
    parser.add_argument("--chains", type=cli.positive, default=64, help="chains that walk side by side")
    parser.add_argument("--steps", type=cli.positive, default=20, help="steps of each")
    parser.add_argument("--step-size", type=float, default=5e-5, help="h of z' = z - h grad U(z) + sqrt(2h) xi")
    parser.add_argument("--beta", type=float, default=100.0, help="inverse temperature; the image experiments use 100")
    parser.add_argument(
        "--memory-steps", type=cli.positive, nargs="*", default=[5, 25], help="lengths whose peaks to take"
    )
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write the JSON file."""
    arguments = _arguments()
    device = cli.pick_device(arguments.device)
    results: dict[str, list[dict[str, Any]]] = {"speed": [], "agreement": [], "memory": []}
    for name in arguments.networks:
        results["speed"] += _speed(arguments, name, device)
        results["agreement"] += _agreement(arguments, name, device)
        results["memory"] += _memory(arguments, name, device) if arguments.memory_steps else []
    for rows in results.values():
        if rows:
            print(harness.table(rows), end="\n\n")
    print(f"written: {harness.write(arguments.out, 'sampling', device, vars(arguments), results)}")


if __name__ == "__main__":
    main()
