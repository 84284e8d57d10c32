"""Content of a checkpoint: its files, how they are made and read without running anything, and what they fit.

The folder of a checkpoint has three files::

    model.safetensors      the GEBM's state, as torch names it
    training.safetensors   optimizers, moving average, buffers of the schedules
    state.json             base step, position in the data, random state, config

Tensors are safetensors and the rest is JSON: reading an untrusted file runs no code.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar

import fsspec
import torch
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from gebm.classes import MAX_CLASSES
from pipeline.data.classes import Classes
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import as_user_error, filesystem
from pipeline.runtime.untrusted import CHECKPOINT, InvalidDocument, parse_json, read_bytes

__all__ = [
    "FILES",
    "Checkpoint",
    "State",
    "StrictDocument",
    "encode",
    "load_state",
    "parse",
    "parse_state",
    "read_checkpoint",
    "read_json",
    "require_same_classes",
    "require_shapes",
]

FORMAT = 1
FILES = ("model.safetensors", "training.safetensors", "state.json")
"""Names of a checkpoint's files."""

_TENSOR = "__tensor__"


class StrictDocument(BaseModel):
    """Untrusted JSON object whose values have to be of the declared types."""

    model_config = ConfigDict(strict=True, frozen=True)


_Document = TypeVar("_Document", bound=StrictDocument)


class _Position(StrictDocument):
    """Position in the data, as a trial saves it; earlier versions read all data in one lane."""

    epoch: NonNegativeInt
    step: NonNegativeInt
    lanes: PositiveInt = 1


class _Classes(StrictDocument):
    """Classes of a conditional model, as a trial saves them."""

    names: Annotated[list[str], Field(min_length=1, max_length=MAX_CLASSES)]
    counts: Annotated[list[NonNegativeInt], Field(min_length=1, max_length=MAX_CLASSES)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.names) != len(self.counts) or not sum(self.counts):
            raise ValueError("there should be a count for each name, and not all zero")
        return self


class State(StrictDocument):
    """Content of ``state.json``, as far as resuming a run relies on it.

    The learning rates' factor was called ``rates`` by earlier versions.
    """

    base_step: NonNegativeInt
    score: float | None = None
    sha256: dict[str, str]
    training: Any
    position: _Position | None = None
    classes: _Classes | None = None
    lr_scale: Annotated[FiniteFloat, Field(gt=0)] = Field(1.0, validation_alias=AliasChoices("lr_scale", "rates"))


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint.

    Attributes:
        url: Its folder.
        model: The GEBM's ``state_dict``.
        training: Everything else that training resumes from, nested as it was saved.
        state: Base step, position in the data, metrics, the whole config and what else was saved, as JSON has them,
            and ``lr_scale``, the factor of the learning rates (default: 1).
    """

    url: str
    model: dict[str, torch.Tensor]
    training: dict[str, Any]
    state: dict[str, Any]

    @property
    def classes(self) -> Classes | None:
        """Classes of a conditional model; ``None`` of others."""
        classes = self.state.get("classes")
        return None if classes is None else Classes.of(classes["names"], classes["counts"])


def encode(
    base_step: int, model: dict[str, torch.Tensor], training: dict[str, Any], state: dict[str, Any], score: float | None
) -> dict[str, bytes]:
    """Return the files of a checkpoint: name to content.

    Args:
        base_step: Base steps done.
        model: The GEBM's ``state_dict``.
        training: Nested dicts and lists of tensors, numbers, strings and None.
        state: Anything JSON can hold.
        score: The lower the better; ``None``, or not finite, for a checkpoint without one.
    """
    tensors: dict[str, torch.Tensor] = {}
    outline = _flatten(training, "", tensors)
    contents = {
        "model.safetensors": save_tensors(_contiguous(model)),
        "training.safetensors": save_tensors(_contiguous(tensors)),
    }
    document = {
        "format": FORMAT,
        "base_step": base_step,
        "score": score if score is not None and math.isfinite(score) else None,
        # A folder whose files were copied or deleted in part does not pass for a whole one.
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        **state,
        "training": outline,
    }
    return {**contents, "state.json": json.dumps(document, indent=1).encode()}


def read_checkpoint(url: str) -> Checkpoint:
    """Read the checkpoint of a folder.

    Args:
        url: The folder, which has a ``state.json``.

    Raises:
        UserError: It is damaged, or of another format.
    """
    files, path = filesystem(url)
    document = read_json(files, f"{path}/state.json")
    if document.get("format") != FORMAT:
        raise UserError(f"{url} has checkpoint format {document.get('format')}; this version reads {FORMAT}")
    state = parse_state(document, url)
    tensors = {name: _read_tensors(files, f"{path}/{name}", f"{url}/{name}", state) for name in FILES[:2]}
    try:
        training = _unflatten(state.training, tensors["training.safetensors"])
    except KeyError as error:
        raise UserError(f"{url} is incomplete: {error} is missing; take another checkpoint") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{url}/state.json is damaged ({error}); take another checkpoint") from None
    rest = {key: value for key, value in document.items() if key not in ("training", "rates")}
    return Checkpoint(url, tensors["model.safetensors"], training, {**rest, "lr_scale": state.lr_scale})


def load_state(module: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into a model.

    Args:
        module: The model the config describes.
        checkpoint: The weights.

    Raises:
        UserError: The checkpoint is of another architecture.
    """
    require_shapes(module, checkpoint)
    module.load_state_dict(checkpoint.model)


