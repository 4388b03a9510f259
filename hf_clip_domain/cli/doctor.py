"""`hf-clip-domain doctor`: does this machine train right? Plain text, to be pasted into a bug report."""

from __future__ import annotations

import argparse
import os
import platform
import sys

from hf_clip_domain import __version__
from hf_clip_domain.cli.requirements import installed_versions
from hf_clip_domain.mps_settings import FALLBACK, HIGH_WATERMARK, LOW_WATERMARK

# Settings that change where, how fast or how precisely a run computes. None of them holds a secret.
_ENVIRONMENT = (
    *(HIGH_WATERMARK, LOW_WATERMARK, FALLBACK),
    *("CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "NVIDIA_TF32_OVERRIDE"),
    *("OMP_NUM_THREADS", "MALLOC_MMAP_THRESHOLD_", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"),
    *("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
)


def add_parser(commands) -> None:
    """Add `doctor` to the commands."""
    parser = commands.add_parser(
        "doctor",
        description="Versions, device, memory and precision, and small computations checked against float64 on the CPU. "
        "Exit status 1 when a check fails.",
    )
    parser.add_argument("--device", choices=["cuda", "mps", "cpu"], help="Default: the first of them that there is.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report; the exit status.

    Raises:
        ClipDomainError: `--device` names one that is not there.
    """
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}  # before libraries add theirs
    print(f"hf-clip-domain {__version__} on {platform.platform()}")
    failed = _print_versions()
    print("\nEnvironment")
    for name, value in environment.items():
        print(f"  {name}={value}")
    if sys.platform == "darwin":
        print(f"  ({_about_mps(environment)})")
    elif not environment:
        print("  (nothing set)")
    if failed and not _imports():
        print(f"\nFailed: {', '.join(failed)}. Nothing else can be checked before that is mended.")
        return 1
    failed += _print_device(args.device)
    print("\nFailed: " + ", ".join(failed) + "." if failed else "\nAll checks passed.")
    return 1 if failed else 0


def _print_versions() -> list[str]:
    print("\nVersions")
    versions = installed_versions()
    if not versions:
        print("  (hf-clip-domain runs from a folder and is not installed: versions are not checked)")
    for version in versions:
        optional = f" (optional: {version.extra})" if version.extra else ""
        words = f"{version.name + optional:<28} {version.found or 'not installed':<15} wanted {version.wanted}"
        print(_line(version.passed, words, version.advice))
    return [version.name for version in versions if not version.passed]


def _imports() -> bool:
    try:
        import hf_clip_domain.training  # noqa: F401
    except ImportError as error:
        print(f"\n  {type(error).__name__}: {error}")
        return False
    return True


def _print_device(kind: str | None) -> list[str]:
    from hf_clip_domain import memory
    from hf_clip_domain.device import describe, find_device
    from hf_clip_domain.models.precision import choose_precision
    from hf_clip_domain.training.canary import checks_for, run_check

    device = find_device(kind)
    print(f"\nDevice\n  {describe(device)}")
    print(f"  memory: {memory.used(device) // memory.MIB:,} MiB used by this process, ", end="")
    print(f"{memory.room(device) // memory.MIB:,} MiB left to it within all limits")
    precision = choose_precision(device)
    print(f"\nPrecision (what --precision auto takes)\n  {precision}")
    print("\nChecks against float64 on the CPU")
    failed = []
    for check in checks_for(precision.name):
        result = run_check(check, device)
        words = f"{result.name:<28} error {result.error:7.1e}  allowed {result.tolerance:7.1e}  {result.seconds:5.1f} s"
        print(_line(result.passed, words, "" if result.passed else result.advice))
        if result.note:
            print(f"        {result.note}")
        failed += [] if result.passed else [result.name]
    return failed


def _about_mps(environment: dict[str, str]) -> str:
    if environment.get(FALLBACK) == "1":
        return "operators that MPS lacks run on the CPU: slower, and the checks below name those they meet"
    return f"an operator that MPS lacks ends a run; {FALLBACK}=1 runs it on the CPU, slower"


def _line(passed: bool, words: str, advice: str) -> str:
    return f"  {'ok  ' if passed else 'FAIL'}  {words}" + (f"\n        -> {advice}" if advice else "")
