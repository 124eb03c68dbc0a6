"""What makes training on CPUs fast and small: freed memory is kept, little is kept of shapes gone by, attention's backward
pass on short rows is float32, and threads spin while the CPUs are theirs."""

import sys

import pytest
import torch
from forked import run_python

from llmrecipes.cpu import CpuClock, attend_backward_in_float32

CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


@pytest.mark.skipif(sys.platform != "linux" or torch.accelerator.is_available(), reason="only for CPUs under Linux")
def test_freed_memory_stays_with_the_process():
    # The process starts with glibc's defaults, whatever the machine's environment says.
    code = """
import ctypes, torch
from llmrecipes.cpu import keep_freed_memory
class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
for option, value in ((M_TRIM_THRESHOLD, 128 << 10), (M_MMAP_THRESHOLD, 128 << 10), (M_MMAP_MAX, 65536)):
    libc.mallopt(option, value)
keep_freed_memory()
before = libc.mallinfo2()
tensor = torch.zeros(16 << 20)
held = libc.mallinfo2()
del tensor
after = libc.mallinfo2()
print((held.hblkhd - before.hblkhd) >> 20, (after.arena - before.arena) >> 20)
"""
    mapped, grown = map(int, run_python("-c", code).stdout.split())
    # MiB that come from the system for this tensor alone, and by which the heap has grown when it is gone.
    assert mapped == 0 and grown > 60


@pytest.mark.skipif(sys.platform != "linux" or torch.accelerator.is_available(), reason="only for CPUs under Linux")
def test_products_of_many_shapes_leave_little_behind():
    code = """
import os, torch, ctypes
from llmrecipes.cpu import keep_few_primitives
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "a b c d e f g used i j".split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
keep_few_primitives()
weights = torch.ones(64, 64, dtype=torch.bfloat16)
for rows in range(1, 400):
    torch.nn.functional.linear(torch.ones(rows, 64, dtype=torch.bfloat16), weights)
    if rows == 150:
        before = libc.mallinfo2().used
print(libc.mallinfo2().used - before)
"""
    grown = [
        int(run_python("-c", setting + code).stdout) for setting in ("", f"import os; os.environ['{CAPACITY}'] = '1024'")
    ]
    if grown[1] < 50 << 20:
        pytest.skip("this CPU's products in bfloat16 are not oneDNN's")
    assert grown[0] < 0.7 * grown[1]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="only for CPUs")
@pytest.mark.parametrize(("tokens", "width", "dtype"), [(100, 64, "float32"), (250, 32, "float32"), (250, 64, "bfloat16")])
@pytest.mark.parametrize("masked", [False, True])
def test_short_rows_get_their_gradients_in_float32(tokens, width, dtype, masked):
    attend_backward_in_float32()
    torch.manual_seed(0)
    query, key, value, gradient = torch.randn(4, 2, 3, tokens, width).bfloat16()
    hidden = torch.ones(tokens, tokens).triu(1).bool()
    hidden[:, 7] = True  # as of padding
    mask = torch.zeros(tokens, tokens).masked_fill(hidden, -torch.inf).bfloat16() if masked else None
    mask = None if mask is None else mask.fill_diagonal_(0)
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    torch.nn.functional.scaled_dot_product_attention(*leaves, attn_mask=mask, is_causal=not masked, scale=0.2).backward(
        gradient
    )

    how = {"attn_mask": mask, "scale": 0.2}
    output, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, not masked, **how)
    given = [tensor.float() for tensor in (gradient, query, key, value, output)]
    how["attn_mask"] = None if mask is None else mask.float()
    wanted = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*given, logsumexp, 0.0, not masked, **how)
    equal = [torch.equal(leaf.grad, gradient.bfloat16()) for leaf, gradient in zip(leaves, wanted, strict=True)]
    assert equal == [dtype == "float32"] * 3
    assert all((leaf.grad - gradient).norm() < 0.01 * gradient.norm() for leaf, gradient in zip(leaves, wanted, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="torch is built with libgomp, and there is a /proc, on Linux")
def test_a_second_team_of_threads_is_held_while_the_cpus_are_wanted():
    code = """
import os, time, torch
from llmrecipes import cpu
def threads():
    return len(os.listdir("/proc/self/task"))
def settled(number):
    for _ in range(1000):
        if threads() == number:
            break
        time.sleep(0.01)
    return threads() == number
torch.set_num_threads(2)
torch.randn(1 << 20).exp()
team, before = cpu.IdleTeam(), threads()
held = 2 + max(len(os.sched_getaffinity(0)) - 2, 0)
for wanted, number in ((True, held), (True, held), (False, 0), (False, 0), (True, held)):
    team.hold(wanted)
    assert settled(before + number), (wanted, number, before, threads())
"""
    ended = run_python("-c", code)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="torch is built with libgomp on Linux")
