"""The pictures of an evaluation of images: what its samples look like, how good the energy is, what is remembered."""

from __future__ import annotations

import functools
import io

import torch
from torch import Tensor

from gebm import GEBM
from gebm.freezing import frozen
from pipeline.data import Store
from pipeline.evaluation import metrics
from pipeline.evaluation.evaluator import ChainSamples, Evaluation
from pipeline.evaluation.metrics.subsets import evenly_spaced
from pipeline.evaluation.plots import curves, panels
from pipeline.evaluation.plots.images import animation, grid, png, side_by_side

__all__ = ["EvaluationFigures", "to_network_range"]

_EXTREME = 8  # samples that are shown for their low energy, and as many for their high one
_BEST = 8  # samples of the GEBM that are shown beside the training images nearest to them
_NEIGHBORS = 3
_DATA_ENERGIES = 2_000  # training images whose energies are drawn


class EvaluationFigures:
    """Draws evaluations of one run, one after another, so that they can be compared.

    Samples are of the latents that the evaluation has always from the same random numbers; nothing is drawn at random
    here. Of the training images a fixed part is looked at, see :func:`pipeline.evaluation.metrics.reference_images`.

    Args:
        store: The training images.
        reference: Embeddings of the images that :func:`pipeline.evaluation.metrics.reference_images` gives (M, F).
        label: The extractor's.
        device: Where the model is.
        temperature: Of the chains, in words; every picture of their samples says it.
    """

    def __init__(self, store: Store, reference: Tensor, label: str, device: torch.device, temperature: str) -> None:
        self._store, self._reference, self._label, self._device = store, reference, label, device
        self._temperature = temperature

    def draw(self, model: GEBM, found: Evaluation, trained: bool) -> dict[str, bytes]:
        """Draw an evaluation.

        Args:
            model: The model that was evaluated.
            found: What was found.
            trained: Whether the model learns its log-partition.

        Returns:
            File name to contents.
        """
        steps = sorted(found.frames)
        base, gebm = found.frames[steps[0]], found.frames[steps[-1]]
        energies = {name: end.energies for name, end in found.ends.items()}
        animated = io.BytesIO()
        told = {"temperature": self._temperature}
        animation([found.frames[step] for step in steps], steps, animated, **told)
        curve = curves.chain_curve(list(found.chain), list(found.chain.values()), f"FID ({self._label})", **told)
        of_data = self._energies(model, evenly_spaced(self._gallery, _DATA_ENERGIES))
        gebm_name = curves.at_temperature("GEBM", self._temperature)
        histogram = curves.energy_histogram({"data": of_data, "base": energies["base"], gebm_name: energies["gebm"]})
        partition = curves.log_partition(energies["base"], model.log_partition.item() if trained else None)
        sides = (self._sorted(model, frame, found.ends[name]) for name, frame in (("base", base), ("gebm", gebm)))
        drawn = {
            "base": grid(base, columns=8),
            "gebm": grid(gebm, columns=8),
            "base_and_gebm": side_by_side(base, gebm, **told),
            "by_energy": panels.energy_panels(*sides, **told),
            "neighbours": self._neighbors(model, found.ends["gebm"], found.scores["nearest_gebm"]),
            "energies": histogram,
            "log_partition": partition,
            "fid_along_chain": curve,
        }
        return {
            **{f"{name}.png": png(figure) for name, figure in drawn.items()},
            "chain.gif": animated.getvalue(),
        }

    def _sorted(self, model: GEBM, shown: Tensor, end: ChainSamples) -> panels.RankedSamples:
        """By energy: those that are shown, which are the first of all, and of all those at both ends."""
        few, order = end.energies[: len(shown)], end.energies.argsort()
        ordered = few.argsort()
        lowest, highest = order[:_EXTREME], order[-_EXTREME:]
        return panels.RankedSamples(
            shown[ordered],
            few[ordered],
            (self._samples(model, end.latents[lowest]), end.energies[lowest]),
            (self._samples(model, end.latents[highest]), end.energies[highest]),
            len(order),
        )

    def _neighbors(self, model: GEBM, end: ChainSamples, ratio: float) -> panels.Image.Image:
        """The samples of lowest energy, which the model holds for its best, and the training images nearest to them."""
        best, count = end.energies.argsort()[:_BEST], min(_NEIGHBORS, len(self._gallery))
        distances, rows = metrics.nearest(end.features["embedding"][best], self._reference, count)
        return panels.neighbors(
            self._samples(model, end.latents[best]),
            end.energies[best],
            self._gallery[rows],
            distances,
            ratio=ratio,
            among=len(self._gallery),
            of=self._store.manifest.num_samples,
            label=self._label,
            temperature=self._temperature,
        )

    @functools.cached_property
    def _gallery(self) -> Tensor:
        return metrics.reference_images(self._store)

    @torch.no_grad()
    def _samples(self, model: GEBM, latents: Tensor) -> Tensor:
        with frozen(model.base):
            return metrics.to_uint8(model.base(latents.to(self._device))).cpu()

    @torch.no_grad()
    def _energies(self, model: GEBM, images: Tensor) -> Tensor:
        """Energies of images, in batches so small that they fit beside a model in training."""
        with frozen(model.energy):
            return torch.cat([model.energy(to_network_range(part, self._device)).cpu() for part in images.split(64)])


def to_network_range(images: Tensor, device: torch.device) -> Tensor:
    """Images uint8 (N, C, H, W) as floats in [-1, 1], on the device."""
    return images.to(device, non_blocking=True).float().div_(127.5).sub_(1.0)
