"""The search for the loss's settings: never worse than the default, resumed after a kill, repeated by its YAML."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
import time

import optuna
import pytest
import yaml

from hf_clip_domain.cli.main import main
from hf_clip_domain.cli.options import parse_options
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.losses import build_loss
from hf_clip_domain.training.tuning import LossChoice, suggest

SMALL = ["--domain", "industrial", "--smoke", "--auto_tune_epochs", "1", "--seed", "5"]


def study(folder):
    return optuna.load_study(study_name="loss", storage=f"sqlite:///{folder}/tuning.db")


def states(folder):
    """Of the trials so far, read without writing: optuna's own reader would make the tables that the search is making."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{folder}/tuning.db?mode=ro", uri=True)) as database:
            return [state for (state,) in database.execute("SELECT state FROM trials ORDER BY number")]
    except sqlite3.OperationalError:  # not there yet, or its tables are not
        return []


@pytest.mark.slow
def test_tune_finds_at_least_the_default_and_its_yaml_trains(tmp_path, capsys):
    assert main(["tune", *SMALL, "--auto_tune_trials", "3", "--output_dir", str(tmp_path / "tune")]) == 0
    printed = capsys.readouterr().out
    trials = study(tmp_path / "tune").trials
    assert len(trials) == 3 and trials[0].user_attrs["default"]
    default = next(line for line in printed.splitlines() if line.endswith("default"))
    best = next(line for line in printed.splitlines() if " best " in line)
    assert float(best.split()[1].rstrip("%")) >= float(default.split()[1].rstrip("%"))
    assert (tmp_path / "tune" / "tuning.png").stat().st_size > 5_000
    kept = yaml.safe_load((tmp_path / "tune" / "tuned.yaml").read_text())
    options = parse_options(["--config", str(tmp_path / "tune" / "tuned.yaml"), *SMALL, "--output_dir", str(tmp_path)])
    assert options.training.loss_settings == kept["loss_settings"]
    build_loss(options.training.loss, **options.training.loss_settings)

    # One that has ended is told again at once, with the same best.
    assert main(["tune", *SMALL, "--auto_tune_trials", "3", "--output_dir", str(tmp_path / "tune")]) == 0
    assert len(study(tmp_path / "tune").trials) == 3
    assert yaml.safe_load((tmp_path / "tune" / "tuned.yaml").read_text()) == kept

    # Another search in the same folder would mix two studies.
    assert (
        main(
            [
                "tune",
                *SMALL,
                "--loss",
                "siglip",
                "--output_dir",
                str(tmp_path / "tune"),
            ]
        )
        == 1
    )
    assert "delete its tuning.db" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_search_goes_on_and_repeats_the_trial_that_was_cut(tmp_path):
    command = [sys.executable, "-m", "hf_clip_domain.cli.main", "tune", *SMALL, "--output_dir", str(tmp_path)]
    running = subprocess.Popen(
        [*command, "--auto_tune_trials", "50"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 500
    while not (at_work := states(tmp_path)) or at_work[-1] != "RUNNING" or len(at_work) < 2:
        assert running.poll() is None, "the search ended before it was killed"
        assert time.monotonic() < deadline, f"no second trial in 500 s, but {at_work}"
        time.sleep(0.2)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = study(tmp_path).trials
    cut = next(trial for trial in before if trial.state.name == "RUNNING")
    finished = [trial for trial in before if trial.state.is_finished()]
    subprocess.run([*command, "--auto_tune_trials", str(len(finished) + 1)], check=True, capture_output=True)
    after = study(tmp_path).trials
    assert [trial.value for trial in after[: len(finished)]] == [trial.value for trial in finished]
    again = after[-1]
    assert again.state.name in ("COMPLETE", "PRUNED")
    assert {name: again.params[name] for name in cut.params} == cut.params


@pytest.mark.parametrize("loss", ["info_nce", "siglip", "sum"])
@pytest.mark.parametrize("with_labels", [True, False])
def test_every_point_of_the_space_is_a_valid_loss(loss, with_labels):
    settings = {"terms": [{"name": "info_nce"}, {"name": "siglip", "weight": 0.2}]} if loss == "sum" else {}
    start = LossChoice(loss, settings)
    search = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(40):
        choice = suggest(search.ask(), start, with_labels)
        build_loss(choice.loss, **choice.settings)
        assert yaml.safe_load(yaml.safe_dump(choice.to_config())) == choice.to_config()
    assert start.settings == settings  # nothing wrote into the start


def test_what_cannot_be_tuned_is_refused(tmp_path, capsys):
    (tmp_path / "home_made_losses_for_tuning.py").write_text("import torch\nclass Mine(torch.nn.Module):\n    pass\n")
    sys.path.insert(0, str(tmp_path))
    try:
        loss = ["--loss", "home_made_losses_for_tuning:Mine"]
        assert main(["tune", *SMALL, *loss, "--output_dir", str(tmp_path / "out")]) == 1
    finally:
        sys.path.remove(str(tmp_path))
    assert "have a search space" in capsys.readouterr().err
    with pytest.raises(ClipDomainError, match="--auto_tune_minutes 0"):
        parse_options([*SMALL, "--auto_tune_minutes", "0"])
