"""The meter as a callback of transformers' Trainer, on which three of the four programs stand."""

from __future__ import annotations

from collections.abc import Callable

from transformers import TrainerCallback

from peers.work import Meter


class Metered(TrainerCallback):
    """Times every step of a "step" run, and every epoch of an "adapt" run."""

    def __init__(self, meter: Meter, model, save: Callable[[str], object] | None = None) -> None:
        self.meter, self.model, self.save = meter, model, save or model.save_pretrained
        self.steps = meter.work.mode == "step"

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        named = dict(self.model.named_parameters())
        plain = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        self.meter.keep_gradient(plain, lambda: {n: p.grad for n, p in named.items() if p.grad is not None})
        self.meter.start()

    def on_step_end(self, args, state, control, **kwargs):
        if self.steps:
            self.meter.stop()
            self.meter.start()

    def on_epoch_end(self, args, state, control, **kwargs):
        if not self.steps:
            self.meter.epoch(self.save)


def arguments(work, **more) -> dict:
    """Of `TrainingArguments`, the same for all programs."""
    steps, warmup = (work.steps, 0) if work.mode == "step" else work.steps_of_all()
    shared = {
        "output_dir": f"{work.out}/trainer",
        "per_device_train_batch_size": work.batch,
        "max_steps": steps,
        "learning_rate": work.learning_rate,
        "weight_decay": work.weight_decay,
        "warmup_steps": warmup,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 0.0 if work.mode == "step" else 1.0,
        "dataloader_drop_last": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": work.seed,
    }
    return {**shared, **more}
