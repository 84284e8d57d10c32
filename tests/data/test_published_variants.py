"""Published data in other forms: taken, or refused by a line that names the right one."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import sources
from pipeline.data.sources.tables.uci import _PARKINSONS, _WINE
from tests.data.test_sources import cifar10, encoded, everything, pack, refused

FACES = {f"{number:06d}": number % 3 for number in range(1, 7)}
TEXT = "".join(f"{name}.jpg {split}\n" for name, split in FACES.items()).encode()
CSV = b"image_id,partition\n" + TEXT.replace(b" ", b",")

LAYOUTS = {
    # The files below a folder, and what is given as the URL.
    "publisher's folders": ("Img/img_align_celeba", "jpg", "Eval/list_eval_partition.txt", TEXT, ""),
    "publisher's images": ("Img/img_align_celeba", "jpg", "Eval/list_eval_partition.txt", TEXT, "Img/img_align_celeba"),
    "PNG": ("img_align_celeba_png", "png", "list_eval_partition.txt", TEXT, "img_align_celeba_png"),
    "Kaggle's folders": ("img_align_celeba/img_align_celeba", "jpg", "list_eval_partition.csv", CSV, ""),
    "Kaggle's images": ("img_align_celeba/img_align_celeba", "jpg", "list_eval_partition.csv", CSV, "img_align_celeba"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_celeba_in_every_layout(tmp_path: Path, layout: str) -> None:
    folder, suffix, partition, text, given = LAYOUTS[layout]
    images = {f"{folder}/{name}.{suffix}": encoded(1, "PNG" if suffix == "png" else "JPEG") for name in FACES}
    wild = {"Img/img_celeba/000001.jpg": encoded(2, "JPEG")} if folder.startswith("Img") else {}
    pack(tmp_path / "celeba", {**images, **wild, partition: text})
    for number, split in enumerate(("train", "valid", "test")):
        source = sources.make("celeba", str(tmp_path / "celeba" / given), split)
        names = {name.rpartition("/")[2] for name in everything(source)}
        assert names == {f"{name}.{suffix}" for name, of in FACES.items() if of == number}


def test_celeba_in_a_zip_file_of_all_or_a_zip_file_in_a_folder(tmp_path: Path) -> None:
    images = {f"img_align_celeba/{name}.jpg": encoded(1, "JPEG") for name in FACES}
    whole = pack(
        tmp_path / "archive.zip",
        {f"img_align_celeba/{name}": data for name, data in images.items()} | {"list_eval_partition.csv": CSV},
    )
    assert len(sources.make("celeba", whole, "valid")) == 2
    packed = Path(pack(tmp_path / "img_align_celeba.zip", images)).read_bytes()
    folder = pack(tmp_path / "CelebA", {"Img/img_align_celeba.zip": packed, "Eval/list_eval_partition.txt": TEXT})
    for url in (folder, f"{folder}/Img/img_align_celeba.zip"):
        assert len(sources.make("celeba", url, "valid")) == 2
        assert len(sources.make("celeba", url)) == 6


@pytest.mark.parametrize(
    "names, message",
    [
        (["data_batch_1", "test_batch", "batches.meta"], "pickled version"),
        (["data_batch_1.mat", "test_batch.mat", "batches.meta.mat"], "Matlab's version"),
        (["train.bin", "test.bin", "fine_label_names.txt"], "is CIFAR-100"),
        (["train.7z", "trainLabels.csv"], "Kaggle's version"),
        (["readme.html"], "has no data_batch_1.bin"),
    ],
)
def test_other_archives_of_cifar_get_a_line_with_the_right_one(tmp_path: Path, names: list[str], message: str) -> None:
    url = pack(tmp_path / "cifar.tar.gz", {f"cifar/{name}": b"\x80\x04N." for name in names})
    refused("cifar10", url, f"{message}.*cifar-10-binary.tar.gz")


def test_cifar_in_bzip2_and_next_to_another_version(tmp_path: Path) -> None:
    assert len(sources.make("cifar10", pack(tmp_path / "a.tar.bz2", cifar10()), "train")) == 15
    both = {**cifar10(), "cifar-10-batches-py/data_batch_1": b"\x80\x04N."}
    assert len(sources.make("cifar10", pack(tmp_path / "b.tar", both), "test")) == 3


def table(header: str, delimiter: str, decimal: str = ".", quote: str = "") -> bytes:
    names = header.split(";" if ";" in header else ",")
    rows = np.arange(3 * len(names)).reshape(3, -1) + 0.5
    lines = [delimiter.join(f"{quote}{name}{quote}" for name in names)]
    lines += [delimiter.join(str(value).replace(".", decimal) for value in row) for row in rows]
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    "delimiter, decimal, quote", [(";", ".", '"'), (",", ".", ""), (";", ",", '"'), ("\t", ".", ""), (", ", ".", '"')]
)
def test_tables_with_other_delimiters(tmp_path: Path, delimiter: str, decimal: str, quote: str) -> None:
    for kind, name, header in (
        ("redwine", "winequality-red.csv", _WINE),
        ("parkinsons", "parkinsons_updrs.data", _PARKINSONS),
    ):
        usual = pack(tmp_path / f"usual-{kind}", {name: table(header, ";" if kind == "redwine" else ",")})
        other = pack(tmp_path / f"other-{kind}", {name: table(header, delimiter, decimal, quote)})
        assert np.array_equal(sources.make(kind, usual).rows, sources.make(kind, other).rows)
        # Numbers of another program have other digits, so only the rows are counted.
        published = {part.unit for part in sources.make(kind, other).parts}
        assert ("characters" in published) == (delimiter.strip() == (";" if kind == "redwine" else ","))


@pytest.mark.parametrize("suffix, compress", [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_compressed_tables(tmp_path: Path, suffix: str, compress) -> None:
    data = compress(table(_WINE, ";"))
    for path in (f"folder/winequality-red.csv.{suffix}", f"anything.{suffix}"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    for url in ("folder", f"anything.{suffix}"):
        assert sources.make("redwine", str(tmp_path / url)).rows.shape == (3, 11)
    (tmp_path / f"anything.{suffix}").write_bytes(data[:-9])
    refused("redwine", str(tmp_path / f"anything.{suffix}"), "is damaged")
