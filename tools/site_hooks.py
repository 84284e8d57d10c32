"""Hooks of the site: pages that are generated, and links out of ``docs/`` that become links between pages.

The README, the contributing guide, the changelog and the table of speeds are files of the repository outside ``docs/``.
Each is added as a page. The reference of keys is printed by :mod:`pipeline.config.key_reference`.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from types import ModuleType

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

__all__ = ["PAGES", "on_files", "on_page_markdown", "public_names", "relink"]

ROOT = Path(__file__).resolve().parents[1]

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "results/speed.md",
}
"""Pages of the repository outside ``docs/``, and what each is called in the site."""

_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def relink(text: str, source: str, page: str) -> str:
    """Return a page's text with its links between files of the repository as links between pages of the site.

    Args:
        text: Markdown.
        source: Path of the file in the repository, which its links are relative to.
        page: Path of the page in the site.

    Example:
        >>> relink("[a](docs/tutorial.md#top), [b](CONTRIBUTING.md)", "README.md", "index.md")
        '[a](tutorial.md#top), [b](contributing.md)'
        >>> relink("[the README](../README.md)", "docs/tutorial.md", "tutorial.md")
        '[the README](index.md)'
    """

    def replace(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[0]))
        target = PAGES.get(target, target.removeprefix("docs/"))
        return posixpath.relpath(target, posixpath.dirname(page) or ".")

    return _LINK.sub(replace, text)


def public_names() -> str:
    """Return the page of what can be imported from ``gebm`` itself, each name with a link to its description."""
    import gebm

    lines = ["# gebm", "", "::: gebm", "    options:", "      members: false", "      show_root_heading: false", ""]
    lines += ["## Public names", ""]
    for name in sorted(gebm.__all__, key=str.lower):
        value = getattr(gebm, name)
        target = value.__name__ if isinstance(value, ModuleType) else f"{value.__module__}.{value.__qualname__}"
        lines.append(f"- [`{name}`][{target}]")
    return "\n".join(lines) + "\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files of ``docs/``."""
    # The checkout's own packages are documented, whatever else is installed.
    sys.path.insert(0, str(ROOT))
    from pipeline.config import key_reference

    files.append(File.generated(config, "reference/config.md", content=key_reference.markdown()))
    files.append(File.generated(config, "reference/gebm.md", content=public_names()))
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Relink each page that is also read in the repository."""
    path = page.file.src_uri
    sources = {name: source for source, name in PAGES.items()}
    return relink(markdown, sources.get(path, f"docs/{path}"), path)
