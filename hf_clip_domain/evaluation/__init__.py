"""How good a model is at its domain: retrieval, zero-shot, the domain's own metrics, terms, and their report."""

from hf_clip_domain.evaluation.evaluator import RetrievalEvaluator
from hf_clip_domain.evaluation.plots import plot_recall, plot_retrieval_sample, plot_training_curve
from hf_clip_domain.evaluation.report import EvaluationReport
from hf_clip_domain.evaluation.retrieval import retrieval_metrics
from hf_clip_domain.evaluation.suite import measure

__all__ = [
    "EvaluationReport",
    "RetrievalEvaluator",
    "measure",
    "plot_recall",
    "plot_retrieval_sample",
    "plot_training_curve",
    "retrieval_metrics",
]
