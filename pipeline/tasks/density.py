"""Task of density estimation on a table, scored by the negative log-likelihood of held-out rows, in nats.

The base has a density ``b``, so the model has one: ``log q(x) = log b(x) - E(x) - A`` (Arbel, Zhou and Gretton, ICLR
2021, density estimation). Trials are ranked by the validation rows; the test rows choose nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Protocol, cast

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gebm import GEBM, PartitionEstimate, annealing_schedule, log_partition_annealed, samplers
from gebm.freezing import frozen
from gebm.precision import arithmetic
from pipeline.config.kernels import kernel_settings
from pipeline.config.scores import STANDARD_ERROR
from pipeline.config.temperature import describe_temperature
from pipeline.config.training_parts import make_objective
from pipeline.evaluation import plots
from pipeline.evaluation.base import Evaluation, EvaluationRun
from pipeline.evaluation.local_chains import evaluation_generator
from pipeline.evaluation.standard_error import mean_standard_error
from pipeline.runtime.errors import UserError
from pipeline.tasks.rows import TableTask, TableTaskWorker

__all__ = ["Density"]

_DIVERGED = "the negative log-likelihood is not finite, the model diverged: lower train.energy_lr or train.base_lr"
# Pictures of an evaluation.
_SERIES = ("marginals.png", "energies.png", "density.png")
# Draws of the model in a picture.
_SHOWN = 2_000


class Density(TableTask):
    """Task of density estimation on a table."""

    def measure(self, label: str | None) -> str:
        """Return the likelihood, with its unit."""
        return "negative log-likelihood of the test rows in nats, chosen by the validation rows"

    def open(self, rank: int, world_size: int, device: torch.device) -> DensityTaskWorker:
        """Return the rows on one worker."""
        return DensityTaskWorker(self.config, rank, world_size, device)

    def pictures(self, base: Tensor, gebm: Tensor) -> dict[str, bytes]:
        """Return the columns' marginals, of base and GEBM."""
        name = plots.at_temperature("GEBM", describe_temperature(self.config.sampler.beta))
        return {"marginals.png": plots.png(plots.marginals({"base": base, name: gebm}))}


