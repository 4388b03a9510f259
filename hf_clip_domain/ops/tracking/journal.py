"""The record of a run that a tracking server shall have, kept on disk until it has it."""

from __future__ import annotations

import json
import os
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENTRIES, SENT = "journal.jsonl", "sent.json"


@dataclass(frozen=True)
class Entry:
    """One fact: `kind` is `run`, `params`, `tags`, `metrics`, `artifact` or `end`; `content` is what JSON can hold.
    `of` names the part of the run that it belongs to, such as a trial; it is empty for the run itself."""

    kind: str
    content: dict[str, Any]
    of: str = ""


class Journal:
    """An append-only file of entries, and how many of them have been delivered.

    Opened again by a run that resumes: it goes on where it was, and a metric of a step that it already holds is not
    added a second time, since steps after the last checkpoint are run again.

    Args:
        folder: made when missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file, self._sent_file = folder / ENTRIES, folder / SENT
        self._lock = threading.Lock()
        self.entries = _read(self._file)
        self.delivered = 0
        if self._sent_file.exists():
            self.delivered = json.loads(self._sent_file.read_text(encoding="utf-8"))["entries"]
        self._known = {
            (entry.of, name, entry.content["step"])
            for entry in self.entries
            if entry.kind == "metrics"
            for name in entry.content["values"]
        }

    @property
    def key(self) -> str:
        """By which the run is found again on the server, whatever became of the answer to its creation."""
        first = next((entry for entry in self.entries if entry.kind == "run"), None)
        return first.content["key"] if first else ""

    def begin(self, of: str = "", **content: Any) -> None:
        """The run itself, or a part of it; once, also when it resumes."""
        if not any(entry.kind == "run" and entry.of == of for entry in self.entries):
            key = f"{self.key}:{of}" if of else uuid.uuid4().hex
            self.add("run", of, key=key, **content)

    def add_metrics(self, values: dict[str, float], step: int, time: int, of: str = "") -> None:
        """Values of a step at `time` (milliseconds since 1970), less those that are held already."""
        with self._lock:
            new = {name: value for name, value in values.items() if (of, name, step) not in self._known}
            self._known.update((of, name, step) for name in new)
        if new:
            self.add("metrics", of, values=new, step=step, time=time)

    def add(self, kind: str, of: str = "", **content: Any) -> None:
        """Append an entry; it is on disk when this returns."""
        line = json.dumps({"kind": kind, "of": of, **content})
        with self._lock:
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(line + "\n")
            self.entries.append(Entry(kind, content, of))

    def pending(self) -> list[Entry]:
        """Not yet delivered, in their order."""
        with self._lock:
            return self.entries[self.delivered :]

    def acknowledge(self, count: int) -> None:
        """The server has the next `count` entries."""
        with self._lock:
            self.delivered += count
            part = self._sent_file.with_suffix(".part")
            part.write_text(json.dumps({"entries": self.delivered}), encoding="utf-8")
            os.replace(part, self._sent_file)


def _read(file: Path) -> list[Entry]:
    """Whole lines only: a process that was killed may have left half of one, which is cut off."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    entries = []
    for line in whole.splitlines():
        content = json.loads(line)
        entries.append(Entry(content.pop("kind"), of=content.pop("of"), content=content))
    return entries
