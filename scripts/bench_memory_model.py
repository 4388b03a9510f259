"""The memory model's prediction against the measured peak of a step, over resolution, micro-batch, precision, checkpointing.

    python scripts/bench_memory_model.py                       # the table; some minutes
    python scripts/bench_memory_model.py --sizes 224 --micro 8 16 --batch 32

Every line is a process of its own: a CLIP of ViT-B/32's shape with four layers a tower, random weights and pixels. The
model is fitted to passes over 2 and 4 rows, then one training step (forward, backward, no optimizer) is run and its
highest resident memory compared. glibc keeps freed blocks unless told otherwise, so the processes run with
MALLOC_MMAP_THRESHOLD_=65536, as `--micro_batch_size auto` arranges for itself when memory is short.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile


def measure(size: int, micro: int, kept: int, batch: int, precision: str, checkpointing: bool) -> dict[str, float]:
    """In a child process: MiB of a step, predicted and measured."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from hf_clip_domain import memory
    from hf_clip_domain.arguments import ClipTrainingArguments
    from hf_clip_domain.training import ClipTrainer
    from hf_clip_domain.training.micro_batching import MicroBatches

    torch.manual_seed(0)
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 4, "num_attention_heads": 12}
    config = CLIPConfig(text_config=text, vision_config={**vision, "image_size": size, "patch_size": 32})
    model = CLIPModel(config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = ClipTrainingArguments(
            folder, use_cpu=True, bf16=precision == "bf16", gradient_checkpointing=checkpointing
        )
        trainer = ClipTrainer(model, arguments)
        trainer.current_gradient_accumulation_steps = 1  # set by train(), which is not called here
        trainer.model_wrapped = trainer.accelerator.prepare(model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        ids = torch.randint(5, 1000, (batch, 32))
        ids[:, -1] = config.text_config.eos_token_id
        inputs = {
            "pixel_values": torch.randn(batch, 3, size, size),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }
        prediction = trainer._fit_memory(inputs)
        plan = MicroBatches(micro if micro < batch else None, kept)
        trainer.steps.replay.plan = plan
        memory.give_blocks_back()
        with memory.Peak(torch.device("cpu")) as peak:
            trainer.training_step(model, inputs)
    return {
        "predicted": prediction.need(plan, batch) / memory.MIB,
        "measured": peak.above / memory.MIB,
        "rows": plan.rows_held(batch),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 224, 320])
    parser.add_argument("--micro", type=int, nargs="+", default=[4, 16, 32])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--checkpointing", nargs="+", default=["no", "yes"], choices=["no", "yes"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(**json.loads(options.child))))
        return
    print("| pixels | micro-batch | kept | precision | checkpointing | predicted (MiB) | measured (MiB) | ratio |")
    print("|--:|--:|--:|:--|:--|--:|--:|--:|")
    worst = 0.0
    for size, precision, checkpointing in itertools.product(options.sizes, options.precision, options.checkpointing):
        for micro in options.micro:
            kept = 2 if micro == min(options.micro) else 1
            case = {"size": size, "micro": micro, "kept": kept, "batch": options.batch, "precision": precision}
            found = in_a_process({**case, "checkpointing": checkpointing == "yes"})
            ratio = found["predicted"] / found["measured"]
            worst = max(worst, abs(ratio - 1))
            row = f"| {size} | {micro} | {kept} | {precision} | {checkpointing} | {found['predicted']:,.0f} "
            print(row + f"| {found['measured']:,.0f} | {ratio:.2f} |", flush=True)
    print(f"\nThe prediction furthest off differs by {worst:.0%}.")


def in_a_process(case: dict) -> dict[str, float]:
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, __file__, "--child", json.dumps(case)]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


if __name__ == "__main__":
    main()
