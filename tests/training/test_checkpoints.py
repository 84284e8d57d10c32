"""Checkpoints hold what was saved, survive a crash between two files, and run no code from the file."""

from __future__ import annotations

import json
import math
import pickle
import pickletools
import resource
from pathlib import Path

import fsspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.runtime.errors import UserError
from pipeline.training import checkpoints
from pipeline.training.checkpoint_format import load_state
from pipeline.training.checkpoints import Checkpoints, read
from tests.helpers.s3 import s3_bucket

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    values = torch.rand(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 1000)))) * 200
    return values.to(draw(st.sampled_from(DTYPES)))


LEAVES = st.one_of(tensors(), st.floats(), st.integers(-(2**70), 2**70), st.text(max_size=5), st.booleans(), st.none())
KEYS = st.one_of(st.text(max_size=5), st.sampled_from(["a", "a/b", "1", "__tensor__", "items"]), st.integers(-2, 2))
NESTED = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=12
)


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        keys = [(type(key), key) for key in one] == [(type(key), key) for key in other]
        return isinstance(other, dict) and keys and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    return type(one) is type(other) and one == other


@given(st.dictionaries(KEYS, NESTED, max_size=4))
@settings(deadline=None, max_examples=80)
def test_training_state_of_any_nesting_comes_back_as_it_was(training):
    url = Checkpoints("memory://law/trial").save(1, model={}, training=training, state={"seed": 3}, score=0.0)
    found = read(url)
    assert same(training, found.training)
    assert found.state.pop("sha256").keys() == {"model.safetensors", "training.safetensors"}
    assert found.state == {"format": 1, "base_step": 1, "score": 0.0, "seed": 3, "lr_scale": 1.0}


@pytest.mark.parametrize("key", ["rates", "lr_scale"])
def test_the_learning_rates_factor_is_read_by_its_name_of_before_as_well(key):
    url = Checkpoints(f"memory://{key}/trial").save(1, model={}, training={}, state={key: 0.5}, score=0.0)
    state = read(url).state
    assert state["lr_scale"] == 0.5 and "rates" not in state


@pytest.mark.parametrize(
    "state", [{"lr_scale": "1"}, {"rates": 0}, {"position": [0, 3]}, {"position": {"epoch": -1, "step": 0}}]
)
def test_a_state_of_other_types_names_its_field(tmp_path, state):
    url = Checkpoints(str(tmp_path)).save(1, model={}, training={}, state=state, score=0.0)
    with pytest.raises(UserError, match=r"state\.json is damaged \((lr_scale|rates|position): ") as refusal:
        read(url)
    assert "\n" not in str(refusal.value)


def test_tensors_that_are_views_or_shared_are_saved_whole():
    whole = torch.arange(12.0).reshape(3, 4)
    url = Checkpoints("memory://views/trial").save(
        1, model={"column": whole[:, 1]}, training={"one": whole, "transposed": whole.T}, state={}, score=0.0
    )
    found = read(url)
    assert torch.equal(found.model["column"], whole[:, 1])
    assert torch.equal(found.training["transposed"], whole.T)


@pytest.fixture(params=["memory", "file", "s3"])
def folder(request, tmp_path):
    """A trial's folder on each kind of file system."""
    if request.param == "memory":
        yield f"memory://{tmp_path.name}/trial"
    elif request.param == "file":
        yield str(tmp_path / "trial")
    else:
        with s3_bucket() as url:
            yield f"{url}/trial"


def save(kept: Checkpoints, step: int, score: float) -> str:
    return kept.save(
        step, model={"w": torch.full((2,), float(step))}, training={"t": torch.ones(1)}, state={}, score=score
    )


