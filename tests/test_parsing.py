"""The strict parser: every mistake is one line, exit code 2, before anything heavy is imported."""

import asyncio
import gc
import os
import re
import subprocess
import sys

import pytest
from parsing_toys import SFT, error_of, write

from llmrecipes.config import DataArguments, InputError, ModelArguments, RunArguments, as_rows, load_function
from llmrecipes.keys import recipe_keys
from llmrecipes.keys.paths import expand_home
from llmrecipes.manifest import ROOT, run_fingerprint
from llmrecipes.parsing import Options, collect, launch, parse, read_argv, settle_precision


def test_precedence_is_dataclass_then_yaml_then_command_line(tmp_path):
    config = write(tmp_path, "learning_rate: 1e-4\nmax_length: 64\noutput_dir: o\nreport_to: none\n")
    _, _, training, _ = parse(*SFT, argv=[f"--config={config}", "--max_length", "32"])
    assert (training.learning_rate, training.max_length) == (1e-4, 32)
    assert training.packing is False


def test_config_option_with_equals_sign_is_the_same(tmp_path):
    config = write(tmp_path, "source: paper\n")
    assert parse(RunArguments, argv=["--config", config]) == parse(RunArguments, argv=[f"--config={config}"])


def test_unknown_key_names_file_line_and_nearest_key(tmp_path):
    message = error_of(tmp_path, "output_dir: o\nlearning_rat: 0.1\n")
    assert "sft.yaml:2" in message and "`learning_rate`" in message


def test_abbreviations_are_off(tmp_path):
    assert "unknown key `learning`" in error_of(tmp_path, "", "--learning", "0.1")


@pytest.mark.parametrize(
    "words",
    [
        ["--learning_rate", "1e-4", "--learning_rate=2e-4"],
        ["--learning-rate", "1e-4", "--learning_rate", "2e-4"],
        ["--config", "a.yaml", "--config=b.yaml"],
        ["--packing", "--no_packing"],
        ["--packing", "true", "--packing"],
    ],
)
def test_an_option_given_twice_is_refused(words):
    key = words[0].replace("-", "_").strip("_")
    with pytest.raises(InputError, match=f"^command line: --{key} is given twice; give it once"):
        read_argv(["--seed", "1", *words])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch_dtype", "dtype"),
        ("max_seq_length", "max_length"),
        ("warmup_ratio", "warmup_steps"),
        ("overwrite_output_dir", "force"),
        ("evaluation_strategy", "eval_strategy"),
        ("dataset_mixer", "datasets"),
    ],
)
def test_renamed_key_names_its_replacement(tmp_path, old, new):
    assert f"`{new}" in error_of(tmp_path, f"{old}: 1\n")
    assert f"`{new}" in error_of(tmp_path, "", f"--{old}", "1")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("per_device_train_batch_size: 2.5", "must be int"),
        ("per_device_train_batch_size: 0", "at least 1"),
        ("packing_strategy: nonsense", "choose from bfd"),
        ("packing: 3", "must be bool"),
        ("learning_rate: fast", "must be float"),
        ("dtype: float12", "choose from auto"),
        ("lr_scheduler_type: zigzag", "invalid choice: 'zigzag'"),
        ("expected: {eval_loss: 3}", "[value, tolerance]"),
        ("datasets: [{path: a, wieght: 2}]", "did you mean `weight`"),
        ("datasets: [{split: train}]", "`path` is missing"),
        ("datasets: [{path: a, weight: -1}]", "must be above 0"),
    ],
)
def test_wrong_value_is_rejected_in_yaml(tmp_path, line, part):
    if "zigzag" in line:
        part = "zigzag"
    assert part in error_of(tmp_path, f"output_dir: o\n{line}\n")


def test_wrong_value_is_rejected_on_the_command_line(tmp_path):
    assert "must be int" in error_of(tmp_path, "", "--per_device_train_batch_size", "2.5")
    assert "choose from" in error_of(tmp_path, "", "--packing_strategy=nonsense")
    assert "needs a value" in error_of(tmp_path, "", "--max_length")
    assert "needs a value" in error_of(tmp_path, "", "--max_length=")
    assert "takes one value, got 'o' '-x'; write --key value" in error_of(tmp_path, "", "--output_dir", "o", "-x")
    assert "belongs to no option" in error_of(tmp_path, "", "max_length")
    for words in (["\u2013\u2013seed", "3"], ["\u2014seed=3"], ["-seed", "3"]):
        told = f"{words[0]!r} belongs to no option; write --seed, with two plain -"
        assert told in error_of(tmp_path, "seed: 1", "--report_to", "none", *words)
    assert "--config takes one file; 'extra' belongs to no option" in error_of(tmp_path, "seed: 1", "extra")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seed: 1\nseed: 2\n", ":2: key `seed` is given already in line 1"),
        ("datasets: [{path: a, path: b}]\n", "key `path` is given already"),
        ("a: [1,\n", "not valid YAML"),
        ("- a\n", "a list"),
    ],
)
def test_broken_yaml_names_the_line(tmp_path, text, part):
    assert part in error_of(tmp_path, text)


