"""Task of images, scored by FID along the chain."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Self

import torch
from torch import Tensor

from gebm import GEBM, networks
from gebm.classes import label_images
from pipeline.config import Config
from pipeline.config.metrics import MAX_SAMPLES, metric
from pipeline.config.schema import Sampler
from pipeline.config.scores import FID_INFINITY, NEAREST, STANDARD_ERROR
from pipeline.config.temperature import describe_temperature
from pipeline.config.training_parts import make_objective
from pipeline.data import (
    BatchSpec,
    DeviceResidentReader,
    Position,
    Reader,
    Store,
    fits_on_device,
    load_images,
    load_last_images,
)
from pipeline.data.classes import Classes
from pipeline.data.reading.reader import CACHE_BYTES
from pipeline.evaluation import metrics, plots
from pipeline.evaluation.base import Evaluation, EvaluationRun
from pipeline.evaluation.evaluator import evaluate
from pipeline.evaluation.local_chains import start_latents
from pipeline.evaluation.metrics.subsets import evenly_spaced_rows
from pipeline.evaluation.plots.evaluation_figures import EvaluationFigures, to_network_range
from pipeline.evaluation.shared_results import on_first_rank
from pipeline.runtime.errors import UserError
from pipeline.tasks.base import Report
from pipeline.tasks.open_store import open_data

__all__ = ["ImageScorer", "Images"]


class Images:
    """Images of one resolution, from a store of encoding ``images`` or ``blocks``.

    Args:
        config: The experiment.

    Attributes:
        config: The same.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    def check(self, store: Store) -> None:
        """Refuse a store of another resolution or filter, or one with less than a batch.

        Raises:
            UserError: The store does not fit; one line names the key.
        """
        data, manifest = self.config.data, store.manifest
        if (manifest.resolution, manifest.channels) != (data.resolution, data.channels):
            raise UserError(
                f"the store {store.url} holds images of {manifest.resolution} pixels and {manifest.channels} channels, "
                f"and conf={self.config.name} asks for data.resolution={data.resolution} data.channels={data.channels}"
            )
        # Stores had no other filter before there was a choice.
        resize_filter = manifest.resize_filter or "lanczos"
        if resize_filter != data.resize_filter:
            raise UserError(
                f"the images of the store {store.url} were resized with data.resize_filter={resize_filter}, and conf="
                f"{self.config.name} asks for data.resize_filter={data.resize_filter}: set the former, or name "
                "another store"
            )
        if networks.is_conditional(self.config.model.networks):
            num_classes = len(metrics.require_classes(store))
            if self.config.evaluation.per_class and num_classes > metrics.MAX_SCORED_CLASSES:
                raise UserError(
                    f"evaluation.per_class=true: the store {store.url} has {num_classes} classes, and "
                    f"{metrics.MAX_SCORED_CLASSES} at most have scores of their own; leave it out"
                )
        size = self.config.train.batch_size
        if manifest.num_samples < size:
            raise UserError(
                f"the store {store.url} has {manifest.num_samples} images, fewer than train.batch_size={size}"
            )
        if manifest.num_samples - data.held_out < size:
            raise UserError(
                f"the store {store.url} has {manifest.num_samples} images, and data.held_out={data.held_out} leaves "
                f"fewer than train.batch_size={size} to train on"
            )

    def is_prepared(self, store: Store) -> bool:
        """Return whether the classifier, the reference statistics and their images are saved with the store.

        For conditional networks the labels, too.
        """
        settings = self.config.evaluation
        if networks.is_conditional(self.config.model.networks) and not metrics.has_class_labels(store):
            return False
        # Published networks are large, and read where they are used.
        if settings.extractor != "classifier" or not metrics.has_classifier(store, settings.weights):
            return False
        label = self._extractor(store, torch.device("cpu")).label
        return metrics.has_reference(store, label) and metrics.has_reference_images(store)

    def prepare(self, store: Store, device: torch.device, report: Report | None = None) -> str:
        """Make the feature extractor and the reference statistics, and return the extractor's label."""
        training, statistics = (
            None if report is None else functools.partial(report, stage)
            for stage in ("training the classifier", "computing the statistics of the data")
        )
        if networks.is_conditional(self.config.model.networks):
            # Before what takes long: a store that lacks a label is refused.
            metrics.class_labels(store)
        extractor = self._extractor(store, device, training)
        metrics.require_logits(extractor, self.config.evaluation.metrics)
        metrics.reference(store, extractor, progress=statistics)
        metrics.reference_images(store)
        return extractor.label

    def measure(self, label: str | None) -> str:
        """Return FID, with its extractor."""
        return f"FID by {label}"

    def open(self, rank: int, world_size: int, device: torch.device) -> ImageTaskWorker:
        """Return the store's reader, the extractor and the reference statistics, on one worker."""
        store = open_data(self.config.data)
        return ImageTaskWorker(self.config, store, self._extractor(store, device), rank, world_size, device)

    def show(self, samples: Tensor) -> Tensor:
        """Return images in [-1, 1] (N, C, H, W) as uint8, without the classes that they may have."""
        return metrics.to_uint8(samples[:, : self.config.data.channels])

    def pictures(self, base: Tensor, gebm: Tensor) -> dict[str, bytes]:
        """Return a grid of the GEBM's images, and base and GEBM side by side."""
        temperature = describe_temperature(self.config.sampler.beta)
        return {
            "grid.png": plots.png(plots.grid(gebm, columns=8)),
            "base_and_gebm.png": plots.png(plots.side_by_side(base, gebm, temperature=temperature)),
        }

    def _extractor(
        self, store: Store, device: torch.device, progress: Callable[[int, int], None] | None = None
    ) -> metrics.Extractor:
        settings = self.config.evaluation
        return metrics.make_extractor(
            settings.extractor, store=store, weights=settings.weights, device=device, progress=progress
        )


