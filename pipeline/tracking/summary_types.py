"""Types of what ``summary.json`` may hold: strict, and small enough for whoever reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    TypeAdapter,
)

from pipeline.config.scores import chain_points
from pipeline.config.warm_up import found_kernel

__all__ = [
    "LABELS",
    "ChainScores",
    "Evaluation",
    "FoundKernel",
    "Head",
    "Metrics",
    "Params",
    "Seconds",
    "Status",
    "TrialName",
    "Warning",
    "name_infinities",
]

TERMINAL_STATUSES = ("finished", "pruned", "failed")
MAX_WARNING_LENGTH = 500

_Text = Annotated[str, StringConstraints(strict=True, max_length=100_000)]
_MetricName = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z_][A-Za-z0-9_./@-]{0,200}$")]
# A number that every reader has: integers are those that a float holds.
_Integer = Annotated[int, Strict(), Field(ge=-(2**53), le=2**53)]
_Number = Annotated[bool, Strict()] | _Integer | Annotated[float, Strict()]
_METRICS = TypeAdapter(dict[_MetricName, _Number | _Text | None])
_KEYS = TypeAdapter(
    dict[Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z_][A-Za-z0-9_.]{0,200}$")], Any]
)
# As YAML has them, and a config. JSON has none.
_INFINITIES = {".inf": math.inf, "-.inf": -math.inf}
LABELS = ("extractor", "train_precision", "sampler_precision", "train_path", "sampler_path")
"""Texts among the metrics, without which they mean little."""


def one_line_text(text: str) -> str:
    """Return a text on one line that a terminal prints as it is, cut where it is overlong."""
    letters = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(letters.split())
    return line if len(line) <= MAX_WARNING_LENGTH else line[: MAX_WARNING_LENGTH - 3] + "..."


def _require_one_line(text: str) -> str:
    if text != one_line_text(text):
        raise ValueError("not a line that a terminal prints as it is")
    return text


def name_infinities(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a trial as they are written: JSON has no infinity, which is a value of some keys.

    Args:
        params: Parameters of a trial.

    Example:
        >>> name_infinities({"model.energy_floor": -math.inf, "train.base_lr": 0.001})
        {'model.energy_floor': '-.inf', 'train.base_lr': 0.001}
    """
    names = {value: name for name, value in _INFINITIES.items()}
    return {key: names.get(value, value) if isinstance(value, float) else value for key, value in params.items()}


def _require_keys(params: dict[str, Any]) -> dict[str, Any]:
    keys = _KEYS.validate_python(params)
    return {key: _INFINITIES.get(value, value) if isinstance(value, str) else value for key, value in keys.items()}


def _require_numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    _METRICS.validate_python(metrics)
    for name, value in metrics.items():
        if isinstance(value, str) and name not in LABELS:
            raise ValueError("not a number")
    base_step = metrics.get("base_step", 0)
    if type(base_step) is not int or base_step < 0:
        raise ValueError("no base step")
    return metrics


def _require_base_step(evaluation: dict[str, Any]) -> dict[str, Any]:
    if "base_step" not in evaluation:
        raise ValueError("no base step")
    return _require_numbers(evaluation)


# A trial's name becomes a folder's, which must not be elsewhere.
TrialName = Annotated[str, Field(pattern=r"^[0-9]{3,9}$")]
Status = Annotated[str, Field(pattern=rf"^(pending|running|{'|'.join(TERMINAL_STATUSES)})$")]
# To the type checker they are dicts of anything, as everywhere else; what is read is held to more.
Params = Annotated[dict[str, Any], AfterValidator(_require_keys)]
Metrics = Annotated[dict[str, Any], AfterValidator(_require_numbers)]
Evaluation = Annotated[dict[str, Any], AfterValidator(_require_base_step)]
FoundKernel = Annotated[dict[str, Any], BeforeValidator(found_kernel)]
ChainScores = Annotated[dict[int, Any], BeforeValidator(chain_points)]
Warning = Annotated[str, AfterValidator(_require_one_line)]
Seconds = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]


class Head(BaseModel):
    """Fields of the summary in addition to its trials."""

    model_config = ConfigDict(strict=True, extra="ignore")

    metric: _MetricName | None = None
    mode: Literal["min", "max"] | None = None
    experiment: _Text | None = None
    measure: _Text | None = None
    extractor: _Text | None = None
    temperature: _Text | None = None
    beta: _Number | None = None
    workers_per_trial: Annotated[int, Strict(), Field(ge=1, le=10**6)] | None = None
    gpus_per_trial: Annotated[float, Strict(), Field(ge=0, le=10**6, allow_inf_nan=False)] | None = None
    store: _Text | None = None
    store_checksum: _Text | None = None
    tracking_uri: _Text | None = None
    named: _Text | None = None
    mlflow_experiment_id: _Text | None = None
    mlflow_run_id: _Text | None = None
