"""A missing package of an optimizer (`--optim adamw_bnb_8bit`), told in one sentence and before any work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from transformers import Trainer

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.errors import ClipDomainError


def check_optimizer(args: ClipTrainingArguments) -> None:
    """Refuse an optimizer whose package is missing.

    Raises:
        ClipDomainError: names the option and what to install.
    """
    # Those that choose their parameters by the model's names say so by a ValueError, and are looked at later.
    with naming_missing_packages(args), suppress(ValueError):
        Trainer.get_optimizer_cls_and_kwargs(args)


@contextmanager
def naming_missing_packages(args: ClipTrainingArguments) -> Iterator[None]:
    """Turn an ImportError into a sentence that names `--optim`."""
    try:
        yield
    except ImportError as error:
        optim = getattr(args.optim, "value", args.optim)
        reason = " ".join(str(error).split()).rstrip(".")
        raise ClipDomainError(
            f"--optim {optim}: {reason}. Or choose adamw_torch or adafactor, which need nothing."
        ) from error