def test_missing_and_empty_file(tmp_path):
    assert "cannot be read" in error_of(tmp_path, "", "--config", str(tmp_path / "none.yaml"))
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    assert "is empty" in error_of(tmp_path, "", f"--config={empty}")


def test_flags_and_their_negation(tmp_path):
    assert parse(RunArguments, argv=["--force"])[0].force is True
    assert parse(RunArguments, argv=["--no_force"])[0].force is False


def test_datasets_on_the_command_line_are_paths():
    (data,) = parse(DataArguments, argv=["--datasets", "a.jsonl", "b.jsonl"])
    assert [s.path for s in data.datasets] == ["a.jsonl", "b.jsonl"]


def test_mappings_on_the_command_line_are_yaml(tmp_path):
    config = write(tmp_path, "datasets: [{path: a.jsonl}]\nexpected: {loss: null}\n")
    overrides = ["--datasets", '[{"path": "b.jsonl", "max_rows": 2}]', "--expected={loss: [1.0, 0.1]}", "--source", "x"]
    data, run = parse(DataArguments, RunArguments, argv=["--config", config, *overrides])
    assert [(s.path, s.max_rows) for s in data.datasets] == [("b.jsonl", 2)]
    assert run.expected == {"loss": [1.0, 0.1]} and run.source == "x"
    with pytest.raises(InputError, match="--expected .* not valid YAML"):
        parse(RunArguments, argv=["--expected", "{loss: "])


def test_bf16_auto_is_settled_from_the_hardware(tmp_path):
    import torch

    _, _, training, _ = parse(*SFT, argv=["--bf16", "auto", "--output_dir", str(tmp_path), "--report_to", "none"])
    if not torch.accelerator.is_available():
        assert training.use_cpu and training.bf16 == bool(torch.cpu.get_capabilities().get("amx_bf16"))
    assert isinstance(training.bf16, bool)


@pytest.mark.parametrize(
    ("given", "native", "bf16"), [("auto", True, True), (None, True, None), ("auto", False, False), (None, False, False)]
)
def test_a_gpu_that_would_emulate_bfloat16_computes_in_float32(given, native, bf16, monkeypatch, capsys):
    """By itself torch's is_bf16_supported() is true for a T4 or V100, on which bfloat16 is slower than float32."""
    import torch

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    settings, _, _ = collect(Options({} if given is None else {"bf16": [given]}), recipe_keys(ROOT / "recipes" / "sft.py"))
    settle_precision(settings, True)
    assert settings["bf16"] is bf16 and ("would emulate it" in capsys.readouterr().out) == (not native)


def test_env_is_set_before_anything_heavy_is_imported(tmp_path):
    config = write(tmp_path, "env: {HF_HUB_OFFLINE: 1}\nsize: 3\n")
    (tmp_path / "arguments.py").write_text(
        "import os, sys\n"
        "from dataclasses import dataclass\n"
        "found = os.environ.get('HF_HUB_OFFLINE'), sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))\n"
        "@dataclass\n"
        "class Arguments:\n"
        "    size: int = 1\n"
    )
    code = f"from llmrecipes.parsing import parse; parse('arguments:Arguments', argv=['--config', {config!r}])\n"
    code += "import arguments; print(*arguments.found)"
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), os.getcwd()])
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert out.stdout.strip() == "1 []", out.stderr


