"""The options of training at several picture sizes: read, and refused where they contradict each other."""

from __future__ import annotations

from typing import Any

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.image_sizes import parse_sizes

SCHEDULES = ("constant", "step", "linear", "cosine", "random")
AUTO = "auto"


def read_resolutions(value: Any) -> list[int] | str | None:
    """`"96,128,224"`, `"auto"`, a number, or a list as YAML has it: ascending sizes, `"auto"` or `None`.

    Raises:
        ClipDomainError: anything else.
    """
    if value is None or value == AUTO:
        return value
    sizes = parse_sizes(value, "--resolutions")
    if sizes != sorted(set(sizes)):
        raise ClipDomainError(
            f"--resolutions {value}: expected sizes in pixels from small to large, such as 96,128,224, or auto."
        )
    return sizes


def check_resolutions(args: Any) -> None:
    """Refuse what does not go together, of a `ClipTrainingArguments` whose resolutions are read.

    Raises:
        ClipDomainError: names the options, and what to do.
    """
    sizes = None if args.resolutions == AUTO else len(args.resolutions or ())  # auto gives two
    several = sizes is None or sizes > 1
    if args.resolution_schedule == "constant" and several:
        raise ClipDomainError(
            f"--resolution_schedule constant trains at one size: give one instead of --resolutions {args.resolutions}."
        )
    if args.resolution_schedule in ("linear", "cosine") and sizes is not None and sizes > 2:
        raise ClipDomainError(
            f"--resolution_schedule {args.resolution_schedule} goes through the sizes between two: give the first and the "
            "last, such as --resolutions 96,224."
        )
    if not 0 <= args.resolution_warmup <= 1:
        raise ClipDomainError(f"--resolution_warmup {args.resolution_warmup}: expected a share from 0 to 1.")
    if not args.resolution_minutes > 0:
        raise ClipDomainError(f"--resolution_minutes {args.resolution_minutes}: expected a number above 0.")
    if not 0 <= args.patch_dropout < 1:
        raise ClipDomainError(f"--patch_dropout {args.patch_dropout}: expected a share from 0 to below 1, such as 0.5.")
    if several and args.image_sizes is not None:
        raise ClipDomainError("--image_sizes embeds at all its sizes in every step: give one size as --resolutions.")
    if args.feature_cache is not None and (several or args.patch_dropout):
        raise ClipDomainError(
            "--feature_cache keeps features of whole pictures at one size: leave out --patch_dropout, and give one size as "
            "--resolutions, or leave out the cache."
        )
