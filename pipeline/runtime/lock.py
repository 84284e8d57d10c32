"""Lock of a folder: one process at a time writes into it, on whatever machine.

The lock is a file, ``<folder>/.lease.json``, that its holder creates exclusively and rewrites every few seconds with a
heartbeat, so that it is a lease: it ends with its holder. A lock whose holder died is stale at once on the machine
where it died; elsewhere only after it was observed for a while, since the clocks of two machines need not agree.

A holder that was suspended, or whose storage did not answer, may have lost its lock by then. So each change of the file
is a compare-and-swap, and before a holder writes anything it calls :meth:`Lock.verify`.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.runtime.errors import LockLost, UserError
from pipeline.runtime.filesystem import as_user_error, filesystem
from pipeline.runtime.lock_file import RELEASED, LockFile, open_lock_file
from pipeline.runtime.processes import is_alive, is_on_this_machine, this_process

__all__ = ["Contender", "Lock", "acquire", "verify_owner"]

# The name that drivers of earlier versions look for as well: neither starts next to the other.
_NAME = ".lease.json"
_INTERVAL = 10.0
_STALE_AFTER = 25.0
# Share of the time after which a lock is stale during which its holder relies on it without looking at it.
_RELIABLE = 0.8
# Letters of a holder's name in a message.
_MAX_NAME = 120


def _seconds() -> float:
    """Return the seconds of a clock that also runs while the machine is suspended, where there is one."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)


@contextlib.contextmanager
def acquire(
    folder: str, interval: float = _INTERVAL, stale_after: float = _STALE_AFTER, *, writer: str = "sweep"
) -> Iterator[Lock]:
    """Hold the lock of a folder.

    Args:
        folder: The folder, behind any fsspec URL.
        interval: Seconds between two heartbeats.
        stale_after: Seconds without one after which a holder on another machine counts as dead; a good deal longer.
        writer: What writes into such a folder, for messages.

    Yields:
        The lock, which has to be verified before anything is written.

    Raises:
        UserError: If another process holds it.

    Example:
        >>> with acquire("memory://doctest/sweep"):
        ...     with acquire("memory://doctest/sweep"):
        ...         pass
        Traceback (most recent call last):
        ...
        pipeline.runtime.errors.UserError: another sweep writes to memory://doctest/sweep (process ...): wait for it, \
or stop it
    """
    with as_user_error(folder):
        files, path = filesystem(folder)
        files.makedirs(path, exist_ok=True)
        contender = Contender(folder, open_lock_file(f"{folder}/{_NAME}"), stale_after=stale_after, writer=writer)
        while (lock := contender.attempt()) is None:
            time.sleep(min(1.0, stale_after / 5))
    released = threading.Event()
    thread = threading.Thread(target=_send_heartbeats, args=(lock, interval, released), name="lock", daemon=True)
    thread.start()
    try:
        yield lock
    finally:
        released.set()
        thread.join(timeout=interval)
        # A storage that does not answer the heartbeat would not answer this either; the lock ends with its holder.
        if not thread.is_alive():
            with contextlib.suppress(Exception):
                lock.release()


def verify_owner(folder: str, owner: str | None) -> None:
    """Check in a process that works for a lock's holder that the lock is still the holder's.

    Args:
        folder: The folder, behind any fsspec URL.
        owner: The lock's :attr:`Lock.owner`; None for a process that works without a lock.

    Raises:
        LockLost: If it is another's, or nobody's.
    """
    if owner is None:
        return
    try:
        holder = _parse(open_lock_file(f"{folder}/{_NAME}").read())
    # A storage that does not answer will not take what is to be written either.
    except Exception:
        return
    if holder.get("owner") != owner:
        raise LockLost(_loss(folder, holder, "process"))


class Contender:
    """Process that wants the lock of a folder.

    Args:
        folder: The folder, for messages.
        file: The lock's file.
        stale_after: Seconds without a heartbeat after which a holder on another machine counts as dead.
        writer: What writes into such a folder, for messages.
        process: Identity of this process, see :func:`pipeline.runtime.processes.this_process`.
        clock: Returns seconds.
    """

    def __init__(
        self,
        folder: str,
        file: LockFile,
        *,
        stale_after: float = _STALE_AFTER,
        writer: str = "sweep",
        process: dict[str, Any] | None = None,
        clock: Callable[[], float] = _seconds,
    ) -> None:
        self._folder, self._file, self._stale_after, self._writer = folder, file, stale_after, writer
        self._process, self._clock = this_process() if process is None else process, clock
        # Content of the file when it was first seen, and when that was.
        self._observed: tuple[bytes, float] | None = None

    def attempt(self) -> Lock | None:
        """Take the lock if it is free, or its holder is dead.

        Returns:
            The lock; None where the holder has to be observed for longer.

        Raises:
            UserError: The holder is alive.
        """
        lock = Lock(
            self._folder,
            self._file,
            {"owner": uuid.uuid4().hex, **self._process},
            stale_after=self._stale_after,
            writer=self._writer,
            clock=self._clock,
        )
        content = self._file.read()
        if content is None:
            try:
                lock.create()
            except FileExistsError:
                # Another process was faster, and may just be writing it.
                return None
        elif not self._is_stale(content):
            return None
        elif not lock.take_over(content):
            raise self._refusal(self._file.read())
        # For storage that does not refuse a second creation, as some servers with the protocol of S3.
        present = self._file.read()
        if _parse(present).get("owner") != lock.owner:
            raise self._refusal(present)
        return lock

    def _is_stale(self, content: bytes) -> bool:
        """Return whether the holder is dead: at once if it was of this machine, otherwise after observing the file.

        A lock that cannot be read is observed, too: its holder may be about to write it.
        """
        holder, now = _parse(content), self._clock()
        if content == RELEASED:
            return True
        if is_on_this_machine(holder):
            if is_alive(holder):
                raise self._refusal(content)
            return True
        if self._observed is None:
            self._observed = content, now
        if self._observed[0] != content:
            raise self._refusal(content)
        return now - self._observed[1] >= self._stale_after

    def _refusal(self, content: bytes | None) -> UserError:
        holder = _parse(content)
        if "pid" not in holder:
            return UserError(f"another {self._writer} has just started or ended in {self._folder}: try again")
        return UserError(f"another {self._writer} writes to {self._folder} ({_name(holder)}): wait for it, or stop it")