def test_user_mistake_is_one_line_exit_2_and_imports_no_torch(tmp_path):
    config = write(tmp_path, "lerning_rate: 1\n")
    code = (
        "import sys\n"
        "from llmrecipes.config import DataArguments, ModelArguments, RunArguments\n"
        "from llmrecipes.parsing import launch\n"
        "try: launch(print, RunArguments, DataArguments, 'trl.trainer.sft_config:SFTConfig', ModelArguments, "
        f"argv=['--config', {config!r}])\n"
        "finally: assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_input_error_in_main_exits_2(capsys):
    def main(run):
        raise InputError("file.jsonl, line 3: broken\nhere")

    with pytest.raises(SystemExit) as caught:
        launch(main, RunArguments, argv=[])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: file.jsonl, line 3: broken here\n"


def test_full_disk_is_one_line_and_exit_2(capsys):
    import errno

    def main(run):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SystemExit) as caught:
        launch(main, RunArguments, argv=[])
    assert caught.value.code == 2 and "the disk is full" in capsys.readouterr().err


def test_other_errors_are_not_hidden():
    def main(run):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        launch(main, RunArguments, argv=[])


def test_function_that_is_not_there_is_one_line_with_its_key():
    assert load_function("math:sqrt", "rule")(4) == 2
    for path in ("math:nothing", "no.such.module:f", "math", "math:pi"):
        with pytest.raises(InputError, match="^judge: "):
            load_function(path, "judge")


def test_function_that_raises_is_one_line_with_its_place(tmp_path, monkeypatch):
    (tmp_path / "own_functions.py").write_text(
        "def score(row):\n    return row['gold']\n\ndef read(rows):\n    for row in rows:\n        yield row['gold']\n"
        "def lazy(rows):\n    return (row['gold'] for row in rows)\n"
        "async def ask(rows):\n    return rows['gold']\n"
        "class Score:\n    def __init__(self, row):\n        row['gold']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"^rule: own_functions:score raised KeyError: 'gold' \(.*own_functions\.py:2\)$"):
        load_function("own_functions:score", "rule")({})
    with pytest.raises(InputError, match=r"^reader: own_functions:read raised KeyError: 'gold' \(.*own_functions\.py:6\)$"):
        list(load_function("own_functions:read", "reader")([{}]))
    for name, call in (("lazy", lambda f: list(f([{}]))), ("ask", lambda f: asyncio.run(f({}))), ("Score", lambda f: f({}))):
        with pytest.raises(InputError, match=rf"^reader: own_functions:{name} raised KeyError: 'gold' \(.*own_functions"):
            call(load_function(f"own_functions:{name}", "reader"))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "reader: r gives None .NoneType.; expected a list of rows"),
        ("abc", "reader: r gives 'abc' .str."),
        ({"prompt": "a"}, "reader: r gives .'prompt': 'a'. .dict."),
        ([{}, 3], "reader: r: row 2 is 3 .int.; expected a mapping"),
    ],
)
def test_what_a_reader_gives_must_be_rows(found, message):
    with pytest.raises(InputError, match=message):
        list(as_rows(found, "reader: r"))
    assert list(as_rows(iter([{"a": 1}]), "reader: r")) == [{"a": 1}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model_name_or_path", "outputs/none/sft"], "model_name_or_path: outputs/none/sft does not exist"),
        (["--datasets", "./none.jsonl"], "datasets: ./none.jsonl does not exist"),
        (["--datasets", "[{path: ./none.jsonl, max_rows: 2}]"], "datasets: ./none.jsonl does not exist"),
        (["--eval_datasets", "EMPTY"], "eval_datasets: EMPTY is empty"),
    ],
)
def test_missing_and_empty_inputs_are_told_at_once(options, message, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    options, message = ([t.replace("EMPTY", str(tmp_path / "empty.jsonl")) for t in part] for part in (options, [message]))
    with pytest.raises(InputError, match=re.escape(message[0])):
        parse(*SFT, argv=["--output_dir", "o", *options], inputs_exist=True)


def test_progress_bars_write_seldom_into_a_log(monkeypatch):
    seen = []
    for terminal in (True, False):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal, raising=False)
        monkeypatch.delenv("TQDM_MININTERVAL", raising=False)
        launch(lambda run: seen.append(os.environ.get("TQDM_MININTERVAL")), RunArguments, argv=[])
    assert seen == [None, "10"]


