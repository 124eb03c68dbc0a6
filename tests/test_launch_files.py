"""launch/: each file starts any recipe with any YAML; what accelerate would be told is recorded by stand-ins."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from forked import run_python
from torch.distributed.launcher.api import LaunchConfig

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
ASKED = ["sft", "configs/smoke/sft.yaml", "--learning_rate", "1e-5", "--run_name", "two words"]
RECORD = 'printf "%s\\n" "$@" > "$RECORDED.$MACHINE_RANK"\n'


@pytest.fixture
def stand_ins(tmp_path):
    """A PATH whose accelerate, srun, scontrol and so on only write down what they are told.

    As the real one does (22.05), srun kills what it started at once when it gets SIGTERM.
    """
    names = {
        "accelerate": "MACHINE_RANK=${MACHINE_RANK:-0}\n" + RECORD + "exec ${SLEEP:-true}\n",
        "python": "MACHINE_RANK=${MACHINE_RANK:-0}\n" + RECORD,
        "srun": 'shift; for n in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$n "$@" & done\n'
        'jobs -p > "$RECORDED.tasks"; trap "kill -KILL 0" TERM; wait -n; exit $?\n',
        "scancel": 'kill -TERM $(cat "$RECORDED.tasks")\n',
        "scontrol": 'if [[ $1 = show ]]; then printf "node1\\nnode2\\nJobState=RUNNING\\n"\n'
        'else echo "$@" >> "$RECORDED.scontrol"; fi\n',
        "hf": "MACHINE_RANK=hf\n" + RECORD,
        "nvidia-smi": "printf 'GPU 0\\nGPU 1\\n'\n",
    }
    (tmp_path / "bin").mkdir()
    for name, body in names.items():
        (tmp_path / "bin" / name).write_text("#!/bin/bash\n" + body)
        (tmp_path / "bin" / name).chmod(0o755)
    return {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "RECORDED": str(tmp_path / "told")}


def told(env, rank=0) -> list[str]:
    return Path(f"{env['RECORDED']}.{rank}").read_text().splitlines()


def run(*words, env):
    return subprocess.run(["bash", *map(str, words)], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)


def options(words: list[str]) -> dict:
    own = words[: next(i for i, word in enumerate(words) if word.startswith("recipes/"))]
    return {own[i][2:]: own[i + 1] for i in range(1, len(own) - 1) if own[i].startswith("--")}


@pytest.mark.parametrize("file", sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]), ids=lambda file: file.name)
def test_scripts_are_bash(file):
    assert subprocess.run(["bash", "-n", file], capture_output=True).returncode == 0
    assert os.access(file, os.X_OK)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-S", "error", file], check=True)


def test_a_launch_config_that_is_not_there_is_one_line_also_on_one_gpu(stand_ins):
    done = run(LAUNCH / "start.sh", *ASKED, env=stand_ins | {"LAUNCH_CONFIG": "fsdp", "NUM_GPUS": "1"})
    assert done.returncode == 2 and done.stderr.startswith("error: LAUNCH_CONFIG=fsdp is not one of: ")


@pytest.mark.parametrize(("name", "value"), [("NUM_GPUS", "two"), ("MACHINE_RANK", "two"), ("NUM_MACHINES", "08")])
def test_a_number_that_is_none_is_one_line(stand_ins, name, value):
    done = run(LAUNCH / "start.sh", *ASKED, env=stand_ins | {name: value})
    assert done.returncode == 2 and done.stderr == f"error: {name}={value} is not a number\n"


@pytest.mark.parametrize("machines", [{}, {"NUM_MACHINES": "0", "MACHINE_RANK": "0"}, {"NUM_MACHINES": "1"}])
def test_a_machine_beyond_their_number_is_one_line(stand_ins, machines):
    """As where kubernetes.yaml was told of two machines in two of its three places: each pod would train alone."""
    done = run(LAUNCH / "start.sh", *ASKED, env=stand_ins | {"MACHINE_RANK": "1", "NUM_GPUS": "1"} | machines)
    assert done.returncode == 2 and done.stderr.startswith("error: MACHINE_RANK=") and done.stderr.count("\n") == 1
    assert not Path(f"{stand_ins['RECORDED']}.1").exists()


def test_a_recipe_that_shares_no_work_is_started_once(stand_ins):
    several = {"NUM_GPUS": "8"}
    for recipe in ("pipeline", "sample", "corpus"):
        assert run(LAUNCH / "start.sh", recipe, "x.yaml", env=stand_ins | several).returncode == 0
        assert told(stand_ins) == [f"recipes/{recipe}.py", "--config", "x.yaml"]
    done = run(LAUNCH / "start.sh", "sample", "x.yaml", env=stand_ins | several | {"NUM_MACHINES": "2", "MAIN_IP": "a"})
    assert done.returncode == 2 and "sample runs in one process" in done.stderr
    assert run(LAUNCH / "start.sh", "evaluate", "x.yaml", env=stand_ins | several).returncode == 0
    assert options(told(stand_ins))["num_processes"] == "8"


def test_a_launch_of_several_processes_of_such_a_recipe_is_refused():
    for recipe in ("pipeline", "plan"):
        config = ROOT / "configs" / "quickstart" / f"{recipe.replace('plan', 'sft')}.yaml"
        done = run_python(ROOT / f"recipes/{recipe}.py", "--config", config, "--help", env={"WORLD_SIZE": "2"})
        assert done.returncode == 2 and f"error: {recipe} runs in one process, and this launch has 2" in done.stderr


def test_start_takes_all_gpus_of_a_machine(stand_ins):
    assert run(LAUNCH / "start.sh", *ASKED, env=stand_ins).returncode == 0
    words = told(stand_ins)
    assert options(words) == {"config_file": "configs/accelerate/ddp.yaml", "num_machines": "1", "num_processes": "2"}
    assert words[words.index("recipes/sft.py") :] == ["recipes/sft.py", "--config", *ASKED[1:]]
    run(LAUNCH / "start.sh", *ASKED, env=stand_ins | {"NUM_GPUS": "1"})
    assert told(stand_ins) == ["recipes/sft.py", "--config", *ASKED[1:]], "one process needs no launcher"


def test_more_keys_are_words_as_in_a_shell(stand_ins):
    env = stand_ins | {
        "NUM_GPUS": "1",
        "MORE_KEYS": "--run_name 'two words' --datasets '[{path: a*}, {path: \"b c\"}]' --x {1,2}",
    }
    assert run(LAUNCH / "start.sh", "sft", "a config.yaml", env=env).returncode == 0
    more = ["--run_name", "two words", "--datasets", '[{path: a*}, {path: "b c"}]', "--x", "{1,2}"]
    assert told(env) == ["recipes/sft.py", "--config", "a config.yaml", *more]
    assert run(LAUNCH / "start.sh", "sft", "a.yaml", env=env | {"MORE_KEYS": " "}).returncode == 0
    assert told(env) == ["recipes/sft.py", "--config", "a.yaml"]
    done = run(LAUNCH / "start.sh", *ASKED, env=env | {"MORE_KEYS": "--run_name 'two"})
    assert done.returncode == 2 and "MORE_KEYS: a quote is not closed" in done.stderr


def test_processes_of_a_launch_have_nearly_two_minutes_to_save(stand_ins, monkeypatch):
    """After SIGTERM torch's launcher kills what it started; by default in 30 s, too few for a large model's checkpoint."""
    asked = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
    for given, seconds in (({}, "110"), ({asked: "600"}, "600")):
        done = run(LAUNCH / "start.sh", *ASKED, env=stand_ins | {"SLEEP": f"printenv {asked}"} | given)
        assert done.stdout == f"{seconds}\n"
        monkeypatch.setenv(asked, seconds)
        assert LaunchConfig(1, 1, 1).shutdown_timeout == int(seconds)


def test_start_refuses_what_is_no_recipe(stand_ins):
    done = run(LAUNCH / "start.sh", "sff", "configs/smoke/sft.yaml", env=stand_ins)
    assert done.returncode == 2 and "sff is not a recipe" in done.stderr
    several = run(LAUNCH / "start.sh", *ASKED, env=stand_ins | {"NUM_MACHINES": "2"})
    assert several.returncode == 2 and several.stderr == "error: MAIN_IP is missing: the address of the first machine\n"
    for words in ([], ["sft"], ["sft", ""]):
        done = run(LAUNCH / "start.sh", *words, env=stand_ins)
        assert done.returncode == 2 and done.stderr == "usage: launch/start.sh RECIPE CONFIG.yaml [--key value ...]\n"


SLURM = {
    "SLURM_NNODES": "2",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_SUBMIT_DIR": str(ROOT),
}


def test_slurm_starts_a_launcher_on_each_node(stand_ins):
    env = stand_ins | SLURM | {"LAUNCH_CONFIG": "fsdp2"}
    assert run(LAUNCH / "slurm.sbatch", *ASKED, env=env).returncode == 0
    deadline = time.monotonic() + 10
    while not Path(f"{env['RECORDED']}.1").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    for rank in (0, 1):
        found = options(told(env, rank))
        assert found["machine_rank"] == str(rank) and found["num_processes"] == "8" and found["main_process_ip"] == "node1"
        assert found["config_file"].endswith("fsdp2.yaml") and 20000 <= int(found["main_process_port"]) < 30000
    assert not Path(f"{env['RECORDED']}.scontrol").exists(), "a job that ended by itself is not requeued"


def test_slurm_puts_a_job_that_was_stopped_back_into_the_queue(stand_ins):
    env = stand_ins | SLURM | {"SLEEP": "sleep 30"}
    job = subprocess.Popen(["bash", LAUNCH / "slurm.sbatch", *ASKED], env=env, cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 20
    while not Path(f"{env['RECORDED']}.1").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) != 0
    assert Path(f"{env['RECORDED']}.scontrol").read_text() == "requeue 77\n"
    settings = [line for line in (LAUNCH / "slurm.sbatch").read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --requeue" in settings and "#SBATCH --signal=B:TERM@120" in settings


def test_hf_jobs_hands_the_words_on(stand_ins):
    env = stand_ins | {"REPO": "https://example.org/x"}
    assert run(LAUNCH / "hf_jobs.sh", *ASKED, env=env).returncode == 0
    words = told(env, "hf")
    assert words[:2] == ["jobs", "run"] and words[-len(ASKED) :] == ASKED and "launch/start.sh" in words[-len(ASKED) - 2]
    assert words.index("--") == words.index("python:3.11") - 1, "or hf takes the recipe's --env as its own"
    assert run(LAUNCH / "hf_jobs.sh", *ASKED, env=stand_ins).returncode != 0, "REPO is missing"


def test_kubernetes_starts_as_many_machines_as_it_tells_them(stand_ins):
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    spec = job["spec"]
    [container] = spec["template"]["spec"]["containers"]
    env = {entry["name"]: entry.get("value", "") for entry in container["env"]}
    assert int(env["NUM_MACHINES"]) == spec["completions"] == spec["parallelism"] and spec["completionMode"] == "Indexed"
    assert env["MAIN_IP"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert (ROOT / env["CONFIG"]).exists() and container["command"] == ["/bin/bash", "-c"]
    more = {"JOB_COMPLETION_INDEX": "0", "ARGS": "--run_name 'two words'"}
    done = run("-c", container["args"][0], env=stand_ins | env | more)
    assert done.returncode == 0 and told(stand_ins)[-4:] == ["--config", env["CONFIG"], "--run_name", "two words"]


def test_skypilot_starts_the_recipe_on_each_node(stand_ins, tmp_path):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert set(task) <= {"name", "num_nodes", "resources", "workdir", "envs", "file_mounts", "setup", "run"}
    for name in ("launch", "recipes", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    env = (
        stand_ins
        | task["envs"]
        | {
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_RANK": "1",
            "SKYPILOT_NUM_GPUS_PER_NODE": "8",
            "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
            "ARGS": "--max_steps 3 --run_name 'two words'",
        }
    )
    done = subprocess.run(["bash", "-c", task["run"]], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = told(env, 1)
    assert options(found)["main_process_ip"] == "10.0.0.1" and options(found)["machine_rank"] == "1"
    assert found[-4:] == ["--max_steps", "3", "--run_name", "two words"]
    assert (tmp_path / "outputs").is_symlink()
    (tmp_path / "outputs").unlink()
    (tmp_path / "outputs").mkdir()
    done = subprocess.run(["bash", "-c", task["run"]], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: outputs/ came along") and done.stderr.count("\n") == 1
    assert not list((tmp_path / "outputs").iterdir())


def test_the_image_starts_what_the_others_start():
    assert {"outputs", ".venv"} <= {*(ROOT / ".dockerignore").read_text().split()}, "or checkpoints end up in the image"
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    entry = json.loads(next(line for line in lines if line.startswith("ENTRYPOINT")).removeprefix("ENTRYPOINT "))
    assert (ROOT / entry[0]).is_file()
    known = ("FROM", "RUN", "WORKDIR", "COPY", "ENV", "ENTRYPOINT", "#")
    assert all(not line.strip() or line.startswith(known) for line in lines)
