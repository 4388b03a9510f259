"""The command line from outside: exit codes, one clear line, help."""

import json
import subprocess
import sys

import pytest

from hf_clip_domain.cli.main import main


def run(*arguments, cwd=None):
    command = [sys.executable, "-m", "hf_clip_domain.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=700, cwd=cwd)


def test_help_lists_the_commands_quickly():
    done = run("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("train", "data", "evaluate", "exit status"))


@pytest.mark.parametrize("arguments", [[], ["tran"], ["--nonsense"], ["data"], ["evaluate"]])
def test_wrong_usage_is_two(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--domain", "medcal"], "medical"),
        (["train", "--dataset", "./nowhere.csv", "--model_name_or_path", "starter"], "./nowhere.csv: no such file"),
        (["train", "--config", "nowhere.yaml"], "--config nowhere.yaml: No such file"),
        (["train", "--model_name_or_path", "./nowhere"], "./nowhere: no such folder"),
        (["train", "--micro_batch_size", "0"], "--micro_batch_size 0"),
        (["train", "--validation_fraction", "1.5"], "--validation_fraction 1.5"),
        (["train", "--loss", "triplet"], "--loss 'triplet'"),
        (["evaluate", "./nowhere"], "./nowhere: no such folder"),
        (["evaluate", "starter", "--split", "tset"], "--split tset"),
        (["data", "preview", "--domain", "no"], "no"),
    ],
)
def test_a_users_mistake_is_one_line_and_one(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [*arguments, "--smoke"] if arguments[0] == "train" else arguments
    assert main(arguments) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-clip-domain: error:")]
    assert len(lines) == 1 and message in lines[0]


def test_no_traceback_reaches_the_user(tmp_path):
    done = run("train", "--dataset", "./nowhere.csv", "--model_name_or_path", "starter", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("hf-clip-domain: error: --dataset ./nowhere.csv")


def test_an_unknown_option_of_train_is_two_and_names_the_nearest(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--learning_rte", "1e-5"])
    assert stop.value.code == 2
    assert "did you mean --learning_rate?" in capsys.readouterr().err


@pytest.mark.slow
def test_evaluate_scores_two_checkpoints_side_by_side(tmp_path, capsys):
    output = tmp_path / "scores" / "evaluation.json"
    assert main(["evaluate", "starter", "--before", "starter", "--domain", "general", "--output", str(output)]) == 0
    scores = json.loads(output.read_text())
    assert scores["before"] == scores["after"] and scores["after"]["candidates"] == 250
    printed = capsys.readouterr().out
    assert "synthetic" in printed and "Recall@10" in printed


def test_a_loss_is_found_where_the_command_runs(tmp_path):
    (tmp_path / "own_losses.py").write_text("class Mine:\n    def __init__(self, margin=0.0):\n        pass\n")
    program = "import sys; from hf_clip_domain.cli.main import main; sys.exit(main())"
    options = ["--domain", "industrial", "--loss", "own_losses:Mine", "--loss_settings", "{margn: 1}"]
    # -P: as for the console script, the folder is not on Python's path by itself.
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, "train", *options], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1 and "margn" in done.stderr and "margin" in done.stderr
