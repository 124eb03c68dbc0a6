"""Old configs become ours: what is written parses, what is not translated is said. Shapes of alignment-handbook's 22 YAMLs,
LlamaFactory's and axolotl's examples, in our own words."""

import itertools
import re
from pathlib import Path

import pytest
import yaml

from llmrecipes.keys import recipe_keys
from llmrecipes.keys.renamed import GONE, RENAMES, hint
from llmrecipes.migrate import RECIPES, main, migrate, render
from llmrecipes.parsing import Options, collect, parse
from llmrecipes.preflight import contradictions

TEMPLATE = "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
MIXTURE = """
dataset_mixture:
  datasets:
    - {id: people/chats, config: default, split: train_sft, columns: [messages], weight: 1.0}
    - {id: people/more, config: default, split: test_sft, columns: [messages], weight: 0.5}
  test_split_size: 100
  seed: 0
"""
ONE = "dataset_name: people/chats\ndataset_config: all\ndataset_train_split: train\ndataset_test_split: test\n"
MIXER = "dataset_mixer: {people/pairs: 1.0}\ndataset_splits: [train_prefs, test_prefs]\n"
MODEL = """
model_name_or_path: people/base-7b
model_revision: main
torch_dtype: bfloat16
attn_implementation: flash_attention_2
"""
TRAIN = """
bf16: true
do_eval: true
eval_strategy: epoch
gradient_accumulation_steps: 2
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: false}
hub_model_id: my-model
hub_strategy: every_save
push_to_hub: true
learning_rate: 2.0e-05
log_level: info
logging_steps: 5
logging_strategy: steps
lr_scheduler_type: cosine
max_steps: -1
num_train_epochs: 1
output_dir: data/my-model
overwrite_output_dir: true
per_device_eval_batch_size: 8
per_device_train_batch_size: 16
remove_unused_columns: true
report_to: [tensorboard, wandb]
save_strategy: "no"
seed: 42
warmup_ratio: 0.1
dataset_num_proc: 12
"""
LORA = """
use_peft: true
load_in_4bit: true
lora_r: 16
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj]
"""
SFT = {
    "full": "packing: true\nmax_seq_length: 2048\n",
    "template": yaml.safe_dump({"chat_template": TEMPLATE}) + "max_length: 2048\npacking: true\n",
    "kwargs": "max_seq_length: 8192\ndataset_kwargs: {add_special_tokens: false, append_concat_token: false}\n",
    "reasoning": "max_length: 32768\npacking: true\npacking_strategy: ffd\nassistant_only_loss: true\n"
    "use_liger_kernel: true\n"
    "lr_scheduler_kwargs: {min_lr_rate: 0.1}\ntrust_remote_code: true\naverage_tokens_across_devices: true\n",
    "qlora": LORA + "max_seq_length: 2048\n",
}
DPO = {
    "full": "beta: 0.01\nmax_length: 1024\nmax_prompt_length: 512\noptim: adamw_torch\n",
    "qlora": LORA + "beta: 0.01\nmax_length: 1024\nmax_prompt_length: 512\noptim: paged_adamw_32bit\neval_steps: 100\n",
    "scan": "beta: 0.5\nloss_type: sigmoid\nmax_length: 1024\nmax_prompt_length: 1792\nhub_model_revision: dpo-beta-0.01\n",
    "apo": "beta: 0.05\nloss_type: apo_zero\nmax_length: 24576\npadding_free: true\nmax_grad_norm: 0.2\nsave_steps: 0.5\n",
}
HANDBOOK = {
    f"{stage} {name} {data_name}": (stage, MODEL + data + TRAIN + text)
    for stage, shapes in (("sft", SFT), ("dpo", DPO))
    for (name, text), (data_name, data) in itertools.product(
        shapes.items(), (("mixture", MIXTURE), ("one", ONE), ("mixer", MIXER))
    )
}
LLAMAFACTORY = """
model_name_or_path: people/base-8b
trust_remote_code: true
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
pref_beta: 0.1
pref_loss: sigmoid
dataset: my_pairs
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4
output_dir: saves/llama3-8b/lora/dpo
logging_steps: 10
save_steps: 500
plot_loss: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
val_size: 0.1
eval_strategy: steps
eval_steps: 500
deepspeed: examples/deepspeed/ds_z3_config.json
"""
AXOLOTL = """
base_model: people/base-8b
model_type: AutoModelForCausalLM
tokenizer_type: AutoTokenizer
load_in_8bit: false
datasets:
  - {path: people/instructions, type: alpaca, split: train}
  - {path: mine.jsonl, ds_type: json, type: chat_template, field_messages: talk}
dataset_prepared_path: last_run_prepared
val_set_size: 0.05
adapter: qlora
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
sequence_len: 4096
sample_packing: true
pad_to_sequence_len: true
wandb_project: llama
wandb_name: first
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 2e-4
train_on_inputs: false
bf16: auto
fp16:
tf32: false
gradient_checkpointing: true
flash_attention: true
warmup_steps: 10
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
special_tokens: {pad_token: "<|end_of_text|>"}
early_stopping_patience: 3
"""


