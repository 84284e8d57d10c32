"""Validation of batches, parameters and arguments: what is accepted, and the one line that refuses the rest.

- *Batches.* A floating-point tensor (N, ...) of the shape that the base makes, on any device. Of a tuple or list, such
  as ``(image, label)``, the first entry is taken; of a mapping, the one entry of that shape. Arrays of numpy are
  tensors, whatever their order of bytes, strides and flags. Data are moved to the model's device and type. Refused are
  integers, whose scale nobody knows, shapes that differ, no rows at all, and numbers that are not finite; those are
  looked for on the CPU alone, for a look at another device would wait for it. A last batch may be smaller.
- *Numbers.* Python's, numpy's, or a tensor of no dimension; they are kept as Python's. A truth value is none.
- *Parameters.* An optimizer owns all trainable parameters of its part, and none of another part's. Frozen ones
  (``requires_grad`` off) stay as they are, whether it owns them or not. Trained weights have float32 or float64.
- *Networks* get their input in the type of their weights. In an autocast region autocast decides.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS, Optimizer

__all__ = [
    "as_batch",
    "as_beta",
    "as_count",
    "as_number",
    "cast_to",
    "explained",
    "network_dtype",
    "next_batch",
    "one_per_sample",
    "require_generator",
    "require_methods",
    "require_module",
    "require_optimizer",
    "require_same_dimension",
]

_T = TypeVar("_T")


def as_count(name: str, value: Any, minimum: int = 1) -> int:
    """Return a whole number of at least ``minimum``.

    Args:
        name: The argument's name.
        value: A whole number: Python's, numpy's, or a tensor of one.
        minimum: The least that it may be.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it is smaller.

    Example:
        >>> as_count("n", torch.tensor(3))
        3
        >>> as_count("n", 3.0)
        Traceback (most recent call last):
        ...
        TypeError: n must be an integer, not 3.0
    """
    try:
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or _is_truth_value(value):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {number}")
    return number


def as_number(name: str, value: Any) -> float:
    """Return a real number as Python's own, so that arithmetic with tensors is torch's.

    Args:
        name: The argument's name.
        value: A number: Python's, numpy's, or a tensor of no dimension.

    Raises:
        TypeError: If it is no number, such as a text, a truth value or a row of numbers.

    Example:
        >>> as_number("lr", torch.tensor(0.5)), as_number("lr", 1)
        (0.5, 1)
        >>> as_number("lr", "0.5")
        Traceback (most recent call last):
        ...
        TypeError: lr must be a number, not '0.5'
    """
    if type(value) in (int, float):
        return value
    plain = value.detach() if isinstance(value, Tensor) else value
    is_text = isinstance(plain, str | bytes | bytearray)
    if not (is_text or isinstance(plain, complex) or _is_truth_value(plain)) and getattr(plain, "ndim", 0) == 0:
        try:
            return float(plain)
        # Of a tensor, also one that has no numbers, on the device "meta".
        except (TypeError, ValueError, OverflowError, RuntimeError):
            pass
    raise TypeError(f"{name} must be a number, not {value!r}")


def _is_truth_value(value: Any) -> bool:
    """Return whether a value is a truth value: Python's, numpy's, or a tensor or array of them."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def as_beta(beta: Any) -> float:
    """Return an inverse temperature, a number from zero on, as Python's own.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is negative or not finite.

    Example:
        >>> as_beta(-1.0)
        Traceback (most recent call last):
        ...
        ValueError: beta must be at least 0, the prior alone, and finite, not -1.0
    """
    number = as_number("beta", beta)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"beta must be at least 0, the prior alone, and finite, not {number}")
    return number


