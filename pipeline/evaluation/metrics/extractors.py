"""Feature extractors, which map images to the vectors that all metrics compare.

Those of torch-fidelity and the classifier are here; one of one's own is a function that builds its module::

    @metrics.extractors.register("gray", channels=1)
    def gray(weights: dict[str, Tensor]) -> nn.Module: ...
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch_fidelity import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor

from gebm.precision import arithmetic
from gebm.registry import REQUIRED, Part, Registry
from pipeline.data import Store
from pipeline.evaluation.metrics.classifier_training import (
    classifier_label,
    classifier_url,
    load_classifier,
    train_classifier,
)
from pipeline.evaluation.metrics.own_features import OwnFeatures
from pipeline.runtime import safetensors_io
from pipeline.runtime.errors import UserError, one_line
from pipeline.runtime.part_code import code_digest
from pipeline.runtime.weights_file import read_tensors

__all__ = ["NAMES", "Extractor", "features", "has_logits", "make_extractor", "register", "require_logits", "to_uint8"]

# Where the published weights are, and the first digits of their SHA-256, which a download has to match.
_PUBLISHED = {
    "inception-v3-compat": (
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "6726825d",
    ),
    "vgg16": ("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"),
}
# These fetch and run code or TorchScript archives from the network; there is no safe way to load them.
_RUNS_FOREIGN_CODE = re.compile(r"(clip|dinov2)-")


NAMES: Registry[Callable[..., nn.Module]] = Registry(
    "feature extractor",
    given=("weights",),
    facts={"channels": 3, "batch_size": 64, "logits": False},
    choices={"channels": (1, 3), "batch_size": range(1, 10_001)},
    taken=("classifier", *FEATURE_EXTRACTORS_REGISTRY),
    has_settings=False,
)
"""Feature extractors of one's own.

Their facts: the channels of the images that they take, how many at once, and whether they have logits as well, which
the Inception score needs.
"""

register = NAMES.register
"""Register a function that returns a module, given the tensors of ``evaluation.weights`` where it has ``weights``.

The module maps images, uint8 (N, C, H, W), to their features (N, F), or to a pair of these and logits (N, K).
"""


@dataclass(frozen=True)
class Extractor:
    """A feature extractor, with the name that metrics carry.

    Attributes:
        label: Full name, such as ``inception-v3-compat`` or ``classifier-1a2b3c4d``: figures with different labels
            cannot be compared. Weights other than the published ones add their own digest.
        network: Torch-fidelity's module.
        layer: The layer that distances are taken in.
        logits_layer: The layer of the Inception score; ``None`` where it has none.
        channels: Channels of the images it takes.
        digest: SHA-256 of its weights' file, hexadecimal; what is computed with other weights is never reused.
        device: Where it runs.
        batch_size: Images at a time.
    """

    label: str
    network: FeatureExtractorBase | OwnFeatures
    layer: str
    logits_layer: str | None
    channels: int
    digest: str
    device: torch.device
    batch_size: int

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Extract one batch.

        Args:
            images: Images, uint8 (N, C, H, W) on any device; one channel is repeated where the extractor wants three.

        Returns:
            ``embedding`` (N, F), the layer that distances are taken in, and, where it has them, ``logits`` (N, K), the
            layer whose softmax the Inception score uses: float32, on the extractor's device.

        Raises:
            UserError: Images of another type or shape, or features that are not finite.
        """
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise UserError(
                f"metrics take uint8 images (N, C, H, W), not {images.dtype} {tuple(images.shape)}: use `to_uint8`"
            )
        if images.shape[1] == 1 and self.channels == 3:
            images = images.expand(-1, 3, -1, -1)
        if images.shape[1] != self.channels:
            raise UserError(f"{self.label} takes {self.channels} channels, the images have {images.shape[1]}")
        with arithmetic("float32"), torch.no_grad():
            tensors = self.network(images.to(self.device))
        layers = self.network.convert_features_tuple_to_dict(tensors)
        requested = {"embedding": layers[self.layer].float()}
        if self.logits_layer is not None:
            requested["logits"] = layers[self.logits_layer].float()
        if not all(bool(tensor.isfinite().all()) for tensor in requested.values()):
            raise UserError(f"{self.label} gives features that are not finite: its weights are damaged, get them again")
        return requested


