"""`load_pairs`: any source of pictures and captions to splits of checked rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Image, IterableDatasetDict, concatenate_datasets

from hf_clip_domain.data.checking import FEATURES, checked
from hf_clip_domain.data.quarantine import Quarantine
from hf_clip_domain.data.rows import Rows
from hf_clip_domain.data.sources import open_source
from hf_clip_domain.data.splits import assign_splits
from hf_clip_domain.data.streams import stream_splits
from hf_clip_domain.errors import ClipDomainError


def load_pairs(
    source: str | Path,
    *,
    image_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    streaming: bool = False,
    revision: str | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    max_bad_fraction: float = 0.05,
    quarantine_file: Path | None = None,
    seed: int = 42,
    progress: bool = True,
) -> DatasetDict | IterableDatasetDict:
    """Read pairs and check every one of them.

    Args:
        source: CSV, TSV, JSON (a list, or under `data`), JSONL, Parquet, a folder (`metadata.jsonl`/`.csv`,
            `captions.txt`, or a `.txt` beside each picture, also in `train/`, `test/` sub-folders), WebDataset shards
            (`shards/{000..009}.tar`), a folder of `save_to_disk`, or a Hub id. Pictures may be DICOM.
        image_column, text_column, label_column, group_column: names, where convention does not find them.
        streaming: read rows as they come, in bounded memory; splits then follow a hash of group or file name.
        revision: of a Hub dataset.
        validation_fraction, test_fraction: shares to hold out where the source does not say. A source that gives
            splits keeps them: of these two, only validation is then carved out of training. A lone table named
            "train" gives none, since that is what `datasets` calls everything.
        max_bad_fraction: stop above this share of bad rows.
        quarantine_file: JSONL file for the bad rows.
        seed: of the split; by default that of a training run, so that what it held out is held out here too.

    Returns:
        Splits `train`, `validation`, `test` (those that there are) of rows `image` ({"bytes", "path"}), `text` (a list
        of one or more captions), `label`, `group` (`None` where the source has none).

    Raises:
        ClipDomainError: an unreadable source, a missing column, or too many bad rows.
    """
    fractions = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    for name, share in fractions.items():
        if not 0 <= share < 1:
            raise ClipDomainError(f"--{name} {share:g}: expected a share from 0 to below 1.")
    if sum(fractions.values()) >= 1:
        raise ClipDomainError(
            f"--validation_fraction {validation_fraction:g} and --test_fraction {test_fraction:g} leave nothing to train on."
        )
    opened = open_source(str(source), streaming=streaming, revision=revision)
    given = {"image": image_column, "text": text_column, "label": label_column, "group": group_column}
    rows = Rows(opened, given)
    quarantine = Quarantine(opened.name, quarantine_file, max_bad_fraction)
    if streaming:
        return stream_splits(rows, quarantine, seed=seed, **fractions)
    usable = list(checked(rows, quarantine, progress=progress))
    if not usable:
        raise ClipDomainError(f"{opened.name} has no rows that can be used.")
    splits = assign_splits([row["split"] for row in usable], [row["keys"] for row in usable], seed=seed, **fractions)
    result = DatasetDict()
    for name in ("train", "validation", "test"):
        chosen = [row for row, split in zip(usable, splits, strict=True) if split == name]
        if chosen:
            result[name] = _table(chosen, rows)
    return result


def _table(chosen: list[dict[str, Any]], rows: Rows) -> Dataset:
    """Rows as a `Dataset`; pictures that lie in a table stay there, memory-mapped."""
    columns = {name: [row[name] for row in chosen] for name in ("text", "label", "group")}
    if all(row["image"] is not None for row in chosen):
        return Dataset.from_dict({"image": [row["image"] for row in chosen], **columns}, features=FEATURES)
    parts = []
    for name, (table, found) in rows.tables.items():
        indices = [row["index"][1] for row in chosen if row["index"][0] == name]
        if indices:
            part = table.select(indices).select_columns([found.image])
            part = part if found.image == "image" else part.rename_column(found.image, "image")
            parts.append(part.cast_column("image", Image(decode=False)))
    pictures = concatenate_datasets(parts)
    for name in ("text", "label", "group"):
        pictures = pictures.add_column(name, columns[name], feature=FEATURES[name])
    return pictures
