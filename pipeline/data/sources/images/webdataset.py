"""Webdataset source: tar files of samples that others wrote, with labels in fields of the samples."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.data.ledger import Tally
from pipeline.data.sources.archive_listing import DamagedTar, iterate_tar
from pipeline.data.sources.archives import MAX_FILE_BYTES, TOO_LARGE
from pipeline.data.sources.base import BrokenImage
from pipeline.data.sources.file_list import list_files
from pipeline.data.sources.images.label_fields import AUTO, MAX_LABEL_BYTES, LabelColumn, LabelFields
from pipeline.data.sources.images.sample_groups import Member, SampleGroups
from pipeline.data.sources.range_files import RangeFile, RangeFiles
from pipeline.runtime.errors import UserError

__all__ = ["WebDataset"]

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
# Samples that a damaged tar file is taken to have lost for each one that is there, at most.
_MOST_LOST = 100


@dataclass
class _Index:
    """Images of all tar files, in order: which tar file, and where in it, in 24 bytes and a name each."""

    tars: array[int] = field(default_factory=lambda: array("q"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    names: list[str] = field(default_factory=list)

    def append(self, tar: int, member: Member) -> None:
        self.tars.append(tar)
        self.offsets.append(member.offset)
        self.sizes.append(member.size)
        self.names.append(member.name)


@dataclass(frozen=True)
class _LabelMembers:
    """Members that labels were read from: the name of the first, and their number."""

    first: str = ""
    count: int = 0


@dataclass(frozen=True)
class _Lost:
    """Samples of a damaged tar file that are not there: their estimated number, and why."""

    tar: int
    num_samples: int
    reason: str


class WebDataset:
    """Source of tar files in webdataset's format, see ``pipeline.data.sources.images.sample_groups``.

    Of each sample the first image is taken, and its label from the field that is set; other members are counted. A tar
    file that is damaged or cut is taken up to there, and what is lost behind counts as broken images: as many as other
    tar files have more, or the rest of the file has room for.

    Args:
        url: A folder of tar files, one, ``shard-{000..123}.tar``, ``shard-*.tar``, or a list; compressed or not.
        split: Take only tar files with this word in their name, or in a folder's. None for all.
        label_field: A member's field, such as "cls", or a key of the JSON object in the field "json"; "auto" for the
            usual ones, None for no labels.

    Raises:
        UserError: If there are no tar files, or no images in them; or a field was named and holds no labels.
    """

    kind = "webdataset"

    def __init__(self, url: str | Sequence[str], split: str | None, label_field: str | None = AUTO) -> None:
        self.split = split
        self._label_field = label_field
        tally = Tally()
        files = list_files(url, _SUFFIXES, split, self.kind, tally)
        self.url = files.url
        self._files = RangeFiles(files)
        try:
            self._index, self._lost = _Index(), list[_Lost]()
            self._labels = LabelColumn(self.url, label_field)
            members = self._read_tars(tally)
            if not self._index.names:
                raise self._no_images(tally)
            self._labels.finish(f"{members.count:,} members")
            if self._labels.classes is None and members.count:
                tally.add(members.first, "label that is not used", members.count)
            self.passed_over = tally.groups()
        except BaseException:
            self.close()
            raise
        self.labels = self._labels.classes
        self.notes = (self._labels.note,)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the tar files, and of the field that labels are from."""
        return self._files.fingerprint(repr(self._label_field))

    def __len__(self) -> int:
        return len(self._index.names) + sum(lost.num_samples for lost in self._lost)

    def name(self, index: int) -> str:
        """Return the name of the tar file, and of the image in it."""
        if index < len(self._index.names):
            return f"{self._files.files[self._index.tars[index]].name}/{self._index.names[index]}"
        return self._files.files[self._lost_at(index).tar].name

    def read(self, index: int) -> tuple[bytes, int | None]:
        """Return the encoded image and its class."""
        if index >= len(self._index.names):
            raise BrokenImage(self.name(index), self._lost_at(index).reason)
        size = self._index.sizes[index]
        if size > MAX_FILE_BYTES:
            raise BrokenImage(self.name(index), TOO_LARGE)
        label = self._labels.label(index, self.name(index))
        data = self._files.files[self._index.tars[index]].read(self._index.offsets[index], size)
        if len(data) != size:
            raise BrokenImage(self.name(index), "cut short")
        return data, label

    def close(self) -> None:
        """Delete the local copies, if there are any."""
        self._files.close()

    def _read_tars(self, tally: Tally) -> _LabelMembers:
        """Index all tar files, and return the members that labels were read from."""
        counts, damages, members = [], {}, _LabelMembers()
        for number, file in enumerate(self._files.files):
            groups = SampleGroups(LabelFields(self._label_field), tally)
            damage = _read_tar(file, groups, tally)
            samples = groups.finish()
            for sample in samples:
                assert sample.image is not None
                self._index.append(number, sample.image)
                self._labels.append(sample.label, f"{file.name}/{sample.image.name}")
                if sample.label_member is not None:
                    members = _LabelMembers(members.first or sample.label_member, members.count + 1)
            counts.append(len(samples))
            if damage is not None:
                damages[number] = damage
        self._lost = _estimate_lost(counts, damages)
        return members

    def _lost_at(self, index: int) -> _Lost:
        index -= len(self._index.names)
        for lost in self._lost:
            if index < lost.num_samples:
                return lost
            index -= lost.num_samples
        raise IndexError(index)

    def _no_images(self, tally: Tally) -> UserError:
        damage = [f"{self._files.files[lost.tar].name}: {lost.reason}" for lost in self._lost[:1]]
        there = "; ".join([*damage, *(each.line() for each in tally.groups()[:3])])
        return UserError(
            f"there are no images in the tar files at {self.url}{there and f' ({there})'}: check the source's url"
        )