def require_generator(generator: Any) -> None:
    """Raise a one-line TypeError unless ``generator`` is a ``torch.Generator`` or ``None``.

    Example:
        >>> require_generator(0)
        Traceback (most recent call last):
        ...
        TypeError: generator must be a torch.Generator, not 0: pass torch.Generator().manual_seed(0)
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator, not {generator!r}: pass torch.Generator().manual_seed(0)"
        )


def require_module(name: str, module: Any) -> None:
    """Raise a one-line TypeError unless ``module`` is a ``torch.nn.Module``.

    Example:
        >>> require_module("base", len)
        Traceback (most recent call last):
        ...
        TypeError: base must be a torch.nn.Module, not builtin_function_or_method: wrap it in one
    """
    if isinstance(module, type):
        raise TypeError(f"{name} must be a torch.nn.Module, not the class {module.__name__}: call it")
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, not {type(module).__name__}: wrap it in one")


def require_methods(name: str, value: Any, methods: tuple[str, ...], instead: str) -> None:
    """Raise a one-line TypeError unless ``value`` is an object with these attributes, and no class.

    Args:
        name: The argument's name.
        value: What was passed.
        methods: Attributes that it needs.
        instead: What to pass, for the message.

    Example:
        >>> require_methods("penalty", 0.1, ("draw",), "gebm.GradientPenalty(0.1)")
        Traceback (most recent call last):
        ...
        TypeError: penalty must have draw, which 0.1 lacks: pass for example gebm.GradientPenalty(0.1)
    """
    if isinstance(value, type):
        raise TypeError(f"{name} is the class {value.__name__}, not one of its objects: pass for example {instead}")
    if lacking := [method for method in methods if not hasattr(value, method)]:
        shown = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
        raise TypeError(f"{name} must have {', '.join(lacking)}, which {shown} lacks: pass for example {instead}")


def network_dtype(network: nn.Module) -> torch.dtype | None:
    """Return the floating-point type of a network's weights, or of its buffers; ``None`` of one that has neither.

    Example:
        >>> network_dtype(nn.Linear(2, 1).double()), network_dtype(nn.Identity())
        (torch.float64, None)
    """
    tensors = itertools.chain(network.parameters(), network.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)


def cast_to(network: nn.Module, x: Tensor) -> Tensor:
    """Return a network's input in the type of its weights; as it is in an autocast region, which has rules of its own.

    Example:
        >>> cast_to(nn.Linear(2, 1).double(), torch.zeros(1, 2)).dtype
        torch.float64
    """
    dtype = network_dtype(network)
    if dtype is None or dtype == x.dtype or not x.is_floating_point() or torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(dtype)


def one_per_sample(values: Any, n: int, name: str) -> Tensor:
    """Return a network's numbers as (N,), which it may return as (N, 1).

    Args:
        values: What the network returned.
        n: Number of samples.
        name: What the network is, for the message.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is of another shape.

    Example:
        >>> one_per_sample(torch.zeros(3, 1), 3, "the energy network").shape
        torch.Size([3])
    """
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} returned {type(values).__name__} for {n} samples: make it return a tensor ({n},)")
    if values.shape not in ((n,), (n, 1)):
        raise ValueError(f"{name} returned {tuple(values.shape)} for {n} samples: make it return ({n},) or ({n}, 1)")
    return values.reshape(n)


def next_batch(batches: Iterator[_T], before: str) -> _T:
    """Return the next batch of an iterator.

    Args:
        batches: An iterator of batches.
        before: What has been done so far, for the message.

    Raises:
        TypeError: If it is no iterator. A loader, or a list, would begin anew at each step.
        ValueError: If it has ended.

    Example:
        >>> next_batch([1, 2], "no step")
        Traceback (most recent call last):
        ...
        TypeError: batches must be an iterator, not list: pass iter(batches), made once, before the first step
    """
    if not hasattr(batches, "__next__"):
        raise TypeError(
            f"batches must be an iterator, not {type(batches).__name__}: "
            "pass iter(batches), made once, before the first step"
        )
    try:
        return next(batches)
    except StopIteration:
        raise ValueError(
            f"batches ended after {before}: pass an iterator that does not end, such as a generator that goes through "
            "the loader again and again"
        ) from None


def as_batch(batch: Any, shape: tuple[int, ...] | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the data of a batch, by the rules on top of this module.

    Args:
        batch: What an iterator of batches yields.
        shape: Shape of a sample; ``None`` where the base cannot say.
        dtype: The model's type.
        device: The model's device.

    Returns:
        Data (N, ...), without a graph.

    Raises:
        TypeError: If there is no floating-point tensor in it.
        ValueError: If the data are empty, of another shape, or not finite.

    Example:
        >>> images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.float64), torch.zeros(4)
        >>> as_batch((images, labels), (1, 8, 8), torch.float32, torch.device("cpu")).dtype
        torch.float32
        >>> as_batch(images, (3, 8, 8), torch.float32, torch.device("cpu"))
        Traceback (most recent call last):
        ...
        ValueError: a batch is (4, 1, 8, 8), but the base makes (N, 3, 8, 8): give data of that shape
    """
    data = _data_of(batch, shape)
    if not data.is_floating_point():
        raise TypeError(
            f"a batch is {data.dtype}: give floating-point data, images in [-1, 1], such as images.float() / 127.5 - 1"
        )
    if data.dim() == 0 or len(data) == 0:
        raise ValueError(f"a batch is empty, {tuple(data.shape)}: leave such batches out")
    if shape is not None and data.shape[1:] != shape:
        expected = ", ".join(map(str, ("N", *shape)))
        raise ValueError(f"a batch is {tuple(data.shape)}, but the base makes ({expected}): give data of that shape")
    # A sum is not finite where one of its terms is not. One that is too large for its type is looked at again.
    if data.device.type == "cpu" and not data.sum().isfinite() and not data.isfinite().all():
        raise ValueError(
            f"{int((~data.isfinite()).sum())} of the {data.numel()} numbers of a batch are not finite: "
            "leave out such samples"
        )
    data = data.detach().to(device, dtype, non_blocking=True)
    # Autograd refuses a tensor that was born in inference mode.
    return data.clone() if data.is_inference() else data


