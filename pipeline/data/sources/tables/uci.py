"""UCI tables on which density estimation is measured, in the files of their publishers.

Each is read from its text file, compressed or not, by itself, in a folder, or in the zip file that UCI offers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from pipeline.data.sources.archives import Archive, File, open_files
from pipeline.data.sources.base import Table, choose
from pipeline.data.sources.compression import without_compression
from pipeline.data.sources.published import PUBLISHED, Part
from pipeline.data.sources.tables.text import open_lines
from pipeline.runtime.errors import UserError

__all__ = ["hepmass", "miniboone", "parkinsons", "redwine", "whitewine"]

_WINE = (
    "fixed acidity;volatile acidity;citric acid;residual sugar;chlorides;free sulfur dioxide;total sulfur dioxide;"
    "density;pH;sulphates;alcohol;quality"
)
_PARKINSONS = (
    "subject#,age,sex,test_time,motor_UPDRS,total_UPDRS,Jitter(%),Jitter(Abs),Jitter:RAP,Jitter:PPQ5,Jitter:DDP,"
    "Shimmer,Shimmer(dB),Shimmer:APQ3,Shimmer:APQ5,Shimmer:APQ11,Shimmer:DDA,NHR,HNR,RPDE,DFA,PPE"
)

# Of HEPMASS, after the label: the number of jets, and whether each of four jets is tagged.
_HEPMASS_DISCRETE = (6, 10, 14, 18, 22)
_HEPMASS_EVENTS = {"train": 700_000, "test": 350_000}
_HEPMASS_MASS = 1000.0

# Of tables with a line of names, which are passed on with other delimiters than their publisher's.
_DELIMITERS = (";", ",", "\t")

_MINIBOONE_COLUMNS = 50
_MINIBOONE_MISSING = -100.0
_MINIBOONE_REPEATS = 5


def redwine(url: str, split: str | None) -> Table:
    """Read Wine Quality, the red ones (Cortez et al. 2009): 1,599 wines, and 11 columns of laboratory measurements.

    Args:
        url: ``winequality-red.csv``, or a folder or zip file with it, such as ``wine+quality.zip``.
        split: None: there is one split only.

    Returns:
        The table.

    Raises:
        UserError: If the file does not exist, or a line of it is damaged.
    """
    choose(split, (), "redwine")
    return _read("redwine", url, "winequality-red.csv", _WINE, ";", slice(11))


def whitewine(url: str, split: str | None) -> Table:
    """Read Wine Quality, the white ones (Cortez et al. 2009): 4,898 wines, and 11 columns of laboratory measurements.

    Args:
        url: ``winequality-white.csv``, or a folder or zip file with it, such as ``wine+quality.zip``.
        split: None: there is one split only.

    Returns:
        The table.

    Raises:
        UserError: If the file does not exist, or a line of it is damaged.
    """
    choose(split, (), "whitewine")
    return _read("whitewine", url, "winequality-white.csv", _WINE, ";", slice(11))


def parkinsons(url: str, split: str | None) -> Table:
    """Read Parkinsons Telemonitoring (Tsanas et al. 2009): 5,875 recordings of voices, 19 columns.

    These are the columns from the fourth on. The first three, subject, age and sex, say who was recorded.

    Args:
        url: ``parkinsons_updrs.data``, or a folder or zip file with it, such as ``parkinsons+telemonitoring.zip``.
        split: None: there is one split only.

    Returns:
        The table.

    Raises:
        UserError: If the file does not exist, or a line of it is damaged.
    """
    choose(split, (), "parkinsons")
    return _read("parkinsons", url, "parkinsons_updrs.data", _PARKINSONS, ",", slice(3, None))


def hepmass(url: str, split: str | None) -> Table:
    """Read HEPMASS (Baldi et al. 2016): collisions that made a particle of mass 1000, in 22 columns.

    The selection is that of Papamakarios, Pavlakou and Murray (2017) for density estimation: of the data set "1000",
    the signal (label 1) among the first tenth of the events, which are the first 700,000 of ``train`` and the first
    350,000 of ``test``. Of the 27 features the number of jets and the four tags of jets are left out: they take a few
    values only, over and over, and have no density. Wenliang et al. (2019) leave out these five as well, and have 22
    columns; Papamakarios et al. leave out one more, found by counting a value that recurs, and have 21.

    The files ``all_*.csv.gz`` hold several masses, named in a last column. Of these, the events of mass 1000 are taken.

    Args:
        url: ``1000_train.csv.gz``, ``1000_test.csv.gz``, ``all_train.csv.gz`` or ``all_test.csv.gz``, or a folder or
            zip file with them, in which the data set "1000" is preferred.
        split: "train" or "test", to choose between files. None for all there are: first train, then test.

    Returns:
        The table.

    Raises:
        UserError: If there is no such file, a line of it is damaged, or it has no such events.
    """
    choose(split, tuple(_HEPMASS_EVENTS), "hepmass")
    archive = open_files(url)
    try:
        splits = [split] if split else list(_HEPMASS_EVENTS)
        for data_set in ("1000", "all"):
            files = {each: _find(archive, f"{data_set}_{each}.csv") for each in splits}
            if any(files.values()) and (split is None or files[split]):
                names = {each: name for each, name in files.items() if name}
                signals = [_signal(archive, name, each, data_set) for each, name in names.items()]
                return Table(
                    "hepmass",
                    url,
                    split,
                    np.concatenate([rows for rows, _ in signals]),
                    archive.fingerprint(names.values()),
                    tuple(part for _, part in signals),
                )
        names = " or ".join(f"1000_{each}.csv.gz" for each in splits)
        raise UserError(f"there is no {names} at {url}: check the source's url and split")
    finally:
        archive.close()


def miniboone(url: str, split: str | None) -> Table:
    """Read MiniBooNE particle identification (Roe et al. 2005): 36,488 electron neutrinos, 43 columns.

    The selection is that of Papamakarios, Pavlakou and Murray (2017) for density estimation: the signal, without the
    few events whose variables are all missing (-999), and of the 50 columns those whose smallest value occurs five
    times at most. The other seven are at their lower end over and over, and have no density there.

    Args:
        url: ``MiniBooNE_PID.txt``, or a folder or zip file with it, such as
            ``miniboone+particle+identification.zip``. Its first line is the number of signal and of background
            events, and each other line the 50 variables of one event; the signal comes first.
        split: None: there is one split only.

    Returns:
        The table.

    Raises:
        UserError: If the file does not exist, a line of it is damaged, or it has another number of events than in
            its first line.
    """
    choose(split, (), "miniboone")
    archive = open_files(url)
    try:
        name = _one(archive, "MiniBooNE_PID.txt")
        fingerprint = archive.fingerprint([name])
        with open_lines(archive, name) as lines:
            counts = re.fullmatch(r"\s*(\d{1,9})\s+(\d{1,9})\s*", lines.read_line())
            if counts is None:
                raise lines.damaged(1, "is not two numbers of events")
            num_signal, num_background = map(int, counts.groups())
            rows = _concatenate(lines.numbers({_MINIBOONE_COLUMNS}, None), _MINIBOONE_COLUMNS)
            if len(rows) != num_signal + num_background:
                raise lines.damaged(1, f"says {num_signal + num_background} events, and {len(rows)} follow")
    finally:
        archive.close()
    signal = rows[:num_signal]
    signal = signal[signal[:, 0] >= _MINIBOONE_MISSING]
    if not len(signal):
        raise UserError(f"{url} has no signal events: fetch it again")
    repeats = (signal == signal.min(0)).sum(0)
    if (repeats > _MINIBOONE_REPEATS).all():
        raise UserError(f"each column of {url} repeats its smallest value, so none has a density: fetch it again")
    columns = np.ascontiguousarray(signal[:, repeats <= _MINIBOONE_REPEATS])
    parts = (
        Part("MiniBooNE_PID.txt", num_signal, "signal events"),
        Part("MiniBooNE_PID.txt", num_background, "background events"),
    )
    return Table("miniboone", url, split, columns, fingerprint, parts)


def _read(kind: str, url: str, name: str, header: str, delimiter: str, columns: slice) -> Table:
    """Read some columns of a file with a line of names."""
    archive = open_files(url)
    try:
        member = _one(archive, name)
        fingerprint = archive.fingerprint([member])
        with open_lines(archive, member) as lines:
            names, given = header.split(delimiter), lines.read_line()
            used = next((each for each in _DELIMITERS if _split_names(given, each) == names), None)
            if used is None:
                raise lines.damaged(1, f"is not the names of the columns of {name}")
            rows = _concatenate(lines.numbers({len(names)}, used), len(names))
    finally:
        archive.close()
    if not len(rows):
        raise UserError(f"{url} has no rows: fetch it again")
    parts = [Part(name, len(rows), "rows")]
    # A program that wrote the table with another delimiter has written its numbers in its own way, too.
    if used == delimiter:
        parts.append(Part(name, lines.num_characters, "characters"))
    return Table(kind, url, None, np.ascontiguousarray(rows[:, columns]), fingerprint, tuple(parts))


def _split_names(line: str, delimiter: str) -> list[str]:
    return [name.strip() for name in line.replace('"', "").split(delimiter)]


def _signal(archive: Archive, name: str, split: str, data_set: str) -> tuple[np.ndarray, Part]:
    """Read the selected events of one file of HEPMASS, float32 (N, 22), and count all that were looked at."""
    with open_lines(archive, name) as lines:
        if "label" not in lines.read_line().partition(",")[0]:
            raise lines.damaged(1, "is not the names of the columns of HEPMASS, of which the first is the label")
        # Not every published file of the data set "1000" lacks the mass.
        widths = {28, 29} if data_set == "1000" else {29}
        columns = [column for column in range(1, 28) if column not in _HEPMASS_DISCRETE]

        num_events = 0

        def select(events: np.ndarray) -> np.ndarray:
            nonlocal num_events
            num_events += len(events)
            signal = events[:, 0] == 1
            if data_set == "all":
                signal &= np.abs(events[:, 28] - _HEPMASS_MASS) < 1
            return events[signal][:, columns]

        blocks = lines.numbers(widths, ",", limit=_HEPMASS_EVENTS[split])
        rows = _concatenate(map(select, blocks), len(columns))
        if not len(rows):
            raise UserError(f"{lines.where} has no signal of mass 1000: check the source's url")
    return rows, Part(split, num_events, "events in its first tenth")


def _concatenate(blocks: Iterable[np.ndarray], columns: int) -> np.ndarray:
    return np.concatenate([np.empty((0, columns), np.float32), *(block.astype(np.float32) for block in blocks)])


def _one(archive: Archive, name: str) -> str:
    """Return the name of a published file in an archive; a single file may have any name."""
    match = _find(archive, name)
    if isinstance(archive, File):
        match = match or archive.names[0]
        _refuse_other_table(archive, name)
    if match is None:
        raise UserError(f"there is no {name} at {archive.url}: check the source's url")
    return match


def _refuse_other_table(archive: File, name: str) -> None:
    """Refuse the published file of another kind, which may have the same columns."""
    given = without_compression(archive.names[0].partition("?")[0])
    for kind, published in PUBLISHED.items():
        if given != name and given in {part for part, _ in published}:
            raise UserError(f"{archive.url} is the file of {kind}, not {name}: check the source's url and kind")


def _find(archive: Archive, name: str) -> str | None:
    """Return the name of a published file in a folder or zip file, compressed or not, or None."""
    return next((each for each in archive.names if without_compression(each.rpartition("/")[2]) == name), None)
