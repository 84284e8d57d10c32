"""Checkpoints: written whole before they have a name, read without running anything, resumed exactly.

A checkpoint is a folder behind any fsspec URL::

    <trial>/checkpoints/step-00001000/model.safetensors      the GEBM's state, as torch names it
                                      training.safetensors   optimizers, moving average, buffers of the schedules
                                      state.json             base step, position in the data, random state, config
    <trial>/checkpoints/index.json                           which of them is the last and which the best

Its files are written first and its name gets into ``index.json`` last, so a checkpoint that was cut off is never
found. A folder that the index names is never written to: a trial that comes by a base step again, as in
population-based training, keeps it as ``step-00001000-2``. Tensors are safetensors and the rest is JSON: reading a
stranger's file runs no code of his. Between evaluations checkpoints have no score, and are called
``interim-00000600``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any

import fsspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import as_user_error, filesystem, write_file

__all__ = ["Checkpoint", "Checkpoints", "load_state", "read"]

FORMAT = 1
_FILES = ("model.safetensors", "training.safetensors", "state.json")
_TENSOR = "__tensor__"
_NAME = re.compile(
    r"(step|interim)-\d{8,}(-\d+)?"
)  # a name that led elsewhere could have another folder read, or deleted


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        url: Its folder.
        model: The GEBM's ``state_dict``.
        training: Everything else that training goes on from, nested as it was saved.
        state: Base step, position in the data, seed, metrics and the whole config, as JSON gives them.
    """

    url: str
    model: dict[str, torch.Tensor]
    training: dict[str, Any]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one trial; the last and the best are kept.

    Args:
        url: The trial's folder, behind any fsspec URL.

    Example:
        >>> kept = Checkpoints("memory://doctest/trial")
        >>> kept.last is None
        True
        >>> _ = kept.save(10, model={"w": torch.ones(2)}, training={}, state={}, score=3.0)
        >>> _ = kept.save(20, model={"w": torch.ones(2)}, training={}, state={}, score=5.0)
        >>> kept.last, kept.best
        ('memory://doctest/trial/checkpoints/step-00000020', 'memory://doctest/trial/checkpoints/step-00000010')
    """

    def __init__(self, url: str) -> None:
        self.url = f"{url.rstrip('/')}/checkpoints"
        self._files, self._path = filesystem(self.url)
        self._index: dict[str, Any] = {}
        with as_user_error(self.url):
            kept = self._files.exists(f"{self._path}/index.json")
        if kept:
            self._index = _read_json(self._files, f"{self._path}/index.json")
            names = [self._index[which] for which in ("last", "best") if which in self._index]
            numbers = isinstance(self._index.get("score", 0.0), int | float)
            if not numbers or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
                raise UserError(f"{self.url}/index.json is damaged: it names no checkpoint; take a checkpoint's folder")

    @property
    def last(self) -> str | None:
        """The newest checkpoint's URL."""
        return self._url("last")

    @property
    def best(self) -> str | None:
        """The URL of the checkpoint with the lowest score."""
        return self._url("best")

    def _url(self, which: str) -> str | None:
        return f"{self.url}/{self._index[which]}" if self._index.get(which) else None

    def save(
        self,
        base_step: int,
        *,
        model: dict[str, torch.Tensor],
        training: dict[str, Any],
        state: dict[str, Any],
        score: float | None,
    ) -> str:
        """Write a checkpoint and forget those that are neither the last nor the best, and what the killed left behind.

        Args:
            base_step: Base steps done.
            model: The GEBM's ``state_dict``.
            training: Nested dicts and lists of tensors, numbers, strings and None.
            state: Anything JSON can hold.
            score: The lower the better, for example ``fid_gebm``; none of a checkpoint between two evaluations, and
                not finite where an evaluation has none.

        Returns:
            The checkpoint's URL.
        """
        tensors: dict[str, torch.Tensor] = {}
        outline = _flatten(training, "", tensors)
        intermediate = score is None
        score = math.nan if score is None else score
        known = score if math.isfinite(score) else None
        contents = {
            "model.safetensors": save_tensors(_contiguous(model)),
            "training.safetensors": save_tensors(_contiguous(tensors)),
        }
        document = {
            "format": FORMAT,
            "base_step": base_step,
            "score": known,
            # A folder whose files were copied or deleted in part does not pass for a whole one.
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
            **state,
            "training": outline,
        }
        contents["state.json"] = json.dumps(document, indent=1).encode()
        return self._keep(f"{'interim' if intermediate else 'step'}-{base_step:08d}", contents, score)

    def import_checkpoint(self, url: str) -> str:
        """Make another trial's checkpoint the last one here, as population-based training does.

        Args:
            url: The checkpoint's folder. Where its trial has gone on and no longer keeps it, that trial's newest.

        Returns:
            The URL of the copy.

        Raises:
            UserError: That trial has no checkpoint.
        """
        try:
            files, path = filesystem(url)
            contents = {name: files.cat_file(f"{path}/{name}") for name in _FILES}
        except FileNotFoundError:
            newest = Checkpoints(url.rstrip("/").rsplit("/checkpoints/", 1)[0]).last
            if newest in (None, url):
                raise UserError(f"no checkpoint at {url} to go on from") from None
            return self.import_checkpoint(str(newest))
        state = json.loads(contents["state.json"])
        name = f"step-{state['base_step']:08d}"
        return self._keep(name, contents, math.nan if state["score"] is None else state["score"])

    def _keep(self, name: str, contents: dict[str, bytes], score: float) -> str:
        names = (f"{name}{suffix}" for suffix in ("", "-2", "-3"))  # the index names two at most
        name = next(name for name in names if name not in (self._index.get("last"), self._index.get("best")))
        for file, content in contents.items():
            write_file(f"{self.url}/{name}/{file}", content)
        index = {**self._index, "last": name}
        if math.isfinite(score) and score <= index.get("score", math.inf):
            index.update(best=name, score=score)
        write_file(f"{self.url}/index.json", json.dumps(index).encode())
        superseded = {self._index.get("last"), self._index.get("best")} | self._left_behind(name)
        self._index = index
        for old in superseded - {index["last"], index.get("best"), None}:
            # The new one is there; what cannot be removed only takes room.
            with contextlib.suppress(Exception):
                self._files.rm(f"{self._path}/{old}", recursive=True)
        return f"{self.url}/{name}"

    def _left_behind(self, name: str) -> set[str]:
        """Folders of this base step and earlier ones, among them those of a process killed while it wrote or removed.

        Later ones may be of a worker that was given up, as with a network that broke, and still writes.
        """
        try:
            entries = self._files.ls(self._path, detail=False)
        except Exception:
            return set()
        found = (match[0] for entry in entries if (match := _NAME.fullmatch(entry.rstrip("/").rsplit("/", 1)[-1])))
        return {other for other in found if _step(other) <= _step(name)}


