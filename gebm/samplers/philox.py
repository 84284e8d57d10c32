"""Noise that belongs to a chain: random numbers as a function of a key, a chain's number and a coordinate.

A generator's stream deals its numbers out in the order in which they are asked for, so what one chain gets would depend
on how many others run in parallel. Here a step takes a single number from the generator, the key, and every chain
computes its own noise from it with Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw,
*Parallel random numbers: as easy as 1, 2, 3*, SC 2011. The counter says which numbers are meant:

| word | holds |
|---|---|
| 0 | the block of four coordinates |
| 1 | the stream: what the numbers are for |
| 2, 3 | the low and the high half of the chain's number |

It is ordinary tensor arithmetic, the same on every device, and waits for none. The key is a function of the generator's
seed and of its position alone, wherever the generator is: a seed means the same latents on a CPU and on a GPU.
"""

from __future__ import annotations

import functools
import math
import threading

import torch
from torch import Tensor

from gebm.inputs import require_generator
from gebm.replay.tape import Tape

__all__ = [
    "ACCEPT",
    "CLASS",
    "PROPOSAL",
    "RESTART",
    "SWAP",
    "TRAJECTORY",
    "VELOCITY",
    "draw_key",
    "normal",
    "philox",
    "uniform",
]

# The streams. Two draws of a step that may meet in one chain come from different ones.
PROPOSAL = 0
ACCEPT = 1
VELOCITY = 2
SWAP = 3
RESTART = 4
TRAJECTORY = 5
CLASS = 6

_ROUNDS = 10
_WORD = 0xFFFFFFFF
# The multipliers of Salmon et al., table 2; the key's increments are the golden ratio and sqrt(3) - 1.
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_INCREMENTS = 0x9E3779B9, 0xBB67AE85
# An offset of CUDA's is a multiple of four words.
_OFFSET = 4
# Number of keys of a device's generator that are computed at once: the CPU's cannot skip any.
_BLOCK = 1024