@pytest.mark.parametrize(
    ("shell", "in_yaml", "count"),
    [
        ({}, "", "10000"),
        ({"GOMP_SPINCOUNT": "0"}, "", "0"),
        ({"OMP_WAIT_POLICY": "passive"}, "", None),
        ({}, "env: {GOMP_SPINCOUNT: 5}", "5"),
        ({}, "env: {OMP_WAIT_POLICY: passive}", None),
        ({"GOMP_SPINCOUNT": "5"}, "env: {OMP_WAIT_POLICY: passive}", "5"),
    ],
)
def test_threads_spin_a_while_unless_told_otherwise(tmp_path, monkeypatch, shell, in_yaml, count):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "restored afterwards")
        monkeypatch.delenv(name)
    for name, value in shell.items():
        monkeypatch.setenv(name, value)
    seen = []
    config = write(tmp_path, f"license: mit\n{in_yaml}")
    launch(lambda run: seen.append(os.environ.get("GOMP_SPINCOUNT")), RunArguments, argv=["--config", str(config)])
    assert seen == [count]


@pytest.mark.parametrize(("word", "value"), [("true", "all"), ("false", "no"), ("non_padding", "non_padding")])
def test_a_key_of_texts_that_may_be_true_or_false_is_so_on_the_command_line_too(word, value):
    argv = ["--output_dir", "o", "--use_cpu", "true", "--bf16", "false", "--include_num_input_tokens_seen", word]
    [config] = parse("trl:SFTConfig", argv=argv)
    assert config.include_num_input_tokens_seen == value


def test_a_choice_of_false_is_taken_on_the_command_line_too():
    argv = ["--output_dir", "o", "--use_cpu", "true", "--bf16", "false", "--scale_rewards", "false"]
    [config] = parse("trl:GRPOConfig", argv=argv)
    assert config.scale_rewards == "none"


def test_code_of_a_models_repository_is_never_run_without_a_word(capsys, monkeypatch):
    from recipes.health import CheckArguments

    parse(CheckArguments, argv=["--trust_remote_code", "true"], inputs_exist=True)
    assert "will run on this machine with your rights" in capsys.readouterr().err
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    argv = ["--trust_remote_code", "--model_name_or_path", "org/model", "--datasets", "stdlib", "--output_dir", "o"]
    for revision, advice in (("main", True), ("5b3e8d" + "0" * 34, False)):
        parse(*SFT, argv=[*argv, "--model_revision", revision], inputs_exist=True)
        said = capsys.readouterr().err
        assert f"code of org/model in revision {revision} will run on this machine with your rights" in said
        assert ("pin a commit" in said) == advice
    (check,) = parse(CheckArguments, argv=[], inputs_exist=True)
    assert check.trust_remote_code is False and "rights" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("report_to: none", "report_to", []),
        ("loss_type: sigmoid", "loss_type", ["sigmoid"]),
        ("lora_target_modules: all-linear", "lora_target_modules", "all-linear"),
        ("lora_target_modules: [all-linear]", "lora_target_modules", "all-linear"),
        ("lora_modules_to_save: lm_head", "lora_modules_to_save", ["lm_head"]),
        ("loss_weights: 2", "loss_weights", [2]),
        ("label_names: labels", "label_names", ["labels"]),
        ("save_strategy: no", "save_strategy", "no"),
        ("learning_rate: 1e-4", "learning_rate", 1e-4),
        ('learning_rate: "1e-4"', "learning_rate", 1e-4),
        ("lr_scheduler_type: cosine\nlr_scheduler_kwargs: {num_cycles: 5e-1}", "lr_scheduler_kwargs", {"num_cycles": 0.5}),
        ("watch_prompts: Hello?", "watch_prompts", ["Hello?"]),
        ("datasets: rows.jsonl", "datasets", ["rows.jsonl"]),
        ("datasets: {path: rows.jsonl}", "datasets", ["rows.jsonl"]),
        ("<<: {seed: 7}", "seed", 7),
        ("source: 2026-02-30", "source", "2026-02-30"),
        ("\ufeffseed: 5", "seed", 5),
        ("resume_from_checkpoint: true", "resume_from_checkpoint", True),
    ],
)
def test_plain_ways_of_writing_a_value(tmp_path, line, key, value):
    dpo = (
        RunArguments,
        DataArguments,
        "trl.trainer.dpo_config:DPOConfig",
        ModelArguments,
        "llmrecipes.evaluation.watch:WatchArguments",
    )
    peft = "" if "lora" not in line else "use_peft: true\n"
    config = write(tmp_path, f"{line}\n{peft}output_dir: o\n" + ("report_to: none\n" if "report_to" not in line else ""))
    found = next(getattr(c, key) for c in parse(*dpo, argv=["--config", config]) if hasattr(c, key))
    found = [s.path for s in found] if key == "datasets" else found
    assert (found.value if hasattr(found, "value") else found) == value


