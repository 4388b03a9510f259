"""`dvc:REV:PATH`: a dataset as it was at a revision, checked out beside the one that is being worked on."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock
from transformers.utils import logging

from hf_clip_domain.data.versions.content import cache_folder, content_of
from hf_clip_domain.data.versions.repository import Repository, dvc
from hf_clip_domain.data.versions.tracked import SUFFIX, read_pointer
from hf_clip_domain.errors import ClipDomainError

PREFIX = "dvc:"
# Tracked beside datasets, and none itself.
REFERENCE_SUFFIX = ".drift_reference.npz"

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Pinned:
    """A dataset at a revision, found in git.

    Attributes:
        repository: that holds its `.dvc` file.
        commit: 12 digits.
        unit: what DVC tracks, from the repository's root.
        path: the dataset; the unit, or something in it.
        content: of the unit; `None` where a pipeline of DVC makes it.
    """

    repository: Repository
    commit: str
    unit: str
    path: str
    content: str | None

    @classmethod
    def find(cls, source: str) -> Pinned:
        """Read `dvc:REV` or `dvc:REV:PATH`.

        `REV` is a commit, tag or branch. `PATH` starts at the repository's root, as in git's own `REV:PATH`; with `./`
        in front at the working folder, and an absolute one names the repository too. It may be left out where DVC tracks
        a single dataset.

        Raises:
            ClipDomainError: no repository, no such revision, or no such data in it.
        """
        revision, _, path = source.removeprefix(PREFIX).partition(":")
        if not revision:
            raise ClipDomainError(f"--dataset {source}: expected dvc:REVISION or dvc:REVISION:path/to/data.")
        place = Path(path).expanduser()
        repository = Repository.around(place if place.is_absolute() else Path.cwd())
        if repository is None:
            raise ClipDomainError(
                f"--dataset {source}: there is no git repository here. Run the command inside of one, or name it with the "
                f"data: dvc:{revision}:/path/to/repository/data."
            )
        if place.is_absolute() or path.startswith(("./", "../")):
            path = repository.relative(place)
        path = str(PurePosixPath(path)) if path else ""
        commit = repository.commit_of(revision)
        if commit is None:
            raise ClipDomainError(f"--dataset {source}: {repository.root} has no commit, tag or branch {revision!r}.")
        listed = repository.git("ls-tree", "-r", "-z", "--name-only", "--full-tree", commit).split("\0")
        if not any(PurePosixPath(name).parts[-2:] == (".dvc", "config") for name in listed):
            raise ClipDomainError(
                f"--dataset {source}: DVC's own files are not part of that revision (`git add .dvc .dvcignore`, commit, and "
                "take another snapshot), or DVC was not used yet."
            )
        units = {name.removesuffix(SUFFIX) for name in listed if name.endswith(SUFFIX) and ".dvc/" not in name}
        choices = ", ".join(f"{PREFIX}{revision}:{unit}" for unit in sorted(units) if not _is_reference(unit)) or "none"
        if not path:
            datasets = [unit for unit in units if not _is_reference(unit)]
            if len(datasets) != 1:
                raise ClipDomainError(f"--dataset {source}: say which of the data that DVC tracks there: {choices}.")
            path = datasets[0]
        unit = next(
            (str(name) for name in (PurePosixPath(path), *PurePosixPath(path).parents) if str(name) in units), None
        )
        if unit is None and not {"dvc.lock", "dvc.yaml"} & {PurePosixPath(name).name for name in listed}:
            raise ClipDomainError(f"--dataset {source}: DVC tracks no {path} at that revision; there is {choices}.")
        content = None
        if unit is not None:
            pointer = repository.git("show", f"{commit}:{unit}{SUFFIX}")
            content = read_pointer(pointer, f"{unit}{SUFFIX} at {revision}")
        return cls(repository, commit, unit or path, path, content)

    def __str__(self) -> str:
        return f"{PREFIX}{self.commit}:{self.path}"

    def check_out(self) -> Path:
        """The dataset in the cache, fetched (`dvc get`) unless it is there, as it was to the byte.

        Raises:
            ClipDomainError: DVC is not installed, or has the data neither in its cache nor in its remote.
        """
        key = self.content or hashlib.md5(str(self).encode(), usedforsecurity=False).hexdigest()
        folder = cache_folder() / "datasets" / key
        target = folder / PurePosixPath(self.unit).name
        inside = PurePosixPath(self.path).relative_to(self.unit)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not self._whole(target):
                shutil.rmtree(folder, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix=".get-", dir=folder.parent) as temporary:
                    got = Path(temporary) / "whole" / target.name
                    got.parent.mkdir()
                    logger.warning(f"Checking out {self} into {target}.")
                    root = str(self.repository.root)
                    dvc(["get", root, self.unit, "--rev", self.commit, "-o", str(got)], self.repository.root)
                    if not self._whole(got):
                        raise ClipDomainError(
                            f"--dataset {self}: what DVC gave has another content than {self.unit}{SUFFIX} says."
                        )
                    os.replace(got.parent, folder)
        found = target / inside
        if not found.exists():
            raise ClipDomainError(f"--dataset {self}: {self.unit} has no {inside} at that revision.")
        return found

    def _whole(self, path: Path) -> bool:
        return path.exists() and (self.content is None or content_of(path) == self.content)


def local_path(source: str) -> str:
    """`source` itself, or where a `dvc:REV:PATH` is checked out."""
    return str(Pinned.find(source).check_out()) if source.startswith(PREFIX) else source


def _is_reference(unit: str) -> bool:
    return unit.endswith(REFERENCE_SUFFIX)
