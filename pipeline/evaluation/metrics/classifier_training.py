"""Classifier of a store: its URL, and its training on the store's own labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data import Store
from pipeline.evaluation.metrics.classifier import Classifier, ClassifierFeatures
from pipeline.evaluation.metrics.subsets import iter_subset
from pipeline.runtime import safetensors_io
from pipeline.runtime.cpu_seed import cpu_seed
from pipeline.runtime.errors import UserError

__all__ = [
    "classifier_label",
    "classifier_url",
    "has_classifier",
    "load_classifier",
    "train_classifier",
]

# More samples than this add little, and all of them are in memory during training.
_MAX_SAMPLES = 100_000
_HELD_OUT = 0.1
_BATCH_SIZE = 128
_LEARNING_RATE = 4e-3
_WEIGHT_DECAY = 1e-2


def classifier_label(network: ClassifierFeatures) -> str:
    """Return the label of its metrics: ``classifier-`` and the first eight digits of its training data's digest."""
    return f"classifier-{network.header['digest'][:8]}"


def classifier_url(store: Store) -> str:
    """Return the URL of the store's classifier."""
    return f"{store.url.rstrip('/')}/extractors/classifier-{store.manifest.digest[:8]}.safetensors"


def has_classifier(store: Store, weights: str | None = None) -> bool:
    """Return whether a store's classifier is there, or the one of another store, unread."""
    return safetensors_io.exists(weights or classifier_url(store))


def load_classifier(store: Store, weights: str | None = None) -> ClassifierFeatures:
    """Load a classifier, both layers, on the CPU.

    Args:
        store: The store that is to be measured.
        weights: URL of the classifier of another store; ``None`` for the store's own.

    Returns:
        The extractor, in evaluation mode.

    Raises:
        UserError: It is missing, unreadable, of images of another size, or is the store's own and was trained on
            other data.
    """
    url = weights or classifier_url(store)
    extractor = ClassifierFeatures("classifier", ["penultimate", "logits"], feature_extractor_weights_path=url)
    manifest = store.manifest
    required: dict[str, object] = {"resolution": manifest.resolution, "channels": manifest.channels}
    if weights is None:
        required["digest"] = manifest.digest
    for key, value in required.items():
        if extractor.header.get(key) != value:
            remedy = "take one of another store" if weights else "delete it to train anew"
            raise UserError(
                f"{url} was trained on data with {key} {extractor.header.get(key)}, the store has {value}: {remedy}"
            )
    return extractor


