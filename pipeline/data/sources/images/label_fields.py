"""Labels in fields of samples: numbers or names, in a member of their own, a JSON object or a column.

Numbers from 0 up are the classes themselves. Other numbers and names are classes in the order of their values.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.data.sources.base import BrokenImage
from pipeline.runtime.errors import UserError
from pipeline.runtime.printable import printable_name
from pipeline.runtime.untrusted import InvalidDocument, Limits, parse_json

__all__ = ["AUTO", "DAMAGED", "MAX_LABEL_BYTES", "NO_LABEL", "LabelColumn", "LabelFields", "to_label"]

AUTO = "auto"
"""Setting of ``data.source.label_field`` by which labels are where they usually are."""

NO_LABEL = None
"""In place of the label of a sample that has none."""

DAMAGED = "\0damaged"
"""In place of a label that is there and cannot be read; no label has such a character."""

_JSON = Limits(num_bytes=2**20, values=20_000, depth=30)
MAX_LABEL_BYTES = _JSON.num_bytes
"""Size of the largest field that is read for a label."""

# Keys of a JSON object that have the label, if none is named.
_KEYS = ("label", "cls", "class")
_MEMBER = "cls"
_MAX_CHARACTERS = 200
# More classes than any data set has: texts that differ from image to image are captions.
_MAX_CLASSES = 2**16
# Class names that a line shows.
_MAX_SHOWN = 10
# In place of the class of a sample without one.
_CODE_WITHOUT, _CODE_DAMAGED = -1, -2
_WHOLE = re.compile(rb"[+-]?\d{1,18}")


class LabelFields:
    """Fields of a sample that its label is read from.

    Args:
        setting: A member's field, such as "cls", or a key of the JSON object in the field "json"; "auto" for ``cls``,
            or one of the usual keys; None to read none.

    Example:
        >>> fields = LabelFields("auto")
        >>> fields.members, fields.parse("cls", b"3"), fields.parse("json", b'{"label": "cat"}')
        (('cls', 'json'), 3, 'cat')
    """

    def __init__(self, setting: str | None) -> None:
        self._keys = _KEYS if setting == AUTO else (setting,)
        first = _MEMBER if setting == AUTO else setting
        self.members: tuple[str, ...] = () if first is None else tuple(dict.fromkeys((first.lower(), "json")))

    def parse(self, field: str, content: bytes) -> int | str | None:
        """Return the label in a field, ``NO_LABEL`` or ``DAMAGED``."""
        if field != "json":
            return _parse_text(content)
        try:
            document = parse_json(content, _JSON)
        except InvalidDocument:
            return DAMAGED
        if not isinstance(document, dict):
            return to_label(document)
        return next((to_label(document[key]) for key in self._keys if document.get(key) is not None), NO_LABEL)


def _parse_text(content: bytes) -> int | str:
    text = content.strip()
    if _WHOLE.fullmatch(text):
        return int(text)
    try:
        return _to_name(text.decode())
    except UnicodeDecodeError:
        return DAMAGED


def to_label(value: Any) -> int | str | None:
    """Return a value of a document or column as a label: whole numbers and short texts are, and nothing else.

    Example:
        >>> to_label(3), to_label(3.0), to_label("cat"), to_label([3]) is DAMAGED, to_label(None) is NO_LABEL
        (3, 3, 'cat', True, True)
    """
    if value is None:
        return NO_LABEL
    if isinstance(value, str):
        return _to_name(value)
    if isinstance(value, (int, float)) and abs(value) < 2**53 and int(value) == value:
        return int(value)
    return DAMAGED


def _to_name(text: str) -> str:
    return text if 0 < len(text) <= _MAX_CHARACTERS and text.isprintable() else DAMAGED


class LabelColumn:
    """Labels of samples, collected one by one in eight bytes each.

    Args:
        url: URL of the source, for messages.
        setting: Setting of ``data.source.label_field``.

    Example:
        >>> column = LabelColumn("shards", "auto")
        >>> for label in ("dog", "cat", "dog"):
        ...     column.append(label, "sample")
        >>> column.finish("cls")
        >>> column.classes, [column.label(index, "sample") for index in range(3)]
        (('cat', 'dog'), [1, 0, 1])
        >>> column.note
        'labels: 2 classes from cls: cat, dog'
    """

    def __init__(self, url: str, setting: str | None) -> None:
        self.classes: tuple[str, ...] | None = None
        self.note = "labels: none, because data.source.label_field=null"
        self._url = url
        self._setting = setting
        self._codes = array("q")
        self._values: dict[int | str, int] = {}
        self._total = self._without = 0
        self._first_without = ""
        self._numbers: np.ndarray | None = None

    def append(self, label: int | str | None, name: str) -> None:
        """Add the label of the next sample, whose name is for messages."""
        self._total += 1
        if label is None or label == DAMAGED:
            self._first_without = self._first_without or name
            self._without += 1
            self._codes.append(_CODE_WITHOUT if label is NO_LABEL else _CODE_DAMAGED)
        elif len(self._values) <= _MAX_CLASSES:
            self._codes.append(self._values.setdefault(label, len(self._values)))

    def skip(self) -> None:
        """Add a sample whose label is of no account, as it is lost."""
        self._codes.append(_CODE_WITHOUT)

    def finish(self, origin: str, names: Sequence[str] | None = None) -> None:
        """Assign a number to each class.

        Args:
            origin: Where the labels are from, for the note.
            names: Names of the classes 0, 1, ... by the publisher, where all labels are such numbers. None where the
                labels say them.

        Raises:
            UserError: If a field was named, and most samples have no label in it.
        """
        if self._setting is None:
            return
        if problem := self._problem():
            if self._setting != AUTO:
                raise UserError(
                    f"data.source.label_field={self._setting} of {self._url} is no label, because {problem}: name "
                    "another field, or set data.source.label_field=null for none"
                )
            self.note = f"labels: none, because {problem}"
            return
        ordered = list(range(len(names))) if names else _order_classes(list(self._values))
        rank = {value: number for number, value in enumerate(ordered)}
        by_code = np.array([rank[value] for value in self._values], np.int64)
        codes = np.frombuffer(self._codes, np.int64)
        self._numbers = np.where(codes < 0, codes, by_code[codes.clip(0)])
        self.classes = tuple(printable_name(str(value), _MAX_CHARACTERS) for value in (names or ordered))
        shown = ", ".join(name[:40] for name in self.classes[:_MAX_SHOWN])
        more = ", ..." if len(self.classes) > _MAX_SHOWN else ""
        self.note = f"labels: {len(self.classes):,} classes from {origin}: {shown}{more}"

    def _problem(self) -> str | None:
        """Return why there are no labels, or None."""
        if len(self._values) > _MAX_CLASSES:
            return f"there are more than {_MAX_CLASSES:,} different ones"
        if 2 * self._without > self._total or not self._total:
            example = printable_name(self._first_without, 100)
            return f"{self._without:,} of {self._total:,} samples have none ({example})"
        return None

    def label(self, index: int, name: str) -> int | None:
        """Return the class of a sample, or None where there are no labels.

        Args:
            index: Index of the sample.
            name: Its name.

        Raises:
            BrokenImage: If other samples have labels and this one has none, or a damaged one.
        """
        if self._numbers is None:
            return None
        number = int(self._numbers[index])
        if number < 0:
            reason = "without a label" if number == _CODE_WITHOUT else "with a damaged label"
            raise BrokenImage(name, f"{reason} (data.source.label_field=null takes images without labels)")
        return number


def _order_classes(values: list[int | str]) -> list[int | str]:
    """Return the classes in order; where all are numbers from 0 up, each at its own index."""
    numbers = [value for value in values if isinstance(value, int)]
    if len(numbers) == len(values) and min(numbers) >= 0 and max(numbers) < _MAX_CLASSES:
        return list(range(max(numbers) + 1))
    return sorted(values, key=lambda value: (isinstance(value, str), value))
