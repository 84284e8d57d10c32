"""Each published format, on a small file of that format."""

from __future__ import annotations

import contextlib
import errno
import io
import multiprocessing
import pickle
import shlex
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import lmdb
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipeline import shards
from pipeline.data import load_images, open_store, sources, write_store
from pipeline.runtime.errors import UserError


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(seed: int, kind: str = "PNG", size: tuple[int, int] = (12, 10)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(seed, *size, 3)).save(buffer, kind)
    return buffer.getvalue()


def pack(path: Path, files: dict[str, bytes]) -> str:
    """Puts files into a zip file, a tar file or a folder, by the ending of its name."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    elif ".tar" in path.name:
        with tarfile.open(path, {".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}.get(path.suffix, "w")) as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return str(path)


def everything(source: sources.Source) -> dict[str, tuple[object, int | None]]:
    """All that a source gives, by name, read backwards."""
    return {source.name(index): source.read(index) for index in reversed(range(len(source)))}


def names_and_samples(source: sources.Source) -> tuple[list[str], dict[str, tuple[object, int | None]]]:
    """Read a source in a process that it was sent to, and close it there."""
    with contextlib.closing(source):
        return [source.name(index) for index in range(len(source))], everything(source)


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def test_a_source_that_was_sent_to_another_process_reads_the_same(tmp_path, process) -> None:
    """LMDB, which forbids two handles in one process, is read by two processes in the test of LSUN's store."""
    urls = {
        "digits": None,
        "cifar10": pack(tmp_path / "a.tar.gz", cifar10()),
        "celeba": pack(tmp_path / "b.zip", FOLDER),
        "imagenet32": pack(tmp_path / "c.zip", {"train_data_batch_1.npz": npz(0, 3)}),
        "images": pack(tmp_path / "d.tar", FOLDER),
    }
    for kind, url in urls.items():
        source = sources.make(kind, url)
        found = everything(source)
        names, sent = process.submit(names_and_samples, source).result()
        assert names == [source.name(i) for i in range(len(source))]
        for name, (image, label) in sent.items():
            assert np.array_equal(image, found[name][0]) and label == found[name][1]
        assert everything(source).keys() == found.keys(), "a copy took the files of its source away"
        source.close()


def refused(kind: str, url: str | None, message: str, split: str | None = None) -> None:
    with pytest.raises(UserError, match=message) as caught:
        sources.make(kind, url, split)
    assert "\n" not in str(caught.value)


def test_digits() -> None:
    source = sources.make("digits")
    images = np.stack([source.read(index)[0][..., 0] for index in range(len(source))])
    published = load_digits()
    assert np.array_equal(images, np.rint(published.images * 255 / 16))
    assert [source.read(index)[1] for index in range(len(source))] == published.target.tolist()
    assert source.labels == tuple("0123456789")
    refused("digits", "s3://bucket/digits", "leave the source's url empty")


def cifar10(records: int = 3) -> dict[str, bytes]:
    files = {"batches.meta.txt": b"\n".join(b"class%d" % i for i in range(10)) + b"\n\n"}
    for number, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        batch = noise(number, records, 3073)
        batch[:, 0] = np.arange(records) + number
        files[name] = batch.tobytes()
    return {f"cifar-10-batches-bin/{name}": data for name, data in files.items()}


@pytest.mark.parametrize("name", ["cifar-10-binary.tar.gz", "plain.tar", "folder"])
def test_cifar10(tmp_path, name: str) -> None:
    url = pack(tmp_path / name, cifar10())
    for split, count in (("train", 15), ("test", 3), (None, 18)):
        source = sources.make("cifar10", url, split)
        found = everything(source)
        assert len(source) == len(found) == count
        assert source.labels == tuple(f"class{i}" for i in range(10))
        if split != "test":
            image, label = found["data_batch_2.bin[2]"]
            assert label == 3
            assert np.array_equal(image.transpose(2, 0, 1).ravel(), noise(1, 3, 3073)[2, 1:])
        source.close()


