"""A pretended GPU: tensors with the CPU's values that record each wait and refuse what a GPU would.

A tensor of :func:`device` wraps one of the CPU. Every operator on it is computed there, so its values are real and can
be compared; around the operator it is checked whether all operands are on one device, whether a GPU's host would have
to wait for the result, and in which precision a product is computed.

Beside a real GPU it lacks streams, memory of its own, and speed. A wait is recorded where CUDA would synchronize:
where a number is read, where a shape depends on values, and where a copy blocks.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

__all__ = ["DeviceGenerator", "Product", "Record", "device", "on_cpu", "pretended_gpu"]

_NAME = "pretended"
_ROOT = Path(__file__).parents[2]
_PACKAGES = tuple(str(_ROOT / package) for package in ("gebm", "pipeline", "benchmarks"))

# Operators that read a number of the device.
_READS = {"_local_scalar_dense", "equal", "is_nonzero", "item"}
# Operators the shape of whose result depends on values.
_SHAPES = {"_unique2", "masked_select", "nonzero", "unique_consecutive", "unique_dim"}
_INDEXED = {"_index_put_impl_", "index", "index_put", "index_put_"}
_COPIES = {"_to_copy", "copy_"}
# Products, by whose arithmetic a float32 may be rounded to ten bits on a GPU.
_PRODUCTS = {"addmm", "baddbmm", "bmm", "convolution", "convolution_backward", "mm", "mv"}


class Product(NamedTuple):
    """A product or a convolution.

    Attributes:
        name: The operator.
        dtype: Type of its first operand.
        arithmetic: What cuDNN or cuBLAS is allowed for float32 at that moment.
        where: File and line of the project.
    """

    name: str
    dtype: torch.dtype
    arithmetic: str
    where: str


@dataclass
class Record:
    """What happened on the device.

    Attributes:
        waits: Each wait of the host: what for, with file and line.
        products: Each product.
        operators: Operators that launch a kernel, by name.
    """

    waits: list[str] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    operators: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        """Forget all."""
        self.waits.clear()
        self.products.clear()
        self.operators.clear()

    def wait(self, what: str) -> None:
        """Record that the host waits."""
        self.waits.append(f"{what} at {_where()}")


_record = Record()


class _Module(backend_registration._DummyBackendModule):
    """What torch asks of a backend's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, *_: Any) -> torch.Tensor:
        return torch.zeros(1)

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass


def device() -> torch.device:
    """Return the pretended device; the first call in a process makes torch know it."""
    if torch._C._get_privateuse1_backend_name() != _NAME:
        backend_registration._setup_privateuseone_for_python_backend(_NAME, backend_module=_Module())
        _register_autocast()
    return torch.device(_NAME, 0)


