"""Checkpoints: written whole before they have a name, read without running anything, resumed exactly.

A checkpoint is a folder behind any fsspec URL::

    <trial>/checkpoints/step-00001000/model.safetensors      the GEBM's state, as torch names it
                                      training.safetensors   optimizers, moving average, buffers of the schedules
                                      state.json             base step, position in the data, random state, config
    <trial>/checkpoints/index.json                           the names of the last and of the best checkpoint

Its files are written first and its name gets into ``index.json`` last, so a checkpoint that was cut off is never
found. A folder that the index names is never written to: a trial that repeats a base step, as in population-based
training, saves it as ``step-00001000-2``. Tensors are safetensors and the rest is JSON: reading an untrusted file runs
no code. Between evaluations checkpoints have no score, and are called ``interim-00000600``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar, cast

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
from pipeline.runtime.filesystem import as_user_error, filesystem, write_file
from pipeline.runtime.untrusted import CHECKPOINT, InvalidDocument, parse_json, read_bytes

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "load_state",
    "read",
    "require_same_classes",
    "require_shapes",
]

FORMAT = 1
_FILES = ("model.safetensors", "training.safetensors", "state.json")
_TENSOR = "__tensor__"
# A name that led elsewhere could have another folder read, or deleted.
_NAME = re.compile(r"(step|interim)-[0-9]{8,}(-[0-9]+)?")


class _Strict(BaseModel):
    """Untrusted JSON object whose values have to be of the declared types."""

    model_config = ConfigDict(strict=True, frozen=True)


_Document = TypeVar("_Document", bound=_Strict)


class _Index(_Strict):
    """Content of ``index.json``: names of the checkpoints that are kept, and the best one's score."""

    last: Annotated[str, Field(pattern=f"^{_NAME.pattern}$")] | None = None
    best: Annotated[str, Field(pattern=f"^{_NAME.pattern}$")] | None = None
    score: FiniteFloat | None = None


class _Position(_Strict):
    """Position in the data, as a trial saves it; earlier versions read all data in one lane."""

    epoch: NonNegativeInt
    step: NonNegativeInt
    lanes: PositiveInt = 1


class _Classes(_Strict):
    """Classes of a conditional model, as a trial saves them."""

    names: Annotated[list[str], Field(min_length=1, max_length=MAX_CLASSES)]
    counts: Annotated[list[NonNegativeInt], Field(min_length=1, max_length=MAX_CLASSES)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.names) != len(self.counts) or not sum(self.counts):
            raise ValueError("there should be a count for each name, and not all zero")
        return self


