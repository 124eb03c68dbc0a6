"""benchmarks/gpu.py, written for minutes on a GPU: wrong options are refused first, figures outlive a failure."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from forked import run_python

from llmrecipes.options import names_of, result_file

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import gpu
import gpu_offline


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA RTX A6000", 155),
        ("NVIDIA L40S", 362),
        *((name, None) for name in ("NVIDIA L40", "NVIDIA A10G", "NVIDIA H100 NVL", "NVIDIA RTX A1000", "Tesla T4")),
    ],
)
def test_the_peak_is_that_of_the_very_card_or_unknown(name, tflops):
    assert gpu.peak_flops(name) == (tflops and tflops * 1e12)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--parts", "decoding"], "decoding is not one of pretrain"),
        (["--parts", ","], "names none of pretrain"),
        (["--trl", "."], "does not hold trl 1.12.0"),
        (["--json", "nowhere/a.json"], "nowhere/a.json cannot be written (No such file or directory)"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_measured(option, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu.py", *option])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("training.py --stages foo", "--stages: foo is not one of pretrain, sft, reward"),
        ("training.py --steps 1", "--steps must be at least 2"),
        (
            "training.py --json nowhere/a.json",
            "argument --json: nowhere/a.json cannot be written (No such file or directory)",
        ),
        ("memory.py --json .", "argument --json: . cannot be written (Is a directory)"),
        ("kill.py --stages sft:3", "--stages: sft:3 is not one of tokenizer, pretrain"),
        ("data.py --only words", "--only: words is not one of near_duplicates"),
        ("gpu_offline.py --python 3.10", "--python: 3.10 is not a version from 3.11 on"),
        ("gpu_offline.py /proc/x", "/proc/x: No such file or directory"),
        ("ppo.py --workloads , --sides trl", "--workloads, --sides: names none of fixed"),
    ],
)
def test_wrong_options_of_the_other_benchmarks_are_one_line(words, line, tmp_path):
    script, *options = words.split()
    done = run_python(Path(gpu.__file__).with_name(script), *options, cwd=tmp_path, env={"PYTHONPATH": str(gpu.ROOT)})
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith(f"error: command line: {line}") and "Traceback" not in done.stderr


def test_the_same_name_twice_is_measured_once_and_an_old_file_stays(tmp_path):
    assert names_of(" a,b,,a ", "abc") == ["a", "b"]
    (tmp_path / "old").write_text("1")
    assert result_file(str(tmp_path / "old")).read_text() == "1" and not result_file(str(tmp_path / "new")).exists()


def test_what_a_part_found_before_it_died_is_in_the_file(monkeypatch, tmp_path):
    part = tmp_path / "part.py"
    part.write_text(
        'import sys\nprint(\'{"device": "d", "ours": 1.5}\', flush=True)\nprint("noise")\nsys.exit("out of memory")'
    )
    monkeypatch.setattr(gpu, "__file__", str(part))
    args, results = argparse.Namespace(smoke=True, trl=None, text=None, json=tmp_path / "a.json"), {}
    gpu.run_part("ppo", args, results)
    kept = json.loads(args.json.read_text())["ppo"]
    found = {"device": "d", "ours": 1.5, "failed": "out of memory\n", "seconds": kept["seconds"], "smoke": True}
    assert kept == results["ppo"] == found
    part.write_text("import sys\nsys.exit('no memory')")
    gpu.run_part("ppo", args, results)
    assert "ours" not in results["ppo"], "of the run before"


def test_a_stopped_part_ends_all_that_it_started_and_keeps_its_figures(monkeypatch, tmp_path):
    part = tmp_path / "part.py"
    child = "import time; print('child', flush=True); time.sleep(60)"
    part.write_text(
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        'print(\'{"device": "d", "child": \' + str(child.pid) + "}", flush=True)\nchild.wait()'
    )
    monkeypatch.setattr(gpu, "__file__", str(part))
    args, results = argparse.Namespace(smoke=False, trl=None, text=None, json=tmp_path / "a.json"), {}

    def interrupt(path, value):
        write_json(path, value)
        if "failed" not in value["ppo"]:
            raise KeyboardInterrupt

    write_json = gpu.write_json
    monkeypatch.setattr(gpu, "write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        gpu.run_part("ppo", args, results)
    kept = json.loads(args.json.read_text())["ppo"]
    assert kept["failed"] == "stopped"
    state = Path(f"/proc/{kept['child']}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_figures_of_other_parts_stay_and_those_of_other_runs_are_set_aside(tmp_path):
    path, versions = tmp_path / "a.json", {"torch": "2.13.0", "trl": "1.16.0"}
    assert gpu.parts_in(path, versions, False) == {} and json.loads(path.read_text()) == {"versions": versions}
    before = {"versions": versions, "pretrain": {"mfu": 0.5}, "sft": {"mfu": 0.1, "smoke": True}}
    path.write_text(json.dumps(before))
    assert gpu.parts_in(path, versions, False) == {"pretrain": {"mfu": 0.5}}
    for i, (now, smoke) in enumerate(((versions | {"torch": "2.11.0"}, False), (versions, True)), 1):
        path.write_text(json.dumps(before))
        assert gpu.parts_in(path, now, smoke) == {}
        assert json.loads((tmp_path / f"a.{i}.json").read_text()) == before
        assert json.loads(path.read_text()) == {"versions": now}
    for other in ("{", "[1]", '{"model": 1}', '{"model": {}}'):
        path.write_text(other)
        with pytest.raises(ValueError, match="holds something else"):
            gpu.parts_in(path, versions, False)
        assert path.read_text() == other


def test_a_package_that_is_missing_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--parts", "decode"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "no-such-package is not installed; pip install" in capsys.readouterr().err


class Side:
    """Runs at a pace of `seconds` a step, or fails."""

    def __init__(self, seconds: float | None):
        self.seconds, self.model, self.optimizer = seconds, torch.nn.Linear(2, 2), None
        self.trainer = self

    def run(self):
        assert self.seconds, "no kernel"
        return [(0.0, 0.0), (self.seconds, 0.0)]


def test_a_side_that_fails_leaves_the_others_their_figures(monkeypatch):
    monkeypatch.setattr(gpu, "build_pretraining", lambda *_, fused_lm_head=False: fused_lm_head)
    monkeypatch.setattr(gpu, "Recipe", lambda fused_lm_head: Side(None if fused_lm_head else 2.0))
    monkeypatch.setattr(gpu, "BareLoop", lambda *_: Side(1.0))
    found = gpu.pretrain(gpu.SHAPES["smoke"], steps=2)
    assert "no kernel" in found["fused_lm_head_failed"] and "fused_lm_head_tokens_per_s" not in found
    assert (found["recipe_tokens_per_s"], found["bare_tokens_per_s"], found["overhead"]) == (128.0, 256.0, 1.0)


def test_only_real_tokens_and_attention_inside_documents_count():
    shape, model = (2, 8, 2, 16, 4, 32), torch.nn.Linear(8, 8, bias=False)
    assert gpu.work_of([4, 12], shape, 2, model, lora=False) == (8, 6 * 64 + 12 * 2 * 8 * (4 * 4 + 12 * 12) / 16)
    assert gpu.work_of([16], shape, 1, model, lora=True) == (16, 4 * 64 + 12 * 2 * 8 * 16)


def test_both_ways_without_padding_have_the_rows_that_they_are_measured_by(tmp_path):
    shape, steps = (1, 16, 2, 64, 2, 64), 3
    for packed, in_a_step in ((True, 2), (False, 6)):
        trainer = gpu.build_sft(shape, steps, str(tmp_path), packed, False)
        batches = list(trainer.get_train_dataloader())
        lengths = gpu.documents(trainer)
        assert len(batches) == steps and sum(batch["input_ids"].numel() for batch in batches) == sum(lengths)
        assert len(trainer.train_dataset) == steps * in_a_step and len(set(lengths)) > 3 and max(lengths) <= 64
        assert sum(len(batch["cu_seq_lens_q"]) - 1 for batch in batches) == len(lengths)
        bare = gpu.BareLoop(gpu.build_model(shape), trainer, steps)
        trainer.train()
        assert trainer._by_document and len(bare.run()) == steps


def test_sides_of_ppo_that_sampled_other_tokens_are_not_compared(monkeypatch):
    def run(script, **_):
        side = script[2]
        told = {
            "samples_per_s": 2.0,
            "peak_mb": 1024,
            "seconds": {},
            "first_update_s": 1.0,
            "tokens": [9 if side == "trl" else 8],
        }
        return subprocess.CompletedProcess(script, 0, json.dumps(told), "")

    monkeypatch.setattr(subprocess, "run", run)
    found = gpu.ppo(True, "folder")
    assert "speed" not in found and found["comparison_failed"] and found["compiled_speed"] == 1.0


def test_memory_of_a_side_that_waits_is_counted(monkeypatch):
    model = torch.nn.Linear(1024, 1024, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 1024)).sum().backward()
    optimizer.step()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert gpu.held_gib(model, optimizer) == pytest.approx(12 * 2**20 / 2**30, rel=1e-4)


def test_what_a_machine_without_a_network_lacks_is_taken_along(tmp_path):
    freeze = tmp_path / "freeze.txt"
    everything = gpu_offline.missing({}, "3.12", "x86_64")
    assert {"transformers", "trl", "pandas", "dill"} <= everything.keys() and "torch" not in everything
    has = everything | {"transformers": "5.17.0", "numpy": "2.5.2", "huggingface-hub": "0.1"}
    lines = [f"{name}=={version}" for name, version in has.items() if name != "dill"]
    freeze.write_text("\n".join([*lines, "torch==2.11.0+cu130", "-e git+ssh://somewhere", "scipy"]))
    found = gpu_offline.missing(gpu_offline.read_list(freeze), "3.12", "x86_64")
    assert found == {name: everything[name] for name in ("transformers", "huggingface-hub", "dill")}, "older, or not there"


def test_ctrl_c_ends_a_run_for_a_machine_without_a_network(tmp_path):
    gpu_offline.write_runs(tmp_path, False)
    python, log = tmp_path / "bin" / "python3", tmp_path / "log"
    python.parent.mkdir()
    python.write_text(
        f"""#!/bin/bash
