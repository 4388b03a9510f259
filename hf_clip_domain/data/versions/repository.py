"""The git repository around a dataset, and DVC in it, both by their own command lines."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_clip_domain.errors import ClipDomainError

INSTALL_DVC = 'pip install "hf-clip-domain[dvc]"'


@dataclass(frozen=True)
class Repository:
    """A git working tree.

    Attributes:
        root: its folder.
    """

    root: Path

    @classmethod
    def around(cls, path: Path) -> Repository | None:
        """The one that `path` lies in; `None` without git, or outside of any."""
        folder = _existing(path)
        try:
            done = subprocess.run(
                ["git", "rev-parse", "--show-toplevel"], cwd=folder, capture_output=True, text=True, timeout=30
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return cls(Path(done.stdout.strip())) if done.returncode == 0 and done.stdout.strip() else None

    def git(self, *arguments: str) -> str:
        """What `git` prints; raises `ClipDomainError` with its reason when it fails."""
        return _called(["git", *arguments], self.root, f"git {arguments[0]} in {self.root}")

    def relative(self, path: Path) -> str:
        """`path` from the root, with forward slashes.

        Raises:
            ClipDomainError: it does not lie in this repository.
        """
        try:
            return path.resolve().relative_to(self.root.resolve()).as_posix()
        except ValueError as error:
            raise ClipDomainError(f"{path} does not lie in the git repository {self.root}.") from error

    def commit_of(self, revision: str) -> str | None:
        """The commit that a branch, tag or shortened commit means, in 12 digits; `None` if there is none such."""
        try:
            return self.git("rev-parse", "--verify", "--quiet", "--short=12", f"{revision}^{{commit}}").strip()
        except ClipDomainError:
            return None

    def is_new(self, path: Path) -> bool:
        """Whether no commit of the present branch holds this file yet."""
        name = self.relative(path)
        return self.git("status", "--porcelain", "--untracked-files=all", "--", name).startswith(("A", "??"))

    def commit(self, paths: Sequence[Path], message: str) -> list[str]:
        """Commit these files and nothing else that may be staged; those of them that had changed.

        Raises:
            ClipDomainError: git's reason, such as a missing user name or a hook that refuses.
        """
        names = [self.relative(path) for path in paths]
        changed = [name for name in names if self.git("status", "--porcelain", "--untracked-files=all", "--", name)]
        if changed:
            self.git("add", "--", *changed)
            self.git("commit", "--quiet", "--message", message, "--only", "--", *changed)
        return changed


def dvc_folder(path: Path) -> Path | None:
    """The folder above `path` in which `dvc init` was called, or `None`."""
    path = path.resolve()
    return next((folder for folder in (path, *path.parents) if (folder / ".dvc").is_dir()), None)


def dvc_program() -> str | None:
    """DVC's command, of this environment or else on the path; `None` if it is not installed."""
    return shutil.which("dvc", path=str(Path(sys.executable).parent)) or shutil.which("dvc")


def dvc(arguments: Sequence[str], folder: Path) -> str:
    """What `dvc` prints, called in `folder`.

    Raises:
        ClipDomainError: it is not installed (names the extra), or it failed (with its reason).
    """
    program = dvc_program()
    if program is None:
        raise ClipDomainError(f"this needs dvc, which is not installed: {INSTALL_DVC}")
    return _called([program, *arguments], folder, f"dvc {arguments[0]}")


def _called(command: Sequence[str], folder: Path, name: str) -> str:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "LC_ALL": "C.UTF-8"}
    environment.pop("PYTHONPATH", None)  # DVC may live in an environment of its own
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    except OSError as error:
        raise ClipDomainError(f"{name}: {command[0]} cannot be run: {error.strerror}.") from error
    if done.returncode:
        raise ClipDomainError(f"{name} failed: {_reason(done.stderr or done.stdout)}")
    return done.stdout


def _reason(text: str) -> str:
    """From DVC's first `ERROR:` on, or git's last words, in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and "dvc.org/support" not in line]
    start = next((number for number, line in enumerate(lines) if line.startswith("ERROR:")), None)
    lines = lines[start:] if start is not None else lines[-4:]
    return " ".join(lines).removeprefix("ERROR: ") or "it gave no reason."


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
