"""The content of files has the name that DVC gives it, and is read only when it may have changed."""

import os

import pytest

from hf_clip_domain.data.versions import Tracked, content_of
from hf_clip_domain.data.versions import content as module
from hf_clip_domain.data.versions.repository import dvc


@pytest.fixture
def folder(tmp_path, surroundings):
    files = {"b/ü ber.txt": b"one", "b/empty": b"", "a.png": bytes(range(256)) * 5000, "b-c/z": b"two", "B": b"three"}
    for name, content in files.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(content)
    return tmp_path / "data"


@pytest.fixture
def readings(monkeypatch):
    found, own = [], module._md5
    monkeypatch.setattr(module, "_md5", lambda path: found.append(path.name) or own(path))
    return found


@pytest.mark.slow
def test_it_is_named_as_dvc_names_it(folder, repository, tmp_path):
    root = repository(tmp_path / "repository")
    folder.rename(root / "data")
    dvc(["add", "data"], root)
    assert content_of(root / "data") == Tracked.at(root / "data").content()
    (root / "file.bin").write_bytes(b"x" * 100_000)
    dvc(["add", "file.bin"], root)
    assert content_of(root / "file.bin") == Tracked.at(root / "file.bin").content()


def test_names_and_contents_both_count(folder):
    names = {content_of(folder)}
    (folder / "B").write_bytes(b"other")
    names.add(content_of(folder))
    (folder / "B").rename(folder / "C")
    names.add(content_of(folder))
    (folder / "b" / "empty").unlink()
    names.add(content_of(folder))
    assert len(names) == 4 and all(name.endswith(".dir") for name in names)


def test_what_did_not_change_is_not_read_again(folder, readings, monkeypatch):
    monkeypatch.setattr(module, "_SETTLED_NS", -(10**12))  # these files are as if written long ago
    first = content_of(folder)
    assert len(readings) == 5 and content_of(folder) == first and len(readings) == 5
    times = (folder / "B").stat()
    (folder / "B").write_bytes(b"THREE")  # of the same size, and with its old time of change put back
    os.utime(folder / "B", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert content_of(folder, read=False) is None and content_of(folder) != first and len(readings) == 10


def test_fresh_files_are_read_again(folder, readings):
    content_of(folder)
    content_of(folder)
    assert len(readings) == 10
