"""How much memory a device has left for this process, how much is taken, and how much a piece of work took at most.

Bytes throughout. On a CPU, and on Apple's unified memory, the smallest of several limits counts: what the machine has
free, what the container (cgroup) allows, and what the process's address space may hold (`ulimit -v`).
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from pathlib import Path

import psutil
import torch

_PROCESS = psutil.Process()
MIB = 2**20


def used(device: torch.device) -> int:
    """Bytes that this process holds on the device: of a CPU its resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return _PROCESS.memory_info().rss


def room(device: torch.device) -> int:
    """Bytes that this process can still take on the device before it runs out."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        left = torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
        return max(0, min(left, psutil.virtual_memory().available))
    return max(0, min(psutil.virtual_memory().available, *_limits()) + _free_in_heap())


class Peak:
    """Measures the most memory that the process held on a device within a `with` block.

    >>> with Peak(torch.device("cpu")) as peak:
    ...     work()
    >>> peak.bytes, peak.above  # in all, and above what it held on entering

    CUDA counts tensors exactly, Linux keeps the high-water mark of resident memory; elsewhere (MPS, other systems) a
    thread looks every few milliseconds, which may miss a short peak.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.start, self.bytes = device, 0, 0

    @property
    def above(self) -> int:
        return max(0, self.bytes - self.start)

    def __enter__(self) -> Peak:
        self._sampler = None
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start = torch.cuda.memory_allocated(self.device)
        else:
            self.start = used(self.device)
            if self.device.type != "cpu" or not _reset_high_water_mark():
                self._sampler = _Sampler(self.device)
                self._sampler.start()
        return self

    def __exit__(self, *_) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        elif self._sampler is not None:
            self.bytes = max(self._sampler.stop(), used(self.device))
        else:
            self.bytes = max(_high_water_mark(), self.start)


class _Sampler(threading.Thread):
    def __init__(self, device: torch.device) -> None:
        super().__init__(daemon=True)
        self.device, self.most, self.done = device, 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.005):
            self.most = max(self.most, used(self.device))

    def stop(self) -> int:
        self.done.set()
        self.join()
        return self.most


def _reset_high_water_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _high_water_mark() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


class _HeapCounts(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks".split()] + [
        (name, ctypes.c_size_t) for name in "uordblks fordblks keepcost".split()
    ]


def _free_in_heap() -> int:
    """Blocks that the C library holds for reuse: resident, and yet free."""
    function = getattr(_c_library(), "mallinfo2", None)
    if function is None:
        return 0
    function.restype = _HeapCounts
    return function().fordblks


def _address_space() -> int | None:
    """What `ulimit -v` allows this process, if it allows not everything."""
    if sys.platform == "win32":
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def prepare_for_training() -> None:
    """Let the C library keep freed blocks for the next step, or give them back where the address space is limited.

    By default glibc returns the largest ones to the system, which clears them again a moment later.
    `give_blocks_back` ends that where memory is short.

    In a limited address space the heap must not grow in the first place: scattered free blocks can be cleared of memory
    later, but they keep their addresses, and nothing else finds room.
    """
    if _address_space() is not None:
        give_blocks_back()
    elif hasattr(library := _c_library(), "mallopt"):
        mmap_threshold, trim_threshold = -3, -1
        for most in (2**25, 2**31 - 1):  # older versions refuse more than 32 MiB
            library.mallopt(mmap_threshold, most)
        library.mallopt(trim_threshold, 2**31 - 1)


def give_blocks_back() -> None:
    """Return the C library's free blocks to the system, and from now on every large block as soon as it is freed.

    glibc otherwise keeps freed blocks of up to 32 MiB in its heap, where they are soon too scattered for the next
    large one. Costs some time (pages are cleared anew), so only for processes that are short of memory. Elsewhere than
    on glibc nothing happens.
    """
    library = _c_library()
    if hasattr(library, "mallopt"):
        threshold, bytes_ = -3, 65536  # M_MMAP_THRESHOLD
        library.mallopt(threshold, bytes_)
    release_free_blocks()


def release_free_blocks() -> None:
    """Return the C library's free blocks to the system this once; a peak measured next counts what is taken anew."""
    library = _c_library()
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def _c_library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform.startswith("linux") else None


def _limits() -> list[int]:
    """What is left within the limits that somebody set for this process or its container."""
    left = []
    if (address_space := _address_space()) is not None:
        left.append(address_space - _PROCESS.memory_info().vms)
    for limit, current in _cgroup_files():
        try:
            most = int(limit.read_text())
            left.append(most - int(current.read_text()) + _reclaimable(current.parent))
        except (OSError, ValueError):  # no such controller, or "max"
            continue
    return left or [sys.maxsize]


def _cgroup_files() -> list[tuple[Path, Path]]:
    """The files of limit and usage, version 2 and 1, for the process's own group and for a container's root."""
    names = {"2": ("memory.max", "memory.current"), "1": ("memory.limit_in_bytes", "memory.usage_in_bytes")}
    places = [("2", Path("/sys/fs/cgroup")), ("1", Path("/sys/fs/cgroup/memory"))]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            places.append(("2", Path("/sys/fs/cgroup" + path)))
        elif "memory" in controllers.split(","):
            places.append(("1", Path("/sys/fs/cgroup/memory" + path)))
    return [tuple(Path(os.path.normpath(place)) / name for name in names[version]) for version, place in places]


def _reclaimable(group: Path) -> int:
    """Cached file pages that the kernel gives back when memory is asked for."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next(
        (int(line.split()[1]) for line in lines if line.split()[0] in ("inactive_file", "total_inactive_file")), 0
    )
