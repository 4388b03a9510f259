"""What DVC tracks: a file or folder of data, and the small `.dvc` file that stands for it in git."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from hf_clip_domain.data.versions.repository import Repository
from hf_clip_domain.errors import ClipDomainError

SUFFIX = ".dvc"


@dataclass(frozen=True)
class Tracked:
    """Attributes:
    path: the data.
    pointer: `path` with `.dvc` behind it.
    """

    path: Path
    pointer: Path

    @classmethod
    def at(cls, path: Path) -> Tracked:
        """What stands for `path`, whether it is there yet or not."""
        return cls(path, path.with_name(path.name + SUFFIX))

    def content(self) -> str:
        """The content that was tracked last, as `content_of` names it.

        Raises:
            ClipDomainError: the file is not DVC's, or hashes by something other than MD5.
        """
        return read_pointer(self.pointer.read_text(encoding="utf-8"), str(self.pointer))

    def revision(self, repository: Repository) -> str | None:
        """`dvc:COMMIT:PATH` of the last commit that changed it; `None` before it is committed as it stands."""
        name = repository.relative(self.pointer)
        if repository.git("status", "--porcelain", "--untracked-files=all", "--", name).strip():
            return None
        commit = repository.git("log", "-1", "--format=%H", "--", name).strip()
        return f"dvc:{commit[:12]}:{repository.relative(self.path)}" if commit else None


def tracked_by(path: Path) -> Tracked | None:
    """What DVC tracks that `path` is, or lies in; `None` if nothing."""
    path = path.absolute()
    for place in (path, *path.parents):
        if place.name and (found := Tracked.at(place)).pointer.is_file():
            return found
    return None


def read_pointer(text: str, name: str) -> str:
    """The content that a `.dvc` file stands for."""
    try:
        (out,) = yaml.safe_load(text)["outs"]
        return out["md5"]
    except (yaml.YAMLError, TypeError, KeyError, ValueError) as error:
        raise ClipDomainError(f"{name}: expected one output with its md5, as `dvc add` writes it.") from error
