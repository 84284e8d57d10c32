"""Statistics of a store: right, computed once, and never read from a file that is not theirs."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.data import Store, load_images, open_store
from pipeline.evaluation.metrics import Extractor, Reference, features, reference
from pipeline.evaluation.metrics.subsets import iter_subset
from pipeline.runtime import safetensors_io
from pipeline.runtime.errors import UserError


@pytest.fixture
def store(digits: Store, tmp_path: Path) -> Store:
    """A store of its own, without statistics."""
    copy = tmp_path / "store"
    shutil.copytree(digits.url, copy, ignore=shutil.ignore_patterns("statistics", "extractors"))
    return open_store(str(copy))


def cache(store: Store, extractor: Extractor, num: int = 1797) -> Path:
    return Path(store.url) / "statistics" / f"{extractor.label}-{num}.safetensors"


def assert_same(a: Reference, b: Reference) -> None:
    assert (a.label, a.num_samples) == (b.label, b.num_samples)
    for name in ("mu", "sigma", "features"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_streamed_moments_are_those_of_all_features_at_once(store: Store, stand_in: Extractor) -> None:
    embedding = features(load_images(store)[0], stand_in)["embedding"].double()
    found = reference(store, dataclasses.replace(stand_in, batch_size=23))
    # The features themselves depend on the batch size by the rounding of float32 sums, about 1e-6 here.
    torch.testing.assert_close(found.mu, embedding.mean(dim=0), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.sigma, embedding.T.cov(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.features.double(), embedding, atol=1e-5, rtol=0)


def test_statistics_are_read_back_and_not_computed_again(store: Store, stand_in: Extractor) -> None:
    first = reference(store, stand_in)
    path = cache(store, stand_in)
    written = path.stat().st_mtime_ns, path.read_bytes()
    assert_same(reference(store, stand_in), first)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == written
    # A file with the right header and other numbers: only a reader can know them.
    file = safetensors_io.read(str(path))
    safetensors_io.write(str(path), file.tensors | {"mu": file.tensors["mu"] + 1}, file.header)
    assert torch.equal(reference(store, stand_in).mu, first.mu + 1)


def change_header(path: Path, **changes: object) -> None:
    file = safetensors_io.read(str(path))
    safetensors_io.write(str(path), file.tensors, file.header | changes)


def change_tensor(path: Path, name: str, value: torch.Tensor | None) -> None:
    file = safetensors_io.read(str(path))
    tensors = {key: tensor for key, tensor in file.tensors.items() if key != name}
    safetensors_io.write(str(path), tensors if value is None else tensors | {name: value}, file.header)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
        lambda path: path.write_bytes(b"\x80\x04K\x01." * 100),
        lambda path: change_header(path, data="0" * 16),
        lambda path: change_header(path, weights="other"),
        lambda path: change_header(path, num_samples=5),
        lambda path: change_tensor(path, "mu", None),
        lambda path: change_tensor(path, "mu", torch.full((6,), torch.nan, dtype=torch.float64)),
        lambda path: change_tensor(path, "sigma", torch.zeros(6, 5, dtype=torch.float64)),
        lambda path: change_tensor(path, "features", torch.zeros(3, 6)),
    ],
    ids=["empty", "cut", "header", "pickle", "data", "weights", "number", "missing", "nan", "shape", "few features"],
)
def test_a_damaged_or_foreign_cache_is_computed_again_with_a_warning(
    store: Store, stand_in: Extractor, damage: object
) -> None:
    first = reference(store, stand_in)
    path = cache(store, stand_in)
    good = path.read_bytes()
    damage(path)
    with pytest.warns(UserWarning, match="computed again"):
        assert_same(reference(store, stand_in), first)
    assert path.read_bytes() == good
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "nothing may be left next to it"


def test_other_weights_under_one_label_are_never_mixed(store: Store, stand_in: Extractor) -> None:
    reference(store, stand_in)
    with pytest.warns(UserWarning, match="other data or weights"):
        reference(store, dataclasses.replace(stand_in, digest="f" * 64))


def test_a_store_that_cannot_be_written_is_measured_all_the_same(store: Store, stand_in: Extractor) -> None:
    # A file where the folder should be stops every user, the privileged one too.
    (Path(store.url) / "statistics").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot be read"), pytest.warns(UserWarning, match="cannot be saved"):
        found = reference(store, stand_in)
    assert found.num_samples == 1797


def test_a_subset_is_uniform_and_the_same_each_time(store: Store, stand_in: Extractor) -> None:
    def labels(seed: int) -> torch.Tensor:
        parts = [batch for _, batch in iter_subset(store, 500, seed=seed, batch_size=64) if batch is not None]
        return torch.cat(parts)

    assert len(labels(0)) == 500
    assert torch.equal(labels(0), labels(0)) and not torch.equal(labels(0), labels(1))
    first, second = reference(store, stand_in, 500), reference(store, stand_in, 500)
    assert_same(first, second)
    assert first.num_samples == 500 and first.features.shape == (500, 6)
    whole = reference(store, stand_in)
    # The mean of a uniform subset is that of the store within five standard errors, in each of the six features.
    error = (whole.sigma.diagonal() / 500).sqrt()
    assert bool(((first.mu - whole.mu).abs() < 5 * error).all())
    distance, index = torch.cdist(first.features, whole.features).min(dim=1)
    assert distance.max() < 1e-2, "each is one of the store's"
    # Not the first 500: of 500 in 1,797 positions 361 are expected beyond them, with a deviation of 10.
    assert 311 < int((index >= 500).sum()) < 411


@pytest.mark.parametrize("count", [1, 0, 1798])
def test_a_number_of_samples_that_is_not_there_is_refused(store: Store, stand_in: Extractor, count: int) -> None:
    with pytest.raises(UserError, match=r"samples"):
        reference(store, stand_in, count)


def test_tensor_files_keep_what_they_are_given_on_any_file_system(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6).reshape(2, 3), "b": torch.tensor([1.5], dtype=torch.float64)}
    header = {"text": "ü", "number": 0.1, "list": [1, None]}
    for url in (str(tmp_path / "new" / "file.safetensors"), "memory://tensorfile/new/file.safetensors"):
        assert not safetensors_io.exists(url)
        with pytest.raises(FileNotFoundError):
            safetensors_io.read(url)
        safetensors_io.write(url, tensors, header)
        found = safetensors_io.read(url)
        assert safetensors_io.exists(url) and found.header == header
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())
