"""Registry of the sources of data: a function of a URL and a split that opens one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gebm.registry import Registry

__all__ = ["NAMES", "register"]

NAMES: Registry[Callable[..., Any]] = Registry(
    "data source",
    given=("url", "split", "label_field"),
    facts={"of": "images", "without_url": "", "labels": ()},
    choices={"of": ("images", "rows")},
    has_settings=False,
)
"""The sources by their names, which are values of ``data.source.kind``.

Their facts: whether they are of ``images`` or ``rows``; why they have no URL, where they have none; and the names of
the classes that labels number, where they are known beforehand.
"""

register = NAMES.register
"""Register a function of ``url``, ``split`` and ``label_field``, as far as it has them.

One that has a ``label_field`` gets a list of URLs where ``data.source.url`` is one, and the ``label_field`` where it is
set: a name, or ``None`` for no labels.

Of images it returns a sequence, with ``len()`` and an index, or yields no more than memory holds: images, or pairs of
an image and its label. An image is uint8 (H, W) or (H, W, C), as an array, a tensor or a Pillow image, or the bytes of
a file; a label is the class's number. Of rows it returns an array (N, D).
"""
