"""Rows of a table, judged by the negative log-likelihood of rows that were held out, in nats.

The base has a density ``b``, so the model has one: ``log q(x) = log b(x) - E(x) - A`` (Arbel, Zhou and Gretton, ICLR
2021, density estimation). Trials are ranked by the validation rows; the test rows choose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gebm import GEBM, objectives
from gebm.model import frozen
from pipeline import figures
from pipeline.errors import UserError
from pipeline.evaluation import Evaluation
from pipeline.tasks.tables import TableTask, TableWork

__all__ = ["Density"]

_SHOWN = 2_000  # draws of the model in a picture


class Density(TableTask):
    """Density estimation on a table."""

    def measure(self, label: str | None) -> str:
        """Likelihood, with its unit."""
        return "negative log-likelihood of the test rows in nats, chosen by the validation rows"

    def open(self, rank: int, world_size: int, device: torch.device) -> DensityWork:
        """The rows on one worker."""
        return DensityWork(self._config, rank, world_size, device)

    def pictures(self, base: Tensor, gebm: Tensor) -> dict[str, bytes]:
        """The columns' marginals, of base and GEBM."""
        return {"marginals.png": figures.png(figures.marginals({"base": base, "GEBM": gebm}))}


class DensityWork(TableWork):
    """A table on one worker."""

    @torch.no_grad()
    def evaluate(self, model: GEBM, advance: Callable[[int], None] = lambda steps: None) -> Evaluation:
        """Likelihood of base and GEBM; marginals, energies and the density in two columns.

        The log-partition is the true one where the energy knows it, and else its Monte-Carlo estimate over
        ``evaluation.num_samples`` draws of the base, with its standard error.
        """
        generator = torch.Generator(self._device).manual_seed((self._config.seed + 1) * 1_000_003)
        size, count = self._config.evaluation.batch_size, self._config.evaluation.num_samples
        trained = objectives.make(self._config.train.objective).trains_energy
        found = Evaluation()
        with frozen(model.base, model.energy):
            draws = model.sample_base(count, generator, batch_size=size)
            energy_base = _by_parts(model.energy, draws, size) if trained else draws.new_zeros(count)
            log_weights = -energy_base.double()
            estimate = float(log_weights.logsumexp(0)) - math.log(count)
            weights = (log_weights - estimate).exp()
            known = model.known_log_partition if trained else 0.0
            log_partition = estimate if known is None else float(known)
            found.scores |= {
                "log_partition_monte_carlo": estimate,
                "log_partition_standard_error": float(weights.std() / math.sqrt(count)),
                "log_partition_effective_samples": float(weights.sum().square() / weights.square().sum()),
            }
            if known is not None:
                found.scores["log_partition_known"] = float(known)
            energies = {"base": energy_base}
            for name, rows in (
                ("train", self._splits.train),
                ("validation", self._splits.validation),
                ("", self._splits.test),
            ):
                rows = rows.to(self._device)
                log_base = _by_parts(model.base.log_prob, rows, size).double()
                energy = _by_parts(model.energy, rows, size) if trained else rows.new_zeros(len(rows))
                energies[name or "test"] = energy
                ending = f"_{name}" if name else ""
                found.scores[f"nll_base{ending}"] = float(-log_base.mean())
                found.scores[f"nll_gebm{ending}"] = float((energy.double() - log_base).mean() + log_partition)
        if not math.isfinite(found.scores["nll_gebm"]):
            raise UserError(
                "the negative log-likelihood is not finite, the model diverged: lower train.energy_lr or train.base_lr"
            )
        if self._rank == 0:
            # The weights are at hand: resampling by them gives draws of the model at no further cost.
            chosen = torch.multinomial(weights, min(_SHOWN, count), replacement=True, generator=generator)
            found.pictures = self._draw(draws[chosen].cpu(), {name: e.cpu() for name, e in energies.items()})
        return found

    def _draw(self, model_rows: Tensor, energies: dict[str, Tensor]) -> dict[str, bytes]:
        test, drawn = self._splits.restore(self._splits.test), self._splits.restore(model_rows)
        correlation = self._splits.restore(self._splits.train).T.corrcoef().fill_diagonal_(0).abs()
        pair = divmod(int(correlation.argmax()), correlation.shape[1])
        return {
            "marginals.png": figures.png(figures.marginals({"test rows": test, "GEBM": drawn})),
            "energies.png": figures.png(figures.energy_histogram(energies)),
            "density.png": figures.png(figures.two_columns({"test rows": test, "GEBM": drawn}, pair)),
        }


def _by_parts(function: Callable[[Tensor], Tensor], rows: Tensor, size: int) -> Tensor:
    return torch.cat([function(part) for part in rows.split(size)])
