"""Each published table, on a small file of its format, and the toy data against what made them."""

from __future__ import annotations

import gzip
import io
import math
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pipeline.data import load_rows, open_store, sources, write_store
from pipeline.data.sources.tables import text as numbers
from pipeline.data.sources.tables import toy
from pipeline.runtime.errors import UserError

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "uci"

WINE = (
    '"fixed acidity";"volatile acidity";"citric acid";"residual sugar";"chlorides";"free sulfur dioxide";'
    '"total sulfur dioxide";"density";"pH";"sulphates";"alcohol";"quality"'
)
PARKINSONS = (
    "subject#,age,sex,test_time,motor_UPDRS,total_UPDRS,Jitter(%),Jitter(Abs),Jitter:RAP,Jitter:PPQ5,Jitter:DDP,"
    "Shimmer,Shimmer(dB),Shimmer:APQ3,Shimmer:APQ5,Shimmer:APQ11,Shimmer:DDA,NHR,HNR,RPDE,DFA,PPE"
)
HEPMASS = ",".join(["# label", *(f"f{i}" for i in range(27))])
NAMES = {
    "redwine": "winequality-red.csv",
    "whitewine": "winequality-white.csv",
    "parkinsons": "parkinsons_updrs.data",
    "hepmass": "1000_train.csv",
    "miniboone": "MiniBooNE_PID.txt",
}


def noise(size: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(size, columns)).astype(np.float32)


def text(header: str, rows: np.ndarray, delimiter: str) -> bytes:
    return "".join(f"{line}\n" for line in [header, *(delimiter.join(map(str, row)) for row in rows)]).encode()


def events(size: int, mass: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """Lines of HEPMASS: every second one is signal."""
    label = np.arange(size)[:, None] % 2
    return np.concatenate([label, noise(size, 27, seed), *([] if mass is None else [mass[:, None]])], 1)


def small(kind: str) -> tuple[bytes, np.ndarray]:
    """A published file of this kind with a few rows, and the rows that a table of it has."""
    if kind in ("redwine", "whitewine"):
        rows = noise(20, 12)
        return text(WINE, rows, ";"), rows[:, :11]
    if kind == "parkinsons":
        rows = noise(20, 22)
        return text(PARKINSONS, rows, ","), rows[:, 3:]
    if kind == "hepmass":
        rows = events(20)
        discrete = [0, 6, 10, 14, 18, 22]
        return text(HEPMASS, rows, ","), np.delete(rows[1::2], discrete, axis=1).astype(np.float32)
    rows = noise(30, 50)
    rows[4, :] = -999
    rows[:12, [7, 30]] = np.maximum(rows[:12, [7, 30]], 0)  # signal alone has repeats, at its lower end
    rows[:7, [7, 30]] = -9
    rows[:6, 20] = 9  # not at the lower end, so it stays
    data = text(" 12    18", [[f"{number:.9e}" for number in row] for row in rows], "  ")
    return data, np.delete(np.delete(rows[:12], 4, axis=0), [7, 30], axis=1)


def packed(folder: Path, name: str, data: bytes, how: str) -> str:
    """The path of a file that is plain, gzipped, in a zip file, gzipped in a zip file, or in a folder."""
    path = folder / name
    if how == "plain":
        path.write_bytes(data)
    elif how == "gz":
        path = folder / f"{name}.gz"
        path.write_bytes(gzip.compress(data))
    elif how.startswith("zip"):
        path = folder / "published.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("readme.names", b"about the data")
            archive.writestr(
                f"data/{name}" + (".gz" if "gz" in how else ""), gzip.compress(data) if "gz" in how else data
            )
    else:
        (folder / "folder").mkdir()
        (folder / "folder" / name).write_bytes(data)
        path = folder / "folder"
    return str(path)


def refused(kind: str, url: str | None, message: str, split: str | None = None) -> None:
    with pytest.raises(UserError, match=message) as caught:
        sources.make(kind, url, split)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["plain", "gz", "zip", "zip of gz", "folder"])
@pytest.mark.parametrize("kind", NAMES)
def test_a_published_table(tmp_path, kind: str, how: str) -> None:
    data, rows = small(kind)
    url = packed(tmp_path, NAMES[kind], data, how)
    table = sources.make(kind, url)
    assert (table.kind, table.url, table.split, len(table)) == (kind, url, None, len(rows))
    assert table.rows.dtype == np.float32 and np.array_equal(table.rows, rows)
    write_store(table, str(tmp_path / "store"), samples_per_shard=7)
    assert np.array_equal(load_rows(open_store(str(tmp_path / "store"))).numpy(), rows)


