"""Which version of a dataset it is: the content of its files, what DVC tracks of it, and an earlier revision of it."""

from hf_clip_domain.data.versions.content import content_of
from hf_clip_domain.data.versions.pinned import PREFIX, Pinned, local_path
from hf_clip_domain.data.versions.repository import Repository
from hf_clip_domain.data.versions.tracked import Tracked, tracked_by

__all__ = ["PREFIX", "Pinned", "Repository", "Tracked", "content_of", "local_path", "tracked_by"]
