"""Store: its URL, its file system and its manifest, checked each time it is opened."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import fsspec
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.data.manifest import MANIFEST_NAME, Manifest, Shard
from pipeline.data.shard_cache import ShardCache
from pipeline.runtime.errors import UserError
from pipeline.runtime.filesystem import as_user_error, filesystem, is_local
from pipeline.runtime.untrusted import MANIFEST
from pipeline.runtime.user_folders import stores_root

__all__ = ["TIMEOUT", "MissingStore", "Store", "is_process_local", "open_store", "resolve_url"]

TIMEOUT = 300.0
"""Seconds that one request of a store may take."""
# Of FAT, the coarsest clock of a file system.
_CLOCK_NS = 2 * 10**9


class MissingStore(UserError):
    """Error that a URL has no finished store. The message has the URL only: the caller adds the command to make it."""


class FileVersion(NamedTuple):
    """Version of a file on this machine: all of it changes with the contents, or some.

    Args:
        inode: Number of the file in its file system.
        size: Size in bytes.
        modified: Time of the last modification, in nanoseconds.
        changed: Time of the last change of contents or attributes, which no program can set, in nanoseconds.
    """

    inode: int
    size: int
    modified: int
    changed: int

    @property
    def is_settled(self) -> bool:
        """Whether a later change would have another time: clocks of file systems are coarse."""
        return time.time_ns() - self.changed > _CLOCK_NS


@dataclass(frozen=True)
class Store:
    """Finished store.

    Args:
        url: The store's URL, as returned by ``resolve_url``.
        fs: The fsspec file system of the URL.
        path: The store's directory in that file system.
        manifest: Description of the samples and the shards.
        cache: Disk cache of its shards on this machine, or None.
        timeout: Seconds that one request may take; see ``open_store``.
        checked: Version of each shard of this machine's own whose SHA-256 this process has checked, by its name.
    """

    url: str
    fs: fsspec.AbstractFileSystem
    path: str
    manifest: Manifest
    cache: ShardCache | None = None
    timeout: float = TIMEOUT
    checked: dict[str, FileVersion] = field(default_factory=dict, compare=False, repr=False)

    def shard_path(self, shard: Shard) -> str:
        """Return the path of a shard in the file system."""
        return f"{self.path}/{shard.name}"

    def fetch(self, shard: Shard) -> bytes:
        """Return the bytes of a shard, unchecked."""
        return _request(self.fs, "cat_file", self.shard_path(shard), timeout=self.timeout)

    def fetch_with_version(self, shard: Shard) -> tuple[bytes, FileVersion | None]:
        """Return the bytes of a shard, unchecked, and the version of its file; None where it has none or changes."""
        before = self._version(shard)
        data = self.fetch(shard)
        return data, before if before == self._version(shard) else None

    def _version(self, shard: Shard) -> FileVersion | None:
        if not is_local(self.fs):
            return None
        try:
            status = os.stat(self.shard_path(shard))
        # The request for its bytes has the message.
        except OSError:
            return None
        return FileVersion(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def resolve_url(name_or_url: str) -> str:
    """Return the URL of a store.

    A URL, an absolute path and a path that starts with "." or "~" are taken as they are. Any other name is under the
    stores' root: the environment variable ``GEBM_STORES`` (a path or an fsspec URL), or a folder in the user's cache.

    Args:
        name_or_url: A store's name, path or URL.

    Returns:
        A URL, or an absolute path: a trial's workers run in folders of their own.

    Raises:
        UserError: If the name is empty.

    Example:
        >>> resolve_url("s3://bucket/lsun-64")
        's3://bucket/lsun-64'
    """
    if not name_or_url.strip():
        raise UserError("the store's name is empty: give a name, a path or an fsspec URL")
    url = name_or_url
    if "://" not in url and not os.path.isabs(url) and not url.startswith((".", "~")):
        url = f"{stores_root()}/{url}"
    return url.rstrip("/") if "://" in url else os.path.abspath(os.path.expanduser(url))


def open_store(
    name_or_url: str, max_bad_shards: int = 0, *, cache: ShardCache | None = None, timeout: float = TIMEOUT
) -> Store:
    """Open a store and check, without reading them, that its shards exist and have the right size.

    Args:
        name_or_url: A store's name, path or URL; see ``resolve_url``.
        max_bad_shards: Number of shards that may be missing or of another size.
        cache: Disk cache of shards on this machine. A store on this machine does not use it.
        timeout: Seconds that one request may take, including the file system's own retries; one request reads a whole
            shard. A network storage that has not answered by then counts as hung.

    Returns:
        The store. Every other shard of its manifest exists and has the manifest's size in bytes.

    Raises:
        MissingStore: If there is no finished store.
        UserError: If the manifest is invalid, or more shards than allowed are missing or of another size.

    Example:
        >>> from pipeline.data import sources, write_store
        >>> report = write_store(sources.make("digits"), "memory://docs/open", resolution=8, channels=1)
        >>> open_store("memory://docs/open").manifest.num_samples
        1797
    """
    url = resolve_url(name_or_url)
    fs, path = filesystem(url)
    # Listings are cached by some file systems, and the store may have been finished by another process since.
    fs.invalidate_cache(path)
    with as_user_error(url):
        try:
            size = _request(fs, "size", f"{path}/{MANIFEST_NAME}", timeout=timeout)
            if size is not None and size > MANIFEST.num_bytes:
                raise UserError(f"the manifest of the store {url} has {size:,} bytes, too many: make the store again")
            text = _request(fs, "cat_file", f"{path}/{MANIFEST_NAME}", timeout=timeout)
        except (FileNotFoundError, NotADirectoryError):
            raise MissingStore(f"no finished store at {url}") from None
    store = Store(url, fs, path, Manifest.from_json(text, url), None if is_local(fs) else cache, timeout)
    with as_user_error(url):
        _check_sizes(store, max_bad_shards)
    return store


def _check_sizes(store: Store, max_bad: int) -> None:
    paths = [store.shard_path(shard) for shard in store.manifest.shards]
    try:
        sizes = _request(store.fs, "sizes", paths, timeout=store.timeout)
    # The request for all sizes fails as a whole.
    except FileNotFoundError:
        sizes = [_size(store, path) for path in paths]
    bad = []
    for shard, size in zip(store.manifest.shards, sizes, strict=True):
        if size is None:
            bad.append(f"{shard.name} is missing from the store {store.url}")
        elif size != shard.bytes:
            bad.append(f"{shard.name} of the store {store.url} has {size} bytes, its manifest says {shard.bytes}")
    if len(bad) > max_bad:
        more = f" ({len(bad)} shards are bad, and data.max_bad_shards={max_bad} may be)" if max_bad else ""
        raise UserError(f"{bad[0]}{more}: make the store again")


def _size(store: Store, path: str) -> int | None:
    try:
        return _request(store.fs, "size", path, timeout=store.timeout)
    except FileNotFoundError:
        return None


def _request(fs: fsspec.AbstractFileSystem, method_name: str, *arguments: object, timeout: float) -> Any:
    """Return the result of a file system's method, which a network storage has to deliver in time."""
    method = getattr(fs, method_name)
    # It runs in this thread, where no timeout can interrupt it.
    if not fs.async_impl:
        return method(*arguments)
    try:
        return method(*arguments, timeout=timeout)
    except FSTimeoutError:
        raise TimeoutError(f"no answer within data.timeout={timeout:g} seconds") from None


def is_process_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Return whether no other process can see the files of a file system."""
    return isinstance(fs, MemoryFileSystem)
