"""What a run tells MLflow: written to a journal on disk first, sent by a thread of its own, so that a tracking server
that is slow or away costs the run nothing and loses nothing."""

from hf_clip_domain.ops.tracking.journal import Journal
from hf_clip_domain.ops.tracking.sender import Sender
from hf_clip_domain.ops.tracking.store import MlflowStore
from hf_clip_domain.ops.tracking.tracker import Tracker

__all__ = ["Journal", "MlflowStore", "Sender", "Tracker"]
