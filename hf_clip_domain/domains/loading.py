"""From a YAML file to a `Domain`, refusing what nobody would read: unknown keys and values of the wrong type."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from hf_clip_domain.domains.domain import Domain, Rewrite
from hf_clip_domain.domains.metrics import METRICS, problem_with
from hf_clip_domain.errors import ClipDomainError

_FOLDER = Path(__file__).parent
# Fields that the package's training arguments add to those of transformers.TrainingArguments.
OWN_TRAINING_FIELDS = {
    "micro_batch_size": int,
    "early_stopping_patience": int,
    "loss_learning_rate": float,
    "muon_ratio": float,
    "image_sizes": list,
    "temperature_schedule": str,
    "temperature": float,
    "final_temperature": float,
    "temperature_warmup": float,
    "temperature_gap": float,
}
_METRIC = re.compile(r"(image_to_text|text_to_image)/(recall@\d+|mean_rank|median_rank|mrr|map|ndcg@10|map_by_label)")


def available_domains() -> list[str]:
    """Names of the domains that come with the package."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def load_domain(name_or_path: str | Path) -> Domain:
    """Read a domain by name, or from a YAML file (or a folder that holds `domain.yaml`).

    A file may be partial: all but `name` has a default. `extends: medical` (a name, or a path relative to the file)
    starts from another domain; mappings are merged, everything else is replaced, and null takes an entry away.
    Any value may be written `{value: ..., reason: why}`.

    Raises:
        ClipDomainError: no such domain or file, invalid YAML, an unknown key, or a value of the wrong type.
    """
    tree, reasons, file = _strip_reasons(*_read_tree(str(name_or_path), Path.cwd(), ()))
    if not isinstance(tree.get("name"), str):
        raise ClipDomainError(f"{file}: `name` is missing; write `name: my-domain` (a word for folders and cards).")
    settings = _convert(tree, Domain, file, "")
    domain = dataclasses.replace(settings, reasons=reasons)
    _check_meaning(domain, file)
    return domain


