"""``python -m benchmarks.packing``: images per second that one process reads from a store.

The same random images of 32 pixels are written as two stores into a temporary folder, and each is read once through, in
batches:

- *blocks*: ``pipeline.data.Reader`` on arrays of many images;
- *images*: the same reader on a store of one PNG file an image;
- *one at a time*: webdataset's own pipeline on that store, decoding image by image and stacking them, as one reads such
  a store at first;
- *blocks, held*: ``pipeline.data.DeviceResidentReader`` on the arrays, which reads the store onto the device and
  indexes there.

Each repetition opens its store anew, so nothing is cached in the process, and checks of SHA-256 are part of the
reader's time; the files themselves lie in the operating system's cache. A run pays that for its first epoch alone, so
*later epochs* are timed too, of a reader that has its shards in its cache and of a store that is held already. Each
batch ends on the device, as in training: with a GPU, the reader's batches are pinned and copied there.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from webdataset.compat import WebDataset

from benchmarks import cli, harness
from pipeline.data import BatchSpec, DeviceResidentReader, Reader, open_store, write_store

__all__ = ["RandomImages", "main"]


class RandomImages:
    """A source of images (H, W, 3): coarse patches of color with a little noise, which PNG packs about as photographs.

    Args:
        count: How many.
        resolution: Pixels on a side, a multiple of 4.
        seed: Of all the images.
    """

    kind = "random"
    url: str | None = None
    split: str | None = None
    fingerprint: str | None = None
    labels: tuple[str, ...] | None = None

    def __init__(self, count: int, resolution: int, seed: int) -> None:
        self._count = count
        self._resolution = resolution
        self._seed = seed

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        """Return the image's number."""
        return f"image {index}"

    def read(self, index: int) -> tuple[np.ndarray, None]:
        """Pixels, uint8 (H, W, 3), and no label."""
        random = np.random.default_rng((self._seed, index))
        patches = random.integers(16, 240, (self._resolution // 4, self._resolution // 4, 3))
        noise = random.integers(-8, 9, (self._resolution, self._resolution, 3))
        return (patches.repeat(4, 0).repeat(4, 1) + noise).astype(np.uint8), None

    def close(self) -> None:
        """Nothing is held open."""


def first_epoch(make: Callable[[], Reader | DeviceResidentReader], device: torch.device) -> Callable[[], object]:
    """Return what makes a reader and takes one epoch of its batches to a device."""
    return lambda: next(_epochs(make(), device))


def later_epochs(reader: Reader | DeviceResidentReader, device: torch.device) -> Callable[[], object]:
    """Return what takes the next epoch of a reader's batches to a device, after a first one."""
    epochs = _epochs(reader, device)
    next(epochs)
    return lambda: next(epochs)


def _epochs(reader: Reader | DeviceResidentReader, device: torch.device) -> Iterator[None]:
    batches = iter(reader)
    while True:
        for batch in itertools.islice(batches, reader.batches_per_epoch):
            batch.images.to(device, non_blocking=True)
        yield


def read_one_at_a_time(folder: Path, batch: int, device: torch.device) -> Callable[[], object]:
    """Return what reads a store of PNG files once by webdataset, image by image."""
    shards = sorted(str(path) for path in folder.glob("*.tar"))

    def read() -> None:
        # webdataset adds its methods at run time, where no type checker sees them.
        dataset: Any = WebDataset(shards, shardshuffle=False)
        images = iter(dataset.decode("rgb8").to_tuple("png"))
        while several := [image for (image,) in itertools.islice(images, batch)]:
            torch.from_numpy(np.stack(several).transpose(0, 3, 1, 2).copy()).to(device)

    return read


def _arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__, repeat=5)
    parser.add_argument("--images", type=cli.positive, default=20_480, help="images in each store")
    parser.add_argument("--resolution", type=cli.positive, default=32, help="pixels on a side, a multiple of 4")
    parser.add_argument("--batch", type=cli.positive, default=128, help="images in a batch")
    return parser.parse_args()


def main() -> None:
    """Write the stores, read them, print, and write the JSON file."""
    arguments = _arguments()
    device = cli.pick_device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        paths = {encoding: Path(folder) / encoding for encoding in ("blocks", "images")}
        for encoding, path in paths.items():
            source = RandomImages(arguments.images, arguments.resolution, arguments.seed)
            write_store(
                source, str(path), resolution=arguments.resolution, channels=3, encoding=encoding, num_processes=1
            )

        def read(encoding: str) -> Reader:
            return Reader(open_store(str(paths[encoding])), BatchSpec(arguments.batch))

        def hold() -> DeviceResidentReader:
            return DeviceResidentReader(open_store(str(paths["blocks"])), device, BatchSpec(arguments.batch))

        works = {
            "images, one at a time": read_one_at_a_time(paths["images"], arguments.batch, device),
            "images": first_epoch(lambda: read("images"), device),
            "blocks": first_epoch(lambda: read("blocks"), device),
            "blocks, held": first_epoch(hold, device),
            "blocks, later epochs": later_epochs(read("blocks"), device),
            "blocks, held, later epochs": later_epochs(hold(), device),
        }
        seconds = harness.interleaved(works, device, arguments.repeat)
    rows = [
        {
            "store": name,
            "seconds": timing,
            "images/s": arguments.images / timing.median,
            "ratio": harness.ratio(seconds["images, one at a time"], timing),
        }
        for name, timing in seconds.items()
    ]
    print(harness.table(rows), end="\n\n")
    print(f"written: {harness.write(arguments.out, 'packing', device, vars(arguments), rows)}")


if __name__ == "__main__":
    main()
