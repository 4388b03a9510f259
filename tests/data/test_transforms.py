"""Pictures to tensors: what must stay visible, what may change, and that chance can be repeated."""

import dataclasses
import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from hf_clip_domain.data.contrast import equalise_locally, stretch_window
from hf_clip_domain.data.transforms import ImageTransform
from hf_clip_domain.domains import AugmentPolicy, Domain, ImagePolicy, available_domains, load_domain
from hf_clip_domain.errors import ClipDomainError

PLAIN = (0.0,) * 3, (1.0,) * 3


def transform(image=None, augment=None, size=32):
    domain = Domain(name="test", image=image or ImagePolicy(), augment=augment or AugmentPolicy(crop_scale=(1.0, 1.0)))
    return ImageTransform(domain, size, *PLAIN)


def four_corners(width, height):
    """Grey, with a corner each in red, green, blue and yellow."""
    pixels = np.full((height, width, 3), 120, dtype=np.uint8)
    side = min(width, height) // 4
    pixels[:side, :side] = (255, 0, 0)
    pixels[:side, -side:] = (0, 255, 0)
    pixels[-side:, :side] = (0, 0, 255)
    pixels[-side:, -side:] = (255, 255, 0)
    return Image.fromarray(pixels)


def sees(pixels, colour):
    """Whether a `(3, h, w)` tensor has a pixel near the colour."""
    return bool(((pixels - torch.tensor(colour).view(3, 1, 1)).abs().amax(0) < 0.2).any())


CORNERS = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0)]


