"""Served model: a trained GEBM as MLflow loads and serves it.

MLflow copies this file into the package, next to the weights and a copy of ``gebm``, and runs it when the model is
loaded; nothing is unpickled. It needs ``gebm``, Pillow and what MLflow itself needs, and nothing of the pipeline. A
request is a table of one row, ``num_samples``; the sampler's settings are MLflow's parameters, by default those of the
training's own evaluation.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import json
import logging
import math
import os
import re
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
from gebm.classes import split_labels
from gebm.registry import load_source

# Environment variable by which the user who serves a model lets it run the plugins that came with it.
PLUGINS = "GEBM_PLUGINS"
# Limits of a request, which is answered whole.
MAX_SAMPLES = 10_000
MAX_STEPS = 100_000
# Chains at once.
BATCH_SIZE = 500
# Classes that a message lists.
MAX_NAMED = 10
# Seeds that the training takes as well.
NUM_SEEDS = 2**31
# Where more chains than this share diverged, an answer would be mostly the base's own samples.
MAX_DIVERGED = 0.5


def load_plugins(plugins: list[dict[str, str]], folder: Path) -> None:
    """Run the plugins that a model was made with, where ``GEBM_PLUGINS`` consents to each.

    A package may be untrusted, so a file is allowed by its content: by ``sha256=<its digest>``, or by the path of a
    file with the same content. A module is allowed by its name, and has to be installed.

    Args:
        plugins: Each has a ``file`` in the folder, or the ``name`` of a module.
        folder: The model's folder.

    Raises:
        MlflowException: There is no consent; the message says which.
    """
    allowed = [entry.strip() for entry in re.split(f"[,{re.escape(os.pathsep)}]", os.environ.get(PLUGINS, ""))]
    files = [Path(entry).expanduser() for entry in allowed if entry.endswith(".py")]
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}
    digests |= {entry.removeprefix("sha256=") for entry in allowed if entry.startswith("sha256=")}
    for plugin in plugins:
        if "file" not in plugin:
            if plugin["name"] not in allowed:
                raise _refused(f"imports {plugin['name']}", plugin["name"])
            importlib.import_module(plugin["name"])
            continue
        path = folder / plugin["file"]
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest not in digests:
            raise _refused(f"runs the code of {path}", f"sha256={digest}")
        load_source(content.decode(), str(path), f"gebm_plugin_{digest[:16]}")


def _refused(what: str, entry: str) -> MlflowException:
    return MlflowException(
        f"this model {what}, a plugin that it was made with: read it, and if you trust it, set {PLUGINS}={entry} where "
        "the model is served",
        error_code=INVALID_PARAMETER_VALUE,
    )


class UnknownParameters(logging.Filter):
    """Filter that refuses a request where MLflow only warns that it ignores a parameter, such as a mistyped one."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every other record pass."""
        message = record.getMessage()
        # The logger is that of all models of the process: another one's parameters are its own affair.
        if message.startswith("Unrecognized params") and "'num_steps'" in message.partition("Supported params")[2]:
            raise _bad_request(message.partition(" To enable")[0].replace("are ignored for inference", "are unknown"))
        return True


