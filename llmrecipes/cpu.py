"""What makes training on CPUs fast, for the whole process: the allocator, attention's backward pass on short rows, and how
long threads wait for each other."""

import ctypes
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from llmrecipes.threads import SPINCOUNT, find_quota

ATTENTION_BACKWARD = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"
LONG, NARROW = 192, 32  # tokens, width of a head
SPARE = 0.25  # CPUs that other processes may use of those that this one's threads need


def tune_cpu(stage: str) -> None:
    """Tunes this process for `stage` on a CPU; does nothing where there is an accelerator. To be called again freely."""
    if not torch.accelerator.is_available():
        keep_freed_memory()
        if stage == "ppo":
            keep_few_primitives()
        attend_backward_in_float32()
        if os.environ.get("GOMP_SPINCOUNT") == SPINCOUNT:
            spin_by_load()


def keep_freed_memory() -> None:
    """Makes glibc keep up to 1 GiB of freed memory: every training step on a CPU frees large tensors and allocates the same
    again, and the kernel zeroes fresh memory page by page. Does nothing on other systems."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


def keep_few_primitives() -> None:
    """Has oneDNN keep what it prepared for the last 128 shapes of products, not 1,024: with rollouts of many lengths these
    are hundreds of MiB, seldom used again. SFT uses them again: 128 make its training a tenth slower (LOG.md). To be called
    before the first product in bfloat16; a value that the user has set stays."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")


@cache
def attend_backward_in_float32() -> torch.library.Library:
    """From now on SDPA's backward pass on a CPU computes bfloat16 rows of fewer than LONG tokens, or of heads at most NARROW
    wide, in float32 and rounds the gradients to bfloat16: on such it is 1.1 to 17 times as fast, and as exact or better.

    torch's kernel multiplies blocks of 32 queries (64 from 192 tokens on), and in bfloat16 calls oneDNN for each, whose
    set-up takes longer than such a product. Its forward pass has no such calls, and stays in bfloat16. The Library that is
    returned holds the replacement, which lasts as long as it does: it is kept here."""
    kernel = torch.library.get_kernel(ATTENTION_BACKWARD, "CPU")

    def backward(keys, gradient, query, key, value, output, logsumexp, dropout, is_causal, *, attn_mask=None, scale=None):
        given, dtype = (gradient, query, key, value, output), query.dtype
        if dtype == torch.bfloat16 and (query.shape[2] < LONG or query.shape[3] <= NARROW):
            given = [tensor.float() for tensor in given]
            attn_mask = None if attn_mask is None else attn_mask.float()
        gradients = kernel.call_boxed(keys, *given, logsumexp, dropout, is_causal, attn_mask=attn_mask, scale=scale)
        return tuple(tensor.to(dtype) for tensor in gradients)

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():  # that a kernel is replaced
        warnings.simplefilter("ignore")
        library.impl(ATTENTION_BACKWARD.partition("::")[2], backward, "CPU", with_keyset=True)
    return library


@cache
def spin_by_load() -> threading.Thread | None:
    """From now on torch's threads spin at their barriers while the CPUs are theirs, and sleep there while other processes
    want them too: beside one busy process two threads that spin take three times as long, and on idle cores two that sleep
    take half as long again, for a step has hundreds of barriers. Nothing that is computed depends on it.

    libgomp reads GOMP_SPINCOUNT once, but spins 100 times at most while it manages more threads than there are CPUs (its
    manual, under GOMP_SPINCOUNT). So a thread of ours looks at the load once a second, and holds a second, idle team of
    threads while others want the CPUs, or what a container's quota leaves of them. None where there is no libgomp, no /proc,
    or one thread only."""
    try:
        team, clock, quota = IdleTeam(), CpuClock(), find_quota()
        group = quota and CpuClock(quota.used)
    except (OSError, AttributeError, ValueError):  # AttributeError: a system without dlopen's modes or affinities
        return None
    if torch.get_num_threads() == 1:
        return None

    def watch():
        with suppress(RuntimeError):  # there is no room for the team's threads: it is not asked for again
            while True:
                time.sleep(1)
                with suppress(OSError, ValueError):  # not to be read for now, as while too many files are open
                    threads = torch.get_num_threads() - SPARE
                    is_full = threads + clock.used_by_others() > len(os.sched_getaffinity(0))
                    team.hold(is_full or bool(group) and threads + group.used_by_others() > quota.cpus)

    thread = threading.Thread(target=watch, name="spin-by-load", daemon=True)
    thread.start()
    return thread


class IdleTeam:
    """Threads of libgomp that do nothing: with torch's they are more than there are CPUs, so that all wait asleep."""

    def __init__(self):
        self.libgomp = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)  # torch's own, which is loaded already
        self.cpus = len(os.sched_getaffinity(0))  # libgomp too counts them once
        self.leave: threading.Event | None = None  # ends the team that is held

    def hold(self, wanted: bool) -> None:
        """Has such a team from now on, or none.

        Raises:
            RuntimeError: this process may not have so many threads."""
        if wanted and self.leave is None:
            threads, leave = max(self.cpus - torch.get_num_threads(), 0) + 2, threading.Event()
            self._try(2 * threads)  # those that are tried may not have ended when libgomp starts its own
            threading.Thread(target=self._open, args=(threads, leave), daemon=True).start()
            self.leave = leave
        elif not wanted and self.leave is not None:
            self.leave.set()
            self.leave = None

    @staticmethod
    def _try(threads: int) -> None:
        """Starts and ends so many. Where the system refuses a thread, Python raises, but libgomp ends the process."""
        end = threading.Event()
        try:
            for _ in range(threads):
                threading.Thread(target=end.wait, daemon=True).start()
        finally:
            end.set()

    def _open(self, threads: int, leave: threading.Event) -> None:
        self.libgomp.GOMP_parallel(ctypes.CDLL(None).free, None, threads, 0)  # free(NULL): each starts, and has no work
        leave.wait()  # libgomp keeps a team as long as the thread that opened it lives


class CpuClock:
    """CPU time that other processes use of what this one shares with them.

    busy: seconds that all of them have used up to now; by default on the CPUs that this one may run on, from /proc/stat.

    Raises:
        OSError, ValueError: there is no such file, or it reads otherwise."""

    def __init__(self, busy: Callable[[], float] | None = None):
        self.busy = busy or seconds_of_our_cpus
        self.before = self._read()

    def used_by_others(self) -> float:
        """CPUs that others kept busy since the last call."""
        (wall, busy, own), self.before = self.before, self._read()
        return (self.before[1] - busy - (self.before[2] - own)) / max(self.before[0] - wall, 1e-3)

    def _read(self) -> tuple[float, float, float]:
        """Seconds: wall clock, all CPU time, and that of this process."""
        return time.monotonic(), self.busy(), time.process_time()


def seconds_of_our_cpus() -> float:
    """Seconds of CPU time that all processes have used on the CPUs that this one may run on."""
    ours, ticks = os.sched_getaffinity(0), 0
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.startswith("cpu")]
    for name, *fields in lines:
        if name[3:].isdigit() and int(name[3:]) in ours:
            user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")
