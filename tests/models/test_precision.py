"""The precision is what was asked for, or what the device has and a measurement confirms."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch.torch_version import TorchVersion

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.device import Device
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.models import precision
from hf_clip_domain.models.precision import Precision, candidate, choose_precision, record_precision, resolve_precision
from hf_clip_domain.models.precision_trial import Trial, try_precision

CPU = torch.device("cpu")
GIB = 2**30


def cuda(major, minor):
    return Device("cuda", "a GPU", 16 * GIB, compute_capability=(major, minor))


def apple(chip, generation):
    return Device("mps", chip, 16 * GIB, apple_generation=generation)


def cpu(*extensions):
    return Device("cpu", "a processor", 16 * GIB, vector_extensions=extensions)


@pytest.fixture(autouse=True)
def a_new_macos_and_no_launcher(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: (major, minor) <= (15, 0))
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)


def fake(monkeypatch, device, trial=None):
    """This machine has `device`; a trial that is not given must not be asked for."""
    monkeypatch.setattr(precision, "describe", lambda _: device)

    def measure(*_):
        assert trial is not None, "measured although the hardware rules it out"
        if isinstance(trial, Exception):
            raise trial
        return trial

    monkeypatch.setattr(precision, "try_precision", measure)


@pytest.mark.parametrize(
    ("device", "name", "words"),
    [
        (cuda(9, 0), "bf16", "9.0 has bf16"),
        (cuda(8, 0), "bf16", "8.0 has bf16"),
        (cuda(7, 5), "fp16", "7.5 has fp16"),
        (cuda(6, 1), "fp32", "6.1 has neither"),
        (apple("Apple M1", 1), "fp32", "Apple M1 has no bf16"),
        (apple("Apple M2 Max", 2), "fp32", "Apple M2 Max has no bf16"),
        (apple("Apple M4", 4), "bf16", "Apple M4 has bf16"),
        (apple("Intel", None), "fp32", "Intel has no bf16"),
        (cpu("AVX2", "AVX512"), "fp32", "no bf16"),
        (cpu("AVX2", "AVX512", "AVX512-BF16"), "bf16", "AVX512-BF16"),
        (cpu("AVX512-BF16", "AMX-BF16"), "bf16", "AMX-BF16"),
        (cpu("NEON", "BF16"), "bf16", "BF16"),
        (Device("xpu", "xpu", GIB), "fp32", "xpu"),
    ],
)
def test_the_hardware_rules_out_what_it_would_only_emulate(device, name, words):
    found, reason = candidate(device)
    assert found == name and words in reason


def test_an_old_macos_has_no_bf16(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: False)
    assert candidate(apple("Apple M4", 4)) == ("fp32", "bf16 on MPS needs macOS 14. Update macOS, or use fp32.")


@pytest.mark.parametrize(
    ("trial", "name", "words"),
    [
        (Trial(speedup=1.4, error=0.004), "bf16", "x1.40"),
        (Trial(speedup=1.05, error=0.004), "fp32", "not clearly faster (x1.05)"),
        (Trial(speedup=0.3, error=0.004), "fp32", "not clearly faster (x0.30)"),
        (Trial(speedup=3.0, error=0.5), "fp32", "off by 50%"),
        (Trial(speedup=3.0, error=float("inf")), "fp32", "off by"),
        (RuntimeError("CUDA out of\nmemory"), "fp32", "failed: CUDA out of memory"),
    ],
)
def test_bf16_has_to_be_clearly_faster_and_right(monkeypatch, trial, name, words):
    fake(monkeypatch, cuda(8, 0), trial)
    choice = choose_precision(torch.device("cuda"))
    assert choice.name == name and words in choice.reason and choice.measured


def test_without_the_hardware_nothing_is_measured(monkeypatch):
    fake(monkeypatch, cpu("AVX2"))
    assert choose_precision(CPU).name == "fp32"


@pytest.mark.parametrize(
    ("asked", "more", "name"),
    [
        ("fp32", {}, "fp32"),
        ("bf16", {}, "bf16"),
        ("bf16", {"bf16": True}, "bf16"),
        ("auto", {"bf16": True}, "bf16"),
        ("auto", {"launcher": "bf16"}, "bf16"),
        ("auto", {"launcher": "no"}, "fp32"),  # accelerate's default is no wish
        ("fp32", {"launcher": "bf16"}, "fp32"),
        ("auto", {"bf16": True, "launcher": "fp16"}, "bf16"),
    ],
)
def test_a_wish_wins_over_auto_and_the_command_over_the_launcher(monkeypatch, asked, more, name):
    fake(monkeypatch, cpu("AVX2"))
    assert resolve_precision(asked, CPU, **more, run=None).name == name


@pytest.mark.parametrize(
    ("asked", "more", "device", "message"),
    [
        ("fp32", {"bf16": True}, cpu(), "--precision fp32 and --bf16 contradict"),
        ("bf16", {"fp16": True}, cpu(), "--precision bf16 and --fp16 contradict"),
        ("auto", {"bf16": True, "fp16": True}, cpu(), "--bf16 and --fp16 contradict"),
        ("half", {}, cpu(), "--precision half: expected auto, fp32, bf16, fp16"),
        ("fp16", {}, cpu(), "a CPU has no fp16 training"),
        ("auto", {"fp16": True}, cpu(), r"fp16 \(--fp16 says so\): a CPU has no fp16"),
        ("auto", {"launcher": "fp16"}, cpu(), "--mixed_precision fp16 says so.*a CPU has no fp16"),
        ("auto", {"launcher": "fp8"}, cpu(), "expected fp32, bf16, fp16"),
    ],
)
def test_contradictions_and_what_cannot_be_had_are_errors(monkeypatch, asked, more, device, message):
    fake(monkeypatch, device)
    with pytest.raises(ClipDomainError, match=message):
        resolve_precision(asked, CPU, **more, run=None)


def test_fp16_on_mps_needs_torch_2_8(monkeypatch):
    fake(monkeypatch, apple("Apple M1", 1))
    mps = torch.device("mps")
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.7.1"))
    with pytest.raises(ClipDomainError, match=r"needs torch 2\.8, and this is 2\.7\.1"):
        resolve_precision("fp16", mps, run=None)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.8.0"))
    assert resolve_precision("fp16", mps, run=None).name == "fp16"


def test_a_run_keeps_to_what_it_measured_first(monkeypatch, tmp_path):
    fake(monkeypatch, cpu("AMX-BF16"), Trial(speedup=1.2, error=0.0))
    first = resolve_precision("auto", CPU, run=tmp_path)
    record_precision(first, CPU, tmp_path)
    fake(monkeypatch, cpu("AMX-BF16"), Trial(speedup=1.0, error=0.0))  # another day's clock
    assert resolve_precision("auto", CPU, run=tmp_path) == first and first.name == "bf16"
    assert resolve_precision("auto", CPU, run=tmp_path / "other").name == "fp32"
    fake(monkeypatch, cpu("AVX512-BF16"), Trial(speedup=1.0, error=0.0))  # another machine
    assert resolve_precision("auto", CPU, run=tmp_path).name == "fp32"
    fake(monkeypatch, cpu("AMX-BF16"), Trial(speedup=1.0, error=0.0))
    record_precision(Precision("bf16", "--precision bf16 says so"), CPU, tmp_path)  # asked for once, not for ever
    assert resolve_precision("auto", CPU, run=tmp_path).name == "fp32"


def test_the_trial_measures_once_and_leaves_no_trace():
    torch.manual_seed(3)
    expected, threads = torch.rand(2), torch.get_num_threads()
    torch.manual_seed(3)
    try_precision.cache_clear()
    trial = try_precision(CPU, torch.bfloat16)
    assert torch.equal(torch.rand(2), expected) and torch.get_num_threads() == threads
    assert trial.speedup > 0 and 1e-4 < trial.error < 0.02  # bf16 rounds to 2**-8
    assert try_precision(CPU, torch.bfloat16) is trial


def test_the_trial_sees_wrong_values(monkeypatch):
    gelu = torch.nn.functional.gelu
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda x: gelu(x) * (3 if x.dtype == torch.bfloat16 else 1))
    assert try_precision.__wrapped__(CPU, torch.bfloat16).error > 0.1


def arguments(tmp_path, **settings):
    return ClipTrainingArguments(str(tmp_path), **settings)


def test_the_arguments_set_hugging_faces_flags(tmp_path):
    plain = arguments(tmp_path)
    assert (plain.precision, plain.bf16, plain.fp16, plain.mixed_precision) == (None, False, False, "no")
    lower = arguments(tmp_path, precision="bf16")  # on a CPU, without --use_cpu
    assert (lower.precision, lower.bf16, lower.fp16, lower.mixed_precision) == ("bf16", True, False, "bf16")
    again = arguments(tmp_path, precision=lower.precision, bf16=lower.bf16)
    assert again.mixed_precision == "bf16"
    with pytest.raises(ClipDomainError, match="contradict"):
        arguments(tmp_path, precision="fp32", bf16=True)


def test_the_command_wins_over_the_launcher_also_in_accelerate(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert arguments(tmp_path, precision="fp32").mixed_precision == "no"
    assert arguments(tmp_path, precision="auto").mixed_precision == "bf16"


@pytest.mark.slow
@pytest.mark.parametrize(("votes", "name"), [(["bf16", "bf16"], "bf16"), (["bf16", "fp32"], "fp32")])
def test_all_processes_train_in_one_precision(tmp_path, votes, name):
    program = textwrap.dedent(
        """
        import sys, torch
        from hf_clip_domain.models import precision
        from hf_clip_domain.models.precision import Precision, resolve_precision

        rank, store, vote = int(sys.argv[1]), sys.argv[2], sys.argv[3]
        torch.distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
        precision.choose_precision = lambda device: Precision(vote, f"the clock of {rank}", measured=True)
        print(resolve_precision("auto", torch.device("cpu"), run=None))
        torch.distributed.destroy_process_group()
        """
    )
    command = [sys.executable, "-c", program]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store"), vote], stdout=subprocess.PIPE, text=True)
        for rank, vote in enumerate(votes)
    ]
    printed = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert printed[0] == printed[1] and printed[0].startswith(f"{name}, since")
    assert ("the processes differ" in printed[0]) == (votes[0] != votes[1])
