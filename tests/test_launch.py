"""Two processes (gloo, on CPU) learn what one learns at the same global batch, write once, and resume.

As a script this file is what `accelerate launch` starts: it runs the recipes' real command lines one after another, so
that all stages share one start-up.
"""

import atexit
import json
import os
import re
import runpy
import shutil
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ppo_toys as toys
import pytest
import torch
import yaml
from forked import run_python
from safetensors.torch import load_file

from llmrecipes import parsing

ROOT = Path(__file__).parent.parent
STAGES = ("pretrain", "sft", "reward", "dpo")
STEPS, GLOBAL_BATCH = 3, 4


def options(stage, inputs, output_dir, num_processes):
    values = {
        "datasets": [{"path": f"{inputs}/{stage}.jsonl"}],
        "test_split_size": 8,
        "max_length": 32 if stage == "pretrain" else 64,
        "max_steps": STEPS,
        "per_device_train_batch_size": GLOBAL_BATCH // num_processes,
        # Trainer weighs a batch that is filled up with rows of the others as if they were its own.
        "per_device_eval_batch_size": 1 if stage == "pretrain" else 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_steps": STEPS - 1,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "output_dir": str(output_dir),
    }
    if stage == "pretrain":
        values |= {
            "tokenizer_name_or_path": f"{inputs}/model",
            "model_config": json.loads((inputs / "model_config.json").read_text()),
            "optimizer": "muon",
        }
    else:
        values |= {"model_name_or_path": f"{inputs}/model", "activation_checkpointing": False}
    if stage in ("dpo", "kto"):
        # Where both answers begin alike their gradients cancel; of the rounding that is left Adam would make whole steps.
        values |= {"precompute_ref_log_probs": stage == "dpo", "adam_epsilon": 1e-3}
    if stage == "grpo":
        del values["max_length"]
        values |= {"max_completion_length": 8, "num_generations": 2, "beta": 0.1}
        values |= {"reward_functions": ["ppo_toys:even_share"]}
    return values


def run_recipe(stage, inputs, output_dir, num_processes, **changes):
    config = output_dir.with_suffix(f".{os.environ.get('RANK', 0)}.yaml")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(options(stage, inputs, output_dir, num_processes) | changes))
    sys.argv = [str(ROOT / "recipes" / f"{stage}.py"), "--config", str(config)]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:  # or a later failure in this process would end with the exit code of the recipe that ended well
        atexit.unregister(parsing._leave_for_good)


def run_stages(inputs, outputs):
    """Each process is given a folder of its own, so that what it writes shows; then one shared run is interrupted."""
    rank, num_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    for stage in STAGES:
        run_recipe(stage, inputs, outputs / f"rank{rank}" / stage, num_processes)
    if num_processes == 1:
        return
    run_recipe("pretrain", inputs, outputs / "resumed", num_processes)
    torch.distributed.barrier()
    if rank == 0:
        interrupt(outputs / "resumed")
    torch.distributed.barrier()
    run_recipe("pretrain", inputs, outputs / "resumed", num_processes)