def test_the_last_and_the_best_are_kept(folder):
    kept = Checkpoints(folder)
    assert kept.last is None and kept.best is None
    for step, score, last, best in (
        (10, math.nan, 10, None),
        (20, 3.0, 20, 20),
        (30, 5.0, 30, 20),
        (40, math.nan, 40, 20),
        (50, 2.0, 50, 50),
        (60, math.inf, 60, 50),
    ):
        url = save(kept, step, score)
        for seen in (kept, Checkpoints(folder)):
            assert seen.last == url and url.endswith(f"step-{last:08d}")
            assert (seen.best or "None").endswith(f"{best:08d}" if best else "None")
        files, path = fsspec.url_to_fs(f"{folder}/checkpoints")
        files.invalidate_cache()
        left = {entry.rsplit("/", 1)[-1] for entry in files.ls(path, detail=False)}
        assert left == {"index.json", *(f"step-{step:08d}" for step in {last, best} - {None})}
    assert read(folder).model["w"].tolist() == [50.0, 50.0]  # a trial's folder means its best
    assert read(f"{folder}/checkpoints").model["w"].tolist() == [50.0, 50.0]
    assert read(url).model["w"].tolist() == [60.0, 60.0]


def test_a_sweep_in_place_of_a_trial_is_refused_with_the_name_of_one(folder):
    save(Checkpoints(f"{folder}/trials/000"), 10, 1.0)
    checkpoints.write_file(f"{folder}/summary.json", b"{}")
    with pytest.raises(UserError, match="is a sweep: give one of its trials, such as ") as refused:
        read(folder)
    assert read(str(refused.value).split()[-1]).model["w"].tolist() == [10.0, 10.0]


def test_another_trials_checkpoint_is_taken_over_whole_and_scored_as_it_was(folder):
    mine, theirs = Checkpoints(f"{folder}/mine"), Checkpoints(f"{folder}/theirs")
    save(mine, 10, 1.0)
    save(mine, 20, 9.0)
    donated = theirs.save(10, model={"w": torch.zeros(3)}, training={"t": torch.ones(1)}, state={"a": 1}, score=4.0)
    best = mine.best
    assert (
        mine.import_checkpoint(donated) == mine.last and mine.best == best != mine.last
    )  # both of step 10, and 1.0 is better
    copy, original = read(mine.last), read(donated)
    assert copy.url != original.url and copy.state == original.state
    assert same(copy.model, original.model) and same(copy.training, original.training)
    save(mine, 20, 5.0)
    assert mine.best == best and read(best).model["w"].tolist() == [10.0, 10.0]
    # A trial that has gone on forgets what it donated; then its newest is taken.
    save(theirs, 20, 3.0)
    newest = save(theirs, 30, math.nan)
    mine.import_checkpoint(donated)
    assert read(mine.last).state == read(newest).state and mine.best == best
    with pytest.raises(UserError, match="no checkpoint at"):
        mine.import_checkpoint(f"{folder}/missing/checkpoints/step-00000010")


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors"])
def test_half_of_one_checkpoint_and_half_of_another_is_seen(folder, name):
    kept, other = Checkpoints(f"{folder}/one"), Checkpoints(f"{folder}/other")
    url = save(kept, 10, 1.0)
    tensors = {"model": {"w": torch.zeros(2)}, "training": {"t": torch.zeros(1)}}
    exploited = other.save(10, **tensors, state={}, score=1.0)
    files, path = fsspec.url_to_fs(url)
    files.pipe_file(f"{path}/{name}", files.cat_file(f"{fsspec.url_to_fs(exploited)[1]}/{name}"))
    with pytest.raises(UserError, match="not what was saved"):
        read(url)


def test_an_endpoint_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    for look in (read, Checkpoints):
        with pytest.raises(UserError, match="cannot reach s3://bucket/trial") as refusal:
            look("s3://bucket/trial")
        assert "\n" not in str(refusal.value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize("name", ["index.json", "state.json", "model.safetensors", "training.safetensors"])
def test_a_file_that_may_be_listed_and_not_read_is_one_line(tmp_path, name, monkeypatch):
    folder = f"memory://{tmp_path.name}/trial"
    save(Checkpoints(folder), 10, 1.0)
    files = fsspec.filesystem("memory")
    whole = files.cat_file

    def denied(path: str, *arguments: object, **keywords: object) -> bytes:
        if path.endswith(name):
            raise PermissionError("Access\nDenied")
        return whole(path, *arguments, **keywords)

    monkeypatch.setattr(files, "cat_file", denied)
    with pytest.raises(UserError, match=r"cannot reach .*trial/checkpoints.*: Access Denied"):
        read(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "state.json", "index.json"])