def problems_of(text, stage, tmp_path):
    (tmp_path / "new.yaml").write_text(text)
    settings, _, problems = collect(Options({}, config=str(tmp_path / "new.yaml")), recipe_keys(RECIPES / f"{stage}.py"))
    return problems + contradictions(settings)


@pytest.mark.parametrize("name", HANDBOOK)
def test_a_handbook_config_migrates_to_one_that_parses(name, tmp_path):
    stage, old = HANDBOOK[name]
    draft = migrate(yaml.safe_load(old), f"recipes/people/{stage}/config.yaml")
    assert draft.stage == stage
    text = render(draft, "old.yaml", None)
    assert problems_of(text, stage, tmp_path) == []
    values = yaml.safe_load(text)
    assert values["dtype"] == "bfloat16" and values["warmup_steps"] == 0.1 and values["bf16"] == "auto"
    assert values["datasets"] and ("eval_datasets" in values or "test_split_size" in values)
    written = set(values) | set(draft.lost) | set(draft.needless)
    for key in yaml.safe_load(old):  # each old key is written, under whatever name, or named as not translated
        parts = ("dataset_", "torch_dtype", "warmup_ratio", "gradient_checkpointing", "max_seq_length", "hub_model_revision")
        assert key in written or key.startswith(parts) or key == "chat_template" and draft.template, key


def test_shares_of_sources_become_slices_and_one_data_set_its_splits():
    old = yaml.safe_load(MIXTURE + "output_dir: o\n")
    sources = migrate(old, "sft.yaml").values["datasets"]
    assert sources[0] == {"path": "people/chats", "name": "default", "split": "train_sft", "columns": ["messages"]}
    assert sources[1]["split"] == "test_sft[:50%]"
    values = migrate(yaml.safe_load(ONE + "eval_strategy: steps\n"), "sft.yaml").values
    assert values["datasets"] == [{"path": "people/chats", "name": "all", "split": "train"}]
    assert values["eval_datasets"] == [{"path": "people/chats", "name": "all", "split": "test"}]


def test_a_mixtures_seed_is_not_dropped_in_silence():
    old = {"dataset_mixture": {"datasets": [{"id": "people/chats"}], "seed": 3}, "output_dir": "o"}
    assert "dataset_mixture.seed" in migrate(old, "sft.yaml").lost


def test_nothing_translated_is_an_error(tmp_path, capsys):
    (tmp_path / "old.yaml").write_text("nobody_knows_this: 1\n")
    with pytest.raises(SystemExit) as left:
        main([str(tmp_path / "old.yaml")])
    assert left.value.code == 2 and "nothing in it could be translated" in capsys.readouterr().err


def test_llamafactory_config(tmp_path):
    draft = migrate(yaml.safe_load(LLAMAFACTORY), "llama3_lora_dpo.yaml")
    text = render(draft, "old.yaml", None)
    assert draft.tool == "LlamaFactory" and draft.stage == "dpo" and problems_of(text, "dpo", tmp_path) == []
    values = yaml.safe_load(text)
    assert values["datasets"] == [{"path": "my_pairs", "max_rows": 1000}] and "dataset my_pairs" in draft.lost
    assert values["lora_target_modules"] == ["all-linear"] and values["lora_r"] == 8 and values["lora_alpha"] == 16
    assert values["use_peft"] is True and values["loss_type"] == ["sigmoid"] and values["test_split_size"] == 0.1
    assert "zero3.yaml" in draft.lost["deepspeed"] and "template" in draft.lost


def test_axolotl_config(tmp_path):
    draft = migrate(yaml.safe_load(AXOLOTL), "qlora.yml")
    text = render(draft, "old.yaml", None)
    assert draft.tool == "axolotl" and draft.stage == "sft" and problems_of(text, "sft", tmp_path) == []
    values = yaml.safe_load(text)
    assert values["datasets"][0] == {"path": "people/instructions", "split": "train"}
    assert values["load_in_4bit"] and values["use_peft"] and values["packing"] and values["max_length"] == 4096
    assert values["eval_steps"] == values["save_steps"] / 4 == 0.0625 and values["learning_rate"] == 2e-4
    assert values["pad_token"] == "<|end_of_text|>" and values["env"] == {"WANDB_PROJECT": "llama"}
    assert {"early_stopping_patience", "datasets.field_messages", "datasets.type"} <= set(draft.lost)


def test_a_file_of_another_encoding_is_one_line_about_itself(tmp_path, capsys):
    (tmp_path / "old.yaml").write_bytes("output_dir: Müller\n".encode("latin-1"))
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "old.yaml")])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'old.yaml'}: is not UTF-8; save it as UTF-8\n"


