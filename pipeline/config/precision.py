"""Which precision networks run in, where the experiment leaves it to the hardware."""

from __future__ import annotations

import torch

from pipeline.config.schema import Config

__all__ = ["BF16_SAFE_SAMPLERS", "PRECISIONS", "sampling_dtype", "training_dtype"]

PRECISIONS = ("auto", "float32", "bfloat16")
# Samplers whose noise hides the rounding of bfloat16; an accept step compares energies, and a descent has no noise.
BF16_SAFE_SAMPLERS = ("ula", "kla", "ddls")


def training_dtype(config: Config, device: torch.device) -> torch.dtype:
    """The precision of the networks in training.

    Args:
        config: ``train.precision`` and ``task``; only networks of images are worth it.
        device: where they run.
    """
    worth = config.task == "images" and device.type == "cuda"
    return _resolved(config.train.precision, device, worth)


def sampling_dtype(config: Config, device: torch.device) -> torch.dtype:
    """The precision of the networks in a chain; see :mod:`gebm.folding` for why an accept step has float32.

    Args:
        config: ``sampler`` and ``task``.
        device: where they run.
    """
    worth = config.task == "images" and config.sampler.name in BF16_SAFE_SAMPLERS
    return _resolved(config.sampler.precision, device, worth)


def _resolved(name: str, device: torch.device, worth: bool) -> torch.dtype:
    if name == "auto":
        name = "bfloat16" if worth and _has_bfloat16(device) else "float32"
    return getattr(torch, name)


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies in bfloat16; elsewhere it is imitated, and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))