class DensityTaskWorker(TableTaskWorker):
    """Task of density estimation on one worker."""

    @arithmetic("float32")
    @torch.no_grad()
    def evaluate(self, model: GEBM, run: EvaluationRun | None = None) -> Evaluation:
        """Return the likelihood of base and GEBM, with marginals, energies and the density in two columns.

        The log-partition is that which ``evaluation.log_partition`` names. Its Monte-Carlo estimate over
        ``evaluation.num_samples`` draws of the base is always computed, with its standard error: the draws are needed
        anyway, and where it disagrees with another, one of the two is not to be believed. There is no chain, and no
        search over samplers that could share results.

        Raises:
            UserError: An energy or a likelihood is not finite.
        """
        generator = evaluation_generator(self.config)
        evaluation = Evaluation()
        with frozen(model.base, model.energy):
            draws, energies_of_draws = self._sample_base(model, generator)
            energies = {"base": energies_of_draws}
            log_partition, error = self._log_partition(model, energies["base"], evaluation.scores)
            for split, rows in (
                ("train", self.splits.train),
                ("validation", self.splits.validation),
                ("test", self.splits.test),
            ):
                rows = rows.to(self.device)
                log_base, energies[split] = self._log_base(model, rows), self._energies(model, rows)
                # Scores of the test rows have no suffix.
                suffix = "" if split == "test" else f"_{split}"
                nll = {
                    "base": (-log_base, 0.0, 0.0),
                    "gebm": (energies[split].double() - log_base, log_partition, error),
                }
                for name, (values, constant, constant_error) in nll.items():
                    evaluation.scores[f"nll_{name}{suffix}"] = float(values.mean() + constant)
                    # Over the rows, which are fixed, as over others of the same distribution.
                    if len(values) > 1:
                        evaluation.scores[f"nll_{name}{suffix}{STANDARD_ERROR}"] = math.hypot(
                            mean_standard_error(values), constant_error
                        )
        if not math.isfinite(evaluation.scores["nll_gebm"]):
            raise UserError(_DIVERGED)
        if self.rank == 0:
            # The weights are at hand: resampling by them gives draws of the model at no further cost.
            weights = (-energies["base"].double()).softmax(0)
            chosen = torch.multinomial(weights.cpu(), min(_SHOWN, len(draws)), replacement=True, generator=generator)
            on_cpu = {name: values.cpu() for name, values in energies.items()}
            evaluation.draw = functools.partial(self._draw, draws.cpu()[chosen], on_cpu)
        return evaluation

    @arithmetic("float32")
    @torch.no_grad()
    def log_densities(self, model: GEBM, rows: Tensor) -> Tensor:
        """Return the log-densities of rows, in the units of the table.

        The log-partition is that of an evaluation with the same config: the mean over the test rows is minus the score
        ``nll_gebm``, plus the ``log |det whitening|`` of :class:`pipeline.data.Splits`.

        Args:
            model: The model.
            rows: Rows as the table has them (N, C), all of its columns.

        Returns:
            Log-densities in nats, float64 (N,), on the CPU.

        Raises:
            UserError: A row does not fit the table or is not finite, or an energy is not finite.
        """
        rows = self.splits.whiten(rows).to(self.device)
        with frozen(model.base, model.energy):
            _, energies = self._sample_base(model, evaluation_generator(self.config))
            log_partition, _ = self._log_partition(model, energies, {})
            whitened = self._log_base(model, rows) - self._energies(model, rows).double() - log_partition
        return whitened.cpu() + self.splits.whitening.logdet()

    @arithmetic("float32")
    @torch.no_grad()
    def draw_start(self, model: GEBM) -> dict[str, bytes]:
        """Return draws of the base in two columns, for each picture of an evaluation."""
        settings, generator = self.config.evaluation, evaluation_generator(self.config)
        with frozen(model.base):
            draws = model.sample_base(min(_SHOWN, settings.num_samples), generator, batch_size=settings.batch_size)
        picture = plots.png(self._scatter({plots.AT_START: self.splits.restore(draws.cpu())}))
        return dict.fromkeys(_SERIES, picture)

    def _scatter(self, samples: dict[str, Tensor]) -> Figure:
        """Draw rows next to the test rows, in the two columns that are correlated most."""
        test = self.splits.restore(self.splits.test)
        correlation = self.splits.restore(self.splits.train).T.corrcoef().fill_diagonal_(0).abs()
        pair = divmod(int(correlation.argmax()), correlation.shape[1])
        return plots.scatter_2d({"test rows": test, **samples}, pair, test)

    @property
    def _trains_energy(self) -> bool:
        return make_objective(self.config.train).trains_energy

    def _sample_base(self, model: GEBM, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the draws of the base that an evaluation is over (N, D), and their energies (N,)."""
        settings = self.config.evaluation
        draws = model.sample_base(settings.num_samples, generator, batch_size=settings.batch_size)
        energies = self._energies(model, draws)
        # False for NaN as well as for minus infinity.
        if not bool((energies > -math.inf).all()):
            raise UserError(_DIVERGED)
        return draws, energies

    def _log_base(self, model: GEBM, rows: Tensor) -> Tensor:
        """Return the base's log-densities (N,) of rows (N, D), float64."""
        return self._in_batches(cast(_Density, model.base).log_prob, rows).double()

    def _energies(self, model: GEBM, rows: Tensor) -> Tensor:
        """Return the energies (N,) of rows (N, D): zero where the objective trains none."""
        return self._in_batches(model.energy, rows) if self._trains_energy else rows.new_zeros(len(rows))

    def _in_batches(self, function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        return torch.cat([function(batch) for batch in rows.split(self.config.evaluation.batch_size)])

    def _log_partition(self, model: GEBM, energies: Tensor, scores: dict[str, float]) -> tuple[float, float]:
        """Return the log-partition that the likelihood is computed with and its standard error, in nats.

        Args:
            model: The model.
            energies: Energies of draws of the base (N,).
            scores: Takes all estimates that were computed.
        """
        kind, sampler = self.config.evaluation.log_partition, self.config.sampler
        monte_carlo = PartitionEstimate.of(-energies)
        scores |= _estimate_scores("log_partition_monte_carlo", monte_carlo)
        if not self._trains_energy:
            return 0.0, 0.0
        known = model.known_log_partition
        if known is not None:
            scores["log_partition_known"] = float(known)
        if kind == "annealed":
            # With random numbers of its own: the draws that are shown are the same whichever estimate is requested.
            step_size = kernel_settings(sampler).step_size
            annealed = log_partition_annealed(
                model,
                self.config.evaluation.num_samples,
                samplers.make(sampler.name, step_size=step_size, prior=model.prior, **sampler.settings),
                annealing_schedule(self.config.evaluation.temperatures),
                generator=torch.Generator().manual_seed((self.config.seed + 1) * 1_000_033),
                batch_size=self.config.evaluation.batch_size,
            )
            scores |= _estimate_scores("log_partition_annealed", annealed)
            return float(annealed.log_partition), float(annealed.standard_error)
        if kind == "trained":
            # A parameter of the model: there is no draw that it would be an estimate from.
            return float(model.log_partition), 0.0
        if known is None or kind == "monte_carlo":
            return float(monte_carlo.log_partition), float(monte_carlo.standard_error)
        return float(known), 0.0

    def _draw(self, model_rows: Tensor, energies: dict[str, Tensor], evaluation: Evaluation) -> dict[str, bytes]:
        test, drawn = self.splits.restore(self.splits.test), self.splits.restore(model_rows)
        return {
            "marginals.png": plots.png(plots.marginals({"test rows": test, "GEBM": drawn})),
            "energies.png": plots.png(plots.energy_histogram(energies)),
            "density.png": plots.png(self._scatter({"GEBM": drawn})),
        }


def _estimate_scores(name: str, estimate: PartitionEstimate) -> dict[str, float]:
    return {
        name: float(estimate.log_partition),
        f"{name}_standard_error": float(estimate.standard_error),
        f"{name}_effective_samples": float(estimate.effective_sample_size),
    }


class _Density(Protocol):
    """A base with a density, such as a normalizing flow."""

    def log_prob(self, x: Tensor) -> Tensor: ...
