"""Pictures of an evaluation of images: its samples, their energies, and their nearest training images."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable

import torch
from torch import Tensor

from gebm import GEBM
from gebm.classes import label_images, split_labels
from gebm.freezing import frozen
from pipeline.data import Store
from pipeline.evaluation import metrics
from pipeline.evaluation.base import ChainSamples, Evaluation
from pipeline.evaluation.metrics.subsets import evenly_spaced
from pipeline.evaluation.plots import curves, image_panels
from pipeline.evaluation.plots.image_grids import (
    animation,
    arranged,
    chain_rows,
    class_rows,
    grid,
    png,
    side_by_side,
)
from pipeline.evaluation.plots.layout import titled
from pipeline.evaluation.plots.titles import AT_START, at_temperature

__all__ = ["EvaluationFigures", "to_network_range"]

# Title of the pictures at the start, in pixels.
_START_SIZE, _START_LINE = 16, 28
# Samples that are shown for their low energy; the same number for their high one.
_EXTREME = 8
# Samples of the GEBM that are shown above the training images nearest to them.
_BEST = 8
_NEIGHBORS = 3
# Pictures that have a slider over base steps.
_SERIES = (
    "base",
    "gebm",
    "base_and_gebm",
    "chain",
    "by_energy",
    "neighbours",
    "energies",
    "log_partition",
    "fid_along_chain",
)
# Training images whose energies are drawn.
_DATA_ENERGIES = 2_000


class EvaluationFigures:
    """Pictures of a run's evaluations, drawn alike so that they can be compared.

    Samples are of latents that are the same in each evaluation; nothing is drawn at random here. The training images
    are a fixed subset, see :func:`pipeline.evaluation.metrics.reference_images`.

    Args:
        store: The training images.
        reference: Embeddings of the images that :func:`pipeline.evaluation.metrics.reference_images` gives (M, F).
        label: Label of the feature extractor.
        device: Where the model is.
        labels: Returns the classes of those images (M,), for models of classes.
    """

    def __init__(
        self, store: Store, reference: Tensor, label: str, device: torch.device, labels: Callable[[], Tensor]
    ) -> None:
        self._store, self._reference, self._label, self._device = store, reference, label, device
        self._labels = labels

    def draw(self, model: GEBM, evaluation: Evaluation, trained: bool, temperature: str) -> dict[str, bytes]:
        """Draw an evaluation.

        Args:
            model: The model that was evaluated.
            evaluation: Its evaluation.
            trained: Whether the model learns its log-partition.
            temperature: Of the chains, in words; in the title of every picture of their samples.

        Returns:
            File name to contents.
        """
        steps, ends = sorted(evaluation.frames), evaluation.ends
        base, gebm = evaluation.frames[steps[0]], evaluation.frames[steps[-1]]
        shown = self._rows(model, ends["base"].latents[: len(base)])
        frames = {step: arranged(frame, shown) for step, frame in evaluation.frames.items()}
        animated = io.BytesIO()
        animation([frames[step] for step in steps], steps, animated, temperature=temperature)
        curve = curves.chain_curve(evaluation.chain, f"FID ({self._label})", temperature)
        energies = {
            "data": self._energies_of_data(model),
            "base": ends["base"].energies,
            at_temperature("GEBM", temperature): ends["gebm"].energies,
        }
        partition = curves.log_partition(ends["base"].energies, model.log_partition.item() if trained else None)
        ranked_base = self._ranked(model, base, ends["base"])
        ranked_gebm = self._ranked(model, gebm, ends["gebm"])
        figures = {
            "base": grid(frames[steps[0]], columns=8),
            "gebm": grid(frames[steps[-1]], columns=8),
            "base_and_gebm": side_by_side(frames[steps[0]], frames[steps[-1]], temperature=temperature),
            "chain": chain_rows(frames, temperature=temperature),
            "by_energy": image_panels.energy_panels(ranked_base, ranked_gebm, temperature),
            "neighbours": self._neighbors(model, ends["gebm"], evaluation.scores["nearest_gebm"], temperature),
            "energies": curves.energy_histogram(energies),
            "log_partition": partition,
            "fid_along_chain": curve,
        }
        return {
            **{f"{name}.png": png(figure) for name, figure in figures.items()},
            "chain.gif": animated.getvalue(),
        }

    def draw_start(self, model: GEBM, latents: Tensor) -> dict[str, bytes]:
        """Draw samples of the base, before any evaluation, as the first of each picture that has a slider.

        Args:
            model: The model that a trial starts from.
            latents: The first latents of its evaluations (G, D).

        Returns:
            File name to contents.
        """
        images = arranged(self._samples(model, latents), self._rows(model, latents))
        picture = png(titled(grid(images, columns=8), [AT_START], font_size=_START_SIZE, line_height=_START_LINE))
        return {f"{name}.png": picture for name in _SERIES}

    def _rows(self, model: GEBM, latents: Tensor) -> Tensor:
        _, classes = model.split_latents(latents)
        return class_rows(None if classes is None else classes.argmax(1), len(latents))

    def _ranked(self, model: GEBM, shown: Tensor, end: ChainSamples) -> image_panels.RankedSamples:
        """Rank samples by energy: those shown, which are the first of all, and the extremes of all."""
        few, order = end.energies[: len(shown)], end.energies.argsort()
        ordered = few.argsort()
        lowest, highest = order[:_EXTREME], order[-_EXTREME:]
        return image_panels.RankedSamples(
            shown[ordered],
            few[ordered],
            (self._samples(model, end.latents[lowest]), end.energies[lowest]),
            (self._samples(model, end.latents[highest]), end.energies[highest]),
            len(order),
        )

    def _neighbors(self, model: GEBM, end: ChainSamples, ratio: float, temperature: str) -> image_panels.Image.Image:
        """Draw the samples of lowest energy, the model's most probable, and the training images nearest to them."""
        best, count = end.energies.argsort()[:_BEST], min(_NEIGHBORS, len(self._reference_images))
        distances, rows = metrics.nearest(end.features["embedding"][best], self._reference, count)
        return image_panels.neighbors(
            self._samples(model, end.latents[best]),
            end.energies[best],
            self._reference_images[rows],
            distances,
            ratio=ratio,
            among=len(self._reference_images),
            of=self._store.manifest.num_samples,
            label=self._label,
            temperature=temperature,
        )

    @functools.cached_property
    def _reference_images(self) -> Tensor:
        return metrics.reference_images(self._store)

    @torch.no_grad()
    def _samples(self, model: GEBM, latents: Tensor) -> Tensor:
        with frozen(model.base):
            images, _ = split_labels(model.base(latents.to(self._device)), model.num_classes)
            return metrics.to_uint8(images).cpu()

    @torch.no_grad()
    def _energies_of_data(self, model: GEBM) -> Tensor:
        """Return the energies of training images, in batches small enough to fit next to a model in training."""
        images, energies = evenly_spaced(self._reference_images, _DATA_ENERGIES), []
        labels = None
        if model.num_classes:
            labels = evenly_spaced(self._labels(), _DATA_ENERGIES)
        with frozen(model.energy):
            for rows in torch.arange(len(images)).split(64):
                x = to_network_range(images[rows], self._device)
                x = x if labels is None else label_images(x, labels[rows], model.num_classes)
                energies.append(model.energy(x).cpu())
        return torch.cat(energies)


def to_network_range(images: Tensor, device: torch.device) -> Tensor:
    """Return images uint8 (N, C, H, W) as floats in [-1, 1], on the device."""
    return images.to(device, non_blocking=True).float().div_(127.5).sub_(1.0)
