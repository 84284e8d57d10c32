"""Results of a trial that are written to its folder: checkpoints and figures."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline import config as schema
from pipeline.runtime.errors import LockLost, UserError, one_line
from pipeline.runtime.filesystem import write_files
from pipeline.runtime.lock import verify_owner
from pipeline.runtime.redaction import redact
from pipeline.tracking.locations import present_place
from pipeline.tracking.trial_reports import NUMBER, TrialReports
from pipeline.training.checkpoints import Checkpoints

__all__ = ["TrialFolder"]

_Result = TypeVar("_Result")


class TrialFolder:
    """Folder of a trial, which training either needs or continues without, as ``checkpoints.on_failure`` says.

    Args:
        config: ``checkpoints.on_failure`` and ``output``.
        url: The trial's folder, behind any fsspec URL.
        owner: Owner of the lock of the sweep's folder, without which nothing is written; None where there is no lock.

    Attributes:
        checkpoints: The trial's checkpoints.
    """

    def __init__(self, config: schema.Config, url: str, owner: str | None = None) -> None:
        self._config, self._url = config, url
        self._verify = functools.partial(verify_owner, str(config.output), owner)
        self.checkpoints = Checkpoints(url, verify=self._verify)

    @functools.cached_property
    def _reports(self) -> TrialReports:
        return TrialReports(self._url)

    def write_report(self, report: dict[str, Any]) -> dict[str, Any]:
        """Write a report down before Ray gets it, which need not pass it on.

        Where that fails, the report is on its way all the same.

        Args:
            report: The report of the first worker.

        Returns:
            The report with its number, which is what Ray gets.

        Raises:
            LockLost: Another driver has taken over the sweep's folder.
        """
        try:
            reports = self._reports
        # A file that cannot be read must not be written over: Ray alone carries this report.
        except Exception:
            self._verify()
            return report
        if reports.is_written(report):
            self._verify()
        with contextlib.suppress(Exception):
            reports.add(report)
        return {**report, NUMBER: reports.last}

    def present_report(self, report: dict[str, Any]) -> dict[str, Any]:
        """Return a report that was saved, with its figures where the sweep's folder is now, which may have been moved.

        Args:
            report: The report, from a checkpoint.
        """
        figures = report.get("figures")
        if not isinstance(figures, list):
            return report
        output = str(self._config.output)
        return {**report, "figures": [present_place(output, url) for url in figures if isinstance(url, str)]}

    def save_checkpoint(
        self,
        base_step: int,
        *,
        model: dict[str, Any],
        training: dict[str, Any],
        state: dict[str, Any],
        score: float | None,
    ) -> tuple[str | None, list[str]]:
        """Write a checkpoint, see :meth:`pipeline.training.checkpoints.Checkpoints.save`.

        Returns:
            Its URL, or ``None`` with notes on why it could not be written.

        Raises:
            UserError: It cannot be written, and ``checkpoints.on_failure`` is ``stop``.
        """
        return self._attempt(
            f"the checkpoint of base step {base_step} at {self.checkpoints.url}",
            lambda: self.checkpoints.save(base_step, model=model, training=training, state=state, score=score),
        )

    def write_figures(self, name: str, pictures: dict[str, bytes]) -> tuple[list[str], list[str]]:
        """Write an evaluation's pictures, where the driver takes them from.

        Args:
            name: The evaluation, such as ``step-00001000``.
            pictures: File name -> contents.

        Returns:
            Their URLs (``None`` if they could not be written), and notes on why.

        Raises:
            UserError: They cannot be written, and ``checkpoints.on_failure`` is ``stop``.
        """
        url = f"{self._url}/figures/{name}"
        urls, notes = self._attempt(f"figures at {url}", lambda: write_files(pictures, url))
        return urls or [], notes

    def _attempt(self, what: str, write: Callable[[], _Result]) -> tuple[_Result | None, list[str]]:
        try:
            self._verify()
            return write(), []
        except LockLost:
            raise
        # Each file system has exceptions of its own.
        except Exception as error:
            reason = one_line(error)
            note = redact(f"{what} cannot be written ({reason})")
            if self._config.checkpoints.on_failure == "stop":
                raise UserError(f"{note}; free some space, then resume={self._config.output}") from error
            return None, [note]
