"""Adapt CLIP to a specialised domain with Hugging Face's Trainer, and prove what improved.

The public names are imported when first used, so that `import hf_clip_domain` stays light.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "ClipTrainer": "training",
    "ClipTrainingArguments": "arguments",
    "ModelArguments": "arguments",
    "DataArguments": "arguments",
    "Domain": "domains",
    "load_domain": "domains",
    "available_domains": "domains",
    "load_pairs": "data.loading",
    "PairCollator": "data.collator",
    "load_model": "models.loading",
    "build_loss": "losses",
    "build_similarity": "similarity",
    "ClipEmbedder": "embedder",
    "RetrievalEvaluator": "evaluation",
    "EvaluationReport": "evaluation",
    "merge_weights": "models.merging",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return sorted(__all__)
