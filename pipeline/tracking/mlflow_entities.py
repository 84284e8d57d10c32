"""MLflow entities with a format of their own: images that the UI shows over training, and the data set of a run."""

from __future__ import annotations

import io
import json
import re
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.data.schema import TensorDatasetSchema
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from PIL import Image, ImageOps

from pipeline.tracking.journal import PermanentError

__all__ = ["IMAGES", "dataset_input", "param_names", "write_image"]

IMAGES = "images"
"""Folder of a run's artifacts in which the UI looks for images."""

# Characters of a parameter's name that MLflow takes; a slash means a folder there.
_NOT_IN_NAMES = re.compile(r"[^\w.\- :]")
_MAX_NAME = 200
# Pixels of a thumbnail. A card of MLflow's UI scales it to a square, of which some two fifths are seen.
_CARD_WIDTH, _CARD_HEIGHT = 702, 290


def param_names(keys: Iterable[str]) -> list[str]:
    """Return names that MLflow takes for the parameters of a run, in which keys may have any character.

    Args:
        keys: Dotted keys, each once.

    Returns:
        A name for each, in their order, and no name twice.

    Example:
        >>> param_names(["train.base_lr", "spaces.my#space", "spaces.my/space"])
        ['train.base_lr', 'spaces.my_space', 'spaces.my_space_2']
    """
    names: dict[str, None] = {}
    for key in keys:
        plain = _NOT_IN_NAMES.sub("_", key)[:_MAX_NAME].rstrip(". ") or "_"
        name, number = plain, 2
        while name in names:
            name, number = f"{plain}_{number}", number + 1
        names[name] = None
    return list(names)


def write_image(content: bytes, folder: Path, *, run_id: str, key: str, step: int, time: int) -> list[Path]:
    """Write an image and its thumbnail under the names by which MLflow's UI finds them.

    ``MlflowClient.log_image`` puts a random number into the names, so that an image that is sent twice would be shown
    twice. Here the number is a function of the run, the key, the step and the time.

    Args:
        content: A PNG file.
        folder: Folder to write to.
        run_id: Run of the image.
        key: Name of the slider: images of one key share one.
        step: Base step, its position on the slider.
        time: Time at which it was made, in milliseconds.

    Returns:
        The two files.

    Raises:
        PermanentError: When it is not an image.

    Example:
        >>> import tempfile
        >>> picture = io.BytesIO()
        >>> Image.new("RGB", (600, 300)).save(picture, "PNG")
        >>> fields = {"run_id": "0a1b", "key": "base_and_gebm", "step": 200, "time": 1_700_000_000_000}
        >>> for path in write_image(picture.getvalue(), Path(tempfile.mkdtemp()), **fields):
        ...     print(path.name[:44], path.suffix, Image.open(path).size)
        base_and_gebm+step+200+timestamp+17000000000 .png (600, 300)
        base_and_gebm+step+200+timestamp+17000000000 .webp (702, 702)
    """
    number = uuid.uuid5(uuid.NAMESPACE_URL, f"{run_id}/{key}/{step}/{time}")
    stem = f"{re.sub('[^a-zA-Z0-9_. -]', '-', key)}+step+{step}+timestamp+{time}+{number}"
    whole, small = folder / f"{stem}.png", folder / f"{stem}+compressed.webp"
    try:
        with Image.open(io.BytesIO(content)) as opened:
            image = opened.convert("RGB")
    # Pillow raises exceptions of many kinds for a damaged file.
    except Exception as error:
        raise PermanentError(f"the picture {key} of base step {step} is no image") from error
    whole.write_bytes(content)
    _thumbnail(image).save(small)
    return [whole, small]


def _thumbnail(image: Image.Image) -> Image.Image:
    """Return a square with the picture in its upper part, which a card of MLflow's UI shows without scrolling."""
    picture = ImageOps.contain(image, (_CARD_WIDTH, _CARD_HEIGHT))
    card = Image.new("RGBA", (_CARD_WIDTH, _CARD_WIDTH))
    card.paste(picture, ((_CARD_WIDTH - picture.width) // 2, 0))
    return card


def dataset_input(data: dict[str, Any]) -> DatasetInput:
    """Return a store as MLflow's data set.

    Args:
        data: The store, from :func:`pipeline.tracking.provenance.describe_dataset`.

    Example:
        >>> data = {"name": "digits-8", "checksum": "0123456789abcdef", "url": "s3://bucket/digits-8",
        ...         "num_samples": 1797, "sample_shape": [1, 8, 8], "dtype": "uint8", "num_shards": 1, "num_bytes": 9}
        >>> dataset = dataset_input(data).dataset
        >>> dataset.name, dataset.digest, dataset.source_type, dataset.source
        ('digits-8', '0123456789abcdef', 's3', '{"uri": "s3://bucket/digits-8"}')
    """
    url, scheme = data["url"], data["url"].partition("://")[0] if "://" in data["url"] else "local"
    web = scheme in ("http", "https")
    numbers = TensorSpec(np.dtype(data["dtype"]), (-1, *data["sample_shape"]))
    profile = {
        "num_rows": data["num_samples"],
        "num_elements": data["num_samples"] * int(np.prod(data["sample_shape"])),
        "num_shards": data["num_shards"],
        "num_bytes": data["num_bytes"],
    }
    dataset = Dataset(
        name=data["name"],
        digest=data["checksum"],
        # MLflow's names, so that mlflow.data.get_source resolves the URL.
        source_type="http" if web else scheme.replace("file", "local"),
        source=json.dumps({"url" if web else "uri": url}),
        schema=json.dumps(TensorDatasetSchema(Schema([numbers])).to_dict()),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])
