"""DICOM pictures, windowed to 8 bits by the file's own window."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_clip_domain._optional import require


def read_dicom(source: Any) -> np.ndarray:
    """The first frame of a DICOM file as uint8, `(h, w)` or `(h, w, 3)`.

    Stored values become physical ones by rescale slope and intercept, then the file's (first) window center and width
    map to 0-255; without a window the range of values does. MONOCHROME1, where low values are bright, is inverted.

    Source: DICOM PS3.3, C.11.2.1.2 (window center and width), and C.7.6.3.1.2 (photometric interpretation).

    Raises:
        ClipDomainError: pydicom is not installed.
    """
    pydicom = require("pydicom", extra="dicom")
    file = pydicom.dcmread(source)
    pixels = np.asarray(file.pixel_array)
    if int(getattr(file, "NumberOfFrames", 1) or 1) > 1:
        pixels = pixels[0]
    if int(file.get("SamplesPerPixel", 1)) == 3:
        if file.PhotometricInterpretation.startswith("YBR"):
            pixels = pydicom.pixels.convert_color_space(pixels, file.PhotometricInterpretation, "RGB")
        return pixels.astype(np.uint8)
    values = pixels.astype(np.float64) * float(file.get("RescaleSlope", 1)) + float(file.get("RescaleIntercept", 0))
    center, width = _first(file.get("WindowCenter")), _first(file.get("WindowWidth"))
    if center is not None and width is not None and width >= 1:
        # The standard's half-pixel offsets, so that a window of width 1 is a threshold.
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    else:
        low, high = values.min(), values.max()
    scaled = ((values - low) / max(high - low, 1e-9)).clip(0, 1)
    if file.get("PhotometricInterpretation") == "MONOCHROME1":
        scaled = 1 - scaled
    return (scaled * 255).round().astype(np.uint8)


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value if isinstance(value, (int, float, str)) else value[0] if hasattr(value, "__len__") else value)
