"""Export of a checkpoint to a folder that MLflow loads and serves: weights, settings, a copy of ``gebm``, no pickle."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import pyfunc
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array, DataType
from safetensors.torch import save_file
from torch import Tensor

import gebm
from gebm import GEBM
from gebm.energies import NoEnergy
from gebm.folding import folded
from pipeline import config as schema
from pipeline.config.kernels import kernel_settings
from pipeline.config.networks import network_arguments
from pipeline.config.part_settings import own_settings
from pipeline.config.plugins import sources_of
from pipeline.config.tasks import facts_of
from pipeline.config.warm_up import FOUND_KERNEL, found_kernel, with_found
from pipeline.data.classes import Classes
from pipeline.evaluation.chains import describe_found, find_kernel
from pipeline.runtime.errors import UserError
from pipeline.tasks import open_data
from pipeline.tasks.open_store import split_store
from pipeline.training.build_model import load_model
from pipeline.training.final_score import read_final_score

__all__ = ["write_package"]

# Packages that the copy of gebm and ``served_model.py`` import, and MLflow itself.
_REQUIREMENTS = ("mlflow", "torch", "zuko", "safetensors", "numpy", "pandas", "pillow")
_SAMPLER_KEYS = ("step_size", "num_steps", "beta", "friction", "decay", "decay_every")


def write_package(
    checkpoint: str, folder: Path, *, sampler: dict[str, Any] | None = None, run_id: str | None = None
) -> dict[str, str]:
    """Write a trained model as an MLflow model.

    Args:
        checkpoint: A checkpoint's folder, or a trial's.
        folder: The folder to make, on a local disk; it must not exist.
        sampler: Settings of the config's ``sampler`` to change, where a search over them found others than the model
            was trained with.
        run_id: MLflow's run that the model comes from.

    Returns:
        Tags that state its score, as the checkpoint has it; empty where ``sampler`` changes what was scored.

    Raises:
        UserError: There is no such checkpoint, it is damaged, or its store of rows is gone.
    """
    changes = {f"sampler.{key}": value for key, value in (sampler or {}).items()}
    model, config, classes, state = load_model(checkpoint, changes)
    # Of another sampler than the one that the checkpoint was scored with it says nothing.
    found = {} if sampler else _found(checkpoint, state)
    settings = _settings(model, config, checkpoint, classes, found)
    with tempfile.TemporaryDirectory() as scratch:
        artifacts, code = Path(scratch, "gebm-model"), Path(scratch, "code", "gebm")
        artifacts.mkdir()
        _write_plugins(settings["plugins"], artifacts)
        (artifacts / "settings.json").write_text(json.dumps(settings, indent=1))
        save_file(_tensors(model, config), artifacts / "weights.safetensors")
        shutil.copytree(Path(gebm.__file__).parent, code, ignore=shutil.ignore_patterns("__pycache__"))
        # It warns of type hints that it does not need, having a signature.
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        pyfunc.save_model(
            path=str(folder),
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"gebm": str(artifacts)},
            code_paths=[str(code)],
            signature=_signature(settings),
            input_example=(pd.DataFrame({"num_samples": [4]}), {"seed": config.seed}),
            pip_requirements=[f"{name}=={metadata.version(name).partition('+')[0]}" for name in _REQUIREMENTS],
            mlflow_model=Model(run_id=run_id),
            metadata={"experiment": config.name, "networks": config.model.networks},
        )
        _remove_local_traces(folder)
    return {} if sampler else _measure(checkpoint, state)


def _write_plugins(plugins: list[dict[str, Any]], artifacts: Path) -> None:
    """Write the files of the plugins that a model needs, instead of their text and of their paths here."""
    for index, plugin in enumerate(plugins):
        if (source := plugin.pop("source")) is not None:
            name = Path(plugin.pop("name")).name
            plugin["file"] = f"plugins/{index}/{name}"
            path = artifacts / plugin["file"]
            path.parent.mkdir(parents=True)
            path.write_bytes(source.encode())


def _measure(checkpoint: str, state: dict[str, Any]) -> dict[str, str]:
    """Return the tags of the score of a checkpoint: its final one, or that of its state's report, or else ``nan``."""
    final = read_final_score(checkpoint)
    if final is not None:
        return {
            "value": repr(final.value),
            "metric": final.metric,
            "mode": final.mode,
            "extractor": final.extractor,
            "num_samples": str(final.num_samples),
        }
    config, report = schema.from_saved(state["config"]), state.get("report")
    report = report if isinstance(report, dict) else {}
    value = report.get(config.sweep.metric)
    return {
        "value": repr(float(value)) if isinstance(value, int | float) else "nan",
        "metric": config.sweep.metric,
        "mode": config.sweep.mode,
        "extractor": str(report.get("extractor", "none")),
        "num_samples": str(config.evaluation.num_samples),
    }