def train_classifier(
    store: Store,
    *,
    device: str | torch.device = "cpu",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Train the store's classifier on 90 % of its samples, measure it on the rest, and save it next to the store.

    It sees ten epochs of the training samples, but no fewer than 30,000 and no more than 450,000 samples: seconds
    for the digits, two minutes for 50,000 photographs of 32x32 on two processor cores. Residual network: He et al.,
    "Deep residual learning", CVPR 2016; optimizer: Loshchilov and Hutter, "Decoupled weight decay", ICLR 2019.

    Args:
        store: A labelled store.
        device: Where to train.
        seed: Of the split, the initial weights, the order and the shifts. On one machine the same seed gives the
            same weights.
        progress: Called with (samples seen, samples in all) after every hundred batches.

    Returns:
        The URL of the safetensors file. Its header has ``accuracy`` (on the held-out samples), ``num_train``,
        ``num_held_out``, ``seed``, and the store's ``digest``, ``resolution`` and ``channels``.

    Raises:
        UserError: The store has no labels, or cannot be written.
    """
    device = torch.device(device)
    manifest, url = store.manifest, classifier_url(store)
    if manifest.resolution is None:
        raise UserError(f"{store.url} holds rows: a classifier takes images")
    trained_before = safetensors_io.exists(url)
    train, held_out, num_classes = _split(*_load_labelled(store, seed), device)
    with cpu_seed(seed):
        network = Classifier(manifest.resolution, manifest.channels, num_classes)
    # torch's annotations of ``Module.to`` lack the combination of a device and a memory format.
    network = network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    with _useful_threads(manifest.resolution):
        _fit(network, *train, torch.Generator().manual_seed(seed), progress)
    header = {
        "digest": manifest.digest,
        "resolution": manifest.resolution,
        "channels": manifest.channels,
        "num_classes": num_classes,
        "num_train": len(train[0]),
        "num_held_out": len(held_out[0]),
        "accuracy": _accuracy(network.eval(), *held_out),
        "seed": seed,
    }
    # Where another process was faster, both have to measure in the same features: its classifier is taken.
    if trained_before or not safetensors_io.exists(url):
        _save(network, header, url)
    return url


def _load_labelled(store: Store, seed: int) -> tuple[Tensor, Tensor]:
    """Load at most ``_MAX_SAMPLES`` images uint8 (N, C, H, W) and labels (N,), in a seeded random order.

    Raises:
        UserError: The store has no labels, or too few of them.
    """
    num_samples = min(store.manifest.num_samples, _MAX_SAMPLES)
    images, labels = [], []
    for image_batch, label_batch in iter_subset(store, num_samples, seed=seed, batch_size=1000):
        if label_batch is None:
            raise UserError(
                f"{store.url} has no labels to train a classifier on: "
                "pass `evaluation.extractor=inception-v3-compat evaluation.weights=<file>`, or as `evaluation.weights` "
                "the classifier of a labelled store (its extractors/*.safetensors)"
            )
        images.append(image_batch)
        labels.append(label_batch)
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed))
    all_labels = torch.cat(labels)[order]
    if all_labels.min() < 0 or all_labels.unique().numel() < 2 or num_samples < 20:
        raise UserError(f"{store.url} has too few samples or classes, or negative labels: choose another extractor")
    return torch.cat(images)[order], all_labels


def _split(
    images: Tensor, labels: Tensor, device: torch.device
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], int]:
    """Return training images and labels, held-out images and labels, on the device, and the number of classes."""
    num_train = len(images) - max(1, round(_HELD_OUT * len(images)))
    num_classes = int(labels.max()) + 1
    images, labels = images.to(device), labels.to(device)
    return (images[:num_train], labels[:num_train]), (images[num_train:], labels[num_train:]), num_classes


def _random_shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift a batch by up to 1/8 of its size, the one augmentation that is as good for digits as for photographs."""
    reach = images.shape[-1] // 8
    dy, dx = (int(d) for d in torch.randint(-reach, reach + 1, (2,), generator=generator))
    padded = F.pad(images, (reach, reach, reach, reach))
    return padded[..., reach + dy : reach + dy + images.shape[-2], reach + dx : reach + dx + images.shape[-1]]


def _fast_bfloat16(device: torch.device) -> bool:
    # Older processors emulate bfloat16, slower than float32.
    return device.type == "cuda" or "AVX512" in torch.backends.cpu.get_cpu_capability()


@contextmanager
def _useful_threads(resolution: int) -> Iterator[None]:
    """Use one thread for tiny images: more gain nothing, and wait for one another where the machine is busy."""
    before = torch.get_num_threads()
    if resolution <= 16:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fit(
    network: Classifier,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Train on images uint8 (N, C, H, W) and labels (N,), which are on the network's device."""
    device, batch_size = images.device, min(_BATCH_SIZE, len(images))
    per_epoch = len(images) // batch_size
    num_steps = min(450_000, max(30_000, 10 * len(images))) // batch_size
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=num_steps + 1)

    order = torch.empty(0, dtype=torch.long)
    for step in range(num_steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(images), generator=generator).to(device)
        start = step % per_epoch * batch_size
        index = order[start : start + batch_size]
        with torch.autocast(device.type, torch.bfloat16, enabled=_fast_bfloat16(device)):
            _, logits = network(_random_shift(images[index], generator))
        loss = F.cross_entropy(logits.float(), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None and (step % 100 == 99 or step == num_steps - 1):
            progress((step + 1) * batch_size, num_steps * batch_size)


@torch.no_grad()
def _accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of images that a network, in evaluation mode, classifies as labelled."""
    correct = sum(
        int((network(x)[1].argmax(dim=1) == y).sum())
        for x, y in zip(images.split(1000), labels.split(1000), strict=True)
    )
    return correct / len(images)


def _save(network: Classifier, header: dict[str, object], url: str) -> None:
    """Save a classifier.

    Raises:
        UserError: It cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    try:
        safetensors_io.write(url, tensors, header)
    except safetensors_io.TensorFileError as error:
        raise UserError(
            f"the trained classifier cannot be saved ({error}): make the store writable, or pass "
            "`evaluation.extractor=inception-v3-compat evaluation.weights=<file>`"
        ) from error
