"""The folder of a corpus's embeddings: a manifest of what they are, and Parquet shards that are there whole or not."""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from hf_clip_domain.errors import ClipDomainError

MANIFEST = "manifest.json"
VERSION = 1
_METADATA = b"hf_clip_domain"  # of each shard's schema
# What is compared, in the words of the message that refuses.
_WHAT = {
    ("model", "sha256"): "by another model (its weights, processor or domain differ)",
    ("dataset", "sha256"): "of another dataset, or of this one before it was changed",
    ("dataset", "columns"): "of other columns of the dataset",
    ("dataset", "key_column"): "with another --key_column",
    ("sides",): "of other sides (--only)",
    ("precision",): "in another --precision",
    ("dtype",): "in another --dtype",
    ("shard_rows",): "with another --shard_rows",
    ("version",): "by another version of this package",
}


class ShardFolder:
    """The output folder of `hf-clip-domain embed`.

    Args:
        folder: made if it is not there.
        identity: what decides the content, as it will stand in `manifest.json`.
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.identity = {"version": VERSION, **identity}
        self.shard_rows: int = identity["shard_rows"]

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Keep other runs out of the folder while this one lasts; what a killed one left half written is removed.

        Raises:
            ClipDomainError: another run is at work, the folder holds other embeddings, or it cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock", timeout=0):
                self._begin()
                yield
        except Timeout as error:
            raise ClipDomainError(
                f"--output {self.folder}: another run is writing there. Wait for it, or name another folder."
            ) from error
        except OSError as error:
            raise ClipDomainError(f"--output {self.folder}: {error.strerror or error}.") from error

    def done(self) -> dict[int, dict[str, int]]:
        """Numbers of the shards that are there and whole, and the counts of each, as `finish` returns them."""
        found = {}
        for path in self.folder.glob("part-*.parquet"):
            try:
                told = pq.read_metadata(path).metadata[_METADATA]
                found[int(path.stem.removeprefix("part-"))] = json.loads(told)["counts"]
            except (pa.ArrowInvalid, OSError, ValueError, KeyError):
                continue  # damaged since: embedded again
        return found

    def write(self, number: int, table: pa.Table) -> None:
        """Write one shard; a kill at any moment leaves it there whole or not at all.

        Raises:
            ClipDomainError: the disk is full, or the folder cannot be written to.
        """
        path = self._path(number)
        draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
        counts = {name: len(table) - table[name].null_count for name in table.column_names if name.endswith("_embeds")}
        counts = {"rows": len(table), "errors": len(table) - table["error"].null_count, **counts}
        told = {key: self.identity[key] for key in ("model", "precision")}
        table = table.replace_schema_metadata({_METADATA: json.dumps({**told, "counts": counts})})
        try:
            with open(draft, "wb") as stream:
                pq.write_table(table, stream, compression="zstd")
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(draft, path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise ClipDomainError(f"--output {path}: {error.strerror or error}.") from error

    def finish(self, rows: int) -> dict[str, int]:
        """Check that none of so many rows is missing, write the counts into the manifest and return them.

        Returns:
            `shards`, `rows`, `errors` (rows with a reason), and `image_embeds`, `text_embeds` (rows that have one).

        Raises:
            ClipDomainError: shards are missing, as when processes wrote into folders of different machines.
        """
        done = self.done()
        sizes = {number: self.shard_rows for number in range(rows // self.shard_rows)}
        if rows % self.shard_rows:
            sizes[len(sizes)] = rows % self.shard_rows
        wrong = [number for number in sizes | done if done.get(number, {}).get("rows") != sizes.get(number)]
        if wrong:
            raise ClipDomainError(
                f"--output {self.folder}: {self._path(wrong[0]).name} and {len(wrong) - 1} others are not what they "
                "should be. Run the command again; with several machines, the folder has to be one that they share."
            )
        counts = {"shards": len(done), "rows": 0, "errors": 0}
        for own in done.values():
            for name, number in own.items():
                counts[name] = counts.get(name, 0) + number
        self._save({**self.identity, "complete": True, **counts})
        return counts

    def _begin(self) -> None:
        for draft in self.folder.glob(".*.draft"):
            draft.unlink()
        file = self.folder / MANIFEST
        if not file.exists():
            if any(self.folder.glob("*.parquet")):
                raise ClipDomainError(
                    f"--output {self.folder} holds Parquet files and no {MANIFEST}: name a new folder."
                )
            self._save({**self.identity, "complete": False})
            return
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ClipDomainError(f"{file} is damaged: name another --output, or remove the folder.") from error
        for path, what in _WHAT.items():
            if (theirs := _at(there, path)) != (ours := _at(self.identity, path)):
                raise ClipDomainError(
                    f"--output {self.folder} holds embeddings {what}: {'.'.join(path)} is {_short(theirs)} there "
                    f"and {_short(ours)} now. Name another folder, or remove that one."
                )

    def _save(self, content: dict[str, Any]) -> None:
        draft = self.folder / f".{MANIFEST}.draft"
        draft.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        os.replace(draft, self.folder / MANIFEST)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:08d}.parquet"


def share(done: Sequence[int], process: int, processes: int) -> Callable[[int], bool]:
    """Which shards a process is to embed: of those not yet `done` (sorted) every n-th, so that each has one process."""

    def mine(number: int) -> bool:
        before = bisect_left(done, number)
        is_done = before < len(done) and done[before] == number
        return not is_done and (number - before) % processes == process

    return mine


def _at(content: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:13]}..."
