"""What a launch says beforehand: help, resolved values, warnings, a full disk, a Hub that refuses."""

import os
import shlex
import sys
from types import SimpleNamespace

import pytest
from parsing_toys import SFT, error_of, write

from llmrecipes.keys import keys_of, recipe_keys
from llmrecipes.manifest import ROOT
from llmrecipes.parsing import collect, parse, read_argv
from llmrecipes.preflight import contradictions, disk, ineffective, machine, remarks


def test_help_shows_what_a_recipe_does_our_own_keys_first_in_groups_and_all_about_one(capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "SFT: answers.\n\nLaunch: so\n")
    with pytest.raises(SystemExit) as left:
        parse(*SFT, argv=["--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0 and text.startswith("SFT: answers.\n\nLaunch: so\n\nOptions: --config")
    titles = ["Run card", "Data", "Model", "LoRA and quantisation", "Method", "Training", "Other training keys"]
    places = [text.index(f"\n{title}\n") for title in titles]
    assert places == sorted(places) and "    max_rows:" in text and max(map(len, text.splitlines())) <= 130
    with pytest.raises(SystemExit):
        parse(*SFT, argv=["--help", "learning_rate", "packing_strategy"])
    text = capsys.readouterr().out
    assert "2e-05" in text and "at least 0" in text and "bfd_split" in text
    assert "use `learning_rate`" in error_of(None, "", "--help", "lr")
    assert "did you mean `packing`" in error_of(None, "", "--help", "packin")


def test_print_config_shows_each_value_and_where_it_was_given(tmp_path, capsys):
    config = write(tmp_path, "learning_rate: 1e-4\noutput_dir: o\nreport_to: none\nhub_token: null\n")
    with pytest.raises(SystemExit) as left:
        parse(*SFT, argv=["--config", config, "--seed", "3", "--print_config"], inputs_exist=True)
    lines = capsys.readouterr().out.splitlines()
    assert left.value.code == 0
    assert f"learning_rate: 0.0001  # {config}:1" in lines and "seed: 3  # command line" in lines
    assert "weight_decay: 0.0" in lines[lines.index("# by default") :]


def test_a_launch_with_another_global_batch_is_a_warning_that_is_true(tmp_path, capsys, monkeypatch):
    config = write(
        tmp_path,
        f"global_batch_size: 64\nper_device_train_batch_size: 4\noutput_dir: {tmp_path}/o\nreport_to: none\n"
        "datasets: tinytown\nmodel_name_or_path: people/model\n",
    )
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    settings, _, problems = collect(read_argv(["--config", config]), all_keys_of(SFT))
    assert problems == []
    (line,) = remarks(settings)
    assert "says 64, this launch has 8" in line and "`gradient_accumulation_steps: 8` makes it so" in line
    settings.values["gradient_accumulation_steps"] = 8
    assert remarks(settings) == []
    settings.values |= {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 1}
    (line,) = remarks(settings)
    assert line.endswith("; `per_device_train_batch_size: 32, gradient_accumulation_steps: 1` makes it so")


def test_the_run_card_of_a_stage_without_training_is_read_too():
    words = ["--num_gpus", "2", "--global_batch_size", "8"]
    settings, _, problems = collect(read_argv(words), recipe_keys(ROOT / "recipes" / "sample.py"))
    told = [
        "num_gpus: the run card is for 2 processes, this launch has 1",
        "global_batch_size: has no effect: nothing is trained",
    ]
    assert problems == [] and [line.partition(" here")[0] for line in remarks(settings)] == [
        f"command line: {t}" for t in told
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--num_gpus 2", "num_gpus: has no effect on a chain; give it in the stages' YAMLs"),
        ("--loop sample rank", "loop: has no effect without `rounds`"),
        ("--loop sample rank --rounds 2", None),
    ],
)
def test_keys_that_a_chain_does_not_read_are_named(words, told):
    settings, _, problems = collect(read_argv(words.split()), recipe_keys(ROOT / "recipes" / "pipeline.py"))
    assert problems == [] and remarks(settings) == ([f"command line: {told}"] if told else [])


@pytest.mark.parametrize("held_out", ["", "test_split_size: 8\n"])
def test_keys_of_an_evaluation_are_named_where_nothing_is_held_out(tmp_path, held_out):
    path = write(tmp_path, f"packing: true\neval_packing: true\nper_device_eval_batch_size: 2\n{held_out}")
    settings, _, problems = collect(read_argv(["--config", path]), all_keys_of(SFT))
    told = [line.partition(": ")[2] for line in remarks(settings)]
    without = "has no effect without held-out rows (`eval_datasets` or `test_split_size`)"
    named = ["eval_packing", "per_device_eval_batch_size"] if not held_out else []
    assert problems == [] and sorted(told) == [f"{key}: {without}" for key in named]


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        (
            ["{rows}", "{{path: {rows}, split: train}}", "b.jsonl"],
            "is named twice: its rows are read twice, and count 2 beside",
        ),
        (["{rows}", "{rows}", "./rows.jsonl"], "is named 3 times: its rows are read 3 times, and count 3 beside"),
        (["{rows}", "{{path: {rows}, columns: [a]}}"], ""),
        (["{{path: tinytown, name: demonstrations}}", "{{path: tinytown, name: questions, split: test}}"], ""),
        (["{{path: {rows}, weight: 1}}", "{{path: {rows}, weight: 1}}"], ""),
    ],
)
def test_a_source_that_is_named_twice_is_told_unless_weights_say_what_for(tmp_path, monkeypatch, sources, told):
    monkeypatch.chdir(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    path = write(tmp_path, f"datasets: [{', '.join(sources)}]\n".format(rows=rows))
    settings, _, problems = collect(read_argv(["--config", path]), all_keys_of(SFT))
    advice = "; name it once, or give every source a `weight`"
    lines = [f"datasets: {rows} {told} those of others{advice}"] if told else []
    assert problems == [] and [line.partition(": ")[2] for line in remarks(settings)] == lines


def test_simulated_raters_are_named_where_the_yaml_itself_has_another_annotator(tmp_path):
    path = write(tmp_path, "annotator: file\nrankings_file: r.jsonl\nrater_noise: [0.1]\n")
    keys = recipe_keys(ROOT / "recipes" / "rank.py")
    (line,) = remarks(collect(read_argv(["--config", path]), keys)[0])
    assert "rater_noise: has no effect with `annotator: file`, only with simulated" in line
    assert remarks(collect(read_argv(["--config", path, "--annotator", "page"]), keys)[0]) == []


def test_a_plan_for_other_gpus_is_no_launch():
    settings, _, problems = collect(read_argv(["--num_gpus", "8"]), keys_of("recipes.plan:PlanArguments"))
    assert problems == [] and remarks(settings) == []


def test_what_merging_and_the_corpus_do_not_read_is_named():
    for recipe, word, told in (
        ("merge", "--seed", "drawn"),
        ("corpus", "--seed", "drawn"),
        ("merge", "--attn_implementation", "computed"),
    ):
        value = "1" if word == "--seed" else "eager"
        settings, _, problems = collect(read_argv([word, value]), recipe_keys(ROOT / "recipes" / f"{recipe}.py"))
        (line,) = settings.lines(ineffective(settings))
        assert problems == [] and f"{word[2:]}: has no effect: nothing is {told}" in line


def test_the_health_check_refuses_what_it_does_not_read():
    words = ["--tokenizer_name_or_path", "x", "--health_check", "false"]
    settings, _, problems = collect(read_argv(words), recipe_keys(ROOT / "recipes" / "health.py"))
    told = ["tokenizer_name_or_path: has no effect here", "health_check: is all that this recipe does"]
    assert problems == [] and [line[14:].partition(";")[0] for line in contradictions(settings)] == told


@pytest.mark.parametrize(("warmup", "is_told"), [("10", True), ("40", True), ("9", False), ("0.5", False)])
def test_a_warmup_that_takes_all_steps_is_a_warning(warmup, is_told):
    settings, _, problems = collect(read_argv(["--max_steps", "10", "--warmup_steps", warmup]), all_keys_of(SFT))
    told = f"command line: warmup_steps: is {warmup}, but max_steps is 10: `learning_rate` is never reached"
    assert problems == [] and (told in "".join(remarks(settings))) == is_told


def all_keys_of(types):
    return {name: key for config_type in types for name, key in keys_of(config_type).items()}


def test_disk_without_room_for_result_and_checkpoint_is_an_error(tmp_path, monkeypatch):
    import torch
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1000, 1000)}, tmp_path / "model.safetensors")
    settings, _, _ = collect(
        read_argv(["--model_name_or_path", str(tmp_path), "--output_dir", str(tmp_path / "o")]), all_keys_of(SFT)
    )
    assert disk.bytes_needed(settings) == (16e6, 52e6)
    assert not list(disk.room(settings))
    free = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=15e6 // free.f_frsize, f_frsize=free.f_frsize))
    assert ["the result and one checkpoint take about 16.0 MB" in text for _, text in disk.room(settings)] == [True]
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=20e6 // free.f_frsize, f_frsize=free.f_frsize))
    assert not list(disk.room(settings)) and len(list(disk.room_for_all(settings))) == 1


