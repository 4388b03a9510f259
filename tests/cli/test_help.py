"""What `--help` shows: every command with a line and an example, and the options of a run by purpose."""

import dataclasses
import re
import shlex

import pytest
from transformers import TrainingArguments

from hf_clip_domain.arguments import AdaptationArguments, ClipTrainingArguments, DataArguments, ModelArguments
from hf_clip_domain.cli.help import ACTIONS, COMMANDS
from hf_clip_domain.cli.main import main
from hf_clip_domain.cli.option_groups import PURPOSES
from hf_clip_domain.domains import load_domain
from tests.docs.commands import check

ALL = {name: told for commands in COMMANDS.values() for name, told in commands.items()}


def shown(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_the_commands_stand_by_purpose_with_a_line_each(capsys):
    text = shown(capsys)
    assert text.startswith("usage: hf-clip-domain [-h] [--version] COMMAND ...")
    assert all(f"\n{purpose}:\n" in text for purpose in COMMANDS)
    for name, (told, _) in ALL.items():
        assert re.search(rf"^  {name} +{re.escape(told)}$", text, re.MULTILINE)
        assert len(told) < 80 and told.endswith(".")


@pytest.mark.parametrize("command", [*ALL, *ACTIONS])
def test_every_command_shows_an_example_that_its_parser_takes(command, capsys):
    example = ACTIONS.get(command) or ALL[command][1]
    text = shown(capsys, *command.split())
    assert text.startswith(f"usage: hf-clip-domain {command} ")
    assert f"\nexample:\n  {example}\n" in text and "exit status" in text
    check(shlex.split(example))


def test_the_options_of_a_run_stand_by_purpose(capsys):
    text = shown(capsys, "train", "--domain", "medical")
    places = [text.index(f"\n{purpose}:\n") for purpose in PURPOSES]
    assert places == sorted(places) and len(text.splitlines()) < 500
    rate = load_domain("medical").training_starter["learning_rate"]
    assert re.search(rf"^  --learning_rate X[^-]*\[{rate}\]", text, re.MULTILINE)  # of this domain and model
    full = text[text.index("\nHugging Face's other options") :]
    assert "--adam_beta1" in full and "beta1 coefficient" not in text


def test_no_option_is_lost_and_none_of_ours_stands_among_the_others(capsys):
    hugging_face = {field.name for field in dataclasses.fields(TrainingArguments)}
    kinds = (ModelArguments, DataArguments, AdaptationArguments, ClipTrainingArguments)
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind) if field.init}
    grouped = " ".join(PURPOSES.values()).split()
    assert len(grouped) == len(set(grouped)) and set(grouped) - fields == {"config", "smoke"}
    assert fields - hugging_face <= set(grouped)
    with pytest.raises(SystemExit):
        main(["train", "--help_all"])
    text = capsys.readouterr().out
    assert all(re.search(rf"^  --{name}\b", text, re.MULTILINE) for name in grouped)
    assert re.search(r"^  --adam_beta1 X", text, re.MULTILINE)


def test_the_help_of_tune_is_its_own(capsys):
    assert "hf-clip-domain tune" in shown(capsys, "tune") and "tuned.yaml" in shown(capsys, "tune")
