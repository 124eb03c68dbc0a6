"""Every YAML under configs/ goes through the real command line's parser; its batch arithmetic is recomputed."""

import json
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import yaml
from recipe_types import recipe_types

from llmrecipes.keys import keys_of, schema
from llmrecipes.keys.mappings import MAPPINGS
from llmrecipes.parsing import parse

ROOT = Path(__file__).parent.parent
RECIPES = {path.stem for path in (ROOT / "recipes").glob("*.py")}
YAMLS = sorted(path for path in (ROOT / "configs").glob("*/*.yaml") if path.parent.name not in ("accelerate", "tasks"))


def parse_as_its_recipe_does(path):
    """What the recipe's own `launch(...)` line would hand to its main."""
    types = recipe_types(path.stem.split("-")[0])
    return parse(*types, argv=["--config", str(path), "--report_to", "none"] if _trains(types) else ["--config", str(path)])


def _trains(types):
    return any("report_to" in keys_of(t) for t in types)


def test_there_is_a_config_for_every_stage():
    # No stages: they show, check, compare, plan, merge or publish what the stages made.
    without = {"corpus", "chat", "compare", "health", "merge", "plan", "push"}
    assert {path.stem for path in YAMLS if path.parent.name == "quickstart"} >= RECIPES - without


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_yaml_parses_and_adds_up(path, monkeypatch):
    monkeypatch.setattr("llmrecipes.ppo.config_checks.find_spec", lambda name: name)  # vLLM is not installed here
    assert path.stem.split("-")[0] in RECIPES
    parsed = parse_as_its_recipe_does(path)
    run = parsed[0]
    training = next((p for p in parsed if hasattr(p, "gradient_accumulation_steps")), None)
    if training is not None:
        assert run.global_batch_size == (
            training.per_device_train_batch_size * training.gradient_accumulation_steps * run.num_gpus
        )
    if path.parent.name != "smoke":
        assert run.hardware, "run card: hardware"


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_yaml_is_a_recipe_people_can_read(path):
    text = path.read_text()
    assert text.startswith("# ") and "# Launch: " in text
    assert len(text.splitlines()) <= 60
    values = yaml.safe_load(text)
    assert str(values["output_dir"]).startswith(f"outputs/{path.parent.name}")


@pytest.mark.parametrize("stage", sorted(RECIPES))
def test_schema_for_editors_is_that_of_the_dataclasses(stage):
    written = (schema.SCHEMAS / f"{stage}.json").read_text()
    assert written == schema.schemas()[stage], "python -m llmrecipes.keys.schema writes it anew"


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_yaml_names_its_schema_and_fits_it(path):
    stage, values = path.stem.split("-")[0], yaml.safe_load(path.read_text())
    assert f"# yaml-language-server: $schema=../schemas/{stage}.json\n" in path.read_text()
    validator_of(stage).validate(values)


def test_editors_know_what_mappings_hold_as_the_check_does():
    fits = validator_of("grpo").is_valid
    properties = json.loads((schema.SCHEMAS / "grpo.json").read_text())["properties"]
    for key in MAPPINGS.keys() & properties.keys():
        known = keys_of(MAPPINGS[key])
        assert known.keys() <= properties[key]["properties"].keys() and not fits({key: {"no_such_entry": 1}}), key
    assert fits({"fsdp_config": {"fsdp_cpu_offload": True}}) and not fits({"fsdp_config": {"cpu_offload": 3}})
    assert not fits({"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each": True}}})
    assert "typical_p" in properties["generation_kwargs"]["properties"]
    assert "temperature" not in properties["generation_kwargs"]["properties"], "it is a key of its own"
    assert {"min_lr_rate", "num_cycles"} <= properties["lr_scheduler_kwargs"]["properties"].keys()


@cache
def validator_of(stage: str):
    """That the schema is one is checked once."""
    written = json.loads((schema.SCHEMAS / f"{stage}.json").read_text())
    kind = jsonschema.validators.validator_for(written)
    kind.check_schema(written)
    return kind(written)
