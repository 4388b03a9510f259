"""The tracked runs of an experiment side by side: what differed between them, and what came of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation import EvaluationReport
from hf_clip_domain.evaluation.compare import is_share
from hf_clip_domain.evaluation.forgetting import RETAINED
from hf_clip_domain.evaluation.report import without_nan
from hf_clip_domain.ops.registry import registry_client
from hf_clip_domain.ops.tracking.store import PARENT_TAG, safe_key

REPORT = "evaluation.json"
# Settings that say where a run was kept and how it was told of, not what it did.
_PLACES = ("output_dir", "run_name", "logging", "report_to", "notify", "disable_tqdm", "hub_", "push_to_hub")
_LESS_IS_BETTER = ("_rank", "/ece", "/lost_points")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        params: all settings, flat.
        score, interval: of the metric, and its 95% interval where the run's report has one.
        base: the base model's score; NaN where it was not measured.
        retained: share of the general recall that was kept; NaN without a probe.
    """

    run_id: str
    name: str
    params: dict[str, str]
    score: float
    interval: list[float] | None
    base: float
    retained: float

    @property
    def order(self) -> tuple[float, float]:
        """For the best first; what was not measured is least."""
        return self.score, self.retained if math.isfinite(self.retained) else -math.inf


@dataclass(frozen=True)
class Group:
    """Runs that were scored on the same: their figures may be compared.

    Attributes:
        runs: the best first.
        differing: names of the settings that are not the same in all of them.
        pareto: ids of the runs than which none is better in one of score and retained, and no worse in the other.
    """

    domain: str
    dataset: str
    runs: list[Run]
    differing: list[str]
    pareto: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.domain}, {self.dataset}" if self.dataset else self.domain


@dataclass(frozen=True)
class Experiment:
    """All finished runs of an experiment, by domain and dataset."""

    name: str
    metric: str
    groups: list[Group]

    def save(self, path: str | Path) -> Path:
        """Write JSON, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(without_nan(asdict(self)), indent=2, ensure_ascii=False) + "\n", "utf-8")
        os.replace(temporary, path)
        return path

    def table(self) -> str:
        """For the console: a line a run, the best first, then the settings that differ."""
        lines = [f"{self.metric} of the runs of {self.name}, with 95% intervals:"]
        for group in self.groups:
            width = max(len(run.name) for run in group.runs) + 2
            lines += ["", f"{group.title}:"]
            for place, run in enumerate(group.runs):
                marks = ["best"] * (place == 0 and len(group.runs) > 1) + ["Pareto"] * (run.run_id in group.pareto)
                score = shown(run.score, run.interval, metric=self.metric)
                lines.append(f"  {run.name:{width}}{score:28}{kept(run.retained):18}{', '.join(marks)}")
                if group.differing:
                    lines.append("    " + ", ".join(f"{name}={run.params.get(name, '-')}" for name in group.differing))
        return "\n".join(lines)


def shown(value: float, interval: list[float] | None = None, *, metric: str = RETAINED) -> str:
    """A score with its interval, in percent where the metric is a share; `-` for what was not measured."""
    if not math.isfinite(value):
        return "-"
    numbers = [f"{100 * one:.1f}" if is_share(metric) else f"{one:.3f}" for one in (value, *(interval or ()))]
    return numbers[0] + (f" [{', '.join(numbers[1:])}]" if interval else "")


def kept(value: float) -> str:
    """What was retained of the general recall."""
    return f"{100 * value:.1f} retained" if math.isfinite(value) else ""


def read_experiment(name: str, metric: str) -> Experiment:
    """The finished runs of an experiment of `MLFLOW_TRACKING_URI` that have the metric; trials are not among them.

    Raises:
        ClipDomainError: no such experiment, no run with that metric, one of which less is better, or the server does not answer.
    """
    if metric.endswith(_LESS_IS_BETTER):
        raise ClipDomainError(f"--metric {metric}: runs are ordered by one of which more is better, such as mrr.")
    with registry_client() as client:
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise ClipDomainError(f"--experiment {name}: the tracking server has none of that name.")
        found: dict[tuple[str, str], list[Run]] = {}
        known: set[str] = set()
        for run in _pages(client, experiment.experiment_id):
            scores, tags = run.data.metrics, run.data.tags
            known.update(key.removeprefix("after/") for key in scores if key.startswith("after/"))
            if PARENT_TAG in tags or f"after/{safe_key(metric)}" not in scores:
                continue
            with TemporaryDirectory() as scratch:
                ends = _intervals(client, run.info.run_id, scratch)
            one = Run(
                run_id=run.info.run_id,
                name=run.info.run_name,
                params=dict(run.data.params),
                score=scores[f"after/{safe_key(metric)}"],
                interval=ends.get(metric),
                base=scores.get(f"before/{safe_key(metric)}", math.nan),
                retained=scores.get(f"after/{safe_key(RETAINED)}", math.nan),
            )
            found.setdefault((tags.get("domain", ""), tags.get("dataset", "")), []).append(one)
    if not found:
        told = f"found {', '.join(sorted(known)[:20])}" if known else "it has no finished run with scores"
        raise ClipDomainError(f"--experiment {name}: no finished run with the metric {metric}: {told}.")
    groups = [group_of(domain, dataset, runs) for (domain, dataset), runs in sorted(found.items())]
    return Experiment(name, metric, groups)


def group_of(domain: str, dataset: str, runs: Sequence[Run]) -> Group:
    """The best first, with what differs."""
    runs = sorted(runs, key=lambda run: run.order, reverse=True)
    names = sorted({name for run in runs for name in run.params})
    differing = [
        name
        for name in names
        if len({run.params.get(name) for run in runs}) > 1 and not name.rpartition(".")[2].startswith(_PLACES)
    ]
    return Group(domain, dataset, runs, differing, pareto(runs))


def pareto(runs: Iterable[Run]) -> list[str]:
    """Of runs with a probe, those that no other surpasses: at least as good in both, and better in one."""
    probed = [run for run in runs if math.isfinite(run.retained)]

    def surpassed(run: Run) -> bool:
        return any(
            other.score >= run.score and other.retained >= run.retained and other.order != run.order for other in probed
        )

    return [run.run_id for run in probed if not surpassed(run)]


def _pages(client: Any, experiment: str) -> Iterable[Any]:
    token = None
    while True:
        page = client.search_runs([experiment], "attributes.status = 'FINISHED'", page_token=token)
        yield from page
        if not (token := page.token):
            return


def _intervals(client: Any, run_id: str, scratch: str) -> dict[str, list[float]]:
    """Of the tuned model's metrics, from the report among the run's files."""
    if not any(file.path == REPORT for file in client.list_artifacts(run_id)):
        return {}
    return EvaluationReport.load(client.download_artifacts(run_id, REPORT, scratch)).intervals.get("after", {})