@pytest.mark.parametrize("kind", NAMES)
def test_a_remote_table_is_copied_and_the_copy_deleted(tmp_path, monkeypatch, kind: str) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data, rows = small(kind)
    fs = fsspec.filesystem("memory")
    fs.pipe_file(f"/tables/{kind}/{NAMES[kind]}.gz", gzip.compress(data))
    for url in (f"memory://tables/{kind}/{NAMES[kind]}.gz", f"memory://tables/{kind}"):
        assert np.array_equal(sources.make(kind, url).rows, rows)
        assert not list(tmp_path.glob("gebm-source-*"))


@pytest.mark.parametrize("kind", ["redwine", "whitewine", "parkinsons", "miniboone"])
def test_a_file_by_itself_may_have_any_name_and_an_end_of_any_kind(tmp_path, kind: str) -> None:
    data, rows = small(kind)
    for number, variant in enumerate(
        (data, data[:-1], data + b"\n \n", data.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + data)
    ):
        path = tmp_path / f"renamed-{number}"
        path.write_bytes(variant)
        assert np.array_equal(sources.make(kind, str(path)).rows, rows)


def changed(data: bytes, line: int, change: object) -> bytes:
    """A text file with one of its lines, counted from 1, changed."""
    lines = data.split(b"\n")
    lines[line - 1] = change(lines[line - 1])
    return b"\n".join(lines)


def field(separator: bytes | None, column: int, value: bytes) -> object:
    def change(line: bytes) -> bytes:
        fields = line.split(separator)
        fields[column - 1] = value
        return (separator or b" ").join(fields)

    return change


SEPARATORS = {"redwine": b";", "whitewine": b";", "parkinsons": b",", "hepmass": b",", "miniboone": None}
WIDTHS = {"redwine": "12", "whitewine": "12", "parkinsons": "22", "hepmass": "28 or 29", "miniboone": "50"}


@pytest.mark.parametrize("kind", NAMES)
def test_a_damaged_line_is_named_by_its_number(tmp_path, kind: str) -> None:
    data, _ = small(kind)
    separator = SEPARATORS[kind]
    for number, (line, change, message) in enumerate(
        [
            (5, field(separator, 3, b"abc"), "has 'abc' in column 3, which is no number"),
            (5, field(separator, 3, b'"1.5"'), "has .* in column 3, which is no number"),
            (5, field(separator, 3, b"1_0"), "has '1_0' in column 3, which is no number"),
            (5, field(separator, 3, b"\xff\xfe"), "has .* in column 3, which is no number"),
            (7, field(separator, 2, b"nan"), "has 'nan' in column 2, which is out of range"),
            (7, field(separator, 2, b"-inf"), "has '-inf' in column 2, which is out of range"),
            (7, field(separator, 2, b"1e39"), "has '1e39' in column 2, which is out of range"),
            (9, lambda line: line.rpartition(separator or b" ")[0].rstrip(), "has .* columns, not "),
            (9, lambda line: line + (separator or b" ") + b"1" + (separator or b" ") + b"1", "has .* columns, not "),
            (9, lambda line: b"", "has 0 columns, not "),
            (11, lambda line: b"text instead of numbers", "has . columns, not "),
        ]
    ):
        path = tmp_path / str(number) / NAMES[kind]
        path.parent.mkdir()
        path.write_bytes(changed(data, line, change))
        refused(kind, str(path), f"^line {line} of {path} {message}.*: fetch it again$")


@pytest.mark.parametrize("kind", NAMES)
def test_a_line_is_named_wherever_the_file_lies(tmp_path, kind: str, monkeypatch) -> None:
    """Also behind the first block of lines that is read at once."""
    monkeypatch.setattr(numbers, "_BLOCK", 4)
    data, rows = small(kind)
    url = packed(tmp_path, NAMES[kind], data, "zip of gz")
    assert np.array_equal(sources.make(kind, url).rows, rows)
    packed(tmp_path, NAMES[kind], changed(data, 14, lambda line: line[:3]), "zip of gz")
    refused(kind, url, f"^line 14 of {NAMES[kind]} of {url} has 1 columns, not {WIDTHS[kind].split()[0]}")


