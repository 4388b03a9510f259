"""What there is to say of a dataset in figures: rows and splits, what was set aside, what stands twice, sizes, words."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_clip_domain.data.loading import load_pairs
from hf_clip_domain.data.rows import Rows
from hf_clip_domain.data.sources import open_source

MOST_LABELS = 20
MOST_REASONS = 5


@dataclass(frozen=True)
class Reading:
    """How a dataset is read; the defaults are those of a training run, so that the splits are the same.

    Attributes:
        image_column, text_column, label_column, group_column: names, where convention does not find them.
        validation_fraction, test_fraction: shares held out where the source does not say.
        seed: of the split.
    """

    image_column: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 42

    def columns(self) -> dict[str, str | None]:
        """By role."""
        return {role: getattr(self, f"{role}_column") for role in ("image", "text", "label", "group")}

    def load(self, source: str, **more: Any):
        """The splits of the dataset, see `load_pairs`."""
        return load_pairs(source, **vars(self), **more)


def describe(source: str, reading: Reading) -> dict[str, Any]:
    """Figures of a dataset, of plain types alone; the same for the same data.

    Raises:
        ClipDomainError: an unreadable source, or no row that can be used.
    """
    rows = Rows(open_source(source), reading.columns())
    total = count if (count := rows.count()) is not None else sum(1 for _ in rows)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "quarantine.jsonl"
        pairs = reading.load(source, quarantine_file=file, max_bad_fraction=1.0)
        bad = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    used = sum(map(len, pairs.values()))
    seen = [_seen(picture) for split in pairs.values() for picture in split["image"]]
    texts = [texts for split in pairs.values() for texts in split["text"]]
    captions = [caption for own in texts for caption in own]
    labels = Counter(label for split in pairs.values() for label in split["label"] if label is not None)
    groups = {group for split in pairs.values() for group in split["group"] if group is not None}
    keys = [(digest, *own) for (digest, *_), own in zip(seen, texts, strict=True)]
    sizes = [size for _, _, size in seen if size is not None]
    return {
        "rows": {"total": total, "used": used, "set_aside": len(bad), "left_out": total - used - len(bad)},
        "splits": {
            name: {
                "rows": len(split),
                "captions": sum(map(len, split["text"])),
                "groups": len({group for group in split["group"] if group is not None}),
            }
            for name, split in pairs.items()
        },
        "duplicates": {
            "pictures": _repeated(digest for digest, _, _ in seen),
            "captions": _repeated(captions),
            "pairs": _repeated(keys),
        },
        "set_aside": _reasons(bad),
        "pictures": {
            "formats": dict(sorted(Counter(kind for _, kind, _ in seen).items())),
            **({"width": _spread([w for w, _ in sizes]), "height": _spread([h for _, h in sizes])} if sizes else {}),
        },
        "captions": {
            "per_row": round(len(captions) / used, 2),
            "words": _spread([len(caption.split()) for caption in captions]),
        },
        "labels": {"distinct": len(labels), "commonest": dict(_commonest(labels)[:MOST_LABELS])},
        "groups": len(groups),
    }


def shortcomings(figures: dict[str, Any], *, max_bad_fraction: float, min_rows: int) -> list[str]:
    """Why a run should not be trained on it, in sentences; empty if nothing speaks against it."""
    rows, splits, found = figures["rows"], figures["splits"], []
    if rows["set_aside"] > max_bad_fraction * rows["total"]:
        worst = "; ".join(f"{number} x {reason}" for reason, number in figures["set_aside"].items())
        found.append(
            f"{rows['set_aside']:,} of {rows['total']:,} rows cannot be used ({worst}), more than --max_bad_fraction "
            f"{max_bad_fraction:g}"
        )
    for name in ("train", "test" if "test" in splits else "validation"):
        there = splits.get(name, {}).get("rows", 0)
        if there < min_rows:
            found.append(f"the {name} split has {there:,} rows, fewer than --min_rows {min_rows}")
    return found


def _seen(picture: dict[str, Any]) -> tuple[str, str, tuple[int, int] | None]:
    """SHA-256, format, and width and height where the head of the file tells them."""
    content = picture["bytes"] if picture["bytes"] is not None else Path(picture["path"]).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if content[128:132] == b"DICM":
        return digest, "DICOM", None
    try:
        with Image.open(io.BytesIO(content)) as opened:
            return digest, opened.format or "unknown", opened.size
    except (OSError, ValueError, SyntaxError):
        return digest, Path(picture["path"] or "").suffix.lstrip(".").upper() or "unknown", None


def _repeated(things: Iterable[Any]) -> int:
    """How many there are beyond the first of each."""
    counted = Counter(things)
    return counted.total() - len(counted)


def _reasons(bad: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Reasons without the file that each begins with, the commonest first."""
    counted: Counter[str] = Counter()
    for row in bad:
        name, reason = row["file"] or "", row["reason"].rstrip(".")
        _, colon, rest = reason.partition(f"{Path(name).name}: ") if name else ("", "", "")
        counted[rest if colon else reason] += 1
    return dict(_commonest(counted)[:MOST_REASONS])


def _commonest(counted: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counted.items(), key=lambda item: (-item[1], item[0]))


def _spread(values: Sequence[int]) -> dict[str, int]:
    return {"least": min(values), "median": int(np.median(values)), "most": max(values)}