def to_uint8(images: Tensor) -> Tensor:
    """Turn a network's output into the images that are saved and measured.

    Args:
        images: (N, C, H, W) floats in [-1, 1]; what is outside is clamped.

    Returns:
        uint8 of the same shape: -1 is 0, 1 is 255, rounded to nearest.

    Raises:
        UserError: Some are not finite, as after a chain that diverged.

    Example:
        >>> to_uint8(torch.tensor([[[[-1.0, 0.0, 1.0, 1.5]]]])).flatten().tolist()
        [0, 128, 255, 255]
    """
    if not bool(images.isfinite().all()):
        raise UserError("some images are not finite, the chain diverged: lower `sampler.step_size` or `sampler.beta`")
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def make_extractor(
    name: str,
    *,
    store: Store | None = None,
    weights: str | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Extractor:
    """Make a feature extractor by name.

    Args:
        name: ``classifier``, trained on the labelled store itself and saved next to it, or on another
            one (``weights``);
            ``inception-v3-compat``, the standard FID (Heusel et al., 2017); ``vgg16``; one that was registered with
            ``torch_fidelity.register_feature_extractor``; or one of one's own, of :data:`NAMES`.
        store: The store, for ``classifier``.
        weights: For ``classifier``, the file that was saved next to a labelled store of the same resolution, at any
            fsspec URL: a store without labels can be measured in those features. For the others, a local file,
            ``.safetensors`` or PyTorch's; without it the published weights are downloaded once and checked by their
            hash. Never unpickles more than tensors.
        device: Where it runs.
        progress: Of the classifier's training, if it has to be trained: samples seen, samples in all.

    Returns:
        The extractor.

    Raises:
        UserError: Unknown name, no store or no labels, weights that are missing, damaged or of another network.
    """
    device = torch.device(device)
    if name == "classifier":
        return _make_classifier(store, weights, device, progress)
    if name in NAMES:
        return _make_own(NAMES.part(name), weights, device)
    if name not in FEATURE_EXTRACTORS_REGISTRY or _RUNS_FOREIGN_CODE.match(name):
        known = sorted(key for key in FEATURE_EXTRACTORS_REGISTRY if not _RUNS_FOREIGN_CODE.match(key))
        names = ", ".join((*known, *NAMES))
        raise UserError(f"no feature extractor {name!r}: choose one of {names}, or name the plugin that has it")
    return _make_registered(name, weights, device)


def has_logits(name: str) -> bool:
    """Return whether an extractor has logits, by its name.

    Args:
        name: As of :func:`make_extractor`.
    """
    return name not in NAMES or NAMES.part(name).facts["logits"]


def require_logits(extractor: Extractor, metrics: Iterable[str]) -> None:
    """Refuse the Inception score of an extractor without logits.

    Args:
        extractor: From :func:`make_extractor`.
        metrics: Names of metrics.

    Raises:
        UserError: It is among them.
    """
    if "is" in metrics and extractor.logits_layer is None:
        raise UserError(f"evaluation.metrics: is needs logits, and {extractor.label} has none; leave it out")


def _make_classifier(
    store: Store | None, weights: str | None, device: torch.device, progress: Callable[[int, int], None] | None
) -> Extractor:
    if store is None:
        raise UserError("the classifier's features need a store: pass `data.store`, or another `evaluation.extractor`")
    if weights is None and not safetensors_io.exists(classifier_url(store)):
        train_classifier(store, device=device, progress=progress)
    network = load_classifier(store, weights)
    return Extractor(
        label=classifier_label(network),
        network=network.to(device),
        layer="penultimate",
        logits_layer="logits",
        channels=store.manifest.channels,
        digest=network.digest,
        device=device,
        batch_size=500,
    )


def _make_registered(name: str, weights: str | None, device: torch.device) -> Extractor:
    cls = FEATURE_EXTRACTORS_REGISTRY[name]
    layer, logits_layer = (cls.get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc"))
    if weights is None and name in _PUBLISHED:
        weights = _download(name)
    source, digest = (None, "") if weights is None else _checked_weights(weights)
    try:
        network = create_feature_extractor(
            name,
            list(dict.fromkeys((layer, logits_layer))),
            cuda=False,
            verbose=False,
            feature_extractor_weights_path=source,
        )
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{weights} does not hold the weights of {name} ({reason}): {_ADVICE}") from error
    published = name not in _PUBLISHED or digest.startswith(_PUBLISHED[name][1])
    suffix = "" if published and (name in _PUBLISHED or not digest) else f"-{digest[:8]}"
    return Extractor(
        label=name + suffix,
        network=network.to(device),
        layer=layer,
        logits_layer=logits_layer,
        channels=3,
        digest=digest,
        device=device,
        batch_size=64,
    )


def _make_own(part: Part, weights: str | None, device: torch.device) -> Extractor:
    needs, takes = part.parameters.get("weights") is REQUIRED, "weights" in part.parameters
    if weights is not None and not takes:
        raise UserError(f"evaluation.weights={weights}: {part.name} has no weights; leave it out")
    if weights is None and needs:
        raise UserError(f"evaluation.extractor={part.name}: it needs evaluation.weights=<a file of safetensors>")
    state, digest = (None, "") if weights is None else _read_weights(weights)
    network = OwnFeatures(part, state)
    # The features depend on its code as well.
    digest = hashlib.sha256(f"{code_digest(part.module)} {digest}".encode()).hexdigest()
    return Extractor(
        label=f"{part.name}-{digest[:8]}",
        network=network.to(device),
        layer="embedding",
        logits_layer="logits" if part.facts["logits"] else None,
        channels=part.facts["channels"],
        digest=digest,
        device=device,
        batch_size=part.facts["batch_size"],
    )


_ADVICE = "pass `evaluation.weights=<file>` or `evaluation.extractor=classifier`"


def _download(name: str) -> str:
    """Return the path of the published weights in torch's cache, downloaded once and checked by their hash."""
    url, prefix = _PUBLISHED[name]
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    path = os.path.join(folder, url.rsplit("/", 1)[1])
    if not os.path.exists(path):
        try:
            os.makedirs(folder, exist_ok=True)
            torch.hub.download_url_to_file(url, path, hash_prefix=prefix, progress=False)
        except (OSError, RuntimeError) as error:
            file = os.path.basename(path)
            raise UserError(
                f"the weights of {name} cannot be downloaded ({one_line(error, limit=200)}): get {file} from {url}, "
                f"whose SHA-256 begins with {prefix}, and pass `evaluation.weights=<that file>` or put it into "
                f"{folder}; or use `evaluation.extractor=classifier`"
            ) from error
    return path


def _checked_weights(path: str) -> tuple[io.BytesIO, str]:
    """Return the tensors of an untrusted weights file, in a new buffer, and the SHA-256 of the file.

    torch-fidelity unpickles the file that it is given, and so it gets a file written from the tensors alone.
    """
    state, digest = _read_weights(path)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer, digest


def _read_weights(path: str) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of an untrusted weights file, read by what makes tensors and nothing else, and its SHA-256."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"no weights at {path} ({error.strerror}): {_ADVICE}") from error
    try:
        state = read_tensors(data, path)
    except UserError as error:
        raise UserError(f"{error}; or {_ADVICE}") from None
    return state, hashlib.sha256(data).hexdigest()


def features(images: Tensor, extractor: Extractor, batch_size: int | None = None) -> dict[str, Tensor]:
    """Extract the features of many images.

    Args:
        images: Images, uint8 (N, C, H, W).
        extractor: From :func:`make_extractor`.
        batch_size: Images at a time; by default the extractor's own.

    Returns:
        ``embedding`` (N, F) and, where the extractor has them, ``logits`` (N, K), float32, on the CPU.

    Raises:
        UserError: No images, images of another type or shape, or features that are not finite.
    """
    if len(images) == 0:
        raise UserError("no images to extract features from: ask for more samples")
    parts = [extractor(batch) for batch in images.split(batch_size or extractor.batch_size)]
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
