"""Our pixels beside those of transformers' own CLIP processor, and of a JPEG decoded in part beside one decoded whole."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hf_clip_domain.data import transforms
from hf_clip_domain.data.feature_store import open_store
from hf_clip_domain.data.ground import ground_share
from hf_clip_domain.data.images import decode_draft, decode_image
from hf_clip_domain.data.transforms import ImageTransform
from hf_clip_domain.domains import AugmentPolicy, Domain, ImagePolicy, available_domains, load_domain

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
EXIF_ORIENTATION = 0x0112


def photograph(width, height, seed=0):
    """Areas of plain colours with sharp outlines, and noise on every scale."""
    rng = np.random.default_rng(seed)

    def noise(side):
        grid = rng.standard_normal((max(2, side * height // width), side)).astype(np.float32)
        return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))

    areas = np.digitize(noise(7) + 0.5 * noise(23), (-0.7, 0, 0.7))
    texture = sum(noise(side) / (index + 1) for index, side in enumerate((12, 40, 150)))
    pixels = rng.uniform(30, 220, (4, 3))[areas] + 14 * texture[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encoded(picture, kind="JPEG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 92} if kind == "JPEG" else {}), **options)
    return buffer.getvalue()


def transform(square="crop", size=224, **augment):
    policies = {"image": ImagePolicy(square=square), "augment": AugmentPolicy(**augment)}
    return ImageTransform(Domain(name="test", **policies), size, MEAN, STD)


def difference(first, second):
    """Of two normalised pictures, in steps of 1/255: `(3, h, w)`."""
    return (first - second).abs() * torch.tensor(STD).view(3, 1, 1) * 255


def by_the_plain_processor(data):
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    return CLIPImageProcessorPil()(images=upright, return_tensors="pt")["pixel_values"][0]


SMALL = {
    "JPEG": lambda: encoded(photograph(420, 311)),
    "upright JPEG": lambda: encoded(photograph(311, 420)),
    "grey JPEG": lambda: encoded(photograph(420, 311).convert("L")),
    "CMYK JPEG": lambda: encoded(photograph(420, 311).convert("CMYK")),
    "PNG": lambda: encoded(photograph(420, 311), "PNG"),
    "tiny": lambda: encoded(photograph(40, 29)),
    "strip": lambda: encoded(photograph(900, 60)),
    "two to three": lambda: encoded(photograph(288, 191)),
    "just too small to be reduced": lambda: encoded(photograph(900, 671)),
}


@pytest.mark.parametrize("kind", SMALL)
def test_a_small_picture_is_the_plain_processors_but_for_rounding(kind):
    found = difference(transform().evaluation(SMALL[kind]()), by_the_plain_processor(SMALL[kind]()))
    assert found.mean() < 0.5 and found.max() < 9


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        ("RGB", (1600, 1200)),
        ("RGB", (1203, 902)),
        ("RGB", (1501, 2003)),
        ("RGB", (2700, 2690)),
        ("L", (1203, 902)),
        ("CMYK", (2003, 1501)),
    ],
)
def test_a_photograph_stays_within_two_steps_of_the_plain_processors(mode, size):
    data = encoded(photograph(*size).convert(mode))
    found = difference(transform().evaluation(data), by_the_plain_processor(data))
    assert found.mean() < 1 and found.max() < 20


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_shows_what_the_whole_one_does_whichever_way_it_lies(orientation):
    # Neither side is a multiple of the scale: the reduced picture ends in half a row and half a column of padding.
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    data = encoded(photograph(1437, 1413), exif=exif)
    whole = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    left, upper, right, lower = decode_draft(data, 336).extent
    assert (right - left, lower - upper) == (whole.width / 4, whole.height / 4)
    again = decode_image(decode_image(data))
    assert again.size == whole.size and np.abs(np.asarray(again, int) - np.asarray(whole, int)).max() == 0
    for square in ("crop", "pad"):
        tool = transform(square)
        found = difference(tool.evaluation(data), tool.evaluation(whole))
        assert found.mean() < 1 and found.max() < 20
    tool = transform(crop_scale=(0.6, 1.0), aspect=(0.9, 1.1))
    for seed in range(3):
        views = [tool.training(image, np.random.default_rng(seed)) for image in (data, whole)]
        found = difference(*views)
        assert found.mean() < 1 and found.max() < 20


@pytest.mark.parametrize("size", [(336, 336), (671, 2000), (673, 675), (1344, 1345), (5001, 400), (300, 4000)])
def test_a_reduced_jpeg_is_never_smaller_than_asked(size):
    picture, (left, upper, right, lower) = decode_draft(encoded(Image.new("RGB", size)), 336)
    reduced = picture.size != size
    assert (min(right - left, lower - upper) >= 336) if reduced else (min(size) < 672)
    assert picture.width - 1 < right - left <= picture.width and picture.height - 1 < lower - upper <= picture.height


@pytest.mark.parametrize("name", available_domains())
def test_grey_pictures_are_worked_on_in_grey_and_come_out_the_same(name):
    tool = ImageTransform(load_domain(name), 64, MEAN, STD)
    for size in ((200, 130), (90, 400)):
        grey = photograph(*size).convert("L")
        data = encoded(grey, "PNG")
        assert decode_draft(data, 96).picture.mode == "L" and decode_image(data).mode == "RGB"
        colour = grey.convert("RGB")
        assert torch.equal(tool.evaluation(data), tool.evaluation(colour))
        views = [tool.training(image, np.random.default_rng(3), "A cell.") for image in (data, colour)]
        assert torch.equal(*views)


def test_the_callers_picture_is_neither_changed_nor_handed_back():
    picture = photograph(90, 60)
    before = np.array(picture)
    decoded = decode_image(picture)
    decoded.paste((0, 0, 0), (0, 0, 90, 60))
    transform(size=32).evaluation(picture)
    assert np.array_equal(np.asarray(picture), before)


@pytest.mark.parametrize("size", [(300, 200), (64, 1000), (1, 1), (1, 500), (700, 2)])
def test_the_ground_is_judged_by_the_edges_of_the_small_picture(size):
    chart = np.full((size[1], size[0], 3), 250, dtype=np.uint8)
    chart[size[1] // 3 :, size[0] // 2 :] = (30, 60, 200)
    picture = Image.fromarray(chart)
    small = np.asarray(picture.resize((64, 64)))
    edge = np.concatenate([strip.reshape(-1, 3) for strip in (small[:4], small[-4:], small[:, :4], small[:, -4:])])
    _, counts = np.unique(edge // 16, axis=0, return_counts=True)
    assert ground_share(decode_draft(picture, 336)) == pytest.approx(counts.max() / len(edge), abs=0.02)


def test_features_kept_of_older_pixels_are_not_found(tmp_path, monkeypatch):
    def store():
        identity = {"pictures": repr(sorted(transform().settings.items()))}
        return open_store(tmp_path, identity, (2,), torch.float32, budget=2**20, rows=1)

    store().put([b"k" * 32], torch.ones(1, 2))
    assert b"k" * 32 in store()
    monkeypatch.setattr(transforms, "_VERSION", transforms._VERSION + 1)
    assert b"k" * 32 not in store()
