"""Random numbers in static tensors, which a recorded function reads and which are drawn anew before each replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Tape", "draw_to"]

_Draw = Callable[[torch.Generator | None], Tensor]


class _Entry(NamedTuple):
    """A request: how it is drawn from a generator, and the tensor that holds its numbers."""

    draw: _Draw
    tensor: Tensor


class Tape(torch.Generator):
    """A generator whose numbers are in static tensors, in the order in which a function requests them.

    While it records, each request is drawn from the source, as it would be without a tape. Once it is closed, the
    function gets the same tensors again each time that it runs after :meth:`rewind`, and :meth:`refill` draws other
    numbers into them. A CUDA graph of the function so reads other numbers at each replay, those that the function
    itself would have drawn.

    Args:
        source: Where the numbers come from while it records.

    Attributes:
        position: Number of requests since its beginning.

    Example:
        >>> tape = Tape(torch.Generator().manual_seed(0))
        >>> numbers = draw_to("cpu", tape, lambda generator: torch.rand(3, generator=generator))
        >>> tape.close()
        >>> tape.refill(torch.Generator().manual_seed(1))
        >>> again = draw_to("cpu", tape, lambda generator: torch.rand(3, generator=generator))
        >>> torch.equal(again, torch.rand(3, generator=torch.Generator().manual_seed(1)))
        True
    """

    def __new__(cls, source: torch.Generator) -> Tape:
        """Make a generator of the CPU, of which nothing is ever drawn."""
        return super().__new__(cls)

    def __init__(self, source: torch.Generator) -> None:
        self._source: torch.Generator | None = source
        self._entries: list[_Entry] = []
        self._buffers: list[tuple[list[int], Tensor]] = []
        self.position = 0

    def take(self, draw: _Draw, device: torch.device | str) -> Tensor:
        """Return the numbers of the next request, on a device.

        Args:
            draw: Draws them from a generator.
            device: Where they are needed.

        Raises:
            RuntimeError: If the tape is closed, and had no such request when it was recorded.
        """
        if self._source is not None:
            self._entries.append(_Entry(draw, draw(self._source).to(device, non_blocking=True)))
            return self._entries[-1].tensor
        if self.position == len(self._entries):
            raise RuntimeError("a recorded step requests more random numbers than it did when it was recorded")
        return self.take_next(1)[0]

    def take_next(self, count: int) -> list[Tensor]:
        """Return the numbers of the next requests of a closed tape, whatever they are for.

        Args:
            count: Number of requests.
        """
        self.position += count
        return [entry.tensor for entry in self._entries[self.position - count : self.position]]

    def close(self) -> None:
        """End the recording; from here on there are no further requests."""
        alike: dict[tuple[torch.Size, torch.dtype, torch.device], list[int]] = {}
        for index, (_, tensor) in enumerate(self._entries):
            alike.setdefault((tensor.shape, tensor.dtype, tensor.device), []).append(index)
        # Requests of the same shape share one tensor, which is filled by one copy.
        for indices in alike.values():
            buffer = torch.stack([self._entries[index].tensor for index in indices])
            self._buffers.append((indices, buffer))
            for row, index in enumerate(indices):
                self._entries[index] = self._entries[index]._replace(tensor=buffer[row])
        self._source = None
        self.rewind()

    def rewind(self) -> None:
        """Begin again with the first request."""
        self.position = 0

    def refill(self, generator: torch.Generator | None) -> None:
        """Draw all requests anew, in their order; nothing waits for a device.

        Args:
            generator: Source of the numbers.
        """
        drawn = [entry.draw(generator) for entry in self._entries]
        for indices, buffer in self._buffers:
            numbers = torch.stack([drawn[index] for index in indices])
            # A copy from other memory would wait for all that is queued on the device.
            pinned = buffer.is_cuda and not numbers.is_cuda
            buffer.copy_(numbers.pin_memory() if pinned else numbers, non_blocking=True)
        self.rewind()


def draw_to(device: torch.device | str, generator: torch.Generator | None, draw: _Draw) -> Tensor:
    """Draw random numbers from a generator, or take them from a tape, without waiting for a device.

    Args:
        device: Where the numbers are needed.
        generator: Source of the numbers; torch's default one for the CPU if None.
        draw: Draws them from a generator.

    Returns:
        The numbers.

    Example:
        >>> draw_to("cpu", torch.Generator(), lambda generator: torch.rand(3, generator=generator)).shape
        torch.Size([3])
    """
    if isinstance(generator, Tape):
        return generator.take(draw, device)
    return draw(generator).to(device, non_blocking=True)