def _read_tree(name_or_path: str, base: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], Path]:
    """The raw settings of a file merged over those it extends."""
    file = _find(name_or_path, base)
    if file in seen:
        raise ClipDomainError(f"{file}: `extends` goes round in a circle: {' -> '.join(map(str, (*seen, file)))}.")
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ClipDomainError(f"{file} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise ClipDomainError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ClipDomainError(f"{file}: expected `key: value` lines, found {_shown(tree)}.")
    parent = tree.pop("extends", None)
    if parent is None:
        return tree, file
    if not isinstance(parent, str):
        raise ClipDomainError(f"{file}: extends: expected the name or path of one domain, found {_shown(parent)}.")
    below = _read_tree(parent, file.parent, (*seen, file))[0]
    if "loss" in tree:
        below.pop("loss_settings", None)  # they were written for the other loss
    return _merge(below, tree), file


def _find(name_or_path: str, base: Path) -> Path:
    packaged = _FOLDER / f"{name_or_path}.yaml"
    if name_or_path in available_domains():
        return packaged
    path = base / Path(name_or_path).expanduser()
    if path.is_dir() and (path / "domain.yaml").is_file():
        path = path / "domain.yaml"
    if path.is_file():
        return path.resolve()
    raise ClipDomainError(
        f"no domain {name_or_path!r}{_near(name_or_path, available_domains())}: expected one of "
        f"{', '.join(available_domains())}, or the path of a YAML file."
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, dict) and "value" in value and set(value) <= {"value", "reason"}


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both_mappings = isinstance(old, dict) and isinstance(value, dict)
        if value is None and key in merged and not _is_pair(old):
            del merged[key]
        elif both_mappings and not _is_pair(old) and not _is_pair(value):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _strip_reasons(tree: dict[str, Any], file: Path) -> tuple[dict[str, Any], dict[str, str], Path]:
    """Take the reasons out of `{value, reason}` pairs, and out of the rewrites that carry one."""
    reasons: dict[str, str] = {}

    def strip(value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            return value
        if "reason" in value and not isinstance(value["reason"], str):
            raise ClipDomainError(f"{file}: {path}.reason: expected a sentence, found {_shown(value['reason'])}.")
        if "reason" in value and ("value" in value or "pattern" in value):
            reasons[path] = value["reason"]
            value = {key: item for key, item in value.items() if key != "reason"}
        if set(value) == {"value"}:
            return value["value"]
        return {key: strip(item, f"{path}.{key}" if path else str(key)) for key, item in value.items()}

    return strip(tree, ""), reasons, file


def _convert(value: Any, hint: Any, file: Path, path: str) -> Any:
    """The value as the type of `hint`, or a `ClipDomainError` that names file and key."""
    origin, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _convert_mapping(value, hint, file, path)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _convert(value, next(choice for choice in inner if choice is not type(None)), file, path)
    if origin is Literal:
        if value in inner:
            return value
        expected = f"one of {', '.join(inner)}{_near(str(value), inner)}"
    elif origin is tuple and isinstance(value, list):
        if inner[-1] is Ellipsis:
            return tuple(_convert(item, inner[0], file, f"{path}[{i}]") for i, item in enumerate(value))
        if len(value) == len(inner):
            return tuple(_convert(item, inner[i], file, f"{path}[{i}]") for i, item in enumerate(value))
        expected = f"{len(inner)} values"
    elif origin is tuple:
        expected = "a list"
    elif origin is dict and isinstance(value, dict):
        return {str(key): _convert(item, inner[1], file, f"{path}.{key}") for key, item in value.items()}
    elif origin is dict:
        expected = "a mapping of `key: value` lines"
    elif hint is float or hint is int:
        number = _number(value)
        if number is not None and (hint is float or float(number).is_integer()):
            return hint(number)
        expected = "a number" if hint is float else "a whole number"
    elif hint in (bool, str):
        if isinstance(value, hint):
            return value
        expected = "true or false" if hint is bool else "text (put it in quotes)"
    else:
        return value
    raise ClipDomainError(f"{file}: {path}: expected {expected}, found {_shown(value)}.")


def _convert_mapping(value: Any, kind: type, file: Path, path: str) -> Any:
    if not isinstance(value, dict):
        raise ClipDomainError(f"{file}: {path}: expected a mapping of `key: value` lines, found {_shown(value)}.")
    hints = get_type_hints(kind)
    hints.pop("reasons", None)
    for key in value:
        if key not in hints:
            where = f"{path}.{key}" if path else str(key)
            raise ClipDomainError(f"{file}: unknown key {where!r}{_near(str(key), hints)}; known: {', '.join(hints)}.")
    settings = {key: _convert(item, hints[key], file, f"{path}.{key}" if path else key) for key, item in value.items()}
    if kind is Rewrite and "pattern" not in settings:
        raise ClipDomainError(f"{file}: {path}: `pattern` is missing (a regular expression).")
    if kind is Domain:
        for section in ("training", "training_starter", "training_towers"):
            settings[section] = _convert_training(settings.get(section, {}), file, section)
        if "metrics" in settings:
            settings["metrics"] = tuple(
                _convert_metric(item, file, f"metrics[{i}]") for i, item in enumerate(settings["metrics"])
            )
    return kind(**settings)


def _convert_metric(item: Any, file: Path, path: str) -> Any:
    """A key of the evaluation as it is, or the settings of a metric."""
    if not isinstance(item, dict):
        return _convert(item, str, file, path)
    kind = METRICS.get(item.get("metric"))
    if kind is None:
        found = item.get("metric")
        raise ClipDomainError(
            f"{file}: {path}.metric: expected one of {', '.join(METRICS)}{_near(str(found), METRICS)}, found {_shown(found)}."
        )
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.name not in item
    ]
    if missing:
        raise ClipDomainError(f"{file}: {path}: {item['metric']} needs `{missing[0]}`.")
    metric = _convert_mapping(item, kind, file, path)
    if problem := problem_with(metric):
        raise ClipDomainError(f"{file}: {path}.{problem}.")
    return metric


def _convert_training(section: dict[str, Any], file: Path, path: str) -> dict[str, Any]:
    if not section:
        return {}
    # Imported where a section is checked: it takes a second that a domain without one need not spend.
    from transformers import TrainingArguments

    hints = get_type_hints(TrainingArguments) | OWN_TRAINING_FIELDS
    names = {field.name for field in dataclasses.fields(TrainingArguments) if field.init} | set(OWN_TRAINING_FIELDS)
    for key in section:
        if key not in names:
            raise ClipDomainError(
                f"{file}: unknown key {f'{path}.{key}'!r}{_near(key, names)}; expected a field of the training "
                "arguments (hf-clip-domain train --help)."
            )
    return {key: _convert_training_value(value, hints[key], file, f"{path}.{key}") for key, value in section.items()}


def _convert_training_value(value: Any, hint: Any, file: Path, path: str) -> Any:
    inner = get_args(hint)
    numeric = hint in (int, float) or (inner and set(inner) <= {int, float, type(None)})
    if numeric or hint is bool:
        return _convert(value, float if float in (hint, *inner) and hint is not int else hint, file, path)
    return value


def _check_meaning(domain: Domain, file: Path) -> None:
    """What types cannot tell: ranges, templates, patterns."""

    def refuse(path: str, found: Any, expected: str):
        raise ClipDomainError(f"{file}: {path}: expected {expected}, found {_shown(found)}.")

    image, augment = domain.image, domain.augment
    if image.window is not None and not 0 <= image.window[0] < image.window[1] <= 100:
        refuse("image.window", image.window, "two percentiles such as [1, 99]")
    if image.clahe_clip < 0 or 0 < image.clahe_clip < 1:
        refuse("image.clahe_clip", image.clahe_clip, "0 (off) or at least 1")
    if not 1 <= image.clahe_tiles <= 16:
        refuse("image.clahe_tiles", image.clahe_tiles, "1 to 16 tiles a side")
    if not 0 < augment.crop_scale[0] <= augment.crop_scale[1] <= 2:
        refuse("augment.crop_scale", augment.crop_scale, "two shares of the area from above 0 to 2, such as [0.8, 1.0]")
    if not 0.5 <= augment.aspect[0] <= augment.aspect[1] <= 2:
        refuse("augment.aspect", augment.aspect, "two ratios from 0.5 to 2, such as [0.9, 1.1]")
    for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
        if not 0 <= getattr(augment, name) <= most:
            refuse(f"augment.{name}", getattr(augment, name), f"0 to {most:g}")
    for index, prompt in enumerate(domain.prompts):
        if prompt.count("{}") != 1:
            refuse(f"prompts[{index}]", prompt, "a template with one {} for the class")
    for index, metric in enumerate(domain.metrics):
        if isinstance(metric, str) and not _METRIC.fullmatch(metric):
            refuse(f"metrics[{index}]", metric, "a key such as text_to_image/recall@10, or {metric: ...}")
    for name, rewrite in domain.text.rewrites.items():
        try:
            re.sub(rewrite.pattern, rewrite.replace, "")
            re.compile(rewrite.pattern)
        except (re.error, IndexError) as error:
            raise ClipDomainError(f"{file}: text.rewrites.{name}: not a regular expression: {error}.") from error


def _number(value: Any) -> float | int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:  # YAML 1.1 reads 1e-5 (without a point) as text
        return value if isinstance(value, (int, float)) else float(value)
    except ValueError:
        return None


def _near(word: str, choices: Any) -> str:
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
