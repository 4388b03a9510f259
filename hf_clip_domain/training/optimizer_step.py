"""An optimizer's step that runs out of memory is taken up again where it stopped.

Optimizers make their state (AdamW: two tensors a parameter) at the first step, which is when a run that had just enough
memory ends. Groups of parameters are stepped one by one, so it is known which are done; of the one that failed, the
half-made state is thrown away before it is stepped again. So each parameter is stepped exactly once.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable

import torch
from torch import nn

from hf_clip_domain import memory
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.training.muon import MuonAdamW
from hf_clip_domain.training.replay import free_memory, is_out_of_memory

_TRIES = 3


def install_step_replay(optimizer: torch.optim.Optimizer, tell: Callable[[str], None]) -> None:
    """Make `optimizer.step()` survive a shortage of memory, as far as freeing what nobody uses helps.

    Of torch's own optimizers and Muon only, whose groups do not know of one another.

    Raises (from `step`):
        ClipDomainError: it does not help, or a parameter was left half changed.
    """
    if not (type(optimizer).__module__.startswith("torch.optim") or isinstance(optimizer, MuonAdamW)):
        return
    plain = optimizer.step

    @functools.wraps(plain)
    def step(self, closure=None):
        if closure is not None:
            return plain(closure)
        groups = self.param_groups
        try:
            for group in groups:
                self.param_groups = [group]
                _step_group(self, plain, tell)
        finally:
            self.param_groups = groups

    optimizer.step = types.MethodType(step, optimizer)


def _step_group(optimizer: torch.optim.Optimizer, plain: Callable[[], None], tell: Callable[[str], None]) -> None:
    before = _Versions(optimizer)
    for last in (False,) * (_TRIES - 1) + (True,):
        try:
            return plain()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if last or not before.put_back():
            raise _no_room(optimizer, reason)
        free_memory()
        tell(f"out of memory in the optimizer's step ({reason}): taken up again where it stopped.")


class _Versions:
    """How often each parameter and each tensor of the optimizer's state has been changed, and the numbers among them.

    torch counts changes itself, but for the fused kernels', which take no memory and therefore do not stop half-way.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.state = optimizer.state
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.parameters = {parameter: parameter._version for parameter in parameters}
        self.tensors: dict[nn.Parameter, dict[str, tuple[int, torch.Tensor | None]]] = {}
        for parameter in parameters:
            if parameter not in self.state:
                continue
            tensors = {name: value for name, value in self.state[parameter].items() if torch.is_tensor(value)}
            # Counters of steps go up before anything else happens: they are few bytes, to be put back.
            self.tensors[parameter] = {
                name: (value._version, value.clone() if value.numel() == 1 else None) for name, value in tensors.items()
            }

    def put_back(self) -> bool:
        """Undo what a step did before it failed; false when something larger was changed, which cannot be undone."""
        for parameter, version in self.parameters.items():
            if parameter._version != version:
                return False
            if parameter not in self.tensors:
                self.state.pop(parameter, None)
                continue
            for name, (version, number) in self.tensors[parameter].items():
                value = self.state[parameter][name]
                if number is not None:
                    value.copy_(number)
                elif value._version != version:
                    return False
        return True


def _no_room(optimizer: torch.optim.Optimizer, reason: str) -> ClipDomainError:
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    size = sum(parameter.nbytes for parameter in parameters) / memory.MIB
    return ClipDomainError(
        f"the optimizer's step does not fit in memory ({reason}): {type(optimizer).__name__} keeps its state for "
        f"{size:,.0f} MiB of trainable parameters. Train fewer of them, or use --optim adafactor. The last checkpoint is "
        "whole: --resume_from_checkpoint goes on from there."
    )


def state_to_come(optimizer: torch.optim.Optimizer | None) -> int:
    """Bytes of state that the optimizer will make at its first step; an estimate by its kind."""
    if optimizer is None or optimizer.state:
        return 0
    moments = 2 if "betas" in optimizer.defaults else int(bool(optimizer.defaults.get("momentum")))
    return sum(
        (1 if group.get("muon") else moments) * parameter.nbytes
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    )
