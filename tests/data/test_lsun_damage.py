"""Damaged LMDB databases: one line, and the process that reads them lives on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.data import sources, write_store
from pipeline.runtime.errors import UserError
from tests.data.test_sources import encoded, lsun


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("lsun") / "database"
    lsun(folder, {b"%040x" % i: encoded(i, "JPEG", (48, 64)) for i in range(80)})
    return (folder / "data.mdb").read_bytes()


def damaged(folder: Path, content: bytes) -> str:
    (folder / "data.mdb").write_bytes(content)
    return str(folder)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.999])
def test_a_database_that_was_cut_says_so(tmp_path, whole: bytes, share: float) -> None:
    size = int(len(whole) * share)
    with pytest.raises(UserError, match=r"is no readable LMDB database \(.*\): fetch it again$") as error:
        sources.make("lsun", damaged(tmp_path, whole[:size]))
    # Less than two pages is not even a database.
    if size > 2 * 4096:
        assert f"data.mdb has {size:,} of " in str(error.value)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.95])
def test_a_database_with_a_tail_of_zeros_ends_no_process_but_its_own(tmp_path, whole: bytes, share: float) -> None:
    """Either its pages are found damaged, or images are that are in them."""
    kept = int(len(whole) * share) // 4096 * 4096
    url = damaged(tmp_path, whole[:kept] + bytes(len(whole) - kept))
    try:
        source = sources.make("lsun", url)
        report = write_store(source, str(tmp_path / "store"), resolution=8, channels=3, num_processes=1)
    except UserError as error:
        assert "fetch it again" in str(error) and "\n" not in str(error)
    else:
        assert len(report.broken) > 0


def test_a_database_of_any_bytes_is_one_line_or_read(tmp_path, whole: bytes) -> None:
    random = np.random.default_rng(0)
    for _ in range(12):
        content = bytearray(whole)
        for start in random.integers(0, len(whole) - 64, 4):
            content[start : start + 64] = random.bytes(64)
        try:
            source = sources.make("lsun", damaged(tmp_path, bytes(content)))
            for index in range(len(source)):
                source.read(index)
            source.close()
        except UserError as error:
            assert "\n" not in str(error)
