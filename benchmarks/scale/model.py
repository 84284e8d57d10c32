"""The model: what a sweep asks of each part of the machinery in a second, as formulas of what was measured.

A *load* is a rate; a *share* is a load by what the part can carry, so that the part with the largest share saturates
first, and at a share of one. All loads are those of trials that train without a pause and scale over their GPUs without
loss, so real sweeps ask for less: evaluations, which train nothing, are counted and take no time here.

    concurrent trials   C = min(trials, GPUs)
    GPUs of a trial     W = the largest divisor of batch_size up to GPUs // C and batch_size // least_part
    images/s of a trial I = W * gpu_flops / flops_per_image
    base steps/s        S = I / (batch_size * energy_steps)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pipeline.data.reading.batch_order import LANES_BYTES
from pipeline.training.pacing import REPORT_SECONDS

__all__ = ["Assumptions", "Case", "Loads", "Measured", "Settings", "loads", "recommend", "round_number", "saturation"]


@dataclass(frozen=True)
class Assumptions:
    """Figures that are not measured here: assumed, or published by the provider.

    Attributes:
        num_images: of the store.
        gpu_flops: operations a second that training keeps up on a GPU. Assumed: a third of what an A100's data sheet
            gives for bfloat16. No GPU was measured.
        gpu_bytes: memory of a GPU. Assumed: 80 GB. A store of a quarter of it is held there.
        gpus_per_machine: assumed.
        machine_bytes_per_second: of a machine's network, either way. Assumed: 100 Gbit/s.
        gets_per_second: requests that read, for each prefix of a bucket, as AWS publishes for S3; and
            ``puts_per_second``, those that write.
        host_bytes: memory of the machine that the driver is on. Assumed: 64 GB.
        least_part: images of a batch that a GPU has to get, or it idles. Assumed.
        lifetime: seconds until a machine is taken away, in the mean. Assumed: twelve hours.
    """

    num_images: int = 3_000_000
    gpu_flops: float = 100e12
    gpu_bytes: float = 80e9
    gpus_per_machine: int = 8
    machine_bytes_per_second: float = 12.5e9
    gets_per_second: float = 5500.0
    puts_per_second: float = 3500.0
    host_bytes: float = 64e9
    least_part: int = 16
    lifetime: float = 12 * 3600.0


@dataclass(frozen=True)
class Measured:
    """What was measured here, of one resolution and one family of networks.

    Attributes:
        image_bytes: of an image in the store.
        reader_images: images a second that one process reads, checks and puts together.
        flops: floating-point operations of training by an image.
        checkpoint_bytes: of a checkpoint, with ``checkpoint_puts`` and ``checkpoint_gets``, its requests.
        gradient_bytes: that the GPUs of a trial exchange each step.
        shard_gets: requests that read a shard, and ``opening_gets``, that open a store, for each of its shards.
        driver_seconds: of the processor, that the driver spends on a result.
        driver_bytes: of the driver's memory without trials, and ``driver_trial_bytes`` with each.
        request_seconds: that the tracker takes for a request with results of one trial, without them, and
            ``result_seconds``, for each result in it.
        evaluation_seconds: that the tracker takes for what an evaluation adds; ``start_seconds`` and ``end_seconds``
            for a trial's start and end.
    """

    image_bytes: float
    reader_images: float
    flops: float
    checkpoint_bytes: float
    checkpoint_puts: float
    checkpoint_gets: float
    gradient_bytes: float
    shard_gets: float
    opening_gets: float
    driver_seconds: float
    driver_bytes: float
    driver_trial_bytes: float
    request_seconds: float
    result_seconds: float
    evaluation_seconds: float
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True)
class Settings:
    """The keys of the config that matter here, at their defaults or those of ``conf/lsun.yaml``.

    Attributes:
        samples_per_shard: ``data.samples_per_shard``.
        lanes: ``data.lanes``.
        hold: ``data.device_resident``.
        reader_workers: ``data.num_workers``.
        batch_size: ``train.batch_size``, and ``energy_steps``, ``base_steps`` and ``report_every`` of ``train``.
        evaluate_every: ``evaluation.every``.
        checkpoint_every: ``checkpoints.every``.
        num_workers: ``scale.num_workers``; ``None`` for the number of GPUs.
        max_concurrent: ``sweep.max_concurrent``.
    """

    samples_per_shard: int = 8192
    lanes: int = 64
    hold: bool = False
    reader_workers: int = 1
    batch_size: int = 128
    energy_steps: int = 5
    base_steps: int = 150_000
    report_every: int = 50
    evaluate_every: int = 10_000
    checkpoint_every: int | None = None
    num_workers: int | None = None
    max_concurrent: int | None = None


@dataclass(frozen=True)
class Case:
    """A sweep.

    Attributes:
        resolution: in pixels.
        gpus: of the cluster.
        trials: of the sweep.
    """

    resolution: int
    gpus: int
    trials: int


@dataclass(frozen=True)
class Loads:
    """Load of a sweep on each part.

    Attributes:
        concurrent: trials at the same time, and ``workers``, GPUs of each.
        steps: base steps a second of a trial.
        seconds: that a trial trains.
        read_bytes: read from the storage in a second, by all, and ``gets`` and ``puts``, requests.
        start_bytes: read once, when all trials begin, and ``start_gets``.
        checkpoint_bytes: written in a second.
        results: that reach the driver in a second.
        driver_bytes: memory of the driver.
        tracker_lag: seconds until a result is in the tracker; infinite where it falls behind for good.
        shares: of each part, load by capacity.
    """

    concurrent: int
    workers: int
    steps: float
    seconds: float
    read_bytes: float
    gets: float
    puts: float
    start_bytes: float
    start_gets: float
    checkpoint_bytes: float
    results: float
    driver_bytes: float
    tracker_lag: float
    shares: dict[str, float]

    @property
    def first(self) -> str:
        """The part that saturates first."""
        return max(self.shares, key=lambda part: self.shares[part])


def loads(case: Case, settings: Settings, measured: Measured, assumed: Assumptions) -> Loads:
    """Return the load of a sweep on each part.

    *Storage, read.* The ``P = W * reader_workers`` processes of a trial share out its ``L`` lanes. Together they read
    the store once an epoch, with one more shard for each cut between two of them, of ``N``: ``C * I * image_bytes *
    (1 + (P - 1) / N)`` bytes a second. Processes that are more than the lanes read the same ones, so each reads
    ``1 / L`` of the store. A store that is held is read once by each rank.

    *Storage, written.* There is a checkpoint before and one after each evaluation, and those of ``checkpoints.every``.

    *Network of a machine.* Its part of what is read and written; and where a trial is on several machines,
    ``2 * gradient_bytes`` for each step of each trial on it.

    *Reader.* A process reads and checks the images of its own lanes, and puts them together.

    *Driver.* ``results * driver_seconds``: it has one interpreter, so one core.

    *Tracker.* Requests of one trial's waiting results, one after the other: with ``r`` results a second and
    ``C`` trials, a round takes ``T = C * request_seconds + T * (r * result_seconds + others)``. So its share is what is
    in the bracket, and the lag is the round that solves this.

    Example:
        >>> measured = Measured(3000, 3e5, 5e9, 1e8, 8, 4, 1e7, 1, 1, 2e-3, 1e9, 5e5, 0.05, 1e-3, 0.1, 0.3, 0.1)
        >>> load = loads(Case(32, 8, 4), Settings(), measured, Assumptions())
        >>> load.concurrent, load.workers, round(load.steps, 1), load.first
        (4, 2, 62.5, 'reader')
    """
    pace = _pace(case, settings, measured, assumed)
    traffic = _traffic(pace, settings, measured, assumed)
    shards = _shards(settings, assumed)
    machines = max(1, math.ceil(pace.ranks / assumed.gpus_per_machine))
    exchanged = 0.0
    if pace.workers > assumed.gpus_per_machine:
        exchanged = 2 * measured.gradient_bytes * pace.steps * (settings.energy_steps + 1)
    results = pace.reports(settings)
    tracker, lag = _tracker(pace, settings, measured)
    driver_bytes = measured.driver_bytes + pace.concurrent * measured.driver_trial_bytes
    on_network = (traffic.read + traffic.written) / machines + exchanged
    return Loads(
        concurrent=pace.concurrent,
        workers=pace.workers,
        steps=pace.steps,
        seconds=settings.base_steps / pace.steps,
        read_bytes=traffic.read,
        gets=traffic.gets,
        puts=traffic.puts,
        start_bytes=pace.ranks * (assumed.num_images * measured.image_bytes) if settings.hold else 0.0,
        start_gets=pace.ranks * shards * (measured.opening_gets + (measured.shard_gets if settings.hold else 0)),
        checkpoint_bytes=traffic.written,
        results=results,
        driver_bytes=driver_bytes,
        tracker_lag=lag,
        shares={
            "network": on_network / assumed.machine_bytes_per_second,
            "storage, gets": traffic.gets / assumed.gets_per_second,
            "storage, puts": traffic.puts / assumed.puts_per_second,
            "reader": _share_of_process(pace, settings, measured, assumed) * pace.images / measured.reader_images,
            "driver": results * measured.driver_seconds,
            "driver's memory": driver_bytes / assumed.host_bytes,
            "tracker": tracker,
        },
    )


class _Pace(NamedTuple):
    """Size and speed of the trials: trials at once, GPUs of each, and images and base steps a second of each."""

    concurrent: int
    workers: int
    images: float
    steps: float

    @property
    def ranks(self) -> int:
        """The number of GPUs of all trials."""
        return self.concurrent * self.workers

    @property
    def all_steps(self) -> float:
        """Base steps a second of all trials."""
        return self.concurrent * self.steps

    def reports(self, settings: Settings) -> float:
        """Return the progress reports a second of all trials, of each trial one in ``REPORT_SECONDS`` at most."""
        return self.concurrent * min(self.steps / settings.report_every, 1 / REPORT_SECONDS)


def _pace(case: Case, settings: Settings, measured: Measured, assumed: Assumptions) -> _Pace:
    concurrent = min(case.trials, case.gpus, settings.max_concurrent or case.trials)
    workers = min(settings.num_workers or case.gpus, case.gpus // concurrent)
    workers = max(1, min(workers, settings.batch_size // assumed.least_part))
    workers = next(count for count in range(workers, 0, -1) if settings.batch_size % count == 0)
    images = workers * assumed.gpu_flops / measured.flops
    return _Pace(concurrent, workers, images, images / (settings.batch_size * settings.energy_steps))


class _Traffic(NamedTuple):
    """Bytes read and written, and requests to the storage, each in a second."""

    read: float
    written: float
    gets: float
    puts: float


def _shards(settings: Settings, assumed: Assumptions) -> int:
    return math.ceil(assumed.num_images / settings.samples_per_shard)


def _share_of_process(pace: _Pace, settings: Settings, measured: Measured, assumed: Assumptions) -> float:
    """Return the share of a trial's images that each of its processes reads: that of its lanes."""
    if settings.hold:
        return 0.0
    fitting = LANES_BYTES // int(settings.samples_per_shard * measured.image_bytes)
    common = math.gcd(settings.lanes, settings.batch_size)
    most = max(1, min(fitting, _shards(settings, assumed), common))
    lanes = max(count for count in range(1, most + 1) if common % count == 0)
    return 1 / min(lanes, pace.workers * max(1, settings.reader_workers))


