"""Sample grids of a sweep's folder, read within limits and encoded anew: anybody may have written them."""

from __future__ import annotations

import io
import warnings
from typing import Any

from PIL import Image, UnidentifiedImageError

from pipeline.compare.groups import Group
from pipeline.runtime.errors import one_line
from pipeline.runtime.filesystem import filesystem
from pipeline.runtime.untrusted import Limits, read_bytes

__all__ = ["read_grid", "sample_grid"]

_PICTURE = Limits(num_bytes=2**23, values=0)
_MAX_PIXELS = 2**24
# Side of a picture on the page.
_MAX_SIDE = 600
# Of images, points and densities.
_OF_GEBM = ("gebm.png", "base_and_gebm.png", "marginals.png")
_OF_BASE = ("base.png", *_OF_GEBM[1:])


def sample_grid(group: Group, seed: int) -> tuple[bytes | None, str]:
    """Return a picture of the samples of a run's best checkpoint.

    Args:
        group: The group.
        seed: Seed of the run.

    Returns:
        A PNG file, or None; and its caption, which says why there is none.
    """
    trial = group.runs[seed]
    caption = f"{group.model}, {group.networks}, {group.variant}, seed {seed}, trial {trial.name}"
    sweep = next(sweep for sweep in group.sweeps if any(one is trial for one in sweep.results.records.trials))
    step = int(trial.best_metrics.get("base_step", 0))
    folder = f"{sweep.folder}/trials/{trial.name}/figures/step-{step:08d}"
    for name in _OF_BASE if group.is_gan else _OF_GEBM:
        try:
            return read_grid(f"{folder}/{name}"), caption
        except FileNotFoundError:
            continue
        # Each file system has exceptions of its own, and so has each thing that can be wrong with a picture.
        except Exception as error:
            return None, f"{caption}: its picture cannot be read ({one_line(error, limit=100)})"
    return None, f"{caption}: no picture"


def read_grid(url: str) -> bytes:
    """Read a PNG file, and encode it anew, no larger than a page shows it.

    Args:
        url: The file, behind any fsspec URL.

    Raises:
        FileNotFoundError: There is none.
        Exception: It is no such picture, or larger than a picture of samples is.
    """
    files, path = filesystem(url)
    content = read_bytes(files, path, _PICTURE)
    made: Any = io.BytesIO()
    with warnings.catch_warnings():
        # Pillow's own limit, which is higher than this one, warns first.
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
                if picture.width * picture.height > _MAX_PIXELS:
                    raise ValueError(f"it has {picture.width} x {picture.height} pixels")
                plain = picture.convert("RGB")
        except UnidentifiedImageError:
            raise ValueError("it is no PNG file") from None
    plain.thumbnail((_MAX_SIDE, _MAX_SIDE))
    plain.save(made, format="PNG", optimize=True)
    return made.getvalue()
