"""Each wrong config of wrong_configs.py ends in its line, before anything is loaded; a handful through the real command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_types import recipe_types
from wrong_configs import make_inputs, rows, write_config

from llmrecipes.config import InputError
from llmrecipes.parsing import parse

ROOT = Path(__file__).parent.parent
ROWS = list(rows())


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("wrong"))


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)


def test_there_are_at_least_480_rows_and_each_once():
    assert len(ROWS) >= 480 and len({(stage, tuple(lines)) for stage, lines, _ in ROWS}) == len(ROWS)


@pytest.mark.parametrize(("stage", "lines", "part"), ROWS, ids=lambda value: str(value)[:60])
def test_wrong_config_ends_in_its_line(stage, lines, part, paths, tmp_path):
    config = write_config(tmp_path, stage, lines, paths)
    with pytest.raises(InputError) as caught:
        parse(*recipe_types(stage), argv=["--config", str(config)], inputs_exist=True)
    assert part in str(caught.value)
    assert len(caught.value.args) <= 2, "one mistake, one line (two where two keys are named)"


@pytest.mark.parametrize(
    "stage", ["sft", "dpo", "kto", "grpo", "reward", "ppo", "pretrain", "sample", "rank", "evaluate", "tokenizer"]
)
def test_the_right_part_of_each_config_is_right(stage, paths, tmp_path):
    config = write_config(tmp_path, stage, [], paths)
    assert parse(*recipe_types(stage), argv=["--config", str(config)], inputs_exist=True)


def test_an_unknown_annotator_is_not_told_what_the_default_one_needs(paths, tmp_path):
    config = write_config(tmp_path, "rank", ["annotator: robot", "~rankings_file"], paths)
    with pytest.raises(InputError) as caught:
        parse(*recipe_types("rank"), argv=["--config", str(config)], inputs_exist=True)
    assert len(caught.value.args) == 1


@pytest.mark.parametrize("stage", ["ppo", "sft"])
def test_compiling_without_a_compiler_is_told_beforehand(stage, paths, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    config = write_config(tmp_path, stage, ["torch_compile: true"], paths)
    with pytest.raises(InputError, match="torch_compile: needs a C\\+\\+ compiler"):
        parse(*recipe_types(stage), argv=["--config", str(config)], inputs_exist=True)


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "dpo", "kto", "grpo", "ppo"])
def test_a_precision_that_the_machine_lacks(stage, paths, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    for lines, said in (
        (["bf16: true"], "yaml:\\d+: `bf16` needs a GPU; use `bf16: auto`"),
        (["fp16: true"], "yaml:\\d+: `fp16` needs a GPU; use `bf16: auto`"),
        (["tf32: true"], "yaml:\\d+: `tf32` needs an NVIDIA GPU of Ampere's"),
        (["tf32: true", "bf16: false", "use_cpu: true"], "yaml:\\d+: `tf32` needs an NVIDIA GPU of Ampere's"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            config = write_config(tmp_path, stage, lines, paths)
            parse(*recipe_types(stage), argv=["--config", str(config)], inputs_exist=True)
        assert len(caught.value.args) == 1
    for value, bf16 in (("true", True), ("auto", False), ("false", False)):
        config = write_config(tmp_path, stage, [f"bf16: {value}", "use_cpu: true"], paths)
        training = next(c for c in parse(*recipe_types(stage), argv=["--config", str(config)]) if hasattr(c, "bf16"))
        assert training.bf16 is bf16 and ("bf16: this CPU emulates it" in capsys.readouterr().out) == (value == "true")


def test_null_on_the_command_line_is_no_data_set(tmp_path):
    with pytest.raises(InputError, match="`datasets` is null, which is not a list; name its entries"):
        parse(*recipe_types("tokenizer"), argv=["--datasets", "null", "--output_dir", str(tmp_path / "out")])


def test_an_own_interrupted_run_and_force_and_a_preview_are_in_nobodys_way(paths, tmp_path):
    config = str(write_config(tmp_path, "sft", ["seed: 3"], paths))
    out = tmp_path / "out"
    out.mkdir()
    given = parse(*recipe_types("sft"), argv=["--config", config])[0].given
    for status in ("running", "finished"):
        run = {"stage": "sft", "status": status, "fingerprint": "1", "given": given}
        (out / "manifest.json").write_text(json.dumps(run))
        argv = ["--config", config, "--output_dir", str(out)]
        parse(*recipe_types("sft"), argv=argv, inputs_exist=True)
    argv += ["--learning_rate", "1e-3"]
    with pytest.raises(InputError, match="holds another run"):
        parse(*recipe_types("sft"), argv=argv, inputs_exist=True)
    for way in ("--force", "--preview=1"):
        parse(*recipe_types("sft"), argv=[*argv, way], inputs_exist=True)


def test_parts_of_the_world_are_those_that_it_has():
    from llmrecipes.data.tinytown import SPLITS
    from llmrecipes.preflight.places import TINYTOWN

    assert TINYTOWN == SPLITS


def test_all_problems_are_told_at_once(paths, tmp_path):
    lines = ["seed: -1", "lr: 1", "eval_strategy: steps", "packing: true", "max_length: null", "lora_r: 8"]
    with pytest.raises(InputError) as caught:
        parse(*recipe_types("sft"), argv=["--config", str(write_config(tmp_path, "sft", lines, paths))], inputs_exist=True)
    assert len(caught.value.args) == 5
    for key in ("seed", "learning_rate", "eval_strategy", "packing", "lora_r"):
        assert key in str(caught.value)


REAL = [  # line, part of the answer; through the shell, as a user would
    (["learning_rate: .inf"], "must be a finite number"),
    (["~output_dir"], "output_dir: is missing"),
    (["datasets: nix.jsonl"], "nix.jsonl does not exist"),
]


@pytest.mark.parametrize(("lines", "part"), REAL)
def test_real_command_prints_one_line_and_exits_2(lines, part, paths, tmp_path):
    command = [
        sys.executable,
        str(ROOT / "recipes" / "sft.py"),
        "--config",
        str(write_config(tmp_path, "sft", lines, paths)),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and part in result.stderr


def test_links_that_lead_nowhere_and_long_names_are_no_folder_for_a_run(paths, tmp_path):
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to("circle")
    cases = (("gone", "a link to what is not there"), ("gone/sub", "a link to what"), ("circle", "in a circle"))
    for name, part in (*cases, ("n" * 300, "cannot be a folder")):
        config = str(write_config(tmp_path, "sft", [f"output_dir: {tmp_path / name}"], paths))
        with pytest.raises(InputError, match=part) as caught:
            parse(*recipe_types("sft"), argv=["--config", config], inputs_exist=True)
        assert len(caught.value.args) == 1


def test_a_chains_folder_that_is_a_file_is_told_before_its_stages_run(tmp_path):
    (tmp_path / "a_file").write_text("x")
    chain = Path(__file__).parent.parent / "configs/smoke/pipeline.yaml"
    argv = ["--config", str(chain), "--output_dir", str(tmp_path / "a_file")]
    with pytest.raises(InputError, match="a_file is a file; name a folder"):
        parse(*recipe_types("pipeline"), argv=argv, inputs_exist=True)
