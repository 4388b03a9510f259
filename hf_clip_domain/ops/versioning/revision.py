"""Which revision of its dataset a run was trained on, and whether the data has changed since it was kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_clip_domain import __version__
from hf_clip_domain.data.rows import Rows
from hf_clip_domain.data.sources import open_source, source_files
from hf_clip_domain.data.versions import PREFIX, Pinned, Repository, Tracked, content_of, tracked_by
from hf_clip_domain.data.versions.content import content_of_files, files_below
from hf_clip_domain.data.versions.repository import dvc, dvc_folder, dvc_program
from hf_clip_domain.ops.versioning.card import SUFFIX, DatasetCard
from hf_clip_domain.ops.versioning.figures import Reading

_NAMED = 3


@dataclass(frozen=True)
class DatasetRevision:
    """Attributes:
    revision: `dvc:COMMIT:PATH` (which `--dataset` takes), `md5:CONTENT` of what no commit holds, `hub:REVISION`, or
        `samples:VERSION` of this package; `unknown` of a stream that was never hashed.
    content: MD5 of the files as they were read; empty where there are none to read.
    warning: a sentence, where the data is not what was kept last.
    """

    revision: str
    content: str = ""
    warning: str = ""

    def sentence(self) -> str:
        """For a model's card."""
        kept = " (which no snapshot holds)" if self.warning else ""
        return f"Dataset revision: `{self.revision}`{kept}."

    def to_json(self) -> dict[str, Any]:
        """What a run's report keeps."""
        return {"revision": self.revision, "content": self.content, "changed": bool(self.warning)}


def revision_of(
    dataset: str | None, *, hub_revision: str | None = None, streaming: bool = False, reading: Reading | None = None
) -> DatasetRevision:
    """The revision of what a run reads.

    Args:
        dataset: as `--dataset` takes it; `None` for the embedded samples.
        hub_revision: as `--dataset_revision` takes it.
        streaming: read no file for this alone.
        reading: the columns; of a table whose pictures lie in files, these count as well.

    Raises:
        ClipDomainError: a `dvc:` revision that is not there, or files that cannot be read.
    """
    if dataset is None:
        return DatasetRevision(f"samples:{__version__}")
    if dataset.startswith(PREFIX):
        pinned = Pinned.find(dataset)
        return DatasetRevision(str(pinned), pinned.content or "")
    path = Path(dataset).expanduser()
    if not path.exists() and not any(sign in dataset for sign in "*?{"):
        return DatasetRevision(f"hub:{hub_revision or 'main'}")
    tracked = tracked_by(path) if path.exists() else None
    if tracked is not None:
        return _of_tracked(tracked, path, streaming)
    content = _plain_content(dataset, streaming, reading or Reading())
    if content is None:
        return DatasetRevision("unknown")
    card = DatasetCard.load(card_file(path))
    changed = card is not None and card.content != content
    return DatasetRevision(f"md5:{content}", content, _changed(dataset, "") if changed else "")


def card_file(dataset: Path, unit: Path | None = None) -> Path:
    """Where the card of a dataset lies: beside it, or beside the folder (`unit`) that is tracked for it."""
    dataset = dataset.absolute()
    if unit is None or dataset == unit:
        return dataset.with_name(dataset.name + SUFFIX)
    return unit.with_name(".".join([unit.name, *dataset.relative_to(unit).parts]) + SUFFIX)


def outside_pictures(source: str, reading: Reading) -> list[Path]:
    """The picture files that a table names, or that a folder's table names outside of the folder."""
    place = Path(source).expanduser()
    if not place.exists() or place.suffix.lower() == ".tar":  # shards hold their pictures
        return []
    opened = open_source(source)
    if place.is_dir() and opened.rows is None:
        return []
    pictures = (row.get("image") for _, row in Rows(opened, reading.columns()))
    found = sorted({picture["path"] for picture in pictures if picture and picture["bytes"] is None})
    inside = place.resolve() if place.is_dir() else None
    return [
        path
        for path in map(Path, found)
        if path.is_file() and (inside is None or not path.resolve().is_relative_to(inside))
    ]


