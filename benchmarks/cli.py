"""What the benchmarks' command lines share, and the networks that they name."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from gebm import disable_malloc_trim, networks

__all__ = ["add_networks", "build", "parser", "pick_device", "positive", "precision_name"]


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The module's own text as it is written, and every default."""


def parser(doc: str | None, repeat: int, warm_up: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the flags of every benchmark.

    Args:
        doc: The benchmark's docstring, which becomes the help's text.
        repeat: How many repetitions there are unless the user says otherwise.
        warm_up: Whether a round comes before them that does not count.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=_Help)
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if there is")
    rounds = "rounds that count, after one that warms up" if warm_up else "rounds"
    made.add_argument("--repeat", type=positive, default=repeat, help=rounds)
    made.add_argument("--seed", type=int, default=0, help="of weights, images and noise")
    made.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the JSON file")
    return made


def add_networks(made: argparse.ArgumentParser) -> None:
    """Add the flags that say which networks."""
    image_families = [name for name in networks.NAMES.having("tasks", "images") if not networks.is_conditional(name)]
    made.add_argument(
        "--networks",
        nargs="+",
        choices=image_families,
        default=["sngan_convnet", "sngan_resnet"],
        help="families of base and energy, measured one after the other",
    )
    made.add_argument("--resolution", type=positive, default=32, help="pixels on a side")
    made.add_argument("--latent-dim", type=positive, default=100, help="dimension of the latents")
    made.add_argument("--width", type=positive, default=None, help="channels at full resolution; none: the usual")


def build(arguments: argparse.Namespace, name: str, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """Return base and energy, the same for the same arguments.

    A fresh network's running statistics are those of no data at all, and in evaluation mode its images would be flat.
    One forward in training mode sets them.

    Args:
        arguments: Those of :func:`add_networks` and the seed.
        name: The family.
        device: Where the networks go.

    Returns:
        The base, latents (N, D) to images (N, 3, H, W), and the energy, images to (N, 1).
    """
    torch.manual_seed(arguments.seed)
    base, energy = networks.make(
        name,
        resolution=arguments.resolution,
        channels=3,
        latent_dim=arguments.latent_dim,
        width=arguments.width,
    )
    norms = {layer: layer.momentum for layer in base.modules() if isinstance(layer, nn.BatchNorm2d)}
    for layer in norms:
        layer.momentum = 1.0
    with torch.no_grad():
        base.train()(torch.randn(64, arguments.latent_dim))
    for layer, momentum in norms.items():
        layer.momentum = momentum
    return base.to(device), energy.to(device)


def pick_device(name: str) -> torch.device:
    """Return the device of a name; ``"auto"`` is a GPU if there is one.

    From then on the process keeps freed memory, as ``pipeline`` has its own do: for the reference as well.
    """
    disable_malloc_trim()
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))


def precision_name(precision: torch.dtype) -> str:
    """Return a precision's name as the tables have it, such as ``"bfloat16"``."""
    return str(precision).removeprefix("torch.")


def positive(text: str) -> int:
    """Return the number that a flag's text is, at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too few: give 1 or more")
    return number
