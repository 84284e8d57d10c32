"""Entries of a sweep's journal, as models, and the files that they may name.

The journal is a file among the results, and the driver that resumes a sweep sends its entries with its own credentials.
The journal is untrusted for that reason: an entry that no sweep can have written is refused, and a file is named
relative to the sweep's folder and cannot be outside of it.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.runtime.filesystem import filesystem, is_local
from pipeline.runtime.untrusted import CONFIG
from pipeline.tracking.journal import PermanentError

__all__ = [
    "Dataset",
    "DatasetEntry",
    "EndEntry",
    "Entry",
    "FileEntry",
    "ImageEntry",
    "MetricsEntry",
    "ModelEntry",
    "StartEntry",
    "TagsEntry",
    "ViewEntry",
    "parse_entry",
    "read_artifact",
]

# Most characters of a name that becomes a file's, and of any other text.
_MAX_NAME, _MAX_TEXT = 200, 2**16


def _is_name(text: str) -> bool:
    """Return whether a text is a relative path without ``..``, and could be a file's name."""
    parts = PurePosixPath(text).parts
    return (
        bool(parts)
        and "://" not in text
        and not text.startswith("/")
        and ".." not in parts
        and text.isprintable()
        and all(len(part) <= _MAX_NAME for part in parts)
        and len(text) <= 4 * _MAX_NAME
    )


def _require_name(text: str) -> str:
    if not _is_name(text):
        raise ValueError("not a relative path")
    return text


def _require_storable(text: str) -> str:
    """Refuse a text that no tracker can store: with a lone surrogate, which JSON can have, or a NUL character."""
    if "\0" in text:
        raise ValueError("a text with a NUL character")
    # Its UnicodeEncodeError is a ValueError.
    text.encode()
    return text


# Steps, times in milliseconds and sizes.
_Count = Annotated[int, Field(ge=0, le=2**53)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Text = Annotated[str, Field(max_length=_MAX_TEXT), AfterValidator(_require_storable)]
_Name = Annotated[str, AfterValidator(_require_name)]
_TrialName = Annotated[str, Field(pattern=r"^[0-9]{3,9}$")]


class _Model(BaseModel):
    """Base of the models: no value is converted, and keys of a later version are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Entry(_Model):
    """Base of the entries: the trial whose run is meant, or ``None`` for the sweep's own run."""

    trial: _TrialName | None


class StartEntry(_Entry):
    """Start of a trial's run, with its whole config as YAML."""

    kind: Literal["start"]
    params: dict[_Text, _Text]
    tags: dict[_Text, _Text]
    time: _Count
    # An entry of an earlier version has none.
    config: Annotated[str, Field(max_length=CONFIG.num_bytes), AfterValidator(_require_storable)] = ""


class MetricsEntry(_Entry):
    """Metrics of one step."""

    kind: Literal["metrics"]
    metrics: dict[_Text, _Number]
    step: _Count
    time: _Count


class FileEntry(_Entry):
    """A file of the sweep's folder, and the folder of the run's artifacts that it goes to."""

    kind: Literal["file"]
    file: _Text
    folder: _Name | None


class ImageEntry(_Entry):
    """An image of the sweep's folder, on the slider ``key`` of MLflow's UI."""

    kind: Literal["image"]
    file: _Text
    key: _Name
    step: _Count
    time: _Count


class Dataset(_Model):
    """A store, as :func:`pipeline.tracking.provenance.describe_dataset` describes it."""

    name: _Text
    url: _Text
    checksum: _Text
    num_samples: _Count
    sample_shape: list[_Count]
    dtype: Literal["uint8", "float32"]
    num_shards: _Count
    num_bytes: _Count


class DatasetEntry(_Entry):
    """Data set of a run."""

    kind: Literal["data"]
    data: Dataset


class ModelEntry(_Entry):
    """A checkpoint to register as a model; see :func:`pipeline.tracking.registry.register`."""

    kind: Literal["model"]
    name: _Text
    checkpoint: _Text
    sampler: dict[_Text, Any]
    base_step: _Count
    description: _Text
    tags: dict[_Text, _Text]


class TagsEntry(_Entry):
    """Tags of a run, its description among them."""

    kind: Literal["tags"]
    tags: dict[_Text, _Text]


class EndEntry(_Entry):
    """End of a run, and the name that it has from then on; an entry of an earlier version has none."""

    kind: Literal["end"]
    status: Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]
    time: _Count
    name: Annotated[str, Field(max_length=_MAX_NAME), AfterValidator(_require_storable)] | None = None


class ViewEntry(_Entry):
    """View of the sweep's trials, as JSON, which MLflow keeps in a tag of the experiment."""

    kind: Literal["view"]
    view: Annotated[str, Field(max_length=5000), AfterValidator(_require_storable)]


Entry = (
    StartEntry | MetricsEntry | FileEntry | ImageEntry | DatasetEntry | ModelEntry | TagsEntry | EndEntry | ViewEntry
)
_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])


def parse_entry(entry: dict[str, Any]) -> Entry:
    """Parse an entry of the journal.

    Args:
        entry: The entry, as JSON has it.

    Raises:
        PermanentError: When no sweep can have written it: its kind is unknown, or a field is missing or invalid.

    Example:
        >>> parse_entry({"kind": "end", "trial": "007", "status": "FINISHED", "time": 1}).status
        'FINISHED'
        >>> parse_entry({"kind": "end", "trial": "007", "status": 3, "time": 1})
        Traceback (most recent call last):
        ...
        pipeline.tracking.journal.PermanentError: invalid journal entry (status of kind end)
    """
    try:
        return _ENTRY.validate_python(entry)
    except ValidationError as error:
        # Kind and field are names of the models. What is below them, and the values, may be anything.
        location = error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"][:2]
        field = f"{location[1]} of kind {location[0]}" if len(location) == 2 else "kind"
        raise PermanentError(f"invalid journal entry ({field})") from None


def read_artifact(folder: str, name: str) -> bytes:
    """Read a file of the sweep's folder.

    Args:
        folder: The sweep's folder, behind any fsspec URL.
        name: Name of the file, from :func:`pipeline.tracking.locations.relative_place`.

    Raises:
        PermanentError: When the name leads out of the folder, by ``..`` or by a link.
        OSError: When there is no such file.

    Example:
        >>> read_artifact("memory://doctest/sweep", "../../secret")
        Traceback (most recent call last):
        ...
        pipeline.tracking.journal.PermanentError: a file outside of the sweep's folder is not sent: ../../secret
    """
    files, root = filesystem(folder)
    inside = _is_name(name)
    if inside and is_local(files):
        inside = Path(root, name).resolve().is_relative_to(Path(root).resolve())
    if not inside:
        raise PermanentError(f"a file outside of the sweep's folder is not sent: {name}")
    # fsspec declares text as well, which no file system returns here.
    return files.cat_file(f"{root}/{name}")  # pyright: ignore[reportReturnType]
