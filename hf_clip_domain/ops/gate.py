"""What a model must show before it takes another's place: better at its domain, no worse elsewhere than agreed, good at
the picture size at which it is served, and the same once exported."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_clip_domain._optional import require
from hf_clip_domain.device import find_device
from hf_clip_domain.domains import Domain
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.evaluation import RetrievalEvaluator
from hf_clip_domain.evaluation.compare import compare
from hf_clip_domain.evaluation.embedded import measure_retrieval
from hf_clip_domain.evaluation.forgetting import LOST, MEAN_RECALL, ForgettingProbe, mean_recall, retained
from hf_clip_domain.evaluation.measurement import Measurement
from hf_clip_domain.models.beside import similarity_beside
from hf_clip_domain.models.exported.loading import load_encoder
from hf_clip_domain.models.exported.record import find_record
from hf_clip_domain.models.image_positions import at_image_size
from hf_clip_domain.models.image_sizes import image_settings
from hf_clip_domain.sharing.export.exporter import PACKAGES, export_model

REPLICATES = 5000
EXPORT_ROWS = 200


@dataclass(frozen=True)
class Check:
    """One condition of the gate.

    Attributes:
        passed: `None` where it could not be checked, which holds nobody back.
        told: one sentence, with the figures and the limit.
        figures: the same for machines; fit for JSON.
    """

    name: str
    passed: bool | None
    told: str
    figures: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """For the console."""
        return f"  {'not checked' if self.passed is None else 'pass' if self.passed else 'FAIL':11}  {self.told}"


@dataclass(frozen=True)
class Course:
    """On what models are measured, all of them on the same.

    Attributes:
        pairs, domain: of the target.
        probe, probe_domain: general pairs; `None` for no probe.
        resolution: side in pixels at which pictures are embedded; `None` for each model's own.
    """

    pairs: Sequence[dict[str, Any]]
    domain: Domain
    probe: Sequence[dict[str, Any]] | None
    probe_domain: Domain
    resolution: int | None = None
    batch_size: int = 64


@dataclass(frozen=True)
class Measured:
    """What a model scored on a course.

    Attributes:
        own_size: side of the model's own pictures; `size`: of those of the course.
        target: retrieval on the pairs at `size`, with replicates; `at_own_size`: the same where that is another.
        probe: scores of the probe; empty without.
    """

    own_size: int
    size: int
    target: Measurement
    at_own_size: Measurement
    probe: Mapping[str, float]


def measure_model(path: str, course: Course) -> Measured:
    """Load a model and measure it.

    Raises:
        ClipDomainError: it cannot be loaded, or embeds no pictures of that size.
    """
    model, processor = load_encoder(path)
    similarity = similarity_beside(path, model)
    model.to(find_device())
    shared = {"batch_size": course.batch_size, "similarity": similarity}

    def score(model: Any, processor: Any) -> Measurement:
        evaluator = RetrievalEvaluator(course.pairs, processor, domain=course.domain, **shared)
        return measure_retrieval(evaluator.embed(model), REPLICATES)

    own_size = image_settings(processor)[0]
    at_own_size = target = score(model, processor)
    if course.resolution not in (None, own_size):
        model, processor = at_image_size(model, processor, course.resolution)
        target = score(model, processor)
    probe = {}
    if course.probe is not None:
        probe = ForgettingProbe(course.probe, processor, domain=course.probe_domain, **shared)(model)
    return Measured(own_size, course.resolution or own_size, target, at_own_size, probe)


def check_metric(metric: str, measured: Measured) -> None:
    """Raises:
    ClipDomainError: no such figure, or one of which less is better.
    """
    known = [key for key in measured.target.metrics if key.startswith(("image_to_text/", "text_to_image/"))]
    known = [key for key in known if key.endswith("mrr") or "recall@" in key]
    if metric not in known:
        raise ClipDomainError(f"--metric {metric}: expected one of {', '.join(known)}.")


def check_target(candidate: Measured, incumbent: Measured, metric: str, against: str) -> Check:
    """Better on the same queries, and not by chance: the 95% interval of a paired bootstrap lies above zero.

    Args:
        against: who the incumbent is, for the sentence.
    """
    name = "domain"
    both = {"incumbent": {name: incumbent.target}, "candidate": {name: candidate.target}}
    found = compare(both, metric)
    (difference,) = found.differences
    scores = {who: found.scores[who][name] for who in both}
    better = difference.real and difference.difference > 0
    told = (
        f"{metric} {found.number(scores['candidate'])} against {found.number(scores['incumbent'])} of {against}: "
        f"{found.number(difference.difference, True)} {found.ends(difference.interval, True)}, "
    )
    told += "better" if better else "worse" if difference.real else difference.verdict()
    figures = {**scores, "metric": metric, "difference": difference.difference, "interval": difference.interval}
    return Check("target", better, told, {**figures, "p": None if math.isnan(difference.p) else difference.p})


def check_forgetting(candidate: Measured, base: Measured, budget: float, of: str) -> Check:
    """At most `budget` percentage points of the probe's mean Recall@10 below the base model's."""
    lost = retained(base.probe, candidate.probe).get(LOST)
    if lost is None:
        return Check("forgetting", None, "forgetting: there is no probe of general pairs")
    told = (
        f"general mean Recall@10 {100 * candidate.probe[MEAN_RECALL]:.1f} against {100 * base.probe[MEAN_RECALL]:.1f} "
        f"of {of}: {lost:+.2f} points lost of {budget:g} allowed"
    )
    figures = {"base": base.probe[MEAN_RECALL], "candidate": candidate.probe[MEAN_RECALL], "lost_points": lost}
    return Check("forgetting", lost <= budget + 1e-9, told, {**figures, "budget": budget})


def check_resolution(candidate: Measured, budget: float) -> Check:
    """At most `budget` percentage points of the domain's mean Recall@10 below what it has at its own size."""
    if candidate.size == candidate.own_size:
        told = f"measured as it is served, at its own {candidate.own_size} px"
        return Check("resolution", True, told, {"resolution": candidate.own_size})
    own, served = mean_recall(candidate.at_own_size.metrics), mean_recall(candidate.target.metrics)
    lost = 100 * (own - served)
    told = (
        f"mean Recall@10 {100 * served:.1f} at {candidate.size} px against {100 * own:.1f} at its own "
        f"{candidate.own_size} px: {lost:+.2f} points lost of {budget:g} allowed"
    )
    figures = {"resolution": candidate.size, "own": candidate.own_size, "lost_points": lost, "budget": budget}
    return Check("resolution", lost <= budget + 1e-9, told, figures)


def check_export(folder: str, pairs: Any, format: str) -> Check:
    """The model exported in float32 embeds and finds as itself; nothing of the export is kept."""
    record = find_record(folder)
    if record is not None and record.format != "safetensors":
        return Check("export", True, f"is an {record.format} export, compared when it was made", dict(record.check))
    if format == "none":
        return Check("export", None, "export: not asked for (--export none)")
    try:
        for package in PACKAGES[format]:
            require(package, extra=format)
    except ClipDomainError as error:
        return Check("export", None, f"export to {format}: {error}")
    rows = pairs.select(range(min(EXPORT_ROWS, len(pairs))))
    with tempfile.TemporaryDirectory() as scratch:
        try:
            check = export_model(folder, Path(scratch) / "export", format=format, pairs=rows, say=lambda _: None).check
        except ClipDomainError as error:
            return Check("export", False, f"export to {format}: {error}", {"format": format})
    told = f"exported to {format}, embeddings differ by {check['difference']:.1e} and recall by "
    figures = {name: check[name] for name in ("images", "texts", "difference", "retrieval_delta")}
    return Check("export", True, f"{told}{check['retrieval_delta']:.2f} points", {"format": format, **figures})
