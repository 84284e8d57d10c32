"""Weights of a trained pair from elsewhere: which half a set of tensors is, and as what its own networks hold it.

A family of networks that takes weights under other names than those of its modules is registered with a function that
reads them, as ``weights``; of any other family the names are those of its modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

__all__ = ["Half", "Reader", "Reading", "read_as_they_are"]

Half = Literal["base", "energy"]
"""Half of a pair."""


@dataclass(frozen=True)
class Reading:
    """A half of a trained pair, as a family of networks has read it.

    Args:
        state: Tensors by the names that they have in the family's module, for ``load_state_dict``.
        settings: Settings of the family that build a module for them.
        sizes: Those of ``resolution``, ``channels`` and ``latent_dim`` that the tensors say, and ``num_classes`` of
            conditional networks, whose reader has to say it.
        names: What names of ``state``, or of the modules that they are in, are called in the file.
        left: Names in the file of tensors that the module has no use for.
        kind: What it was read as, in a few words.
    """

    state: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    kind: str = ""

    def called(self, name: str) -> str:
        """Return what a tensor is called in the file, or would be.

        Args:
            name: Its name in the family's module.

        Example:
            >>> Reading({}, names={"block1.conv": "blocks.0.conv0"}).called("block1.conv.bias")
            'blocks.0.conv0.bias'
        """
        layer, leaf = name, ""
        while layer not in self.names and "." in layer:
            layer, _, last = layer.rpartition(".")
            leaf = f".{last}{leaf}"
        return f"{self.names[layer]}{leaf}" if layer in self.names else name


Reader = Callable[[Half, Mapping[str, Tensor]], Reading]
"""Reads tensors by their names in a file as a half; raises ValueError if they are none."""


def read_as_they_are(half: Half, tensors: Mapping[str, Tensor]) -> Reading:
    """Read tensors whose names are those of the family's own module.

    Args:
        half: Which half they are to be.
        tensors: Tensors by their names.

    Example:
        >>> read_as_they_are("base", {}).state
        {}
    """
    return Reading(dict(tensors), names={name: name for name in tensors}, kind=f"this family's {half}")