def test_a_crash_while_writing_leaves_the_checkpoint_before(folder, name, monkeypatch):
    kept = Checkpoints(folder)
    first = save(kept, 10, 3.0)
    write = checkpoints.write_file

    def crash(url: str, content: bytes) -> None:
        if url.endswith(name):
            raise KeyboardInterrupt
        write(url, content)

    monkeypatch.setattr(checkpoints, "write_file", crash)
    with pytest.raises(KeyboardInterrupt):
        save(kept, 20, 1.0)
    monkeypatch.setattr(checkpoints, "write_file", write)
    again = Checkpoints(folder)
    assert again.last == again.best == first
    assert read(folder).model["w"].tolist() == [10.0, 10.0]
    assert save(again, 20, 1.0) == Checkpoints(folder).last


@pytest.mark.parametrize("name", ["training.safetensors", "state.json", "index.json"])
def test_a_crash_while_a_trial_that_went_back_saves_a_step_again_leaves_the_first(folder, name, monkeypatch):
    kept = Checkpoints(folder)
    first = save(kept, 10, 3.0)
    write = checkpoints.write_file
    tensors = {"model": {"w": torch.zeros(2)}, "training": {"t": torch.zeros(1)}}

    def crash(url: str, content: bytes) -> None:
        if url.endswith(name):
            raise KeyboardInterrupt
        write(url, content)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "write_file", crash)
        with pytest.raises(KeyboardInterrupt):
            kept.save(10, **tensors, state={}, score=5.0)
    again = Checkpoints(folder)
    assert again.last == again.best == first and read(first).model["w"].tolist() == [10.0, 10.0]
    assert again.save(10, **tensors, state={}, score=5.0) == again.last != first == again.best
    assert read(again.last).model["w"].tolist() == [0.0, 0.0]
    # However often it comes by, names do not grow, and what is no longer named is deleted.
    for score in (4.0, 2.0, 6.0):
        last = again.save(10, **tensors, state={}, score=score)
        assert len(last.rsplit("/", 1)[-1]) <= len("step-00000010-3")
    files, path = fsspec.url_to_fs(f"{folder}/checkpoints")
    files.invalidate_cache()
    left = {entry.rsplit("/", 1)[-1] for entry in files.ls(path, detail=False)}
    assert left == {"index.json", *(url.rsplit("/", 1)[-1] for url in (again.last, again.best))}


@pytest.fixture
def saved(tmp_path) -> Path:
    """A checkpoint on disk."""
    return Path(
        Checkpoints(str(tmp_path / "trial")).save(
            5, model={"w": torch.ones(3)}, training={"step": torch.ones(2), "n": 1}, state={}, score=1.0
        )
    )


@pytest.mark.parametrize("keep", [0, 1, 7, 9, 40, -1])
@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "state.json"])
def test_a_truncated_file_is_one_line(saved, name, keep):
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[:keep])
    with pytest.raises(UserError, match=r"damaged|incomplete") as refusal:
        read(str(saved))
    assert "\n" not in str(refusal.value) and str(saved) in str(refusal.value)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "state.json"])
