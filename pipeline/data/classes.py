"""Classes of a store's images: their names, and how many images each has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from pipeline.runtime.errors import UserError
from pipeline.runtime.printable import printable_name

__all__ = ["Classes"]

# Names that a message lists.
_MAX_SHOWN = 10


@dataclass(frozen=True)
class Classes:
    """Classes that a conditional model learns.

    Args:
        names: Their names; a label is the index of one.
        counts: Number of images of each.

    Example:
        >>> classes = Classes(("cat", "dog", "7"), (5, 3, 2))
        >>> classes.label("dog"), classes.label("0"), classes.label("7"), len(classes)
        (1, 0, 2, 3)
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    def label(self, text: str) -> int:
        """Return the label of a class by its name, or by its number where no class has that name.

        Args:
            text: Name or number.

        Raises:
            UserError: There is no such class, or it has no images.
        """
        label = self.names.index(text) if text in self.names else _number(text)
        if label is None or not 0 <= label < len(self):
            raise UserError(f"class={printable_name(text, 100)}: there is no such class; {self.describe()}")
        if not self.counts[label]:
            raise UserError(
                f"class={printable_name(text, 100)}: the model was trained on no image of that class; choose another"
            )
        return label

    def describe(self) -> str:
        """Return the classes in words, the first of many."""
        shown = ", ".join(printable_name(name, 40) for name in self.names[:_MAX_SHOWN])
        more = ", ..." if len(self) > _MAX_SHOWN else ""
        return f"classes are 0 to {len(self) - 1}: {shown}{more}"

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"names": list(self.names), "counts": list(self.counts)}

    @classmethod
    def of(cls, names: Sequence[str], counts: Sequence[int]) -> Self:
        """Return the classes of two lists."""
        return cls(tuple(names), tuple(counts))


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
