"""Which parts of a dual encoder keep the weights they came with, named by a few words.

    vision, text                the tower, without its projection into the shared space
    vision:6, text:6            its embeddings and first 6 layers
    all_but_projections         both towers: the projections alone train
    nothing                     all trains (where a model's default is to freeze something)
    all_but_biases_and_norms    everything that is neither a bias nor a normalisation (BitFit: Ben Zaken et al. 2022,
                                arXiv 2106.10199, with the normalisations)

Several words freeze what any of them names. The temperature (and SigLIP's bias) is no part of a tower and trains on;
`--temperature_schedule fixed` keeps it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.depth import TOWERS, Place, layer_stack, places

_WORD = re.compile(r"(vision|text)(?::(\d+))?|all_but_projections|all_but_biases_and_norms|nothing")


def check_words(words: Sequence[str]) -> None:
    """Refuse words that no model could understand.

    Raises:
        ClipDomainError: the unknown word, and those that are known.
    """
    for word in words:
        if not _WORD.fullmatch(word):
            raise ClipDomainError(
                f"--freeze {word}: expected vision, text, vision:K, text:K (embeddings and the first K layers), "
                "all_but_projections, all_but_biases_and_norms or nothing."
            )


def freeze(model: nn.Module, words: Sequence[str]) -> None:
    """Freeze, in place, what `words` name (see the module's docstring).

    A module in which nothing trains from then on runs in evaluation mode, also where the model is in training mode:
    dropout would only blur features that nothing adapts to.

    Raises:
        ClipDomainError: an unknown word, more layers than there are, or nothing would be left to train.
    """
    check_words(words)
    for word in words:
        tower, _, count = word.partition(":")
        if count and int(count) > (layers := len(layer_stack(model, tower)[1])):
            raise ClipDomainError(
                f"--freeze {word}: the {tower} tower has {layers} layers; give {tower}:{layers} or less."
            )
    parameters, where, norms = dict(model.named_parameters()), places(model), _norms(model)
    for name, place in where.items():
        if any(_names(word, name, place, norms) for word in words):
            parameters[name].requires_grad_(False)
    if not any(parameters[name].requires_grad for name in where):
        raise ClipDomainError(f"--freeze {' '.join(words)}: nothing of the towers would train; freeze less.")
    for module in _frozen_modules(model):
        module.register_forward_pre_hook(_in_evaluation_mode)


def _names(word: str, name: str, place: Place, norms: set[str]) -> bool:
    if word == "all_but_projections":
        return not place.projection
    if word == "all_but_biases_and_norms":
        return not name.endswith("bias") and name not in norms
    tower, _, count = word.partition(":")
    return place.tower == tower and not place.projection and (not count or place.depth <= int(count))


def _norms(model: nn.Module) -> set[str]:
    return {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for parameter, _ in module.named_parameters(recurse=False)
    }


def _frozen_modules(model: nn.Module) -> list[nn.Module]:
    """The largest modules that have parameters, of which none trains."""
    found: list[nn.Module] = []
    waiting = [getattr(model, f"{tower}_model") for tower in TOWERS]
    while waiting:
        module = waiting.pop()
        trains = [parameter.requires_grad for parameter in module.parameters()]
        if trains and not any(trains) and not isinstance(module, nn.ModuleList):  # a list is never called
            found.append(module)
        else:
            waiting += module.children()
    return found


def _in_evaluation_mode(module: nn.Module, _) -> None:
    # Before every call, since Trainer puts the whole model into training mode at every step.
    if module.training:
        module.eval()
