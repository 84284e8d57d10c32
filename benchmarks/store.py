"""``python -m benchmarks.store``: images per second that one process reads from a store.

The same random images of 32 pixels are written as two stores into a temporary folder, and each is read once through, in
batches:

- *blocks*: ``pipeline.stores.Reader`` on arrays of many images;
- *images*: the same reader on a store of one PNG file an image;
- *one at a time*: webdataset's own pipeline on that store, decoding image by image and stacking them, as one reads such
  a store at first.

Each repetition opens its store anew, so nothing is cached in the process, and checks of SHA-256 are part of the
reader's time; the files themselves lie in the operating system's cache. Reading is on the CPU whatever the device: with
a GPU there, the reader's batches are pinned.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import webdataset

from benchmarks import machine, options
from pipeline.stores import Reader, open_store, write_store

__all__ = ["RandomImages", "main"]


class RandomImages:
    """A source of images (H, W, 3): coarse patches of colour with a little noise, which PNG packs about as photographs.

    Args:
        count: How many.
        resolution: Pixels on a side, a multiple of 4.
        seed: Of all the images.
    """

    kind = "random"
    url = None
    split = None
    labels = None

    def __init__(self, count: int, resolution: int, seed: int) -> None:
        self._count = count
        self._resolution = resolution
        self._seed = seed

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        """The image's number."""
        return f"image {index}"

    def read(self, index: int) -> tuple[np.ndarray, None]:
        """Pixels, uint8 (H, W, 3), and no label."""
        random = np.random.default_rng((self._seed, index))
        patches = random.integers(16, 240, (self._resolution // 4, self._resolution // 4, 3))
        noise = random.integers(-8, 9, (self._resolution, self._resolution, 3))
        return (patches.repeat(4, 0).repeat(4, 1) + noise).astype(np.uint8), None

    def close(self) -> None:
        """Nothing is held open."""


def read_with_reader(folder: Path, batch: int) -> Callable[[], object]:
    """Return what reads one epoch of a store by the pipeline's reader."""

    def read() -> None:
        reader = Reader(open_store(str(folder)), batch_size=batch)
        for _ in itertools.islice(reader, reader.batches_per_epoch):
            pass

    return read


def read_one_at_a_time(folder: Path, batch: int) -> Callable[[], object]:
    """Return what reads a store of PNG files once by webdataset, image by image."""
    shards = sorted(str(path) for path in folder.glob("*.tar"))

    def read() -> None:
        images = iter(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8").to_tuple("png"))
        while several := [image for (image,) in itertools.islice(images, batch)]:
            torch.from_numpy(np.stack(several).transpose(0, 3, 1, 2).copy())

    return read


def _arguments() -> argparse.Namespace:
    parser = options.parser(__doc__, repeat=5)
    parser.add_argument("--images", type=options.positive, default=20_480, help="images in each store")
    parser.add_argument("--resolution", type=options.positive, default=32, help="pixels on a side, a multiple of 4")
    parser.add_argument("--batch", type=options.positive, default=128, help="images in a batch")
    return parser.parse_args()


def main() -> None:
    """Write the stores, read them, print, and write the JSON file."""
    arguments = _arguments()
    device = options.pick_device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        places = {encoding: Path(folder) / encoding for encoding in ("blocks", "images")}
        for encoding, place in places.items():
            source = RandomImages(arguments.images, arguments.resolution, arguments.seed)
            size = {"resolution": arguments.resolution, "channels": 3}
            write_store(source, str(place), encoding=encoding, num_processes=1, **size)
        works = {
            "images, one at a time": read_one_at_a_time(places["images"], arguments.batch),
            "images": read_with_reader(places["images"], arguments.batch),
            "blocks": read_with_reader(places["blocks"], arguments.batch),
        }
        seconds = machine.interleaved(works, torch.device("cpu"), arguments.repeat)
    rows = [
        {
            "store": name,
            "seconds": timing,
            "images/s": arguments.images / timing.median,
            "ratio": machine.ratio(seconds["images, one at a time"], timing),
        }
        for name, timing in seconds.items()
    ]
    print(machine.table(rows), end="\n\n")
    print(f"written: {machine.write(arguments.out, 'store', device, vars(arguments), rows)}")


if __name__ == "__main__":
    main()
