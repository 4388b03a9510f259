"""What tracking costs a run while its server dies and comes back: the same steps with and without, in turn.

    python scripts/bench_tracking.py                     # 4 rounds of 60 steps of 16 pairs, a log every step

Trains the starter on random pixels and tokens. Of the rounds that are tracked, each begins a run on a real MLflow server
on SQLite, which is killed with SIGKILL after a quarter of the steps and started again after a half. Printed are the
median of the ratios of neighbouring rounds with its quartiles, by the wall clock and by the process's own time on the
CPU (the sender's thread included), the same of two rounds without, which is how much of that is noise, and what the
server has of each run in the end: every value of every step, once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from circle.tracking_server import TrackingServer
from mlflow import MlflowClient
from starter_runs import starter_trainer, train_silently
from transformers import TrainerCallback

from hf_clip_domain.ops.tracking import Tracker

EXPERIMENT = "bench"


class Outage(TrainerCallback):
    """Kills the server and starts it again, beside the run."""

    def __init__(self, server: TrackingServer, steps: int) -> None:
        self.server, self.down, self.up, self.starting = server, steps // 4, steps // 2, None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.down:
            self.server.kill()
        if state.global_step == self.up:
            self.starting = threading.Thread(target=self.server.start)
            self.starting.start()


def train(folder: Path, options: argparse.Namespace, server: TrackingServer | None) -> tuple[float, float]:
    """Seconds by the wall and on the CPU."""
    trainer = starter_trainer(
        folder, batch=options.batch, steps=options.steps, logging_steps=1, monitor=False, live_page=False
    )
    with contextlib.ExitStack() as stack:
        if server is not None:
            tracker = Tracker(folder, folder.name, experiment=EXPERIMENT, tracking_uri=server.uri)
            outage = Outage(server, options.steps)
            trainer.add_callback(stack.enter_context(tracker))
            trainer.add_callback(outage)
        wall, cpu = time.perf_counter(), time.process_time()
        train_silently(trainer)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if server is not None:
            outage.starting.join()
    return wall, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    found = {"tracked": [], "not tracked": []}
    with tempfile.TemporaryDirectory() as name, TrackingServer(Path(name)) as server:
        folder = Path(name)
        train(folder / "warm", options, None)
        for number in range(options.rounds):
            before = train(folder / "before", options, None)
            tracked = train(folder / f"run-{number}", options, server)
            after = train(folder / "after", options, None)
            found["tracked"].append(2 * np.array(tracked) / (np.array(before) + after))
            found["not tracked"].append(np.array(after) / before)
        client = MlflowClient(server.uri)
        runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
        histories = [client.get_metric_history(run.info.run_id, "loss") for run in runs]
    print(f"{options.rounds} rounds of {options.steps} steps of {options.batch} pairs; time with / without")
    for what, ratios in found.items():
        for clock, values in zip(("wall", "CPU"), np.transpose(ratios), strict=True):
            low, middle, high = np.percentile(values, (25, 50, 75))
            print(f"{what + ', ' + clock:18}: {middle:.3f} (quartiles {low:.3f} to {high:.3f})")
    steps = [sorted(point.step for point in history) for history in histories]
    whole = len(runs) == options.rounds and all(each == list(range(1, options.steps + 1)) for each in steps)
    print("the server has every loss of every run once" if whole else f"NOT WHOLE: {len(runs)} runs, {steps}")
    raise SystemExit(not whole)


if __name__ == "__main__":
    main()
