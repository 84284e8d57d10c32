"""Precision of the networks in training and in sampling, where the config leaves it to the hardware."""

from __future__ import annotations

import torch

from gebm import samplers
from pipeline.config.schema import Config

__all__ = ["sampling_dtype", "training_dtype"]


def training_dtype(config: Config, device: torch.device) -> torch.dtype:
    """Return the precision of the networks in training.

    Args:
        config: Experiment, of which ``train.precision`` and ``task`` are read; auto is bfloat16 for images alone.
        device: Where they run.
    """
    prefers_bfloat16 = config.task == "images" and device.type == "cuda"
    return _resolve_dtype(config.train.precision, device, prefers_bfloat16)


def sampling_dtype(config: Config, device: torch.device) -> torch.dtype:
    """Return the precision of the networks in a chain; see :mod:`gebm.folding` for why an accept step has float32.

    Args:
        config: Experiment, of which ``sampler`` and ``task`` are read.
        device: Where they run.
    """
    # An accept step compares energies, and a descent has no noise that hides a rounding.
    prefers_bfloat16 = config.task == "images" and config.sampler.name in samplers.NAMES.having("bfloat16", True)
    return _resolve_dtype(config.sampler.precision, device, prefers_bfloat16)


def _resolve_dtype(name: str, device: torch.device, prefers_bfloat16: bool) -> torch.dtype:
    if name == "auto":
        name = "bfloat16" if prefers_bfloat16 and _has_bfloat16(device) else "float32"
    return getattr(torch, name)


def _has_bfloat16(device: torch.device) -> bool:
    """Return whether the hardware multiplies in bfloat16; elsewhere it is emulated, and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
