"""Peak memory and gradient error of micro-batches, against the full batch.

    python scripts/bench_micro_batching.py                                  # batches of 256 and 1,024
    python scripts/bench_micro_batching.py --batch 1024 --micro 16 32 64 128
    python scripts/bench_micro_batching.py --batch 256 --micro 16 64 --full      # also the whole batch at once

Every line is two processes of their own (one forward and backward of the starter's architecture on random pixels and
tokens), so that its peak is its own. "above loaded" is the peak resident memory less what the process held with the
program and the model loaded, before the batch was made. The gradient's error is relative to the batch's smallest
micro-batch. glibc keeps freed blocks unless told otherwise, and its fragmentation is then part of the peak: one process
runs with its defaults, the other with MALLOC_MMAP_THRESHOLD_=65536, which gives blocks back at once. On other systems
the two are the same.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(batch: int, micro: int | None, gradient_file: str) -> None:
    """In a child process: one step; prints seconds and MiB above the loaded program, and saves the gradient."""
    import torch

    from hf_clip_domain.arguments import ClipTrainingArguments
    from hf_clip_domain.models.loading import load_model
    from hf_clip_domain.training import ClipTrainer

    torch.manual_seed(0)
    model, processor = load_model("starter")
    size = model.config.vision_config.image_size
    with tempfile.TemporaryDirectory() as folder:
        arguments = ClipTrainingArguments(folder, use_cpu=True, micro_batch_size=micro)
        trainer = ClipTrainer(model, arguments)
        trainer.current_gradient_accumulation_steps = 1  # set by train(), which is not called here

        def inputs(n):
            ids = torch.randint(5, 1000, (n, 64))
            ids[:, -1] = model.config.text_config.eos_token_id
            return {
                "pixel_values": torch.randn(n, 3, size, size),
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
            }

        trainer.training_step(model, inputs(2))  # load what is loaded at first use
        model.zero_grad()
        loaded = _resident_mib()
        rows = inputs(batch)
        start = time.perf_counter()
        trainer.training_step(model, rows)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
    torch.save(torch.cat([p.grad.flatten() for p in model.parameters()]), gradient_file)
    print(f"{seconds} {peak - loaded}")


def _resident_mib() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--micro", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--full", action="store_true", help="measure the whole batch at once, too")
    parser.add_argument("--child", nargs=2, metavar=("MICRO", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return measure(options.batch[0], int(options.child[0]) or None, options.child[1])

    print("| batch | micro-batch | seconds | peak above loaded (MiB) | with glibc's defaults (MiB) | gradient error |")
    print("|---:" * 6 + "|")
    for batch in options.batch:
        reference = None
        for micro in sorted(options.micro) + ([0] if options.full else []):
            seconds, lean, gradient = in_a_process(batch, micro, {"MALLOC_MMAP_THRESHOLD_": "65536"})
            _, usual, _ = in_a_process(batch, micro, {})
            reference = gradient if reference is None else reference
            error = ((gradient - reference).norm() / reference.norm()).item()
            row = f"| {batch:,} | {micro or 'whole'} | {seconds:.1f} | {lean:,.0f} | {usual:,.0f} | {error:.1e} |"
            print(row, flush=True)


def in_a_process(batch: int, micro: int, environment: dict[str, str]):
    """Seconds, MiB above the loaded program, and the gradient as one float64 vector."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/gradient.pt"
        command = [sys.executable, __file__, "--batch", str(batch), "--child", str(micro), file]
        environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
        output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        seconds, above = map(float, output.split())
        return seconds, above, torch.load(file).double()


if __name__ == "__main__":
    main()
