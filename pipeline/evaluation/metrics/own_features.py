"""Module of a feature extractor of one's own, whose output is checked at each batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gebm.registry import Part
from pipeline.runtime.cpu_seed import cpu_seed
from pipeline.runtime.part_errors import refusal, refusing

__all__ = ["OwnFeatures"]

# A covariance of this number of features has half a gibibyte.
_MAX_FEATURES = 2**13


class OwnFeatures(nn.Module):
    """Feature extractor that a plugin has registered.

    Args:
        part: Its part, a function that returns a module.
        weights: Tensors of the weights' file, by their names; ``None`` where there is none.

    Raises:
        UserError: It fails, or returns no module; the line names the plugin's file and line.
    """

    def __init__(self, part: Part, weights: dict[str, Tensor] | None) -> None:
        super().__init__()
        self._part = part
        # Weights that it draws are the same in each process.
        with refusing(part), cpu_seed(0):
            module = part.make(**({} if weights is None else {"weights": weights}))
            if not isinstance(module, nn.Module):
                raise ValueError(f"it returns {type(module).__name__}, and has to return an nn.Module")
        self.module = module.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images, uint8 (N, C, H, W), to ``embedding`` (N, F) and, where it has them, ``logits`` (N, K).

        Raises:
            UserError: It fails, or returns tensors of another shape.
        """
        names = ("embedding", "logits") if self._part.facts["logits"] else ("embedding",)
        with refusing(self._part):
            output = self.module(images)
        tensors = output if isinstance(output, tuple | list) else (output,)
        wanted = " and ".join(f"{name} ({len(images)}, ...)" for name in names)
        if len(tensors) != len(names) or not all(_has_rows(tensor, len(images)) for tensor in tensors):
            shapes = ", ".join(_describe(tensor) for tensor in tensors)
            raise refusal(self._part, f"it maps images {tuple(images.shape)} to {shapes}, and has to return {wanted}")
        if tensors[0].shape[1] > _MAX_FEATURES:
            count = tensors[0].shape[1]
            raise refusal(self._part, f"it gives {count:,} features, and has to give {_MAX_FEATURES:,} at most")
        return dict(zip(names, tensors, strict=True))

    def convert_features_tuple_to_dict(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the features as they are, instead of torch-fidelity's tuple."""
        return features


def _has_rows(tensor: Any, count: int) -> bool:
    is_matrix = isinstance(tensor, Tensor) and tensor.dim() == 2 and len(tensor) == count and tensor.shape[1] > 0
    return is_matrix and not tensor.is_complex()


def _describe(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
