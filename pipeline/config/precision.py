"""Precision of the networks in training and in sampling, where the config leaves it to the hardware."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from gebm import samplers
from gebm.precision import arithmetic
from pipeline.config.schema import Config, Sampler
from pipeline.config.tasks import facts_of

__all__ = ["chain_arithmetic", "sampling_dtype", "sampling_precision", "training_precision"]


def training_precision(config: Config, device: torch.device) -> str:
    """Return the precision of training, one of :data:`gebm.precision.NAMES`.

    Args:
        config: Experiment, of which ``train.precision`` and ``task`` are read; auto is bfloat16 for images alone.
        device: Where the networks are.
    """
    prefers_bfloat16 = facts_of(config.task).of == "images" and device.type == "cuda"
    return _resolve(config.train.precision, device, prefers_bfloat16)


def sampling_precision(config: Config, device: torch.device) -> str:
    """Return the precision of a chain; see :mod:`gebm.folding` for why an accept step has float32.

    Args:
        config: Experiment, of which ``sampler`` and ``task`` are read.
        device: Where the networks are.
    """
    # An accept step compares energies, and a descent has no noise that hides a rounding.
    hides_rounding = config.sampler.name in samplers.NAMES.having("bfloat16", True)
    prefers_bfloat16 = facts_of(config.task).of == "images" and hides_rounding
    return _resolve(config.sampler.precision, device, prefers_bfloat16)


def sampling_dtype(config: Config, device: torch.device) -> torch.dtype:
    """Return the type of the weights that a chain runs with: in TF32 they are float32, and products are rounded."""
    return torch.bfloat16 if sampling_precision(config, device) == "bfloat16" else torch.float32


def chain_arithmetic(sampler: Sampler) -> AbstractContextManager[None]:
    """Return the block that a chain runs in: TF32 is used only where it is configured."""
    return arithmetic("tf32" if sampler.precision == "tf32" else "float32")


def _resolve(name: str, device: torch.device, prefers_bfloat16: bool) -> str:
    if name == "auto":
        return "bfloat16" if prefers_bfloat16 and _has_bfloat16(device) else "float32"
    return name


def _has_bfloat16(device: torch.device) -> bool:
    """Return whether the hardware multiplies in bfloat16; elsewhere it is emulated, and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