def read(url: str) -> Checkpoint:
    """Read a checkpoint.

    Args:
        url: Its folder, or a trial's folder, whose best checkpoint is then taken.

    Raises:
        UserError: There is none, or it is damaged.
    """
    files, path = filesystem(url)
    with as_user_error(url):
        whole = files.exists(f"{path}/state.json")
    if not whole:
        for trial in (url, url.rstrip("/").removesuffix("/checkpoints")):
            kept = Checkpoints(trial)
            if kept.best or kept.last:
                return read(kept.best or kept.last or "")
        raise UserError(f"no checkpoint at {url}: give the folder that holds state.json, or a trial's folder")
    state = _read_json(files, f"{path}/state.json")
    if state.get("format") != FORMAT:
        raise UserError(f"{url} has checkpoint format {state.get('format')}; this version reads {FORMAT}")
    contents = {}
    digests = state.get("sha256") if isinstance(state.get("sha256"), dict) else {}
    for name in ("model", "training"):
        try:
            with as_user_error(url):
                try:
                    content = files.cat_file(f"{path}/{name}.safetensors")
                except FileNotFoundError:
                    raise UserError(
                        f"{url} is incomplete: {name}.safetensors is missing; take another checkpoint"
                    ) from None
            if hashlib.sha256(content).hexdigest() != digests.get(f"{name}.safetensors"):
                raise UserError(f"{url}/{name}.safetensors is damaged: not what was saved; take another checkpoint")
            contents[name] = load_tensors(content)
        except SafetensorError as error:
            raise UserError(f"{url}/{name}.safetensors is damaged ({error}); take another checkpoint") from None
    try:
        training = _unflatten(state.pop("training"), contents["training"])
    except KeyError as error:
        raise UserError(f"{url} is incomplete: {error} is missing; take another checkpoint") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{url}/state.json is damaged ({error}); take another checkpoint") from None
    return Checkpoint(url, contents["model"], training, state)


def load_state(module: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into a model.

    Args:
        module: The model the config describes.
        checkpoint: The weights.

    Raises:
        UserError: The checkpoint is of another architecture.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint.model.items()}
    if expected != found:
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        name = different[0]
        raise UserError(
            f"{checkpoint.url} is of another architecture: {name} is {found.get(name, 'absent')} there and "
            f"{expected.get(name, 'absent')} here ({len(different)} differ); set model.* and data.* as it was trained"
        )
    module.load_state_dict(checkpoint.model)


def _step(name: str) -> int:
    return int(name.split("-")[1])


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _flatten(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The same nesting with each tensor moved to ``tensors`` and a reference in its place; keys keep their type."""
    if isinstance(value, torch.Tensor):
        name = f"{len(tensors):05d}{path}"  # numbered, since the keys 1 and "1" make the same path
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
    with as_user_error(files.unstrip_protocol(path)):
        content = files.cat_file(path)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: it is not JSON; take another checkpoint") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object; take another checkpoint")
    return document
