"""Every form a picture can come in, made for real and read back."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from hf_clip_domain.data.images import check_image, decode_image
from hf_clip_domain.data.loading import load_pairs
from hf_clip_domain.errors import ClipDomainError


def gradient(width=64, height=48):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 128)], -1).astype(np.uint8)


def close(image, expected, tolerance=12):
    return np.abs(np.asarray(image, float) - np.asarray(expected, float)).mean() < tolerance


@pytest.mark.parametrize("form", ["path", "string", "bytes", "pil", "array", "floats", "row", "row of bytes"])
def test_every_form_gives_the_same_picture(tmp_path, form):
    pixels = gradient()
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    forms = {
        "path": path,
        "string": str(path),
        "bytes": path.read_bytes(),
        "pil": Image.open(path),
        "array": pixels,
        "floats": pixels / 255.0,
        "row": {"bytes": None, "path": str(path)},
        "row of bytes": {"bytes": path.read_bytes(), "path": "elsewhere.png"},
    }
    image = decode_image(forms[form])
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), pixels)


def test_a_draft_is_smaller_but_not_smaller_than_asked(tmp_path):
    pixels = gradient(1600, 1200)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    draft = decode_image(tmp_path / "photo.jpg", draft_size=224)
    assert 224 <= min(draft.size) < 1200
    assert close(draft, Image.fromarray(pixels).resize(draft.size))


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise to see it so
    Image.fromarray(gradient()).save(tmp_path / "turned.jpg", exif=exif)
    assert close(decode_image(tmp_path / "turned.jpg"), np.rot90(gradient(), -1))


def test_cmyk_jpeg(tmp_path):
    Image.fromarray(gradient()).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert close(decode_image(tmp_path / "print.jpg"), gradient())


@pytest.mark.parametrize("bits", [12, 16])
def test_sixteen_bit_png_is_scaled_not_clipped(tmp_path, bits):
    ramp = np.linspace(0, 2**bits - 1, 256 * 4).reshape(4, 256).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    found = np.asarray(decode_image(tmp_path / "deep.png"))[..., 0]
    expected = (ramp / (2**bits - 1) * 255).round()
    assert np.abs(found - expected).max() <= 1 and len(np.unique(found)) > 200


def test_animated_gif_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert decode_image(tmp_path / "moving.gif").getpixel((3, 3)) == (255, 0, 0)


def test_transparency_is_laid_on_white(tmp_path):
    picture = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    picture.putpixel((1, 1), (10, 20, 30, 255))
    picture.save(tmp_path / "clear.png")
    palette = picture.convert("P")
    palette.info["transparency"] = palette.getpixel((5, 5))
    palette.save(tmp_path / "palette.png")
    assert decode_image(tmp_path / "clear.png").getpixel((5, 5)) == (255, 255, 255)
    assert decode_image(tmp_path / "clear.png").getpixel((1, 1)) == (10, 20, 30)
    assert decode_image(tmp_path / "palette.png").getpixel((5, 5)) == (255, 255, 255)


def huge_png(width, height):
    """A valid PNG of one colour whose pixels would fill memory: 1 bit each, compressed to a few kilobytes."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    compressor = zlib.compressobj(9)
    row = b"\0" + b"\0" * ((width + 7) // 8)
    data = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_an_absurdly_large_picture_is_refused_from_its_header_and_quarantined(tmp_path):
    (tmp_path / "huge.png").write_bytes(huge_png(20_000, 20_000))
    with pytest.raises(ClipDomainError, match="huge.png.*(20,000 x 20,000|megapixels)"):
        decode_image(tmp_path / "huge.png")
    rows = [{"image": "huge.png", "text": "a"}]
    for index in range(30):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"{index}.png")
        rows.append({"image": f"{index}.png", "text": f"number {index}"})
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = load_pairs(tmp_path / "pairs.jsonl", quarantine_file=tmp_path / "quarantine.jsonl")
    assert sum(map(len, splits.values())) == 30
    entry = json.loads((tmp_path / "quarantine.jsonl").read_text())
    assert entry["row"] == 0 and entry["file"].endswith("huge.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_damage_is_one_sentence(tmp_path, kind):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, kind)
    content = buffer.getvalue()
    path = tmp_path / f"cut.{kind.lower()}"
    for end in (3, 20, len(content) // 2, len(content) * 9 // 10):
        path.write_bytes(content[:end])
        with pytest.raises(ClipDomainError, match="cut"):
            decode_image(path)


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"no picture at all",
        3,
        None,
        np.zeros((3,)),
        np.zeros((4, 4, 2), np.uint8),
        np.full((4, 4), 2.0),
        np.full((4, 4), np.nan),
        np.zeros((4, 4), np.int64),
        {"bytes": None, "path": None},
    ],
)
def test_what_is_no_picture_is_refused(image):
    with pytest.raises(ClipDomainError):
        decode_image(image)


def test_a_draft_leaves_the_callers_picture_alone(tmp_path):
    Image.fromarray(gradient(800, 600)).save(tmp_path / "photo.jpg")
    picture = Image.open(tmp_path / "photo.jpg")
    decode_image(picture, draft_size=32)
    assert picture.size == (800, 600)


@pytest.mark.parametrize(("mode", "colour"), [("RGB", (0, 0, 0)), ("L", 0)])
def test_a_transparent_colour_without_alpha_is_white(tmp_path, mode, colour):
    Image.new(mode, (9, 9), colour).save(tmp_path / "clear.png", transparency=colour)
    assert decode_image(tmp_path / "clear.png").getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("progressive", [False, True])
def test_the_check_finds_every_cut_jpeg_that_decoding_would(progressive):
    buffer = io.BytesIO()
    Image.fromarray(gradient(640, 480)).save(buffer, "JPEG", progressive=progressive)
    content = buffer.getvalue()
    check_image(content)
    for end in (-1, -10, len(content) // 2, len(content) // 10):
        with pytest.raises(ClipDomainError):
            check_image(content[:end])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_random_damage_raises_nothing_else(kind):
    random = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(gradient()).save(buffer, kind)
    for _ in range(150):
        content = bytearray(buffer.getvalue())
        for place in random.integers(0, len(content), 6):
            content[place] = random.integers(256)
        try:
            assert decode_image(bytes(content)).mode == "RGB"
        except ClipDomainError:
            pass


def test_a_folder_is_called_a_folder(tmp_path):
    with pytest.raises(ClipDomainError, match="[Dd]irectory"):
        decode_image(tmp_path)


def test_signed_values_keep_their_order_and_stray_nans_do_not_blacken_a_picture(tmp_path):
    ramp = np.linspace(-1000, 3000, 256).astype(np.int32).reshape(1, 256)
    Image.fromarray(ramp).save(tmp_path / "hounsfield.tif")
    grey = np.asarray(decode_image(tmp_path / "hounsfield.tif").convert("L"), int)[0]
    assert grey[0] == 0 and grey[-1] == 255 and (np.diff(grey) >= 0).all()

    floats = np.linspace(0, 1, 256, dtype=np.float32).reshape(1, 256).copy()
    floats[0, 0] = np.nan
    Image.fromarray(floats).save(tmp_path / "stray.tif")
    assert np.asarray(decode_image(tmp_path / "stray.tif").convert("L"))[0, -1] == 255

    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "nothing.tif")
    with pytest.raises(ClipDomainError, match="nothing.tif.*finite"):
        decode_image(tmp_path / "nothing.tif")
