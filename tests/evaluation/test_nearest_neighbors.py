"""The training images nearest to samples: found as brute force finds them, and what the ratio of distances says."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import Store, load_images, open_store
from pipeline.evaluation import metrics


@given(
    samples=st.integers(1, 12),
    rows=st.integers(1, 30),
    width=st.integers(1, 5),
    far=st.sampled_from([0.0, 1e3]),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_the_nearest_are_those_that_brute_force_finds(samples, rows, width, far, seed, data):
    generator = torch.Generator().manual_seed(seed)
    embedding, among = (torch.randn(count, width, generator=generator) + far for count in (samples, rows))
    count = data.draw(st.integers(1, rows))
    distances, found = metrics.nearest(embedding, among, count)
    exact = (embedding.double()[:, None] - among.double()[None]).square().sum(2).sqrt()
    wanted = exact.sort(1).values[:, :count]
    # Where two are as near, either may come first: what counts is how far those are that were found.
    assert torch.allclose(exact.gather(1, found), wanted, rtol=1e-3, atol=1e-3)
    assert torch.allclose(distances.double(), wanted, rtol=1e-3, atol=1e-3)
    assert all(len(set(row.tolist())) == count for row in found)


def test_more_samples_than_are_compared_at_once_are_all_compared():
    data = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    order = torch.randint(50, (1700,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(metrics.nearest(data[order], data)[1][:, 0], order)


def of_rows(rows: torch.Tensor) -> metrics.Reference:
    return metrics.Reference("any", len(rows), rows.double().mean(0), rows.double().T.cov(), rows)


def test_the_ratio_is_one_for_new_images_and_the_share_of_new_ones_where_others_are_copies():
    generator, count, dim = torch.Generator().manual_seed(0), 2000, 8
    data, new = (torch.randn(count, dim, generator=generator) for _ in range(2))
    among_data = metrics.mean_nn_distance(data)
    # Of two means of `count` distances; those within the data come in pairs, so twice their variance at most.
    distances = metrics.nearest(new, data)[0]
    bound = 5 * float(distances.std() / distances.mean()) * math.sqrt(3 / count)
    assert abs(metrics.nn_distance_ratio(new, of_rows(data), among_data) - 1) < bound < 0.1
    assert metrics.nn_distance_ratio(data, of_rows(data), among_data) < 1e-3
    half = torch.cat([data[: count // 2], new[: count // 2]])
    assert abs(metrics.nn_distance_ratio(half, of_rows(data), among_data) - 0.5) < bound
    assert metrics.nn_distance_ratio(new + 10, of_rows(data), among_data) > 2


def test_the_images_that_are_kept_are_those_whose_features_are(digits, stand_in, tmp_path, monkeypatch):
    """In the same order, of a store that has more of them; read once, and again where what is kept is damaged."""
    copy = tmp_path / "store"
    shutil.copytree(digits.url, copy, ignore=shutil.ignore_patterns("statistics", "extractors"))
    for module in ("reference_statistics", "nearest_neighbors"):
        monkeypatch.setattr(sys.modules[f"pipeline.evaluation.metrics.{module}"], "MAX_FEATURES", 70)
    store: Store = open_store(str(copy))
    features = metrics.reference(store, stand_in).features
    images = metrics.reference_images(store)
    assert images.shape == (70, 1, 8, 8) and images.dtype == torch.uint8
    # But for rounding: they went through the network in other batches.
    assert torch.allclose(metrics.features(images, stand_in)["embedding"], features, atol=1e-4)
    assert (images[:, None] == load_images(digits)[0][None]).flatten(2).all(2).any(1).all()
    [kept] = Path(store.url, "statistics").glob("images-*")
    shards = {shard: shard.rename(f"{shard}.away") for shard in copy.glob("*.tar")}
    assert torch.equal(metrics.reference_images(store), images)  # from what is kept
    for shard, away in shards.items():
        away.rename(shard)
    kept.write_bytes(kept.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="cannot be read"):
        assert torch.equal(metrics.reference_images(store), images)
