"""Data parallelism of a loss: equal weights on all processes, and the mean of their gradients."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import _SpectralNorm

from gebm.distributed import broadcast_module
from gebm.networks.layers import BatchNorm2d
from gebm.networks.published.blocks import FixedBatchNorm2d
from gebm.priors import StandardNormal

__all__ = ["data_parallel"]

# Layers whose buffers are functions of what all processes have: of weights, or of all their batches together; or are
# what they came with.
_EQUAL_BUFFERS = (BatchNorm2d, FixedBatchNorm2d, StandardNormal, _SpectralNorm)

# Torch 2.13 has renamed the setting.
_SENDS_BUFFERS = "forward_sync_buffers"
if _SENDS_BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    _SENDS_BUFFERS = "broadcast_buffers"


def data_parallel(module: nn.Module) -> nn.Module:
    """Wrap a loss in ``DistributedDataParallel``, without copies that its layers do not need.

    Gradients are views of what is summed over the processes. Buffers are sent at every forward pass only if a layer has
    some in which processes could come to differ, as torch's own batch normalization has.

    Args:
        module: The loss, as ``Trainer(parallel=data_parallel)`` passes it.

    Returns:
        The wrapped loss; all processes have the first one's weights and buffers.
    """
    owners = [layer for layer in module.modules() if next(layer.buffers(recurse=False), None) is not None]
    differ = not all(isinstance(layer, _EQUAL_BUFFERS) for layer in owners)
    # The gradient of a convolution of one channel has other strides than its weights, for the same memory.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    settings: dict[str, Any] = {_SENDS_BUFFERS: differ, "gradient_as_bucket_view": True}
    return DistributedDataParallel(broadcast_module(module), **settings)