[ "$1" != -m ] || exit 0
trap 'echo stopped >> {log}; exit 1' TERM
echo "$2 $3" >> {log}
sleep 60 &
wait $!
"""
    )
    python.chmod(0o755)
    environment = os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}", "TMPDIR": str(python.parent)}
    run = subprocess.Popen(["bash", tmp_path / "run-2.sh"], env=environment, start_new_session=True)
    while not log.exists():
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=20) and log.read_text().split("\n") == ["--parts decode", "stopped", ""]
    assert list(python.parent.iterdir()) == [python], "unpacked wheels are removed"


@pytest.mark.parametrize("has_text", [False, True])
def test_the_runs_for_a_machine_without_a_network_name_parts_that_exist(has_text, tmp_path):
    gpu_offline.write_runs(tmp_path, has_text)
    asked = []
    for number in (1, 2):
        script = tmp_path / f"run-{number}.sh"
        assert not subprocess.run(["bash", "-n", script], capture_output=True).stderr
        calls = [line.split() for line in script.read_text().splitlines() if line.startswith("gpu ")]
        asked += [part for _, _, parts, *_ in calls for part in parts.split(",")]
        assert ("--text" in script.read_text()) == (has_text and number == 1)
    assert sorted(asked) == sorted({*gpu.PARTS, *["shakespeare"] * has_text})
