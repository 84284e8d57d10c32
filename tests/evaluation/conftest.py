"""Stores and extractors that several tests share."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
import torch_fidelity
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity import FeatureExtractorBase, register_feature_extractor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from pipeline.data import Store, load_images, open_store, sources, write_store
from pipeline.evaluation.metrics import Extractor, make_extractor


class LinearFeatures(FeatureExtractorBase):
    """A registered stand-in of 6 features and 5 logits, with random weights: cheap, and nothing about it is special."""

    def __init__(self, name: str, features_list: list[str], **kwargs: object) -> None:
        super().__init__(name, features_list)
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Parameter(torch.randn(3 * 16, 6, generator=generator) / 500)
        self.classify = nn.Parameter(torch.randn(6, 5, generator=generator))

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "embedding", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "embedding"

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        pooled = nn.functional.adaptive_avg_pool2d(input.float(), 4).flatten(1)
        embedding = (pooled @ self.embed).tanh() * 3
        layers = {"embedding": embedding, "logits": embedding @ self.classify}
        return tuple(layers[name] for name in self.features_list)


class InMemory(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


register_feature_extractor("linear-stand-in", LinearFeatures)


@pytest.fixture(scope="session")
def stand_in() -> Extractor:
    return make_extractor("linear-stand-in")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The 1,797 digits of scikit-learn in a local store."""
    url = str(tmp_path_factory.mktemp("stores") / "digits")
    write_store(sources.make("digits"), url, resolution=8, channels=1)
    return open_store(url)


@pytest.fixture(scope="session")
def classifier(digits: Store) -> Extractor:
    return make_extractor("classifier", store=digits)


@pytest.fixture(scope="session")
def torch_fidelity_metrics() -> Callable[..., dict[str, float]]:
    """torch-fidelity's own way from images to metrics, every step of it."""

    def measure(samples: Tensor, data: Tensor, **settings: object) -> dict[str, float]:
        quiet = {"cuda": False, "cache": False, "verbose": False, "save_cpu_ram": True, "batch_size": 500}
        return torch_fidelity.calculate_metrics(input1=InMemory(samples), input2=InMemory(data), **quiet, **settings)

    return measure


class _Bare(FeatureExtractorInceptionV3):
    """The Inception architecture without its weights."""

    def load_state_dict(self, state_dict: dict, strict: bool = True, assign: bool = False) -> None:
        assert state_dict == {}


@pytest.fixture(scope="session")
def inception_state(digits: Store) -> dict[str, torch.Tensor]:
    """Stand-in weights of the Inception network: random, with running statistics that keep its features alive."""
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _Bare("bare", ["2048"], feature_extractor_weights_path=empty)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        network.train()
        with torch.no_grad():
            network(load_images(digits)[0][:6].expand(-1, 3, -1, -1).contiguous())
    return network.state_dict()


@pytest.fixture(scope="session")
def inception_file(inception_state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(inception_state, path)
    return str(path)
