"""Contrastive losses: modules that take embeddings and never see a model."""

from hf_clip_domain.losses.base import available_losses, build_loss
from hf_clip_domain.losses.combined import WeightedSum
from hf_clip_domain.losses.info_nce import InfoNCE
from hf_clip_domain.losses.negatives import Negatives
from hf_clip_domain.losses.siglip import SigLIP

__all__ = ["InfoNCE", "Negatives", "SigLIP", "WeightedSum", "available_losses", "build_loss"]
