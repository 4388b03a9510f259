"""Which precision a run trains in, and why: asked for, or the fastest that the device has and that proves right.

fp32 is always right. bf16 and fp16 mean mixed precision as accelerate does it: weights and loss stay fp32, the towers
compute under autocast, and fp16 scales the loss by itself.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from hf_clip_domain.device import Device, describe
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models.precision_trial import try_precision

PRECISIONS = ("fp32", "bf16", "fp16")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
RECORD = "precision.json"
# A lower precision has to be worth its rounding.
_FASTER = 1.1
_WRONG = 0.1


@dataclass(frozen=True)
class Precision:
    """A decision.

    Args:
        name: fp32, bf16 or fp16.
        reason: a sentence's end, as in "bf16, since ...".
        measured: whether a clock had a say, which might say otherwise another time.
    """

    name: str
    reason: str
    measured: bool = False

    def __str__(self) -> str:
        return f"{self.name}, since {self.reason}"


def resolve_precision(
    asked: str, device: torch.device, *, bf16: bool = False, fp16: bool = False, launcher: str = "no", run: Path | None
) -> Precision:
    """The precision of a run.

    Args:
        asked: `auto` or one of `PRECISIONS`.
        device: what the run trains on.
        bf16, fp16: Hugging Face's own flags; one that is set wins over `auto`.
        launcher: `accelerate launch --mixed_precision`; anything but its default, `no`, wins over `auto`.
        run: the run's folder; what an earlier start of it on the same device measured is kept to, so that a run which
            goes on does so in the same precision.

    Raises:
        ClipDomainError: contradictory wishes, an unknown precision, or one that the device does not have.
    """
    if asked not in ("auto", *PRECISIONS):
        raise ClipDomainError(f"--precision {asked}: expected auto, {', '.join(PRECISIONS)}.")
    flags = [name for name, said in (("bf16", bf16), ("fp16", fp16)) if said]
    if len({*flags, *({asked} - {"auto"})}) > 1:
        said = [f"--precision {asked}"] if asked != "auto" else []
        raise ClipDomainError(f"{' and '.join(said + [f'--{name}' for name in flags])} contradict: give one of them.")
    if asked != "auto":
        choice = Precision(asked, f"--precision {asked} says so")
    elif flags:
        choice = Precision(flags[0], f"--{flags[0]} says so")
    elif launcher != "no":
        choice = Precision(launcher, f"accelerate launch --mixed_precision {launcher} says so")
    else:
        return _agreed(_recorded(run, device) or choose_precision(device))
    if reason := _unusable(choice.name, describe(device)):
        raise ClipDomainError(f"{choice.name} ({choice.reason}): {reason}")
    return choice


def choose_precision(device: torch.device) -> Precision:
    """The lower precision that the device's hardware computes in, if it is clearly faster and right; else fp32."""
    name, reason = candidate(describe(device))
    if name == "fp32":
        return Precision(name, reason)
    try:
        trial = try_precision(device, DTYPES[name])
    except RuntimeError as error:  # out of memory, or an operator that is missing
        return Precision("fp32", f"{reason}, but {name} failed: {' '.join(str(error).split())}", measured=True)
    if trial.error > _WRONG:
        return Precision(
            "fp32", f"{reason}, but a block's gradient in {name} was off by {trial.error:.0%}", measured=True
        )
    if trial.speedup < _FASTER:
        return Precision("fp32", f"{reason}, but {name} was not clearly faster (x{trial.speedup:.2f})", measured=True)
    return Precision(name, f"{reason}, and it was x{trial.speedup:.2f} as fast as fp32", measured=True)


def candidate(device: Device) -> tuple[str, str]:
    """What the hardware is made for, and by which of its features; `fp32` where a lower precision is only emulated."""
    if device.kind == "cuda":
        capability = device.compute_capability or (0, 0)
        words = "compute capability {}.{}".format(*capability)
        if capability >= (8, 0):
            return "bf16", f"{words} has bf16"
        if capability >= (7, 0):
            return "fp16", f"{words} has fp16"
        return "fp32", f"{words} has neither bf16 nor fast fp16"
    if device.kind == "mps":
        if device.apple_generation is None or device.apple_generation < 3:
            return "fp32", f"{device.name} has no bf16 of its own"
        if reason := _unusable("bf16", device):
            return "fp32", reason
        return "bf16", f"{device.name} has bf16"
    found = [name for name in device.vector_extensions if name.endswith("BF16")]
    if device.kind == "cpu" and found:
        return "bf16", f"the processor has {found[-1]}"
    return "fp32", f"the {'processor' if device.kind == 'cpu' else device.kind} has no bf16 that this package knows of"


def _unusable(name: str, device: Device) -> str | None:
    """Why a precision cannot be had at all; slow ones can."""
    if name not in PRECISIONS:
        return f"expected {', '.join(PRECISIONS)}."
    if name == "fp16" and device.kind == "cpu":
        return "a CPU has no fp16 training with loss scaling. Use --precision bf16, fp32 or auto."
    if name == "fp16" and device.kind == "mps" and torch.__version__ < (2, 8):
        return f"scaling the loss on MPS needs torch 2.8, and this is {torch.__version__}. Update torch, or use fp32."
    if name == "bf16" and device.kind == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
        return "bf16 on MPS needs macOS 14. Update macOS, or use fp32."
    return None


def _agreed(mine: Precision) -> Precision:
    """One choice of all processes of a run: what each would choose if they are of one mind, else fp32.

    Every process times itself while the others do, as it will be in training. A split vote means a close call or
    different machines, and fp32 is right on all of them.
    """
    if not torch.distributed.is_initialized():
        return mine
    choices: list[Precision] = [mine] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(choices, mine)
    if len({choice.name for choice in choices}) == 1:
        return choices[0]
    votes = "; ".join(f"process {rank}: {choice}" for rank, choice in enumerate(choices))
    return Precision("fp32", f"the processes differ ({votes})", measured=True)


def record_precision(choice: Precision, device: torch.device, run: Path) -> None:
    """Keep the decision in the run's folder: for its card, and for the run's next start."""
    run.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**asdict(choice), **_circumstances(device)}, indent=1)
    (run / RECORD).write_text(text, encoding="utf-8")


def read_record(run: Path) -> dict[str, str]:
    """What `record_precision` kept; empty where there is nothing."""
    try:
        return json.loads((run / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _recorded(run: Path | None, device: torch.device) -> Precision | None:
    """What was measured for this run before, unless under other circumstances."""
    record = read_record(run) if run is not None else {}
    if not record.get("measured") or record["name"] not in PRECISIONS:
        return None
    if any(record.get(name) != value for name, value in _circumstances(device).items()):
        return None
    return Precision(record["name"], record["reason"], measured=True)


def _circumstances(device: torch.device) -> dict[str, str]:
    return {"device": str(describe(device)), "torch": str(torch.__version__)}
