"""Feature extractor of a labelled store: a small residual classifier, trained on the store itself.

Where the images are not photographs of 1,000 kinds of things, or the Inception weights are out of reach, the
Frechet distance can be taken in the features of a classifier of the very data. It is registered with torch-fidelity
as ``classifier``; its weights are next to the store, so that all measurements on the store use the same ones.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity import FeatureExtractorBase, register_feature_extractor

from pipeline.runtime import safetensors_io
from pipeline.runtime.errors import UserError

__all__ = [
    "Classifier",
    "ClassifierFeatures",
]


class _Block(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., 2016); the first may halve the resolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Classifier(nn.Module):
    """Small residual classifier: the trunk starts at 16x16 or so, whatever the resolution.

    Args:
        resolution: Height and width of the images, in pixels, at least 4.
        channels: 1 or 3.
        num_classes: Number of labels.

    Example:
        >>> embedding, logits = Classifier(8, 1, 10)(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
        >>> embedding.shape, logits.shape
        (torch.Size([2, 64]), torch.Size([2, 10]))
    """

    def __init__(self, resolution: int, channels: int, num_classes: int) -> None:
        super().__init__()
        width, patch = 32, max(1, resolution // 16)
        kernel = 3 if patch == 1 else patch
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, kernel, patch, padding=1 if patch == 1 else 0, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        widths = [width, 2 * width] if resolution < 16 else [width, 2 * width, 4 * width]
        blocks, previous = [], width
        for stage, current in enumerate(widths):
            blocks.append(_Block(previous, current, stride=1 if stage == 0 else 2))
            previous = current
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(previous, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embed and classify.

        Args:
            images: Images, uint8 (N, C, H, W).

        Returns:
            The penultimate layer, the mean over positions (N, F), and the logits (N, K).
        """
        x = (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        embedding = self.blocks(self.stem(x)).mean(dim=(2, 3))
        return embedding, self.head(embedding)


class ClassifierFeatures(FeatureExtractorBase):
    """The trained classifier as torch-fidelity sees it: layers ``penultimate`` and ``logits``.

    Args:
        name: The name under which it is registered.
        features_list: Which of its layers to return.
        feature_extractor_weights_path: URL of the safetensors file that :func:`train_classifier` wrote.
        **kwargs: Torch-fidelity's other settings, none of which concern it.

    Raises:
        UserError: The file cannot be read, or its tensors do not fit the network that its header describes.
    """

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str = "", **kwargs: Any
    ) -> None:
        super().__init__(name, features_list)
        url = feature_extractor_weights_path
        try:
            file = safetensors_io.read(url)
            network = Classifier(*(int(file.header[key]) for key in ("resolution", "channels", "num_classes")))
            network.load_state_dict(file.tensors)
        except FileNotFoundError as error:
            raise UserError(f"no classifier at {url}: train it with `train_classifier`") from error
        except (safetensors_io.TensorFileError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{url} is no classifier of this version ({reason}): delete it to train anew") from error
        self.network = network.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.header = file.header
        self.digest = file.digest

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Return the names of the layers."""
        return "penultimate", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Return the logits for the Inception score, the penultimate layer for the distances."""
        return {"isc": "logits", "fid": "penultimate", "kid": "penultimate", "prc": "penultimate"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        """Return ``False``: it is too small to gain from compilation."""
        return False

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """Map images uint8 (N, C, H, W) to the requested layers."""
        layers = dict(zip(self.get_provided_features_list(), self.network(input), strict=True))
        return tuple(layers[name] for name in self.features_list)


register_feature_extractor("classifier", ClassifierFeatures)
