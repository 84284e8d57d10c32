"""Networks are checked by their shapes, without their weights and without what torch compiles with."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gebm import networks
from pipeline.config import network_shapes

CASES = [
    ("dcgan", {"resolution": 8, "channels": 1, "latent_dim": 4, "width": 8}),
    ("sngan_convnet", {"resolution": 32, "channels": 3, "latent_dim": 16, "width": 8}),
    ("sngan_resnet", {"resolution": 32, "channels": 3, "latent_dim": 16, "width": 8}),
    ("sngan_convnet_arbel", {"resolution": 32, "channels": 3, "latent_dim": 16, "width": 8}),
    ("sngan_resnet_arbel", {"resolution": 32, "channels": 3, "latent_dim": 16, "width": 8}),
    ("imported", {"resolution": 32, "channels": 3, "latent_dim": 16, "base_width": 8, "energy_width": 8}),
    (
        "imported_conditional",
        {"resolution": 32, "channels": 3, "latent_dim": 16, "base_width": 4, "energy_width": 4, "num_classes": 3},
    ),
    ("mlp", {"resolution": None, "channels": 2, "latent_dim": 3, "width": 8}),
]
CHECK = f"""
import sys
from pipeline.config import network_shapes
for name, sizes in {CASES!r}:
    network_shapes._build_networks(name, energy=None, offset=0.0, **sizes)
assert "torch" in sys.modules and "torch._dynamo" not in sys.modules
"""


def test_torch_loads_no_compiler_for_it():
    subprocess.run([sys.executable, "-c", CHECK], check=True, timeout=120)


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_the_shapes_are_those_of_the_networks_that_are_trained(name, sizes):
    checked = network_shapes._build_networks(name, energy=None, offset=0.0, **sizes)
    trained = networks.make(name, **{**sizes, "resolution": sizes["resolution"] or 0})
    for one, other in zip(checked, trained, strict=True):
        shapes = {key: value.shape for key, value in other.state_dict().items()}
        assert {key: value.shape for key, value in one.state_dict().items()} == shapes
        assert all(value.is_meta for value in one.parameters())