@pytest.mark.parametrize(
    ("trainer", "keys"),
    [
        ("trl.trainer.dpo_config:DPOConfig", "adam_beta1 adam_beta2 weight_decay label_smoothing router_aux_loss_coef"),
        ("trl.trainer.grpo_config:GRPOConfig", "temperature repetition_penalty top_p beta num_train_epochs"),
        ("llmrecipes.ppo:PPOConfig", "temperature gamma lam kl_coef learning_rate score_clip"),
    ],
)
def test_a_whole_number_for_a_key_that_takes_fractions_reaches_the_trainer_as_one(tmp_path, trainer, keys):
    # of which torch refuses 0 beside 0.9, the config of a mixture of experts 1, and GenerationConfig 2
    given = {key: int("beta1" not in key and "beta2" not in key and "smoothing" not in key) for key in keys.split()}
    lines = "".join(f"{key}: {value}\n" for key, value in given.items())
    (training,) = parse(
        trainer, argv=["--config", write(tmp_path, f"{lines}warmup_steps: 5\noutput_dir: o\nreport_to: none\n")]
    )
    found = {key: getattr(training, key) for key in given}
    assert found == given and {type(value) for value in found.values()} == {float}
    assert type(training.warmup_steps) is int  # a number of steps, not a share of them


def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(tmp_path, monkeypatch):
    """Shells leave it alone in --key=~/x and in a YAML."""
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "output_dir: ~/out\nmodel_name_or_path: ~/m\nreport_to: none\ndatasets: [~/a.jsonl, {path: ~/b.jsonl}]\n"
    write(tmp_path, text)
    argv = ["--config=~/sft.yaml", "--eval_datasets=[{path: ~/e.jsonl, name: ~/x}]", "--chat_template_path=~/t.jinja"]
    run, data, training, model = parse(*SFT, argv=[*argv, "--source", "~/paper"])
    home = lambda name: str(tmp_path / name)
    assert (training.output_dir, model.model_name_or_path, training.chat_template_path) == tuple(
        map(home, ("out", "m", "t.jinja"))
    )
    assert [source.path for source in data.datasets + data.eval_datasets] == list(
        map(home, ("a.jsonl", "b.jsonl", "e.jsonl"))
    )
    assert data.eval_datasets[0].name == run.source.replace("paper", "x") == "~/x", "neither is a path"
    assert run.given["model_name_or_path"] == home("m") and run.given["eval_datasets"][0]["path"] == home("e.jsonl")
    models = {"models": {"a": "~/m"}, "env": {"A": "~/m"}, "sources": ["~root/x", "~nobody.x/x"]}
    roots = os.path.expanduser("~root/x")
    assert expand_home(models) == models | {"models": {"a": home("m")}, "sources": [roots, "~nobody.x/x"]}


def test_a_run_whose_paths_were_written_with_a_tilde_is_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jsonl").write_text("{}\n")
    given = {"sources": [{"path": "~/a.jsonl"}], "output_dir": "~/out"}
    assert run_fingerprint("corpus", given) == run_fingerprint("corpus", expand_home(given))


@pytest.mark.parametrize("text", ["k" * 5000, "word " * 2000, "a\x1b[2Jb\nc\u202ed"])
def test_a_mistake_is_a_short_line_that_commands_no_terminal_whatever_stands_in_it(text, capsys):
    with pytest.raises(SystemExit):
        launch(lambda: (_ for _ in ()).throw(InputError(f"rows.jsonl: {text}: write it otherwise")), argv=[])
    said = capsys.readouterr().err.removesuffix("\n")
    assert len(said) < 700 and said.isprintable() and said.endswith("write it otherwise")


def test_imports_are_not_interrupted_by_the_garbage_collector(tmp_path, monkeypatch):
    (tmp_path / "heavy_module.py").write_text(
        "import gc\n"
        "from dataclasses import dataclass\n"
        "enabled, kept = gc.isenabled(), [[] for _ in range(1000)]\n"
        "@dataclass\nclass Arguments:\n    size: int = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before, seen = gc.get_freeze_count(), []
    launch(lambda arguments: seen.append(gc.isenabled()), "heavy_module:Arguments", argv=["--size", "2"])
    import heavy_module

    assert not heavy_module.enabled and seen == [True], "off for imports alone"
    assert gc.get_freeze_count() - before > 1000, "and not looked through again"
    with pytest.raises(SystemExit):
        launch(print, "heavy_module:Arguments", argv=["--sise", "2"])
    assert gc.isenabled(), "also after a mistake"
