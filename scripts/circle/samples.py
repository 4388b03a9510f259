"""The embedded synthetic samples as a folder of pictures with `metadata.jsonl`, as users have their own."""

from __future__ import annotations

import json
from pathlib import Path

from hf_clip_domain.data.samples import load_samples


def write_samples(domain: str, folder: Path, train: int, validation: int, test: int) -> None:
    """Add a domain's samples to the folder."""
    lines = []
    for split, rows in load_samples(domain, train=train, validation=validation, test=test).items():
        for number, row in enumerate(rows):
            name = f"{domain}_{split}_{number:04}.png"
            (folder / name).write_bytes(row["image"]["bytes"])
            lines.append(json.dumps({"file_name": name, "text": row["text"], "split": split}))
    with open(folder / "metadata.jsonl", "a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
