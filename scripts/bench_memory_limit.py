"""A run under a hard limit of memory: plain Trainer, this package without being told, and `--micro_batch_size auto`.

    python scripts/bench_memory_limit.py                 # 512 MiB above the loaded program and model
    python scripts/bench_memory_limit.py --room 384 768 --batch 128

Every line is a process of its own that trains a CLIP of ViT-B/32's shape with two layers a tower, random weights and
pixels, for three steps of AdamW; the operating system refuses it more than so many MiB of address space. "rows" are
those whose activations it holds at once. For each room the largest fixed micro-batch that finishes is found by halving the
interval, and auto's rows are given as a share of it. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile


def train(kind: str, room: int, batch: int) -> None:
    """In a child process: three steps within `room` MiB above what is loaded; prints what happened."""
    import resource

    import torch
    from transformers import CLIPConfig, CLIPModel, Trainer, TrainingArguments

    from hf_clip_domain import memory
    from hf_clip_domain.arguments import ClipTrainingArguments
    from hf_clip_domain.training import ClipTrainer

    text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 2, "num_attention_heads": 8}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 2, "num_attention_heads": 12}
    config = CLIPConfig(
        text_config={**text, "vocab_size": 1000, "eos_token_id": 999}, vision_config={**vision, "patch_size": 32}
    )

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 4 * batch

        def __getitem__(self, key):
            ids = torch.full((32,), key % 900 + 1)
            ids[-1] = 999
            pixels = torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(key))
            return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

    class Plain(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(**inputs, return_loss=True).loss

    def trainer(folder, batch, kind):
        torch.manual_seed(0)
        settings = {"per_device_train_batch_size": batch, "max_steps": 3, "use_cpu": True, "disable_tqdm": True}
        settings |= {"save_strategy": "no", "report_to": "none", "logging_steps": 10}
        if kind == "plain":
            return Plain(CLIPModel(config), TrainingArguments(folder, **settings), train_dataset=Rows())
        size = {"replay": None, "auto": "auto"}.get(kind, kind)
        arguments = ClipTrainingArguments(folder, micro_batch_size=size, **settings)
        return ClipTrainer(CLIPModel(config), arguments, train_dataset=Rows())

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainer(folder, 2, kind).train()  # what is loaded at first use is loaded now
        run = trainer(folder, batch, kind)
        memory.give_blocks_back()
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + room * memory.MIB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        run.train()
        steps = None if kind == "plain" else run.steps.replay
        found = {"rows": batch if steps is None else steps.plan.rows_held(batch)}
        print(json.dumps(found | {"shortages": 0 if steps is None else steps.shortages}))


def attempt(kind: str, room: int, batch: int) -> dict | None:
    """What the process says, or `None` when it ran out of memory."""
    command = [sys.executable, __file__, "--child", kind, "--room", str(room), "--batch", str(batch)]
    environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if "memory" not in done.stderr and "could not create a primitive" not in done.stderr:
        raise RuntimeError(done.stderr)
    return None


def largest_that_fits(room: int, batch: int) -> int:
    """The largest fixed micro-batch with which no step had to be run again."""
    low, high = 1, batch
    while low < high:
        middle = (low + high + 1) // 2
        found = attempt(str(middle), room, batch)
        low, high = (middle, high) if found and not found["shortages"] else (low, middle - 1)
    return low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--room", type=int, nargs="+", default=[512])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return train(options.child, options.room[0], options.batch)
    print("| room (MiB) | run | finished | rows | steps run again |\n|--:|:--|:--|--:|--:|")
    for room in options.room:
        for kind in ("plain", "replay", "auto"):
            found = attempt(kind, room, options.batch)
            told = f"yes | {found['rows']} | {found['shortages']}" if found else "out of memory | | "
            print(f"| {room} | {kind} | {told} |", flush=True)
        largest = largest_that_fits(room, options.batch)
        share = f"{found['rows'] / largest:.0%}" if found else "none"
        print(f"| {room} | largest fixed micro-batch | yes | {largest} | auto: {share} of it |", flush=True)


if __name__ == "__main__":
    main()
