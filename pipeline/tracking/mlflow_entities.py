"""What MLflow's UI wants in a form of its own: images that it shows over training, and the data that a run has seen."""

from __future__ import annotations

import io
import json
import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.data.schema import TensorDatasetSchema
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from PIL import Image

from pipeline.tracking.journal import PermanentError

__all__ = ["IMAGES", "dataset_input", "write_image"]

IMAGES = "images"  # the folder of a run's artifacts that the UI looks for images in

_THUMBNAIL = 256  # pixels on the longer side, as MLflow itself makes them


def write_image(content: bytes, folder: Path, *, run_id: str, key: str, step: int, time: int) -> list[Path]:
    """Write an image under the names by which MLflow's UI finds it, and its thumbnail.

    ``MlflowClient.log_image`` puts a random number into them, and so would show an image twice that is sent twice. Here
    it is a function of what the image is.

    Args:
        content: a PNG file.
        folder: where to write.
        run_id: the run it is of.
        key: what it shows: images of one key make one slider.
        step: the base step, at which it stands on the slider.
        time: when it was made, in milliseconds.

    Returns:
        The two files.

    Raises:
        Refused: it is no image.

    Example:
        >>> import tempfile
        >>> picture = io.BytesIO()
        >>> Image.new("RGB", (600, 300)).save(picture, "PNG")
        >>> told = {"run_id": "0a1b", "key": "base_and_gebm", "step": 200, "time": 1_700_000_000_000}
        >>> for path in write_image(picture.getvalue(), Path(tempfile.mkdtemp()), **told):
        ...     print(path.name[:44], path.suffix, Image.open(path).size)
        base_and_gebm+step+200+timestamp+17000000000 .png (600, 300)
        base_and_gebm+step+200+timestamp+17000000000 .webp (256, 128)
    """
    number = uuid.uuid5(uuid.NAMESPACE_URL, f"{run_id}/{key}/{step}/{time}")
    stem = f"{re.sub('[^a-zA-Z0-9_. -]', '-', key)}+step+{step}+timestamp+{time}+{number}"
    whole, small = folder / f"{stem}.png", folder / f"{stem}+compressed.webp"
    try:
        with Image.open(io.BytesIO(content)) as opened:
            image = opened.convert("RGB")
    except Exception as error:  # Pillow has many for one file
        raise PermanentError(f"the picture {key} of base step {step} is no image") from error
    whole.write_bytes(content)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    image.save(small)
    return [whole, small]


def dataset_input(data: dict[str, Any]) -> DatasetInput:
    """A store as MLflow's data set.

    Args:
        data: from :func:`pipeline.tracking.provenance.describe_dataset`.

    Example:
        >>> told = {"name": "digits-8", "checksum": "0123456789abcdef", "url": "s3://bucket/digits-8",
        ...         "num_samples": 1797, "sample_shape": [1, 8, 8], "dtype": "uint8", "num_shards": 1, "num_bytes": 9}
        >>> found = dataset_input(told).dataset
        >>> found.name, found.digest, found.source_type, found.source
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
        # As MLflow names them, so that mlflow.data.get_source finds the place.
        source_type="http" if web else scheme.replace("file", "local"),
        source=json.dumps({"url" if web else "uri": url}),
        schema=json.dumps(TensorDatasetSchema(Schema([numbers])).to_dict()),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])
