"""A checkpoint as a folder that MLflow loads and serves: weights, settings, a copy of ``gebm``, and no pickle."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, DataType
from safetensors.torch import save_file

import gebm
from gebm.model import NoEnergy
from pipeline import config as schema
from pipeline.tasks import open_data
from pipeline.tasks.store import split_store
from pipeline.training.model import load_model

__all__ = ["write_package"]

# What the copy of gebm and the file that serves it import, and MLflow, which serves.
_NEEDS = ("mlflow", "torch", "zuko", "safetensors", "numpy", "pandas", "pillow")
_SAMPLER = ("step_size", "num_steps", "beta", "friction", "decay", "decay_every")


def write_package(
    checkpoint: str, folder: Path, *, sampler: dict[str, Any] | None = None, run_id: str | None = None
) -> None:
    """Write a trained model as an MLflow model.

    Args:
        checkpoint: A checkpoint's folder, or a trial's.
        folder: Where to, on a disk of this machine; it must not be there yet.
        sampler: Settings of the config's ``sampler`` that it is to be sampled with, where a search over them found
            others than it was trained with.
        run_id: MLflow's run that the model comes from.

    Raises:
        UserError: There is no such checkpoint, it is damaged, or its store of rows is gone.
    """
    model, config = load_model(checkpoint, {f"sampler.{key}": value for key, value in (sampler or {}).items()})
    images = config.task == "images"
    with tempfile.TemporaryDirectory() as scratch:
        artifacts, code = Path(scratch, "gebm-model"), Path(scratch, "code", "gebm")
        artifacts.mkdir()
        tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
        if not images:  # they are told in the units of the table
            splits = split_store(config, open_data(config.data))
            tensors |= {"rows.mean": splits.mean.clone(), "rows.whitening": splits.whitening.contiguous().clone()}
        save_file(tensors, artifacts / "weights.safetensors")
        settings = {
            "experiment": config.name,
            "checkpoint": checkpoint,
            "kind": "images" if images else "rows",
            "networks": {
                "name": config.model.networks,
                "resolution": config.data.resolution or 0,
                "channels": config.data.channels,
                "latent_dim": config.model.latent_dim,
                "width": config.model.width,
                "energy": config.model.energy,
                "offset": config.model.energy_offset,
            },
            "energy_floor": config.model.energy_floor,
            "has_energy": not isinstance(model.energy.network, NoEnergy),
            "sampler": {"sampler": config.sampler.name, **{key: getattr(config.sampler, key) for key in _SAMPLER}},
            "seed": config.seed,
        }
        (artifacts / "settings.json").write_text(json.dumps(settings, indent=1))
        shutil.copytree(Path(gebm.__file__).parent, code, ignore=shutil.ignore_patterns("__pycache__"))
        # It warns of type hints that it does not need, having a signature.
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        mlflow.pyfunc.save_model(
            path=str(folder),
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"gebm": str(artifacts)},
            code_paths=[str(code)],
            signature=_signature(config, settings),
            input_example=(pd.DataFrame({"num_samples": [4]}), {"seed": config.seed}),
            pip_requirements=[f"{name}=={metadata.version(name).partition('+')[0]}" for name in _NEEDS],
            mlflow_model=Model(run_id=run_id),
            metadata={"experiment": config.name, "networks": config.model.networks},
        )
        _leave_out_this_machine(folder)


def _leave_out_this_machine(folder: Path) -> None:
    """Take out what MLflow adds of the machine and the folder that it runs in."""
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache)
    for name in ("uv.lock", "pyproject.toml", ".python-version"):  # of whatever project the driver was started in
        (folder / name).unlink(missing_ok=True)
    model = Model.load(str(folder / "MLmodel"))
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = "served_model.py"
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    model.save(str(folder / "MLmodel"))


def _signature(config: schema.Config, settings: dict[str, Any]) -> ModelSignature:
    sampler = settings["sampler"]
    sample = ColSpec("string", "image") if settings["kind"] == "images" else ColSpec(Array(DataType.double), "row")
    return ModelSignature(
        inputs=Schema([ColSpec("long", "num_samples")]),
        outputs=Schema([sample, ColSpec("double", "energy")]),
        params=ParamSchema(
            [
                ParamSpec("sampler", "string", sampler["sampler"]),
                ParamSpec("step_size", "double", float(sampler["step_size"])),
                ParamSpec("num_steps", "long", int(sampler["num_steps"])),
                ParamSpec("beta", "double", float(sampler["beta"])),
                ParamSpec("friction", "double", float(sampler["friction"])),
                ParamSpec("seed", "long", int(config.seed)),
            ]
        ),
    )
