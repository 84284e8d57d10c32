"""Context managers that hold networks fixed: weights computed once for many reads, and without gradients."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize

__all__ = ["cached_parametrizations", "frozen", "require_differentiable"]


@contextmanager
def cached_parametrizations(*modules: nn.Module) -> Iterator[None]:
    """Compute every normalized weight of the modules once, in full precision, and use it until the block ends.

    Spectral normalization recomputes a weight wherever it is read, and in training mode moves its power iteration each
    time. One gradient step reads an energy's weights twice (samples, penalty), a chain thousands of times: all those
    reads must see one and the same network. The weights are computed here, before any autocast region, because power
    iteration in bfloat16 would estimate the spectral norm to two digits only.

    Args:
        *modules: Networks, with or without parametrized weights.

    Example:
        >>> layer = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
        >>> with cached_parametrizations(layer):
        ...     layer.weight is layer.weight
        True
    """
    gradients = torch.is_grad_enabled()
    with parametrize.cached():
        for module in modules:
            device = next((parameter.device.type for parameter in module.parameters()), "cpu")
            # A weight that is born in inference mode would stay one, and a sampler could not differentiate through it.
            # Leaving that mode switches gradients on, wherever they were off.
            with (
                torch.inference_mode(False),
                torch.set_grad_enabled(gradients),
                torch.autocast(device, enabled=False),
            ):
                for layer in module.modules():
                    if isinstance(parametrizations := getattr(layer, "parametrizations", None), nn.ModuleDict):
                        for name in parametrizations:
                            getattr(layer, name)
        yield


def require_differentiable(module: nn.Module) -> None:
    """Raise a ValueError if a module's tensors were born in inference mode: autograd takes no such tensor.

    Args:
        module: A network.

    Example:
        >>> with torch.inference_mode():
        ...     network = nn.Linear(2, 1)
        >>> require_differentiable(network)
        Traceback (most recent call last):
        ...
        ValueError: Linear was built or copied under torch.inference_mode, so no gradient passes it: do that outside
    """
    if any(parameter.is_inference() for parameter in module.parameters()):
        raise ValueError(
            f"{type(module).__name__} was built or copied under torch.inference_mode, so no gradient passes it: "
            "do that outside"
        )


class _Hold:
    """A module that is frozen, with what it was before, and the number of blocks that need it to be.

    Args:
        module: The module. Those of its layers that are frozen already belong to their own holds, which are kept.
    """

    def __init__(self, module: nn.Module) -> None:
        layers = list(module.modules())
        self.inner = list({id(hold): hold for layer in layers if (hold := _holds.get(id(layer)))}.values())
        self.modes = [(layer, layer.training) for layer in layers if id(layer) not in _holds]
        self.trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.count = 1

    def enter(self) -> None:
        try:
            for parameter in self.trained:
                parameter.requires_grad_(False)
        except RuntimeError as error:
            self._restore()
            if "functorch" not in str(error):
                raise
            raise RuntimeError(
                "parameters cannot be frozen inside a transform of torch.func: put `with gebm.frozen(model.base, "
                "model.energy):` around the transform"
            ) from None
        for layer, _ in self.modes:
            layer.training = False
            _holds[id(layer)] = self
        for hold in self.inner:
            hold.count += 1

    def leave(self) -> None:
        self.count -= 1
        if self.count:
            return
        for layer, _ in self.modes:
            del _holds[id(layer)]
        self._restore()
        for hold in self.inner:
            hold.leave()

    def _restore(self) -> None:
        for layer, training in self.modes:
            layer.training = training
        for parameter in self.trained:
            # A transform refuses the call itself, whether the flag changes or not.
            if not parameter.requires_grad:
                parameter.requires_grad_(True)


# Holds of the layers that are frozen now, by the layers' identities. Threads share them, as they share the layers.
_holds: dict[int, _Hold] = {}
_lock = threading.RLock()


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Hold modules fixed: evaluation mode, parameters outside the graph, normalized weights computed once.

    What is computed inside can still be differentiated with respect to its *inputs*; this is what a sampler and a base
    step need, and the parameters then cost neither memory nor time. On leaving, modes and flags are as they were; of
    several threads that hold a module, the last one to leave restores them. In between they must not be changed: a
    module that is frozen already is not visited again. Under ``torch.inference_mode`` and ``torch.no_grad`` it is the
    same.

    Args:
        *modules: Modules to hold fixed.

    Raises:
        ValueError: If a module was built, or copied, under ``torch.inference_mode``.
        RuntimeError: Inside a transform of ``torch.func``, which a block has to be around.

    Example:
        >>> network = nn.Linear(2, 1)
        >>> with frozen(network):
        ...     network.training, network.weight.requires_grad
        (False, False)
        >>> network.training, network.weight.requires_grad
        (True, True)
    """
    holds: list[_Hold] = []
    try:
        visited = [module for module in modules if _acquire(module, holds)]
        # A potential holds its networks at each step of a chain that holds them already: looking them through again
        # would cost a small network as much as the step.
        if not visited:
            yield
            return
        with cached_parametrizations(*visited):
            yield
    finally:
        with _lock:
            for hold in reversed(holds):
                hold.leave()


def _acquire(module: nn.Module, holds: list[_Hold]) -> bool:
    """Add the hold of a module to a block's, and return whether it is a new one."""
    with _lock:
        if (hold := _holds.get(id(module))) is not None:
            hold.count += 1
            holds.append(hold)
            return False
        require_differentiable(module)
        hold = _Hold(module)
        hold.enter()
        holds.append(hold)
        return True