def interrupt(folder, step=STEPS - 1):
    """Leaves a finished run as if it had been killed after the checkpoint of `step`."""
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(folder / f"checkpoint-{later}")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"status": "running", "started": 0.0, "previous_seconds": 0.0}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A tiny tokenizer and model, and a data set for each stage."""
    from training_toys import save_model

    from llmrecipes.tokenizers import train_tokenizer

    folder = tmp_path_factory.mktemp("inputs")
    colours = ["red", "green", "blue", "grey", "brown", "pink"]
    names = ["Ann", "Bob", "Cleo", "Dan", "Eve"]
    facts = [(f"Which hat has {n}?", f"{n} has a {c} hat" + " and a cat" * i) for i, n in enumerate(names) for c in colours]
    asked = [[{"role": "user", "content": question}] for question, _ in facts]
    answered = [[{"role": "assistant", "content": answer}] for _, answer in facts]
    rows = {
        "pretrain": [{"text": f"{q} {a}."} for q, a in facts],
        "sft": [{"messages": [*q, *a]} for q, a in zip(asked, answered, strict=True)],
        "reward": [
            {"prompt": q, "chosen": a, "rejected": b}
            for q, a, b in zip(asked, answered, answered[1:] + answered[:1], strict=True)
        ],
    }
    rows["dpo"] = rows["kto"] = rows["reward"]
    rows["grpo"] = [{"prompt": question} for question in asked]
    for stage, lines in rows.items():
        (folder / f"{stage}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer = train_tokenizer([row["text"] for row in rows["pretrain"]], 300, 64)
    config = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"num_key_value_heads": 1, "intermediate_size": 64, "max_position_embeddings": 64}
    (folder / "model_config.json").write_text(json.dumps(config))
    save_model(config, tokenizer, folder / "model")
    return folder


def launch(num_processes, *argv) -> str:
    """What this file, started with `argv` in one or two processes, prints."""
    config = ROOT / "configs" / "accelerate" / ("single_gpu.yaml" if num_processes == 1 else "cpu.yaml")
    done = toys.run_launched(config, __file__, *argv)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def outputs(inputs, tmp_path_factory):
    """{1: folder of the one-process runs, 2: folder of the two-process runs}"""
    folders = {n: tmp_path_factory.mktemp(f"processes{n}") for n in (1, 2)}
    for num_processes, folder in folders.items():
        (folder / "log.txt").write_text(launch(num_processes, inputs, folder))
    return folders


def losses(folder):
    """Training loss of each step, then the held-out loss."""
    history = json.loads((folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
    metrics = json.loads((folder / "manifest.json").read_text())["metrics"]
    return [entry["loss"] for entry in history if "loss" in entry] + [metrics["eval_loss"]]


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_learn_what_one_learns(outputs, stage):
    one, two = (losses(outputs[n] / "rank0" / stage) for n in (1, 2))
    assert len(one) == STEPS + 1 and one[0] != one[-2], "something was learned"
    assert two == pytest.approx(one, rel=1e-4)  # Adam and Muon divide by the gradient's size: its rounding shows (2e-5 seen)


@pytest.mark.parametrize("stage", STAGES)
def test_results_are_written_once(outputs, stage):
    """Rank 1, given a folder of its own, leaves nothing there but its random state in the checkpoints."""
    one = {p.relative_to(outputs[1] / "rank0" / stage) for p in (outputs[1] / "rank0" / stage).rglob("*")}
    two = {p.relative_to(outputs[2] / "rank0" / stage) for p in (outputs[2] / "rank0" / stage).rglob("*")}
    own = {p.name for p in two - one}
    assert one - two <= {Path(f"checkpoint-{n}/rng_state.pth") for n in (STEPS - 1, STEPS)}
    assert own == {"rng_state_0.pth"}
    written_by_rank_1 = {p.name for p in (outputs[2] / "rank1" / stage).rglob("*") if p.is_file()}
    assert written_by_rank_1 == {"rng_state_1.pth"}
    log = (outputs[2] / "log.txt").read_text()
    assert log.count(f"=== {stage}: ") == (3 if stage == "pretrain" else 1), "one summary a run"
    warned = re.findall(r"(\w+)/checkpoint-\d+: what process 1 wrote is not there", log)
    assert sorted(warned) == sorted(STAGES), "not the run whose folder both processes share"


def test_two_processes_resume_as_if_uninterrupted(outputs):
    assert "pretrain: continuing from" in (outputs[2] / "log.txt").read_text()
    resumed, uninterrupted = outputs[2] / "resumed", outputs[2] / "rank0" / "pretrain"
    assert losses(resumed) == losses(uninterrupted)
    assert (resumed / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()


@pytest.mark.long  # as continuing with other micro-batches (test_resume.py) and in two processes (above)
def test_one_process_then_two_then_one_end_where_one_does_up_to_rounding(outputs, inputs, tmp_path):
    """At the same global batch, each goes on from the checkpoint of the one before. Muon makes updates of one size out of
    gradients of any, so that rounding grows: two processes without a break are as far from one."""
    folder = tmp_path / "pretrain"
    for step, number in enumerate((1, 2, 1), start=1):
        log = launch(number, inputs, folder, "pretrain")
        assert step == 1 or f"continuing from {folder}/checkpoint-{step - 1}" in log and "equal up to rounding" in log
        if step < STEPS:
            interrupt(folder, step)
    whole = outputs[1] / "rank0" / "pretrain"
    assert losses(folder) == pytest.approx(losses(whole), rel=1e-4)
    weights, expected = (
        torch.cat([tensor.flatten() for _, tensor in sorted(load_file(path / "model.safetensors").items())])
        for path in (folder, whole)
    )
    assert (weights - expected).norm() <= 1e-3 * expected.norm()


def test_two_processes_measure_what_one_measures(inputs, tmp_path):
    """Texts, tasks, greedy and sampled answers are shared out, and nothing depends on how."""
    questions = [json.loads(line) for line in (inputs / "sft.jsonl").read_bytes().splitlines()]
    questions = [{"prompt": row["messages"][:1], "kind": "chat", "key": f"{i // 2}"} for i, row in enumerate(questions)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    values = {
        "models": {"one": f"{inputs}/model", "two": f"{inputs}/model"},
        "baseline": "one",
        "datasets": [{"path": str(tmp_path / "questions.jsonl")}],
        "eval_datasets": [{"path": f"{inputs}/pretrain.jsonl"}],
        "tasks": ["english_syntax"],
        "task_limit": 9,
        "judge": "llmrecipes.evaluation.rules:judge",
        "max_new_tokens": 8,
        "kl_prompts": 5,
        "per_device_eval_batch_size": 4,
        "show_answers": 1,
    }
    scores = {}
    for number in (1, 2):
        output_dir = tmp_path / f"processes{number}"
        config = tmp_path / f"{number}.yaml"
        config.write_text(yaml.safe_dump(values | {"output_dir": str(output_dir)}))
        log = launch(number, "recipes/evaluate.py", "--config", config)
        assert log.count("evaluated one in") == log.count("=== evaluate: ") == 1
        scores[number] = json.loads((output_dir / "metrics.json").read_text())["models"]
        answers = [json.loads(line)["answers"] for line in (output_dir / "answers.jsonl").read_bytes().splitlines()]
        scores[number]["said"] = {"answers": answers}
    assert scores[1].pop("said") == scores[2].pop("said")
    assert {"perplexity", "english_syntax", "rude", "sampled_rude", "self_consistency"} <= set(scores[1]["two"])
    for name, measures in scores[1].items():
        assert set(measures) == set(scores[2][name])
        for measure, estimate in measures.items():
            assert estimate == pytest.approx(scores[2][name][measure], rel=1e-5, abs=1e-7), measure


def test_two_machines_learn_what_one_learns(inputs, outputs, tmp_path):
    """Two launchers on loopback, each with one process, by multi_node.yaml and its own --machine_rank, as docs say."""
    topology = yaml.safe_load((ROOT / "configs" / "accelerate" / "multi_node.yaml").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    recipe = tmp_path / "sft.yaml"
    recipe.write_text(yaml.safe_dump(options("sft", inputs, tmp_path / "sft", num_processes=2)))
    assert topology["num_machines"] == 2 and topology["rdzv_backend"] == "static"

    def machine(rank):
        own = tmp_path / f"machine{rank}.yaml"
        changes = {"num_processes": 2, "use_cpu": True, "machine_rank": rank, "main_process_port": port}
        own.write_text(yaml.safe_dump(topology | changes))
        return toys.run_launched(own, __file__, "recipes/sft.py", "--config", recipe).stdout

    with ThreadPoolExecutor(2) as pool:
        logs = list(pool.map(machine, (0, 1)))
    assert losses(tmp_path / "sft") == pytest.approx(losses(outputs[1] / "rank0" / "sft"), rel=2e-5)
    assert [log.count("=== sft: ") for log in logs] == [1, 0], "the first machine alone sums up"
    assert json.loads((tmp_path / "sft" / "manifest.json").read_text())["launch"]["processes"] == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:9"), 1),
        (torch.distributed.DistBackendError("NCCL error: remote process exited or there was a network error"), 1),
        (RuntimeError("gloo: no such collective"), None),
        (ConnectionResetError("Connection reset by peer"), None),
    ],
)
def test_a_process_that_another_has_left_alone_says_so_in_a_line(error, code, tmp_path, monkeypatch, capsys):
    report = tmp_path / "error.json"
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "TORCHELASTIC_ERROR_FILE": str(report)}.items():
        monkeypatch.setenv(name, value)

    def main():
        raise error

    monkeypatch.setattr("atexit.register", lambda *args: None)
    with pytest.raises(SystemExit if code else type(error)) as caught:
        parsing.launch(main, argv=[])
    if code:
        line = "ended, as another process of this launch did; its own line says why"
        assert caught.value.code == code and capsys.readouterr().err == f"process 0: {line}\n"
        assert json.loads(report.read_text())["message"] == line


LEFT_ALONE = """
import os, sys
from llmrecipes.config import InputError
from llmrecipes.parsing import launch
from llmrecipes.processes import once, share

