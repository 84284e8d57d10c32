"""Figures: the right pixels in the right places, the right curves with the right names."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gebm import PartitionEstimate
from pipeline.config.scores import ChainPoint
from pipeline.evaluation.plots.curves import chain_curve, log_partition
from pipeline.evaluation.plots.image_grids import animation, grid, png, side_by_side

GAP, TITLE = 2, 28


def random_images(num: int, channels: int = 3, height: int = 8, width: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, channels, height, width), dtype=torch.uint8, generator=generator)


@settings(deadline=None, max_examples=60)
@given(
    num=st.integers(1, 13),
    columns=st.integers(1, 6),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    scale=st.integers(1, 4),
)
def test_every_pixel_of_a_grid_is_where_it_belongs(
    num: int, columns: int, channels: int, height: int, width: int, scale: int
) -> None:
    images = random_images(num, channels, height, width)
    picture = np.asarray(grid(images, columns, scale)).copy()
    columns = min(columns, num)
    rows = math.ceil(num / columns)
    step_y, step_x = height * scale + GAP, width * scale + GAP
    assert picture.shape == (rows * step_y - GAP, columns * step_x - GAP, 3)
    for i in range(num):
        y, x = i // columns * step_y, i % columns * step_x
        for dy in range(scale):
            for dx in range(scale):
                cell = picture[y + dy : y + height * scale : scale, x + dx : x + width * scale : scale]
                assert (cell == images[i].permute(1, 2, 0).numpy()).all()
        picture[y : y + height * scale, x : x + width * scale] = 255
    assert (picture == 255).all(), "what is no image is white"


@pytest.mark.parametrize("size", [4, 8, 28, 32, 64, 128])
def test_small_images_are_enlarged_to_be_read(size: int) -> None:
    picture = grid(random_images(1, 3, size, size), columns=1)
    assert max(48, size) <= picture.width < max(2 * 48, size + 1) and picture.width % size == 0


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 8, 8), random_images(2, 2), random_images(2)[:0], random_images(2)[0]]
)
def test_what_is_no_set_of_images_is_refused(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="uint8 images"):
        grid(images, columns=2)


def test_side_by_side_has_the_base_on_the_left() -> None:
    base, gebm = random_images(8, 1, seed=0), random_images(8, 1, seed=1)
    picture = np.asarray(side_by_side(base, gebm, columns=4))
    left, right = np.asarray(grid(base, 4)), np.asarray(grid(gebm, 4))
    width = left.shape[1]
    assert (picture[TITLE:, :width] == left).all()
    assert (picture[TITLE:, width + 24 : 2 * width + 24] == right).all()
    assert (picture[:TITLE, :width] < 128).any() and (picture[:TITLE, width + 24 :] < 128).any(), "both have a title"
    with pytest.raises(ValueError, match="same latents"):
        side_by_side(base, gebm[:4])


def test_a_title_wider_than_its_grid_is_not_cut() -> None:
    one = random_images(1)
    picture = np.asarray(side_by_side(one, one, columns=1))
    assert (picture[:, -GAP:][:TITLE] == 255).all(), "the text ends before the edge"
    assert picture.shape[1] > 48 + 24 + 48


def test_an_animation_has_a_frame_for_each_step_and_every_pixel() -> None:
    frames = [random_images(6, 1, seed=seed) for seed in range(4)]  # a GIF has 256 colors, all greys among them
    frames[2] = frames[1]  # a chain that stood still is still shown at each of its steps
    file = io.BytesIO()
    animation(frames, [0, 10, 20, 1000], file, columns=3)
    movie = Image.open(file)
    assert movie.n_frames == 4 and movie.format == "GIF"
    titles = []
    for i, frame in enumerate(frames):
        movie.seek(i)
        picture = np.asarray(movie.convert("RGB"))
        expected = np.asarray(grid(frame, 3))
        assert (picture[TITLE:, : expected.shape[1]] == expected).all()
        titles.append(picture[:TITLE].tobytes())
    assert len(set(titles)) == 4, "each frame names its step"
    with pytest.raises(ValueError, match="one step for each"):
        animation(frames, [0], io.BytesIO())


def test_the_curve_along_a_chain_names_what_it_shows() -> None:
    chain = {0: ChainPoint(5.0), 10: ChainPoint(3.0, 0.25), 20: ChainPoint(4.0, 0.5)}
    figure = chain_curve(chain, "FID (classifier-0a1b2c3d)")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "MCMC step" and axes.get_ylabel() == "FID (classifier-0a1b2c3d)"
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["base alone: 5", "GEBM, best 3 at step 10", "plus and minus two standard errors"]
    [band] = axes.collections
    assert {y for x, y in band.get_paths()[0].vertices if x == 20} == {3.0, 5.0}
    curve = next(line for line in axes.lines if len(line.get_xdata()) == 3)
    assert list(curve.get_ydata()) == [5.0, 3.0, 4.0]
    with pytest.raises(ValueError, match="a score at one step at least"):
        chain_curve({}, "FID (classifier-0a1b2c3d)")


def test_no_label_is_cut_off() -> None:
    """The outermost pixels of a figure are background: nothing runs over its edge."""
    for fids in ([400.0, 1e-3], [1e-7, 123_456.0]):
        chain = dict(zip((0, 1000), map(ChainPoint, fids), strict=True))
        figure = chain_curve(chain, "FID (classifier-0a1b2c3d)")
        pixels = np.asarray(Image.open(io.BytesIO(png(figure))).convert("RGB"))
        edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
        assert all((edge == 255).all() for edge in edges)


def test_the_curve_of_the_log_partition_ends_at_its_estimate() -> None:
    # So low that exp(-E) would be infinite.
    energies = 3 * torch.randn(500, generator=torch.Generator().manual_seed(0)) - 1000
    [axes] = log_partition(energies, trained=1.5).axes
    curve, trained = axes.get_lines()
    for count in (10, 200, 500):
        estimate = PartitionEstimate.of(-energies[:count])
        at = list(curve.get_xdata()).index(count)
        assert curve.get_ydata()[at] == pytest.approx(float(estimate.log_partition), rel=1e-9)
    [band] = axes.collections
    # The band's outline at the last sample is two standard errors away; ours divides by n - 1 as an estimate does.
    corners = [y for x, y in band.get_paths()[0].vertices if x == 500]
    assert max(corners) - min(corners) == pytest.approx(4 * float(estimate.standard_error), rel=1e-6)
    assert set(trained.get_ydata()) == {1.5}
    assert len(log_partition(energies[:2]).axes[0].get_lines()) == 1