def require_same_classes(url: str, trained: Classes | None, classes: Classes | None) -> None:
    """Refuse a checkpoint whose classes are not those of the data, by which labels would change their meaning.

    Args:
        url: The checkpoint's folder.
        trained: Its classes.
        classes: Classes of the data; ``None`` where the networks are not conditional.

    Raises:
        UserError: The classes are others.
    """
    if classes is not None and trained is not None and classes.names != trained.names:
        raise UserError(
            f"{url} is of other classes than the data: its {trained.describe()}; and of the data "
            f"{classes.describe()}; give the store that it was trained on"
        )


def require_shapes(module: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint of another architecture; the model may be on the device ``meta``, where it takes no memory.

    Raises:
        UserError: A tensor has another shape, or is missing.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    saved = {name: tuple(tensor.shape) for name, tensor in checkpoint.model.items()}
    if expected != saved:
        different = sorted(name for name in expected.keys() | saved.keys() if expected.get(name) != saved.get(name))
        name = different[0]
        raise UserError(
            f"{checkpoint.url} is of another architecture: {name} is {saved.get(name, 'absent')} there and "
            f"{expected.get(name, 'absent')} here ({len(different)} differ); set model.* and data.* as it was trained"
        )


def _read_tensors(files: fsspec.AbstractFileSystem, path: str, url: str, state: State) -> dict[str, torch.Tensor]:
    """Read one of a checkpoint's files of tensors.

    Raises:
        UserError: It is missing, is not the file that was saved, or is no safetensors file.
    """
    folder, _, name = url.rpartition("/")
    with as_user_error(folder):
        try:
            content = files.cat_file(path)
        except FileNotFoundError:
            raise UserError(f"{folder} is incomplete: {name} is missing; take another checkpoint") from None
    # fsspec declares text as well, which a whole file never is.
    content = bytes(content) if not isinstance(content, str) else content.encode()
    if hashlib.sha256(content).hexdigest() != state.sha256.get(name):
        raise UserError(f"{url} is damaged: not what was saved; take another checkpoint")
    try:
        # Each tensor that the header names is an object, however few bytes it has.
        parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")], CHECKPOINT)
        return load_tensors(content)
    except (SafetensorError, InvalidDocument) as error:
        raise UserError(f"{url} is damaged ({error}); take another checkpoint") from None


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _flatten(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return the nesting with each tensor moved to ``tensors`` and a reference in its place; keys keep their type."""
    if isinstance(value, torch.Tensor):
        # Numbered, since the keys 1 and "1" make the same path.
        name = f"{len(tensors):05d}{path}"
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, dict):
        return {"items": [[key, _flatten(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_flatten(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
    return value


def _unflatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {key: _unflatten(item, tensors) for key, item in value["items"]}
    if isinstance(value, list):
        return [_unflatten(item, tensors) for item in value]
    return value


def read_json(files: fsspec.AbstractFileSystem, path: str) -> dict[str, Any]:
    """Return an untrusted JSON object.

    Raises:
        UserError: It is damaged, or larger than a checkpoint's may be.
    """
    try:
        with as_user_error(files.unstrip_protocol(path), InvalidDocument):
            content = read_bytes(files, path, CHECKPOINT)
        document = parse_json(content, CHECKPOINT)
    except InvalidDocument as error:
        raise UserError(f"{path} is damaged: {error}; take another checkpoint") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object; take another checkpoint")
    return document


def parse_state(document: Any, url: str) -> State:
    """Check the ``state.json`` of a checkpoint.

    Raises:
        UserError: It does not fit.
    """
    return parse(State, document, f"{url}/state.json", "take another checkpoint")


def parse(model: type[_Document], document: Any, url: str, advice: str) -> _Document:
    """Check an untrusted JSON document against a model.

    Raises:
        UserError: It does not fit; one line names the first key that does not.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # Only the declared field: what is inside of it may be named by anybody, over several lines.
        field = "".join(map(str, first["loc"][:1]))
        raise UserError(f"{url} is damaged ({field}: {first['msg']}); {advice}") from None
