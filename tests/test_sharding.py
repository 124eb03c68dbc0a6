"""FSDP2 takes models with parts that no text reaches: it shards the layers that are there, and loads what was saved.

Whole stages, sharded: test_stage_topologies.py, test_ppo_topologies.py.
"""

from types import SimpleNamespace

import ppo_toys as toys
import pytest
import torch
from forked import run_python
from test_ppo_architectures import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM

from llmrecipes.ppo.policy_value import PolicyAndValue
from llmrecipes.ppo.sharding import FrozenModel
from llmrecipes.sharding import expect_idle_weights, make_shardable

IDLE = """
import os
from types import SimpleNamespace

import torch
from torch import distributed, nn
from torch.distributed.checkpoint import state_dict
from torch.distributed.fsdp import fully_shard

from llmrecipes.sharding import prepare_sharding


class TextAlone(nn.Module):
    def __init__(self):
        super().__init__()
        self.text, self.images = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, text):
        return self.text(text)


distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
for _ in range(2):
    prepare_sharding(SimpleNamespace(fsdp_plugin_args={"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT"}))
torch.manual_seed(0)
model = TextAlone()
fully_shard(model, mesh=distributed.device_mesh.init_device_mesh("cpu", (1,)))
before, after = (torch.optim.AdamW(model.parameters()) for _ in range(2))
model(torch.ones(1, 4)).sum().backward()
before.step()
model.zero_grad()
options = state_dict.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
saved = state_dict.get_optimizer_state_dict(model, before, options=options)
assert set(saved["state"]) == {"text.weight", "text.bias"}
state_dict.set_optimizer_state_dict(model, after, saved, options=options)
for weight in model.text.parameters():
    for name, value in before.state[weight].items():
        value, loaded = (getattr(moment, "_local_tensor", moment) for moment in (value, after.state[weight][name]))
        assert torch.equal(value, loaded) and value.any(), name
"""


@pytest.mark.parametrize("kind", ["gemma3", "gemma4_text", "qwen3_5_text"])
def test_layers_named_for_fsdp_are_those_that_the_model_has(kind):
    with torch.device("meta"):
        policy = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **FAMILIES[kind]))
        value_model = toys.reward_model()
    there = {type(module).__name__ for module in policy.modules()}
    assert set(policy._no_split_modules) - there, "transformers names layers of images"
    both, frozen = PolicyAndValue(policy, value_model), FrozenModel(policy)
    make_shardable(policy)
    decoder = {name for name in policy._no_split_modules if "DecoderLayer" in name}
    assert decoder and policy._no_split_modules <= there
    assert frozen._no_split_modules == policy._no_split_modules
    assert both._no_split_modules == policy._no_split_modules | {"LlamaDecoderLayer"}


def test_fsdp_loads_an_optimizer_without_state_of_weights_that_had_no_gradient(tmp_path):
    (tmp_path / "idle.py").write_text(IDLE)
    done = run_python(tmp_path / "idle.py")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("kind", "given", "found"), [("gemma3", None, True), ("gemma3", False, False), ("llama", None, None)]
)
def test_ddp_is_told_of_layers_of_images(kind, given, found):
    args = SimpleNamespace(ddp_find_unused_parameters=given)
    expect_idle_weights(args, SimpleNamespace(config=AutoConfig.for_model(kind, **FAMILIES[kind])))
    assert args.ddp_find_unused_parameters is found