@dataclass(frozen=True)
class _Damage:
    """Damage of a tar file: the reason, and the bytes before it and after it."""

    reason: str
    before: int
    after: int


def _read_tar(file: RangeFile, groups: SampleGroups, tally: Tally) -> _Damage | None:
    """Add the members of one tar file to groups, and return its damage, or None."""
    with file.open() as stream:
        before = 0
        try:
            for info in iterate_tar(stream):
                before = info.offset_data + info.size
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    kind = "link" if info.islnk() or info.issym() else "sparse file, pipe or device"
                    tally.add(f"{file.name}/{info.name}", f"{kind} in a tar file")
                    continue
                content = b""
                if groups.has_label(info.name):
                    stream.seek(info.offset_data)
                    content = stream.read(min(info.size, MAX_LABEL_BYTES + 1))
                groups.add(Member(info.name, info.offset_data, info.size), content)
        except DamagedTar as error:
            size = stream.seek(0, 2)
            problem = error if file.damage is None else f"is cut or damaged ({file.damage})"
            return _Damage(f"lost in a tar file that {problem}", before, max(size - before, 0))
    return None if file.damage is None else _Damage(f"lost in a tar file that is cut ({file.damage})", before, 0)


def _estimate_lost(counts: list[int], damages: dict[int, _Damage]) -> list[_Lost]:
    """Return how many samples each damaged tar file has lost, one at least.

    Args:
        counts: Samples of each tar file, as far as they are there.
        damages: Damage of the tar files that have one, by their number.
    """
    whole = [count for number, count in enumerate(counts) if number not in damages]
    usual = round(sum(whole) / len(whole)) if whole else 0
    lost = []
    for number, damage in damages.items():
        by_bytes = round(damage.after * counts[number] / damage.before) if damage.before else 0
        # The bytes are those of a damaged file, which may promise any number.
        by_bytes = min(by_bytes, _MOST_LOST * counts[number])
        lost.append(_Lost(number, max(usual - counts[number], by_bytes, 1), damage.reason))
    return lost
