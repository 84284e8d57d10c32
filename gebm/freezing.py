"""Context managers that hold networks fixed: weights computed once for many reads, and without gradients."""

from __future__ import annotations

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


# Identities of the modules that are frozen now.
_frozen: set[int] = set()


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Hold modules fixed: evaluation mode, parameters outside the graph, normalized weights computed once.

    What is computed inside can still be differentiated with respect to its *inputs*; this is what a sampler and a base
    step need, and the parameters then cost neither memory nor time. On leaving, modes and flags are as they were.
    In between they must not be changed: a module that is frozen already is not visited again. Under
    ``torch.inference_mode`` and ``torch.no_grad`` it is the same.

    Args:
        *modules: Modules to hold fixed.

    Raises:
        ValueError: If a module was built, or copied, under ``torch.inference_mode``.

    Example:
        >>> network = nn.Linear(2, 1)
        >>> with frozen(network):
        ...     network.training, network.weight.requires_grad
        (False, False)
        >>> network.training, network.weight.requires_grad
        (True, True)
    """
    # A potential holds its networks at each step of a chain that holds them already: looking them through again would
    # cost a small network as much as the step.
    modules = tuple(module for module in modules if id(module) not in _frozen)
    if not modules:
        yield
        return
    for module in modules:
        require_differentiable(module)
    modes = [(layer, layer.training) for module in modules for layer in module.modules()]
    trained = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for layer, _ in modes:
        layer.training = False
    for parameter in trained:
        parameter.requires_grad_(False)
    newly_frozen = {id(layer) for layer, _ in modes} - _frozen
    _frozen.update(newly_frozen)
    try:
        with cached_parametrizations(*modules):
            yield
    finally:
        _frozen.difference_update(newly_frozen)
        for layer, training in modes:
            layer.training = training
        for parameter in trained:
            parameter.requires_grad_(True)