class Lock:
    """Lock of a folder, as its holder has it.

    Args:
        folder: The folder, for messages.
        file: The lock's file.
        holder: ``owner``, which no other lock has, and the holder's process.
        stale_after: Seconds without a heartbeat after which another process may take the lock over.
        writer: What writes into such a folder, for messages.
        clock: Returns seconds.
    """

    def __init__(
        self,
        folder: str,
        file: LockFile,
        holder: dict[str, Any],
        *,
        stale_after: float,
        writer: str,
        clock: Callable[[], float] = _seconds,
    ) -> None:
        self._folder, self._file, self._holder, self._writer = folder, file, holder, writer
        self._reliable_for, self._clock = _RELIABLE * stale_after, clock
        # What the file has if the lock is still ours, and when it was written or a moment before.
        self._content, self._renewed_at, self._beat = b"", -float("inf"), 0
        self._lost: str | None = None
        # When it last failed to be renewed, and why.
        self._failure: tuple[float, Exception] | None = None
        self._renewing = threading.RLock()

    @property
    def owner(self) -> str:
        """What tells this lock from any other."""
        return self._holder["owner"]

    def create(self) -> None:
        """Create the file, or raise ``FileExistsError``."""
        now, content = self._clock(), self._next_content()
        self._file.create(content)
        self._content, self._renewed_at = content, now

    def take_over(self, content: bytes) -> bool:
        """Take the lock of a dead holder, and return whether nobody else was faster.

        Args:
            content: Content of the file that was observed.
        """
        now, mine = self._clock(), self._next_content()
        if not self._file.replace(content, mine):
            return False
        self._content, self._renewed_at = mine, now
        return True

    def verify(self) -> None:
        """Check that the lock is still ours, and renew it where its last heartbeat is too long ago to rely on.

        Raises:
            LockLost: Another process has it.
            Exception: The storage does not answer, so that nobody knows.
        """
        with self._renewing:
            now = self._clock()
            if self._lost is None and now - self._renewed_at < self._reliable_for:
                return
            # Not at every call where the storage takes a minute to say that it does not answer.
            if self._lost is None and self._failure and now - self._failure[0] < self._reliable_for / 2:
                raise self._failure[1]
            self.renew()

    def renew(self) -> None:
        """Send a heartbeat.

        Raises:
            LockLost: Another process has the lock.
            Exception: The storage does not answer.
        """
        with self._renewing:
            if self._lost is None:
                try:
                    if self._send_heartbeat():
                        return
                except Exception as error:
                    self._failure = self._clock(), error
                    raise
            raise LockLost(self._lost)

    def _send_heartbeat(self) -> bool:
        """Change the file if it is still ours, and return whether it is."""
        now, content = self._clock(), self._next_content()
        renewed = self._file.replace(self._content, content)
        if not renewed and self._adopt():
            renewed = self._file.replace(self._content, content)
        if renewed:
            self._content, self._renewed_at, self._failure = content, now, None
        else:
            self._lost = _loss(self._folder, _parse(self._file.read()), self._writer)
        return renewed

    def release(self) -> None:
        """Remove the file if it is ours."""
        with self._renewing:
            if self._lost is None:
                if not self._file.remove(self._content) and self._adopt():
                    self._file.remove(self._content)
                self._lost = f"the lock of {self._folder} is released"

    def _adopt(self) -> bool:
        """Note what the file has if that is of this lock, as after a request whose answer was lost; return whether."""
        content = self._file.read()
        if content is None or _parse(content).get("owner") != self.owner:
            return False
        self._content = content
        return True

    def _next_content(self) -> bytes:
        self._beat += 1
        return json.dumps({**self._holder, "beat": self._beat}).encode()


def _send_heartbeats(lock: Lock, interval: float, released: threading.Event) -> None:
    while not released.wait(interval):
        try:
            lock.renew()
        except LockLost:
            return
        # The storage may be away for a moment: the next heartbeat will do.
        except Exception:
            continue


def _parse(content: bytes | None) -> dict[str, Any]:
    """Return what a lock's file says of its holder; nothing where there is no file or it is damaged."""
    try:
        holder = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _name(holder: dict[str, Any]) -> str:
    # Anybody may have written the file.
    text = f"process {holder.get('pid')} on {holder.get('host')}"
    return "".join(letter for letter in text if letter.isprintable())[:_MAX_NAME]


def _loss(folder: str, holder: dict[str, Any], writer: str) -> str:
    if "pid" not in holder:
        return f"the lock of {folder} is gone, and another {writer} may have written there: this one has stopped"
    return f"another {writer} has taken over {folder} ({_name(holder)}): this one has stopped and writes nothing more"
