"""Rows of a table, held in memory: what the tasks over vectors share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.stores import Position, Splits, Store, load_rows, split_rows

__all__ = ["RowBatches", "check_rows", "split_store"]


def split_store(config: Config, store: Store) -> Splits:
    """The store's rows, prepared and split as the experiment says; another seed is another split.

    Args:
        config: ``data`` and ``seed``.
        store: a store of rows.

    Raises:
        UserError: the store is damaged, or holds no rows.
    """
    data = config.data
    return split_rows(load_rows(store), config.seed, dequantise=data.dequantise, max_correlation=data.max_correlation)


def check_rows(config: Config, store: Store) -> None:
    """Refuse a store whose rows are not what the experiment asks for.

    Args:
        config: the experiment.
        store: its store.

    Raises:
        UserError: one line that names the key.
    """
    train = split_store(config, store).train
    if train.shape[1] != config.data.channels:
        raise UserError(
            f"the store {store.url} has {train.shape[1]} columns as conf={config.name} prepares them, and "
            f"data.channels={config.data.channels}: set data.channels={train.shape[1]}"
        )
    if len(train) < config.train.batch_size:
        raise UserError(
            f"the store {store.url} has {len(train)} rows to train on, fewer than train.batch_size="
            f"{config.train.batch_size}"
        )


class RowBatches(Iterator[Tensor]):
    """Batches of rows for ever, epoch after epoch, from a position on.

    The order of an epoch is a function of seed and epoch. Global batch g is the g-th slice of it, and rank r takes the
    r-th part of that slice; the remainder of the epoch, less than a batch, is dropped.

    Args:
        rows: float32 (N, D), on any device, where the batches will be.
        batch_size: size of the global batch, a multiple of ``world_size`` and at most N.
        rank: this rank, from 0.
        world_size: number of ranks.
        seed: of the order.
        position: where to begin.

    Example:
        >>> batches = RowBatches(torch.arange(10.0)[:, None], batch_size=4)
        >>> next(batches).shape, batches.position
        (torch.Size([4, 1]), Position(epoch=0, step=1))
    """

    def __init__(
        self,
        rows: Tensor,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        position: Position | None = None,
    ) -> None:
        self.position = position or Position()
        self._rows, self._seed = rows, seed
        self._batch_size, self._part = batch_size, batch_size // world_size
        self._offset = rank * self._part
        self._order: tuple[int, Tensor] | None = None

    def __next__(self) -> Tensor:
        epoch, step = self.position.epoch, self.position.step
        if self._order is None or self._order[0] != epoch:
            digest = hashlib.sha256(f"{self._seed}/{epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            self._order = epoch, torch.randperm(len(self._rows), generator=generator).to(self._rows.device)
        start = step * self._batch_size + self._offset
        last = step + 1 == len(self._rows) // self._batch_size
        self.position = Position(epoch + 1, 0) if last else Position(epoch, step + 1)
        return self._rows[self._order[1][start : start + self._part]]
