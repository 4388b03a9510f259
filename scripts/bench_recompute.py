"""What recomputing costs: the time of a step by the share of micro-batches whose activations are kept.

    python scripts/bench_recompute.py
    python scripts/bench_recompute.py --batch 256 --micro 32 --rounds 7

The starter on random pixels and tokens; every round runs the whole batch and each share once, interleaved, and the median
of the rounds' ratios is printed, with the largest relative difference of the gradient from the whole batch's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import torch

from hf_clip_domain import memory
from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.models.loading import load_model
from hf_clip_domain.training import ClipTrainer
from hf_clip_domain.training.micro_batching import MicroBatches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--micro", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    memory.give_blocks_back()  # for all alike, as a run that is short of memory has it
    torch.manual_seed(0)
    model, _ = load_model("starter")
    size, count = model.config.vision_config.image_size, -(-options.batch // options.micro)
    ids = torch.randint(5, 1000, (options.batch, 48))
    ids[:, -1] = model.config.text_config.eos_token_id
    inputs = {
        "pixel_values": torch.randn(options.batch, 3, size, size),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }
    plans = {"whole batch": MicroBatches(None)}
    for share in (1.0, 0.75, 0.5, 0.25, 0.0):
        kept = max(1, round(share * count))  # the last one is kept in any case, and is free
        plans[f"{kept} of {count} kept"] = MicroBatches(options.micro, kept)
    with tempfile.TemporaryDirectory() as folder:
        trainer = ClipTrainer(model, ClipTrainingArguments(folder, use_cpu=True))
        trainer.current_gradient_accumulation_steps = 1  # set by train(), which is not called here
        times, gradients = {name: [] for name in plans}, {}
        for _ in range(options.rounds + 1):  # the first warms up
            for name, plan in plans.items():
                model.zero_grad()
                trainer.steps.replay.plan = plan
                start = time.perf_counter()
                trainer.training_step(model, inputs)
                times[name].append(time.perf_counter() - start)
                gradients[name] = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
    whole = gradients["whole batch"]
    print(
        f"| {options.batch} pairs, micro-batches of {options.micro} | times the whole batch | gradient |\n|:--|--:|--:|"
    )
    for name in plans:
        ratios = [mine / of for mine, of in zip(times[name][1:], times["whole batch"][1:], strict=True)]
        error = ((gradients[name] - whole).norm() / whole.norm()).item()
        print(f"| {name} | {statistics.median(ratios):.2f} | {error:.0e} |")


if __name__ == "__main__":
    main()
