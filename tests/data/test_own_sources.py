"""Sources of data of one's own: stores as of any other, in other processes as well, and refusals by file and line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import Store, load_images, load_rows, open_store, sources, write_store
from pipeline.data.sources import BrokenImage
from pipeline.runtime.errors import UserError
from tests.helpers.plugins import SOURCES, load, no_plugins

__all__ = ["load", "no_plugins"]

pytestmark = pytest.mark.usefixtures("no_plugins")


def assert_has_stripes(store: Store) -> None:
    """Assert that a store has the images and labels of ``stripes``, but for the broken one."""
    images, labels = load_images(store)
    assert sorted(images[:, 0, 0, 0].tolist()) == [40 + 5 * index for index in range(40) if index != 7]
    assert labels is not None and torch.equal(labels, (images[:, 0, 0, 0] >= 140).long())


def test_the_command_makes_a_store_of_a_plugin_with_its_labels_and_its_broken_images(load, tmp_path, call):
    path = load(SOURCES)
    words = (f"plugins=[{path}]", "data.source.kind=stripes", "data.store=here", "data.resolution=8", "data.channels=1")
    status, printed, errors = call("shards", *words, "data.max_broken=0.1", f"output={tmp_path}", "conf=digits")
    assert status == 0, errors
    assert "39 images of 8 pixels" in printed and "ValueError" in printed
    store = open_store("here")
    assert store.manifest.labels == ("dark", "bright") and store.manifest.source.kind == "stripes"
    assert_has_stripes(store)


def test_what_is_yielded_is_kept_and_has_the_labels_that_are_registered_and_rows_are_a_table(load):
    load(SOURCES)
    source = sources.make("drawn_squares")
    image, label = source.read(5)
    assert (len(source), image.shape, label, source.labels) == (12, (9, 10, 3), 1, ("even", "odd"))
    assert len(sources.make("drawn_squares", split="half")) == 6
    write_store(sources.make("line"), "memory://own/line")
    assert np.array_equal(load_rows(open_store("memory://own/line"))[3], [3.0, 6.0])
    for kind, given, message in (
        ("stripes", {"split": "train"}, "data.source.split=train: stripes has no split; leave it out"),
        ("stripes", {"url": "x"}, "data.source.url=x: stripes has no url; leave it out"),
        ("stripes", {"label_field": "cls"}, "has no fields"),
        ("strypes", {}, "choose one of .*, stripes"),
    ):
        with pytest.raises(UserError, match=message):
            sources.make(kind, **given)


def test_other_processes_write_a_store_of_the_same_source_without_the_file(load, tmp_path, capfd):
    path = load(SOURCES)
    source = sources.make("stripes")
    (tmp_path / "mine.py").unlink()
    store = str(tmp_path / "store")
    # Each process writes a shard.
    report = write_store(source, store, resolution=8, channels=1, samples_per_shard=20, num_processes=2)
    assert len(report.broken) == 1 and len(report.manifest.shards) == 2
    assert_has_stripes(open_store(store))
    assert path not in capfd.readouterr().err


def test_a_change_of_the_code_or_of_the_files_is_another_fingerprint(load, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_bytes(b"1")
    load(SOURCES)
    source = sources.make("drawn_squares", str(tmp_path / "data"))
    before = source.fingerprint
    assert source.fingerprint == before
    (tmp_path / "data" / "b").write_bytes(b"2")
    assert source.fingerprint != before
    assert sources.make("stripes").fingerprint != before


LAZY = """
import os
from PIL import Image
import numpy as np, torch
from pipeline.data import sources


@sources.register("lazy", labels=("a", "b"))
def lazy(url):
    "Files that are opened, and not read."
    names = sorted(os.listdir(url))
    return [(Image.open(f"{url}/{name}"), torch.tensor([index % 2])) for index, name in enumerate(names)]
"""


def test_an_image_that_is_read_only_when_its_pixels_are_asked_for_is_broken_alone(load, tmp_path):
    load(LAZY)
    (tmp_path / "images").mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    for index, pixels in enumerate(rows):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    for broken in (0, 2):
        path = tmp_path / "images" / f"{broken}.png"
        path.write_bytes(path.read_bytes()[:-700])
    source = sources.make("lazy", str(tmp_path / "images"))
    read = {}
    for index in range(len(source)):
        try:
            read[index] = source.read(index)
        except BrokenImage as error:
            assert error.reason == "OSError"
    assert {index: label for index, (_, label) in read.items()} == {1: 1, 3: 1}
    assert all(np.array_equal(pixels, rows[index]) for index, (pixels, _) in read.items())


FIELDS = """
import numpy as np
from pipeline.data import sources