class _State(_Strict):
    """Content of ``state.json``, as far as this module and the training loop rely on it.

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


class Checkpoints:
    """Checkpoints of one trial, of which the last and the best are kept.

    Args:
        url: The trial's folder, behind any fsspec URL.
        verify: Called before a checkpoint gets its name; raises where this process may not write there any more.

    Raises:
        UserError: The index cannot be read, or is damaged.

    Example:
        >>> checkpoints = Checkpoints("memory://doctest/trial")
        >>> checkpoints.last is None
        True
        >>> _ = checkpoints.save(10, model={"w": torch.ones(2)}, training={}, state={}, score=3.0)
        >>> _ = checkpoints.save(20, model={"w": torch.ones(2)}, training={}, state={}, score=5.0)
        >>> checkpoints.last, checkpoints.best
        ('memory://doctest/trial/checkpoints/step-00000020', 'memory://doctest/trial/checkpoints/step-00000010')
    """

    def __init__(self, url: str, verify: Callable[[], None] = lambda: None) -> None:
        self._verify = verify
        self.url = f"{url.rstrip('/')}/checkpoints"
        self._files, self._path = filesystem(self.url)
        self._index = _Index()
        with as_user_error(self.url):
            has_index = self._files.exists(f"{self._path}/index.json")
        if has_index:
            document = _read_json(self._files, f"{self._path}/index.json")
            self._index = _parse(_Index, document, f"{self.url}/index.json", "take a checkpoint's folder")

    @property
    def last(self) -> str | None:
        """The newest checkpoint's URL."""
        return self._url(self._index.last)

    @property
    def best(self) -> str | None:
        """The URL of the checkpoint with the lowest score."""
        return self._url(self._index.best)

    def _url(self, name: str | None) -> str | None:
        return f"{self.url}/{name}" if name else None

    def save(
        self,
        base_step: int,
        *,
        model: dict[str, torch.Tensor],
        training: dict[str, Any],
        state: dict[str, Any],
        score: float | None,
    ) -> str:
        """Write a checkpoint, and delete those that are neither the last nor the best, or that a killed process left.

        Args:
            base_step: Base steps done.
            model: The GEBM's ``state_dict``.
            training: Nested dicts and lists of tensors, numbers, strings and None.
            state: Anything JSON can hold.
            score: The lower the better, for example ``fid_gebm``; ``None`` for a checkpoint between two evaluations,
                and not finite where an evaluation has no score.

        Returns:
            The checkpoint's URL.
        """
        tensors: dict[str, torch.Tensor] = {}
        outline = _flatten(training, "", tensors)
        intermediate = score is None
        score = math.nan if score is None else score
        contents = {
            "model.safetensors": save_tensors(_contiguous(model)),
            "training.safetensors": save_tensors(_contiguous(tensors)),
        }
        document = {
            "format": FORMAT,
            "base_step": base_step,
            "score": score if math.isfinite(score) else None,
            # A folder whose files were copied or deleted in part does not pass for a whole one.
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
            **state,
            "training": outline,
        }
        contents["state.json"] = json.dumps(document, indent=1).encode()
        return self._commit(f"{'interim' if intermediate else 'step'}-{base_step:08d}", contents, score)

    def import_checkpoint(self, url: str) -> str:
        """Make another trial's checkpoint the last one here, as population-based training does.

        Args:
            url: The checkpoint's folder. Where its trial has deleted it since, that trial's newest is taken.

        Returns:
            The URL of the copy.

        Raises:
            UserError: That trial has no checkpoint.
        """
        try:
            files, path = filesystem(url)
            contents = {name: cast(bytes, files.cat_file(f"{path}/{name}")) for name in _FILES}
        except FileNotFoundError:
            newest = Checkpoints(url.rstrip("/").rsplit("/checkpoints/", 1)[0]).last
            if newest in (None, url):
                raise UserError(f"no checkpoint at {url} to resume from") from None
            return self.import_checkpoint(str(newest))
        state = _parse_state(parse_json(contents["state.json"], CHECKPOINT), url)
        return self._commit(f"step-{state.base_step:08d}", contents, math.nan if state.score is None else state.score)

    def _commit(self, name: str, contents: dict[str, bytes], score: float) -> str:
        """Write a checkpoint's files, name it in the index, and delete those that it supersedes."""
        index = self._index
        # The index names two at most, so one of three names is free.
        candidates = (f"{name}{suffix}" for suffix in ("", "-2", "-3"))
        name = next(candidate for candidate in candidates if candidate not in (index.last, index.best))
        for file, content in contents.items():
            write_file(f"{self.url}/{name}/{file}", content)
        changes: dict[str, Any] = {"last": name}
        # Of equal ones the first, as in the summary.
        if math.isfinite(score) and score < (math.inf if index.score is None else index.score):
            changes |= {"best": name, "score": score}
        committed = index.model_copy(update=changes)
        # The files may have taken minutes.
        self._verify()
        write_file(f"{self.url}/index.json", json.dumps(committed.model_dump(exclude_none=True)).encode())
        superseded = {index.last, index.best} | self._abandoned(name)
        self._index = committed
        for old in superseded - {committed.last, committed.best, None}:
            # The new one is there; what cannot be deleted only takes space.
            with contextlib.suppress(Exception):
                self._files.rm(f"{self._path}/{old}", recursive=True)
        return f"{self.url}/{name}"

    def _abandoned(self, name: str) -> set[str]:
        """Return the folders of this base step and earlier ones, such as those a killed process left half written.

        Later ones may be of a worker that was given up, as with a network that broke, and still writes.
        """
        try:
            entries = self._files.ls(self._path, detail=False)
        except Exception:
            return set()
        names = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)
        return {other for other in names if _NAME.fullmatch(other) and _base_step(other) <= _base_step(name)}


def read(url: str) -> Checkpoint:
    """Read a checkpoint.

    Args:
        url: Its folder, or a trial's folder, whose best checkpoint is then taken.

    Raises:
        UserError: There is none, or it is damaged.
    """
    files, path = filesystem(url)
    with as_user_error(url):
        is_checkpoint = files.exists(f"{path}/state.json")
    if not is_checkpoint:
        return read(_best_of_trial(url))
    document = _read_json(files, f"{path}/state.json")
    if document.get("format") != FORMAT:
        raise UserError(f"{url} has checkpoint format {document.get('format')}; this version reads {FORMAT}")
    state = _parse_state(document, url)
    tensors = {name: _read_tensors(files, f"{path}/{name}", f"{url}/{name}", state) for name in _FILES[:2]}
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


def _best_of_trial(url: str) -> str:
    """Return the URL of the best checkpoint of a trial, or the last where none has a score.

    Raises:
        UserError: There is none.
    """
    for trial in (url, url.rstrip("/").removesuffix("/checkpoints")):
        checkpoints = Checkpoints(trial)
        best = checkpoints.best or checkpoints.last
        if best:
            return best
    files, path = filesystem(url)
    with as_user_error(url):
        is_sweep = files.exists(f"{path}/summary.json")
    if is_sweep:
        raise UserError(f"{url} is a sweep: give one of its trials, such as {url.rstrip('/')}/trials/000")
    raise UserError(f"no checkpoint at {url}: give the folder that holds state.json, or a trial's folder")


def _read_tensors(files: fsspec.AbstractFileSystem, path: str, url: str, state: _State) -> dict[str, torch.Tensor]:
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


def _base_step(name: str) -> int:
    return int(name.split("-")[1])


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


def _read_json(files: fsspec.AbstractFileSystem, path: str) -> dict[str, Any]:
    try:
        with as_user_error(files.unstrip_protocol(path), InvalidDocument):
            content = read_bytes(files, path, CHECKPOINT)
        document = parse_json(content, CHECKPOINT)
    except InvalidDocument as error:
        raise UserError(f"{path} is damaged: {error}; take another checkpoint") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object; take another checkpoint")
    return document


def _parse_state(document: Any, url: str) -> _State:
    return _parse(_State, document, f"{url}/state.json", "take another checkpoint")


def _parse(model: type[_Document], document: Any, url: str, advice: str) -> _Document:
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