def half_and_half(size=64):
    """White on the left, black on the right."""
    pixels = np.zeros((size, size, 3), dtype=np.uint8)
    pixels[:, : size // 2] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("width", "height"), [(200, 90), (90, 200), (100, 100), (400, 40)])
def test_padding_keeps_all_corners_visible(width, height):
    pixels = transform(ImagePolicy(square="pad")).evaluation(four_corners(width, height))
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.float32
    assert all(sees(pixels, colour) for colour in CORNERS)


def test_cropping_fills_the_square_with_the_middle():
    pixels = transform(ImagePolicy(square="crop")).evaluation(four_corners(300, 100))
    assert torch.allclose(pixels, torch.full_like(pixels, 120 / 255), atol=0.02)


@pytest.mark.parametrize(("fill", "value"), [("white", 1.0), ("black", 0.0), ("grey", 128 / 255), ("edge", 60 / 255)])
def test_fill(fill, value):
    picture = Image.new("RGB", (80, 20), (60, 60, 60))
    pixels = transform(ImagePolicy(square="pad", fill=fill)).evaluation(picture)
    assert torch.allclose(pixels[:, 0], torch.full_like(pixels[:, 0], value), atol=0.01)
    assert torch.allclose(pixels[:, 16], torch.full_like(pixels[:, 16], 60 / 255), atol=0.01)


def test_edge_fill_is_the_paper_of_a_framed_chart():
    pixels = np.full((100, 300, 3), 250, dtype=np.uint8)
    pixels[[0, -1]] = 0  # a frame of one pixel
    pixels[:30, 100:150] = (200, 30, 30)  # a label that touches the edge
    padded = transform(ImagePolicy(square="pad"), size=96).evaluation(Image.fromarray(pixels))
    assert torch.allclose(padded[:, 0], torch.full_like(padded[:, 0], 250 / 255), atol=0.03)


def test_auto_shows_figures_whole_and_crops_photographs():
    auto = transform(ImagePolicy(square="auto"))
    chart = np.full((100, 300, 3), 255, dtype=np.uint8)
    chart[40:60, 20:40] = (255, 0, 0)
    assert sees(auto.evaluation(Image.fromarray(chart)), (1.0, 0.0, 0.0))
    photograph = np.random.default_rng(0).integers(0, 200, (100, 300, 3), dtype=np.uint8)
    photograph[:, :20] = (255, 0, 0)
    assert not sees(auto.evaluation(Image.fromarray(photograph)), (1.0, 0.0, 0.0))


def test_auto_never_mirrors_a_figure():
    augment = AugmentPolicy(mirror="unless_sided")
    chart = np.full((64, 64, 3), 255, dtype=np.uint8)
    chart[20:44, 10:20] = 0
    for seed in range(30):
        pixels = transform(ImagePolicy(square="auto"), augment).training(chart, np.random.default_rng(seed), "Sales.")
        assert pixels[:, :, :16].mean() < pixels[:, :, 16:].mean()


def mirrored_seeds(caption, mirror, seeds=200):
    augment = AugmentPolicy(crop_scale=(1.0, 1.0), mirror=mirror)
    tool, picture = transform(augment=augment), half_and_half()
    views = [tool.training(picture, np.random.default_rng(seed), caption=caption) for seed in range(seeds)]
    return sum(bool(view[:, :, 0].mean() < view[:, :, -1].mean()) for view in views)


def test_mirror_never_with_a_side_in_the_caption_and_half_the_time_without():
    assert mirrored_seeds("A shadow on the left of the lung.", "unless_sided") == 0
    assert 70 < mirrored_seeds("A shadow.", "unless_sided") < 130
    assert mirrored_seeds("A shadow.", "never") == 0
    assert 70 < mirrored_seeds("A shadow on the left.", "always") < 130


def test_quarter_turns_only_without_a_place_in_the_caption():
    augment = AugmentPolicy(crop_scale=(1.0, 1.0), quarter_turns="unless_placed")
    tool, picture = transform(augment=augment), half_and_half()

    def bright_sides(caption):
        views = [tool.training(picture, np.random.default_rng(seed), caption) for seed in range(100)]
        edges = [(v[:, 0].mean(), v[:, -1].mean(), v[:, :, 0].mean(), v[:, :, -1].mean()) for v in views]
        return {max(range(4), key=lambda side, edge=edge: edge[side]) for edge in edges}

    assert bright_sides("A scratch.") == {0, 1, 2, 3}
    assert bright_sides("A scratch in the upper part.") == {2}


@pytest.mark.parametrize("name", available_domains())
def test_training_views_repeat_by_seed_and_differ_between_seeds(name):
    tool = ImageTransform(load_domain(name), 32, (0.5,) * 3, (0.5,) * 3)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 80, 3), dtype=np.uint8))
    first, again, other = (tool.training(picture, np.random.default_rng(seed), "A cell.") for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (3, 32, 32) and torch.isfinite(first).all()
    assert torch.equal(tool.evaluation(picture), tool.evaluation(picture))


def test_views_larger_than_the_picture_show_all_of_it():
    tool = transform(augment=AugmentPolicy(crop_scale=(1.0, 1.3)), size=64)
    for seed in range(30):
        pixels = tool.training(four_corners(160, 80), np.random.default_rng(seed))
        assert all(sees(pixels, colour) for colour in CORNERS), seed


def test_a_whole_view_without_changes_is_the_evaluation_view():
    picture = four_corners(64, 64)
    tool = transform()
    assert torch.equal(tool.training(picture, np.random.default_rng(0)), tool.evaluation(picture))


def test_colours_keep_grey_grey_and_the_mean_of_contrast():
    augment = AugmentPolicy(crop_scale=(1.0, 1.0), saturation=0.5, hue=0.5, contrast=0.3)
    tool = transform(augment=augment)
    grey = Image.fromarray(np.random.default_rng(0).integers(90, 160, (40, 40), dtype=np.uint8)).convert("RGB")
    view = tool.training(grey, np.random.default_rng(5))
    assert (view.amax(0) - view.amin(0)).max() < 1e-3
    assert view.mean().item() == pytest.approx(tool.evaluation(grey).mean().item(), abs=1e-3)


def test_hue_turns_colours_only_where_allowed():
    red = Image.new("RGB", (40, 40), (200, 40, 40))
    still = transform(augment=AugmentPolicy(crop_scale=(1.0, 1.0)))
    turned = transform(augment=AugmentPolicy(crop_scale=(1.0, 1.0), hue=0.5))
    assert torch.equal(still.training(red, np.random.default_rng(0)), still.evaluation(red))
    assert not torch.allclose(turned.training(red, np.random.default_rng(0)), turned.evaluation(red), atol=0.1)


def test_normalisation_and_pickling():
    tool = ImageTransform(load_domain("medical"), 32, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    white = Image.new("RGB", (10, 10), (255, 255, 255))
    expected = (1 - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor([0.2, 0.3, 0.4])
    assert torch.allclose(pickle.loads(pickle.dumps(tool)).evaluation(white)[:, 5, 5], expected)


def test_a_very_thin_picture_keeps_a_line():
    pixels = transform(ImagePolicy(square="pad", fill="black")).evaluation(Image.new("RGB", (900, 2), (255, 255, 255)))
    assert pixels.amax() > 0.9


def test_large_jpeg_by_draft_equals_the_plain_way():
    gradient = np.linspace(0, 255, 1600).astype(np.uint8)
    picture = Image.fromarray(np.repeat(np.tile(gradient, (1200, 1))[..., None], 3, axis=-1))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    tool = transform(size=64)
    drafted, plain = tool.evaluation({"bytes": buffer.getvalue(), "path": None}), tool.evaluation(picture)
    assert (drafted - plain).abs().mean() < 0.01


def test_damaged_picture_is_a_clear_error():
    with pytest.raises(ClipDomainError):
        transform().evaluation({"bytes": b"no picture", "path": None})


def test_clahe_raises_local_contrast_and_leaves_flat_pictures_alone():
    rng = np.random.default_rng(0)
    faint = np.repeat(rng.integers(100, 110, (64, 64, 1)), 3, axis=-1).astype(np.uint8)
    assert equalise_locally(faint, 4.0, 4).std() > 2 * faint.std()
    flat = np.full((64, 64, 3), 100, dtype=np.uint8)
    assert np.ptp(equalise_locally(flat, 2.0, 4)) == 0


def test_clahe_of_an_even_histogram_changes_nothing_much():
    even = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    picture = np.repeat(even[..., None], 3, axis=-1)
    assert np.abs(equalise_locally(picture, 40.0, 1).astype(int) - picture).max() <= 1


def test_clahe_leaves_no_edges_between_tiles():
    ramp = np.repeat(np.tile(np.linspace(60, 120, 128).astype(np.uint8), (128, 1))[..., None], 3, axis=-1)
    row = equalise_locally(ramp, 2.0, 4)[64, :, 0].astype(int)
    assert np.abs(np.diff(row)).max() <= 8


def test_clahe_works_on_tiny_pictures():
    assert equalise_locally(np.zeros((3, 5, 3), dtype=np.uint8), 2.0, 8).shape == (3, 5, 3)


def test_window_stretches_and_grey_drops_colour():
    faint = np.repeat(np.linspace(100, 120, 64).astype(np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=-1)
    stretched = stretch_window(faint, 0, 100)
    assert stretched.min() == 0 and stretched.max() == 255
    policy = dataclasses.replace(ImagePolicy(), grey=True, window=(1.0, 99.0), clahe_clip=2.0)
    pixels = transform(policy).evaluation(four_corners(64, 64))
    assert torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[1], pixels[2])