@sources.register("fields", labels=("none", "own", "breed"))
def fields(url=(), label_field="own"):
    "An image for each URL, whose label is the field that was chosen."
    urls = [url] if isinstance(url, str) else list(url)
    label = ("none", "own", "breed").index(label_field or "none")
    return [(np.full((2, 2), len(one), np.uint8), label) for one in urls]


@sources.register("needs", of="rows")
def needs(url, label_field):
    "The row of what is needed."
    return [[len(url), {"auto": 0, None: 1}[label_field]]]
"""


@pytest.mark.parametrize(
    ("url", "lengths"),
    [
        ("a", [1]),
        ("[a,bb, 'ccc']", [1, 2, 3]),
        (["a", "bb"], [1, 2]),
        (("a", "[bb,ccc]"), [1, 2, 3]),
        ("[a]", [1]),
        ("x-{0..1}.tar", [12]),
    ],
)
def test_a_source_with_fields_is_given_the_field_and_a_list_of_urls(load, url, lengths):
    load(FIELDS)
    prints = set()
    for field, label in (("auto", 1), ("own", 1), ("breed", 2), (None, 0)):
        source = sources.make("fields", url, None, field)
        reopen, sent = source.__reduce__()
        again = reopen(*sent)
        assert [source.read(index)[0][0, 0, 0] for index in range(len(source))] == lengths
        assert source.read(0)[1] == again.read(0)[1] == label and len(again) == len(lengths)
        prints.add(source.fingerprint)
    assert len(prints) == 4
    assert sources.make("needs", ["a", "b"]).rows.tolist() == [[2.0, 0.0]]
    assert sources.make("needs", "abc", label_field=None).rows.tolist() == [[3.0, 1.0]]
    # One without a field has one URL.
    with pytest.raises(UserError, match="has one url, not a list"):
        sources.make("images", ["a"])


GIVEN = [
    ("return 5", "it returns int, and has to return a sequence"),
    ("return {}", "it returns dict"),
    ("return []", "it has no images"),
    ("return range(10**9)", "it has 1000000000 images, and has to have 1 to 268,435,456"),
    ("return Named(0, 'ab')", "its classes are 'ab', and have to be a list of names"),
    ("return 1 / 0", r"mine.py:8: mine: ZeroDivisionError"),
    ("return [np.zeros((8, 8))]", r"image 0 is float64 \(8, 8\), and has to be uint8"),
    ("return [np.zeros(8, np.uint8)]", r"image 0 is uint8 \(8,\)"),
    ("return [np.zeros((3, 8, 8), np.uint8)]", r"image 0 has the shape \(3, 8, 8\): 1 or 3 channels are its last"),
    ("return [None]", "image 0 is NoneType"),
    ("return ['a.png']", "image 0 is str"),
    ("return [(np.zeros((8, 8), np.uint8), 3)]", "image 0 has a label: name the classes"),
    ("return Named(-1)", "the label of image 0 is -1, and has to be below 2"),
    ("return Named(2)", "the label of image 0 is 2"),
    ("return Named('a')", "the label of image 0 is 'a'"),
    ("return Named(None)", "the label of image 0 is None"),
    ("return Named(torch.tensor([[0], [1]]))", r"the label of image 0 is tensor\(\[\[0\], \[1\]\]\)"),
    ("return Named(Fails())", "mine: RuntimeError: no label"),
    ("return [Fails()]", "mine: RuntimeError: no pixels"),
    ("return Named(0, ['a', 'a'])", "different names"),
    ("return Named(0, 5)", "TypeError"),
    ("import sys; sys.exit(3)", "mine.py:8: mine: SystemExit"),
]


@pytest.mark.parametrize(("body", "message"), GIVEN, ids=[body for body, _ in GIVEN])
def test_what_is_no_source_is_refused_by_file_and_line(load, body, message):
    path = load(
        "import torch, numpy as np\nfrom pipeline.data import sources\n\n\n@sources.register('mine')\ndef mine():\n"
        f"    'Doc.'\n    {body}\n\n\n"
        "class Named(list):\n    def __init__(self, label, classes=('a', 'b')):\n"
        "        super().__init__([(np.zeros((8, 8), np.uint8), label)])\n        self.classes = classes\n\n\n"
        "class Fails:\n    shape = ()\n\n    def item(self):\n        raise RuntimeError('no label')\n\n"
        "    def __array__(self, *_, **__):\n        raise RuntimeError('no pixels')\n"
    )
    with pytest.raises(UserError, match=message) as refusal:
        sources.make("mine")
    assert str(refusal.value).startswith(f"{path}:") and "\n" not in str(refusal.value)
