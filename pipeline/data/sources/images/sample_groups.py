"""Samples of a tar file in webdataset's format: members are grouped by the part of their name that they share.

The key of a sample is the path of its members up to the first dot of the file's name, and the rest, in lower case, is
the field: ``train/0001.seg.png`` is the field ``seg.png`` of the sample ``train/0001``. The members of a sample may
come in any order and anywhere in the tar file. A field that comes again begins another sample of that key, as in tar
files that were put one behind the other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pipeline.data.image_files import describe_suffix, readable_suffixes
from pipeline.data.ledger import Tally
from pipeline.data.sources.images.folder import passed_over_reason
from pipeline.data.sources.images.label_fields import NO_LABEL, LabelFields
from pipeline.runtime.printable import printable_name

__all__ = ["Member", "Sample", "SampleGroups", "split_name"]

_METADATA = re.compile(r"__[^/]*__($|/)")
_MAX_NAME, _MAX_SUFFIX = 4096, 16
_SECOND = "another image of its sample"


def split_name(name: str) -> tuple[str, str] | None:
    """Divide the name of a member into the key of its sample and the field; None for one without a field.

    Example:
        >>> split_name("a.b/0001.Seg.PNG"), split_name("readme"), split_name(".profile")
        (('a.b/0001', 'seg.png'), None, None)
    """
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return (f"{folder}{slash}{stem}", suffix.lower()) if stem and dot else None


@dataclass(frozen=True)
class Member:
    """Regular file of a tar file.

    Args:
        name: Its name.
        offset: Where its contents begin.
        size: Their size in bytes.
    """

    name: str
    offset: int
    size: int


@dataclass
class Sample:
    """Members of one key.

    Args:
        image: The image, or None.
        is_plain: Whether the image is all of its field, as in ``0001.png``, or the last part of it.
        label: Its class, as ``LabelFields.parse`` returns it.
        label_member: The member that the class is of, or None.
        fields: The fields that have come.
    """

    image: Member | None = None
    is_plain: bool = False
    label: int | str | None = NO_LABEL
    label_member: str | None = None
    fields: set[str] = field(default_factory=set)


class SampleGroups:
    """Samples of one tar file, as its members come.

    Args:
        label_fields: The fields that labels are in.
        tally: Counts the members that are neither an image nor a label, with their reasons.

    ``samples`` are those that have come so far, in the order of their first members.

    Example:
        >>> groups = SampleGroups(LabelFields("auto"), Tally())
        >>> for name in ("0.cls", "1.jpg", "0.PNG", "0.txt"):
        ...     groups.add(Member(name, 0, 1), b"7" if name == "0.cls" else b"")
        >>> [(sample.image.name, sample.label) for sample in groups.samples]
        [('0.PNG', 7), ('1.jpg', None)]
    """

    def __init__(self, label_fields: LabelFields, tally: Tally) -> None:
        self.samples: list[Sample] = []
        self._label_fields = label_fields
        self._tally = tally
        self._current: dict[str, Sample] = {}

    def has_label(self, name: str) -> bool:
        """Return whether the contents of a member are needed, which may have its sample's label."""
        parts = split_name(name)
        return parts is not None and parts[1] in self._label_fields.members and not _ignored(name)

    def add(self, member: Member, content: bytes) -> None:
        """Add a member to its sample.

        Args:
            member: The member.
            content: Its contents where :meth:`has_label`.
        """
        parts = split_name(member.name)
        if (reason := _ignored(member.name)) or parts is None:
            self._tally.add(member.name, reason or describe_suffix(""))
            return
        key, name = parts
        if name not in self._label_fields.members and f".{name.rpartition('.')[2]}" not in readable_suffixes():
            suffix = printable_name(f".{name.rpartition('.')[2]}", _MAX_SUFFIX)
            self._tally.add(member.name, describe_suffix(suffix))
            return
        sample = self._current.get(key)
        if sample is None or name in sample.fields:
            sample = self._current[key] = Sample()
            self.samples.append(sample)
        sample.fields.add(name)
        if name in self._label_fields.members:
            self._add_label(sample, member, name, content)
        else:
            self._add_image(sample, member, is_plain="." not in name)

    def finish(self) -> list[Sample]:
        """Return the samples that have an image, and count the labels of those that have none."""
        for sample in self.samples:
            if sample.image is None and sample.label_member is not None:
                self._tally.add(sample.label_member, "label of a sample without an image")
        return [sample for sample in self.samples if sample.image is not None]

    def _add_image(self, sample: Sample, member: Member, *, is_plain: bool) -> None:
        """Keep the first image of a sample, where one whose field is its ending comes before ``seg.png`` and others."""
        if sample.image is None:
            sample.image, sample.is_plain = member, is_plain
        elif is_plain and not sample.is_plain:
            self._tally.add(sample.image.name, _SECOND)
            sample.image, sample.is_plain = member, is_plain
        else:
            self._tally.add(member.name, _SECOND)

    def _add_label(self, sample: Sample, member: Member, name: str, content: bytes) -> None:
        """Keep the label of the first field that has one, in the order of ``LabelFields.members``."""
        label = self._label_fields.parse(name, content)
        rank = self._label_fields.members.index
        if label is NO_LABEL:
            self._tally.add(member.name, f"without a label (.{name})")
        elif sample.label_member is None:
            sample.label, sample.label_member = label, member.name
        else:
            earlier = split_name(sample.label_member)
            assert earlier is not None
            second = sample.label_member
            if rank(name) < rank(earlier[1]):
                sample.label, sample.label_member = label, member.name
            else:
                second = member.name
            self._tally.add(second, "second label of its sample")


def _ignored(name: str) -> str | None:
    """Return why a member is passed over whatever its field is, or None."""
    if len(name) > _MAX_NAME:
        return f"with a name of more than {_MAX_NAME:,} characters"
    if _METADATA.match(name):
        return "metadata of webdataset"
    return passed_over_reason(name)
