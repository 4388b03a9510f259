"""Where the pairs of a command come from when the user names no dataset, and which split of them is meant."""

from __future__ import annotations

from datasets import Dataset, DatasetDict

from hf_clip_domain.data.samples import available_samples, load_samples
from hf_clip_domain.domains import Domain
from hf_clip_domain.errors import ClipDomainError


def samples_name(domain: Domain) -> str:
    """What reports call the domain's embedded samples."""
    return f"embedded {domain.name} samples (synthetic)"


def samples_of(domain: Domain, **choices: int) -> DatasetDict:
    """The domain's embedded samples; `choices` as for `load_samples`.

    Raises:
        ClipDomainError: it has none.
    """
    if domain.name not in available_samples():
        raise ClipDomainError(
            f"domain {domain.name!r} has no embedded samples (there are some for {', '.join(available_samples())}): "
            "name your data with --dataset."
        )
    return load_samples(domain.name, **choices)


def split_of(splits: DatasetDict, name: str) -> Dataset:
    """The one that `--split` names.

    Raises:
        ClipDomainError: there is none of that name.
    """
    if name not in splits:
        raise ClipDomainError(f"--split {name}: there is none; found {', '.join(splits)}.")
    return splits[name]
