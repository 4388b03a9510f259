"""Training: Hugging Face's Trainer with a contrastive loss, exact micro-batches and checkpoints that survive a kill."""

from hf_clip_domain.training.trainer import ClipTrainer

__all__ = ["ClipTrainer"]
