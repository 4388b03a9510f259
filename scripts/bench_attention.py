"""Memory, time and error of attention in slices, against eager attention and torch's own, at 1,024 x 1,024 pixels.

    python scripts/bench_attention.py                                      # 4,096 tokens (patches of 16), 2 heads of 64
    python scripts/bench_attention.py --tokens 4096 --heads 12 --budgets 32 128
    python scripts/bench_attention.py --tokens 248 --batch 64 --causal     # long captions

One call of attention, forward and backward, in float32. "eager" is the formula as transformers writes it, "plain"
torch's scaled_dot_product_attention without a fused kernel (all there is with dropout, and on devices without one),
"fused" the same with torch's choice, "sliced" this package's with the budget of the line; its slices too are computed
without a fused kernel, which would hold no scores anyway. With dropout torch has no fused kernel on a CPU.

The columns of memory are the peak above what the process held before the call, less what any method must return: the
output, and in the backward pass the gradients of queries, keys and values. (The script starts itself again with
MALLOC_MMAP_THRESHOLD_=65536, so that glibc gives freed blocks back at once and the next line starts from a clean state.)
Errors are the largest difference from eager, of output and gradients. Times are CPU seconds, which other work on the
machine disturbs least: medians of calls that take turns, as they are and divided by eager's (above 1 is slower).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_clip_domain.memory import MIB, Peak
from hf_clip_domain.models.attention_slices import sliced_attention


def eager(query, key, value, dropout, causal):
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if causal:
        scores = scores + torch.full(scores.shape[-2:], torch.finfo(scores.dtype).min).triu(1)
    weights = F.dropout(scores.softmax(-1), dropout)
    return (weights @ value).transpose(1, 2).contiguous()


def torchs(query, key, value, dropout, causal):
    output = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=causal)
    return output.transpose(1, 2).contiguous()


def attention(line, tensors, dropout, causal):
    name, budget = line
    if name == "sliced":
        return sliced_attention(*tensors, budget=budget * MIB, dropout=dropout, causal=causal)
    return (eager if name == "eager" else torchs)(*tensors, dropout, causal)


def kernels(line):
    return contextlib.nullcontext() if line[0] in ("eager", "fused") else sdpa_kernel(SDPBackend.MATH)


def run(line, tensors, grad, dropout, causal):
    with kernels(line):
        output = attention(line, tensors, dropout, causal)
        return output.detach(), torch.autograd.grad(output, tensors, grad)


def memory(line, tensors, grad, dropout, causal):
    """MiB of a forward pass without gradients and of forward and backward; and what they return."""
    few = [tensor[:, :, :8].detach().requires_grad_() for tensor in tensors]
    run(line, few, grad[:, :8], dropout, causal)  # load what is loaded at first use
    cpu, unavoidable = torch.device("cpu"), grad.nbytes
    with Peak(cpu) as forward, torch.no_grad(), kernels(line):
        attention(line, tensors, dropout, causal)
    with Peak(cpu) as both:
        results = run(line, tensors, grad, dropout, causal)
    return (forward.above - unavoidable) / MIB, (both.above - 4 * unavoidable) / MIB, results


def times(turns, lines, *settings) -> list[float]:
    """CPU seconds of forward and backward, for each line of the table."""
    seconds = [[] for _ in lines]
    for _ in range(turns):
        for taken, line in zip(seconds, lines, strict=True):
            start = time.process_time()
            run(line, *settings)
            taken.append(time.process_time() - start)
    return [statistics.median(taken) if taken else float("nan") for taken in seconds]


def table(options):
    """Yields the lines of the table, as dictionaries."""
    torch.manual_seed(0)
    size = (options.batch, options.tokens, options.heads, options.head_size)
    tensors, grad = [torch.randn(size).transpose(1, 2).requires_grad_() for _ in range(3)], torch.randn(size)
    for dropout in (0.0, 0.1):
        lines = [("eager", None), ("plain", None), *(("sliced", budget) for budget in options.budgets)]
        lines += [] if dropout else [("fused", None)]
        seconds = times(options.turns, lines, tensors, grad, dropout, options.causal)
        for line, taken in zip(lines, seconds, strict=True):
            forward, backward, (output, grads) = memory(line, tensors, grad, dropout, options.causal)
            if line[0] == "eager":
                first_output, first_grads = output, grads
            pairs = zip(grads, first_grads, strict=True)
            yield {
                "dropout": dropout,
                "method": line[0],
                "budget": line[1],
                "forward": forward,
                "backward": backward,
                "output_error": (output - first_output).abs().max().item(),
                "gradient_error": max((one - first).abs().max().item() for one, first in pairs),
                "time": taken / seconds[0],
                "seconds": taken,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--head_size", type=int, default=64)
    parser.add_argument("--causal", action="store_true", help="a text tower's attention")
    parser.add_argument("--budgets", type=int, nargs="+", default=[16, 32, 64, 128, 256], help="MiB")
    parser.add_argument("--turns", type=int, default=3, help="timed calls of each method; 0 measures memory alone")
    parser.add_argument("--json", action="store_true", help="a list of lines instead of a table")
    options = parser.parse_args()
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    if options.json:
        print(json.dumps(list(table(options))))
    else:
        print_table(options)


def print_table(options) -> None:
    print("| dropout | method | budget (MiB) | forward (MiB) | with backward (MiB) | errors | time | CPU seconds |")
    print("|---:|---|" + "---:|" * 6)
    for row in table(options):
        errors = "" if row["dropout"] else f"{row['output_error']:.0e}, {row['gradient_error']:.0e}"
        print(
            f"| {row['dropout']} | {row['method']} | {row['budget'] or ''} | {row['forward']:,.0f} | "
            f"{row['backward']:,.0f} | {errors} | {row['time']:.2f} | {row['seconds']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
