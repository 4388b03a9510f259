"""The content of files as one short name, the one that DVC gives them: whoever has no DVC can still compare."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hf_clip_domain.errors import ClipDomainError

# A file changed within a clock tick of being read would look unchanged; so what is that fresh is read again.
_SETTLED_NS = 2_000_000_000
_NOT_DATA = (".git", ".hg", ".dvc")


def cache_folder() -> Path:
    """Where this package keeps what it can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hf-clip-domain"


def files_below(folder: Path) -> list[tuple[str, Path]]:
    """The files of a folder that DVC would track, by their names in it with forward slashes."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _NOT_DATA]
        for name in names:
            path = Path(place) / name
            if path.is_file():
                found.append((path.relative_to(folder).as_posix(), path))
    return sorted(found)


def content_of(path: Path, *, read: bool = True) -> str | None:
    """The MD5 of a file, or that of a folder's names and contents with `.dir` behind it, as in DVC's `.dvc` files.

    Nothing is read again while no file's size or times have changed.

    Args:
        read: without it, `None` where the files would have to be read.

    Raises:
        ClipDomainError: a file that cannot be read.
    """
    path = Path(path).absolute()
    return _content([("", path)] if path.is_file() else files_below(path), path.is_dir(), str(path), read)


def content_of_files(files: Sequence[tuple[str, Path]]) -> str | None:
    """The same of files that lie anywhere, by the names given; of one alone its own MD5."""
    key = "\n".join(str(path.absolute()) for _, path in files)
    return _content(sorted(files), len(files) > 1, key, read=True)


def _content(files: Sequence[tuple[str, Path]], folder: bool, key: str, read: bool) -> str | None:
    memory = cache_folder() / "contents" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    try:
        stamps = [(name, *_stamp(path)) for name, path in files]
    except OSError as error:
        raise ClipDomainError(f"{error.filename} cannot be read: {error.strerror}.") from error
    stamp = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
    known = _remembered(memory)
    if known.get("stamp") == stamp:
        return known["content"]
    if not read:
        return None
    started = time.time_ns()
    try:
        with ThreadPoolExecutor(4) as pool:  # hashing holds no lock of the interpreter
            digests = list(pool.map(_md5, [path for _, path in files]))
    except OSError as error:
        raise ClipDomainError(f"{error.filename} cannot be read: {error.strerror}.") from error
    content = digests[0] if not folder else _of_folder([name for name, _ in files], digests)
    if all(max(changed, moved) < started - _SETTLED_NS for _, _, changed, moved, _ in stamps):
        memory.parent.mkdir(parents=True, exist_ok=True)
        own = memory.with_name(f".{memory.name}.{os.getpid()}")
        own.write_text(json.dumps({"of": key[:1000], "stamp": stamp, "content": content}), encoding="utf-8")
        os.replace(own, memory)
    return content


def _of_folder(names: Sequence[str], digests: Sequence[str]) -> str:
    # To the byte what DVC 3 writes for a folder.
    listing = [{"md5": digest, "relpath": name} for name, digest in zip(names, digests, strict=True)]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _stamp(path: Path) -> tuple[int, int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _md5(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _remembered(memory: Path) -> dict[str, str]:
    try:
        return json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