def test_what_is_written_builds_the_dataclasses(tmp_path):
    stage, old = HANDBOOK["sft full mixture"]
    (tmp_path / "new.yaml").write_text(render(migrate(yaml.safe_load(old), "sft.yaml"), "old.yaml", None))
    types = ("llmrecipes.config:DataArguments", "trl.trainer.sft_config:SFTConfig", "llmrecipes.config:ModelArguments")
    data, training, model = parse(*types, argv=["--config", str(tmp_path / "new.yaml"), "--report_to", "none"])
    assert len(data.datasets) == 2 and training.max_length == 2048 and model.dtype == "bfloat16"


@pytest.mark.parametrize("method", ["orpo", "simpo"])
def test_a_method_that_is_not_here_is_said(method):
    draft = migrate({"beta": 0.05, "output_dir": "o"}, f"recipes/big/{method}/config.yaml")
    assert method.upper() in draft.lost["method"]


@pytest.mark.parametrize("method", ["kto", "grpo"])
def test_a_method_with_a_recipe_is_written_for_it(method):
    draft = migrate({"rl": method, "beta": 0.05, "learning_rate": 1e-6, "output_dir": "o"}, "config.yaml")
    assert draft.stage == method and "method" not in draft.lost and draft.values["beta"] == 0.05


def test_two_old_keys_of_one_meaning_are_never_dropped_in_silence():
    twice = migrate({"model_name_or_path": "m", "eval_strategy": "no", "evaluation_strategy": "epoch"}, "sft.yaml")
    assert "'no' is kept" in twice.lost["eval_strategy: 'epoch'"]
    modules = {"base_model": "m", "adapter": "lora", "lora_target_modules": ["q_proj"], "lora_target_linear": True}
    assert migrate(modules, "a.yml").values["lora_target_modules"] == ["all-linear"]  # axolotl trains the union
    for order in (("loss_type", "rpo_alpha"), ("rpo_alpha", "loss_type")):
        old = {"loss_type": "hinge", "rpo_alpha": 0.5}
        values = migrate({key: old[key] for key in order}, "dpo.yaml").values
        assert (values["loss_type"], values["loss_weights"]) == (["hinge", "sft"], [1.0, 0.5])
    ppo = migrate({"stage": "ppo", "cutoff_len": 9, "template": "x", "max_new_tokens": 64}, "p.yaml", "ppo")
    assert ppo.values["max_completion_length"] == 64


def test_every_old_name_has_a_hint_in_some_stage():
    stages = [recipe_keys(RECIPES / f"{stage}.py") for stage in ("sft", "dpo", "reward", "ppo", "pretrain")]
    for old in {*RENAMES, *GONE}:
        assert any(hint(old, keys) for keys in stages), old


def test_command_writes_yaml_template_and_a_line(tmp_path, capsys):
    old = tmp_path / "old.yaml"
    old.write_text(yaml.safe_dump({"model_name_or_path": "people/base", "chat_template": TEMPLATE, "max_seq_length": 64}))
    main([str(old), "--template", str(tmp_path / "t.jinja")])
    out = capsys.readouterr()
    assert Path(tmp_path / "t.jinja").read_text() == TEMPLATE
    assert yaml.safe_load(out.out)["chat_template_path"] == str(tmp_path / "t.jinja") and "not translated" in out.err
    main([str(old)])
    assert "--template FILE.jinja" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--stage", "dpo", "--stage=sft"], "--stage is given twice; give it once"),
        (["--stage", "orpo"], "argument --stage: invalid choice: 'orpo'"),
        (["--stag", "dpo"], "unrecognized arguments: --stag"),
    ],
)
def test_a_command_line_that_is_wrong_is_one_line(words, line, tmp_path, capsys):
    (tmp_path / "old.yaml").write_text("beta: 0.1\n")
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "old.yaml"), *words])
    printed = capsys.readouterr()
    assert caught.value.code == 2 and printed.err.startswith(f"error: command line: {line}") and not printed.out
    assert printed.err.count("\n") == 1


def test_no_command_takes_an_options_last_value_silently():
    """All command lines that are not parsed by `parsing` are by OptionParser."""
    root = RECIPES.parent
    files = [file for folder in ("benchmarks", "llmrecipes", "recipes") for file in (root / folder).rglob("*.py")]
    plain = [file.name for file in files if re.search(r"= argparse\.ArgumentParser|import (getopt|click)", file.read_text())]
    assert not plain and len(files) > 200


@pytest.mark.parametrize(
    "text", ["- a\n", "", "a: [", "dataset_mixture: 3\n", "dataset_mixer: [a]\n", "datasets: 3\nadapter: x\n"]
)
def test_a_broken_config_is_one_line(text, tmp_path, capsys):
    (tmp_path / "old.yaml").write_text(text)
    try:
        main([str(tmp_path / "old.yaml")])
    except SystemExit as left:
        assert left.code == 2 and capsys.readouterr().err.count("\n") == 1