def main():
    share([1, 2], list)
    if os.environ["RANK"] == "1":
        raise InputError("reward_functions: wrong returned 1 scores for 2 responses")
    for _ in range(2):  # what is sent to a process that has ended may be lost, not yet refused
        once(lambda: 1)

launch(main, argv=[])
"""


def test_when_one_process_refuses_the_launcher_repeats_it_and_no_other_shows_a_traceback(tmp_path):
    (tmp_path / "script.py").write_text(LEFT_ALONE)
    started = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", tmp_path / "script.py")
    done = run_python(*started, env={"PYTHONPATH": str(ROOT)}, children=True)
    ours, _, reports = done.stderr.partition("torch.distributed.elastic.multiprocessing.errors.ChildFailedError")
    line = "error: reward_functions: wrong returned 1 scores for 2 responses"
    assert done.returncode == 1 and line in ours.splitlines() and "gloo" not in ours and "[rank0]" not in ours
    cause = reports.partition("Root Cause")[2]
    assert f": {line}" in cause and re.search(r"exitcode +: 2", cause), reports


MIDNIGHT = """
import os, sys
from dataclasses import dataclass
from llmrecipes import provenance
from llmrecipes.config import RunArguments
from llmrecipes.parsing import launch
from llmrecipes.run import check_run
from llmrecipes.templates import chat_template_utils

