"""Griffe extension that turns the roles of docstrings into Markdown, for the site's reference.

Docstrings name other objects by roles such as ``:class:``, which ``help()`` shows as they are, and have a section
``Example:``. The site needs code in backticks and a section ``Examples:``.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

__all__ = ["DocstringMarkup", "to_markdown"]

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?([^`]+)`")
_EXAMPLE = re.compile(r"^(\s*)Example:$", re.MULTILINE)


def to_markdown(docstring: str) -> str:
    """Return a docstring with its roles as code and its example as a section.

    Example:
        >>> to_markdown("See :meth:`gebm.Trainer.step`.")
        'See `gebm.Trainer.step`.'
    """
    return _EXAMPLE.sub(r"\1Examples:", _ROLE.sub(r"`\1`", docstring))


class DocstringMarkup(Extension):
    """Rewrite the docstring of each object when it is loaded."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
