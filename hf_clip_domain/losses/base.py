"""From a name or a dotted path to a loss."""

from __future__ import annotations

import difflib
import importlib
import inspect

from torch import nn

from hf_clip_domain.errors import ClipDomainError

_BUILT_IN = {
    "info_nce": "hf_clip_domain.losses.info_nce:InfoNCE",
    "siglip": "hf_clip_domain.losses.siglip:SigLIP",
    "sum": "hf_clip_domain.losses.combined:WeightedSum",
}


def available_losses() -> list[str]:
    """Names that `build_loss` accepts besides a dotted path."""
    return sorted(_BUILT_IN)


def is_built_in(name: str) -> bool:
    return name in _BUILT_IN


def build_loss(name: str, **settings) -> nn.Module:
    """A loss by its name (`"info_nce"`) or by a dotted path to the user's class (`"package.module:Class"`).

    Args:
        name: one of `available_losses()`, or `package.module:Class`.
        settings: keyword arguments of the loss, in plain values as YAML gives them.

    Raises:
        ClipDomainError: unknown name, a path that cannot be imported, or settings the class does not take.
    """
    path = _BUILT_IN.get(name, name)
    module_name, _, attribute = path.partition(":")
    if not attribute:
        near = difflib.get_close_matches(name, available_losses(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ClipDomainError(
            f"--loss {name!r} is neither a built-in loss ({', '.join(available_losses())}) nor a path of the form "
            f"package.module:Class.{hint}"
        )
    try:
        loss_class = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ClipDomainError(
            f"--loss {name!r} could not be imported: {error}. The module must be importable from the folder the "
            f"command runs in (or PYTHONPATH), and {attribute!r} must be a class in it."
        ) from error
    choices = _settings_of(loss_class)
    if unknown := [key for key in settings if choices is not None and key not in choices]:
        near = difflib.get_close_matches(unknown[0], choices, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ClipDomainError(
            f"--loss {name} has no setting {unknown[0]!r}; it has {', '.join(choices) or 'none'}.{hint}"
        )
    try:
        loss = loss_class(**settings)
    except TypeError as error:
        raise ClipDomainError(f"--loss {name!r} could not be built with {settings}: {error}.") from error
    if not isinstance(loss, nn.Module):
        raise ClipDomainError(f"--loss {name!r} gives a {type(loss).__name__}; a loss must be a torch.nn.Module.")
    return loss


def _settings_of(loss_class: type) -> list[str] | None:
    """Names of the arguments, those that a class hands on to the class below it included; `None` if it takes any."""
    found: list[str] = []
    for kind in inspect.getmro(loss_class) if inspect.isclass(loss_class) else [loss_class]:
        parameters = list(inspect.signature(kind).parameters.values()) if "__init__" in vars(kind) else []
        found += [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
        if parameters and parameters[-1].kind is not inspect.Parameter.VAR_KEYWORD:
            return found
        if kind is nn.Module:
            return found
    return None