def _tensors(model: GEBM, config: schema.Config) -> dict[str, Tensor]:
    """Return the model's weights; for rows, with the map from the networks' units to those of the table."""
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    if facts_of(config.task).splits:
        splits = split_store(config, open_data(config.data))
        tensors |= {"rows.mean": splits.mean.clone(), "rows.whitening": splits.whitening.contiguous().clone()}
    return tensors


def _found(checkpoint: str, state: dict[str, Any]) -> dict[str, Any]:
    """Return what the warm-up found by which a checkpoint was scored; empty where it does not say.

    Raises:
        UserError: No warm-up can have found it.
    """
    report = state.get("report")
    try:
        return found_kernel(report.get(FOUND_KERNEL)) if isinstance(report, dict) else {}
    except ValueError:
        raise UserError(f"{checkpoint} is damaged ({FOUND_KERNEL} of its report): take another checkpoint") from None


def _settings(
    model: GEBM, config: schema.Config, checkpoint: str, classes: Classes | None, found: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of ``settings.json``, from which the served model is built."""
    sampler = kernel_settings(config.sampler)
    if sampler.warm_up_steps:
        # A request uses the kernel that was scored, and has no warm-up of its own. Earlier versions did not keep it.
        found = found or describe_found(find_kernel(sampler, folded(model), seed=config.seed)[0])
        sampler = with_found(sampler, found)
    own = own_settings("sampler.settings", sampler.name, sampler.settings)
    return {
        "experiment": config.name,
        "checkpoint": checkpoint,
        "kind": facts_of(config.task).of,
        "networks": network_arguments(config) | {"num_classes": model.num_classes or None},
        "classes": None if classes is None else classes.to_dict(),
        "energy_floor": config.model.energy_floor,
        "has_energy": not isinstance(model.energy.network, NoEnergy),
        "sampler": {"sampler": sampler.name, **{key: getattr(sampler, key) for key in _SAMPLER_KEYS}},
        "sampler_settings": own,
        "plugins": sources_of(config),
        "seed": config.seed,
    }


def _remove_local_traces(folder: Path) -> None:
    """Remove what MLflow adds of the machine and the working directory that it runs in."""
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache)
    # Files of whatever project the driver was started in.
    for name in ("uv.lock", "pyproject.toml", ".python-version"):
        (folder / name).unlink(missing_ok=True)
    model = Model.load(str(folder / "MLmodel"))
    flavor = model.flavors["python_function"]
    flavor["model_code_path"] = "served_model.py"
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    model.save(str(folder / "MLmodel"))


# Columns of the response in addition to the sample itself.
_OUTPUTS: dict[str, Any] = {"energy": "double", "acceptance": "double", "divergences": "long", "distance": "double"}


def _signature(settings: dict[str, Any]) -> ModelSignature:
    """Return MLflow's types of a request, of its parameters and of the response."""
    sampler = settings["sampler"]
    class_column = [ColSpec("string", "class")] if settings["classes"] else []
    sample = ColSpec("string", "image") if settings["kind"] == "images" else ColSpec(Array(DataType.double), "row")
    return ModelSignature(
        # Of any type, so that the model sees 1.5 and refuses it: of a long MLflow would make 1.
        inputs=Schema([ColSpec(AnyType(), "num_samples")]),
        outputs=Schema([sample, *class_column, *(ColSpec(kind, name) for name, kind in _OUTPUTS.items())]),
        params=ParamSchema(
            [
                ParamSpec("sampler", "string", sampler["sampler"]),
                ParamSpec("step_size", "double", float(sampler["step_size"])),
                ParamSpec("num_steps", "long", int(sampler["num_steps"])),
                ParamSpec("beta", "double", float(sampler["beta"])),
                ParamSpec("friction", "double", float(sampler["friction"])),
                ParamSpec("seed", "long", int(settings["seed"])),
                # A parameter has a value: that for all classes is empty.
                *([ParamSpec("class", "string", "")] if settings["classes"] else []),
            ]
        ),
    )
