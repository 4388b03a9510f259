"""A dataset kept as it is now: tracked by DVC where there is one, committed to git, with its card beside it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import concatenate_datasets

from hf_clip_domain.data.versions import PREFIX, Repository, Tracked, content_of, tracked_by
from hf_clip_domain.data.versions.pinned import REFERENCE_SUFFIX
from hf_clip_domain.data.versions.repository import INSTALL_DVC, dvc, dvc_folder, dvc_program
from hf_clip_domain.embedder import ClipEmbedder
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.ops.drift.making import identity, make_reference
from hf_clip_domain.ops.versioning.card import DatasetCard
from hf_clip_domain.ops.versioning.figures import Reading, describe
from hf_clip_domain.ops.versioning.revision import card_file, content_as_tracked, content_of_table, outside_pictures


@dataclass(frozen=True)
class Snapshot:
    """Attributes:
    revision: `dvc:COMMIT:PATH`, or `md5:CONTENT` where there is no DVC, or no git.
    card: the file.
    new: whether anything was written or committed.
    notes: sentences for the user.
    """

    revision: str
    card: Path
    new: bool
    notes: tuple[str, ...] = ()


def take_snapshot(
    dataset: str,
    *,
    message: str | None = None,
    push: bool = False,
    reading: Reading | None = None,
    embedder: ClipEmbedder | None = None,
    model: str = "",
) -> Snapshot:
    """Keep a dataset; of unchanged data nothing is written and the revision is the one of before.

    With DVC (`dvc init` was called in the repository): `dvc add`, the card, and one commit of the `.dvc` file, the
    `.gitignore` that DVC wrote and the card; what else is staged stays staged. Pushing the commit is left to the user.
    Without: the card alone, which holds the content's hash.

    Args:
        dataset: a folder of pairs, or a table; of one that names pictures in files its folder is tracked.
        message: of the commit.
        push: send the data to DVC's default remote.
        embedder, model: also make a drift reference with this model, tracked like the data.

    Raises:
        ClipDomainError: no dataset there, DVC not installed where it is used, or what DVC and git refuse.
    """
    _check(dataset)
    reading, path = reading or Reading(), Path(os.path.abspath(Path(dataset).expanduser()))
    pictures = outside_pictures(str(path), reading)
    root = dvc_folder(path)
    if root is None:
        return _without_dvc(path, pictures, push, reading, embedder, model)
    if dvc_program() is None:
        raise ClipDomainError(f"{root} is a repository of DVC, and dvc is not installed: {INSTALL_DVC}")
    unit = tracked_by(path) or Tracked.at(_folder_of(path, pictures, root))
    for picture in pictures:
        if not picture.resolve().is_relative_to(unit.path.resolve()):
            raise ClipDomainError(
                f"{dataset} names {picture}, which does not lie in {unit.path}: a snapshot would not bring it back. Move "
                "the pictures there, and name them from there."
            )
    file, reference = card_file(path, unit.path), Tracked.at(_reference_file(path, unit.path))
    earlier = DatasetCard.load(file)
    before = _bytes(file)
    card = _card(path, content_as_tracked(unit), reading, earlier)
    card = _with_reference(card, earlier, reference.path, embedder, model, path)
    targets = [unit, *([reference] if reference.path.exists() else [])]
    was = [_bytes(target.pointer) for target in targets]
    for target in targets:
        dvc(["add", target.path.name], target.path.parent)
    replace(card, content=unit.content()).save(file)
    changed = before != _bytes(file) or was != [_bytes(target.pointer) for target in targets]
    repository, notes = Repository.around(unit.path), []
    if repository is None:
        revision = f"md5:{unit.content()}"
        notes.append("There is no git repository: the revision cannot be checked out later.")
    else:
        ignored = [place / ".gitignore" for place in {target.path.parent for target in targets}]
        paths = [file, *(target.pointer for target in targets), *(path for path in ignored if path.is_file())]
        # Without these a commit is none of a repository of DVC, and gives nothing back.
        paths += [own for own in _of_dvc(root) if own.is_file() and repository.is_new(own)]
        name = repository.relative(path)
        committed = repository.commit(paths, message or f"Snapshot of {name}: {_in_short(card.figures)}")
        changed, revision = changed or bool(committed), unit.revision(repository)
        inside = path.relative_to(unit.path).as_posix()
        revision = revision if inside == "." else f"{revision}/{inside}"
        if committed:
            notes.append(f"Committed {', '.join(committed)}; pushing the commit is left to you.")
    if reference.path.exists() and not card.reference:
        notes.append(f"{reference.path.name} is of earlier data: name the model again to make it anew.")
    if push:
        try:
            dvc(["push", *(target.pointer.name for target in targets)], unit.path.parent)
        except ClipDomainError as error:
            raise ClipDomainError(f"kept as {revision}, and not sent to the remote: {error}") from error
        notes.append("The remote has the data.")
    return Snapshot(revision, file, changed, tuple(notes))


def _check(source: str) -> None:
    """Refuse what is no local file or folder, in words of a snapshot.

    Raises:
        ClipDomainError: a pattern of shards, a Hub id, a revision, or nothing there.
    """
    if any(sign in source for sign in "*?{"):
        raise ClipDomainError(f"{source}: name the folder that holds the shards, so that new ones are noticed.")
    if source.startswith(PREFIX):
        raise ClipDomainError(f"{source} is a snapshot already.")
    if not Path(source).expanduser().exists():
        raise ClipDomainError(
            f"{source}: no such file or folder. (A dataset on the Hub has revisions of its own: --dataset_revision.)"
        )


def _without_dvc(
    path: Path, pictures: list[Path], push: bool, reading: Reading, embedder: ClipEmbedder | None, model: str
) -> Snapshot:
    missing = f"`dvc init` in its git repository{'' if dvc_program() else f' (after {INSTALL_DVC})'}"
    if push:
        raise ClipDomainError(f"--push needs DVC, which does not track anything here: {missing} sets it up.")
    file, reference = card_file(path), _reference_file(path, path)
    earlier, before = DatasetCard.load(file), _bytes(file)
    content = content_of(path) if path.is_dir() else content_of_table(str(path), pictures)
    card = _card(path, content, reading, earlier)
    _with_reference(card, earlier, reference, embedder, model, path).save(file)
    note = (
        f"DVC is not set up here, so this is a hash of the content, which tells changes and cannot bring back the data: "
        f"{missing} makes the next snapshot one that can."
    )
    return Snapshot(f"md5:{content}", file, before != _bytes(file), (note,))


def _of_dvc(root: Path) -> tuple[Path, ...]:
    """What `dvc init` makes to be committed."""
    return root / ".dvc" / "config", root / ".dvc" / ".gitignore", root / ".dvcignore"


def _folder_of(path: Path, pictures: list[Path], root: Path) -> Path:
    """What DVC shall track for a dataset that it does not track yet."""
    unit = path.parent if pictures and path.is_file() else path
    if unit.resolve() in (root.resolve(), *root.resolve().parents):
        raise ClipDomainError(
            f"{path} lies with its pictures at the root of the repository, which cannot be tracked whole: move the pairs "
            "into a folder."
        )
    return unit


def _card(path: Path, content: str, reading: Reading, earlier: DatasetCard | None) -> DatasetCard:
    """The earlier one while neither the data nor the way to read it has changed."""
    if earlier is not None and (earlier.content, earlier.reading) == (content, reading):
        return earlier
    return DatasetCard(path.name, reading, describe(str(path), reading), content)


def _with_reference(
    card: DatasetCard,
    earlier: DatasetCard | None,
    file: Path,
    embedder: ClipEmbedder | None,
    model: str,
    path: Path,
) -> DatasetCard:
    """The card that tells of its drift reference, which is made unless it is of the same data, read alike, and model."""
    known = earlier.reference if earlier is not None and earlier is card and file.exists() else {}
    if embedder is None:
        return replace(card, reference=known)
    facts: dict[str, Any] = {"model": model, **identity(embedder)}
    if facts.items() <= known.items():
        return card
    pairs = card.reading.load(str(path), max_bad_fraction=1.0)
    held_out = [rows for name, rows in pairs.items() if name != "train"]
    if not held_out:
        raise ClipDomainError(f"{path}: no validation or test pairs are held out, of which a drift reference is made.")
    rows = concatenate_datasets(held_out)
    options = {"train": pairs.get("train"), "model": model, "dataset": f"{path.name} (md5:{card.content})"}
    reference = make_reference(embedder, rows, **options)
    reference.save(file)
    kept = len(reference.arrays["pair_scores"])
    return replace(card, reference={"file": file.name, **facts, "rows": kept})


def _reference_file(path: Path, unit: Path) -> Path:
    card = card_file(path, unit)
    return card.with_name(card.name.removesuffix(".card.md") + REFERENCE_SUFFIX)


def _in_short(figures: dict[str, Any]) -> str:
    sizes = ", ".join(f"{split['rows']:,} {name}" for name, split in figures["splits"].items())
    return f"{sizes}, {figures['rows']['set_aside']:,} set aside"


def _bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None
