"""What fine-tuning changed: one object that the console, the model card and the gate all render."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hf_clip_domain.errors import ClipDomainError

DIRECTIONS = {"image_to_text": "image -> text", "text_to_image": "text -> image"}
# (metric, heading, shown as a percentage)
ROWS = (
    ("recall@1", "Recall@1", True),
    ("recall@5", "Recall@5", True),
    ("recall@10", "Recall@10", True),
    ("mean_rank", "Mean rank", False),
    ("median_rank", "Median rank", False),
    ("mrr", "MRR", False),
    ("map_by_label", "mAP by label", True),
)


@dataclass(frozen=True)
class EvaluationReport:
    """Metrics of the base model and of the fine-tuned one on the same data.

    Attributes:
        before: flat metrics of the base model, as `RetrievalEvaluator` returns them; further groups carry
            their name as a prefix (`"general/image_to_text/recall@1"`).
        after: the same of the fine-tuned model.
        dataset, domain, model, base_model: names, for the reader.
        extra: anything else that JSON can hold.
    """

    before: dict[str, float]
    after: dict[str, float]
    dataset: str = ""
    domain: str = ""
    model: str = ""
    base_model: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """Write JSON (into `evaluation.json` when `path` is a folder), whole or not at all; returns the file.

        Standard JSON has no NaN: a number that is not finite is written as `null` and read back as NaN.
        """
        path = Path(path)
        path = path / "evaluation.json" if path.is_dir() else path
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_without_nan(asdict(self)), indent=2, ensure_ascii=False, allow_nan=False)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(text + "\n", encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> EvaluationReport:
        """Read what `save` wrote (a file, or the folder with `evaluation.json`).

        Raises:
            ClipDomainError: there is no such file, or it is not a report.
        """
        path = Path(path)
        path = path / "evaluation.json" if path.is_dir() else path
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ClipDomainError(f"no evaluation report at {path} ({error.strerror}).") from error
        except ValueError as error:
            raise ClipDomainError(f"{path} is not valid JSON ({error}).") from error
        if not isinstance(stored, dict) or not all(isinstance(stored.get(key), dict) for key in ("before", "after")):
            raise ClipDomainError(f'{path} is not an evaluation report: expected the objects "before" and "after".')
        known = {item.name: stored[item.name] for item in fields(cls) if item.name in stored}
        for side in ("before", "after"):
            known[side] = {key: math.nan if value is None else value for key, value in known[side].items()}
        return cls(**known)

    def groups(self) -> list[str]:
        """Prefixes of the groups of retrieval metrics, the unnamed main group `""` first."""
        found = {key[: -len("image_to_text/recall@1")] for key in self.after if key.endswith("image_to_text/recall@1")}
        return sorted(prefix.rstrip("/") for prefix in found)

    def table(self) -> str:
        """For the console: before, after and change in both directions, at most 100 columns wide."""
        return "\n\n".join(self._console_group(group) for group in self.groups())

    def markdown(self) -> str:
        """The same as a GitHub table."""
        return "\n\n".join(self._markdown_group(group) for group in self.groups())

    def model_index_metrics(self) -> list[tuple[str, str, float]]:
        """`(type, name, value)` of the fine-tuned model's finite retrieval metrics, for a model card's
        metadata."""
        found = []
        for group in self.groups():
            for direction, title in DIRECTIONS.items():
                for metric, heading, _ in ROWS:
                    value = self.after.get(_key(group, direction, metric), math.nan)
                    if math.isfinite(value):
                        kind = "_".join(filter(None, (group, direction, metric)))
                        name = f"{title.replace('->', 'to').capitalize()} {heading}" + (f" ({group})" if group else "")
                        found.append((kind, name, value))
        return found

    def _cells(self, group: str) -> list[list[str]]:
        rows = []
        for metric, heading, percent in ROWS:
            if not any(math.isfinite(self._either(_key(group, direction, metric))) for direction in DIRECTIONS):
                continue
            row = [heading + (" (%)" if percent else "")]
            for direction in DIRECTIONS:
                key = _key(group, direction, metric)
                before, after = (side.get(key, math.nan) for side in (self.before, self.after))
                row += [_number(before, metric, percent), _number(after, metric, percent)]
                row.append(_number(after - before, metric, percent, signed=True))
            rows.append(row)
        return rows

    def _footnotes(self, group: str) -> list[str]:
        notes = []
        counts = [self._either(_key(group, direction, "candidates")) for direction in DIRECTIONS]
        if all(map(math.isfinite, counts)):
            notes.append(f"Candidates: {counts[0]:,.0f} texts for an image, {counts[1]:,.0f} images for a text.")
        chances = []
        for direction, title in DIRECTIONS.items():
            values = [self._either(_key(group, direction, f"chance_recall@{k}")) for k in (1, 5, 10)]
            if all(map(math.isfinite, values)):
                chances.append(f"{title} " + " / ".join(f"{100 * value:.1f}" for value in values))
        if chances:
            notes.append("Chance Recall@1 / 5 / 10 (%): " + ", ".join(chances) + ".")
        kept = self.after.get(f"{group}/retained_recall@10", math.nan)
        if math.isfinite(kept):
            lost = self.after[f"{group}/lost_points"]
            notes.append(f"Retained: {kept:.1%} of the mean Recall@10, {lost:.1f} points lost.")
        return notes

    def _either(self, key: str) -> float:
        return self.after.get(key, self.before.get(key, math.nan))

    def _console_group(self, group: str) -> str:
        first, width = 16, 10
        head = f"{'':{first}}" + " | ".join(f"{title:^{3 * width}}" for title in DIRECTIONS.values())
        names = f"{'':{first}}" + " | ".join(
            "".join(f"{name:>{width}}" for name in ("before", "after", "change")) for _ in DIRECTIONS
        )
        lines = [f"{group}:"] if group else []
        lines += [head.rstrip(), names, "-" * len(names)]
        for heading, *cells in self._cells(group):
            halves = ("".join(f"{cell:>{width}}" for cell in half) for half in (cells[:3], cells[3:]))
            lines.append(f"{heading:{first}}" + " | ".join(halves))
        return "\n".join(lines + self._footnotes(group))

    def _markdown_group(self, group: str) -> str:
        columns = [
            f"{title}, {name}" for title in ("image → text", "text → image") for name in ("before", "after", "change")
        ]
        lines = [f"**{group}**", ""] if group else []
        lines += ["| | " + " | ".join(columns) + " |", "|:--|" + "--:|" * len(columns)]
        lines += ["| " + " | ".join(row) + " |" for row in self._cells(group)]
        notes = [note.replace("->", "→") for note in self._footnotes(group)]
        return "\n".join(lines + ([""] + notes if notes else []))


def _key(group: str, direction: str, metric: str) -> str:
    return "/".join(filter(None, (group, direction, metric)))


def _number(value: float, metric: str, percent: bool, signed: bool = False) -> str:
    if not math.isfinite(value):
        return "n/a"
    digits = 3 if metric == "mrr" else 1
    return f"{100 * value if percent else value:{'+' if signed else ''}.{digits}f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list | tuple) else value
