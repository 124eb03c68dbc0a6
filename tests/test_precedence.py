"""What the command line makes void in the YAML is left out with a line; within one of the two it stays an error."""

import warnings

import pytest
from recipe_types import recipe_types
from wrong_configs import make_inputs, write_config

from llmrecipes.config import InputError
from llmrecipes.parsing import parse

CASES = [  # stage, lines of the YAML, command line, the keys that give way
    ("sft", "num_train_epochs: 3", "--max_steps 10", "num_train_epochs"),
    ("sft", "max_steps: 500", "--num_train_epochs 0.01", "max_steps"),
    ("ppo", "num_train_epochs: 3", "--max_steps 10", "num_train_epochs"),
    ("dpo", "eval_datasets: [{rows}]", "--test_split_size 0.1", "eval_datasets"),
    ("dpo", "test_split_size: 0.1", "--eval_datasets {rows}", "test_split_size"),
    (
        "sft",
        "eval_datasets: [{rows}]; eval_strategy: epoch; eval_on_start: true",
        "--eval_datasets []",
        "eval_strategy eval_on_start",
    ),
    (
        "sft",
        "lr_scheduler_type: cosine_with_min_lr; lr_scheduler_kwargs: {min_lr_rate: 0.1}; warmup_steps: 5",
        "--lr_scheduler_type constant",
        "lr_scheduler_kwargs warmup_steps",
    ),
    (
        "sft",
        "lr_scheduler_type: cosine_with_min_lr; lr_scheduler_kwargs: {min_lr_rate: 0.1}; warmup_steps: 5",
        "--lr_scheduler_type linear",
        "lr_scheduler_kwargs",
    ),
    ("sft", "use_peft: true; lora_r: 8; use_rslora: true", "--use_peft false", "lora_r use_rslora"),
    ("sft", "bf16: true", "--fp16", "bf16"),
    ("sft", "activation_checkpointing: true", "--no_gradient_checkpointing", "activation_checkpointing"),
    ("dpo", "loss_type: [robust]; label_smoothing: 0.1", "--loss_type ipo", "label_smoothing"),
    ("pretrain", "optimizer: muon; muon_learning_rate: 0.02", "--optimizer adamw", "muon_learning_rate"),
    (
        "evaluate",
        "judge: llm; judge_url: http://a/v1; judge_model: m; judge_pairs: true; models: {sft: {policy}, b: {policy}}",
        "--judge a:b",
        "judge_url judge_model judge_pairs",
    ),
]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("precedence"))


@pytest.mark.parametrize(("stage", "lines", "argv", "dropped"), CASES, ids=lambda value: str(value)[:40])
def test_command_line_wins_with_a_line(stage, lines, argv, dropped, paths, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("llmrecipes.parsing.check_machine", lambda *args: [])
    monkeypatch.setattr("llmrecipes.parsing.settle_precision", lambda *args: None)
    monkeypatch.setattr("llmrecipes.parsing.build", lambda types, settings: (settings,))
    config = write_config(tmp_path, stage, lines.split("; "), paths)
    words = ["--config", str(config), *argv.format(**paths).split()]
    (settings,) = parse(*recipe_types(stage), argv=words, inputs_exist=True)
    said = capsys.readouterr().err
    for key in dropped.split():
        assert key not in settings.values
        assert f": {key}: left out because of the command line: " in said
    assert said.count("left out because") == len(dropped.split())


def test_run_is_the_same_as_without_what_gave_way(paths, tmp_path):
    runs = []
    for lines in (["num_train_epochs: 3"], []):
        argv = ["--config", str(write_config(tmp_path, "sft", lines, paths)), "--max_steps", "10"]
        run, *configs = parse(*recipe_types("sft"), argv=argv)
        training = next(config for config in configs if hasattr(config, "max_steps"))
        assert training.max_steps == 10
        runs.append(run.given)
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("lines", "argv", "part"),
    [
        (["num_train_epochs: 3", "max_steps: 9"], ["--seed", "1"], "has no effect beside `max_steps: 9`"),
        ([], ["--num_train_epochs", "3", "--max_steps", "9"], "command line: num_train_epochs: has no effect"),
        (["lora_r: 8"], ["--use_peft", "false"], "lora_r: has no effect without `use_peft: true`"),
        (["max_steps: 9"], ["--max_steps", "8", "--num_train_epochs", "3"], "command line: num_train_epochs"),
    ],
)
def test_within_one_of_them_it_is_an_error(lines, argv, part, paths, tmp_path):
    config = write_config(tmp_path, "sft", lines, paths)
    with pytest.raises(InputError) as caught:
        parse(*recipe_types("sft"), argv=["--config", str(config), *argv])
    assert part in str(caught.value)


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "grpo", "reward", "ppo", "pretrain"])
def test_no_warning_of_a_key_that_nobody_gave(stage, tmp_path):
    """TRL turns checkpointing on under its older name; a user's own older name is still warned of."""
    config = write_config(tmp_path, stage, [], make_inputs(tmp_path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FutureWarning)
        plain = parse(*recipe_types(stage), argv=["--config", str(config)])
        assert not [w for w in caught if "checkpointing" in str(w.message)]
        older = parse(*recipe_types(stage), argv=["--config", str(config), "--gradient_checkpointing"])
    assert len([w for w in caught if "`gradient_checkpointing` is deprecated" in str(w.message)]) == 1
    by_default = stage not in ("ppo", "pretrain")
    for configs, expected in ((plain, by_default), (older, True)):
        [args] = [c for c in configs if hasattr(c, "activation_checkpointing")]
        assert args.activation_checkpointing is args.gradient_checkpointing is expected
