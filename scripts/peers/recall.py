"""Scores of the models that a run left after each epoch, and when it reached a given recall."""

from __future__ import annotations

from pathlib import Path

from transformers import CLIPModel

from hf_clip_domain.data.loading import load_pairs
from hf_clip_domain.data.samples import load_samples
from hf_clip_domain.domains import load_domain
from hf_clip_domain.evaluation import RetrievalEvaluator
from hf_clip_domain.models.loading import load_model


def test_rows(domain: str, dataset: str | None):
    return (load_pairs(dataset) if dataset else load_samples(domain, seed=0))["test"]


def recalls(out: Path, epochs: int, domain: str, rows) -> list[float]:
    """Mean recall@10 of both directions (percent) on `rows` after every epoch.

    Pictures are shown as the domain has it and as CLIP itself has it (cropped), and the better counts: a peer's model
    was trained on the one, ours on the other.
    """
    _, processor = load_model("starter")
    views = [load_domain(domain), load_domain("general")]
    evaluators = [RetrievalEvaluator(rows, processor, domain=view, progress=False) for view in views]
    found = []
    for epoch in range(1, epochs + 1):
        model = CLIPModel.from_pretrained(out / f"epoch-{epoch}").eval()
        found.append(max(_mean_recall(evaluator(model)) for evaluator in evaluators))
    return found


def _mean_recall(scores: dict[str, float]) -> float:
    return 50 * (scores["image_to_text/recall@10"] + scores["text_to_image/recall@10"])


def time_to(recall: float, scores: list[float], seconds: list[float]) -> float | None:
    """Seconds until the first epoch that scores at least `recall`; `None` where none does."""
    return next((second for score, second in zip(scores, seconds, strict=True) if score >= recall), None)
