"""Real repositories of git and DVC with a remote in a folder, and small real pairs in them."""

import json
import os
import subprocess

import numpy as np
import pytest
from PIL import Image

from hf_clip_domain.data.versions.repository import dvc, dvc_program

IDENTITY = {f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


@pytest.fixture(scope="session")
def surroundings(tmp_path_factory):
    """Caches of DVC and of the package, and a name for commits; nothing of the user's own is touched."""
    folder = tmp_path_factory.mktemp("surroundings")
    own = {"XDG_CACHE_HOME": str(folder / "cache"), "DVC_SITE_CACHE_DIR": str(folder / "site"), "HOME": str(folder)}
    before = dict(os.environ)
    os.environ.update({**own, **IDENTITY})
    yield folder
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def git(surroundings):
    """`git(folder, *arguments)`: what it prints."""
    return lambda folder, *arguments: (
        subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout
    )


@pytest.fixture(scope="session")
def repository(git):
    """`repository(folder)`: with git and DVC begun in it, and a remote beside it."""
    if dvc_program() is None:
        pytest.skip('needs dvc: pip install "hf-clip-domain[dvc]"')

    def begun(folder):
        folder.mkdir(parents=True)
        git(folder, "init", "--quiet", ".")
        dvc(["init", "--quiet"], folder)
        dvc(["remote", "add", "--default", "beside", str(folder.with_name(folder.name + "-remote"))], folder)
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "--message", "Begun")
        return folder

    return begun


@pytest.fixture(scope="session")
def pairs():
    """`pairs(folder, splits)` draws a picture of one colour and a caption for every split named."""

    def drawn(folder, splits, first=0):
        folder.mkdir(parents=True, exist_ok=True)
        colours = np.random.default_rng(0).integers(256, size=(first + len(splits), 3)).tolist()
        with open(folder / "metadata.jsonl", "a", encoding="utf-8") as table:
            for number, split in enumerate(splits, start=first):
                Image.new("RGB", (32, 24), tuple(colours[number])).save(folder / f"{number}.png")
                row = {"file_name": f"{number}.png", "text": f"shade number {number}", "split": split}
                table.write(json.dumps({**row, "label": f"kind {number % 3}"}) + "\n")
        return folder

    return drawn


@pytest.fixture
def without_dvc(monkeypatch):
    """No `dvc` command, neither in this environment nor on the path."""
    monkeypatch.setattr("hf_clip_domain.data.versions.repository.dvc_program", lambda: None)
    monkeypatch.setattr("hf_clip_domain.ops.versioning.snapshot.dvc_program", lambda: None)
    monkeypatch.setattr("hf_clip_domain.ops.versioning.revision.dvc_program", lambda: None)