def draw_key(generator: torch.Generator | None, device: torch.device | str) -> Tensor:
    """Take from a generator the one number that all the noise of a step is computed from.

    A function of the generator's seed and position alone. A generator of a GPU has an offset for a position, which each
    key advances by as little as CUDA lets it; where nothing but keys is taken from it, they are those that a generator
    of the CPU with its seed yields. The key is computed on the host and passed to a device by value: neither waits.

    Args:
        generator: Source of the randomness, on any device; torch's default one for the CPU if None.
        device: Where the key is needed.

    Returns:
        A key, 0-dimensional int64, uniform over its 64 bits.

    Raises:
        TypeError: If the generator is none.

    Example:
        >>> a, b = (draw_key(torch.Generator().manual_seed(0), "cpu") for _ in range(2))
        >>> a.dtype, bool(a == b)
        (torch.int64, True)
    """
    require_generator(generator)
    if isinstance(generator, Tape):
        return generator.take(lambda source: draw_key(source, "cpu"), device)
    if generator is None or generator.device.type == "cpu":
        key = int(_random_words(1, generator))
    else:
        offset = generator.get_offset()
        key = _keys_of(generator.initial_seed()).at(offset // _OFFSET)
        generator.set_offset(offset + _OFFSET)
    return torch.full((), key, dtype=torch.int64, device=device)


def _random_words(count: int, generator: torch.Generator | None) -> Tensor:
    """Return uniform words of 64 bits (count,), int64, on the CPU."""
    return torch.empty(count, dtype=torch.int64).random_(-(2**63), None, generator=generator)


class _Keys:
    """Keys that a generator of the CPU with a seed yields, continued a block at a time; from the start to go back."""

    def __init__(self, seed: int) -> None:
        self._seed, self._lock = seed, threading.Lock()
        self._start()

    def _start(self) -> None:
        self._generator = torch.Generator().manual_seed(self._seed)
        self._block, self._words = -1, torch.empty(0, dtype=torch.int64)

    def at(self, index: int) -> int:
        """Return the key of a number, counted from 0."""
        block, index = divmod(index, _BLOCK)
        with self._lock:
            if block < self._block:
                self._start()
            while self._block < block:
                self._words = _random_words(_BLOCK, self._generator)
                self._block += 1
            return int(self._words[index])


_keys_of = functools.lru_cache(maxsize=16)(_Keys)


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Compute Philox4x32-10: four random words from four words of counter and a key of 64 bits.

    Args:
        counter: Counters (4, ...), int64, each word in [0, 2^32).
        key: The key, 0-dimensional int64; its low half is the first word of the key.

    Returns:
        Random words (4, ...), int64, each in [0, 2^32).

    Raises:
        ValueError: If the counter does not have four words.

    Example:
        >>> [f"{word:08x}" for word in philox(torch.zeros(4, dtype=torch.int64), torch.tensor(0))]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    if counter.ndim == 0 or len(counter) != 4:
        raise ValueError(f"a counter has four words, (4, ...), not {tuple(counter.shape)}")
    # Constants by arithmetic on the device: copied from the host, each would be a transfer in every step.
    ones, device = (1,) * (counter.ndim - 1), counter.device
    rounds = torch.arange(_ROUNDS, device=device).view(_ROUNDS, 1, *ones)
    multipliers = _pair(*_MULTIPLIERS, device).view(2, *ones)
    increments = _pair(*_INCREMENTS, device).view(2, *ones)
    halves = (key >> _pair(0, 32, device).view(2, *ones)) & _WORD
    keys = torch.addcmul(halves, rounds, increments).bitwise_and_(_WORD)

    # Words 0 and 2 are multiplied, words 1 and 3 are mixed in. The product of two words wraps around in int64, which
    # leaves its 64 bits right; of the mixed-in words only the low halves count, so they are masked at the end.
    multiplied, mixed = counter[0::2], counter[1::2]
    for round_key in keys:
        product = (multiplied * multipliers).flip(0)
        multiplied = (product >> 32).bitwise_xor_(mixed).bitwise_xor_(round_key).bitwise_and_(_WORD)
        mixed = product
    return torch.stack([multiplied, mixed & _WORD], 1).flatten(0, 1)


def _pair(first: int, second: int, device: torch.device) -> Tensor:
    """Return two numbers (2,), by one operator on the device."""
    return torch.arange(first, 2 * second - first, second - first, device=device)


def normal(key: Tensor, chain: Tensor, dim: int, stream: int = PROPOSAL, dtype: torch.dtype = torch.float32) -> Tensor:
    """Compute standard normal noise, by the transformation of Box and Muller 1958.

    In float64 inside: a float32 logarithm of a number close to 1 has lost most of its digits, and a rounding that
    differs between two devices or two batch sizes is then below what float32 can show.

    Args:
        key: The step's key, from ``draw_key``.
        chain: Numbers of the chains (N,), int64.
        dim: How many numbers each chain gets.
        stream: What they are for, one of this module's constants.
        dtype: The noise's type; in another it is the same but for rounding.

    Returns:
        Noise (N, dim). Row i depends on ``chain[i]`` alone, and its start not on ``dim``.

    Example:
        >>> key = torch.tensor(7)
        >>> many, alone = normal(key, torch.arange(5), 3), normal(key, torch.tensor([4]), 2)
        >>> torch.equal(many[4:, :2], alone)
        True
    """
    words = _words(key, chain, -(-dim // 4), stream).to(torch.float64)
    radius = (words[0::2] + 0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = words[1::2] * (2 * math.pi * 2.0**-32)
    pairs = torch.stack([angle.cos().mul_(radius), angle.sin().mul_(radius)], -1)  # (2, N, blocks, 2)
    numbers = pairs.permute(1, 2, 0, 3).to(dtype, memory_format=torch.contiguous_format)
    return numbers.flatten(1)[:, :dim].contiguous()


def uniform(key: Tensor, chain: Tensor, stream: int = ACCEPT) -> Tensor:
    """Compute one uniform number for each chain.

    Args:
        key: The step's key, from ``draw_key``.
        chain: Numbers of the chains (N,), int64.
        stream: What they are for, one of this module's constants.

    Returns:
        Numbers (N,) in [0, 1), float32, multiples of 2^-24: below a probability of 1 always, of 0 never.

    Example:
        >>> uniform(torch.tensor(7), torch.arange(5)).shape
        torch.Size([5])
    """
    return (_words(key, chain, 1, stream)[0].flatten() >> 8).to(torch.float32) * 2.0**-24


def _words(key: Tensor, chain: Tensor, blocks: int, stream: int) -> Tensor:
    """Random words (4, N, blocks) of the chains (N,)."""
    n = len(chain)
    block = torch.arange(blocks, device=chain.device).expand(n, blocks)
    low, high = (half[:, None].expand(n, blocks) for half in (chain & _WORD, (chain >> 32) & _WORD))
    return philox(torch.stack([block, torch.full_like(block, stream), low, high]), key)
