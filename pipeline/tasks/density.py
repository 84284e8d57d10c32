"""Rows of a table, judged by the negative log-likelihood of rows that were held out, in nats.

The base has a density ``b``, so the model has one: ``log q(x) = log b(x) - E(x) - A`` (Arbel, Zhou and Gretton, ICLR
2021, density estimation). Trials are ranked by the validation rows; the test rows choose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gebm import GEBM, PartitionEstimate, annealing_schedule, log_partition_annealed, objectives, samplers
from gebm.freezing import frozen
from pipeline.config.temperature import describe_temperature
from pipeline.evaluation import plots
from pipeline.evaluation.evaluator import Evaluation
from pipeline.runtime.errors import UserError
from pipeline.tasks.rows import TableTask, TableTaskWorker

__all__ = ["Density"]

_DIVERGED = "the negative log-likelihood is not finite, the model diverged: lower train.energy_lr or train.base_lr"
_SHOWN = 2_000  # draws of the model in a picture


class Density(TableTask):
    """Density estimation on a table."""

    def measure(self, label: str | None) -> str:
        """Likelihood, with its unit."""
        return "negative log-likelihood of the test rows in nats, chosen by the validation rows"

    def open(self, rank: int, world_size: int, device: torch.device) -> DensityTaskWorker:
        """The rows on one worker."""
        return DensityTaskWorker(self._config, rank, world_size, device)

    def pictures(self, base: Tensor, gebm: Tensor) -> dict[str, bytes]:
        """The columns' marginals, of base and GEBM."""
        name = plots.at_temperature("GEBM", describe_temperature(self._config.sampler.beta))
        return {"marginals.png": plots.png(plots.marginals({"base": base, name: gebm}))}


class DensityTaskWorker(TableTaskWorker):
    """A table on one worker."""

    @torch.no_grad()
    def evaluate(self, model: GEBM, advance: Callable[[int], None] = lambda steps: None) -> Evaluation:
        """Likelihood of base and GEBM; marginals, energies and the density in two columns.

        The log-partition is that which ``evaluation.log_partition`` names. Its Monte-Carlo estimate over
        ``evaluation.num_samples`` draws of the base is always there, with its standard error: the draws are needed
        anyway, and where it disagrees with another, one of the two is not to be believed.
        """
        settings = self._config.evaluation
        seed = self._config.seed if settings.seed is None else settings.seed
        generator = torch.Generator(self._device).manual_seed((seed + 1) * 1_000_003)
        size, count = settings.batch_size, settings.num_samples
        trained = objectives.make(self._config.train.objective).trains_energy
        found = Evaluation()
        with frozen(model.base, model.energy):
            draws = model.sample_base(count, generator, batch_size=size)
            energy_base = _by_parts(model.energy, draws, size) if trained else draws.new_zeros(count)
            estimate = PartitionEstimate.of(-energy_base)
            found.scores |= _named("log_partition_monte_carlo", "log_partition", estimate)
            if not bool((energy_base > -math.inf).all()):  # not a number, or minus infinity
                raise UserError(_DIVERGED)
            log_partition = self._log_partition(model, estimate, found) if trained else 0.0
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
            raise UserError(_DIVERGED)
        if self._rank == 0:
            # The weights are at hand: resampling by them gives draws of the model at no further cost.
            weights = (-energy_base.double()).softmax(0)
            chosen = torch.multinomial(weights, min(_SHOWN, count), replacement=True, generator=generator)
            found.pictures = self._draw(draws[chosen].cpu(), {name: e.cpu() for name, e in energies.items()})
        return found

    def _log_partition(self, model: GEBM, monte_carlo: PartitionEstimate, found: Evaluation) -> float:
        """The log-partition that the likelihood is computed with, in nats; what is found on the way is a score."""
        kind, sampler = self._config.evaluation.log_partition, self._config.sampler
        known = model.known_log_partition
        if known is not None:
            found.scores["log_partition_known"] = float(known)
        if kind == "annealed":
            # With random numbers of its own: the draws that are shown are the same whichever estimate is asked for.
            annealed = log_partition_annealed(
                model,
                self._config.evaluation.num_samples,
                samplers.make(sampler.name, step_size=sampler.step_size),
                annealing_schedule(self._config.evaluation.temperatures),
                generator=torch.Generator(self._device).manual_seed((self._config.seed + 1) * 1_000_033),
                batch_size=self._config.evaluation.batch_size,
            )
            found.scores |= _named("log_partition_annealed", "log_partition_annealed", annealed)
            return float(annealed.log_partition)
        if kind == "trained":
            return float(model.log_partition)
        return float(monte_carlo.log_partition) if known is None or kind == "monte_carlo" else float(known)

    def _draw(self, model_rows: Tensor, energies: dict[str, Tensor]) -> dict[str, bytes]:
        test, drawn = self._splits.restore(self._splits.test), self._splits.restore(model_rows)
        correlation = self._splits.restore(self._splits.train).T.corrcoef().fill_diagonal_(0).abs()
        pair = divmod(int(correlation.argmax()), correlation.shape[1])
        return {
            "marginals.png": plots.png(plots.marginals({"test rows": test, "GEBM": drawn})),
            "energies.png": plots.png(plots.energy_histogram(energies)),
            "density.png": plots.png(plots.scatter_2d({"test rows": test, "GEBM": drawn}, pair)),
        }


def _named(name: str, prefix: str, estimate: PartitionEstimate) -> dict[str, float]:
    return {
        name: float(estimate.log_partition),
        f"{prefix}_standard_error": float(estimate.standard_error),
        f"{prefix}_effective_samples": float(estimate.effective_sample_size),
    }


def _by_parts(function: Callable[[Tensor], Tensor], rows: Tensor, size: int) -> Tensor:
    return torch.cat([function(part) for part in rows.split(size)])