def test_cifar10_that_is_not_the_binary_version(tmp_path) -> None:
    pickled = {
        f"cifar-10-batches-py/{name}": pickle.dumps({}) for name in ("data_batch_1", "test_batch", "batches.meta")
    }
    refused("cifar10", pack(tmp_path / "cifar-10-python.tar.gz", pickled), "pickled version")
    files = cifar10()
    missing = {name: data for name, data in files.items() if "batch_3" not in name}
    refused("cifar10", pack(tmp_path / "missing.tar.gz", missing), "has no data_batch_3.bin")
    short = {**files, "cifar-10-batches-bin/test_batch.bin": bytes(100)}
    refused("cifar10", pack(tmp_path / "short.tar.gz", short), "no whole number of records")
    wrong = {**files, "cifar-10-batches-bin/test_batch.bin": b"\x0a" + bytes(3072)}
    refused("cifar10", pack(tmp_path / "wrong.tar.gz", wrong), "label above 9")
    refused("cifar10", str(tmp_path / "wrong.tar.gz"), "choose train, test", split="valid")
    whole = Path(pack(tmp_path / "whole.tar.gz", files)).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    refused("cifar10", str(tmp_path / "cut.tar.gz"), "is damaged")


def lsun(path: Path, images: dict[bytes, bytes]) -> None:
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=2**24) as database, database.begin(write=True) as transaction:
        for key, value in images.items():
            transaction.put(key, value)


def test_lsun(tmp_path) -> None:
    images = {b"%040x" % i: encoded(i, "WEBP" if i % 2 else "JPEG") for i in range(7)}
    lsun(tmp_path / "lsun" / "bedroom_train_lmdb", images)
    lsun(tmp_path / "lsun" / "bedroom_val_lmdb", {b"a": encoded(9, "WEBP")})
    database = tmp_path / "lsun" / "bedroom_train_lmdb"
    files = {f"{database.name}/{file.name}": file.read_bytes() for file in database.iterdir()}
    zipped = pack(tmp_path / "bedroom_train_lmdb.zip", files)
    for url, split in (
        (str(database), None),
        (str(database), "train"),
        (zipped, None),
        (str(tmp_path / "lsun"), "train"),
    ):
        source = sources.make("lsun", url, split)
        assert source.labels is None
        assert everything(source) == {key.decode(): (value, None) for key, value in images.items()}
        source.close()
    source = sources.make("lsun", str(tmp_path / "lsun"), "val")
    assert everything(source).keys() == {"a"}
    source.close()
    refused("lsun", str(tmp_path / "lsun"), "2 LMDB databases")
    refused("lsun", pack(tmp_path / "none.zip", {"a.txt": b""}), "0 LMDB databases")
    refused("lsun", pack(tmp_path / "damaged", {"data.mdb": b"no database" * 1000}), "no readable LMDB")
    lsun(tmp_path / "empty", {})
    refused("lsun", str(tmp_path / "empty"), "is empty")


def test_lsun_makes_the_same_store_from_its_zip_and_its_folder(tmp_path) -> None:
    images = {b"%040x" % i: encoded(i, "WEBP" if i % 2 else "JPEG", (300, 256)) for i in range(9)}
    lsun(tmp_path / "bedroom_train_lmdb", images)
    database = tmp_path / "bedroom_train_lmdb"
    files = {f"{database.name}/{file.name}": file.read_bytes() for file in database.iterdir()}
    zipped = pack(tmp_path / "bedroom_train_lmdb.zip", files)
    stores = []
    for name, url, num_processes in (("one", zipped, 2), ("two", str(database), 1)):
        source = sources.make("lsun", url)
        write_store(
            source, str(tmp_path / name), resolution=64, channels=3, samples_per_shard=4, num_processes=num_processes
        )
        stores.append(open_store(str(tmp_path / name)).manifest)
    assert stores[0].shards == stores[1].shards and stores[0].num_samples == 9 and stores[0].labels is None