def _traffic(pace: _Pace, settings: Settings, measured: Measured, assumed: Assumptions) -> _Traffic:
    processes = pace.workers * max(1, settings.reader_workers)
    cuts = (processes - 1) / _shards(settings, assumed)
    share = _share_of_process(pace, settings, measured, assumed)
    images = pace.concurrent * pace.images * (processes * share + (0 if settings.hold else cuts))
    read, gets = images * measured.image_bytes, images / settings.samples_per_shard * measured.shard_gets
    saves = pace.all_steps * (
        2 / settings.evaluate_every + (1 / settings.checkpoint_every if settings.checkpoint_every else 0)
    )
    gets += saves * measured.checkpoint_gets
    return _Traffic(read, saves * measured.checkpoint_bytes, gets, saves * measured.checkpoint_puts)


def _tracker(pace: _Pace, settings: Settings, measured: Measured) -> tuple[float, float]:
    """Return the tracker's share, and the seconds until a result is there."""
    # Trials that start, and that end, in a second.
    turns = pace.concurrent / (settings.base_steps / pace.steps)
    share = (
        pace.reports(settings) * measured.result_seconds
        + pace.all_steps / settings.evaluate_every * measured.evaluation_seconds
        + turns * (measured.start_seconds + measured.end_seconds)
    )
    return share, pace.concurrent * measured.request_seconds / (1 - share) if share < 1 else math.inf


