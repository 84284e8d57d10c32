"""HTML pages as a browser takes them apart: what they request and what of them could run."""

from __future__ import annotations

import html.parser
import re

__all__ = ["ParsedPage"]

_STILL = re.compile(r"data:image/(png|webp);base64,")
_URLS = ("src", "href", "srcset", "data", "action")


class ParsedPage(html.parser.HTMLParser):
    """A page.

    Attributes:
        tags: Its tags, in order, but for images whose file is in the page.
        requested: Addresses that it requests or leads to.
        handlers: Attributes that run code.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.requested: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take in a tag."""
        urls = [value or "" for key, value in attrs if key in _URLS]
        if tag == "img" and urls and all(map(_STILL.match, urls)):
            urls = []
        else:
            self.tags.append(tag)
        self.requested += urls
        self.handlers += [key for key, _ in attrs if key.startswith("on")]
