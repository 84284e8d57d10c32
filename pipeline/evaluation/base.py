"""Result of an evaluation, and the protocol of what scores its samples."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from pipeline.config.scores import ChainPoint, standard_error_of
from pipeline.evaluation.shared_results import SharedResults

__all__ = ["ChainSamples", "Evaluation", "EvaluationRun", "SampleScorer"]


class ChainSamples(NamedTuple):
    """All samples at one end of the chains, in the order of the chains, of all workers together.

    Attributes:
        latents: (N, D), on the CPU; the base maps them to the samples again where those are to be drawn.
        energies: (N,), on the CPU, in nats.
        features: The scorer's features of the samples, each with N rows.
    """

    latents: Tensor
    energies: Tensor
    features: dict[str, Tensor]


@dataclass(frozen=True)
class EvaluationRun:
    """Progress of one evaluation, and what it shares with others of the same model.

    Attributes:
        advance: Called with the chain-steps done since the last call; with a negative number if they have to be done
            again.
        shared: Results of the same model at other settings of the sampler; the evaluation adds its own (default: none).
        reached: Called with a step between the chains' ends and the score of ``sweep.metric`` there, before any chain
            runs on. With several workers it is not called, since a score needs all of them.
    """

    advance: Callable[[int], None] = lambda steps: None
    shared: SharedResults = field(default_factory=SharedResults)
    reached: Callable[[int, float], None] | None = None


def _draw_nothing(evaluation: Evaluation) -> dict[str, bytes]:
    return {}


@dataclass
class Evaluation:
    """Result of one evaluation.

    Attributes:
        scores: ``fid_base``, ``fid_gebm`` and the other requested metrics, with their standard errors
            (``fid_gebm_standard_error``), and the sampler's diagnostics.
        chain: Step of the chain -> the scorer's primary score there, such as the FID, with its standard error.
        frames: Step of the chain -> the same few samples there, as they are shown: images (G, C, H, W) uint8.
        ends: ``base``, where the chain starts, and ``gebm``, where it ends, with all their samples.
        draw: Returns its pictures, file name -> bytes; set by the task, on the first worker.
        sampler_path: How steps of chains were taken, see :class:`gebm.replay.Replays`; None where that was no question.
        notes: One-line messages for the user, such as a batch size that did not fit.
        warnings: Lines on scores that do not mean what they seem to.
        found_kernel: What the warm-up has found, see :mod:`pipeline.config.warm_up`; empty without one.
    """

    scores: dict[str, float] = field(default_factory=dict)
    chain: dict[int, ChainPoint] = field(default_factory=dict)
    frames: dict[int, Tensor] = field(default_factory=dict)
    ends: dict[str, ChainSamples] = field(default_factory=dict)
    draw: Callable[[Evaluation], dict[str, bytes]] = _draw_nothing
    sampler_path: str | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    found_kernel: dict[str, Any] = field(default_factory=dict)

    def add_point(self, step: int, scores: dict[str, float], primary: str) -> None:
        """Add a point of the chain.

        Args:
            step: Step of the chain.
            scores: Scores there, as the scorer names them.
            primary: Name of the score that is followed.
        """
        self.chain[step] = ChainPoint(scores[primary], standard_error_of(scores, primary))

    @functools.cached_property
    def pictures(self) -> dict[str, bytes]:
        """File name -> bytes; drawn at the first use, since it takes longer than the scores of a small model."""
        return self.draw(self)


class SampleScorer(Protocol):
    """Metrics of samples, in three stages: shown, embedded, scored."""

    @property
    def primary(self) -> str:
        """Name of the score that is followed along the chain."""
        ...

    def kept_rows(self, total: int) -> Tensor:
        """Return which of all samples the scores at an end are given as they are shown, bool (total,)."""
        ...

    def show(self, samples: Tensor) -> Tensor:
        """Return samples of a base in the form in which they are measured and drawn: (N, ...)."""
        ...

    def features(self, shown: Tensor) -> dict[str, Tensor]:
        """Return what the scores are computed from, each with a row a sample, on the CPU."""
        ...

    def score(self, features: dict[str, Tensor], *, end: bool) -> dict[str, float]:
        """Return the primary score, and at an end of the chain all the others, with ``<name>_standard_error``.

        Args:
            features: Those of all samples, and at an end, where :meth:`kept_rows` has some, ``images``: these samples
                as they are shown (M, ...).
            end: Whether it is an end of the chain.
        """
        ...