def test_a_team_for_which_there_is_no_room_ends_no_training():
    code = """
import os, resource, torch
from llmrecipes import cpu
torch.set_num_threads(2)
torch.randn(1 << 20).exp()
team = cpu.IdleTeam()
if os.getuid() == 0:  # whom no limit binds
    os.setuid(54321)
room = len(os.listdir("/proc/self/task")) + 1
resource.setrlimit(resource.RLIMIT_NPROC, (room, room))
try:
    team.hold(True)
except RuntimeError as error:
    print(error, team.leave)
"""
    ended = run_python("-c", code)
    assert (ended.returncode, ended.stdout.strip()) == (0, "can't start new thread None"), ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="torch is built with libgomp, and there is a /proc, on Linux")
def test_the_load_is_watched_on_after_a_second_in_which_it_could_not_be_read():
    code = """
import time, types, torch
from llmrecipes import cpu
torch.set_num_threads(2)
looks, held = [], []
def used_by_others(clock):
    looks.append(clock)
    if len(looks) == 1:
        raise OSError(24, "Too many open files")
    return 99.0
cpu.CpuClock.used_by_others, cpu.IdleTeam.hold = used_by_others, lambda team, wanted: held.append(wanted)
cpu.time = types.SimpleNamespace(**vars(time) | {"sleep": lambda second: time.sleep(0.001)})
thread = cpu.spin_by_load()
while thread.is_alive() and not held:
    time.sleep(0.001)
print(held[:1], thread.is_alive())
"""
    assert run_python("-c", code).stdout.strip() == "[True] True"


def test_cpu_time_of_others_is_all_time_of_our_cpus_without_our_own(monkeypatch, tmp_path):
    # name user nice system idle iowait irq softirq steal guest guest_nice
    before = (
        "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 0 50 900 9 1 2 3 7 7\ncpu1 500 0 0 0 0 0 0 0 0 0\ncpu2 10 0 0 0 0 0 0 0 0 0\n"
    )
    after = before.replace("cpu0 100 0 50 900 9 1 2 3", "cpu0 190 10 70 999 99 2 4 8").replace("cpu1 500", "cpu1 900")
    tables, walls, own = iter([before, after]), iter([10.0, 12.0]), iter([5.0, 5.5])
    monkeypatch.setattr("llmrecipes.cpu.Path.read_text", lambda path: next(tables))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 2})
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    monkeypatch.setattr("time.monotonic", lambda: next(walls))
    monkeypatch.setattr("time.process_time", lambda: next(own))
    clock = CpuClock()
    # CPU 0: 90 + 10 + 20 + 1 + 2 + 5 ticks of 10 ms in 2 s, of which half a second was ours. CPU 1 is not ours.
    assert clock.used_by_others() == pytest.approx((1.28 - 0.5) / 2)


@pytest.mark.parametrize(("spins", "threads", "starts"), [(None, 2, 1), ("300", 2, 0), (None, 1, 0)])
@pytest.mark.skipif(sys.platform != "linux" or torch.accelerator.is_available(), reason="only for CPUs under Linux")
def test_the_load_is_watched_unless_told_otherwise(spins, threads, starts):
    code = f"""
import threading
from llmrecipes.config import RunArguments
from llmrecipes.parsing import launch
def main(run):
    import torch
    from llmrecipes.cpu import tune_cpu
    torch.set_num_threads({threads})
    tune_cpu("sft")
    tune_cpu("sft")
    print([thread.name for thread in threading.enumerate()].count("spin-by-load"))
launch(main, RunArguments, argv=[])
"""
    environment = {"GOMP_SPINCOUNT": spins, "OMP_WAIT_POLICY": None}
    assert run_python("-c", code, env=environment).stdout.split()[-1] == str(starts)