class ObservedKernel:
    """Kernel that counts the divergences and acceptances of each chain, and knows how far it has come.

    Args:
        kernel: The kernel.
        num_steps: Steps of each chain; the chains of a batch follow those of the one before.
    """

    def __init__(self, kernel: samplers.Kernel, num_steps: int) -> None:
        self._kernel, self._num_steps = kernel, num_steps
        self._step = 0
        self._starts: list[Tensor] = []
        self._ends: list[Tensor] = []
        self._divergences: list[Tensor] = []
        self._accepted: list[Tensor] = []

    def init(self, z: Tensor, potential: samplers.Potential) -> Any:
        """Return the kernel's state at these positions."""
        return self._kernel.init(z, potential)

    @property
    def gradients_per_step(self) -> int:
        """Gradients of the potential that a step takes."""
        return self._kernel.gradients_per_step

    def step(self, state: Any, potential: samplers.Potential, generator: torch.Generator | None = None) -> Any:
        """Take a step, and count."""
        if self._step % self._num_steps == 0:
            self._starts.append(state.z)
            self._ends.append(state.z)
            self._divergences.append(torch.zeros_like(state.chain))
            self._accepted.append(torch.zeros_like(state.chain))
        self._step += 1
        state, info = self._kernel.step(state, potential, generator)
        diverged = info.diverged | ~samplers.finite_chains(state)
        self._ends[-1] = state.z
        self._divergences[-1] = self._divergences[-1] + diverged
        # A kernel without an accept step takes every proposal.
        self._accepted[-1] = self._accepted[-1] + getattr(info, "accepted", ~diverged)
        return state, info

    def columns(self, count: int) -> dict[str, list[Any]]:
        """Return ``acceptance``, ``divergences`` and ``distance`` of each chain; of chains without steps 1, 0 and 0."""
        if not self._starts:
            return {"acceptance": [1.0] * count, "divergences": [0] * count, "distance": [0.0] * count}
        moved = (torch.cat(self._ends) - torch.cat(self._starts)).double().norm(dim=1)
        return {
            "acceptance": (torch.cat(self._accepted).double() / self._num_steps).tolist(),
            "divergences": torch.cat(self._divergences).tolist(),
            # The last step may have lost a chain, which has restarted then.
            "distance": moved.nan_to_num(0.0, 0.0, 0.0).tolist(),
        }


