"""What fine-tuning changed: one object that the console, the model card and the gate all render."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation.bootstrap import interval
from hf_clip_domain.evaluation.measurement import Measurement
from hf_clip_domain.evaluation.tables import DIRECTIONS, RETRIEVAL, console, markdown, retrieval_groups


@dataclass(frozen=True)
class EvaluationReport:
    """Metrics of the base model and of the fine-tuned one on the same data.

    Attributes:
        before: flat metrics of the base model, as `RetrievalEvaluator` returns them; further groups carry
            their name as a prefix (`"general/image_to_text/recall@1"`).
        after: the same of the fine-tuned model.
        dataset, domain, model, base_model: names, for the reader.
        extra: anything else that JSON can hold.
        intervals: 95% confidence intervals `[low, high]` by key: of "before", of "after", and of the "change" (the
            difference on the same resamples, so narrower than the two alone suggest).
    """

    before: dict[str, float]
    after: dict[str, float]
    dataset: str = ""
    domain: str = ""
    model: str = ""
    base_model: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    intervals: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @classmethod
    def compare(cls, before: Measurement | None, after: Measurement, **names: Any) -> EvaluationReport:
        """The report of two measurements on the same pairs, or of one; `names` as the attributes."""
        intervals: dict[str, dict[str, list[float]]] = {"before": {}, "after": {}, "change": {}}
        old = before.replicates if before is not None else {}
        for side, replicates in (("before", old), ("after", after.replicates)):
            intervals[side] = _intervals(replicates)
        both = [key for key, found in after.replicates.items() if key in old and len(found) == len(old[key])]
        intervals["change"] = _intervals({key: after.replicates[key] - old[key] for key in both})
        extra = {"details": after.details, "skipped": after.skipped, "clusters": after.clusters}
        return cls(
            before=before.metrics if before is not None else {},
            after=after.metrics,
            intervals={side: found for side, found in intervals.items() if found},
            extra={name: value for name, value in extra.items() if value} | names.pop("extra", {}),
            **names,
        )

    def is_real(self, key: str) -> bool | None:
        """Whether the interval of the change excludes zero; `None` where there is no interval."""
        found = self.intervals.get("change", {}).get(key)
        return None if found is None else found[0] > 0 or found[1] < 0

    def save(self, path: str | Path) -> Path:
        """Write JSON (into `evaluation.json` when `path` is a folder), whole or not at all; returns the file.

        Standard JSON has no NaN: a number that is not finite is written as `null` and read back as NaN.
        """
        path = Path(path)
        path = path / "evaluation.json" if path.is_dir() else path
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(without_nan(asdict(self)), indent=2, ensure_ascii=False, allow_nan=False)
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
        return retrieval_groups(self.after)

    def table(self) -> str:
        """For the console: before, after and change in both directions, at most 100 columns wide."""
        return console(self)

    def markdown(self) -> str:
        """The same as GitHub tables."""
        return markdown(self)

    def model_index_metrics(self) -> list[tuple[str, str, float]]:
        """`(type, name, value)` of the fine-tuned model's finite retrieval metrics, for a model card's
        metadata."""
        found = []
        for group in self.groups():
            for direction, title in DIRECTIONS.items():
                for metric, heading, _ in RETRIEVAL:
                    value = self.after.get("/".join(filter(None, (group, direction, metric))), math.nan)
                    if math.isfinite(value):
                        kind = "_".join(filter(None, (group, direction, metric)))
                        name = f"{title.replace('->', 'to').capitalize()} {heading}" + (f" ({group})" if group else "")
                        found.append((kind, name, value))
        return found


def _intervals(replicates: dict[str, Any]) -> dict[str, list[float]]:
    found = {key: interval(values) for key, values in replicates.items()}
    return {key: ends for key, ends in found.items() if ends is not None}


def without_nan(value: Any) -> Any:
    """The same with `None` for every number that is not finite, since JSON has no word for them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): without_nan(item) for key, item in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, list | tuple) else value
