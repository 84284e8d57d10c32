"""Numbers of samples that publishers state, against which a source is checked before a store is made of it.

A download that was cut, nine of ten batches, or the table of another kind of wine would otherwise become a store under
the name of the whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from pipeline.runtime.errors import UserError

__all__ = ["PUBLISHED", "Part", "PublishedSource", "check_counts", "refuse_copies"]


class Part(NamedTuple):
    """Part of a source whose size is published: a file, a split or a category.

    Args:
        name: The publisher's name of it.
        number: How much of it there is.
        unit: What is counted, in the plural.
    """

    name: str
    number: int
    unit: str = "images"


@runtime_checkable
class PublishedSource(Protocol):
    """Source of a data set whose size is published."""

    @property
    def kind(self) -> str:
        """Name of the format."""
        ...

    @property
    def url(self) -> str | None:
        """URL of the files."""
        ...

    @property
    def parts(self) -> tuple[Part, ...]:
        """Parts of the data set that were read, as far as their sizes are published."""
        ...


# Of LSUN (Yu et al. 2015): the training images of each scene, of which 300 more are for validation.
_LSUN_SCENES = {
    "bedroom": 3_033_042,
    "bridge": 818_687,
    "church_outdoor": 126_227,
    "classroom": 168_103,
    "conference_room": 229_069,
    "dining_room": 657_571,
    "kitchen": 2_212_277,
    "living_room": 1_315_802,
    "restaurant": 626_331,
    "tower": 708_264,
}
# Of LSUN: the images of each kind of object, which has no splits.
_LSUN_OBJECTS = {
    "airplane": 1_530_696,
    "bicycle": 3_347_211,
    "bird": 2_310_362,
    "boat": 2_651_165,
    "bottle": 3_202_760,
    "bus": 695_891,
    "car": 5_520_756,
    "cat": 1_657_266,
    "chair": 5_037_807,
    "cow": 377_379,
    "dining_table": 1_537_123,
    "dog": 5_054_817,
    "horse": 2_000_340,
    "motorbike": 1_194_101,
    "person": 18_890_816,
    "potted_plant": 1_104_859,
    "sheep": 418_983,
    "sofa": 2_365_870,
    "train": 1_148_020,
    "tv-monitor": 2_463_284,
}

# Of this many images in random order no two batches have the same labels.
_FEWEST_LABELS = 100

PUBLISHED: dict[str, dict[tuple[str, str], int]] = {
    # Krizhevsky 2009: five batches for training and one for testing.
    "cifar10": {
        **{(f"data_batch_{number}.bin", "images"): 10_000 for number in range(1, 6)},
        ("test_batch.bin", "images"): 10_000,
    },
    # Liu, Luo, Wang and Tang 2015: the list of its splits.
    "celeba": {
        ("train", "images"): 162_770,
        ("valid", "images"): 19_867,
        ("test", "images"): 19_962,
        ("all", "images"): 202_599,
    },
    # Russakovsky et al. 2015, which Chrabaszcz, Loshchilov and Hutter 2017 downsampled: ten batches and one.
    "imagenet32": {("train", "images"): 1_281_167, ("val", "images"): 50_000},
    "lsun": {
        **{(f"{scene}_train", "images"): number for scene, number in _LSUN_SCENES.items()},
        **{(f"{scene}_val", "images"): 300 for scene in _LSUN_SCENES},
        **{(thing, "images"): number for thing, number in _LSUN_OBJECTS.items()},
    },
    # The tables' pages at UCI; characters are those of the rows of its files, without the ends of the lines.
    "redwine": {("winequality-red.csv", "rows"): 1_599, ("winequality-red.csv", "characters"): 82_430},
    "whitewine": {("winequality-white.csv", "rows"): 4_898, ("winequality-white.csv", "characters"): 259_358},
    "parkinsons": {("parkinsons_updrs.data", "rows"): 5_875, ("parkinsons_updrs.data", "characters"): 905_187},
    "miniboone": {
        ("MiniBooNE_PID.txt", "signal events"): 36_499,
        ("MiniBooNE_PID.txt", "background events"): 93_565,
    },
    # The first tenth of each file, which is what the selection of Papamakarios, Pavlakou and Murray 2017 looks at.
    "hepmass": {("train", "events in its first tenth"): 700_000, ("test", "events in its first tenth"): 350_000},
}
"""What is published of each kind of source: how much there is, by the part's name and by what is counted."""


def check_counts(source: object) -> None:
    """Refuse a source that is not as large as its publisher says.

    Args:
        source: Any source. One whose size is not published, such as a folder of images, passes.

    Raises:
        UserError: If a part has another size.
    """
    if not isinstance(source, PublishedSource):
        return
    published = PUBLISHED.get(source.kind, {})
    for part in source.parts:
        expected = published.get((part.name, part.unit), part.number)
        if part.number != expected:
            raise UserError(
                f"{source.url} is not {source.kind} as it was published: {part.name} has {part.number:,} "
                f"{part.unit}, not {expected:,}; fetch it again, or set data.source.published_counts=false to take it "
                "as it is"
            )


def refuse_copies(url: str, labels: Mapping[str, np.ndarray]) -> None:
    """Refuse a batch file that is a copy of another under its name, so that the number of images is right.

    Args:
        url: URL of the source, for the message.
        labels: The labels of each batch file, in its order.

    Raises:
        UserError: If two batches have the same labels.
    """
    for (one, first), (other, second) in itertools.combinations(labels.items(), 2):
        if len(first) >= _FEWEST_LABELS and np.array_equal(first, second):
            raise UserError(f"{other} of {url} has the labels of {one}, so one is a copy of the other: fetch it again")
