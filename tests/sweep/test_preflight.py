"""What a command says before it starts of where shards come from, and of paths that other machines may not see."""

from __future__ import annotations

import pytest

from pipeline import config as schema
from pipeline.data import open_store, sources, write_store
from pipeline.sweep.cluster import Capacity
from pipeline.sweep.preflight import preflight_notes


@pytest.fixture(scope="module")
def digits():
    url = "memory://advice/digits"
    write_store(sources.make("digits"), url, resolution=8, channels=1)
    return open_store(url)


def said(store, *, nodes: int = 1, output: str = "memory://advice/out", worker: str = "CPU", **data: object) -> str:
    config = schema.from_dict(
        {
            "name": "x",
            "output": output,
            "data": {"store": store.url, "source": {"kind": "digits"}, **data},
            "model": {"networks": "dcgan"},
        }
    )
    capacity = Capacity([{"CPU": 1.0}] * nodes, {worker: 1.0}, num_workers=1)
    return "\n".join(preflight_notes(config, capacity, store))


def test_a_small_store_far_away_is_read_once_and_nothing_is_said(digits):
    assert said(digits) == ""


def test_of_a_large_one_it_is_said_that_it_could_be_kept(digits, monkeypatch):
    monkeypatch.setattr("pipeline.data.reading.device_reader.CACHE_BYTES", 0)
    assert f"note: {digits.url} is read anew in each epoch and by each trial; data.cache=/" in said(digits)
    notes = said(digits, cache="/scratch/gebm", cache_limit_gib=7.0)
    assert notes == "shards are kept in /scratch/gebm of each machine, up to 7 GiB"


def test_of_one_that_is_held_or_lies_here_nothing_is_said(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.data.reading.device_reader.CACHE_BYTES", 0)
    assert said(digits, device_resident=True) == said(digits, worker="GPU") == ""
    write_store(sources.make("digits"), str(tmp_path / "digits"), resolution=8, channels=1)
    assert said(open_store(str(tmp_path / "digits")), cache="/scratch/gebm") == ""


def test_a_local_path_is_named_where_there_are_several_machines(digits):
    assert "note: output=out is a local path and the cluster has 3 nodes" in said(digits, nodes=3, output="out")
    assert said(digits, output="out") == ""
