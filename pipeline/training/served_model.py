"""Served model: a trained GEBM as MLflow loads and serves it.

MLflow copies this file into the package, next to the weights and a copy of ``gebm``, and runs it when the model is
loaded; nothing is unpickled. It needs ``gebm``, Pillow and what MLflow itself needs, and nothing of the pipeline. A
request is a table of one row, ``num_samples``; the sampler's settings are MLflow's parameters, by default those of the
training's own evaluation.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from gebm import GEBM, NoEnergy, StandardNormal, folded, networks, samplers

# Limits of a request, which is answered whole.
MAX_SAMPLES = 10_000
MAX_STEPS = 100_000
# Chains at once.
BATCH_SIZE = 500


class ServedGEBM(PythonModel):
    """Samples of a GEBM, and their energies, by MCMC in latent space."""

    def load_context(self, context: Any) -> None:
        """Build the model from ``settings.json`` and ``weights.safetensors``.

        Args:
            context: MLflow's; its artifact ``gebm`` is the folder that holds both.
        """
        folder = Path(context.artifacts["gebm"])
        self.settings = json.loads((folder / "settings.json").read_text())
        tensors = load_file(folder / "weights.safetensors")
        base, energy = networks.make(**self.settings["networks"])
        if not self.settings["has_energy"]:
            energy = NoEnergy()
        prior = StandardNormal(self.settings["networks"]["latent_dim"])
        model = GEBM(base, energy, prior, energy_floor=self.settings["energy_floor"])
        self.mean, self.whitening = tensors.pop("rows.mean", None), tensors.pop("rows.whitening", None)
        model.load_state_dict(tensors)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # In float32 wherever it is served: the same request has the same response on any machine, up to rounding.
        self.model = folded(model.to(device).eval())
        self.device = device

    # MLflow's abstract method has no body, from which its result is inferred to be None.
    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Draw samples.

        Args:
            context: MLflow's.
            model_input: One row with ``num_samples``, 1 to 10,000.
            params: ``sampler``, ``step_size``, ``num_steps``, ``beta``, ``friction`` and ``seed``, see the signature.

        Returns:
            A row a sample: ``image``, a PNG in base64, or ``row``, in the units of the data; and ``energy``, in nats,
            lower for samples that the model weights up.

        Raises:
            MlflowException: A value is out of range (HTTP 400), or every chain diverged.
        """
        settings = {**self.settings["sampler"], "seed": self.settings["seed"], **(params or {})}
        count = _num_samples(model_input)
        if not 0 <= settings["num_steps"] <= MAX_STEPS:
            raise _bad_request(f"num_steps={settings['num_steps']}: take 0, for the base's own samples, to {MAX_STEPS}")
        if not settings["beta"] >= 0:
            raise _bad_request(f"beta={settings['beta']}: an inverse temperature is at least 0")
        generator = torch.Generator(self.device).manual_seed(int(settings["seed"]))
        # Refused by the kernel: an unknown sampler or step size, or a chain that cannot start at the prior.
        try:
            samples = self.model.sample(
                count,
                self._kernel(settings),
                settings["num_steps"],
                settings["beta"],
                generator,
                batch_size=BATCH_SIZE,
            )
        except ValueError as error:
            raise _bad_request(str(error)) from None
        if not bool(samples.isfinite().all()):
            raise _bad_request("the chains diverged: lower step_size or beta")
        with torch.no_grad():
            energies = torch.cat([self.model.energy(part) for part in samples.split(BATCH_SIZE)])
        return pd.DataFrame({**self._columns(samples), "energy": energies.double().cpu().numpy()})

    def _kernel(self, settings: dict[str, Any]) -> samplers.Kernel:
        schedule = None
        if settings["decay"] != 1.0:
            schedule = samplers.StepDecay(factor=settings["decay"], every=settings["decay_every"])
        return samplers.make(
            settings["sampler"],
            step_size=settings["step_size"],
            friction=settings["friction"],
            schedule=schedule,
            prior=self.model.prior,
        )

    def _columns(self, samples: Tensor) -> dict[str, list[Any]]:
        """Return the samples as a column of the response: images as PNG, rows in the units of the data."""
        if self.settings["kind"] == "images":
            pixels = ((samples.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            return {"image": [_png(image) for image in pixels.cpu().numpy()]}
        rows = samples.double().cpu()
        if self.whitening is not None:
            rows = torch.linalg.solve_triangular(self.whitening, rows.T, upper=False).T + self.mean
        return {"row": rows.tolist()}


def _num_samples(table: pd.DataFrame) -> int:
    if len(table) != 1:
        raise _bad_request(f"a request is one row with num_samples, and this one has {len(table)} rows")
    count = int(table["num_samples"].iloc[0])
    if not 1 <= count <= MAX_SAMPLES:
        raise _bad_request(f"num_samples={count}: ask for 1 to {MAX_SAMPLES} samples")
    return count


def _png(image: np.ndarray) -> str:
    """Return an image (C, H, W), uint8, as a PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _bad_request(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


set_model(ServedGEBM())
