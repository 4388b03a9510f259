"""The two hundred options of a training run by purpose, for `train --help`.

Those of Hugging Face's that few runs need are only named, at the end; `--help_all` explains them too.
"""

from __future__ import annotations

import argparse
import functools
import textwrap

PURPOSES: dict[str, str] = {
    "run": "config smoke output_dir resume_from_checkpoint seed",
    "model": "model_name_or_path model_revision max_text_length attention_slicing",
    "data": "domain dataset dataset_revision image_column text_column label_column group_column streaming "
    "validation_fraction test_fraction max_bad_fraction captions dataloader_num_workers",
    "what trains": "adapter lora_rank lora_alpha lora_dropout lora_towers save_adapter freeze",
    "how long, how fast": "per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type "
    "warmup_steps weight_decay max_grad_norm layerwise_learning_rate_decay muon_ratio ema_decay early_stopping_patience",
    "loss and temperature": "loss loss_settings loss_learning_rate temperature_schedule temperature final_temperature "
    "temperature_warmup temperature_gap",
    "search of the loss's settings": "auto_tune_loss auto_tune_minutes auto_tune_trials auto_tune_epochs",
    "picture sizes": "resolutions resolution_schedule resolution_warmup resolution_minutes patch_dropout image_sizes "
    "eval_resolutions accuracy_budget",
    "memory and precision": "micro_batch_size gradient_checkpointing optim precision feature_cache feature_cache_gib use_cpu "
    "skip_device_check",
    "forgetting": "probe_dataset probe_domain probe_rows replay_dataset replay_rows wise_ft forgetting_budget",
    "scoring and checkpoints on the way": "eval_strategy eval_steps per_device_eval_batch_size save_strategy save_steps "
    "save_total_limit load_best_model_at_end metric_for_best_model",
    "watching": "monitor live_page notify logging_steps report_to run_name",
    "publishing": "push_to_hub hub_model_id hub_private_repo hub_revision",
}
_REST = "Hugging Face's other options"


class _Formatter(argparse.HelpFormatter):
    """One spelling of an option, and its default where there is one."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        spelling = ", ".join(action.option_strings) if action.dest == "help" else action.option_strings[0]
        values = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{spelling} {values}".rstrip()

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.nargs == 0 or action.default in (None, False, argparse.SUPPRESS):
            return action.help
        return f"{action.help} [%(default)s]"


class AllOptions(argparse.Action):
    """`--help_all`: the help with every option of Hugging Face's explained."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.print_help_all()
        parser.exit()


def group_by_purpose(parser: argparse.ArgumentParser) -> None:
    """Have the parser print its options by purpose, with short placeholders for values."""
    for action in parser._actions:
        if action.nargs != 0 and action.metavar is None:
            action.metavar = _placeholder(action)
    parser.formatter_class = _Formatter
    parser.usage = "%(prog)s [--config FILE] [--option VALUE ...]"
    parser.add_argument("--help_all", action=AllOptions, nargs=0, help="Explain Hugging Face's other options, too.")
    parser.format_help = functools.partial(_format, parser, everything=False)
    parser.print_help_all = lambda: print(_format(parser, everything=True), end="")


def _placeholder(action: argparse.Action) -> str | None:
    if action.choices is not None and len(str(action.choices)) < 100:
        return None  # the choices themselves
    if getattr(action.type, "__name__", "") == "string_to_bool":
        return "true|false"
    return {int: "N", float: "X"}.get(action.type, "VALUE")


def _format(parser: argparse.ArgumentParser, *, everything: bool) -> str:
    formatter = parser._get_formatter()
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    formatter.add_text(parser.description)
    actions: dict[str, list[argparse.Action]] = {}
    for action in parser._actions:
        actions.setdefault(action.dest, []).append(action)
    sections = {purpose: names.split() for purpose, names in PURPOSES.items()}
    grouped = {name for names in sections.values() for name in names}
    helps = [name for name in actions if name in ("help", "help_all")]
    rest = [name for name in actions if name not in grouped and name not in helps]
    sections = {"help": helps, **sections, **({_REST: rest} if everything else {})}
    for title, names in sections.items():
        formatter.start_section(title)
        formatter.add_arguments(action for name in names for action in actions[name])
        formatter.end_section()
    text = formatter.format_help()
    if not everything:
        words = ", ".join(f"--{name}" for name in rest)
        text += f"\n{_REST} (--help_all explains them):\n" + textwrap.indent(textwrap.fill(words, 98), "  ") + "\n"
    return f"{text}\n{parser.epilog}\n" if parser.epilog else text
