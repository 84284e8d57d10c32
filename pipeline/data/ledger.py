"""Ledger of a source's files: taken, broken or passed over, each with its reason, so that they add up to all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.runtime.errors import UserError
from pipeline.runtime.printable import printable_name

__all__ = ["Group", "Ledger", "Tally", "group"]

# Reasons that are listed, and names with each: a source may have millions of files, and a suffix for each.
_MAX_GROUPS, _MAX_NAMES, _MAX_LENGTH = 20, 5, 200
# Different reasons that are told apart: a suffix that is another each time is one.
_MAX_REASONS = 10_000
_OTHERS = "for other reasons"
# Without data.max_broken: the share, and the number that no share refuses unless it is more than half.
_DEFAULT_SHARE, _DEFAULT_COUNT = 0.01, 10


@dataclass(frozen=True)
class Group:
    """Files with one reason.

    Args:
        reason: The reason, in a few words.
        count: Number of files.
        names: Names of the first of them, as they can be shown.
    """

    reason: str
    count: int
    names: tuple[str, ...]

    def line(self) -> str:
        """Return the group as a line of a report."""
        more = ", ..." if self.count > len(self.names) else ""
        return f"{self.count:,} {self.reason}: {', '.join(self.names)}{more}"


@dataclass(frozen=True)
class Ledger:
    r"""Account of all files of a source, or of all its images where they are no files.

    Args:
        taken: Number of images in the store.
        broken: Images that could not be read.
        passed_over: Files that are not images of this store, such as texts, hidden files and other splits.

    Example:
        >>> ledger = Ledger(7, group([("gone.png", "link to nothing")]), group([("a.txt", "not an image (.txt)")]))
        >>> ledger.total
        9
        >>> print(*ledger.lines(), sep="\n")
        source: 9 = 7 taken + 1 broken + 1 passed over
        1 broken images were skipped:
          1 link to nothing: gone.png
        1 files were passed over:
          1 not an image (.txt): a.txt
    """

    taken: int
    broken: tuple[Group, ...] = ()
    passed_over: tuple[Group, ...] = ()

    @property
    def num_broken(self) -> int:
        """Number of images that could not be read."""
        return sum(each.count for each in self.broken)

    @property
    def num_passed_over(self) -> int:
        """Number of files that are not images of this store."""
        return sum(each.count for each in self.passed_over)

    @property
    def total(self) -> int:
        """Number of files of the source."""
        return self.taken + self.num_broken + self.num_passed_over

    def lines(self) -> list[str]:
        """Return the ledger as lines of a report."""
        lines = [
            f"source: {self.total:,} = {self.taken:,} taken + {self.num_broken:,} broken + "
            f"{self.num_passed_over:,} passed over"
        ]
        if self.broken:
            lines.append(f"{self.num_broken:,} broken images were skipped:")
            lines += [f"  {each.line()}" for each in self.broken]
        if self.passed_over:
            lines.append(f"{self.num_passed_over:,} files were passed over:")
            lines += [f"  {each.line()}" for each in self.passed_over]
        return lines

    def check(self, max_broken: float | None) -> None:
        """Refuse a source of which too much is broken.

        Args:
            max_broken: Share of the images that may be broken. None for one in a hundred, and ten in any case as long
                as they are not more than half.

        Raises:
            UserError: If more are broken.
        """
        images = self.taken + self.num_broken
        if max_broken is None:
            allowed = max(_DEFAULT_SHARE * images, min(_DEFAULT_COUNT, images // 2))
        else:
            allowed = max_broken * images
        # A share such as 0.29 is not exact: 29 of 100 have to pass.
        if self.num_broken > allowed + 1e-6:
            # Rounded up, or the share would not let all of them through.
            share = min(-(-10_000 * self.num_broken // images) / 10_000, 0.9999)
            raise UserError(
                f"{self.num_broken:,} of {images:,} images are broken, more than data.max_broken allows "
                f"({self.broken[0].line()}): repair or remove them, or set data.max_broken={share:g}; the finished "
                "shards are kept"
            )


class Tally:
    """Files grouped by their reason as they come, in memory that does not grow with them.

    Example:
        >>> tally = Tally()
        >>> for number in range(1000):
        ...     tally.add(f"{number}.txt", "not an image")
        >>> tally.groups()[0].line()
        '1,000 not an image: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt, ...'
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}

    def add(self, name: str, reason: str, count: int = 1) -> None:
        """Count a file.

        Args:
            name: Its name.
            reason: The reason, in a few words.
            count: Number of files, of which this is the first.
        """
        if reason not in self._counts and len(self._counts) >= _MAX_REASONS:
            reason = _OTHERS
        self._counts[reason] = self._counts.get(reason, 0) + count
        if len(shown := self._names.setdefault(reason, [])) < _MAX_NAMES:
            shown.append(printable_name(name, _MAX_LENGTH))

    def groups(self) -> tuple[Group, ...]:
        """Return the groups, the largest first."""
        counts, names = self._counts, self._names
        reasons = sorted(counts, key=lambda reason: (-counts[reason], reason))
        kept, others = reasons[:_MAX_GROUPS], reasons[_MAX_GROUPS:]
        groups = [Group(printable_name(reason, _MAX_LENGTH), counts[reason], tuple(names[reason])) for reason in kept]
        if others:
            first = [name for reason in others for name in names[reason]][:_MAX_NAMES]
            groups.append(Group(_OTHERS, sum(counts[reason] for reason in others), tuple(first)))
        return tuple(groups)


def group(files: Iterable[tuple[str, str]]) -> tuple[Group, ...]:
    """Group files by their reason, the largest group first.

    Args:
        files: Name and reason of each file.

    Example:
        >>> group([("a.txt", "not an image"), ("b", "hidden"), ("c.txt", "not an image")])[0]
        Group(reason='not an image', count=2, names=('a.txt', 'c.txt'))
    """
    tally = Tally()
    for name, reason in files:
        tally.add(name, reason)
    return tally.groups()
