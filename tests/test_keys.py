"""Keys read from sources are those of the classes; the lists that stand in for a library's are the library's."""

import ast
import dataclasses
import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

from llmrecipes.config import DataArguments, DatasetSource, ModelArguments, PreviewArguments, RunArguments
from llmrecipes.keys import UNKNOWN, _class_keys, _keys_of_class, keys_of
from llmrecipes.keys.mappings import MAPPINGS, CheckpointingKwargs, FSDPConfig
from llmrecipes.keys.renamed import GONE, RENAMES
from llmrecipes.keys.usage import keys_as_markdown
from llmrecipes.keys.values import CHOICES, DPO_LOSSES, GRPO_LOSSES, RANGE_OF, _outside, accepted, range_of

ROOT = Path(__file__).parent.parent
OURS = (
    "llmrecipes.ppo.config:PPOConfig llmrecipes.evaluation.watch:WatchArguments llmrecipes.pipeline:PipelineArguments "
    "llmrecipes.reward_models.health:HealthArguments llmrecipes.evaluation.arguments:EvaluateArguments "
    "llmrecipes.ranking.arguments:RankArguments llmrecipes.corpus.arguments:CorpusArguments "
    "llmrecipes.corpus.arguments:StepArguments llmrecipes.corpus.arguments:CorpusSource"
).split()
LIBRARY = (
    OURS
    + (
        "trl.trainer.sft_config:SFTConfig trl.trainer.dpo_config:DPOConfig trl.trainer.reward_config:RewardConfig "
        "trl.trainer.grpo_config:GRPOConfig trl.trainer.kto_config:KTOConfig "
        "trl:ModelConfig transformers.training_args:TrainingArguments llmrecipes.tokens.arguments:TokenArguments"
    ).split()
)


def resolve(name):
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", [*LIBRARY, *sorted(set(MAPPINGS.values()))])
def test_keys_of_a_source_are_those_of_the_class(name):
    read, known = keys_of(name), _keys_of_class(resolve(name))
    assert list(read) == list(known)
    for key, of_source in read.items():
        of_class = known[key]
        assert of_source.default is UNKNOWN or of_source.default == of_class.default or key == "optim", key
        assert of_source.help == "" or of_source.help == of_class.help, key
        assert any(accepted(of_source.annotation)), key


def test_mappings_hold_what_the_libraries_read():
    import torch.utils.checkpoint
    from transformers import GenerationConfig, PreTrainedModel, TrainingArguments

    from llmrecipes.preflight.generation import OWN_KEYS, generation_keys

    ours = {field.name for field in dataclasses.fields(CheckpointingKwargs)}
    torchs = {*inspect.signature(torch.utils.checkpoint.checkpoint).parameters} - {
        "function",
        "args",
        "kwargs",
        "context_fn",
    }
    trainers = {*inspect.signature(PreTrainedModel.activation_checkpointing_enable).parameters}
    trainers -= {"self", "activation_checkpointing_kwargs"}
    assert ours == torchs | trainers | {"preserve_rng_state"}  # in its **kwargs

    source = inspect.getsource(TrainingArguments._process_fsdp_args)
    of_fsdp2 = re.sub(r"else:\n +# FSDP1.*", "", source, flags=re.DOTALL)
    read = set(re.findall(r'self\.fsdp_config(?:\.get\(|\[)"(\w+)"', of_fsdp2))
    read |= set(re.findall(r'"(\w+)" in self\.fsdp_config', of_fsdp2))
    assert {field.name for field in dataclasses.fields(FSDPConfig)} == {name for name in read if not name.startswith("xla")}

    assert {"typical_p", "min_new_tokens", "do_sample"} <= generation_keys() and len(generation_keys()) > 50
    assert {*GenerationConfig().to_dict()} - {"transformers_version", "_from_model_config"} <= generation_keys()
    assert {*OWN_KEYS} - {"n", "max_tokens"} <= generation_keys()


@pytest.mark.parametrize("config_type", [RunArguments, DataArguments, ModelArguments, DatasetSource])
def test_keys_of_imported_classes_and_each_of_their_bases(config_type):
    for base in inspect.getmro(config_type)[:-1]:
        assert list(keys_of(base)) == [field.name for field in dataclasses.fields(base)]


def test_every_base_of_the_training_configs_is_followed():
    for name in LIBRARY:
        for base in inspect.getmro(resolve(name))[:-1]:
            if dataclasses.is_dataclass(base):
                keys = _class_keys(base.__module__, base.__name__)
                assert set(keys) == {field.name for field in dataclasses.fields(base)}, base


