"""What this machine is, and what a process takes of it.

Versions, devices and threads; CPU time, and memory in MB of 2**20 bytes. What only Linux tells is
None on other systems. Torch is loaded only where a GPU or torch's threads are asked for.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import math
import os
import platform
import socket
import time
from importlib import metadata
from pathlib import Path

from adray import __version__

logger = logging.getLogger(__name__)

MIB = 2**20
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scikit-learn",
    "ray",
    "open_clip_torch",
    "transformers",
)
"""Those that scores may depend on."""


# ---- what the machine is ----


def environment(device: str) -> dict[str, str | int]:
    """Record versions and machine, which stand beside a trial and are no part of its id."""
    import torch

    is_gpu = device.startswith("cuda")
    return {
        "adray": __version__,
        "python": platform.python_version(),
        **_versions(),
        "host": platform.node(),
        "device": torch.cuda.get_device_name() if is_gpu else f"{platform.machine()} CPU",
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "threads": torch.get_num_threads(),
    }


@functools.cache
def host_identity() -> str:
    """Name this machine so that no other one bears the same name: ``<host name>.<6 hex digits>``.

    Machines may share a host name, and containers of one machine have process numbers of their own.
    So the digits are of the machine's last start and of the namespace of its process numbers.
    """
    marks = []
    with contextlib.suppress(OSError):
        marks.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        marks.append(str(Path("/proc/self/ns/pid").readlink()))
    digits = hashlib.blake2b("\0".join(marks).encode(), digest_size=3).hexdigest()
    return f"{socket.gethostname()}.{digits}"


@functools.cache
def _versions() -> dict[str, str]:
    """Look up those of `_PACKAGES` that are installed, once, since it takes 20 ms."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def processor_name() -> str:
    """Give the name of the CPU as the kernel knows it, else the machine's architecture."""
    for line in _lines_of("/proc/cpuinfo"):
        title, _, name = line.partition(":")
        if title.startswith("model name") and name.strip():
            return name.strip()
    return f"{os.uname().machine} CPU"


def available_cpus() -> int:
    """Count the CPUs that this process may run on, as its container limits them."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    limits = [count]
    for folder in _control_groups("cpu"):
        # `200000 100000` is two CPUs: microseconds of work in so many of the clock. Version 1 has
        # a file for each, and -1 for no limit.
        quota, *period = _words_of(folder / "cpu.max")
        if not quota:
            quota = _words_of(folder / "cpu.cfs_quota_us")[0]
            period = _words_of(folder / "cpu.cfs_period_us")
        if quota.isdigit() and "".join(period).isdigit():
            limits.append(math.ceil(int(quota) / int(period[0])))
    return max(1, min(limits))


def available_memory() -> int:
    """Count the bytes of memory that this process may use, as its container limits them."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in _control_groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _words_of(folder / name)[0]
            if limit.isdigit():
                limits.append(int(limit))
    return min(limits)


def _control_groups(controller: str) -> list[Path]:
    """List the folders of the control groups that this process is in, from the root down.

    Inside of a container the root is often the container's own.

    Args:
        controller: ``cpu`` or ``memory``, each of which has folders of its own in version 1.
    """
    found = []
    for line in _lines_of("/proc/self/cgroup"):
        # `0::/path` in version 2, `4:memory:/path` in version 1
        _, controllers, path = line.split(":", 2)
        root = _CONTROL_GROUPS
        if controllers:
            if controller not in controllers.split(","):
                continue
            root = root / controller
        found.append(root)
        for part in Path(path).parts[1:]:
            root = root / part
            found.append(root)
    return found


def _words_of(path: Path) -> list[str]:
    """Read the words of a file of the kernel, one empty word where there is none."""
    try:
        return path.read_text().split() or [""]
    except OSError:
        return [""]


# ---- what keeps it busy ----


def load_average() -> float | None:
    """Give the load of the last minute, None off Unix."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def other_cpu_seconds() -> float | None:
    """Count the CPU seconds of all processes but this one, None off Linux.

    They are counted from the start of the machine, so only a difference says something.
    """
    lines = _lines_of("/proc/stat")
    if not lines:
        return None

    # In ticks: user nice system idle iowait irq softirq steal. Idling and waiting are no work.
    ticks = [int(field) for field in lines[0].split()[1:9]]
    busy_ticks = sum(ticks[:3]) + sum(ticks[5:])
    return busy_ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def gpu_in_use_mb(device: str) -> float | None:
    """Measure the memory of a GPU that any process holds, None for a CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / MIB


# ---- what this process takes ----


def reset_peaks(device: str) -> bool:
    """Count peak memory anew, on the host and on a GPU.

    Returns:
        Whether the kernel let the peak of the host be reset.
    """
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident_mb(field: str) -> float | None:
    """Read the memory of this process, None off Linux.

    Args:
        field: ``VmRSS`` for what it holds now, ``VmHWM`` for the most since the last reset.
    """
    for line in _lines_of("/proc/self/status"):
        if line.startswith(field):
            kilobytes = int(line.split()[1])
            return kilobytes / 1024
    return None


def host_peak_mb() -> float | None:
    """Give the largest resident memory of this process since the last reset, None off Linux."""
    peak = resident_mb("VmHWM")
    return None if peak is None else round(peak, 1)


def gpu_allocated_peak_mb(device: str) -> float | None:
    """Give the largest memory of tensors on a GPU since the last reset, None for a CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    return torch.cuda.max_memory_allocated(device) / MIB


def gpu_reserved_peak_mb(device: str) -> float | None:
    """Give the largest memory that torch held on a GPU since the last reset, None for a CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    return torch.cuda.max_memory_reserved(device) / MIB


class Meter:
    """Seconds and peak memory of one job, also in a process that runs several one after the other.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:1``.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._laps: dict[str, float] = {}
        self._start = time.perf_counter()
        self._last = self._start
        self._cpu_start = time.process_time()
        if not reset_peaks(device):
            logger.debug("the kernel does not let peak memory be reset; it is that of the process")

    def lap(self, name: str) -> None:
        """Book the time since the last lap under `name`, once the device is done."""
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()
        now = time.perf_counter()
        self._laps[name] = now - self._last
        self._last = now

    def timings(self) -> dict[str, float]:
        """Give the seconds of each lap, of all laps together, and of CPUs.

        Trials are packed on a device, so these are no figures of speed to publish.
        """
        total = self._last - self._start
        cpu = time.process_time() - self._cpu_start
        seconds = {**self._laps, "total_seconds": total, "cpu_seconds": cpu}
        return {name: round(value, 4) for name, value in seconds.items()}

    def memory(self) -> dict[str, float | None]:
        """Give the largest memory in MB on the host and on the GPU."""
        gpu_peak = gpu_reserved_peak_mb(self._device)
        return {
            "host_peak_mb": host_peak_mb(),
            "gpu_peak_mb": None if gpu_peak is None else round(gpu_peak, 1),
        }


def _lines_of(path: str) -> list[str]:
    """Read a file of the kernel, no line where the system has none."""
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