def _data_of(batch: Any, shape: tuple[int, ...] | None) -> Tensor:
    """Return the tensor of a batch that holds the data."""
    if isinstance(batch, Mapping):
        tensors = {key: _as_tensor(value) for key, value in batch.items()}
        matching = {key: tensor for key, tensor in tensors.items() if _fits(tensor, shape)}
        if len(matching) != 1:
            keys = ", ".join(map(str, matching if matching else batch))
            problem = "several entries that could be data" if matching else "no entry of the shape that the base makes"
            raise ValueError(f"a batch has {problem} ({keys}): yield the tensor alone")
        (data,) = matching.values()
        return data
    data = _as_tensor(batch[0] if isinstance(batch, tuple | list) and len(batch) else batch)
    if not isinstance(data, Tensor) or data.layout != torch.strided:
        shown = f"a {type(batch).__name__} of {type(data).__name__}" if data is not batch else type(data).__name__
        raise TypeError(f"a batch is {shown}: yield a dense tensor (N, ...), or (data, labels)")
    return data


def _as_tensor(value: Any) -> Any:
    """Return an array of numbers, such as numpy's, as a tensor, and everything else as it is."""
    if not hasattr(value, "__array_interface__"):
        return value
    try:
        return torch.as_tensor(value if _is_plain(value) else value.astype(value.dtype.newbyteorder("=")))
    # An array of texts or objects.
    except TypeError:
        return value


def _is_plain(array: Any) -> bool:
    """Return whether torch takes an array as it is.

    It refuses another order of bytes than the machine's and negative strides, and warns of an array that cannot be
    written, such as a mapped file's; it has a copy of these.
    """
    if not hasattr(array, "flags"):
        return True
    return array.flags.writeable and array.dtype.isnative and min(array.strides, default=0) >= 0


