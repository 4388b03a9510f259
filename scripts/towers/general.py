"""The general set as the scripts of the towers divide it: to learn from, to choose by, and to report."""

from __future__ import annotations

import json
from pathlib import Path

from starter.pairs import Pair, held_out, read_folder

SHARE = 0.15  # of the train split's groups, to choose by


def training_pairs(folder: Path) -> list[Pair]:
    """What the heads learn from: the train split without the groups to choose by."""
    return [pair for pair in read_folder(folder, "train") if not held_out(pair, share=SHARE)]


def validation_pairs(folder: Path) -> list[Pair]:
    """The groups to choose by; nothing is trained on them."""
    return [pair for pair in read_folder(folder, "train") if held_out(pair, share=SHARE)]


def replay_table(folder: Path, where: Path) -> Path:
    """`training_pairs` as a table that `--replay_dataset` takes."""
    return _write(where / "replay.jsonl", {"train": training_pairs(folder)})


def probe_table(folder: Path, where: Path) -> Path:
    """The groups to choose by and the test split as a table that `--probe_dataset` takes."""
    return _write(where / "probe.jsonl", {"validation": validation_pairs(folder), "test": read_folder(folder, "test")})


def _write(file: Path, splits: dict[str, list[Pair]]) -> Path:
    lines = [
        json.dumps(
            {
                "file_name": str(pair.image.resolve()),
                "text": list(pair.captions),
                "group": pair.group,
                "split": split,
            }
        )
        for split, pairs in splits.items()
        for pair in pairs
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
