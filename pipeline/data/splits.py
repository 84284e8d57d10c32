"""Splits of a table: training, validation and test rows, prepared for density estimation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from pipeline.data.permutation import permutation
from pipeline.runtime.errors import UserError

__all__ = ["Splits", "split_rows"]

_MOST_VALIDATION_ROWS = 1000
# Second part of the key of the noise's random numbers; the permutation's key has none.
_NOISE = 1
# Smallest eigenvalue of the correlations: below it, a column is a sum of others up to float32's rounding.
_DEPENDENT = 1e-8


class Splits(NamedTuple):
    """Parts of a table, whitened: the training rows have mean zero and the identity as their covariance.

    A whitened row is ``(row[columns] - mean) @ whitening.T``, so a density in the units of the table is the whitened
    one times ``|det whitening|``. Figures in nats are of whitened rows, as published ones are.

    Args:
        train: float32 (N, D).
        validation: float32 (M, D).
        test: float32 (T, D).
        mean: Mean of the training rows before whitening, float64 (D,).
        whitening: Inverse of the Cholesky factor of their covariance, lower triangular, float64 (D, D).
        columns: The columns of the table that were kept, in order.
        num_columns: Number of columns of the table, ``C``.
    """

    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor
    mean: torch.Tensor
    whitening: torch.Tensor
    columns: tuple[int, ...]
    num_columns: int

    def whiten(self, rows: torch.Tensor) -> torch.Tensor:
        """Return whitened rows; the inverse of :meth:`restore` where no column was dropped.

        Args:
            rows: Rows as the table has them (N, C), all of its columns. No noise is added to them.

        Returns:
            float32 (N, D).

        Raises:
            UserError: If the table has another number of columns, or a number is not finite.

        Example:
            >>> rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * 5 + 1
            >>> splits = split_rows(rows, seed=0, dequantise=False, max_correlation=None)
            >>> torch.allclose(splits.restore(splits.whiten(rows)), rows, atol=1e-4)
            True
        """
        _require_table(rows)
        if rows.shape[1] != self.num_columns:
            raise UserError(
                f"the table has {self.num_columns} columns, and the rows {rows.shape[1]}: give all of them in order"
            )
        units = rows.double().cpu()[:, self.columns]
        return ((units - self.mean) @ self.whitening.T).float()

    def restore(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows in the units of the table, of the columns that were kept.

        Args:
            rows: Whitened rows (N, D).

        Returns:
            float32 (N, D).

        Example:
            >>> rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * 5 + 1
            >>> splits = split_rows(rows, seed=0, dequantise=False, max_correlation=None)
            >>> distances = (splits.restore(splits.test)[:, None] - rows).abs().amax(2)
            >>> bool((distances.amin(1) < 1e-4).all())
            True
        """
        units = torch.linalg.solve_triangular(self.whitening, rows.double().cpu().T, upper=False).T
        return (units + self.mean).float()


