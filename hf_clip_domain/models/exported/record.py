"""`export.json`: what an exported folder holds, from what it was made, and the figures of the check it passed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hf_clip_domain.errors import ClipDomainError

EXPORT_FILE = "export.json"
FORMATS = ("onnx", "mlx", "safetensors")


@dataclass(frozen=True)
class ExportRecord:
    """What `export.json` holds.

    Attributes:
        format: one of `FORMATS`.
        precision: `"float32"` or `"int8"`.
        logit_scale, logit_bias: the model's own, as it stores them (the scale a logarithm); `logit_bias` is `None` for a
            model without one.
        quantization: how the weights were made int8, for the loader and for the reader.
        source: the model that was exported: Hub id, name of a folder, or `"starter"`.
        source_revision: its commit on the Hub, else `"sha256:..."` of its weights.
        check: the figures of `sharing.export.check.Parity`.
        files: bytes of every file of the model.
        versions: of the libraries that wrote it.
    """

    format: str
    precision: str
    logit_scale: float
    logit_bias: float | None = None
    quantization: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    source_revision: str = ""
    check: dict[str, Any] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        (folder / EXPORT_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def find_record(name_or_path: str | Path) -> ExportRecord | None:
    """The record of an exported folder; `None` for anything else.

    Raises:
        ClipDomainError: `export.json` is damaged, of an unknown format, or names files that are not whole.
    """
    folder = Path(name_or_path).expanduser()
    file = folder / EXPORT_FILE
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        known = {name.name for name in fields(ExportRecord)}
        record = ExportRecord(**{name: value for name, value in values.items() if name in known})
    except (ValueError, TypeError, AttributeError) as error:
        raise ClipDomainError(f"{file} is damaged ({error}): export the model again.") from error
    if record.format not in FORMATS:
        raise ClipDomainError(f"{file} names the format {record.format!r}; expected one of {', '.join(FORMATS)}.")
    for name, size in record.files.items():
        there = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if there != size:
            raise ClipDomainError(f"{folder / name} has {there:,} bytes of {size:,}: copy it again.")
    return record
