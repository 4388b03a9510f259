"""Command line over file over domain over default; and nothing misspelt slips through."""

import pytest
import torch
import yaml

from hf_clip_domain.cli.assembly import load_parts
from hf_clip_domain.cli.options import parse_options
from hf_clip_domain.domains import load_domain
from hf_clip_domain.errors import ClipDomainError


def write(tmp_path, **settings):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    return ["--config", str(file)]


def test_the_domains_defaults_apply_and_can_be_overridden(tmp_path):
    domain = load_domain("medical")
    plain = parse_options(["--domain", "medical", "--dataset", "x"])
    assert plain.training.learning_rate == domain.training["learning_rate"]
    assert plain.training.weight_decay == domain.training["weight_decay"]
    file = write(tmp_path, domain="medical", dataset="x", learning_rate=3e-6, num_train_epochs=2)
    from_file = parse_options(file)
    assert from_file.training.learning_rate == 3e-6 and from_file.training.num_train_epochs == 2
    assert from_file.training.weight_decay == domain.training["weight_decay"]
    assert parse_options([*file, "--learning_rate", "1e-4"]).training.learning_rate == 1e-4


def test_yaml_numbers_that_read_as_text_are_numbers(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 1e-5\nmicro_batch_size: 16\n")
    options = parse_options(["--config", str(file)])
    assert options.training.learning_rate == 1e-5 and options.training.micro_batch_size == 16


def test_model_and_output_follow_from_domain_and_dataset(tmp_path):
    assert parse_options([]).model.model_name_or_path == "starter"
    assert parse_options(["--dataset", "x"]).model.model_name_or_path == load_domain("general").base_model
    assert parse_options(["--dataset", "x", "--model_name_or_path", "starter"]).model.model_name_or_path == "starter"
    assert parse_options(["--domain", "medical"]).training.output_dir == "outputs/medical"


def test_the_starter_has_its_own_learning_rate():
    domain = load_domain("scientific")
    starter = parse_options(["--domain", "scientific", "--dataset", "x", "--model_name_or_path", "starter"])
    assert starter.training.learning_rate == domain.training_starter["learning_rate"]
    other = parse_options(["--domain", "scientific", "--dataset", "x"])
    assert other.training.learning_rate == domain.training["learning_rate"]


def test_resume_takes_a_path_or_nothing():
    assert parse_options(["--resume_from_checkpoint"]).training.resume_from_checkpoint is True
    assert (
        parse_options(["--resume_from_checkpoint", "a/checkpoint-3"]).training.resume_from_checkpoint
        == "a/checkpoint-3"
    )
    assert parse_options([]).training.resume_from_checkpoint is None


def test_the_resolved_configuration_gives_the_same_run(tmp_path):
    first = parse_options(["--domain", "industrial", "--num_train_epochs", "3", "--captions", "sentence", "--smoke"])
    (tmp_path / "run.yaml").write_text(first.to_yaml())
    again = parse_options(["--config", str(tmp_path / "run.yaml")])
    assert again.to_yaml() == first.to_yaml()
    assert first.to_yaml().startswith("# accelerate launch recipes/finetune.py --config")
    assert (again.data, again.model, again.smoke) == (first.data, first.model, True)


def test_best_model_is_kept_unless_evaluation_is_off():
    assert parse_options([]).training.load_best_model_at_end
    assert not parse_options(["--eval_strategy", "no"]).training.load_best_model_at_end


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 1}, "unknown key 'learning_rat'; did you mean 'learning_rate'"),
        ({"learning_rate": "fast"}, "learning_rate: 'fast' is not a valid value"),
        ({"captions": "all"}, "captions: 'all' is not one of"),
        ({"eval_strategy": "sometimes"}, "sometimes"),
    ],
)
def test_mistakes_in_the_file_name_file_and_key(tmp_path, settings, message):
    with pytest.raises(ClipDomainError, match=message):
        parse_options(write(tmp_path, **settings))


def test_a_file_that_is_no_mapping_or_no_yaml_is_refused(tmp_path):
    for content, message in (("- a\n- b\n", "expected `option: value`"), ("a: [", "not valid YAML")):
        (tmp_path / "run.yaml").write_text(content)
        with pytest.raises(ClipDomainError, match=message):
            parse_options(["--config", str(tmp_path / "run.yaml")])


def test_attention_slicing_is_checked_early_however_it_is_written(tmp_path):
    assert parse_options([]).model.attention_slicing == "auto"
    assert parse_options(["--attention_slicing", "256"]).model.attention_slicing == "256"
    file = tmp_path / "run.yaml"
    for written, read in (("off", "off"), ("128", "128")):  # YAML reads off as false
        file.write_text(f"attention_slicing: {written}\n")
        options = parse_options(["--config", str(file)])
        assert options.model.attention_slicing == read
        file.write_text(options.to_yaml())
        assert parse_options(["--config", str(file)]).model.attention_slicing == read
    with pytest.raises(ClipDomainError, match="--attention_slicing 0: expected auto, off"):
        parse_options(["--attention_slicing", "0"])


def test_attention_slicing_reaches_the_model(tmp_path):
    options = parse_options(["--attention_slicing", "64", "--smoke", "--output_dir", str(tmp_path)])
    model, *_ = load_parts(options, lambda _: None)
    assert model.config.text_config._attn_implementation == model.config.vision_config._attn_implementation
    assert model.config.vision_config._attn_implementation == "sliced_64"


@pytest.mark.parametrize(("device", "cores", "workers"), [("cpu", 2, 0), ("cpu", 8, 2), ("mps", 8, 4), ("cuda", 64, 4)])
def test_loader_workers_leave_a_cpu_that_trains_its_cores(monkeypatch, device, cores, workers):
    monkeypatch.setattr("hf_clip_domain.cli.options.find_device", lambda **kwargs: torch.device(device))
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert parse_options(["--domain", "medical", "--use_cpu", "true"]).training.dataloader_num_workers == workers