def split_rows(rows: torch.Tensor, seed: int, *, dequantise: bool, max_correlation: float | None) -> Splits:
    """Split a table at random, into parts as Wenliang et al. (2019) and Arbel, Zhou and Gretton (2021) have them.

    A tenth of the rows is for testing and a tenth of the rest, 1,000 at most, for validation. All that is estimated is
    estimated on the training rows alone: which columns go together, how finely a column was recorded, mean and
    covariance. Rows are whitened in full, not column by column: a single Gaussian then has no more to learn, and the
    figures published for it are those of a standard normal.

    The whitening is by the Cholesky factor. Unlike principal components it has no sign or order to choose, and it does
    not depend on the units of a column.

    Args:
        rows: The table, float32 (N, D), see ``pipeline.data.load_rows``.
        seed: Seed of everything that is random, from 0 up.
        dequantise: Whether to add to each column uniform noise as wide as its quantum, the median distance of two
            values that are next to each other. Wine is recorded in steps, and a density of steps is infinite.
        max_correlation: Of two columns with a correlation of larger absolute value, the first is dropped. None keeps
            all.

    Returns:
        The three parts, and how they were whitened.

    Raises:
        UserError: If there are too few rows, a number is not finite or out of its range, a column is constant, or a
            column is a linear combination of others.

    Example:
        >>> rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * 5 + 1
        >>> splits = split_rows(rows, seed=0, dequantise=False, max_correlation=0.98)
        >>> [len(part) for part in splits[:3]]
        [162, 18, 20]
        >>> torch.allclose(splits.train.T @ splits.train / 162, torch.eye(3), atol=1e-5)
        True
    """
    _require_table(rows)
    if seed < 0:
        raise UserError(f"the seed {seed} is negative: choose one from 0 up")
    if max_correlation is not None and not 0 < max_correlation <= 1:
        raise UserError(f"the largest correlation {max_correlation} is not between 0 and 1: choose one, such as 0.98")
    table = rows.numpy().astype(np.float64)
    test, validation, train = _parts(len(table), table.shape[1], seed)
    columns = _columns(table[train], max_correlation)
    table = table[:, columns]
    if dequantise:
        noise = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((seed, _NOISE))))
        table += noise.uniform(-0.5, 0.5, table.shape) * _quanta(table[train])
    mean = table[train].mean(0)
    whitening = _whitening(table[train] - mean)
    whitened = torch.from_numpy((table - mean) @ whitening.T).float()
    return Splits(
        train=whitened[train],
        validation=whitened[validation],
        test=whitened[test],
        mean=torch.from_numpy(mean),
        whitening=torch.from_numpy(whitening),
        columns=tuple(columns.tolist()),
        num_columns=rows.shape[1],
    )


def _require_table(rows: torch.Tensor) -> None:
    if rows.ndim != 2 or not rows.isfinite().all():
        raise UserError(f"a table is finite numbers in rows and columns, not a tensor {tuple(rows.shape)}: check it")


def _parts(num_rows: int, num_columns: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the indices of the rows for testing, validation and training."""
    num_test = num_rows // 10
    num_validation = min((num_rows - num_test) // 10, _MOST_VALIDATION_ROWS)
    if not num_validation or num_rows - num_test - num_validation <= num_columns:
        raise UserError(
            f"{num_rows} rows of {num_columns} columns are too few to split and whiten: take a larger table"
        )
    test, validation, train = np.split(permutation(num_rows, seed), [num_test, num_test + num_validation])
    return test, validation, train


def _columns(train: np.ndarray, max_correlation: float | None) -> np.ndarray:
    """Return the indices of the columns to keep."""
    constant = np.flatnonzero(np.ptp(train, 0) == 0)
    if len(constant):
        raise UserError(
            f"column {constant[0]} of the table, counted from 0, is constant in the training rows: leave it out"
        )
    if max_correlation is None:
        return np.arange(train.shape[1])
    correlations = np.abs(np.atleast_2d(np.corrcoef(train.T)))
    return np.flatnonzero(~(np.triu(correlations, 1) > max_correlation).any(1))


def _quanta(train: np.ndarray) -> np.ndarray:
    """Return the quantum of each column: the median distance of its neighboring values (D,)."""
    columns = [np.unique(column) for column in train.T]
    return np.array([np.median(values[1:] - values[:-1]) for values in columns])


def _whitening(centered: np.ndarray) -> np.ndarray:
    """Return the inverse of the Cholesky factor of the covariance, (D, D)."""
    # By way of the correlations: columns in units of very different sizes would lose digits to each other.
    scale = np.sqrt((centered**2).mean(0))
    scaled = centered / scale
    correlations = scaled.T @ scaled / len(scaled)
    if np.linalg.eigvalsh(correlations)[0] < _DEPENDENT:
        raise UserError("a column of the table is a linear combination of others: drop it, as max_correlation=0.98 may")
    factor = torch.from_numpy(np.linalg.cholesky(correlations))
    identity = torch.eye(len(factor), dtype=factor.dtype)
    return torch.linalg.solve_triangular(factor, identity, upper=False).numpy() / scale
