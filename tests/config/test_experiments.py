"""What the experiments' files promise: search spaces in which both samplers move, commands that work as printed."""

from __future__ import annotations

import io
import math
import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "conf").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_samplers_space_has_useful_steps_of_each(path):
    experiment = OmegaConf.load(path)
    if experiment.get("task") == "density":
        assert "sampler" not in experiment.spaces  # no sampler has a part in a likelihood
        return
    space = experiment.spaces.sampler
    assert list(space["sampler.name"].choice) == ["ula", "kla"]
    (low, high), kinetic = (space["sampler.step_size"][name].log_uniform for name in ("ula", "kla"))
    step_sizes = experiment.spaces.training["sampler.step_size"]
    own = experiment.sampler
    reference = own[own.name].step_size
    for h in (reference, *step_sizes[own.name].log_uniform):
        # In one step overdamped dynamics go (2 h)^(1/2) far, and kinetic ones h at unit velocity.
        assert low <= h <= high and kinetic[0] <= 2 * math.sqrt(2 * h) and math.sqrt(2 * h) <= kinetic[1]
    for h in (own.kla.step_size, *step_sizes.kla.log_uniform):
        assert kinetic[0] <= h <= kinetic[1] and math.sqrt(2 * low) / 2 <= h <= 3 * math.sqrt(2 * high)


def photographs(path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((218, 178, 3), np.uint8)).save(buffer, "JPEG")
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(3):
            archive.writestr(f"folder/{number:06d}.jpg", buffer.getvalue())


@pytest.mark.parametrize("name", ["img_align_celeba.zip", "photographs.zip"])
def test_the_commands_that_the_help_prints_make_a_store(call, tmp_path, monkeypatch, name):
    """Of the file alone, as it is fetched: no list of splits next to it, no folder of a split in it."""
    photographs(tmp_path / name)
    monkeypatch.setenv("GEBM_STORES", str(tmp_path / "stores"))
    examples = call("shards", "--help")[1].split("Examples:")[1].replace("\\\n", " ").splitlines()
    (example,) = (line for line in examples if name in line)
    words = [word for word in shlex.split(example)[3:] if not word.startswith("data.store=")]
    status, printed, errors = call("shards", *words, "data.source.published_counts=false")
    assert status == 0, errors
    assert printed.startswith("3 images of 32 pixels")


def test_a_store_may_have_any_filter_that_there_is():
    """The schema imports nothing of the data, and lists the names once more."""
    from pipeline.config.fields import keys
    from pipeline.config.schema import Config
    from pipeline.data.image_codec import DEFAULT_FILTER, FILTERS

    (key,) = (key for key in keys(Config) if key.name == "data.resize_filter")
    assert key.rule.names() == tuple(FILTERS) and Config().data.resize_filter == DEFAULT_FILTER


def test_a_store_is_made_at_a_resolution_that_no_network_has():
    from pipeline.config import from_dict
    from pipeline.config.validation import validate, validate_store
    from pipeline.runtime.errors import UserError

    values = {
        "name": "x",
        "data": {"store": "s", "resolution": 20, "source": {"kind": "cifar10"}},
        "model": {"networks": "sngan_resnet"},
    }
    validate_store(from_dict(values))
    with pytest.raises(UserError, match="no resolution 20"):
        validate(from_dict(values))
    values["data"] |= {"resolution": 0}
    with pytest.raises(UserError, match=r"data\.resolution=0"):
        validate_store(from_dict(values))
