"""Tensors of a store that take long to make: saved with it, and made again where the file does not fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from pipeline.data import Store
from pipeline.runtime import safetensors_io

__all__ = ["SavedTensors"]


class SavedTensors:
    """File ``<store>/statistics/<name>.safetensors``.

    Args:
        store: The store.
        name: Name of the file.
        what: What is in it, for messages, in the plural.

    Example:
        >>> import torch
        >>> from pipeline.data import sources, write_store, open_store
        >>> _ = write_store(sources.make("digits"), "memory://docs/saved", resolution=8, channels=1)
        >>> saved = SavedTensors(open_store("memory://docs/saved"), "means", "the means")
        >>> saved.write({"mean": torch.zeros(2)}, {"samples": 5})
        >>> saved.exists(), saved.read({"samples": 5}, lambda tensors: "mean" in tensors)
        (True, {'mean': tensor([0., 0.])})
    """

    def __init__(self, store: Store, name: str, what: str) -> None:
        self._url, self._what = f"{store.url.rstrip('/')}/statistics/{name}.safetensors", what

    def exists(self) -> bool:
        """Return whether there is a file, unread."""
        return safetensors_io.exists(self._url)

    def read(self, key: Mapping[str, Any], are_valid: Callable[[dict[str, Tensor]], bool]) -> dict[str, Tensor] | None:
        """Return the tensors; ``None`` where there is no file, and with a warning where it does not fit.

        Args:
            key: What they were made of: data, weights and numbers. The file's own has to be the same.
            are_valid: Whether the tensors have the right names, shapes and types, and are finite.
        """
        try:
            file = safetensors_io.read(self._url)
        except FileNotFoundError:
            return None
        except safetensors_io.TensorFileError as error:
            self._warn(f"{self._what} that are saved cannot be read, and are computed again: {error}")
            return None
        if file.header != dict(key) or not are_valid(file.tensors):
            self._warn(f"{self._url} is damaged, or of other data or weights: {self._what} are computed again")
            return None
        return file.tensors

    def write(self, tensors: Mapping[str, Tensor], key: Mapping[str, Any]) -> None:
        """Write the tensors; where that fails, there is a warning.

        Args:
            tensors: The tensors.
            key: What they were made of.
        """
        try:
            safetensors_io.write(self._url, tensors, key)
        except safetensors_io.TensorFileError as error:
            self._warn(f"{self._what} cannot be saved, and will be computed again: {error}")

    @staticmethod
    def _warn(message: str) -> None:
        # Of the caller of what reads or writes, whichever it is.
        warnings.warn(message, stacklevel=4)
