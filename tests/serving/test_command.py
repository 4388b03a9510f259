"""The command's options are the settings, in the units that people use."""

import argparse

from hf_clip_domain.cli import serve
from hf_clip_domain.serving.settings import MIB, Settings, default_name, fields


def parse(*argv):
    parser = argparse.ArgumentParser()
    serve.add_parser(parser.add_subparsers(dest="command"))
    return serve.settings_from(parser.parse_args(["serve", *argv]))


def test_without_options_it_is_the_default_server():
    assert parse("starter") == Settings(model="starter")


def test_every_setting_has_its_option_and_help():
    helps = {name: words for group in serve._GROUPS.values() for name, words in group.items()}
    assert helps.keys() == fields().keys() - {"model"} and all(words.endswith(".") for words in helps.values())


def test_options_reach_the_settings():
    argv = ["models:/clip@prod", "--max_image", "0.5", "--cache", "3", "--url_hosts", "a.example", "b.example:8443"]
    settings = parse(*argv, "--threads", "2", "--queue", "300", "--without_keys", "--linger_ms", "0")
    assert settings.max_image == MIB // 2 and settings.cache == 3 * MIB and settings.queue == 300
    assert settings.url_hosts == ("a.example", "b.example:8443") and settings.without_keys and settings.linger_ms == 0
    assert settings.name == "clip" and settings.threads == 2


def test_a_model_is_called_by_its_folder_or_id(tmp_path):
    (tmp_path / "medical").mkdir()
    assert default_name(str(tmp_path / "medical")) == default_name(f"{tmp_path}/medical/") == "medical"
    assert default_name("openai/clip-vit-base-patch32") == "openai/clip-vit-base-patch32"
    assert default_name("models:/clip/3") == "clip"
