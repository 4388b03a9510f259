"""Peak memory and gradient error of micro-batches, against the full batch.

    python scripts/bench_micro_batching.py --batch 1024 --micro 16 32 64 128
    python scripts/bench_micro_batching.py --batch 256 --micro 16 64 --full      # also the whole batch at once

Every line is a process of its own (one forward and backward of the starter's architecture on random pixels and
tokens), so that its peak is its own. "above loaded" is the peak resident memory less what the process held with the
program and the model loaded, before the batch was made. The gradient's error is relative to the smallest micro-batch.
glibc keeps freed blocks unless told otherwise: MALLOC_MMAP_THRESHOLD_=65536 is set for the measured processes, because
otherwise its fragmentation, not the program's need, is what one measures. On other systems it has no effect.
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
        trainer.create_optimizer()

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
    print(f"{seconds} {peak - loaded} {loaded}")


def _resident_mib() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--micro", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--full", action="store_true", help="measure the whole batch at once, too")
    parser.add_argument("--child", nargs=2, metavar=("MICRO", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        micro = int(options.child[0])
        return measure(options.batch, micro or None, options.child[1])

    import torch

    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    reference = None
    print(f"| batch | micro-batch | seconds a step | peak above loaded (MiB) | gradient error |\n|{'---:|' * 5}")
    for micro in sorted(options.micro) + ([0] if options.full else []):
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/gradient.pt"
            command = [sys.executable, __file__, "--batch", str(options.batch), "--child", str(micro), file]
            output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
            seconds, above, _ = map(float, output.split())
            gradient = torch.load(file).double()
        reference = gradient if reference is None else reference
        error = ((gradient - reference).norm() / reference.norm()).item()
        print(f"| {options.batch} | {micro or 'whole'} | {seconds:.1f} | {above:.0f} | {error:.1e} |", flush=True)


if __name__ == "__main__":
    main()