def _fits(value: Any, shape: tuple[int, ...] | None) -> bool:
    if not isinstance(value, Tensor) or value.dim() == 0:
        return False
    return value.shape[1:] == shape if shape is not None else value.is_floating_point() and value.dim() > 1


def require_optimizer(
    name: str,
    optimizer: Optimizer | None,
    parameters: Mapping[str, nn.Parameter],
    part: str,
    optional: Collection[str] = (),
) -> None:
    """Raise a one-line error unless an optimizer owns what is trained of one part of the model, and nothing else.

    Args:
        name: The argument's name.
        optimizer: What was passed.
        parameters: The part's parameters by name, frozen ones as well.
        part: What the part is, for the message.
        optional: Names of parameters that it may leave out, since nothing trains them.

    Raises:
        TypeError: If it is no optimizer, or one that calls the loss itself.
        ValueError: If it lacks a parameter or owns another's, nothing is trained, or weights have half precision.

    Example:
        >>> linear = nn.Linear(2, 1)
        >>> require_optimizer(
        ...     "base_optimizer", torch.optim.SGD([linear.weight]), dict(linear.named_parameters()), "the base"
        ... )
        Traceback (most recent call last):
        ...
        ValueError: base_optimizer lacks bias: build it from all the parameters of the base, or freeze those it lacks
    """
    if optimizer is None:
        raise ValueError(f"no optimizer for {part}: give {name}, the one that owns its parameters")
    if not isinstance(optimizer, Optimizer) or isinstance(optimizer, LBFGS):
        raise TypeError(
            f"{name} must be a torch.optim.Optimizer that steps without a closure, not {type(optimizer).__name__}: "
            "pass for example gebm.adam(parameters, lr=1e-4)"
        )
    owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = {key: parameter for key, parameter in parameters.items() if parameter.requires_grad}
    trained = {key: parameter for key, parameter in trained.items() if key not in optional}
    if not trained:
        raise ValueError(f"{part} has nothing to train: leave some parameter's requires_grad on, or do not train it")
    if lacking := [key for key, parameter in trained.items() if id(parameter) not in owned]:
        raise ValueError(
            f"{name} lacks {_shortened(lacking)}: build it from all the parameters of {part}, or freeze those it lacks"
        )
    if foreign := len(owned - {id(parameter) for parameter in parameters.values()}):
        raise ValueError(f"{name} owns {foreign} parameters that are none of {part}: build it from those alone")
    for key, parameter in trained.items():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"{key} is {parameter.dtype}, in which small steps round to nothing: keep weights in float32 and pass "
                "precision=torch.bfloat16, or freeze it"
            )


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def explained(compute: Callable[[], _T], problem: str) -> _T:
    """Return what is computed; raise torch's error about shapes, types or devices as one line.

    Args:
        compute: Calls a network.
        problem: What is wrong if it fails, for the message.

    Raises:
        ValueError: If it fails.

    Example:
        >>> explained(lambda: nn.Linear(2, 1)(torch.zeros(1, 3)), "the energy takes no samples (1, 3)")
        Traceback (most recent call last):
        ...
        ValueError: the energy takes no samples (1, 3): mat1 and mat2 shapes cannot be multiplied (1x3 and 2x1)
    """
    try:
        return compute()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(f"{problem}: {' '.join(str(error).split())[:200]}") from error


def require_same_dimension(name: str, module: object, other_name: str, other: object) -> None:
    """Raise a ValueError if two parts of a model have a ``dim``, as flows and priors do, and not the same."""
    # DistributedDataParallel has a dim as well, which is none of the data's.
    dim, other_dim = (
        None if isinstance(part, DistributedDataParallel) else getattr(part, "dim", None) for part in (module, other)
    )
    if isinstance(dim, int) and isinstance(other_dim, int) and dim != other_dim:
        raise ValueError(f"the {name} has {dim} dimensions and the {other_name} {other_dim}: make them equal")
