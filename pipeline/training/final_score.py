"""Final score of a checkpoint, of more samples than training measures, in a file next to its weights.

A model in the registry is compared by what its checkpoint says of itself, and not by a summary.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError

from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import filesystem, write_file
from pipeline.runtime.untrusted import CONFIG, parse_json, read_bytes

__all__ = ["FinalScore", "read_final_score", "write_final_score"]

_NAME = "final.json"

_Text = Annotated[str, Field(max_length=200)]


class FinalScore(BaseModel):
    """Score of a checkpoint, and how it was measured.

    Attributes:
        metric: Name of the score.
        mode: ``min`` or ``max``.
        value: The score.
        extractor: The feature extractor; ``none`` where there is none.
        num_samples: Samples of the score.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    metric: _Text
    mode: Literal["min", "max"]
    value: FiniteFloat
    extractor: _Text = "none"
    num_samples: PositiveInt


def write_final_score(checkpoint: str, score: FinalScore) -> None:
    """Write the final score of a checkpoint.

    Args:
        checkpoint: Its folder, behind any fsspec URL.
        score: The score.

    Example:
        >>> score = FinalScore(metric="fid_gebm", mode="min", value=4.5, num_samples=50_000)
        >>> write_final_score("memory://doctest/scored", score)
        >>> read_final_score("memory://doctest/scored") == score
        True
    """
    write_file(f"{checkpoint}/{_NAME}", score.model_dump_json().encode())


def read_final_score(checkpoint: str) -> FinalScore | None:
    """Return the final score of a checkpoint; ``None`` where it has none.

    Args:
        checkpoint: Its folder, behind any fsspec URL.

    Raises:
        UserError: The file is damaged.
    """
    files, path = filesystem(checkpoint)
    try:
        content = read_bytes(files, f"{path}/{_NAME}", CONFIG)
        return FinalScore.model_validate(parse_json(content, CONFIG))
    except FileNotFoundError:
        return None
    except (ValidationError, ValueError, RecursionError):
        raise UserError(f"{checkpoint}/{_NAME} is damaged: delete it, or take another checkpoint") from None