class ImageScorer:
    """Scores of images, by torch-fidelity.

    Args:
        extractor: The feature extractor.
        reference: Statistics of the store in its features.
        extra: Which metrics are taken at the chain's ends, in addition to the FID.
        extrapolate: Whether the FID of infinitely many samples is taken there, too.
        images: Returns images of the store, for metrics of images.
        channels: Color channels, after which samples may have planes of their classes (default: all).
    """

    primary = "fid"

    def __init__(
        self,
        extractor: metrics.Extractor,
        reference: metrics.Reference,
        extra: list[str],
        extrapolate: bool = False,
        images: Callable[[], Tensor] | None = None,
        channels: int | None = None,
    ) -> None:
        self._extractor, self._reference, self._extra = extractor, reference.on(extractor.device), extra
        self._extrapolate, self._images, self._channels = extrapolate, images, channels
        self._num_kept = MAX_SAMPLES if any(metric(name).of == "images" for name in extra) else 0

    def kept_rows(self, total: int) -> Tensor:
        """Return which images metrics of images are given: evenly spaced ones, as many as these take at most."""
        return evenly_spaced_rows(total, self._num_kept)

    def show(self, samples: Tensor) -> Tensor:
        """Return images as uint8, without their classes."""
        return metrics.to_uint8(samples[:, : self._channels])

    def features(self, shown: Tensor) -> dict[str, Tensor]:
        """Return the extractor's layers."""
        return metrics.features(shown, self._extractor)

    def score(self, features: dict[str, Tensor], *, end: bool) -> dict[str, float]:
        """Return the FID, and at an end of the chain the other metrics and the distance to training images.

        Args:
            features: The extractor's layers, and ``images``, those that are kept, where a metric is of images.
            end: Whether it is an end of the chain.
        """
        names = tuple(dict.fromkeys(("fid", *self._extra))) if end else ("fid",)
        scores = metrics.score(features, self._reference, self._extractor, metrics=names, images=self._images)
        if end and self._extrapolate:
            value, error = metrics.fid_infinity(features["embedding"], self._reference)
            scores |= {FID_INFINITY: value, f"{FID_INFINITY}{STANDARD_ERROR}": error}
        if end:
            scores[NEAREST] = metrics.nn_distance_ratio(features["embedding"], self._reference, self._among_data)
        return scores

    @functools.cached_property
    def _among_data(self) -> float:
        return metrics.mean_nn_distance(self._reference.features)