def content_as_tracked(tracked: Tracked, *, read: bool = True) -> str | None:
    """The content as it is now, less what a `.dvcignore` names; see `content_of`."""
    content = content_of(tracked.path, read=read)
    if content is not None and tracked.pointer.is_file() and content != (kept := tracked.content()):
        return kept if _unchanged_to_dvc(tracked) else content
    return content


def _of_tracked(tracked: Tracked, path: Path, streaming: bool) -> DatasetRevision:
    kept, content = tracked.content(), content_as_tracked(tracked, read=not streaming)
    if content not in (None, kept):
        return DatasetRevision(f"md5:{content}", content, _changed(str(path), _difference(tracked, kept)))
    repository = Repository.around(tracked.path)
    revision = tracked.revision(repository) if repository is not None else None
    if revision is None:
        told = f"{tracked.pointer} is not committed to git: `hf-clip-domain data snapshot {path}` does it."
        return DatasetRevision(f"md5:{kept}", kept, told if repository is not None else "")
    inside = path.absolute().relative_to(tracked.path).as_posix()
    return DatasetRevision(revision if inside == "." else f"{revision}/{inside}", kept)


def _plain_content(dataset: str, streaming: bool, reading: Reading) -> str | None:
    path = Path(dataset).expanduser()
    if path.is_dir():
        return content_of(path, read=not streaming)
    return None if streaming else content_of_table(dataset, outside_pictures(dataset, reading))


def content_of_table(dataset: str, pictures: list[Path]) -> str:
    """Of a file or of shards, together with the picture files that it names; the same after all are moved together."""
    files = source_files(dataset)
    base = files[0][1].absolute().parent.resolve()
    named = [(p.relative_to(base).as_posix() if p.is_relative_to(base) else str(p), p) for p in pictures]
    return content_of_files([*files, *named])


def _unchanged_to_dvc(tracked: Tracked) -> bool:
    """Whether DVC itself, where there are files that it was told to ignore, finds nothing changed."""
    root = dvc_folder(tracked.path)
    folders = [folder for folder in tracked.path.resolve().parents if root is not None and folder.is_relative_to(root)]
    lines = [
        line
        for folder in folders
        if (folder / ".dvcignore").is_file()
        for line in (folder / ".dvcignore").read_text(encoding="utf-8").splitlines()
    ]
    if dvc_program() is None or not any(line.strip() and not line.startswith("#") for line in lines):
        return False
    return json.loads(dvc(["status", "--json", tracked.pointer.name], tracked.pointer.parent)) == {}


def _difference(tracked: Tracked, kept: str) -> str:
    """Which files, as far as DVC's cache tells: ` (2 new, 1 gone: a.png, b.png, c.png)`."""
    root = dvc_folder(tracked.path)
    file = root / ".dvc" / "cache" / "files" / "md5" / kept[:2] / kept[2:] if root is not None else None
    if file is None or not kept.endswith(".dir") or not file.is_file():
        return ""
    before = {entry["relpath"] for entry in json.loads(file.read_text(encoding="utf-8"))}
    now = {name for name, _ in files_below(tracked.path)}
    new, gone = sorted(now - before), sorted(before - now)
    if not new and not gone:
        return " (contents of files, none new or gone)"
    some = ", ".join((new + gone)[:_NAMED]) + (", ..." if len(new) + len(gone) > _NAMED else "")
    return f" ({len(new):,} new, {len(gone):,} gone: {some})"


def _changed(dataset: str, difference: str) -> str:
    return (
        f"{dataset} has changed since its last snapshot{difference}: no revision brings back what this run reads. To keep "
        f"it: `hf-clip-domain data snapshot {dataset}`."
    )