class Date(provenance.date):
    @classmethod
    def today(cls):
        return cls(2030, 1, int(os.environ["RANK"]) + 1)

@dataclass
class Arguments:
    output_dir: str
    seed: int = 1

provenance.date = Date

def main(run, args):
    dated = check_run("sft", run, args, (run, args)).manifest["date"]
    print(f"process {os.environ['RANK']}: {dated} {chat_template_utils.datetime.now():%d %b %Y}", flush=True)

launch(main, RunArguments, Arguments, argv=["--output_dir", sys.argv[1]])
"""


def test_processes_on_either_side_of_midnight_date_conversations_alike(tmp_path):
    (tmp_path / "script.py").write_text(MIDNIGHT)
    started = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", tmp_path / "script.py", tmp_path / "o")
    done = run_python(*started, env={"PYTHONPATH": str(ROOT)}, children=True)
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("process"))
    assert lines == [f"process {rank}: 2030-01-01 01 Jan 2030" for rank in (0, 1)], done.stderr


ALONE_WITH_A_CHECKPOINT = """
import os, sys
from dataclasses import dataclass
from llmrecipes import run as runs
from llmrecipes.config import RunArguments
from llmrecipes.parsing import launch

@dataclass
class Arguments:
    output_dir: str
    seed: int = 1

def find(state, args):
    found = {"all": True, "first": os.environ["RANK"] == "0", "second": os.environ["RANK"] == "1"}[sys.argv[1]]
    state.resume_from_checkpoint = f"{args.output_dir}/checkpoint-7" if found else None

runs._find_checkpoint, runs.standing = find, lambda *args: "unfinished"

def main(run, args):
    runs.check_run("sft", run, args, (run, args))
    print("went on", flush=True)

launch(main, RunArguments, Arguments, argv=["--output_dir", "nowhere"])
"""


@pytest.mark.parametrize("who", ["first", *(pytest.param(who, marks=pytest.mark.long) for who in ("second", "all"))])
def test_machines_that_see_other_checkpoints_do_not_train_on(tmp_path, who):
    """As with an output_dir on each machine's own disk: the first would go on, the second begin, and none of them say so."""
    (tmp_path / "script.py").write_text(ALONE_WITH_A_CHECKPOINT)
    started = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", tmp_path / "script.py", who)
    done = run_python(*started, env={"PYTHONPATH": str(ROOT)}, children=True)
    if who == "all":
        assert done.returncode == 0 and done.stdout.count("went on") == 2, done.stderr
        return
    found = ["no checkpoint", "checkpoint-7"][:: 1 if who == "first" else -1]
    line = f"error: nowhere: process 1 on {socket.gethostname()} finds {found[0]} there, the first process {found[1]}; put"
    assert done.returncode == 1 and any(one.startswith(line) for one in done.stderr.splitlines()), done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_topology_is_read_by_accelerate_and_holds_no_training_key(path):
    from accelerate.commands.config.config_args import load_config_from_file

    text = path.read_text()
    assert f"accelerate launch --config_file configs/accelerate/{path.name}" in text
    config = load_config_from_file(str(path))
    assert config.num_processes % config.num_machines == 0
    assert config.mixed_precision == "no", "the recipe decides on precision"
    training = {"gradient_accumulation_steps", "gradient_clipping", "learning_rate", "max_steps", "seed"}
    assert not training & {key for part in (yaml.safe_load(text), config.deepspeed_config or {}) for key in part}


if __name__ == "__main__":
    if sys.argv[1].startswith("recipes/"):
        sys.argv[:] = sys.argv[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")
    elif sys.argv[3:]:
        run_recipe(sys.argv[3], Path(sys.argv[1]), Path(sys.argv[2]), int(os.environ.get("WORLD_SIZE", 1)), save_steps=1)
    else:
        run_stages(Path(sys.argv[1]), Path(sys.argv[2]))
    if torch.distributed.is_initialized():
        toys.leave()