@pytest.mark.parametrize("kind", NAMES)
def test_what_is_no_table_of_this_kind_is_one_line(tmp_path, kind: str) -> None:
    name = NAMES[kind]
    refused(kind, None, "needs a url")
    refused(kind, str(tmp_path / name), "there is no data at")
    refused(kind, "nosuch://bucket/file", "cannot reach")
    path = tmp_path / name
    for data in (b"", b"neither names nor numbers\n" * 20, bytes(range(256)) * 20):
        path.write_bytes(data)
        refused(kind, str(path), f"line 1 of {path} is not .*: fetch it again")
    whole, _ = small(kind)
    head = b"\n".join(whole.split(b"\n")[:1])
    path.write_bytes(head)
    refused(kind, str(path), "has no rows|has no signal|says 30 events, and 0 follow")
    zipped = gzip.compress(whole)
    path.write_bytes(zipped[: len(zipped) // 2])
    refused(kind, str(path), "is damaged .*: fetch it again")
    refused(kind, packed(tmp_path, "other.csv", whole, "zip"), "there is no .* at .*published.zip")
    refused(kind, packed(tmp_path, "other.csv", whole, "folder"), "there is no .* at .*folder")
    refused(kind, str(path), "has no split 'valid'", split="valid")


def test_a_byte_of_a_zip_file_that_changed_is_one_line(tmp_path) -> None:
    data, _ = small("redwine")
    url = Path(packed(tmp_path, NAMES["redwine"], data, "zip"))
    content = bytearray(url.read_bytes())
    content[len(content) // 2] ^= 0xFF
    url.write_bytes(content)
    refused("redwine", str(url), "fetch it again")


def test_hepmass_has_two_files(tmp_path) -> None:
    folder = tmp_path / "hepmass"
    folder.mkdir()
    files = {"train": events(20, seed=1), "test": events(12, seed=2)}
    for split, rows in files.items():
        (folder / f"1000_{split}.csv.gz").write_bytes(gzip.compress(text(HEPMASS, rows, ",")))
        (folder / f"all_{split}.csv").write_bytes(b"not looked at")
    parts = {split: sources.make("hepmass", str(folder), split).rows for split in files}
    assert {split: len(rows) for split, rows in parts.items()} == {"train": 10, "test": 6}
    assert np.array_equal(sources.make("hepmass", str(folder)).rows, np.concatenate([parts["train"], parts["test"]]))
    (folder / "1000_test.csv.gz").unlink()
    assert np.array_equal(sources.make("hepmass", str(folder)).rows, parts["train"])
    refused("hepmass", str(folder / "1000_train.csv.gz"), "there is no 1000_test.csv.gz at", split="test")


def test_hepmass_of_several_masses(tmp_path) -> None:
    mass = np.array([500.0, 750.0, 1000.0, 1000.0, 1250.0] * 4)
    rows = events(20, mass)
    url = packed(tmp_path, "all_train.csv", text(f"{HEPMASS},mass", rows, ","), "gz")
    expected = np.delete(rows[(rows[:, 0] == 1) & (mass == 1000)], [0, 6, 10, 14, 18, 22, 28], axis=1)
    assert np.array_equal(sources.make("hepmass", url).rows, expected.astype(np.float32))
    url = packed(tmp_path, "1000_test.csv", text(f"{HEPMASS},mass", rows, ","), "gz")
    assert len(sources.make("hepmass", url)) == 10, "the data set of one mass takes no notice of a mass"
    url = packed(tmp_path, "all_test.csv", text(f"{HEPMASS},mass", events(20, mass + 7), ","), "gz")
    refused("hepmass", url, "has no signal of mass 1000")
    refused("hepmass", packed(tmp_path, "not1000_train.csv", text(HEPMASS, rows, ","), "gz"), "there is no 1000_train")


def test_of_hepmass_the_first_tenth_is_taken(tmp_path, monkeypatch) -> None:
    from pipeline.data.sources.tables import uci

    monkeypatch.setattr(uci, "_HEPMASS_EVENTS", {"train": 8, "test": 4})
    data, rows = small("hepmass")
    url = packed(tmp_path, "1000_train.csv", data, "plain")
    assert np.array_equal(sources.make("hepmass", url).rows, rows[:4])


def test_miniboone_that_contradicts_its_first_line(tmp_path) -> None:
    data, _ = small("miniboone")
    for head, message in (
        (b"12 17", "line 1 of .* says 29 events, and 30 follow"),
        (b"12", "line 1 of .* is not two numbers"),
        (b"12 18.5", "line 1 of .* is not two numbers"),
        (b"0 30", "has no signal events"),
    ):
        url = packed(tmp_path, NAMES["miniboone"], changed(data, 1, lambda line, head=head: head), "plain")
        refused("miniboone", url, message)


@settings(max_examples=60, deadline=None)
@given(
    rows=npst.arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.integers(1, 4)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    at_once=st.integers(1, 5),
    delimiter=st.sampled_from([";", ",", " "]),
)
@example(rows=np.full((1, 1), np.finfo(np.float32).max), at_once=1, delimiter=";")
def test_numbers_are_read_as_they_were_written(rows: np.ndarray, at_once: int, delimiter: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbers, "_BLOCK", at_once)
        lines = numbers.RowReader(io.StringIO(text("names", rows, delimiter).decode()), "here")
        assert lines.read_line() == "names"
        blocks = list(lines.numbers({rows.shape[1]}, delimiter.strip() or None))
    assert all(len(block) <= at_once for block in blocks)
    assert np.array_equal(np.concatenate(blocks).astype(np.float32), rows)


@pytest.mark.parametrize(
    ("kind", "shape"), [("redwine", (1599, 11)), ("whitewine", (4898, 11)), ("parkinsons", (5875, 19))]
)
def test_the_published_files(kind: str, shape: tuple[int, int]) -> None:
    path = PUBLISHED / NAMES[kind]
    if not path.exists():
        pytest.skip(f"the published {path.name} is not next to the repository, in ../shared/data/uci")
    rows = sources.make(kind, str(path)).rows
    assert rows.shape == shape
    if kind == "parkinsons":
        assert rows[0, 0] == np.float32(5.6431) and rows[0, -1] == np.float32(0.16006)
    else:
        assert (rows[:, 7] > 0.98).all() and (rows[:, 7] < 1.04).all()  # density


def test_toy_data_come_with_their_package(tmp_path) -> None:
    refused("toy", "s3://bucket/toy", "leave the source's url empty")
    refused("toy", None, "no split", split="train")
    rows = sources.make("toy").rows
    assert rows.shape == (toy.NUM_ROWS, 3) and np.array_equal(rows, sources.make("toy").rows)
    assert np.allclose(rows[:2], FIRST, atol=1e-6), "the toy data are fixed for ever"


FIRST = [[-0.9037945, 0.4279667, -0.3867939], [-0.5542212, 0.8323694, -0.4613168]]


def test_toy_data_lie_on_the_curve_of_their_base() -> None:
    x, y, z = torch.from_numpy(sources.make("toy").rows).double().T
    assert ((x**2 + y**2 - 1).abs() < 1e-6).all() and ((z - x * y).abs() < 1e-6).all()
    points = toy.base(torch.randn(1000, toy.LATENT_DIM, generator=torch.Generator().manual_seed(0)).double())
    assert torch.allclose(points[:, 0] ** 2 + points[:, 1] ** 2, torch.ones(1000).double())


def test_the_log_partition_of_the_toy_data_is_that_of_its_base_and_energy() -> None:
    """The trapezoidal rule is exact for a smooth periodic function: here the angle, uniform under the base."""
    latents = torch.special.ndtri((torch.arange(400, dtype=torch.float64) + 0.5) / 400)[:, None]
    estimate = (-toy.energy(toy.base(latents))).logsumexp(0) - math.log(400)
    assert math.isclose(estimate, toy.log_partition(), abs_tol=1e-12)


def test_toy_data_are_the_base_reweighted_by_the_energy() -> None:
    """Probabilities of 40 equal arcs, against what base and energy say: chi-squared with 39 degrees of freedom."""
    rows = toy.sample(40_000, seed=3).double()
    angles = torch.atan2(rows[:, 1], rows[:, 0]) % (2 * math.pi)
    counts = torch.bincount((angles / (2 * math.pi) * 40).long().clamp(max=39), minlength=40)
    latents = torch.special.ndtri((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)[:, None]
    density = (-toy.energy(toy.base(latents)) - toy.log_partition()).exp()
    expected = density.reshape(40, 100).mean(1) * 1000
    assert ((counts - expected) ** 2 / expected).sum() < 39 + 5 * math.sqrt(2 * 39)
    uniform = (counts - 1000.0).square().sum() / 1000
    assert uniform > 10_000, "the energy makes no difference, so the test shows nothing"
