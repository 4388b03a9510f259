"""DICOM pictures, windowed to 8 bits by the file's own window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hf_clip_domain._optional import require
from hf_clip_domain.errors import ClipDomainError


def read_dicom(source: Any, *, check_size: Callable[[tuple[int, int]], None] = lambda size: None) -> np.ndarray:
    """The first frame of a DICOM file as uint8, `(h, w)` or `(h, w, 3)`.

    Stored values become physical ones by rescale slope and intercept, then the file's (first) window center and width
    map to 0-255; without a window the range of values does. MONOCHROME1, where low values are bright, is inverted.

    Source: DICOM PS3.3, C.11.2.1.2 (window center and width), and C.7.6.3.1.2 (photometric interpretation).

    Args:
        source: a path, or a binary stream.
        check_size: is told (width, height) by the header, before any pixel is decoded, and may raise.

    Raises:
        ClipDomainError: pydicom is not installed.
        ValueError: no DICOM picture, or a damaged one.
    """
    pydicom = require("pydicom", extra="dicom")
    try:
        # Files from before the standard's file format lack the preamble, and with it the transfer syntax.
        file = pydicom.dcmread(source, force=True)
        if "PixelData" not in file or not file.get("Rows") or not file.get("Columns"):
            raise ValueError("no DICOM picture")
        check_size((int(file.Columns), int(file.Rows)))
        if "TransferSyntaxUID" not in file.file_meta:
            file.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        return _to_8_bits(file, pydicom)
    except (ClipDomainError, ValueError):
        raise
    except Exception as error:  # pydicom and its decoders raise of every kind
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(reason[0]) from error


def _to_8_bits(file: Any, pydicom: Any) -> np.ndarray:
    pixels = pydicom.pixels.pixel_array(file, index=0)  # YBR comes as RGB
    kind = file.get("PhotometricInterpretation")
    if kind == "PALETTE COLOR":
        pixels = pydicom.pixels.apply_color_lut(pixels, file)  # (h, w, 3) of 8 or 16 bits
    if pixels.ndim == 3:
        bits = 8 * pixels.itemsize if kind == "PALETTE COLOR" else int(file.BitsStored)
        return (pixels.astype(np.int64) >> max(bits - 8, 0)).astype(np.uint8)
    values = pixels.astype(np.float64) * _first(file.get("RescaleSlope"), 1) + _first(file.get("RescaleIntercept"), 0)
    center, width = _first(file.get("WindowCenter")), _first(file.get("WindowWidth"))
    if center is not None and width is not None and width >= 1:
        # The standard's half-pixel offsets, so that a window of width 1 is a threshold.
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    else:
        low, high = values.min(), values.max()
    scaled = ((values - low) / max(high - low, 1e-9)).clip(0, 1)
    if kind == "MONOCHROME1":
        scaled = 1 - scaled
    return (scaled * 255).round().astype(np.uint8)


def _first(value: Any, default: float | None = None) -> float | None:
    """An element's first value; the default where it is absent or, as many writers leave it, empty."""
    if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue":
        value = value[0] if len(value) else None
    return default if value is None or value == "" else float(value)
