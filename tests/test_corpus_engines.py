"""datatrove's executors and Ray run the same tasks: the same documents are kept, also when workers are killed."""

import os
import re
import signal
import stat
import sys
from pathlib import Path

import pytest
from corpora import PLAIN, document, kept, run_build, write_lines

from llmrecipes.config import InputError
from llmrecipes.corpus import executors
from llmrecipes.corpus.arguments import CorpusArguments
from llmrecipes.corpus.engine import build
from llmrecipes.corpus.parts import plan_parts
from llmrecipes.corpus.work import Work

pytest.importorskip("datatrove")
KEYS = PLAIN | {"near_duplicates": 0.7, "shard_bytes": 1}
LOCAL = {"executor": "local", "workers": 2, "num_tasks": 2}
RECORDED = Path(__file__).parent / "slurm_scripts"


@pytest.fixture
def sources(tmp_path):
    for i in range(4):
        write_lines(tmp_path / f"{i}.jsonl", [document(i), document(50 + i), document(7), document(50 + i) + " More."])
    return [{"path": f"{tmp_path}/*.jsonl", "label": "a"}]


@pytest.fixture
def readers(tmp_path, monkeypatch):
    """A module with a reader that is killed the first `deaths` times it is called, in whatever process."""
    code = (
        "import os, signal\n"
        "def deadly(rows):\n"
        "    left = sorted(f for f in os.listdir(os.environ['DEATHS']))\n"
        "    if left:\n"
        "        os.unlink(os.path.join(os.environ['DEATHS'], left[0]))\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return rows\n"
    )
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "deadly_reader.py").write_text(code)
    (tmp_path / "deaths").mkdir()
    monkeypatch.setenv("DEATHS", str(tmp_path / "deaths"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'modules'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return lambda deaths: [(tmp_path / "deaths" / str(i)).touch() for i in range(deaths)]


def test_local_workers_keep_the_same_documents_also_when_one_is_killed(tmp_path, sources, readers, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path / "modules")
    deadly = [sources[0] | {"reader": "deadly_reader:deadly"}]
    whole = run_build(tmp_path / "here", deadly, **KEYS)
    readers(1)
    found = run_build(tmp_path / "local", deadly, **KEYS, **LOCAL)
    assert found == whole and kept(tmp_path / "local") == kept(tmp_path / "here")
    assert re.search(r"task clean-\d was killed; attempt 2 of 4", capsys.readouterr().out)


@pytest.mark.long
def test_a_task_killed_in_every_try_is_named_and_finished_shards_are_kept(tmp_path, sources, readers):
    """Slow: waits for what is left after each kill."""
    readers(50)
    write_lines(tmp_path / "good.txt.jsonl", [document(99)])
    both = [{"path": str(tmp_path / "good.txt.jsonl"), "label": "good"}, sources[0] | {"reader": "deadly_reader:deadly"}]
    with pytest.raises(InputError, match=r"task clean-\d was killed in each of 2 tries.*fewer `workers`"):
        run_build(tmp_path / "out", both, retries=1, **KEYS, **LOCAL)
    assert (tmp_path / "out" / "work" / "cleaned" / "000000").exists()


def test_a_workers_mistake_is_the_same_line_as_in_process(tmp_path, sources):
    (tmp_path / "2.jsonl").write_text('{"text": "fine"}\n{"body": "x"}\n')
    with pytest.raises(InputError, match=r"2\.jsonl, row 2: has no `text`; its columns are body; fix it"):
        run_build(tmp_path / "out", sources, **KEYS, **LOCAL)


def slurm_work(folder, sources, **keys):
    slurm = {"partition": "cpu", "time": "02:00:00", "mem_per_cpu_gb": 4, "env_command": "export STARTED=1"}
    args = CorpusArguments(sources=sources, executor="slurm", workers=3, num_tasks=2, slurm=slurm, **KEYS | keys)
    work = Work(folder / "work", args, plan_parts(args))
    work.save()
    return work


def test_a_dry_run_writes_the_recorded_scripts(tmp_path, sources, capsys):
    """Five arrays of tasks, each after the one before it, and datatrove's own jobs that add up its statistics."""
    work = slurm_work(tmp_path / "out", sources, dry_run=True)
    assert build(work) is False and "10 scripts" in capsys.readouterr().out
    written = {file.name: file.read_text().replace(str(work.root), "ROOT") for file in (work.root / "slurm").iterdir()}
    if os.environ.get("RECORD"):
        RECORDED.mkdir(exist_ok=True)
        for name, text in written.items():
            (RECORDED / name).write_text(text)
    assert written == {file.name: file.read_text() for file in RECORDED.iterdir()}
    assert "--dependency=afterok:{job 1}" in written["03.slurm"] and "array=0-1%3" in written["01.slurm"]


STUBS = {  # Slurm that runs each job at once, in the order in which they are handed over
    "sbatch": """#!{python}
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
found = re.search(r"#SBATCH --array=0-(\\d+)", script)
if "merge_stats" not in script:
    for rank in range(int(found[1]) + 1):
        env = dict(os.environ, SLURM_ARRAY_TASK_ID=str(rank), SLURM_NODELIST="node", RUN_OFFSET="0")
        subprocess.run(["bash", "-c", script], env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job 7")
""",
    "srun": '#!/bin/bash\nwhile [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done\nexec "$@"\n',
    "scontrol": "#!/bin/bash\necho node\n",
    "squeue": "#!/bin/bash\ncat $QUEUE\n",
    "launch_pickled_pipeline": """#!{python}
from datatrove.tools.launch_pickled_pipeline import main
main()
""",
}


@pytest.mark.long
def test_jobs_of_a_stand_in_for_slurm_keep_the_same_documents(tmp_path, sources, monkeypatch, capsys):
    """Slow: each task is a Python process of its own, as on a cluster."""
    whole = run_build(tmp_path / "here", sources, **KEYS)
    (tmp_path / "bin").mkdir()
    for name, text in STUBS.items():
        file = tmp_path / "bin" / name
        file.write_text(text.replace("{python}", sys.executable))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "queue").write_text("")
    monkeypatch.setenv("QUEUE", str(tmp_path / "queue"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{executors.ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    work = slurm_work(tmp_path / "slurm", sources)
    assert build(work) is False and "are with Slurm" in capsys.readouterr().out
    assert build(work) is True, "all is done when the jobs have ended"
    assert run_build(tmp_path / "slurm", sources, **KEYS) == whole


def test_jobs_that_are_queued_are_not_handed_over_again(tmp_path, sources, monkeypatch, capsys):
    work = slurm_work(tmp_path / "out", sources)
    (work.root / "slurm.json").write_text('{"jobs": ["7", "8"]}')
    monkeypatch.setattr(executors, "_are_queued", lambda jobs: jobs == ["7", "8"])
    assert build(work) is False and "jobs 7, 8 are still with Slurm" in capsys.readouterr().out
    (work.root / "slurm.json").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="executor: slurm: there is no `sbatch` on this machine"):
        build(work)
    work.args.slurm.pop("time")
    with pytest.raises(InputError, match="slurm: `time` is missing"):
        build(work)


@pytest.mark.long
def test_ray_keeps_the_same_documents_also_when_a_worker_is_killed(tmp_path, sources, readers, monkeypatch, capsys):
    """Slow: Ray takes ten seconds to start, twice."""
    pytest.importorskip("ray")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    deadly = [sources[0] | {"reader": "deadly_reader:deadly"}]
    whole = run_build(tmp_path / "here", deadly, **KEYS)
    readers(1)
    found = run_build(tmp_path / "ray", deadly, **KEYS, **LOCAL | {"executor": "ray"})
    assert found == whole and kept(tmp_path / "ray") == kept(tmp_path / "here")
    assert re.search(r"task clean-\d was killed; attempt 2 of 4", capsys.readouterr().out)


def test_without_the_package_a_line_names_the_extra(tmp_path, sources, monkeypatch):
    def missing(module):
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr("llmrecipes.corpus.extras.importlib.import_module", missing)
    with pytest.raises(InputError, match=r"executor: local: needs datatrove .*'\.\[data\]'"):
        run_build(tmp_path / "out", sources, **KEYS, **LOCAL)


def test_what_the_executors_child_has_started_ends_with_it():
    """As when the kernel tells it that recipes/corpus.py was killed; datatrove's manager would stay for ever."""
    seen, up = os.pipe()
    if not (child := os.fork()):
        os.setsid()
        executors._end_whole_group()
        os.fork()  # the manager
        os.write(up, b"x")
        signal.pause()
        os._exit(1)
    os.close(up)
    assert os.read(seen, 1) + os.read(seen, 1) == b"xx"
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert os.read(seen, 1) == b"", "nobody is left to write"