class ServedGEBM(PythonModel):
    """Samples of a GEBM, and their energies, by MCMC in latent space."""

    def load_context(self, context: Any) -> None:
        """Build the model from ``settings.json`` and ``weights.safetensors``.

        Args:
            context: MLflow's; its artifact ``gebm`` is the folder that holds both.
        """
        log = logging.getLogger("mlflow.models.utils")
        # Whatever MLflow's own level is, the warning has to be made to be refused.
        log.setLevel(logging.WARNING)
        log.addFilter(UnknownParameters())
        folder = Path(context.artifacts["gebm"])
        self.settings = json.loads((folder / "settings.json").read_text())
        load_plugins(self.settings["plugins"], folder)
        tensors = load_file(folder / "weights.safetensors")
        base, energy = networks.make(**self.settings["networks"])
        if not self.settings["has_energy"]:
            energy = NoEnergy()
        prior = StandardNormal(self.settings["networks"]["latent_dim"])
        self.classes: list[str] = self.settings["classes"]["names"] if self.settings["classes"] else []
        frequencies = self.settings["classes"]["counts"] if self.classes else None
        floor = self.settings["energy_floor"]
        model = GEBM(base, energy, prior, energy_floor=floor, class_frequencies=frequencies)
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
            params: ``sampler``, ``step_size``, ``num_steps``, ``beta``, ``friction`` and ``seed``, see the signature;
                of a model with classes also ``class``, a name or a number, by default all in the data's proportions.

        Returns:
            A row a sample: ``image``, a PNG in base64, or ``row``, in the units of the data; of a model with classes
            ``class``, its name; ``energy``, in nats, lower for samples that the model weights up; and of the sample's
            chain ``acceptance``, the share of its proposals that were taken, ``divergences``, the steps that met a
            number that is not finite, and ``distance``, from its start on latent space.

        Raises:
            MlflowException: A value is out of range or a parameter is unknown (HTTP 400), most chains diverged, or none
                has moved.
        """
        settings = {**self.settings["sampler"], "seed": self.settings["seed"], **(params or {})}
        count = _num_samples(model_input)
        label = self._label(settings.pop("class", ""))
        _check(settings)
        generator = torch.Generator().manual_seed(settings["seed"])
        # Refused by the kernel: an unknown sampler or step size, or a chain that cannot start at the prior.
        try:
            kernel = ObservedKernel(self._kernel(settings), settings["num_steps"])
            samples = self.model.sample(
                count,
                kernel,
                settings["num_steps"],
                settings["beta"],
                generator,
                batch_size=BATCH_SIZE,
                labels=label,
            )
        except ValueError as error:
            raise _bad_request(str(error)) from None
        chains = kernel.columns(count)
        diverged = sum(number > 0 for number in chains["divergences"])
        named = f"sampler={settings['sampler']} with step_size={settings['step_size']:g}, beta={settings['beta']:g}"
        if diverged > MAX_DIVERGED * count or not bool(samples.isfinite().all()):
            raise _bad_request(f"{named}: {diverged} of {count} chains diverged; lower step_size or beta")
        if settings["num_steps"] and not any(chains["acceptance"]):
            raise _bad_request(f"{named}: every proposal was rejected, so that no chain has moved; lower step_size")
        with torch.no_grad():
            energies = torch.cat([self.model.energy(part) for part in samples.split(BATCH_SIZE)])
        return pd.DataFrame({**self._columns(samples), "energy": energies.double().cpu().numpy(), **chains})

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
            **self.settings["sampler_settings"],
        )

    def _label(self, text: Any) -> int | None:
        """Return the label of a class by its name, or by its number where no class has that name; ``None`` for all."""
        if text == "":
            return None
        names, counts = self.classes, (self.settings["classes"] or {"counts": []})["counts"]
        text = str(text)
        label = names.index(text) if text in names else int(text) if re.fullmatch("[0-9]{1,9}", text) else -1
        if not 0 <= label < len(names) or not counts[label]:
            shown = ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
            raise _bad_request(f"class={text[:100]}: choose one of {len(names)}: {shown}; or leave it out for all")
        return label

    def _columns(self, samples: Tensor) -> dict[str, list[Any]]:
        """Return the samples as columns of the response: images as PNG, with classes; rows in the units of the data."""
        if self.settings["kind"] == "images":
            images, labels = split_labels(samples, len(self.classes))
            pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            named = {} if labels is None else {"class": [self.classes[label] for label in labels.tolist()]}
            return {"image": [_png(image) for image in pixels.cpu().numpy()], **named}
        rows = samples.double().cpu()
        if self.whitening is not None:
            rows = torch.linalg.solve_triangular(self.whitening, rows.T, upper=False).T + self.mean
        return {"row": rows.tolist()}


def _num_samples(table: pd.DataFrame) -> int:
    if len(table) != 1:
        raise _bad_request(f"a request is one row with num_samples, and this one has {len(table)} rows")
    if "num_samples" not in table:
        raise _bad_request(f"a request is one row with num_samples, and this one has {', '.join(map(str, table))}")
    count = table["num_samples"].iloc[0]
    if not isinstance(count, int | float | np.number) or not 1 <= count <= MAX_SAMPLES or count != int(count):
        raise _bad_request(f"num_samples={count}: ask for 1 to {MAX_SAMPLES} samples, a whole number")
    return int(count)


def _check(settings: dict[str, Any]) -> None:
    """Refuse a parameter that is no number of its type and range, as the config's schema has them."""
    for name, value in settings.items():
        if value is None:
            raise _bad_request(f"{name}=null: give a value, or leave it out for the training's own")
    for name, value in {key: settings[key] for key in ("step_size", "beta", "friction")}.items():
        if not math.isfinite(value) or value < 0 or (name == "step_size" and value == 0):
            raise _bad_request(
                f"{name}={value}: it has to be finite, and {'positive' if name == 'step_size' else '>= 0'}"
            )
    if not 0 <= settings["num_steps"] <= MAX_STEPS:
        raise _bad_request(f"num_steps={settings['num_steps']}: take 0, for the base's own samples, to {MAX_STEPS}")
    if not 0 <= settings["seed"] < NUM_SEEDS:
        raise _bad_request(f"seed={settings['seed']}: take 0 to {NUM_SEEDS - 1}")


def _png(image: np.ndarray) -> str:
    """Return an image (C, H, W), uint8, as a PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _bad_request(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


set_model(ServedGEBM())
