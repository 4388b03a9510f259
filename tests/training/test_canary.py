"""The canary sings on a device that computes rightly, and falls silent when an operator is broken."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F

from hf_clip_domain.cli.main import main
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.training import canary, device_checks
from hf_clip_domain.training.canary import Check, check_before_training, checks_for, run_check

CPU, MPS = torch.device("cpu"), torch.device("mps")  # a device can be named where there is none


def failed(checks=None, device=CPU):
    return {check.name for check in checks or checks_for("bf16") if not run_check(check, device).passed}


def test_a_cpu_computes_rightly_with_room_to_spare():
    for check in checks_for("bf16"):
        result = run_check(check, CPU)
        assert result.passed and not result.note, result
        if "bf16" in check.name:
            assert 1e-5 < result.error < check.tolerance / 5
        else:
            assert result.error <= check.tolerance / 1000


def test_fp16_scales_its_loss_and_keeps_its_gradients():
    assert 0 < device_checks.loss_in_lower_precision(CPU, "fp16") < 0.01
    assert "loss of a step in fp16" in {check.name for check in checks_for("fp16")}
    assert checks_for("fp32") == canary.CHECKS


@pytest.mark.parametrize(
    ("operator", "break_it", "expected"),
    [
        (
            (F, "scaled_dot_product_attention"),  # forgets its mask
            lambda plain: lambda q, k, v, **options: plain(q, k, v),
            {"attention, causal mask", "attention, padding mask"},
        ),
        (
            (F, "scaled_dot_product_attention"),  # reads its inputs as if they were contiguous
            lambda plain: lambda q, k, v, **options: plain(q if q.is_contiguous() else q.flip(-1), k, v, **options),
            {"attention, strided inputs"},
        ),
        (
            (torch.Tensor, "addmm_"),  # takes a transposed operand for a plain one
            lambda plain: lambda self, a, b: plain(self, a if a.is_contiguous() else a.flip(0), b),
            {"product, transposed left"},
        ),
        (
            (F, "interpolate"),  # mirrors; a wrong scale alone would vanish in the norm that follows
            lambda plain: lambda x, **options: plain(x, **options).flip(-1 if x.dtype == torch.float32 else ()),
            {"gradients at several sizes"},
        ),
    ],
)
def test_a_broken_operator_is_found(monkeypatch, operator, break_it, expected):
    owner, name = operator
    monkeypatch.setattr(owner, name, break_it(getattr(owner, name)))
    assert expected <= failed()


def test_a_copy_that_is_read_before_it_has_arrived_is_found(monkeypatch):
    plain = torch.Tensor.to

    def early(self, *args, non_blocking=False, **options):
        copy = plain(self, *args, **options).clone()
        return copy.zero_() if non_blocking else copy

    monkeypatch.setattr(torch.Tensor, "to", early)
    assert failed() == {"copies to the device"}


def test_wrong_gradients_alone_are_found(monkeypatch):
    class Normalise(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.dtype = x.dtype
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * (1 if ctx.dtype == torch.float64 else 1.2)

    plain = F.layer_norm
    monkeypatch.setattr(F, "layer_norm", lambda x, *args, **options: plain(Normalise.apply(x), *args, **options))
    assert failed() == {"gradients of a step", "gradients at several sizes"}


def answers(error, message=None, warning=None):
    def measure(device):
        if warning:
            warnings.warn(warning, stacklevel=1)
        if message:
            raise NotImplementedError(message)
        return error

    return Check("an operator", measure, 1e-3, "Update torch")


def test_every_kind_of_answer():
    assert run_check(answers(1e-4), CPU).passed
    assert not run_check(answers(1e-2), CPU).passed
    assert not run_check(answers(math.nan), CPU).passed
    missing = run_check(answers(0, message="'aten::x' is not\n implemented for MPS"), CPU)
    assert not missing.passed and missing.note == "'aten::x' is not implemented for MPS"
    fallback = "The operator 'aten::x' is not supported on the MPS backend and will fall back to run on the CPU."
    slow = run_check(answers(0, warning=fallback), CPU)
    assert slow.passed and slow.note == f"slow: {fallback}"
    assert run_check(answers(0, warning="something else"), CPU).note == ""


def test_before_training_only_mps_is_asked_and_shortly(monkeypatch):
    asked = []

    def check(name, error, short=True):
        return Check(name, lambda device: asked.append((name, device.type)) or error, 1e-3, "Update torch", short)

    monkeypatch.setattr(canary, "CHECKS", (check("first", 0.0), check("long", 1.0, short=False), check("second", 0.5)))
    check_before_training(CPU, "fp32")
    check_before_training(torch.device("cuda"), "fp32")
    assert asked == []
    with pytest.raises(ClipDomainError, match="second, error 5.0e-01.*Update torch.*--skip_device_check"):
        check_before_training(MPS, "fp32")
    assert asked == [("first", "mps"), ("second", "mps")]


def test_a_failed_canary_ends_the_run_unless_told_otherwise(monkeypatch, capsys, tmp_path):
    """On the CPU, which is presented as MPS; the run that goes on ends at a model that is not there."""
    monkeypatch.setattr(
        "hf_clip_domain.cli.train.check_before_training", lambda _, name: check_before_training(MPS, name)
    )
    monkeypatch.setattr(canary, "CHECKS", (answers(0.5),))
    command = ["train", "--model_name_or_path", "./nowhere", "--output_dir", str(tmp_path), "--precision", "fp32"]
    assert main(command) == 1
    assert "computes wrongly: an operator, error 5.0e-01" in capsys.readouterr().err
    assert main([*command, "--skip_device_check"]) == 1
    assert "./nowhere: no such folder" in capsys.readouterr().err
