"""From whatever holds a picture to an upright RGB picture of 8 bits."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from hf_clip_domain.errors import ClipDomainError

# Larger than any camera's picture, and far below what fills a laptop's memory when decoded (192 MiB).
MAX_PIXELS = 64_000_000
_DICOM_SUFFIXES = (".dcm", ".dicom")
# Pillow's parsers let all of these escape on damaged files.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)

# What each EXIF orientation asks for, and how a place in the picture moves: whether width and height change places, and
# whether left and right, and upper and lower, do so afterwards.
_ORIENTATIONS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, False, True, False),
    3: (Image.Transpose.ROTATE_180, False, True, True),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, False, False, True),
    5: (Image.Transpose.TRANSPOSE, True, False, False),
    6: (Image.Transpose.ROTATE_270, True, True, False),
    7: (Image.Transpose.TRANSVERSE, True, True, True),
    8: (Image.Transpose.ROTATE_90, True, False, True),
}

Box = tuple[float, float, float, float]  # left, upper, right, lower in pixels of the picture


class Decoded(NamedTuple):
    """A picture as `decode_draft` gives it.

    A JPEG decoded at a fraction of its scale is rounded up to whole pixels: the last of a row or column may show
    the file's padding in part. `extent` is where the picture itself lies, `(0, 0, width, height)` for all others.
    """

    picture: Image.Image  # upright, RGB or L, to be left unchanged: it may be the caller's own
    extent: Box


def decode_image(image: Any, *, draft_size: int | None = None) -> Image.Image:
    """An RGB picture, upright by its EXIF tag, from any of the forms a row can hold.

    16-bit grey is scaled to 8 bits (not clipped), CMYK converted, transparency laid on white, an animation gives its
    first frame, and a DICOM file is windowed by its own values.

    Args:
        image: a path, bytes, a row `{"bytes", "path"}`, a `PIL.Image`, or an array `(h, w)` or `(h, w, 3)` of uint8,
            or of floats from 0 to 1.
        draft_size: for JPEG, decode at a reduced scale whose sides are at least this many pixels: much faster for
            photographs when a small picture is all that is needed. A `PIL.Image` is left as it is.

    Raises:
        ClipDomainError: no picture, a damaged one, or more than `MAX_PIXELS`; names the file.
    """
    return decode_draft(image, draft_size).picture.convert("RGB")


def decode_draft(image: Any, draft_size: int | None) -> Decoded:
    """The same without the last copy, and grey pictures stay grey (mode L): they take a third of the work to resize.

    Arguments and errors as for `decode_image`.
    """
    name = _name(image)
    try:
        opened = _open(image)
        _check_size(opened.size, name)
        extent = None
        if draft_size is not None and opened is not image:  # a draft would shrink the caller's own picture
            draft = opened.draft("RGB", (draft_size, draft_size))
            extent = draft and draft[1]
        opened.load()
        orientation = opened.getexif().get(ExifTags.Base.Orientation)
        return _upright(_to_8_bits(opened), extent or (0, 0, *opened.size), orientation)
    except ClipDomainError:
        raise
    except FileNotFoundError as error:
        raise ClipDomainError(f"{name}: no such file.") from error
    except UnidentifiedImageError as error:
        raise ClipDomainError(f"{name}: not a picture in a format that Pillow reads.") from error
    except Image.DecompressionBombError as error:
        raise ClipDomainError(f"{name}: more than {MAX_PIXELS // 1_000_000} megapixels.") from error
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ClipDomainError(f"{name}: {error.strerror}.") from error
        raise ClipDomainError(f"{name}: damaged or truncated picture ({error}).") from error


def check_image(image: Any) -> None:
    """Raise `ClipDomainError` when `decode_image` would; cheap for JPEG, which is decoded at an eighth of its size."""
    decode_image(image, draft_size=1)


def _name(image: Any) -> str:
    if isinstance(image, dict):
        image = image.get("path") or image.get("bytes")
    if isinstance(image, (str, os.PathLike)):
        return str(image)
    return f"a picture of {len(image):,} bytes" if isinstance(image, bytes) else f"a {type(image).__name__}"


def _open(image: Any) -> Image.Image:
    named_dicom = False
    if isinstance(image, dict):
        # Copied rows keep their bytes; a path alone is read when needed.
        named_dicom = Path(image.get("path") or "").suffix.lower() in _DICOM_SUFFIXES
        image = image["bytes"] if image.get("bytes") is not None else image.get("path")
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, bytes):
        if len(image) == 0:
            raise ClipDomainError("an empty picture (0 bytes).")
        if _is_dicom(image[:132]) or named_dicom:
            return _from_dicom(io.BytesIO(image), "a DICOM picture")
        return Image.open(io.BytesIO(image))
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        with open(path, "rb") as stream:
            head = stream.read(132)
        if _is_dicom(head) or path.suffix.lower() in _DICOM_SUFFIXES:
            return _from_dicom(path, str(path))
        return Image.open(path)
    raise ClipDomainError(f"expected a picture (path, bytes, PIL image or array), found {type(image).__name__}.")


def _is_dicom(head: bytes) -> bool:
    return head[128:132] == b"DICM"


def _from_dicom(source: Any, name: str) -> Image.Image:
    from hf_clip_domain.data.dicom import read_dicom

    return Image.fromarray(read_dicom(source, check_size=lambda size: _check_size(size, name)))


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ClipDomainError(
            f"an array of shape {array.shape} is no picture: expected (h, w), (h, w, 3) or (h, w, 4)."
        )
    if array.dtype == np.uint16:
        array = array // 257
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ClipDomainError("an array of floats must hold values from 0 to 1.")
        array = (array * 255).round()
    elif array.dtype == bool:
        array = array * 255
    elif array.dtype != np.uint8:
        raise ClipDomainError(f"an array of {array.dtype} is no picture: expected uint8, or floats from 0 to 1.")
    return Image.fromarray(np.ascontiguousarray(array.astype(np.uint8)))


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ClipDomainError(
            f"{name}: {width:,} x {height:,} pixels; more than {MAX_PIXELS // 1_000_000} megapixels is refused."
        )
    if width == 0 or height == 0:
        raise ClipDomainError(f"{name}: {width} x {height} pixels.")


def _upright(image: Image.Image, extent: Box, orientation: Any) -> Decoded:
    if orientation not in _ORIENTATIONS:
        return Decoded(image, extent)
    method, swapped, turned_over, upside_down = _ORIENTATIONS[orientation]
    image = image.transpose(method)
    image.info = {}  # its EXIF would turn the picture once more if it were decoded again
    left, upper, right, lower = (extent[place] for place in ((1, 0, 3, 2) if swapped else (0, 1, 2, 3)))
    if turned_over:
        left, right = image.width - right, image.width - left
    if upside_down:
        upper, lower = image.height - lower, image.height - upper
    return Decoded(image, (left, upper, right, lower))


def _to_8_bits(image: Image.Image) -> Image.Image:
    """As RGB, or L if there is no colour; the picture itself if it is either."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_scaled_to_8_bits(np.asarray(image), image.mode))
    if image.mode == "PA" or (image.mode in ("1", "L", "P", "RGB") and "transparency" in image.info):
        image = image.convert("RGBA")
    if image.mode in ("RGBA", "LA", "La", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("RGB", "L") else image.convert("RGB")


def _scaled_to_8_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Sixteen bits by their full range; a file whose values fill only 12 or 14 of them by that many bits.

    Signed values, such as Hounsfield units, have no agreed white: they are stretched from their least to their largest.
    """
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("not a single finite value")
    low, high = values[finite].min(), values[finite].max()
    if low < 0:
        full = high - low or 1
    elif mode == "F" and high <= 1:
        low, full = 0, 1
    else:
        low, full = 0, next((2**bits - 1 for bits in (8, 10, 12, 14, 16) if high <= 2**bits - 1), high)
    values[~finite] = low
    return ((values - low) / full * 255).round().astype(np.uint8)