class ImageTaskWorker:
    """Task of images on one worker.

    Args:
        config: The experiment.
        store: The images.
        extractor: The feature extractor, on ``device``.
        rank: This worker.
        world_size: Number of workers.
        device: Where batches and the model are.

    Attributes:
        label: The extractor's label.
        reference: Features of the store's images (M, F).
    """

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
        settings = config.evaluation
        if settings.fid_infinity:
            fewest = min(settings.num_samples, settings.final_samples or settings.num_samples)
            metrics.require_samples(fewest, len(statistics.mu))
        self._statistics = statistics
        images = functools.partial(metrics.reference_images, store)
        self._scorer = ImageScorer(
            extractor, statistics, settings.metrics, settings.fid_infinity, images, config.data.channels
        )
        self.label: str | None = extractor.label
        self.reference = statistics.features
        self._figures = EvaluationFigures(
            store, statistics.features, extractor.label, device, lambda: self._reference_labels
        )
        self._trained = make_objective(config.train).trains_log_partition

    @property
    def held_out(self) -> Tensor:
        """Images at the end of the store that no batch contains, in [-1, 1]; read at the first use."""
        return self._held_out

    @property
    def seen(self) -> Tensor:
        """As many images of the training set, in [-1, 1]: the first of the store; read at the first use."""
        return self._seen

    @functools.cached_property
    def _held_out(self) -> Tensor:
        count = self._config.data.held_out
        images = to_network_range(load_last_images(self._store, count), self._device)
        return self._with_classes(images, slice(len(self._labels) - count, None))

    @functools.cached_property
    def _seen(self) -> Tensor:
        count = self._config.data.held_out
        images, _ = load_images(self._store, limit=count)
        return self._with_classes(to_network_range(images, self._device), slice(count))

    @property
    def classes(self) -> Classes | None:
        """Classes of the store, where the networks are conditional; read at the first use."""
        return self._classes

    @functools.cached_property
    def _classes(self) -> Classes | None:
        return metrics.classes_of(self._store, self._labels) if self._is_conditional else None

    @property
    def _is_conditional(self) -> bool:
        return networks.is_conditional(self._config.model.networks)

    @functools.cached_property
    def _labels(self) -> Tensor:
        """Labels of all images, in the store's order; empty where the networks are not conditional."""
        return metrics.class_labels(self._store) if self._is_conditional else torch.empty(0, dtype=torch.int64)

    @functools.cached_property
    def _reference_labels(self) -> Tensor:
        return metrics.reference_labels(self._labels)

    def _with_classes(self, images: Tensor, rows: slice) -> Tensor:
        """Return images, which are these rows of the store, with their classes where the networks are conditional."""
        if self.classes is None:
            return images
        return label_images(images, self._labels[rows], len(self.classes))

    @property
    def lanes(self) -> int:
        """One for a store that any machine's memory holds, unless it has to be streamed; else ``data.lanes``.

        The free memory of a device plays no part, so that a seed's batches are the same on any.
        """
        data, manifest = self._config.data, self._store.manifest
        is_small = manifest.num_samples * manifest.sample_bytes <= CACHE_BYTES
        return 1 if is_small and data.device_resident is not False else data.lanes

    @functools.cached_property
    def _resident(self) -> bool:
        resident = self._config.data.device_resident
        return fits_on_device(self._store, self._device) if resident is None else resident

    def batches(self, position: Position) -> _Batches:
        """Return batches of images in [-1, 1] from a position on, from the device's memory or else streamed.

        A small store is device-resident although ``data.num_workers`` requests processes: nothing is left for them to
        read, each would keep a copy of its own, and handing a batch over takes longer than indexing it.
        """
        data, device = self._config.data, self._device
        spec = BatchSpec(
            batch_size=self._config.train.batch_size,
            rank=self._rank,
            world_size=self._world_size,
            seed=self._config.seed,
            position=position,
            held_out=data.held_out,
        )
        tolerance, depth = data.max_bad_shards, data.prefetch_shards
        if self._resident:
            reader = DeviceResidentReader(self._store, device, spec, max_bad_shards=tolerance, prefetch_shards=depth)
        else:
            workers = int(device.type == "cuda") if data.num_workers is None else data.num_workers
            reader = Reader(self._store, spec, num_workers=workers, max_bad_shards=tolerance, prefetch_shards=depth)
        return _Batches(reader, device, 0 if self.classes is None else len(self.classes))

    def features(self, samples: Tensor) -> Tensor:
        """Return the embeddings of images in [-1, 1]."""
        return metrics.features(self._scorer.show(samples), self._extractor)["embedding"]

    def with_sampler(self, sampler: Sampler) -> Self:
        """Return the same images, sampled with other settings."""
        other = copy.copy(self)
        other._config = dataclasses.replace(self._config, sampler=sampler)
        return other

    def draw_start(self, model: GEBM) -> dict[str, bytes]:
        """Return a grid of the base's images of the same latents as in each evaluation, for each of its pictures."""
        latents, _ = start_latents(model, self._config, self._world_size)
        return self._figures.draw_start(model, latents[: self._config.evaluation.grid])

    def evaluate(self, model: GEBM, run: EvaluationRun | None = None) -> Evaluation:
        """Return the FID of base and GEBM and along the chain, with pictures on the first worker."""
        evaluation = evaluate(model, self._config, self._scorer, run, rank=self._rank, world_size=self._world_size)
        if self._config.evaluation.per_class:
            score_classes = functools.partial(self._score_classes, model, evaluation)
            evaluation.scores |= on_first_rank(score_classes, self._rank, self._world_size)
        if self._rank == 0:
            temperature = describe_temperature(self._config.sampler.beta)
            evaluation.draw = functools.partial(
                self._figures.draw, model, trained=self._trained, temperature=temperature
            )
        return evaluation

    def _score_classes(self, model: GEBM, evaluation: Evaluation) -> dict[str, float]:
        """Return the FID of each class at both ends of the chains."""
        scores: dict[str, float] = {}
        for name, end in evaluation.ends.items():
            _, classes = model.split_latents(end.latents)
            if classes is not None:
                labels = classes.argmax(1)
                scores |= metrics.score_classes(end.features, labels, self._class_references, self._extractor, name)
        return scores

    @functools.cached_property
    def _class_references(self) -> dict[int, metrics.Reference]:
        references = metrics.class_references(self._statistics, self._reference_labels, len(self.classes or ()))
        return {label: one.on(self._extractor.device) for label, one in references.items()}


class _Batches(Iterator[Tensor]):
    """The reader's batches as the networks take them, with the position after the last one that was taken."""

    def __init__(self, reader: DeviceResidentReader | Reader, device: torch.device, num_classes: int) -> None:
        self._batches, self._device, self._num_classes = iter(reader), device, num_classes
        self.position = reader.position
        self.notes: tuple[str, ...] = ()
        self.bad_shards = 0

    def __next__(self) -> Tensor:
        batch = next(self._batches)
        self.position, self.notes, self.bad_shards = batch.position, batch.notes, batch.bad_shards
        images = to_network_range(batch.images, self._device)
        return label_images(images, batch.labels, self._num_classes) if self._num_classes else images
