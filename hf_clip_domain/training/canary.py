"""Does this device compute what training needs, and rightly? Asked before a run on MPS, and by the doctor.

Operators of young backends have returned wrong numbers without an error, and a run would learn from them. The
tolerances tell a wrong operator from one that rounds, as TF32 does.
"""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.training import device_checks

_UPDATE = "Update torch; until then train with --use_cpu"
_EAGER = "Update torch; until then call model.set_attn_implementation('eager') in Python, or train with --use_cpu"


@dataclass(frozen=True)
class Check:
    """One question to a device.

    Args:
        name: what is checked.
        measure: from the device to a relative error; `inf` for a wrong kind of answer.
        tolerance: the largest error of a device that computes rightly.
        advice: what to do when it fails.
        short: whether it belongs to the short canary before a run.
    """

    name: str
    measure: Callable[[torch.device], float]
    tolerance: float
    advice: str
    short: bool = True


@dataclass(frozen=True)
class CheckResult:
    """An answer: `note` tells what the device said besides, such as its exception or a fallback to the CPU."""

    name: str
    passed: bool
    error: float
    tolerance: float
    seconds: float
    advice: str
    note: str = ""


CHECKS = (
    Check("loss of a step", device_checks.loss_of_a_step, 5e-3, _UPDATE),
    Check("gradients of a step", device_checks.gradients_of_a_step, 3e-2, _UPDATE),
    Check(
        "gradients at several sizes",
        device_checks.gradients_at_several_sizes,
        3e-2,
        "Train without --image_sizes, or update torch",
        short=False,
    ),
    Check("attention, causal mask", device_checks.attention_with_causal_mask, 1e-3, _EAGER),
    Check("attention, padding mask", device_checks.attention_with_padding_mask, 1e-3, _EAGER),
    Check("attention, strided inputs", device_checks.attention_of_strided_inputs, 1e-3, _EAGER),
    Check("product, transposed left", device_checks.product_with_transposed_left, 1e-3, _UPDATE),
    Check("copies to the device", device_checks.copies_to_the_device, 0.0, _UPDATE),
)


def checks_for(precision: str) -> tuple[Check, ...]:
    """All checks of a device on which a run would train in `precision`."""
    if precision == "fp32":
        return CHECKS
    lower = Check(
        f"loss of a step in {precision}",
        functools.partial(device_checks.loss_in_lower_precision, name=precision),
        5e-2,
        "Train with --precision fp32",
    )
    return (*CHECKS, lower)


def run_check(check: Check, device: torch.device) -> CheckResult:
    """Ask; an exception of the device is an answer too."""
    note, start = "", time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            error = check.measure(device)
        except (RuntimeError, TypeError, NotImplementedError) as failure:  # MPS says TypeError of a type it lacks
            error, note = math.inf, " ".join(str(failure).split())
    on_cpu = [str(warning.message) for warning in caught if "fall back to run on the CPU" in str(warning.message)]
    if on_cpu and not note:
        note = "slow: " + " ".join(on_cpu[0].split())
    passed = error <= check.tolerance  # not of a NaN
    seconds = time.perf_counter() - start
    return CheckResult(check.name, passed, error, check.tolerance, seconds, check.advice, note)


def check_before_training(device: torch.device, precision: str) -> None:
    """The short canary, on MPS, whose operators have been wrong in several releases of torch.

    Raises:
        ClipDomainError: the device computes wrongly: what, by how much, and what to do.
    """
    if device.type != "mps":
        return
    for check in checks_for(precision):
        if check.short and not (result := run_check(check, device)).passed:
            raise ClipDomainError(
                f"this device computes wrongly: {result.name}, error {result.error:.1e} where {result.tolerance:.0e} is "
                f"allowed{f' ({result.note})' if result.note else ''}. {result.advice}. `hf-clip-domain doctor` tells more; "
                "--skip_device_check trains nevertheless."
            )
