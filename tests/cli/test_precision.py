"""From the option to the flags, the run's record, its configuration and its card."""

import json

import pytest
import yaml

from hf_clip_domain.cli.main import main
from hf_clip_domain.cli.options import parse_options
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models import precision
from hf_clip_domain.models.precision import Precision


def test_the_command_decides_by_itself_and_writes_what_it_decided(monkeypatch, tmp_path):
    monkeypatch.setattr(
        precision, "choose_precision", lambda device: Precision("bf16", "a test says so", measured=True)
    )
    options = parse_options([])
    assert options.training.precision == "bf16" and options.training.mixed_precision == "bf16"
    written = yaml.safe_load(options.to_yaml())
    assert written["precision"] == "bf16" and "bf16" not in written and "use_cpu" not in written
    (tmp_path / "run.yaml").write_text(options.to_yaml())
    monkeypatch.setattr(precision, "choose_precision", None)  # a repeated run decides nothing
    again = parse_options(["--config", str(tmp_path / "run.yaml")])
    assert again.training.precision == "bf16" and again.to_yaml() == options.to_yaml()
    assert parse_options(["--config", str(tmp_path / "run.yaml"), "--precision", "fp32"]).training.precision == "fp32"


def test_hugging_faces_flag_is_taken_and_not_contradicted():
    assert parse_options(["--bf16"]).training.precision == "bf16"
    with pytest.raises(ClipDomainError, match="--precision fp32 and --bf16 contradict"):
        parse_options(["--bf16", "--precision", "fp32"])


@pytest.mark.slow
def test_a_run_tells_its_precision_at_the_start_and_in_the_card(tmp_path, capsys):
    command = ["train", "--domain", "general", "--smoke", "--precision", "bf16", "--output_dir", str(tmp_path)]
    command += ["--max_steps", "1"]
    assert main(command) == 0
    assert "in bf16, since --precision bf16 says so." in capsys.readouterr().out
    record = json.loads((tmp_path / "precision.json").read_text())
    assert record["name"] == "bf16" and record["device"]
    assert "- precision: bf16, since --precision bf16 says so" in (tmp_path / "README.md").read_text()
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["precision"] == "bf16"
