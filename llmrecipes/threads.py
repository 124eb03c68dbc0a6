"""How many threads torch starts on CPUs, and how long they spin. A container, or any control group, may let a process use
fewer CPUs than it may run on."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SPINCOUNT = "10000"  # about 0.3 ms, longer than most pauses between two kernels; beside other work see llmrecipes/cpu.py
GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_settled: dict[str, str] = {}  # variable -> value that we have set, not the user


@dataclass(frozen=True)
class Quota:
    """`cpus` on average, for all processes of the control group whose usage is in `file`."""

    cpus: float
    file: Path

    def used(self) -> float:
        """Seconds of CPU time that the group has used. OSError, ValueError: the kernel does not say it."""
        text = self.file.read_text()
        return int(text.split()[1]) / 1e6 if self.file.name == "cpu.stat" else int(text) / 1e9


def settle_threads() -> None:
    """Sets what libgomp reads when torch is imported, where the user has not set it: in the shell, or in this YAML, whose
    variables are set already."""
    if "OMP_WAIT_POLICY" not in os.environ:
        _settle("GOMP_SPINCOUNT", SPINCOUNT)
    if threads := threads_allowed():
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if os.environ.get("OMP_NUM_THREADS") == _threads_of_launcher(processes):
            os.environ.pop("OMP_NUM_THREADS", None)
        _settle("OMP_NUM_THREADS", str(max(threads // processes, 1)))


def _settle(name: str, value: str) -> None:
    if name not in os.environ:
        os.environ[name] = _settled[name] = value


def without_settled() -> dict[str, str]:
    """The environment that the user gave, for a process that settles its own threads: each of several on one machine takes
    a part of what one alone would."""
    return {name: value for name, value in os.environ.items() if _settled.get(name) != value}


def _threads_of_launcher(processes: int) -> str | None:
    """OMP_NUM_THREADS as `accelerate launch` sets it for each of its processes on a CPU, unless the user has: by the cores
    of the whole machine, whatever a quota leaves of them."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() != "true":
        return None
    import psutil

    return str((psutil.cpu_count(logical=False) or 0) // processes)


def threads_allowed() -> int | None:
    """How many threads a quota leaves CPUs for (1.5 CPUs: 2 threads, as joblib counts), if those are fewer than the CPUs
    that this process may run on, by which libgomp counts; otherwise None."""
    quota = find_quota()
    if quota is None or not hasattr(os, "sched_getaffinity"):
        return None
    threads = math.ceil(quota.cpus)
    return threads if threads < len(os.sched_getaffinity(0)) else None


def find_quota() -> Quota | None:
    """The smallest quota of this process's control group and those around it; None if there is none. The group of a
    container is the root of what is seen inside it."""
    return min(_quotas(), key=lambda quota: quota.cpus, default=None)


def _quotas() -> Iterator[Quota]:
    own = {"": "/", "cpu": "/"}  # hierarchy -> group: v2's, which has no name, and v1's of CPU time
    try:
        for line in OWN.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            own |= {name: group for name in controllers.split(",") if name in own}
    except (OSError, ValueError):
        pass
    for hierarchy, group in own.items():
        root = GROUPS / hierarchy
        inner = root / group.strip("/")
        for folder in {root, *(folder for folder in (inner, *inner.parents) if folder.is_relative_to(root))}:
            try:
                if hierarchy:
                    limit, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                    file = GROUPS / "cpuacct" / folder.relative_to(root) / "cpuacct.usage"
                else:
                    limit, period = (folder / "cpu.max").read_text().split()
                    file = folder / "cpu.stat"
                cpus = int(limit) / int(period)
            except (OSError, ValueError, ZeroDivisionError):  # no such file here; "max", which is no quota
                continue
            if cpus > 0:  # v1: -1 is no quota
                yield Quota(cpus, file)
