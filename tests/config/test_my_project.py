"""The example of a user's own folder is an experiment as good as the built-in ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from gebm import samplers
from pipeline.config import from_dict, plugins
from pipeline.config.kernels import kernel_settings
from pipeline.config.validation import validate
from pipeline.training.build_model import build_model
from tests.helpers.plugins import no_plugins

__all__ = ["no_plugins"]

FOLDER = Path(__file__).parents[2] / "examples" / "my_project"


@pytest.mark.usefixtures("no_plugins")
def test_the_experiment_of_the_example_is_valid_and_its_sampler_runs():
    plugins.load([str(FOLDER / "mine.py")])
    values = yaml.safe_load((FOLDER / "conf" / "curve.yaml").read_text())
    config = from_dict(values)
    validate(config)
    assert set(values["spaces"]["training"]) == {"train.energy_lr", "model.settings.depth"}
    torch.manual_seed(0)
    model = build_model(config).eval()
    assert sum(isinstance(layer, torch.nn.SiLU) for layer in model.base.modules()) == config.model.settings["depth"]
    sampler = kernel_settings(config.sampler)
    kernel = samplers.make(sampler.name, step_size=sampler.step_size, **sampler.settings)
    assert kernel.longest == 5.0
    assert model.sample(4, kernel, 5, generator=torch.Generator().manual_seed(1)).shape == (4, 3)
