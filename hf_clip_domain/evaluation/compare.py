"""Several models on several sets: a matrix of figures, and which differences are real.

Two models are compared on a set by a paired bootstrap over the same queries. Every pair of models on every set is one
comparison; their p values are corrected together by Holm's method, so that among all of them the chance of calling
any difference real by accident stays below 5%. The interval beside a difference is that of this comparison alone.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from hf_clip_domain.evaluation.bootstrap import holm, interval, p_value
from hf_clip_domain.evaluation.measurement import Measurement
from hf_clip_domain.evaluation.report import without_nan

ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """`second` less `first` on a set.

    Attributes:
        interval: 95%, of this comparison alone; `None` for too few clusters to tell.
        p: two-sided; `adjusted`: Holm's, over all comparisons of the table; real below 0.05.
    """

    dataset: str
    first: str
    second: str
    difference: float
    interval: list[float] | None
    p: float
    adjusted: float
    real: bool

    def verdict(self) -> str:
        """Whether the difference is real, with its corrected p value."""
        if math.isnan(self.p):
            return "too few independent clusters to tell"
        return f"{'real' if self.real else 'not shown'} ({_p(self.adjusted)})"


@dataclass(frozen=True)
class Comparison:
    """A matrix of one metric: `scores[model][dataset]`, its intervals, and all differences."""

    metric: str
    models: list[str]
    datasets: list[str]
    scores: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, list[float] | None]]
    differences: list[Difference]

    def save(self, path: str | Path) -> Path:
        """Write JSON, whole or not at all; a number that is not finite becomes `null`."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            text = json.dumps(without_nan(asdict(self)), indent=2, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def table(self) -> str:
        """For the console: the matrix with intervals, then every difference and whether it is real."""
        number, ends = self.number, self.ends
        first = max(map(len, [*self.models, "model"])) + 2
        width = max(24, *(len(name) + 2 for name in self.datasets))
        lines = [f"{self.heading()}:", ""]
        lines.append(f"{'model':{first}}" + "".join(f"{name:>{width}}" for name in self.datasets))
        for model in self.models:
            cells = (
                f"{number(self.scores[model][name])} {ends(self.intervals[model][name])}".strip()
                for name in self.datasets
            )
            lines.append(f"{model:{first}}" + "".join(f"{cell:>{width}}" for cell in cells))
        if self.differences:
            lines += ["", f"Differences (paired bootstrap; p by Holm over {len(self.differences)} comparisons):"]
        for one in self.differences:
            found = f"{number(one.difference, True)} {ends(one.interval, True)}".strip()
            lines.append(f"  {one.dataset}: {one.second} less {one.first}: {found}, {one.verdict()}")
        return "\n".join(lines)

    def heading(self) -> str:
        """The metric and its unit."""
        return f"{self.metric}{' (%)' if is_share(self.metric) else ''}, with 95% intervals"

    def number(self, value: float, signed: bool = False) -> str:
        """A score or a difference of scores."""
        percent = is_share(self.metric)
        return f"{100 * value if percent else value:{'+' if signed else ''}.{1 if percent else 3}f}"

    def ends(self, found: list[float] | None, signed: bool = False) -> str:
        """An interval; nothing without."""
        return f"[{self.number(found[0], signed)}, {self.number(found[1], signed)}]" if found else ""


def compare(measured: dict[str, dict[str, Measurement]], metric: str) -> Comparison:
    """Compare models on sets.

    Args:
        measured: model -> set -> what was measured; the same sets for all models, on the same pairs.
        metric: a key of `retrieval_metrics` that has replicates, such as `text_to_image/recall@10`.
    """
    models = list(measured)
    datasets = list(next(iter(measured.values())))
    found = []
    for name in datasets:
        for first, second in itertools.combinations(models, 2):
            sides = [measured[model][name] for model in (first, second)]
            difference = sides[1].metrics[metric] - sides[0].metrics[metric]
            replicates = [side.replicates.get(metric) for side in sides]
            ends, p = None, math.nan
            if all(values is not None for values in replicates):
                ends, p = interval(replicates[1] - replicates[0]), p_value(replicates[1] - replicates[0])
            found.append((name, first, second, difference, ends, p))
    told = [one for one in found if not math.isnan(one[-1])]
    adjusted = dict(zip((one[:3] for one in told), holm([one[-1] for one in told]), strict=True))
    return Comparison(
        metric=metric,
        models=models,
        datasets=datasets,
        scores={model: {name: measured[model][name].metrics[metric] for name in datasets} for model in models},
        intervals={model: {name: _interval(measured[model][name], metric) for name in datasets} for model in models},
        differences=[
            Difference(*one, adjusted.get(one[:3], math.nan), adjusted.get(one[:3], 1.0) < ALPHA) for one in found
        ],
    )


def _interval(measurement: Measurement, metric: str) -> list[float] | None:
    values = measurement.replicates.get(metric)
    return None if values is None else interval(values)


def is_share(metric: str) -> bool:
    """Whether a metric is shown in percent."""
    return metric.rpartition("/")[2] not in ("mrr", "mean_rank", "median_rank")


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
