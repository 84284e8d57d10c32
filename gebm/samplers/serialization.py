"""A chain's state as a flat dictionary of tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gebm.samplers.base import GradientState, State
from gebm.samplers.discriminator_ot import TransportState
from gebm.samplers.langevin import KineticState
from gebm.samplers.metropolis import IndependentState, MetropolisState
from gebm.samplers.tempering import TemperingState

__all__ = ["load_state_dict", "state_dict"]

_STATES = (GradientState, IndependentState, KineticState, MetropolisState, TemperingState, TransportState)


def state_dict(state: State) -> dict[str, Tensor]:
    """Return the tensors of a state, each in memory of its own, as safetensors and ``torch.save`` need it.

    With them and the generator's state, a chain continues bit for bit.

    Args:
        state: The state of chains.

    Returns:
        Name of an entry -> tensor.

    Example:
        >>> import safetensors.torch, torch
        >>> from gebm import samplers
        >>> kernel, potential, generator = samplers.MALA(0.5), lambda z: z.square().sum(1) / 2, torch.Generator()
        >>> chain = samplers.run(kernel, potential, torch.zeros(4, 2), 5, generator=generator)
        >>> noise = {"generator": generator.get_state()}
        >>> saved = safetensors.torch.save({**samplers.state_dict(chain.state), **noise})

        And elsewhere:

        >>> tensors = safetensors.torch.load(saved)
        >>> generator = torch.Generator().set_state(tensors.pop("generator"))
        >>> state = samplers.load_state_dict(tensors)
        >>> int(samplers.run(kernel, potential, None, 5, generator=generator, state=state).state.step)
        10
    """
    return {name: entry.detach().clone().contiguous() for name, entry in state._asdict().items()}


def load_state_dict(tensors: Mapping[str, Tensor]) -> State:
    """Build the state whose tensors ``state_dict`` returned.

    Args:
        tensors: Name of an entry -> tensor, on the device where the chains continue.

    Returns:
        The state. Its number of steps is on the CPU, wherever it came from.

    Raises:
        ValueError: If no kernel has a state of these entries.

    Example:
        >>> from gebm import samplers
        >>> import torch
        >>> state = samplers.RandomWalkMetropolis(0.5).init(torch.zeros(1, 1), lambda z: z.square().sum(1) / 2)
        >>> load_state_dict(state_dict(state))
        MetropolisState(z=tensor([[0.]]), potential=tensor([0.]), chain=tensor([0]), step=tensor(0))
    """
    for kind in _STATES:
        if set(kind._fields) == set(tensors):
            return kind(**{**tensors, "step": tensors["step"].cpu()})
    raise ValueError(f"no kernel has a state of {', '.join(sorted(tensors)) or 'nothing'}: give what state_dict gave")
