"""The command keeps a page of the run and tells how it went, from the first sentence to the last."""

import yaml
from kept_news import keeping_command, kept

from hf_clip_domain.cli.main import main


def test_a_run_is_followed_to_its_very_end(tmp_path):
    out = tmp_path / "run"
    command = ["train", "--domain", "scientific", "--smoke", "--output_dir", str(out), "--report_to", "none"]
    command += ["--probe_dataset", "none"]
    assert main([*command, "--notify", keeping_command(tmp_path)]) == 0
    told = kept(tmp_path)
    assert [message["event"] for message in told] == ["started", "improved", "finished"]
    assert told[1]["metric"] == "text_to_image/mrr"
    assert told[2]["scores"]["eval_text_to_image/mrr"] == told[1]["value"]
    page = (out / "run.html").read_text()
    assert 'class="state finished"' in page and "Held-out recall" in page and "Best text_to_image/mrr" not in page
    kept_settings = yaml.safe_load((out / "run.yaml").read_text())
    assert "notify" not in kept_settings and kept_settings["live_page"] is True
    card = (out / "README.md").read_text()
    assert "keep.py" not in card and "keep.py" not in page and str(tmp_path) not in page
    assert not list(out.glob(".failed-*")) and not list(out.glob("*.part"))


def test_a_failure_before_the_first_step_is_told_and_leaves_no_page(tmp_path, capsys):
    command = ["train", "--dataset", str(tmp_path / "nowhere.csv"), "--output_dir", str(tmp_path / "run")]
    assert main([*command, "--model_name_or_path", "starter", "--notify", keeping_command(tmp_path)]) == 1
    (told,) = kept(tmp_path)
    assert told["event"] == "failed" and told["run"] == "run"
    assert told["reason"] in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.html").exists()


def test_the_page_can_be_left_out_and_the_target_is_checked_first(tmp_path, capsys):
    command = ["train", "--domain", "scientific", "--smoke", "--output_dir", str(tmp_path / "run")]
    assert main([*command, "--notify", "nobody"]) == 1
    assert "--notify: expected http" in capsys.readouterr().err and not (tmp_path / "run").exists()
    command += ["--probe_dataset", "none", "--max_steps", "1", "--report_to", "none"]
    assert main([*command, "--live_page", "false", "--monitor", "false"]) == 0
    assert not (tmp_path / "run" / "run.html").exists() and (tmp_path / "run" / "model.safetensors").exists()