def test_a_published_file_that_was_damaged_on_its_way_is_one_line(tmp_path) -> None:
    lsun(tmp_path / "bedroom_train_lmdb", {b"a": encoded(1, "WEBP")})
    zipped = tmp_path / "bedroom_train_lmdb.zip"
    pack(zipped, {"bedroom_train_lmdb/data.mdb": (tmp_path / "bedroom_train_lmdb" / "data.mdb").read_bytes()})
    content = bytearray(zipped.read_bytes())
    content[len(content) // 2] ^= 255
    zipped.write_bytes(content)
    refused("lsun", str(zipped), "is damaged .*: fetch it again")


def test_a_disk_too_small_to_unpack_on_is_one_line(tmp_path) -> None:
    """In a process of its own that may write no file of more than a few bytes, which is the same kind of refusal."""
    lsun(tmp_path / "bedroom_train_lmdb", {b"a": encoded(1, "WEBP")})
    data = {"l/data.mdb": (tmp_path / "bedroom_train_lmdb" / "data.mdb").read_bytes()}
    urls = {
        "lsun": pack(tmp_path / "lsun.zip", data),
        "cifar10": pack(tmp_path / "cifar.tar.gz", cifar10()),
        "imagenet32": pack(tmp_path / "imagenet.zip", {"train_data_batch_1.npz": npz(0, 3)}),
        "images": "memory://remote.zip",
    }
    program = """if True:
        import resource, signal, sys, fsspec
        from pipeline.runtime.errors import UserError
        from pipeline.data import sources
        fsspec.filesystem("memory").pipe_file("/remote.zip", open(sys.argv[1], "rb").read())
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        for argument in sys.argv[2:]:
            try:
                sources.make(*argument.split("=", 1))
            except UserError as error:
                print(error)
    """
    arguments = [urls["lsun"], *(f"{kind}={url}" for kind, url in urls.items())]
    found = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    lines = found.stdout.splitlines()
    assert len(lines) == len(urls), found.stderr
    for line, url in zip(lines, urls.values(), strict=True):
        assert line.startswith("no room in ") and url in line and "TMPDIR" in line


def test_what_is_damaged_inside_an_archive_is_one_line(tmp_path) -> None:
    """A byte of each member that is unpacked whole, in the encodings that a zip file can have."""
    members = {"cifar10": cifar10(), "imagenet32": {"train_data_batch_1.npz": npz(0, 3)}}
    for kind, files in members.items():
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
            path = tmp_path / f"{kind}-{method}.zip"
            with zipfile.ZipFile(path, "w", method) as archive:
                for name, data in files.items():
                    archive.writestr(name, data)
            whole = path.read_bytes()
            for name in files:
                content = bytearray(whole)
                content[_offset(str(path), name)] ^= 0xFF
                path.write_bytes(content)
                refused(kind, str(path), "fetch it again")
                path.write_bytes(whole)


def test_celeba(tmp_path) -> None:
    faces = {f"img_align_celeba/{i:06d}.jpg": encoded(i, "JPEG", (218, 178)) for i in range(1, 7)}
    url = pack(tmp_path / "img_align_celeba.zip", faces)
    source = sources.make("celeba", url)
    assert everything(source) == {name: (data, None) for name, data in faces.items()} and source.labels is None
    refused("celeba", url, "needs list_eval_partition.txt .*data.source.split=null", split="train")
    partition = tmp_path / "list_eval_partition.txt"
    partition.write_text("".join(f"{i:06d}.jpg {i % 3}\n" for i in range(1, 7)))
    for number, split in enumerate(("train", "valid", "test")):
        names = {name for i, name in enumerate(faces, start=1) if i % 3 == number}
        assert everything(sources.make("celeba", url, split)).keys() == names
    partition.write_text("something else")
    refused("celeba", url, "is not CelebA's list", split="train")
    refused("celeba", pack(tmp_path / "empty.zip", {"a.txt": b""}), "no images of CelebA")


def npz(seed: int, count: int, side: int = 32, **change: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    labels = np.random.default_rng(seed).integers(1, 1001, count)
    np.savez(buffer, **{"data": noise(seed, count, 3 * side * side), "labels": labels, "mean": np.zeros(3), **change})
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["Imagenet32_train_npz.zip", "folder"])
@pytest.mark.parametrize("side", [32, 64])
def test_imagenet32(tmp_path, name: str, side: int) -> None:
    files = {f"train_data_batch_{i}.npz": npz(i, 2 + i, side) for i in range(1, 11)} | {"val_data.npz": npz(0, 4, side)}
    url = pack(tmp_path / name, files)
    for split, count in (("train", 75), ("val", 4), (None, 79)):
        source = sources.make("imagenet32", url, split)
        found = everything(source)
        assert len(found) == len(source) == count and len(source.labels) == 1000
        if split != "val":
            image, label = found["train_data_batch_10.npz[11]"]
            assert np.array_equal(image.transpose(2, 0, 1).ravel(), noise(10, 12, 3 * side * side)[11])
            assert label == np.random.default_rng(10).integers(1, 1001, 12)[11] - 1
        source.close()


def test_imagenet32_that_is_not_plain_arrays(tmp_path) -> None:
    refused("imagenet32", pack(tmp_path / "a.zip", {"train_data_batch_1": pickle.dumps({})}), "pickled version")
    refused("imagenet32", pack(tmp_path / "b.zip", {"other": b""}), "no npz batches")
    for number, (change, message) in enumerate(
        [
            ({"data": np.array([{}], object)}, "no npz file of plain arrays"),
            ({"labels": np.array([{}], object)}, "no npz file of plain arrays"),
            ({"data": np.zeros((2, 3072))}, "data of .* is not an array uint8"),
            ({"data": np.zeros((2, 3000), np.uint8)}, "data of .* is not an array uint8"),
            ({"labels": np.array([1])}, "labels of .* is not an array"),
            ({"labels": np.array([0, 1])}, "not between 1 and 1000"),
        ]
    ):
        url = pack(tmp_path / f"{number}.zip", {"train_data_batch_1.npz": npz(0, 2, **change)})
        refused("imagenet32", url, message)
    good = dict.fromkeys(("data.npy", "labels.npy"), npy(np.zeros(2, np.uint8)))
    for number, (name, member) in enumerate(
        [
            # A header that promises more than there is memory, a member that is an npz file itself, nothing, a pickle.
            ("labels.npy", npy(np.zeros(1, np.int64)).replace(b"(1,), }", b"(1000000000000,), }")),
            ("data.npy", npy(np.zeros(1, np.uint8)).replace(b"(1,), }", b"(1000000000000,), }")),
            *((name, npz(0, 2)) for name in good),
            *((name, b"") for name in good),
            *((name, pickle.dumps(0)) for name in good),
        ]
    ):
        url = pack(tmp_path / f"members-{number}", {"train_data_batch_1.npz": zipped(good | {name: member})})
        refused("imagenet32", url, "no npz file of plain arrays")
    refused("imagenet32", pack(tmp_path / "c.zip", {"val_data.npz": b"no zip"}), "no npz file of plain arrays")


@pytest.mark.parametrize("kind", ["cifar10", "imagenet32"])
def test_a_disk_that_fills_while_a_source_is_unpacked_is_a_line(tmp_path, monkeypatch, kind: str) -> None:
    members = {"cifar10": cifar10(), "imagenet32": {"train_data_batch_1.npz": npz(0, 3)}}
    url = pack(tmp_path / kind, members[kind])

    def fill(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", fill)
    refused(kind, url, "^no room in .* to unpack .*: free some, or set TMPDIR")


def test_a_member_that_would_fill_the_disk_is_refused_before_it_is_unpacked(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.data.sources.compression._MOST_UNPACKED", 2**16)
    for name in ("data.npy", "labels.npy"):
        members = {"data.npy": npy(np.zeros(2, np.uint8)), "labels.npy": npy(np.zeros(2, np.uint8)), name: bytes(2**20)}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            for each, content in members.items():
                file.writestr(each, content)
        url = pack(tmp_path / name, {"train_data_batch_1.npz": buffer.getvalue()})
        refused("imagenet32", url, f"{name} of train_data_batch_1.npz of .* unpacks to more than 100 times its size")
    with zipfile.ZipFile(tmp_path / "bedroom_val_lmdb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bedroom_val_lmdb/data.mdb", bytes(2**20))
    refused("lsun", str(tmp_path / "bedroom_val_lmdb.zip"), "data.mdb of .* unpacks to more than 100 times its size")


FOLDER = {
    f"{split}/{kind}/{i:04d}.{suffix}": encoded(i, {"jpg": "JPEG"}.get(suffix, suffix))
    for split in ("train", "test")
    for kind in ("cat", "dog")
    for i, suffix in enumerate(("jpg", "png", "webp", "bmp"))
}


@pytest.mark.parametrize(
    "name", ["photos", "photos.zip", "photos.tar", "photos.tar.gz", "photos.tar.xz", "photos.tar.bz2"]
)
def test_images(tmp_path, name: str) -> None:
    url = pack(
        tmp_path / name, {**FOLDER, "readme.txt": b"", "__MACOSX/train/cat/0000.jpg": b"", "train/cat/.0.jpg": b""}
    )
    for split in ("train", "test", None):
        source = sources.make("images", url, split)
        expected = {
            name: (data, 0 if "/cat/" in name else 1)
            for name, data in FOLDER.items()
            if split is None or name.startswith(split)
        }
        assert everything(source) == expected and source.labels == ("cat", "dog")
        source.close()
    refused("images", url, "no folder 'val'", split="val")


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.png"],
        ["train/1.png", "test/2.png"],
        ["faces/1.png", "faces/2.png"],
        ["cat/1.png", "dog/2.png", "3.png"],
    ],
)
def test_images_without_classes(tmp_path, names: list[str]) -> None:
    source = sources.make("images", pack(tmp_path / "a.zip", {name: encoded(0) for name in names}))
    assert source.labels is None and len(source) == len(names)
    assert all(source.read(index)[1] is None for index in range(len(source)))


def test_a_remote_archive_is_copied_and_the_copy_deleted(tmp_path, monkeypatch) -> None:
    import fsspec

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/photos.zip", Path(pack(tmp_path / "a.zip", FOLDER)).read_bytes())
    source = sources.make("images", "memory://photos.zip")
    assert everything(source).keys() == FOLDER.keys()
    assert len(list(tmp_path.glob("gebm-source-*"))) == 1
    source.close()
    assert not list(tmp_path.glob("gebm-source-*"))
    for name, data in FOLDER.items():
        fs.pipe_file(f"/photos/{name}", data)
    assert everything(sources.make("images", "memory://photos")).keys() == FOLDER.keys()


def test_nothing_of_an_archive_lands_outside(tmp_path) -> None:
    """Names that climb out of a folder and links are read as names and left out: nothing is extracted by name."""
    inside = tmp_path / "inside"
    inside.mkdir()
    url = pack(inside / "evil.zip", {"../../escaped.png": encoded(1), "/absolute.png": encoded(2)})
    source = sources.make("images", url)
    write_store(source, "memory://evil", resolution=4, channels=3)
    assert [path.name for path in tmp_path.rglob("*")] == ["inside", "evil.zip"]
    link = tarfile.TarInfo("cat/link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(inside / "evil.tar", "w") as archive:
        archive.addfile(link)
    refused("images", str(inside / "evil.tar"), "no images")


@pytest.mark.parametrize("kind", [kind for kind in sources.NAMES if not sources.comes_without_url(kind)])
def test_what_is_not_there_is_one_line(tmp_path, kind: str) -> None:
    refused(kind, None, "needs a url")
    refused(kind, str(tmp_path / "nowhere"), "there is no data at")
    (tmp_path / "text").write_text("neither a zip nor a tar file, but long enough to be looked at" * 20)
    is_archive = sources.NAMES.part(kind).facts["of"] == "images" and not sources.has_fields(kind)
    refused(kind, str(tmp_path / "text"), "neither a folder nor a zip or tar file" if is_archive else "/text")
    refused(kind, "nosuch://bucket/file", "cannot reach")


def test_every_command_that_the_help_shows_works(tmp_path, monkeypatch, capsys) -> None:
    """One after the other in one folder that holds the published files, and no file of splits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEBM_STORES", "stores")
    lsun(tmp_path / "l", {b"a": encoded(1, "WEBP")})
    pack(tmp_path / "bedroom_train_lmdb.zip", {"l/data.mdb": (tmp_path / "l" / "data.mdb").read_bytes()})
    pack(tmp_path / "cifar-10-binary.tar.gz", cifar10())
    pack(tmp_path / "img_align_celeba.zip", {"img_align_celeba/000001.jpg": encoded(1, "JPEG", (218, 178))})
    pack(tmp_path / "Imagenet32_train_npz.zip", {"train_data_batch_1.npz": npz(0, 3)})
    pack(tmp_path / "photographs.zip", {"1.png": encoded(1)})
    for number in range(124):
        pack(tmp_path / f"shard-{number:03d}.tar", {f"{number}.png": encoded(number), f"{number}.cls": b"0"})
    (tmp_path / "cifar10" / "plain_text").mkdir(parents=True)
    rows = pyarrow.table({"img": [{"bytes": encoded(1), "path": None}], "label": [3]})
    pyarrow.parquet.write_table(rows, tmp_path / "cifar10" / "plain_text" / "train-00000-of-00001.parquet")
    names = (
        "fixed acidity;volatile acidity;citric acid;residual sugar;chlorides;free sulfur dioxide;"
        "total sulfur dioxide;density;pH;sulphates;alcohol;quality"
    )
    (tmp_path / "winequality-red.csv").write_text(f"{names}\n7.4;0.7;0;1.9;0.076;11;34;0.9978;3.51;0.56;9.4;5\n")
    monkeypatch.setattr("sys.argv", ["pipeline.shards", "--help"])
    shards.main()
    text = capsys.readouterr().out.replace("\\\n", " ")
    commands = [shlex.split(line)[2:] for line in text.splitlines() if line.split()[:1] == ["python"]]
    assert len(commands) == 8
    for words in commands:
        # The files here are small ones of the same formats.
        words = [*(word.replace("s3://bucket", str(tmp_path)) for word in words), "data.source.published_counts=false"]
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as ended:
            shards.main()
        assert ended.value.code == 0, capsys.readouterr().err


def test_an_unknown_kind_is_one_line() -> None:
    refused("mnist", "x", f"choose one of {', '.join(sorted(sources.NAMES))}")


@pytest.mark.parametrize("name", ["photos", "photos.zip", "photos.tar"])
def test_broken_images_are_counted_and_named(tmp_path, name: str) -> None:
    files = {f"{i}.png": encoded(i) for i in range(20)}
    files["3.png"] = files["3.png"][:50]
    files["7.png"] = b""
    files["11.jpg"] = b"no image at all"
    url = pack(tmp_path / name, files)
    expected = {"3.png", "7.png", "11.jpg"}
    if name == "photos.zip":
        data = bytearray(Path(url).read_bytes())
        data[_offset(url, "13.png")] ^= 0xFF
        Path(url).write_bytes(data)
        expected.add("13.png")
    report = write_store(
        sources.make("images", url),
        str(tmp_path / "store"),
        resolution=8,
        channels=3,
        samples_per_shard=6,
        num_processes=1,
    )
    assert set(report.broken) == expected and len(report.broken) == len(expected)
    assert report.num_images == len(files) - len(expected) == report.manifest.num_samples
    assert len(load_images(open_store(str(tmp_path / "store")))[0]) == report.num_images


def _offset(url: str, name: str) -> int:
    """A byte inside the compressed data of a member of a zip file."""
    with zipfile.ZipFile(url) as archive:
        info = archive.getinfo(name)
        return info.header_offset + 30 + len(name) + info.compress_size // 2


def test_a_source_of_broken_images_makes_no_store(tmp_path) -> None:
    url = pack(tmp_path / "a.zip", {"1.png": b"x", "2.png": b"y"})
    with pytest.raises(UserError, match="none of the 2 images"):
        write_store(sources.make("images", url), str(tmp_path / "store"), resolution=8, channels=3)
    with pytest.raises(UserError, match="no finished store"):
        open_store(str(tmp_path / "store"))
