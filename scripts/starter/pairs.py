"""The pairs the starter learns from: the train split of a folder, and procedural ones; grouped hold-out."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from hf_clip_domain.errors import ClipDomainError

PROCEDURAL_DOMAINS = ("general", "scientific", "medical", "industrial")


@dataclass(frozen=True)
class Pair:
    """A picture (a file or its bytes) with its captions."""

    image: Path | bytes
    captions: tuple[str, ...]
    group: str

    def open(self) -> Image.Image:
        source = self.image if isinstance(self.image, Path) else io.BytesIO(self.image)
        with Image.open(source) as image:
            return image.convert("RGB")


def read_folder(folder: Path, split: str) -> list[Pair]:
    """The rows of one split of a folder with `metadata.jsonl` (file_name, text, group, split).

    Raises:
        ClipDomainError: there is no `metadata.jsonl`, or no row of that split in it.
    """
    table = folder / "metadata.jsonl"
    if not table.is_file():
        raise ClipDomainError(f"no metadata.jsonl in {folder}: give the folder that holds it and images/.")
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    pairs = []
    for row in rows:
        if row["split"] == split:
            captions = (row["text"],) if isinstance(row["text"], str) else tuple(row["text"])
            pairs.append(Pair(folder / row["file_name"], captions, row.get("group") or row["file_name"]))
    if not pairs:
        raise ClipDomainError(f'{table} has no row with "split": "{split}".')
    return pairs


def procedural_pairs(domains: Sequence[str], number: int, seed: int) -> list[Pair]:
    """`number` pairs of each of the procedural domains, drawn and described by the package itself."""
    if number == 0:
        return []
    from hf_clip_domain.data.samples import load_samples

    pairs = []
    for domain in domains:
        rows = load_samples(domain, train=number, validation=1, test=1, seed=seed)["train"]
        for index, row in enumerate(rows):
            image = row["image"]["bytes"] or Path(row["image"]["path"])
            pairs.append(Pair(image, tuple(row["text"]), f"procedural-{domain}-{index}"))
    return pairs


def digest(rows: Sequence[Pair], seed: int) -> str:
    """A short name for these pictures in this order and this seed: what is cached for others is not theirs."""
    content = hashlib.sha256(f"seed {seed}".encode())
    for pair in rows:
        content.update(str(pair.image.absolute()).encode() if isinstance(pair.image, Path) else pair.image)
    return content.hexdigest()[:12]


def held_out(pair: Pair, share: float = 0.08) -> bool:
    """Whether a pair's whole group stays out of training, to choose by: decided by a hash of the group."""
    number = hashlib.sha256(f"starter {pair.group}".encode()).digest()[:4]
    return int.from_bytes(number, "big") / 2**32 < share
