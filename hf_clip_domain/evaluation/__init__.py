"""How good a model is at its domain: retrieval, the report of before and after, and plots."""

from hf_clip_domain.evaluation.evaluator import RetrievalEvaluator
from hf_clip_domain.evaluation.plots import plot_recall, plot_retrieval_sample, plot_training_curve
from hf_clip_domain.evaluation.report import EvaluationReport
from hf_clip_domain.evaluation.retrieval import retrieval_metrics

__all__ = [
    "EvaluationReport",
    "RetrievalEvaluator",
    "plot_recall",
    "plot_retrieval_sample",
    "plot_training_curve",
    "retrieval_metrics",
]
