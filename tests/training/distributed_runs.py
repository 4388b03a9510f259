"""Runs of a small model, one after the other, by as many processes as start this program; by this one when imported.

PROGRAM FOLDER RUNS     RUNS: a JSON object, a name -> the arguments of `train_run`; its outcome is FOLDER/NAME.pt
"""

import json
import random
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from unittest.mock import patch

import torch

if __name__ == "__main__":
    from hf_clip_domain.cli.processes import start_promised_processes

    start_promised_processes()

from transformers import TrainerCallback

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.losses import gather
from hf_clip_domain.training import ClipTrainer
from hf_clip_domain.training.micro_batching import MicroBatches

spec = spec_from_file_location("shared_by_distributed_runs", Path(__file__).with_name("conftest.py"))
shared = module_from_spec(spec)
spec.loader.exec_module(shared)

LOSSES = {
    "related": ("info_nce", {"positives": {"caption": 1, "label": 0.5}, "negatives": {"kind": "hard"}}),
    "learned": (
        "sum",
        {"terms": [{"name": "info_nce"}, {"name": "siglip"}], "similarity": "bilinear", "balance": "uncertainty"},
    ),
}


class Grouped(shared.Pairs):
    def __getitem__(self, key):
        return {**super().__getitem__(key), "targets": key % len(self) // 2}


class Related(shared.Pairs):
    def __getitem__(self, key):
        index = key % len(self)
        return {**super().__getitem__(key), "targets": {"caption": index // 2, "label": index % 3}}


class Grow(TrainerCallback):
    """Every step tries the whole batch again."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_begin(self, *_, **__):
        self.trainer.steps.replay.plan = MicroBatches(None)


def train_run(folder, batch, kind="plain", micro=3, resume=False):
    """The weights and what was logged, and how often this process ran out of memory."""
    loss, settings = LOSSES.get(kind, ("info_nce", None))
    arguments = ClipTrainingArguments(
        str(folder),
        per_device_train_batch_size=batch,
        micro_batch_size=micro,
        learning_rate=1e-3,
        max_steps=20 if kind == "shortage" else 5,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="steps",
        save_steps=3,
        seed=3,
        # The gradient of a key's bias is zero but for rounding, which Adam's usual 1e-8 would blow up to whole steps.
        adam_epsilon=1e-6,
        loss=loss,
        loss_settings=settings,
        logging_steps=1,
        monitor=False,
        # Both processes take the same sizes; with micro-batches that follow them.
        resolutions="8,16" if kind == "groups" else None,
        resolution_schedule="random",
        resolution_warmup=1,
    )
    trainer = ClipTrainer(
        shared.make_clip(),
        arguments,
        train_dataset={"groups": Grouped, "related": Related}.get(kind, shared.Pairs)(40),
        data_collator=torch.utils.data.default_collate,
    )
    plain = gather._sum_over_processes
    if kind == "shortage":
        trainer.add_callback(Grow(trainer))
    if kind == "shortage" and trainer.args.process_index == 1:  # one of two runs out of memory, at random places
        draws = random.Random(0)

        def perhaps_fail(*_):
            if draws.random() < 0.1 and trainer.steps.replay.plan.size != 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        for layer in (trainer.model.vision_model.encoder.layers[1], trainer.model.text_model.encoder.layers[0]):
            layer.register_forward_hook(perhaps_fail)
            layer.register_full_backward_hook(perhaps_fail)
        trainer.loss.register_forward_pre_hook(perhaps_fail)  # between two collectives
        between = patch.object(gather, "_sum_over_processes", lambda values: perhaps_fail() or plain(values))
    else:
        between = patch.object(gather, "_sum_over_processes", plain)
    with between:
        trainer.train(resume_from_checkpoint=resume)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = [name for name in logged[0] if "loss" in name or "gap" in name or "weight" in name]
    log = {f"log/{name}": torch.tensor([entry[name] for entry in logged]) for name in names}
    return {**trainer.model.state_dict(), **log}, trainer.steps.replay.shortages, trainer


def main(folder, runs):
    torch.set_num_threads(1)
    for name, choices in runs.items():
        found, shortages, trainer = train_run(folder / name, **choices)
        if trainer.is_world_process_zero():
            torch.save(found, folder / f"{name}.pt")
            print(f"{name} by {trainer.args.world_size} processes, replays: {shortages}")
    if trainer.args.world_size > 1:  # as the command does: who ends first would take the other down
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
