"""A container's quota decides how many threads there are, not the CPUs of its host."""

import json
import os

import pytest
from forked import run_python

from llmrecipes import pipeline, threads

# own groups, files, CPUs allowed, seconds used
LAYOUTS = {
    "v2, a container": ("0::/", {"cpu.max": "150000 100000", "cpu.stat": "usage_usec 2500000\nuser_usec 1"}, 1.5, 2.5),
    "v2, a slice around the own group": (
        "0::/a/b",
        {"a/cpu.max": "200000 100000", "a/cpu.stat": "usage_usec 7000000", "a/b/cpu.max": "max 100000"},
        2,
        7,
    ),
    "v1, a container that shows its host's path": (
        "9:cpu,cpuacct:/docker/1\n0::/",
        {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000", "cpuacct/cpuacct.usage": "4000000000"},
        3,
        4,
    ),
    "v1, no quota": ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, None),
    "none": ("0::/", {"cpu.max": "max 100000"}, None, None),
}


def write(folder, own, files):
    for name, text in files.items():
        (folder / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup" / name).write_text(text + "\n")
    (folder / "own").write_text(own + "\n")


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_quota_of_a_control_group_is_found(name, monkeypatch, tmp_path):
    own, files, cpus, used = LAYOUTS[name]
    write(tmp_path, own, files)
    monkeypatch.setattr(threads, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(threads, "OWN", tmp_path / "own")
    found = threads.find_quota()
    assert (found and (found.cpus, found.used())) == (cpus and (cpus, used))


def test_threads_go_by_the_quota_unless_the_user_says_how_many(tmp_path):
    write(tmp_path, "0::/", {"cpu.max": "550000 100000"})
    of_accelerate = {"ACCELERATE_USE_CPU": "true", "LOCAL_WORLD_SIZE": "2"}  # 64 cores: 32 threads for each of two
    code = f"""
import json, os, pathlib, psutil
os.sched_getaffinity, psutil.cpu_count = lambda pid: set(range(128)), lambda logical: 64
from llmrecipes import parsing, threads
threads.GROUPS, threads.OWN = pathlib.Path({str(tmp_path / "cgroup")!r}), pathlib.Path({str(tmp_path / "own")!r})
counts, names = [], ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "ACCELERATE_USE_CPU", "LOCAL_WORLD_SIZE")
launched = {of_accelerate!r}
for given in ({{}}, {{names[0]: "7"}}, launched | {{names[0]: "32"}}, launched | {{names[0]: "7"}}):
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(given)
    parsing.launch(lambda run: counts.append(os.environ[names[0]]), parsing.RunArguments, argv=[])
    # What a stage of a chain is given, whose own processes count for themselves.
    counts.append([threads.without_settled().get(name) for name in names[:2]])
print(json.dumps(counts))
"""
    found = json.loads(run_python("-c", code).stdout.splitlines()[-1])
    assert found[::2] == ["6", "7", "3", "7"]
    assert found[1::2] == [[None, None], ["7", None], [None, None], ["7", None]]


def test_stages_of_a_chain_settle_their_own_threads(monkeypatch, tmp_path):
    """As many as the quota allows are too many for each process of a stage that the chain starts by accelerate."""
    given = []

    class Popen:
        def __init__(self, command, env, **kwargs):
            given.append(env)

        send_signal, wait = None, lambda self: 0

    monkeypatch.setattr(pipeline.subprocess, "Popen", Popen)
    monkeypatch.setattr(pipeline, "handle_signals", lambda *handler: None)
    monkeypatch.setattr(threads, "threads_allowed", lambda: 6)
    monkeypatch.setattr(threads, "_settled", {})
    for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "restored afterwards")
        monkeypatch.delenv(name)
    threads.settle_threads()
    assert os.environ["OMP_NUM_THREADS"] == "6" and os.environ["GOMP_SPINCOUNT"] == threads.SPINCOUNT
    config = tmp_path / "sft.yaml"
    config.write_text("{}")
    pipeline._run(pipeline.Stage("sft", tmp_path / "sft.py", config, config, tmp_path / "o", {}), force=False)
    assert not {"OMP_NUM_THREADS", "GOMP_SPINCOUNT"} & given[0].keys()
    assert given[0]["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "110", "or torch's launcher kills what has not saved after 30 s"


def test_threads_sleep_at_barriers_when_others_use_up_the_quota():
    code = """
import itertools, os, threading, time, torch
from llmrecipes import cpu, threads
usage, held, done = itertools.chain([0, 0], itertools.repeat(0.9)), [], threading.Event()
threads.Quota.used = lambda self: next(usage)
cpu.find_quota = lambda: threads.Quota(2, None)
cpu.CpuClock.used_by_others = lambda clock: clock.busy() if clock.busy is not cpu.seconds_of_our_cpus else 0
cpu.IdleTeam.hold = lambda team, wanted: (held.append(wanted), done.set() if len(held) == 2 else None)
os.sched_getaffinity = lambda pid: set(range(64))
torch.set_num_threads(2)
pause = time.sleep
time.sleep = lambda seconds: pause(0.01)
cpu.spin_by_load()
done.wait(20)
print(held[:2])
"""
    assert run_python("-c", code).stdout.splitlines()[-1] == "[False, True]"
