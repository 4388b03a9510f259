"""Contrastive losses: modules that take embeddings and never see a model."""

from hf_clip_domain.losses.base import available_losses, build_loss
from hf_clip_domain.losses.info_nce import InfoNCE

__all__ = ["InfoNCE", "available_losses", "build_loss"]
