"""Images, judged by FID along the chain."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from gebm import GEBM, objectives
from pipeline.config import Config
from pipeline.config.temperature import describe_temperature
from pipeline.data import (
    Batch,
    DeviceResidentReader,
    Position,
    Reader,
    Store,
    fits_on_device,
    load_images,
    load_last_images,
)
from pipeline.evaluation import metrics, plots
from pipeline.evaluation.evaluator import Evaluation, evaluate
from pipeline.evaluation.plots.evaluation_page import EvaluationFigures, to_network_range
from pipeline.runtime.errors import UserError
from pipeline.tasks.store import open_data

__all__ = ["ImageScorer", "Images"]


class Images:
    """Images of one resolution, from a store of encoding ``images`` or ``blocks``.

    Args:
        config: The experiment.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def check(self, store: Store) -> None:
        """Refuse a store of another resolution, or one with less than a batch.

        Raises:
            UserError: One line that names the key.
        """
        data, found = self._config.data, store.manifest
        if (found.resolution, found.channels) != (data.resolution, data.channels):
            raise UserError(
                f"the store {store.url} holds images of {found.resolution} pixels and {found.channels} channels, and "
                f"conf={self._config.name} asks for data.resolution={data.resolution} data.channels={data.channels}"
            )
        size = self._config.train.batch_size
        if found.num_samples < size:
            raise UserError(f"the store {store.url} has {found.num_samples} images, fewer than train.batch_size={size}")
        if found.num_samples - data.held_out < size:
            raise UserError(
                f"the store {store.url} has {found.num_samples} images, and data.held_out={data.held_out} leaves fewer "
                f"than train.batch_size={size} to train on"
            )

    def prepare(self, store: Store, device: torch.device) -> str:
        """Make the feature extractor and the reference statistics, and give the extractor's label."""
        extractor = self._extractor(store, device)
        metrics.reference(store, extractor)
        metrics.reference_images(store)
        return extractor.label

    def measure(self, label: str | None) -> str:
        """FID, with its extractor."""
        return f"FID by {label}"

    def open(self, rank: int, world_size: int, device: torch.device) -> ImageTaskWorker:
        """The store's reader, the extractor and the reference statistics, on one worker."""
        store = open_data(self._config.data)
        return ImageTaskWorker(self._config, store, self._extractor(store, device), rank, world_size, device)

    def show(self, samples: Tensor) -> Tensor:
        """Images in [-1, 1] (N, C, H, W) as uint8."""
        return metrics.to_uint8(samples)

    def pictures(self, base: Tensor, gebm: Tensor) -> dict[str, bytes]:
        """A grid of the GEBM's images, and both side by side."""
        temperature = describe_temperature(self._config.sampler.beta)
        return {
            "grid.png": plots.png(plots.grid(gebm, columns=8)),
            "base_and_gebm.png": plots.png(plots.side_by_side(base, gebm, temperature=temperature)),
        }

    def _extractor(self, store: Store, device: torch.device) -> metrics.Extractor:
        settings = self._config.evaluation
        return metrics.make_extractor(settings.extractor, store=store, weights=settings.weights, device=device)


class ImageScorer:
    """Images, by torch-fidelity.

    Args:
        extractor: The feature extractor.
        reference: What the store looks like to it.
        wanted: Which of ``fid``, ``kid``, ``is`` and ``prc`` are taken at the chain's ends, besides the FID.
    """

    primary = "fid"

    def __init__(self, extractor: metrics.Extractor, reference: metrics.Reference, wanted: list[str]) -> None:
        self._extractor, self._reference, self._wanted = extractor, reference, wanted

    def show(self, samples: Tensor) -> Tensor:
        """Images as uint8."""
        return metrics.to_uint8(samples)

    def features(self, shown: Tensor) -> dict[str, Tensor]:
        """The extractor's two layers."""
        return metrics.features(shown, self._extractor)

    def score(self, features: dict[str, Tensor], *, end: bool) -> dict[str, float]:
        """FID, and at an end of the chain what else was asked for, and how far the samples are from training images."""
        wanted = tuple(dict.fromkeys(("fid", *self._wanted))) if end else ("fid",)
        found = metrics.score(features, self._reference, self._extractor, metrics=wanted)
        if end:
            found["nearest"] = metrics.nn_distance_ratio(features["embedding"], self._reference, self._among_data)
        return found

    @functools.cached_property
    def _among_data(self) -> float:
        return metrics.mean_nn_distance(self._reference.features)


