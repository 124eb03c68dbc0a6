"""Each wrong config of wrong_configs.py ends in its line, before anything is loaded; a handful through the real command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_types import recipe_types
from wrong_configs import rows

from llmrecipes.config import InputError
from llmrecipes.parsing import parse

ROOT = Path(__file__).parent.parent
ROWS = list(rows())
RIGHT = {
    "output_dir": "{tmp}/out",
    "datasets": "[{path: {rows}}]",
    "model_name_or_path": "{policy}",
    "tokenizer_name_or_path": "{policy}",
    "reward_model_name_or_path": "{reward}",
    "rankings_file": "{rows}",
    "models": "{sft: {policy}}",
}
OF_STAGE = {"rank": {"output_dir", "datasets", "rankings_file"}, "evaluate": {"output_dir", "datasets", "models"},
            "tokenizer": {"output_dir", "datasets"}, "ppo": {*RIGHT} - {"rankings_file", "models"}}  # fmt: skip


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("wrong")
    (tmp / "rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (tmp / "empty.jsonl").touch()
    (tmp / "a_file").write_text("x")
    (tmp / "broken.jinja").write_text("{% for message in messages %}\n{{ message.content }\n{% endfor %}")
    (tmp / "fixed.jinja").write_text("Hello {{ name }}")
    models = {
        "policy": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
        "reward": {"architectures": ["LlamaForSequenceClassification"], "model_type": "llama", "id2label": {"0": "x"}},
        "gpt2": {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_positions": 1024},
    }
    for name, config in models.items():
        (tmp / name).mkdir()
        (tmp / name / "config.json").write_text(json.dumps(config))
        tokenizer = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "<|im_end|>"}, {"content": "<|pad|>"}]}
        (tmp / name / "tokenizer.json").write_text(json.dumps(tokenizer))
    return {"tmp": tmp, "rows": tmp / "rows.jsonl", "empty": tmp / "empty.jsonl", "file": tmp / "a_file"} | {
        name: tmp / name for name in models
    }


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)


def write(tmp_path, stage, lines, paths):
    """A config that is right but for `lines`."""
    keys = OF_STAGE.get(stage, {"output_dir", "datasets", "model_name_or_path", "tokenizer_name_or_path"})
    changed = {line.removeprefix("~").partition(":")[0] for line in lines}
    right = [f"{key}: {RIGHT[key]}" for key in RIGHT if key in keys - changed]
    text = "\n".join([*(line for line in lines if not line.startswith("~")), *right, ""])
    for name, path in paths.items():
        text = text.replace(f"{{{name}}}", str(path))
    (tmp_path / f"{stage}.yaml").write_text(text)
    return tmp_path / f"{stage}.yaml"


def test_there_are_at_least_180_rows_and_each_once():
    assert len(ROWS) >= 180 and len({(stage, tuple(lines)) for stage, lines, _ in ROWS}) == len(ROWS)


@pytest.mark.parametrize(("stage", "lines", "part"), ROWS, ids=lambda value: str(value)[:60])
def test_wrong_config_ends_in_its_line(stage, lines, part, paths, tmp_path):
    config = write(tmp_path, stage, lines, paths)
    with pytest.raises(InputError) as caught:
        parse(*recipe_types(stage), argv=["--config", str(config)], inputs_exist=True)
    assert part in str(caught.value)
    assert len(caught.value.args) <= 2, "one mistake, one line (two where two keys are named)"


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward", "ppo", "pretrain", "sample", "rank", "evaluate", "tokenizer"])
def test_the_right_part_of_each_config_is_right(stage, paths, tmp_path):
    config = write(tmp_path, stage, [], paths)
    assert parse(*recipe_types(stage), argv=["--config", str(config)], inputs_exist=True)


def test_all_problems_are_told_at_once(paths, tmp_path):
    lines = ["seed: -1", "lr: 1", "eval_strategy: steps", "packing: true", "max_length: null", "lora_r: 8"]
    with pytest.raises(InputError) as caught:
        parse(*recipe_types("sft"), argv=["--config", str(write(tmp_path, "sft", lines, paths))], inputs_exist=True)
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
    command = [sys.executable, str(ROOT / "recipes" / "sft.py"), "--config", str(write(tmp_path, "sft", lines, paths))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and part in result.stderr
