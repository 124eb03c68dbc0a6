"""A real Slurm of one node on the loopback (Debian: `apt-get install slurm-wlm munge`): the jobs of a corpus, and a training
job that is put back into the queue. Skipped where Slurm is not installed."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpora import PLAIN, document, run_build, write_lines

from llmrecipes.config import InputError
from llmrecipes.corpus.arguments import CorpusArguments
from llmrecipes.corpus.engine import build
from llmrecipes.corpus.parts import plan_parts
from llmrecipes.corpus.work import Work

ROOT = Path(__file__).parent.parent
DAEMONS = ("munged", "slurmctld", "slurmd")
MISSING = [name for name in DAEMONS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
pytestmark = [
    pytest.mark.long,  # daemons, and each task a Python process of its own
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (apt-get install slurm-wlm munge)"),
]
CONF = """ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
AuthInfo=socket={folder}/munge/socket
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000
PartitionName=cpu Nodes={host} Default=YES
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The daemons; yields the environment in which Slurm's commands reach them."""
    folder, host = tmp_path_factory.mktemp("slurm"), os.uname().nodename.partition(".")[0]
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o700)
    key, conf = folder / "munge" / "key", folder / "slurm.conf"
    key.touch(0o600)
    key.write_bytes(os.urandom(1024))
    conf.write_text(CONF.format(folder=folder, host=host, user=getpass.getuser(), ports=(free_port(), free_port())))
    files = [f"--{name}={folder}/munge/{name.partition('-')[0]}" for name in ("key-file", "socket", "pid-file", "log-file")]
    commands = [
        ["munged", "--foreground", "--force", f"--seed-file={folder}/munge/seed", *files],
        ["slurmctld", "-D", "-f", conf],
        ["slurmd", "-D", "-f", conf],
    ]
    env = os.environ | {"SLURM_CONF": str(conf), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"}
    started = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.txt").open("w") as log:
                started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
            time.sleep(1)
        until(lambda: "idle" in ask(env, "sinfo", "-h", "-o", "%T"), 60)
        yield env
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(env: dict, *words) -> str:
    return subprocess.run([*map(str, words)], env=env, cwd=ROOT, capture_output=True, text=True).stdout


def until(happened, seconds: int) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "nothing for too long"
        time.sleep(0.5)


def test_its_jobs_keep_the_same_documents(tmp_path, slurm, monkeypatch):
    pytest.importorskip("datatrove")
    for i in range(4):
        write_lines(tmp_path / f"{i}.jsonl", [document(i), document(50 + i), document(7), document(50 + i) + " More."])
    sources, keys = [{"path": f"{tmp_path}/*.jsonl", "label": "a"}], PLAIN | {"near_duplicates": 0.7, "shard_bytes": 1}
    whole = run_build(tmp_path / "here", sources, **keys)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm[name])
    options = {"partition": "cpu", "time": "02:00:00", "mem_per_cpu_gb": 1}
    args = CorpusArguments(sources=sources, executor="slurm", workers=2, num_tasks=2, slurm=options, **keys)
    work = Work(tmp_path / "slurm" / "work", args, plan_parts(args))
    work.save()
    assert build(work) is False
    until(lambda: not ask(slurm, "squeue", "-h"), 900)
    assert build(work) is True, "all is done when the jobs have ended"
    assert run_build(tmp_path / "slurm", sources, **keys) == whole


def test_what_a_job_failed_at_is_said_and_the_jobs_after_it_do_not_wait_for_ever(tmp_path, slurm, monkeypatch):
    pytest.importorskip("datatrove")
    bad = tmp_path / "0.jsonl"
    bad.write_text('{"text": "one"}\n{"body": "two"}\n')
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm[name])
    options = {"partition": "cpu", "time": "02:00:00", "mem_per_cpu_gb": 1}
    args = CorpusArguments(sources=[str(bad)], executor="slurm", slurm=options, **PLAIN)
    work = Work(tmp_path / "slurm" / "work", args, plan_parts(args))
    work.save()
    assert build(work) is False
    until(lambda: not ask(slurm, "squeue", "-h"), 900)
    with pytest.raises(InputError, match=r"0\.jsonl, row 2: has no `text`"):
        build(work)
    bad.write_text('{"text": "one"}\n')
    assert build(work) is False
    until(lambda: not ask(slurm, "squeue", "-h"), 900)
    assert build(work) is True


def test_a_job_told_to_end_saves_and_goes_on_from_there_once_it_runs_again(tmp_path, slurm):
    subprocess.run(
        [
            sys.executable,
            "recipes/tokenizer.py",
            "--config",
            "configs/smoke/tokenizer.yaml",
            "--output_dir",
            tmp_path / "tokenizer",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    own = {
        "tokenizer_name_or_path": tmp_path / "tokenizer",
        "output_dir": tmp_path / "out",
        "max_steps": 1000,
        "save_steps": 5000,
        "watch_steps": 0,
        "watch_prompts": "[]",
        "watch_tasks": "[]",
        "use_cpu": "true",
    }
    log, options = tmp_path / "log", ["--gpus-per-node=0", "--cpus-per-task=1", f"--output={tmp_path}/log"]
    words = [word for key, value in own.items() for word in (f"--{key}", value)]
    start = ["sbatch", "--parsable", *options, "launch/slurm.sbatch", "pretrain", "configs/smoke/pretrain.yaml", *words]
    job = ask(slurm, *start).strip()
    until(lambda: log.exists() and "step 20/" in log.read_text(), 600)
    ask(slurm, "scancel", "--batch", "--signal=TERM", job)
    until(lambda: "back into the queue" in log.read_text(), 120)
    saved = next((tmp_path / "out").glob("checkpoint-*")).name.partition("-")[2]
    until(lambda: "next: recipes/sft.py" in log.read_text(), 1200)
    steps = [line.split()[1].partition("/")[0] for line in log.read_text().splitlines() if "grad_norm" in line]
    assert steps == [str(i) for i in range(1, 1001)] and saved in steps, "each step once"
    until(lambda: "JobState=COMPLETED" in ask(slurm, "scontrol", "show", "job", job), 60)


def test_a_job_that_its_user_cancels_is_not_put_back(tmp_path, slurm):
    options = ["--gpus-per-node=0", "--cpus-per-task=1", f"--output={tmp_path}/log"]
    config = ["configs/smoke/tokenizer.yaml", "--output_dir", tmp_path / "out"]
    job = ask(slurm, "sbatch", "--parsable", *options, "launch/slurm.sbatch", "tokenizer", *config).strip()
    until(lambda: "RUNNING" in ask(slurm, "scontrol", "show", "job", job), 60)
    time.sleep(2)
    ask(slurm, "scancel", job)
    until(lambda: not ask(slurm, "squeue", "-h"), 120)
    shown = ask(slurm, "scontrol", "show", "job", job)
    assert "JobState=CANCELLED" in shown and "Restarts=0" in shown
