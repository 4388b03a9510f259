"""Datasets under version control: a snapshot with its card, and which revision a run was trained on."""

from hf_clip_domain.ops.versioning.card import DatasetCard
from hf_clip_domain.ops.versioning.figures import Reading, describe, shortcomings
from hf_clip_domain.ops.versioning.revision import DatasetRevision, revision_of
from hf_clip_domain.ops.versioning.snapshot import Snapshot, take_snapshot

__all__ = [
    "DatasetCard",
    "DatasetRevision",
    "Reading",
    "Snapshot",
    "describe",
    "revision_of",
    "shortcomings",
    "take_snapshot",
]
