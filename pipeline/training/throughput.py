"""Throughput of training: floating-point operations per second, and their fraction of the GPU's peak rate.

Floating-point operations are those of products and convolutions, forward, backward and in the penalty's second
backward, by the formulas of torch's own counter, a multiplication and an addition counting as two. An alternation is
counted while it is trained, and changes nothing by it. Alternations of one kind cost the same, so each kind is counted
once, at its first occurrence: a warm-up has more energy steps, and a lazy penalty is due in some of them. Left out is
only what depends on the numbers themselves: chains that diverge and restart.

The fraction of the peak is the time that the GPU would have taken at its data sheet's rate, for dense operands, by the
time that it took. Each operation is compared to the rate of the arithmetic it was done in, by torch's settings:
convolutions in float32 are TF32's on a GPU, unless those settings forbid it.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gebm.objectives.penalties import Lazy
from gebm.training import Trainer

__all__ = ["PEAKS", "Throughput", "fraction_of_peak"]

# 1e12 operations a second without sparsity, by the name that the driver gives: NVIDIA's data sheets (H100, H200, A100,
# V100, L4, L40S, A10) and the white papers of GA102 and Ada (GeForce; tensor cores with sums in float32).
# Where a data sheet has the figure with sparsity alone, as H100's, H200's and L4's have, it is half of that. A slice of
# a GPU (MIG) has another name, and no figure.
_H100_SXM = {"bfloat16": 989.5, "tf32": 494.5, "float32": 67.0}
_HOPPER_NVL = {"bfloat16": 835.5, "tf32": 417.5, "float32": 60.0}
_A100 = {"bfloat16": 312.0, "tf32": 156.0, "float32": 19.5}
# Without TF32: a request for it gives float32.
_V100_SXM2 = {"tf32": 15.7, "float32": 15.7}
_V100_PCIE = {"tf32": 14.0, "float32": 14.0}
PEAKS: dict[str, dict[str, float]] = {
    "H100 80GB HBM3": _H100_SXM,
    "H100 PCIe": {"bfloat16": 756.5, "tf32": 378.0, "float32": 51.0},
    "H100 NVL": _HOPPER_NVL,
    "H200": _H100_SXM,
    "H200 NVL": _HOPPER_NVL,
    "A100-SXM4-40GB": _A100,
    "A100-SXM4-80GB": _A100,
    "A100-PCIE-40GB": _A100,
    "A100 80GB PCIe": _A100,
    "Tesla V100-SXM2-16GB": _V100_SXM2,
    "Tesla V100-SXM2-32GB": _V100_SXM2,
    "Tesla V100-PCIE-16GB": _V100_PCIE,
    "Tesla V100-PCIE-32GB": _V100_PCIE,
    "L4": {"bfloat16": 121.0, "tf32": 60.0, "float32": 30.3},
    "L40S": {"bfloat16": 362.05, "tf32": 183.0, "float32": 91.6},
    "A10": {"bfloat16": 125.0, "tf32": 62.5, "float32": 31.2},
    "GeForce RTX 3090": {"bfloat16": 71.0, "tf32": 35.6, "float32": 35.6},
    "GeForce RTX 4090": {"bfloat16": 165.2, "tf32": 82.6, "float32": 82.6},
}


def fraction_of_peak(flops: Mapping[str, int], seconds: float, gpu: str) -> float | None:
    """Return what part of its peak rate a GPU has reached.

    Args:
        flops: Operations by arithmetic: ``bfloat16``, ``tf32``, ``float32`` and the like.
        seconds: How long they took.
        gpu: Its name, as :func:`torch.cuda.get_device_name` gives it.

    Returns:
        A fraction; ``None`` where the GPU's peak, or that of one of the arithmetics, is not known here.

    Example:
        >>> fraction_of_peak({"bfloat16": 78 * 10**12, "tf32": 39 * 10**12}, 1.0, "NVIDIA A100-SXM4-80GB")
        0.5
        >>> fraction_of_peak({"bfloat16": 10**12}, 1.0, "Radeon") is None
        True
    """
    peaks = PEAKS.get(gpu.removeprefix("NVIDIA "), {})
    if not flops.keys() <= peaks.keys():
        return None
    return sum(count / (peaks[arithmetic] * 1e12) for arithmetic, count in flops.items()) / seconds


class Throughput:
    """Counter of the arithmetic of a trainer's alternations.

    Args:
        trainer: The trainer.
        device: Where it trains.
        world_size: Number of workers, which all do the same amount.
    """

    def __init__(self, trainer: Trainer, device: torch.device, world_size: int = 1) -> None:
        self._trainer, self._world_size = trainer, world_size
        self._gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        self._counted: dict[tuple[int, int], Counter[str]] = {}
        self._pending: Counter[str] = Counter()

    @contextlib.contextmanager
    def count_step(self) -> Iterator[None]:
        """Record the alternation that is trained inside, and count its operations if it is the first of its kind."""
        kind = self._kind()
        if kind in self._counted:
            yield
        else:
            with self._trainer.replayed.plainly(), _Operators() as operators:
                yield
            self._counted[kind] = operators.flops
        self._pending.update(self._counted[kind])

    def compute(self, seconds: float) -> dict[str, float]:
        """Return the rate of the alternations since the last call.

        Args:
            seconds: How long they took.

        Returns:
            ``flops_per_second``, of all workers together, and on a GPU whose peak is known ``fraction_of_peak``, of
            each worker's GPU.
        """
        done, self._pending = self._pending, Counter()
        rates = {"flops_per_second": done.total() * self._world_size / seconds}
        fraction = fraction_of_peak(done, seconds, self._gpu) if self._gpu else None
        return rates if fraction is None else {**rates, "fraction_of_peak": fraction}

    def _kind(self) -> tuple[int, int]:
        """Return what the cost of the next alternation depends on: its energy steps, and the penalties due in them."""
        trainer = self._trainer
        energy_steps = trainer.alternation.energy_steps_at(trainer.base_step) if trainer.objective.trains_energy else 0
        every = trainer.penalty.every if isinstance(trainer.penalty, Lazy) else 1
        steps = range(trainer.energy_step, trainer.energy_step + energy_steps)
        return energy_steps, sum(step % every == 0 for step in steps)


class _Operators(TorchDispatchMode):
    """Counter of every product and convolution below autograd and autocast, by the arithmetic it is done in.

    Torch's counter itself cannot be run: to distinguish modules it hooks into the graph, and these hooks refuse a
    gradient that is taken with respect to a module's input in the midst of a loss, as the penalty's is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops[_arithmetic(func, args[0])] += formula(*args, **kwargs, out_val=result)
        return result


def _arithmetic(func: Any, operand: torch.Tensor) -> str:
    name = str(operand.dtype).removeprefix("torch.")
    if name == "float32" and operand.is_cuda:
        convolves = "convolution" in func.overloadpacket.__name__
        # ``cudnn.conv`` is set when torch is imported, and missing from torch's own annotations.
        conv = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
        backend = conv if convolves else torch.backends.cuda.matmul
        return "tf32" if backend.fp32_precision == "tf32" else name
    return name