def test_a_missing_file_is_one_line(saved, name):
    (saved / name).unlink()
    with pytest.raises(UserError, match=r"incomplete|no checkpoint") as refusal:
        read(str(saved))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "state",
    [
        "not JSON",
        "[]",
        "3",
        "{}",
        '{"format": 99}',
        '{"format": 1}',
        "[" * 100_000,
        *(
            json.dumps({"format": 1, "base_step": 5, "training": outline})
            for outline in (
                {"__tensor__": "/absent"},
                {"__tensor__": ["list"]},
                {"items": 3},
                {"items": [["key"]]},
                {"items": [[[], 1]]},
                {"other": 1},
            )
        ),
    ],
)
def test_a_state_that_makes_no_sense_is_one_line(saved, state):
    (saved / "state.json").write_text(state)
    with pytest.raises(UserError) as refusal:
        read(str(saved))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        '{"last": 3}',
        '{"last": "../../precious", "best": "../../precious"}',
        '{"last": "/precious"}',
        '{"last": "step-00000005", "best": "step-00000005", "score": "low"}',
        '{"last": "step-00000005", "best": "step-00000005", "score": true}',
        '{"last": "step-00000005\\n"}',
    ],
)
def test_an_index_that_leads_elsewhere_is_refused_and_deletes_nothing(saved, tmp_path, index):
    (tmp_path / "precious").mkdir()
    (saved.parent / "index.json").write_text(index)
    with pytest.raises(UserError) as refusal:
        save(Checkpoints(str(tmp_path / "trial")), 6, 0.5)
    assert "index.json" in str(refusal.value) and "\n" not in str(refusal.value)
    assert (tmp_path / "precious").is_dir()


class Payload:
    """What runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_a_pickle_in_place_of_tensors_does_not_run(saved, tmp_path):
    target = tmp_path / "ran"
    evil = pickle.dumps({"w": Payload(target)})
    # REDUCE is the instruction that calls a function when it is read.
    operations = {operation.name for operation, _, _ in pickletools.genops(evil)}
    assert "REDUCE" in operations, "the payload does not work, so the test shows nothing"
    torch_file = tmp_path / "evil.pt"
    torch.save({"w": Payload(target)}, torch_file)
    for name in ("model.safetensors", "training.safetensors", "state.json"):
        kept = (saved / name).read_bytes()
        for content in (evil, torch_file.read_bytes()):
            (saved / name).write_bytes(content)
            with pytest.raises(UserError, match="damaged"):
                read(str(saved))
        (saved / name).write_bytes(kept)
    assert not target.exists()


def test_another_architecture_names_the_first_tensor_that_differs(tmp_path):
    here = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 4))
    there = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 5))
    url = Checkpoints(str(tmp_path)).save(1, model=there.state_dict(), training={}, state={}, score=1.0)
    with pytest.raises(UserError) as refusal:
        load_state(here, read(url))
    line = str(refusal.value)
    assert "1.bias is (5,) there and (4,) here (2 differ)" in line and "\n" not in line
    load_state(there, read(url))
    with pytest.raises(UserError, match=r"2\.weight is absent there"):
        load_state(torch.nn.Sequential(*there, torch.nn.PReLU()), read(url))


@pytest.mark.parametrize("url", ["nowhere", "memory://nowhere/at/all", "foo://x"])
def test_no_checkpoint_is_one_line(url):
    with pytest.raises(UserError) as refusal:
        read(url)
    assert url in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path):
    kept = Checkpoints(str(tmp_path))
    first = save(kept, 10, 3.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))  # a file cannot grow further
    try:
        with pytest.raises(OSError):
            kept.save(20, model={"w": torch.zeros(100_000)}, training={}, state={}, score=1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Checkpoints(str(tmp_path)).last == Checkpoints(str(tmp_path)).best == first
    assert read(first).state["base_step"] == 10
    # Once there is room, the trial continues as if nothing had been.
    second = kept.save(20, model={"w": torch.zeros(100_000)}, training={}, state={}, score=1.0)
    assert Checkpoints(str(tmp_path)).best == second and len(read(second).model["w"]) == 100_000
    assert not list(tmp_path.rglob("*.part"))


def test_a_checkpoint_between_evaluations_is_the_last_and_never_the_best(folder):
    kept = Checkpoints(folder)
    best = save(kept, 10, 3.0)
    between = kept.save(15, model={"w": torch.ones(2)}, training={}, state={}, score=None)
    assert between.endswith("/interim-00000015")
    assert Checkpoints(folder).last == between and Checkpoints(folder).best == best
    worse = save(kept, 20, 4.0)
    assert Checkpoints(folder).last == worse and Checkpoints(folder).best == best
    with pytest.raises(UserError):
        read(between)  # it is superseded, and gone