def test_hub_is_asked_before_training_whether_a_push_would_be_let_in(monkeypatch):
    settings, _, _ = collect(read_argv(["--push_to_hub"]), all_keys_of(SFT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in next(machine.hub(settings))[1]
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")

    def whoami(self):
        raise OSError("401 Client Error")

    monkeypatch.setattr("huggingface_hub.HfApi.whoami", whoami)
    assert "does not let this token in (401 Client Error)" in next(machine.hub(settings))[1]
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda self: {"name": "me"})
    assert not list(machine.hub(settings))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--eval_delay 1", "eval_delay: has no effect without `eval_strategy`"),
        ("--watch_items 3", "watch_items: has no effect without `watch_steps`"),
        ("--watch_max_new_tokens 3", "watch_max_new_tokens: has no effect without `watch_steps`"),
        ("--watch_steps 5 --watch_temperature 0.5", "watch_temperature: has no effect without `watch_questions`"),
        ("--watch_steps 5 --watch_items 3", "watch_items: has no effect without `watch_tasks`"),
        ("--save_strategy epoch --save_steps 5", "save_steps: has no effect with `save_strategy: epoch`"),
        ("--save_strategy no --save_total_limit 2", "save_total_limit: counts only checkpoints that interruptions leave"),
        ("--logging_strategy epoch --logging_steps 5", "logging_steps: has no effect with `logging_strategy: epoch`"),
        ("--run_name mine", "run_name: has no effect without `report_to`"),
        ("--run_name mine --report_to tensorboard", "run_name: has no effect with `report_to: tensorboard`"),
        ("--project mine --report_to wandb", "project: has no effect with `report_to: wandb`, only with trackio"),
        ("--ddp_bucket_cap_mb 5", "ddp_bucket_cap_mb: has no effect in a single process"),
        ("--average_tokens_across_devices false", "average_tokens_across_devices: has no effect in a single process"),
        ("--judge_url http://host/v1", "judge_url: has no effect without `watch_steps`"),
        ("--disable_tqdm", "disable_tqdm: has no effect: a training prints lines"),
        ("--remove_unused_columns false", "remove_unused_columns: has no effect: further columns"),
        ("--local_rank 1", "local_rank: has no effect: the launcher tells"),
        ("--use_peft --lora_dropout 0.1", "lora_dropout: has no effect with `disable_dropout: true`"),
    ],
)
def test_keys_that_nothing_reads_are_named(words, told, stage="kto"):
    settings, _, problems = collect(read_argv(shlex.split(words)), recipe_keys(ROOT / "recipes" / f"{stage}.py"))
    assert problems == []
    (line,) = settings.lines(ineffective(settings))
    assert line.startswith(f"command line: {told}")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--data_seed 3 --train_sampling_strategy sequential", "data_seed: has no effect with `train_sampling_strategy"),
        ("--packing --pad_to_multiple_of 8", "pad_to_multiple_of: has no effect on rows without padding"),
    ],
)
def test_keys_of_sft_that_nothing_reads_are_named(words, told):
    test_keys_that_nothing_reads_are_named(words, told, "sft")


ROLLOUT = "--gradient_accumulation_steps 4 --per_device_train_batch_size 8"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--epsilon 0.1", "epsilon: has no effect: each rollout is used in one step"),
        (f"--delta 3 {ROLLOUT} --steps_per_generation 2 --num_iterations 2", "delta: has no effect: each rollout"),
        (f"--epsilon_high 0.3 {ROLLOUT} --generation_batch_size 32", "epsilon_high: has no effect: each rollout"),
        ("--off_policy_mask_threshold 0.1", "off_policy_mask_threshold: has no effect: each rollout"),
        ("--loss_type vespo --vespo_k_pos 3", "vespo_k_pos: has no effect: each rollout"),
        ("--max_tool_calling_iterations 2", "max_tool_calling_iterations: has no effect: no tools"),
        ("--log_completions --log_unique_prompts", "log_unique_prompts: has no effect without `report_to: trackio`"),
        ("--data_seed 3 --shuffle_dataset false", "data_seed: has no effect with `shuffle_dataset: false`"),
        ("--log_multimodal false", "log_multimodal: has no effect: prompts are text"),
        ("--ds3_gather_for_generation false", "ds3_gather_for_generation: has no effect without DeepSpeed"),
        ("--cast_lm_head_to_fp32 --bf16 false", "cast_lm_head_to_fp32: has no effect: all is float32"),
    ],
)
def test_keys_of_grpo_that_nothing_reads_are_named(words, told):
    test_keys_that_nothing_reads_are_named(words, told, "grpo")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--num_completions_to_print 1", "num_completions_to_print: has no effect without held-out prompts"),
        (
            "--num_completions_to_print 1 --test_split_size 4 --log_completions false",
            "num_completions_to_print: has no effect with `log_completions: false`",
        ),
        (
            "--missing_eos_penalty 1 --mask_truncated_completions",
            "missing_eos_penalty: has no effect with `mask_truncated_completions`",
        ),
        ("--kl_target 5 --kl_coef 0", "kl_target: has no effect with `kl_coef: 0`"),
        ("--vf_coef 0 --cliprange_value 0.1", "cliprange_value: has no effect with `vf_coef: 0`"),
        ("--use_cache", "use_cache: has no effect: sampling has its cache"),
        ("--offload_frozen_models --use_cpu", "offload_frozen_models: has no effect on a CPU"),
        ("--data_seed 3 --shuffle_dataset false", "data_seed: has no effect with `shuffle_dataset: false`"),
    ],
)
def test_keys_of_ppo_that_nothing_reads_are_named(words, told):
    test_keys_that_nothing_reads_are_named(words, told, "ppo")


@pytest.mark.parametrize("stage", ["sft", "pretrain", "dpo", "kto", "reward", "grpo", "ppo"])
def test_tokens_are_counted_over_processes_where_the_loss_is_their_mean(stage, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["--average_tokens_across_devices", "false"]
    settings, _, _ = collect(read_argv(words), recipe_keys(ROOT / "recipes" / f"{stage}.py"))
    assert [key for key, _ in ineffective(settings)] == [words[0][2:]] * (stage not in ("sft", "pretrain"))


@pytest.mark.parametrize("words", ["--num_iterations 2", "--steps_per_generation 2", "--generation_batch_size 64"])
def test_ratios_that_leave_one_are_clipped(words):
    words = f"--epsilon 0.1 --epsilon_high 0.3 --delta 3 --per_device_train_batch_size 8 {words}"
    settings, _, problems = collect(read_argv(words.split()), recipe_keys(ROOT / "recipes" / "grpo.py"))
    assert problems == [] and not [*ineffective(settings)]


@pytest.mark.parametrize(
    ("words", "processes"),
    [
        ("--ddp_bucket_cap_mb 5", 2),
        ("--ddp_timeout 1800 --local_rank -1", 1),
        ("--use_peft --lora_dropout 0.1 --disable_dropout false", 1),
        ("--use_peft --lora_dropout 0", 1),
        ("--run_name mine --report_to wandb", 1),
        ("--activation_checkpointing_kwargs '{use_reentrant: true}'", 1),  # on by default in KTO
        ("--run_name mine --report_to none", 1),  # that is how to turn tracking off
        ("--project mine --report_to trackio tensorboard", 1),
    ],
)
def test_keys_that_something_reads_are_not_named(words, processes, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    settings, _, problems = collect(read_argv(shlex.split(words)), recipe_keys(ROOT / "recipes" / "kto.py"))
    assert problems == [] and not [*contradictions(settings), *ineffective(settings)]


def test_a_static_graph_of_accumulated_gradients_is_refused_in_several_processes(monkeypatch):
    words = "--ddp_static_graph --gradient_accumulation_steps 2".split()
    settings, _, _ = collect(read_argv(words), recipe_keys(ROOT / "recipes" / "sft.py"))
    assert not list(machine.packages(settings))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [key for key, _ in machine.packages(settings)] == ["ddp_static_graph"]