class ImageTaskWorker:
    """Images on one worker."""

    def __init__(
        self,
        config: Config,
        store: Store,
        extractor: metrics.Extractor,
        rank: int,
        world_size: int,
        device: torch.device,
    ) -> None:
        self._config, self._store, self._extractor = config, store, extractor
        self._rank, self._world_size, self._device = rank, world_size, device
        statistics = metrics.reference(store, extractor)
        self._judge = ImageScorer(extractor, statistics, config.evaluation.metrics)
        self.label = extractor.label
        self.reference = statistics.features
        temperature = describe_temperature(config.sampler.beta)
        self._page = EvaluationFigures(store, statistics.features, extractor.label, device, temperature)
        self._trained = objectives.make(config.train.objective).trains_log_partition

    @functools.cached_property
    def held_out(self) -> Tensor:
        """The images at the end of the store that no batch has, in [-1, 1]."""
        return to_network_range(load_last_images(self._store, self._config.data.held_out), self._device)

    @functools.cached_property
    def seen(self) -> Tensor:
        """As many images that batches have, in [-1, 1]: the first of the store."""
        images, _ = load_images(self._store, limit=self._config.data.held_out)
        return to_network_range(images, self._device)

    def batches(self, position: Position) -> _Batches:
        """Images in [-1, 1] from a position on, of a store that is held on the device or else read as it goes.

        A small store is held although ``data.num_workers`` asks for processes: there is nothing left for them to read,
        each would come to keep a copy of its own, and handing a batch over takes longer than indexing it.
        """
        data, device = self._config.data, self._device
        order = {
            "batch_size": self._config.train.batch_size,
            "rank": self._rank,
            "world_size": self._world_size,
            "seed": self._config.seed,
            "position": position,
            "max_bad_shards": data.max_bad_shards,
            "read_ahead": data.prefetch_shards,
            "held_out": data.held_out,
        }
        if fits_on_device(self._store, device) if data.device_resident is None else data.device_resident:
            reader = DeviceResidentReader(self._store, device, **order)
        else:
            ahead = int(device.type == "cuda") if data.num_workers is None else data.num_workers
            reader = Reader(self._store, num_workers=ahead, **order)
        return _Batches(reader, position, device)

    def features(self, samples: Tensor) -> Tensor:
        """Embeddings of images in [-1, 1]."""
        return metrics.features(metrics.to_uint8(samples), self._extractor)["embedding"]

    def evaluate(self, model: GEBM, advance: Callable[[int], None] = lambda steps: None) -> Evaluation:
        """FID of base and GEBM and along the chain, and pictures of where it leads, on the first worker."""
        found = evaluate(
            model, self._config, self._judge, rank=self._rank, world_size=self._world_size, advance=advance
        )
        if self._rank == 0:
            found.pictures = self._page.draw(model, found, self._trained)
        return found


class _Batches(Iterator[Tensor]):
    """The reader's batches as the networks take them, and the position after the last one that was used."""

    def __init__(self, reader: Iterable[Batch], position: Position, device: torch.device) -> None:
        self._batches, self._device = iter(reader), device
        self.position = position
        self.notes: tuple[str, ...] = ()
        self.bad_shards = 0

    def __next__(self) -> Tensor:
        batch = next(self._batches)
        self.position, self.notes, self.bad_shards = batch.position, batch.notes, batch.bad_shards
        return to_network_range(batch.images, self._device)