def recommend(case: Case, measured: Measured, assumed: Assumptions) -> Settings:
    """Return the config under which no part has more than half of what it can carry, and a reader nine tenths.

    - A store of at most a quarter of a GPU's memory is held there.
    - Shards are of about 32 MiB: few requests, and several in a window of 128 MiB, over which images are mixed.
    - A trial has the GPUs that are free for it, but no more than its reader and the storage feed.
    - Reports and evaluations are as rare as driver and tracker need, and no rarer.
    - A checkpoint every ``sqrt(2 * cost * lifetime)`` seconds (Young's formula) loses least, where its cost is that of
      writing it at a tenth of a machine's network.

    Example:
        >>> measured = Measured(3000, 3e5, 5e9, 1e8, 8, 4, 1e7, 1, 1, 2e-3, 1e9, 5e5, 0.05, 1e-3, 0.1, 0.3, 0.1)
        >>> settings = recommend(Case(32, 512, 512), measured, Assumptions())
        >>> settings.hold, settings.report_every, settings.num_workers
        (True, 100, 1)
    """
    store_bytes = assumed.num_images * measured.image_bytes
    hold = store_bytes <= assumed.gpu_bytes / 4
    samples = max(256, 2 ** math.floor(math.log2(32 * 2**20 / measured.image_bytes)))
    settings = Settings(hold=hold, samples_per_shard=samples, max_concurrent=min(case.trials, case.gpus))
    workers = loads(case, settings, measured, assumed).workers

    def loads_with(**keys: Any) -> Loads:
        return loads(case, replace(settings, **keys), measured, assumed)

    def crowded(shares: dict[str, float]) -> bool:
        return shares["reader"] > 0.9 or max(shares["network"], shares["storage, gets"]) > 0.5

    while workers > 1 and crowded(loads_with(num_workers=workers).shares):
        workers = loads_with(num_workers=workers - 1).workers
    settings = replace(settings, num_workers=workers)
    report = settings.report_every
    # Half of what reports may take, for evaluations, starts and ends take their part as well.
    while max(loads_with(report_every=report).shares[part] for part in ("driver", "tracker")) > 0.5:
        if report >= settings.evaluate_every:
            break
        report = round_number(report * 1.5)
    settings = replace(settings, report_every=min(report, settings.evaluate_every))
    cost = measured.checkpoint_bytes / (assumed.machine_bytes_per_second / 10)
    machines = math.ceil(workers / assumed.gpus_per_machine)
    seconds = math.sqrt(2 * cost * assumed.lifetime / machines)
    steps = round_number(seconds * loads_with().steps)
    return replace(settings, checkpoint_every=steps if steps < settings.evaluate_every else None)


def round_number(value: float) -> int:
    """Return the nearest of 1, 2, 5, 10, 20, 50 and so on, from above.

    Example:
        >>> [round_number(value) for value in (0.3, 50, 51, 130, 4000)]
        [1, 50, 100, 200, 5000]
    """
    if value <= 1:
        return 1
    power = 10 ** math.floor(math.log10(value))
    return next(int(digit * power) for digit in (1, 2, 5, 10) if digit * power >= value * (1 - 1e-9))


def saturation(share: Callable[[float], float], low: float = 1e-9, high: float = 1e12) -> float:
    """Return the argument at which a growing share comes to one, by bisection.

    Args:
        share: of one number.
        low: where the share is below one.
        high: where it is above.

    Example:
        >>> round(saturation(lambda results: results * 0.004), 6)
        250.0
    """
    if not share(low) < 1 <= share(high):
        raise ValueError(f"the share is no less than one at {low}, or less than one at {high}")
    while high / low > 1 + 1e-12:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if share(middle) >= 1 else (middle, high)
    return math.sqrt(low * high)
