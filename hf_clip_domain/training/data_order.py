"""The order of the training pairs: a function of seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback


class EpochSampler(Sampler[int]):
    """A fresh permutation every epoch, the same whatever the number of processes, workers or resumptions.

    A dataset with `epoch_key(epoch, index)` receives that key instead of the index: the epoch then travels with
    every item, so that its random choices (caption, crop) depend on seed, epoch and row only. Dataloader workers
    keep a copy of the dataset and would never see an epoch set on the original.
    """

    def __init__(self, dataset, seed: int):
        self.dataset = dataset
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.dataset), generator=generator).tolist()
        key = getattr(self.dataset, "epoch_key", None)
        return iter(order if key is None else [key(self.epoch, index) for index in order])


class EpochCallback(TrainerCallback):
    """Tells the sampler which epoch begins.

    The dataloader's own `set_epoch` does not reach a sampler behind the wrappers that skip batches on resume in
    several processes, so the trainer's state, which survives resume, is the source.
    """

    def __init__(self, sampler: EpochSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.epoch = int(state.epoch or 0)