SOURCES = {
    "attribute": "import lib.base\nfrom dataclasses import dataclass\n@dataclass\nclass A(lib.base.B):\n    x: int = 1\n",
    "alias": "import lib.base as b\nfrom dataclasses import dataclass\n@dataclass\nclass A(b.B):\n    x: int = 1\n",
    "conditional": "from dataclasses import dataclass\nfrom lib.base import B\nif True:\n    @dataclass\n    class A(B):\n"
    "        x: int = 1\n",
    "made": "from dataclasses import make_dataclass, field\nA = make_dataclass('A', [('b', int, field(default=2)), "
    "('x', int, field(default=1))])\n",
    "computed base": "from dataclasses import dataclass\nfrom lib.base import B\n@dataclass\nclass A(type(B())):\n"
    "    x: int = 1\n",
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_class_in_any_way_of_writing_has_its_keys(kind, tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "__init__.py").touch()
    (tmp_path / "lib" / "base.py").write_text("from dataclasses import dataclass\n@dataclass\nclass B:\n    b: int = 2\n")
    name = f"configs_{kind.replace(' ', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCES[kind])
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("lib", "lib.base"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    assert list(keys_of(f"{name}:A")) == ["b", "x"]


def test_choices_that_stand_for_a_librarys_are_the_librarys():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from trl import DPOTrainer, GRPOTrainer

    assert set(CHOICES["report_to"]) - {"all", "none"} == set(INTEGRATION_TO_CALLBACK)
    source = inspect.getsource(sys.modules[DPOTrainer.__module__])
    assert set(re.findall(r'loss_type == "(\w+)"', source)) == set(DPO_LOSSES)
    source = inspect.getsource(sys.modules[GRPOTrainer.__module__])
    assert all(f'"{name}"' in source for name in GRPO_LOSSES)


def all_keys():
    keys = {key for name in LIBRARY for key in keys_of(name)} | set(keys_of(DatasetSource)) | set(keys_of(RunArguments))
    keys |= set(keys_of(DataArguments)) | set(keys_of(PreviewArguments)) | set(keys_of(ModelArguments))
    for recipe in (ROOT / "recipes").glob("*.py"):
        for name in re.findall(r"^class (\w+):", recipe.read_text(), re.M):
            keys |= set(_class_keys(f"recipes.{recipe.stem}", name, str(recipe)))
    return keys


@pytest.mark.parametrize("config", LIBRARY)
def test_a_range_takes_the_default(config):
    for key, declared in keys_of(config).items():
        bounds, default = range_of(key, declared.owner), declared.default
        assert not bounds or type(default) not in (int, float) or not _outside(default, bounds), f"{key}: {default}"


def test_a_range_takes_0_where_ppo_does():
    from llmrecipes.ppo.config_checks import ABOVE_0, ABOVE_0_IF_GIVEN, AT_LEAST_0

    keys = keys_of("llmrecipes.ppo.config:PPOConfig")
    ranges = {name: range_of(name, keys[name].owner) for name in (*ABOVE_0, *ABOVE_0_IF_GIVEN, *AT_LEAST_0)}
    takes_0 = {name for name, bounds in ranges.items() if bounds and not _outside(0, bounds)}
    assert takes_0 == set(AT_LEAST_0) & {name for name in ranges if ranges[name]}


def test_ranges_choices_and_replacements_name_keys_that_exist():
    known = all_keys() | {field.name for field in dataclasses.fields(CheckpointingKwargs)}
    assert not set(RANGE_OF) - known - {"batch_size"}
    assert not set(CHOICES) - known
    assert not set(RENAMES.values()) - known
    taken = known & (set(RENAMES) | set(GONE))
    assert taken <= {
        "dataset",
        "optimizer",
        "max_prompt_length",
        "stage",
        "beta",
        "epsilon",
        "num_iterations",
        "steps",
        "streaming",
        "vllm_importance_sampling_cap",
    }, "an old name that is a key of ours today"


def test_every_key_of_our_own_dataclasses_is_read_somewhere():
    """No key is accepted without effect: each field is read as an attribute, or by name, outside the class."""
    ours = {key: name for name in OURS for key, k in keys_of(name).items() if k.owner == name.split(":")[1]}
    for config_type in (RunArguments, DataArguments, PreviewArguments, DatasetSource, ModelArguments):
        ours |= {key: config_type.__name__ for key, k in keys_of(config_type).items() if k.owner == config_type.__name__}
    for recipe in (ROOT / "recipes").glob("*.py"):
        for name in re.findall(r"^class (\w+):", recipe.read_text(), re.M):
            ours |= dict.fromkeys(_class_keys(f"recipes.{recipe.stem}", name, str(recipe)), name)
    inherited = set(keys_of("transformers.training_args:TrainingArguments"))
    read = set()
    for path in (path for folder in ("llmrecipes", "recipes") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                read.add(node.slice.value)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
                read.add(ast.unparse(node.args[1]).strip("'"))
    unread = {key: name for key, name in ours.items() if key not in read | inherited}
    for_readers = {"source", "hardware", "license"}  # of the run card: they go into manifest and model card as they are
    assert not set(unread) - for_readers, unread


def test_the_page_of_our_own_keys_is_what_the_sources_say():
    written = (ROOT / "docs" / "keys.md").read_text()
    assert written == keys_as_markdown(), "python -m llmrecipes.keys.usage > docs/keys.md"
