"""Shell of a page that is one self-contained HTML file: text, galleries of pictures, and tables that sort."""

from __future__ import annotations

import base64
import html
from pathlib import Path

from markdown_it import MarkdownIt

from pipeline.report.escaping import escape
from pipeline.report.pictures import Gallery
from pipeline.runtime.printable import printable

__all__ = ["document", "gallery_section", "image", "render"]

# What a browser may load for the page: nothing of any address. Plotly saves a chart by way of a blob.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"


def document(title: str, body: str, script: str = "") -> bytes:
    """Return a whole page, whose tables sort.

    Args:
        title: Its title, as text.
        body: Its body, as HTML.
        script: JavaScript that the body needs (default: none).
    """
    folder = Path(__file__).parent
    style, sorting = ((folder / f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    scripts = f"<script>{script}</script>" if script else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(printable(title))}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><style>{style}</style>{scripts}'
        f"</head><body>{body}<script>{sorting}</script></body></html>"
    ).encode()


def render(text: str) -> str:
    """Return Markdown as HTML; HTML in the text is shown as text."""
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(text)


def gallery_section(gallery: Gallery) -> str:
    """Return a section of pictures side by side, and a line for each that is missing."""
    shown = [
        f"<figure>{image(media_type, content, caption or gallery.title)}"
        f"<figcaption>{html.escape(printable(caption))}</figcaption></figure>"
        for caption, media_type, content in gallery.pictures
    ]
    missing = "\n".join(f"- {escape(line)}" for line in gallery.missing)
    return (
        f'<section id="{gallery.key}"><h2>{html.escape(printable(gallery.title))}</h2>'
        f'<div class="gallery">{"".join(shown)}</div>{render(missing)}</section>'
    )


def image(media_type: str, content: bytes, alt: str) -> str:
    """Return an image whose file is in the page.

    Args:
        media_type: Such as ``image/png``.
        content: The file.
        alt: What it shows, for those who do not see it.
    """
    source = f"data:{media_type};base64,{base64.b64encode(content).decode()}"
    return f'<img alt="{html.escape(printable(alt))}" src="{source}">'
