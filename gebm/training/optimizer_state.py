"""State of an optimizer as flat tensors by name, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["load_optimizer_state", "optimizer_state"]

# What torch's optimizers keep for each number of a parameter.
_OF_THE_PARAMETERS_SHAPE = {
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "momentum_buffer",
    "square_avg",
    "grad_avg",
    "sum",
}


def optimizer_state(optimizer: Optimizer, prefix: str) -> dict[str, Tensor]:
    """Return an optimizer's state, without its settings.

    Args:
        optimizer: The optimizer.
        prefix: First part of the names.

    Returns:
        ``"<prefix>.<number of the parameter>.<entry>"`` -> tensor, not copied.
    """
    parameters = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{index}.{name}": entry for index, entries in parameters.items() for name, entry in entries.items()
    }


def load_optimizer_state(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], prefix: str, laid_out: Callable[[Tensor], Tensor]
) -> None:
    """Give an optimizer the state that :func:`optimizer_state` returned; its settings stay.

    Args:
        optimizer: The optimizer, of the same parameters in the same order.
        tensors: By name; those of another prefix are left alone.
        prefix: First part of the names.
        laid_out: Returns a tensor in the memory format of the model's weights.

    Raises:
        ValueError: If the state is that of other parameters. A fused optimizer would write beyond their memory.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if not key.startswith(f"{prefix}."):
            continue
        _, index, name = key.split(".")
        number = int(index)
        if number >= len(parameters):
            raise ValueError(f"{key} is of a parameter that the {prefix} does not have: build it as it was")
        shape = tuple(parameters[number].shape)
        if name in _OF_THE_PARAMETERS_SHAPE and tuple(tensor.shape) != shape:
            raise ValueError(
                f"{key} is {tuple(tensor.shape)} and its parameter {shape}: the state is of another network"
            )
        entries.setdefault(number, {})[name] = laid_out(tensor.clone())
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
