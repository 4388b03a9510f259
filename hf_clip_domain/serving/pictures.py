"""Pictures as requests bring them: from base64 or a data URI to bytes that are what they claim, and safe to decode.

Nothing is decoded here: the header tells format and size, and what is too large, too thin or of two kinds at once is
refused before any memory is spent on it.
"""

from __future__ import annotations

import base64
import binascii
import io
import re

from PIL import Image

from hf_clip_domain.serving.errors import RequestError
from hf_clip_domain.serving.settings import Settings

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
_DATA_URI = re.compile(r"data:(image/[a-z0-9.+-]+)?(;charset=[a-z0-9-]+)?;base64,", re.IGNORECASE)
# A picture whose longer side is so many times the shorter one: the resize of its shorter side would be a bomb.
_THINNEST = 100
_SMALLEST = 4  # pixels a side; less shows nothing
_SCANS = 100  # of a progressive JPEG; cameras and encoders write about ten, and each costs a whole pass


def is_address(image: str | bytes) -> bool:
    """Whether an image of a request says where it is instead of what it is."""
    return isinstance(image, str) and image[:8].lower().startswith(("http://", "https://"))


def read_base64(text: str, settings: Settings) -> bytes:
    """The bytes of base64 or of a data URI.

    Raises:
        RequestError: neither, or too large.
    """
    if text[:5].lower() == "data:":
        head = _DATA_URI.match(text[:100])
        if head is None:
            raise RequestError(
                415, "A data URI must hold a picture in base64: data:image/png;base64,...", code="bad_data_uri"
            )
        text = text[head.end() :]
    if len(text) > settings.max_image * 4 // 3 + 4:
        raise _too_many_bytes(settings)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: not ASCII
        raise RequestError(400, "The picture is not valid base64.", code="bad_base64") from error


def check_picture(data: bytes, settings: Settings) -> tuple[int, int]:
    """Height and width; refuses what is no picture, too large, or made to harm.

    Raises:
        RequestError: 400 damaged, 413 too large, 415 not one of `FORMATS`.
    """
    if not data:
        raise RequestError(400, "The picture is empty (0 bytes).", code="empty_picture")
    if len(data) > settings.max_image:
        raise _too_many_bytes(settings)
    kind = sniff(data)
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as opened:
            width, height = opened.size
    except Exception as error:  # Pillow's parsers raise of every kind on damaged files
        raise RequestError(400, f"The picture is a damaged {kind} file.", code="damaged_picture") from error
    if width * height > settings.max_pixels:
        raise RequestError(
            413,
            f"The picture has {width:,} x {height:,} pixels; at most {settings.max_pixels:,} are taken.",
            code="too_many_pixels",
        )
    if min(width, height) < _SMALLEST or max(width, height) > _THINNEST * min(width, height):
        raise RequestError(
            400,
            f"The picture has {width:,} x {height:,} pixels; expected at least {_SMALLEST} a side, and no side more than "
            f"{_THINNEST} times the other.",
            code="picture_shape",
        )
    if kind == "JPEG" and data.count(b"\xff\xda") > _SCANS:
        raise RequestError(400, f"The JPEG file has more than {_SCANS} scans.", code="too_many_scans")
    return height, width


def sniff(data: bytes) -> str:
    """The format by the first bytes, whatever a name or a header says.

    Raises:
        RequestError: 415, none of `FORMATS`, or a DICOM file behind another's first bytes.
    """
    found = next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        found = "WEBP"
    if found is None or data[128:132] == b"DICM":
        raise RequestError(415, f"The file is no picture: expected {', '.join(FORMATS)}.", code="unsupported_picture")
    return found


def _too_many_bytes(settings: Settings) -> RequestError:
    return RequestError(
        413, f"The picture is larger than the {settings.max_image:,} bytes that are taken.", code="picture_too_large"
    )
