"""From a dataset's revision to a served model, to drift, and back: every link of the circle, made and found again.

    python scripts/full_circle.py                       # about ten minutes on two cores; --small for a shorter one

It plays the people of a plant, by this package's commands alone and offline, on synthetic samples: a snapshot of the
industrial samples, a run on that revision, its registration, the gate, a server that follows the champion. Traffic like
the data raises no alarm; then pictures of another kind (scientific figures) arrive and do. New pairs go into the dataset,
the champion is adapted to the new revision, passes the gate, and the running server takes it over while requests go on.
At the end the links are looked up in MLflow, each from the one before, and a broken one ends the script with status 1.

MLflow runs as a server on SQLite. DVC keeps the data where it is installed, with a folder as its remote; otherwise the
revision is a hash of the content.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from circle.links import check_links
from circle.samples import write_samples
from circle.tracking_server import TrackingServer
from circle.traffic import Traffic
from serving.processes import server

NAME, DRIFT = "plant", 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, help="Keep everything there. Default: a folder that is removed.")
    parser.add_argument("--small", action="store_true", help="Less data and shorter runs.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise SystemExit(f"{folder} is not empty: name a new one")
        raise SystemExit(Circle(folder, args.small).run())


class Circle:
    """One turn, in a folder."""

    def __init__(self, folder: Path, small: bool) -> None:
        self.folder, self.small, self.began = folder, small, time.monotonic()
        self.rows, self.requests = ((240, 90, 100), 150) if small else ((800, 150, 200), 300)
        self.repository = folder / "repository"  # a revision means one of the repository that commands are called in
        self.environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MLFLOW_EXPERIMENT_NAME": NAME}
        self.environment["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"

    def run(self) -> int:
        data = self._repository()
        with TrackingServer(self.folder) as tracking:
            self.environment["MLFLOW_TRACKING_URI"] = os.environ["MLFLOW_TRACKING_URI"] = tracking.uri
            write_samples("industrial", data, *self.rows)
            first = self._snapshot(data)
            self._adapt(first, "starter", "first")
            self._promote("first")
            statistics, verdict = self.folder / "statistics", self.folder / "drift"
            options = ["--statistics", statistics, "--drift", verdict, "--statistics_window", self.requests]
            command = ["serve", f"models:/{NAME}@champion", "--watch_seconds", "1", "--log_level", "error", *options]
            with (
                server([*self._command(*command), "--port"]) as (port, _),
                Traffic(port, "industrial", 3 * self.requests) as traffic,
            ):
                self._await_windows(statistics, 1)
                self._monitor(statistics, verdict, expected=0)
                traffic.turn_to("scientific")
                self._await_windows(statistics, 2)  # the first of them may hold both kinds
                self._monitor(statistics, verdict, expected=DRIFT)
                self._say(json.loads((verdict / "drift.json").read_text())["suggestion"]["text"])
                write_samples("scientific", data, *self.rows)
                second = self._snapshot(data)
                self._adapt(second, f"models:/{NAME}@champion", "second")
                self._promote("second")
                traffic.wait_for_version("2", patience=120)
                traffic.wait_for(50)
                self._say(f"The server has version 2; {traffic.answered:,} requests answered, {traffic.failed} failed.")
            broken = check_links(NAME, {"1": first, "2": second}, say=self._say)
        broken += [f"{traffic.failed} requests failed"] if traffic.failed else []
        self._say("BROKEN: " + "; ".join(broken) if broken else "The circle is closed.")
        return 1 if broken else 0

    def _repository(self) -> Path:
        """The dataset's folder, in a git repository, and with DVC where there is one."""
        home, data = self.repository, self.repository / "data"
        data.mkdir(parents=True)
        for words in (
            ["init", "--quiet"],
            ["config", "user.name", "Plant"],
            ["config", "user.email", "plant@localhost"],
        ):
            subprocess.run(["git", *words], cwd=home, check=True)
        program = shutil.which("dvc", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        if program:
            subprocess.run([program, "init", "--quiet"], cwd=home, check=True)
            remote = self.folder / "remote"
            subprocess.run(
                [program, "remote", "add", "--default", "--quiet", "plant", str(remote)], cwd=home, check=True
            )
            subprocess.run(["git", "commit", "--quiet", "--message", "DVC"], cwd=home, check=True)
        self.push = ["--push"] if program else []
        return data

    def _snapshot(self, data: Path) -> str:
        return self._do("data", "snapshot", data, *self.push).splitlines()[-1]

    def _adapt(self, dataset: str, base: str, name: str) -> None:
        """A run that WiSE-FT ends with little forgotten: less than the gate allows, whose pairs are others."""
        source = dataset if dataset.startswith("dvc:") else str(self.repository / "data")
        # The starter is small: it takes larger steps than what the domain's defaults have in mind.
        length = ["--num_train_epochs", "8", "--learning_rate", "5e-4", "--per_device_train_batch_size", "64"]
        length += ["--eval_strategy", "no", "--save_strategy", "no"]  # the end is what counts
        self._do(
            *("train", "--domain", "industrial", "--dataset", source, "--model_name_or_path", base, *length),
            *("--wise_ft", "true", "--forgetting_budget", "2", "--precision", "fp32", "--live_page", "false"),
            *("--output_dir", self.folder / name, "--run_name", name),
        )

    def _promote(self, name: str) -> None:
        """Through the gate; forgetting is counted from the starter, over all rounds together."""
        decision = self.folder / f"promotion_{name}.json"
        gate = ["--metric", "text_to_image/mrr", "--forgetting_budget", "5", "--base", "starter"]
        self._do("promote", NAME, "--candidate", self.folder / name, *gate, "--output", decision)

    def _monitor(self, statistics: Path, verdict: Path, *, expected: int) -> None:
        self._do(
            "monitor", f"models:/{NAME}@champion", "--statistics", statistics, "--output", verdict, status=expected
        )

    def _await_windows(self, statistics: Path, more: int) -> None:
        """Until the server has written so many more."""

        def there() -> int:
            return len(list(statistics.glob("window-*.npz")))

        goal, end = there() + more, time.monotonic() + 400
        while there() < goal:
            if time.monotonic() > end:
                raise SystemExit(f"{statistics}: the server writes no statistics")
            time.sleep(0.5)

    def _command(self, *words: object) -> list[str]:
        return [sys.executable, "-m", "hf_clip_domain.cli.main", *map(str, words)]

    def _do(self, *words: object, status: int = 0) -> str:
        """Run a command to the status it must end with; gives what it printed."""
        began = time.monotonic()
        done = subprocess.run(
            self._command(*words), cwd=self.repository, env=self.environment, capture_output=True, text=True
        )
        if done.returncode != status:
            told = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            raise SystemExit(f"{' '.join(map(str, words))}: status {done.returncode}, expected {status}\n{told}")
        self._say(f"{' '.join(map(str, words[:2]))}: {time.monotonic() - began:.0f} s, status {status}")
        return done.stdout.rstrip()

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:4.0f} s] {text}", flush=True)


if __name__ == "__main__":
    main()
