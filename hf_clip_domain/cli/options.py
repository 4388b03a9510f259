"""From the command line, a YAML file and the domain's knowledge to the resolved options of a run.

What is said on the command line wins over the YAML file of `--config`, which wins over the domain's defaults, which
win over the defaults of the dataclasses.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser

from hf_clip_domain.arguments import (
    STARTER,
    TOWERS,
    AdaptationArguments,
    ClipTrainingArguments,
    DataArguments,
    ModelArguments,
)
from hf_clip_domain.cli.help import epilog
from hf_clip_domain.cli.option_groups import group_by_purpose
from hf_clip_domain.cli.sources import samples_name
from hf_clip_domain.device import find_device
from hf_clip_domain.domains import Domain, load_domain
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.serving.registry import find_version, is_registered, pinned

# What a run of the command does beyond a bare Trainer: score after every epoch and keep the best.
_EVERY_EPOCH = {"eval_strategy": "epoch", "save_strategy": "epoch"}
_EVERY_FIFTH = {"eval_strategy": "steps", "eval_steps": 0.2, "save_strategy": "steps", "save_steps": 0.2}
_KEEP_BEST = {"load_best_model_at_end": True, "metric_for_best_model": "text_to_image/mrr"}
# An adapter begins at zero and is a small part of the model: it takes larger steps than the weights themselves
# (docs/adaptation.md has the measurement).
_ADAPTER_RATE = 4
# Of the towers the heads alone train: each picture and caption is then computed once, and a run takes minutes on a CPU.
_HEADS_ALONE = ["vision", "text"]
_DESCRIPTIONS = {
    "train": "Adapt CLIP to a domain: score, train, score again, and save a model that CLIPModel loads. Defaults are "
    "those of the given --domain and model, in brackets.",
    "tune": "Search the loss's settings by short runs on the validation split, and write the best to tuned.yaml, for --config.",
}
_SMOKE = {
    "num_train_epochs": 1,
    "max_steps": 4,
    "per_device_train_batch_size": 16,
    "logging_steps": 1,
    "dataloader_num_workers": 0,
}


@dataclass(frozen=True)
class RunOptions:
    """Everything a run needs to know, resolved."""

    model: ModelArguments
    data: DataArguments
    adaptation: AdaptationArguments
    training: ClipTrainingArguments
    domain: Domain
    smoke: bool

    @property
    def dataset_name(self) -> str:
        """For reports."""
        return self.data.dataset or samples_name(self.domain)

    def to_yaml(self) -> str:
        """The settings that differ from a default, in the form that `--config` takes."""
        # A domain's default may be what the user went back from to the dataclass's: it is always written.
        chosen = {"smoke": self.smoke, "streaming": self.data.streaming, "adapter": self.adaptation.adapter}
        always = _domain_defaults(self.domain, {**chosen, "model_name_or_path": self.model.model_name_or_path})
        settings: dict[str, Any] = {}
        for part in (self.model, self.data, self.adaptation, self.training):
            settings |= _changed(part, always)
        # A finished run's configuration is for a new run: where this one resumed from is not part of it.
        settings.pop("resume_from_checkpoint", None)
        for said_by_precision in ("bf16", "fp16"):
            settings.pop(said_by_precision, None)
        settings.pop("notify", None)  # often a secret
        for name in [name for name in settings if name == "push_to_hub" or name.startswith("hub_")]:
            settings.pop(name)  # where it was published, and with which token, is no part of how the model came about
        if self.smoke:
            settings["smoke"] = True
        command = "# accelerate launch recipes/finetune.py --config run.yaml\n"
        return command + yaml.safe_dump(settings, sort_keys=True, allow_unicode=True)


def parse_options(argv: list[str], command: str = "train") -> RunOptions:
    """Resolve the options of a training run; `command` is whose `--help` it is.

    Raises:
        ClipDomainError: a `--config` file or domain that cannot be used, or settings that contradict each other.
        SystemExit: status 2 on wrong usage (an unknown option, a value of the wrong type), 0 after `--help`.
    """
    parser = _parser(command)
    first = _parser(defaults_off=True).parse_known_args(argv)[0]
    said = vars(first)
    config = _read_config(said.pop("config"), parser) if "config" in said else {}
    chosen = {**config, **said}
    domain = load_domain(chosen.get("domain", DataArguments.domain))
    parser.set_defaults(**_domain_defaults(domain, chosen), **config)
    try:
        model, data, adaptation, training, rest, unknown = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True
        )
    except ValueError as error:  # TrainingArguments refuses contradictory settings this way
        raise ClipDomainError(" ".join(str(error).split())) from error
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0], known, n=1)
        parser.error(f"unknown option {unknown[0]}" + (f"; did you mean {near[0]}?" if near else ""))
    return RunOptions(_with_model_choice(model, data, domain), data, adaptation, training, domain, rest.smoke)


def _parser(command: str = "train", *, defaults_off: bool = False) -> HfArgumentParser:
    parser = HfArgumentParser(
        [ModelArguments, DataArguments, AdaptationArguments, ClipTrainingArguments],
        prog=f"hf-clip-domain {command}",
        description=_DESCRIPTIONS[command],
        epilog=epilog(command),
        add_help=not defaults_off,
        allow_abbrev=False,
    )
    run = parser.add_argument_group("run")
    run.add_argument("--config", help="YAML file of options; the command line overrides it.")
    run.add_argument("--smoke", action="store_true", help="The whole path on a few pairs, in under a minute.")
    for action in parser._actions:
        if action.dest == "resume_from_checkpoint":
            action.nargs, action.const, action.type = "?", True, _true_or_path
            action.help = "Continue the run in --output_dir from its last whole checkpoint, or from the given one."
        if action.dest == "output_dir":
            action.required, action.help = False, "Where the run is kept. Default: outputs/<domain>."
        if defaults_off:
            # Only what was really said remains in the namespace, to tell it from a default.
            action.default, action.required = argparse.SUPPRESS, False
    if not defaults_off:
        group_by_purpose(parser)
    return parser


def _true_or_path(text: str) -> str | bool:
    return {"true": True, "false": False}.get(text.lower(), text)


def _read_config(file: str, parser: HfArgumentParser) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ClipDomainError(f"--config {file}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ClipDomainError(f"--config {file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ClipDomainError(f"--config {file}: expected `option: value` lines, found a {type(settings).__name__}.")
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    for key, value in settings.items():
        if key not in actions:
            near = difflib.get_close_matches(str(key), actions, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ClipDomainError(f"--config {file}: unknown key {key!r}{hint}")
        action = actions[key]
        if action.choices is not None and value not in action.choices:
            raise ClipDomainError(f"--config {file}: {key}: {value!r} is not one of {list(action.choices)}.")
        if action.type is not None and value is not None and not isinstance(value, (bool, list, dict)):
            try:  # YAML reads 1e-5 as a string, and argparse converts only what stands on the command line
                settings[key] = action.type(str(value))
            except (TypeError, ValueError) as error:
                raise ClipDomainError(f"--config {file}: {key}: {value!r} is not a valid value.") from error
    return settings


def _loader_workers(chosen: dict[str, Any]) -> int:
    """Half the cores; a quarter where the model computes on them too, and waits for its slowest thread."""
    on_cpu = find_device(use_cpu=bool(chosen.get("use_cpu"))).type == "cpu"
    return min(4, (os.cpu_count() or 1) // (4 if on_cpu else 2))


def _domain_defaults(domain: Domain, chosen: dict[str, Any]) -> dict[str, Any]:
    """Defaults of the run for this domain and model, less what was chosen in the command line or the file."""
    model = chosen.get("model_name_or_path", None if chosen.get("dataset") else STARTER)
    defaults = {
        "output_dir": f"outputs/{domain.name}",
        "loss": domain.loss,
        # Settings belong to the loss they were written for.
        "loss_settings": dict(domain.loss_settings) if chosen.get("loss", domain.loss) == domain.loss else None,
        "micro_batch_size": "auto",
        "precision": "auto",
        "live_page": True,
        "report_to": "mlflow" if os.environ.get("MLFLOW_TRACKING_URI") else "none",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "dataloader_num_workers": _loader_workers(chosen),
        **(_EVERY_FIFTH if chosen.get("streaming") else _EVERY_EPOCH),
        **domain.training,
        **(domain.training_starter if model == STARTER else {}),
        **(_towers_defaults(domain, chosen) if model == TOWERS else {}),
        **(_SMOKE if chosen.get("smoke") else {}),
    }
    if chosen.get("adapter", "none") != "none" and "learning_rate" in defaults:
        defaults["learning_rate"] *= _ADAPTER_RATE
    if chosen.get("eval_strategy", "epoch") != "no" and chosen.get("save_strategy", "epoch") != "no":
        defaults |= _KEEP_BEST
    return {key: value for key, value in defaults.items() if key not in chosen}


def _towers_defaults(domain: Domain, chosen: dict[str, Any]) -> dict[str, Any]:
    """The heads alone train, unless something else was chosen: towers take the small steps of any pretrained model."""
    frozen = chosen.get("freeze", _HEADS_ALONE)
    if chosen.get("adapter", "none") != "none" or frozen not in (_HEADS_ALONE, ["all_but_projections"]):
        return {}
    keeps = not (chosen.get("streaming") or chosen.get("image_sizes"))
    # An epoch is a second's work, of which scoring and saving would be the most.
    seldom = _EVERY_FIFTH if not {"eval_strategy", "save_strategy"} & set(chosen) else {}
    # In full precision, so that training and scoring share the features; the heads alone would gain nothing by less.
    own = {**domain.training_towers, **seldom, "freeze": frozen, "precision": "fp32"}
    return {**own, "feature_cache": "auto"} if keeps else own


def _with_model_choice(model: ModelArguments, data: DataArguments, domain: Domain) -> ModelArguments:
    name = model.model_name_or_path
    if name is None:
        name = domain.base_model if data.dataset else STARTER
    elif is_registered(name):  # an alias may mean another version tomorrow
        name = pinned(name, find_version(name))
    return dataclasses.replace(model, model_name_or_path=name)


def _changed(part: Any, always: Iterable[str]) -> dict[str, Any]:
    settings = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        value = value.value if isinstance(value, Enum) else value
        default = field.default.value if isinstance(field.default, Enum) else field.default
        if isinstance(value, float) and value.is_integer():  # argparse reads "10" for a float as 10.0
            value = int(value)
        plain = isinstance(value, (str, int, float, bool, list)) or value is None or field.name == "loss_settings"
        if field.init and plain and (value != default or field.name in always):
            settings[field.name] = value
    return settings
