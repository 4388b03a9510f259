"""What the monitor and the live page cost: the same training steps with and without them, in turn.

    python scripts/bench_monitor.py                      # 6 rounds of 10 steps of 16 pairs, a log every 5 steps
    python scripts/bench_monitor.py --rounds 30 --batch 64

Trains the starter on random pixels and tokens, one round with, one without, and prints the median of the ratios of
neighbouring rounds with its quartiles, and the same of two rounds without, which is how much of that is noise. What is
done once a run (FLOPs counted by shape of batch, the peak measured) is printed by itself. Seconds are the process's
own on the CPU: what else the machine does is not in them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from starter_runs import starter_trainer, train_silently
from transformers import TrainerCallback

from hf_clip_domain.training import ClipTrainer


class Clock(TrainerCallback):
    """CPU time from the first step to the end of the last, logging included."""

    def on_epoch_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.start = time.process_time()

    def on_train_end(self, args, state, control, **kwargs):
        self.seconds = time.process_time() - self.start


def make_trainer(folder: Path, options: argparse.Namespace, watched: bool) -> tuple[ClipTrainer, Clock]:
    trainer = starter_trainer(
        folder, batch=options.batch, steps=options.steps, logging_steps=5, monitor=watched, live_page=watched
    )
    clock = Clock()
    trainer.add_callback(clock)
    return trainer, clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        watched = make_trainer(Path(folder) / "watched", options, True)
        plain = make_trainer(Path(folder) / "plain", options, False)
        first, usual = [], []
        for _ in range(2):  # the first train() of each also loads what is loaded at first use
            first.append(seconds(*watched) - seconds(*plain))
        ratios, noise = [], []
        for _ in range(options.rounds):
            before, with_it, after = seconds(*plain), seconds(*watched), seconds(*plain)
            ratios.append(2 * with_it / (before + after))
            noise.append(after / before)
            usual += [before, after]
    print(f"{options.steps} steps of {options.batch} pairs, {np.median(usual):.2f} s without, {options.rounds} rounds")
    print(f"once a run: {max(first[0] - first[1], 0):.2f} s")
    for name, values in (("with / without", ratios), ("without / without", noise)):
        low, middle, high = np.percentile(values, (25, 50, 75))
        print(f"{name}: {middle:.3f} (quartiles {low:.3f} to {high:.3f})")


def seconds(trainer: ClipTrainer, clock: Clock) -> float:
    train_silently(trainer)
    return clock.seconds


if __name__ == "__main__":
    main()