class _DeviceTensor(torch.Tensor):
    """A tensor of the pretended device, around one of the CPU."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> _DeviceTensor:
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device(),
        )
        wrapper.inner = inner
        return wrapper

    def __repr__(self, **_: Any) -> str:
        return f"on the device: {self.inner}"

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, value: _DeviceTensor) -> None:
        torch.Tensor.data.__set__(self, value)
        self.inner = value.inner

    def tolist(self) -> Any:
        _record.wait("tolist")
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


class DeviceGenerator(torch.Generator):
    """A generator of the pretended device: a seed and an offset, as CUDA's, and other numbers than the CPU's."""

    def __init__(self) -> None:
        self._offset = 0

    @property
    def device(self) -> torch.device:
        return device()

    def manual_seed(self, seed: int) -> DeviceGenerator:
        super().manual_seed(seed)
        self._offset = 0
        return self

    def get_offset(self) -> int:
        return self._offset

    def set_offset(self, offset: int) -> None:
        assert offset % 4 == 0, "CUDA refuses another offset than a multiple of 4"
        self._offset = offset

    def advance(self) -> torch.Generator:
        """Return where the numbers of one operator come from, and move on."""
        seed = hash((self.initial_seed(), self._offset)) % 2**63
        self._offset += 4
        return torch.Generator().manual_seed(seed)


def on_cpu(value: Any) -> Any:
    """Return the tensors of a tuple, a list or a dict on the CPU, without recording a wait."""
    return _map(_inner, value)


@contextlib.contextmanager
def pretended_gpu() -> Iterator[Record]:
    """Let tensors be made on the pretended device, and record what happens there."""
    device()
    _record.clear()
    make = torch.tensor

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        made = make(data, *args, **kwargs)
        # Torch makes the tensor on the CPU and copies it, out of the sight of a dispatch mode.
        return made if device is None else made.to(device)

    with (
        mock.patch.object(torch, "tensor", tensor),
        torch.autograd.set_multithreading_enabled(False),
        _Factories(),
    ):
        yield _record


class _Factories(TorchDispatchMode):
    """Operators that have no operand of the device, and may make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute an operator on the CPU, after the checks; wrap what a GPU would hold."""
    name = func.overloadpacket.__name__
    tensors = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    far = any(isinstance(tensor, _DeviceTensor) for tensor in tensors)
    target = kwargs.get("device")
    to_device = far if target is None else torch.device(target).type == _NAME
    if name == "copy_":
        to_device = isinstance(args[0], _DeviceTensor)
    if not far and not to_device:
        return func(*args, **kwargs)
    if name in _COPIES:
        _check_copy(name, args, kwargs, to_device)
    else:
        _check_operands(func, name, args, tensors)
    if name == "_efficientzerotensor":
        # Autograd's zero has no memory, which the operators below autograd would read.
        func = torch.ops.aten.zeros.default
    elif torch.Tag.view_copy not in func.tags and not func.is_view:
        _record.operators[name] += 1
    result = func(*_cpu_arguments(args, to_device), **_cpu_arguments(kwargs, to_device))
    if not to_device or name in _READS:
        return result
    wrapped = _map(lambda leaf: _DeviceTensor(leaf) if _is_cpu_tensor(leaf) else leaf, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if far else wrapped


def _check_copy(name: str, args: Any, kwargs: dict[str, Any], to_device: bool) -> None:
    """Record the wait of a copy between the devices; one from the CPU that does not block is none."""
    source = args[1] if name == "copy_" else args[0]
    from_device = isinstance(source, _DeviceTensor)
    if from_device and not to_device:
        _record.wait("a copy to the host")
    elif to_device and not from_device:
        blocks = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        if blocks:
            _record.wait("a blocking copy to the device")


def _check_operands(func: Any, name: str, args: Any, tensors: list[torch.Tensor]) -> None:
    """Raise an error where operands are on two devices, and record what a host waits for."""
    near = [tensor for tensor in tensors if not isinstance(tensor, _DeviceTensor)]
    if len(near) < len(tensors):
        if name in _INDEXED:
            if near:
                _record.wait(f"{name} by an index on the host")
            if any(tensor.dtype in (torch.bool, torch.uint8) for tensor in _leaves(args[1]) if tensor is not None):
                _record.wait(f"{name} by a mask")
        # A number on the host is passed by value to what is computed entry by entry.
        elif any(tensor.dim() for tensor in near) or (near and torch.Tag.pointwise not in func.tags):
            raise RuntimeError(f"expected all tensors to be on the same device: {name} at {_where()}")
        if name in _READS or name in _SHAPES or (name == "repeat_interleave" and "Tensor" in str(func)):
            _record.wait(name)
    if name in _PRODUCTS and tensors:
        conv = "convolution" in name
        backend = torch.backends.cudnn.conv if conv else torch.backends.cuda.matmul
        _record.products.append(Product(name, tensors[0].dtype, backend.fp32_precision, _where()))


def _cpu_arguments(value: Any, to_device: bool) -> Any:
    """Return arguments as the CPU takes them, with the numbers that a generator of the device stands for."""

    def replace(leaf: Any) -> Any:
        if isinstance(leaf, torch.Generator):
            if isinstance(leaf, DeviceGenerator) != to_device:
                raise RuntimeError(f"expected a generator of the tensors' device, not of {leaf.device}: at {_where()}")
            return leaf.advance() if isinstance(leaf, DeviceGenerator) else leaf
        return torch.device("cpu") if isinstance(leaf, torch.device) and leaf.type == _NAME else _inner(leaf)

    replaced = _map(replace, value)
    if isinstance(replaced, dict) and replaced.get("pin_memory"):
        replaced["pin_memory"] = False
    return replaced


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    """Return a tuple, a list or a dict with a function's value in place of each leaf.

    Torch's own also takes registered classes, which operators do not have, and most of the tests' time.
    """
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(function, entry) for entry in value))
    if isinstance(value, (tuple, list)):
        return type(value)([_map(function, entry) for entry in value])
    if isinstance(value, dict):
        return {key: _map(function, entry) for key, entry in value.items()}
    return function(value)


def _leaves(value: Any) -> list[Any]:
    """Return the leaves of tuples, lists and dicts."""
    if isinstance(value, dict):
        value = tuple(value.values())
    return [leaf for entry in value for leaf in _leaves(entry)] if isinstance(value, (tuple, list)) else [value]


def _inner(leaf: Any) -> Any:
    return leaf.inner if isinstance(leaf, _DeviceTensor) else leaf


def _is_cpu_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and not isinstance(leaf, _DeviceTensor)


def _where() -> str:
    """Return file and line of the innermost frame of the project."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(_PACKAGES):
            return f"{Path(frame.f_code.co_filename).relative_to(_ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "a test"


_library: list[torch.library.Library] = []


def _register_autocast() -> None:
    """Give the device the autocast rules that CUDA has for products."""
    fallthrough = torch.library.Library("_", "IMPL")
    fallthrough.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    rules = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    _library.extend([fallthrough, rules])
    for name in ("conv2d", "linear", "matmul", "mm", "addmm", "bmm", "conv_transpose2d.input"):
        packet, _, overload = name.partition(".")
        rules.impl(name, _in_low_precision(getattr(getattr(torch.ops.aten, packet), overload or "default")))


def _in_low_precision(operator: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        precision = torch.get_autocast_dtype(_NAME)

        def cast(leaf: Any) -> Any:
            narrowed = isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.float32, torch.float16, torch.bfloat16)
            return leaf.to(precision) if narrowed and leaf.device.type == _NAME else leaf

        key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        with torch._C._ExcludeDispatchKeyGuard(key):
            return operator(*_map(cast, args), **_map(cast, kwargs))

    return run
