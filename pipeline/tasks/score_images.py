"""Scores of images against a store, without a model: folders, archives, arrays and stores."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import strftime
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pipeline.config import Config, invocation
from pipeline.config.metrics import MAX_SAMPLES, metric
from pipeline.config.metrics import names as metric_names
from pipeline.config.part_checks import check_metrics
from pipeline.config.schema import Evaluation
from pipeline.config.scores import FID_INFINITY, STANDARD_ERROR, plus_minus, standard_error_of
from pipeline.config.validation import validate_image_scores
from pipeline.data import MissingStore, Store
from pipeline.data.permutation import permutation
from pipeline.evaluation import metrics
from pipeline.evaluation.image_sets import ImageFit, ImageSet, StoreImages, open_image_set
from pipeline.evaluation.metrics.set_features import MAX_COMPARED, extract_all, store_embedding
from pipeline.evaluation.metrics.subsets import evenly_spaced_rows
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import require_writable, write_file, writing
from pipeline.runtime.redaction import without_query
from pipeline.runtime.terminal import Progress, make_console
from pipeline.tasks.open_store import open_data

__all__ = ["score_images"]


def score_images(config: Config, overrides: Mapping[str, Any]) -> None:
    """Score images against a store, print the scores, and write them.

    Without ``evaluation.metrics`` all metrics are taken, and without ``evaluation.num_samples`` all images, up to
    100,000. Of up to as many images on each side every score is torch-fidelity's own of the same files, to the last
    digits that it prints.

    Args:
        config: ``images``, ``against``, ``evaluation``, ``data`` as far as it says how a store is read, ``seed``, and
            ``output`` (default: ``results/evaluation-<time>``).
        overrides: Keys that the command line names.

    Raises:
        UserError: A key is missing or has no such value, there are no images or too few, they have another form than
            the store's, or the output cannot be written.
    """
    config, num_samples = _own_settings(config, overrides)
    validate_image_scores(config)
    output = config.output or str(Path("results", f"evaluation-{strftime('%Y%m%d-%H%M%S')}").absolute())
    require_writable(output)
    console, store = make_console(), _open_against(config)
    data = StoreImages(store)
    open_store = functools.partial(_open_store, config)
    with closing(open_image_set(str(config.images), ImageFit(store, config.evaluation.resize), open_store)) as images:
        for note in images.notes:
            console.print(note, highlight=False, soft_wrap=True)
        chosen = _choose(images, num_samples, config.seed)
        comparison = _Comparison(config.evaluation, images, chosen, store, data)
        count = comparison.count
        comparison.require_enough()
        side = store.manifest.resolution or 0
        check_metrics(config.evaluation.metrics, (store.manifest.channels, side, side))
        extractor = comparison.make_extractor(console)
        scores = comparison.score(extractor)
    payload = {
        "images": without_query(config.images),
        "against": store.url,
        "measure": f"FID by {extractor.label}",
        "extractor": extractor.label,
        "num_samples": count,
        "num_data": len(data),
        "data": store.manifest.digest,
        "resize": config.evaluation.resize,
        "scores": scores,
    }
    # What took hours is on the screen, whatever becomes of the disk.
    _print_scores(console, payload)
    with writing(output):
        write_file(f"{output}/evaluation.json", json.dumps(payload, indent=1).encode())
    console.print(f"results  {output}", highlight=False)


@dataclass(frozen=True)
class _Comparison:
    """Images, which of them are taken, and the store they are compared with.

    Args:
        settings: What is measured.
        images: The images.
        chosen: Which are taken, bool (N,); ``None`` for all.
        store: The store.
        data: Its images.
    """

    settings: Evaluation
    images: ImageSet
    chosen: Tensor | None
    store: Store
    data: StoreImages

    @property
    def count(self) -> int:
        """Number of images that are taken."""
        return len(self.images) if self.chosen is None else int(self.chosen.sum())

    def require_enough(self) -> None:
        """Refuse fewer images, on either side, than a metric needs.

        Raises:
            UserError: There are fewer.
        """
        for name in self.settings.metrics:
            for url, count in ((self.images.url, self.count), (self.store.url, len(self.data))):
                if count < (fewest := metric(name).fewest):
                    raise UserError(
                        f"{name} needs {fewest} images on both sides, and of {url} there are {count}: "
                        "take more, or name other metrics by evaluation.metrics"
                    )

    def make_extractor(self, console: Console) -> metrics.Extractor:
        """Return the feature extractor; a classifier is trained where the store has none yet."""
        name, weights = self.settings.extractor, self.settings.weights
        if name == "classifier" and self.store.manifest.labels and not metrics.has_classifier(self.store, weights):
            console.print("training the classifier of the store", highlight=False)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        extractor = metrics.make_extractor(name, store=self.store, weights=weights, device=device)
        metrics.require_logits(extractor, self.settings.metrics)
        return extractor

    def score(self, extractor: metrics.Extractor) -> dict[str, float]:
        """Return the scores and their standard errors, with progress on standard error."""
        names = self.settings.metrics
        needs_images = any(metric(name).of == "images" for name in names)
        kept = evenly_spaced_rows(self.count, MAX_SAMPLES) if needs_images else None
        with Progress(self.count + len(self.data)) as progress:
            batches = functools.partial(self.images.batches, chosen=self.chosen)
            samples = extract_all(batches, extractor, progress.advance, kept)
            if len(self.data) <= MAX_COMPARED:
                embedding = store_embedding(self.store, self.data.batches, extractor, progress.advance)
                reference = metrics.Reference.of_features(extractor.label, embedding)
            else:
                reference = metrics.reference(self.store, extractor, progress=_Steps(progress.advance))
        reference = reference.on(extractor.device)
        images = functools.partial(metrics.reference_images, self.store)
        if len(reference.features) == len(self.data):
            scores = metrics.compare(samples, reference, names, images)
        else:
            scores = metrics.score(samples, reference, extractor, names, images)
        if self.settings.fid_infinity:
            value, error = metrics.fid_infinity(samples["embedding"], reference)
            scores |= {FID_INFINITY: value, f"{FID_INFINITY}{STANDARD_ERROR}": error}
        return scores


class _Steps:
    """Callback of a progress in samples that are done, for one that counts those that are new.

    Args:
        advance: Called with the number of new samples.
    """

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance, self._done = advance, 0

    def __call__(self, done: int, total: int) -> None:
        self._advance(done - self._done)
        self._done = done


def _own_settings(config: Config, overrides: Mapping[str, Any]) -> tuple[Config, int | None]:
    """Return the config with the settings of an evaluation that belong to no model, and the number of images.

    The command line has an experiment by default, which says nothing of images that others made: only one that it names
    decides what is measured, and a key that is typed.
    """
    typed = {name for key in overrides for name in _names_below(key, overrides[key])}
    settings = config.evaluation
    if not invocation.current().names_conf:
        has_logits = metrics.extractors.has_logits(settings.extractor)
        own: dict[str, Any] = {"metrics": [name for name in metric_names() if name != "is" or has_logits]}
        settings = Evaluation(**own | {name: getattr(config.evaluation, name) for name in typed})
    count = settings.num_samples if "num_samples" in typed else None
    return dataclasses.replace(config, evaluation=settings), count


def _names_below(key: str, value: Any) -> list[str]:
    """Return the names of the keys of ``evaluation`` that an override sets, which may be one of all of them."""
    if key == "evaluation" and isinstance(value, Mapping):
        return [str(name) for name in value]
    group, _, name = key.partition(".")
    return [name] if group == "evaluation" and name else []


def _open_store(config: Config, url: str) -> Store:
    return open_data(dataclasses.replace(config.data, store=url, max_bad_shards=0))


def _open_against(config: Config) -> Store:
    try:
        return _open_store(config, str(config.against))
    except MissingStore as error:
        raise UserError(
            f"against={config.against}: {error}; `python -m pipeline.shards data.source.kind=images "
            "data.source.url=<folder or archive> data.store=<name>` makes one of images"
        ) from None


def _choose(images: ImageSet, num_samples: int | None, seed: int) -> Tensor | None:
    """Return which images are taken, bool (N,), a seeded uniform subset; ``None`` for all."""
    total = len(images)
    if not total:
        raise UserError(f"there are no images in {images.url}: check images=...")
    count = min(total, MAX_COMPARED) if num_samples is None else num_samples
    if not 0 < count <= total:
        raise UserError(f"evaluation.num_samples={count}: {images.url} has {total} images; leave it out to take all")
    if count == total:
        return None
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[torch.from_numpy(permutation(total, seed)[:count])] = True
    return chosen


def _print_scores(console: Console, payload: Mapping[str, Any]) -> None:
    console.print(
        f"{payload['num_samples']:,} images of {payload['images']} against {payload['num_data']:,} of "
        f"{payload['against']}, by {payload['extractor']}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table()
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, value in payload["scores"].items():
        if not name.endswith(STANDARD_ERROR):
            table.add_row(name, plus_minus(value, standard_error_of(payload["scores"], name)))
    console.print(table)
