"""Rollouts by vLLM of several processes: each gets its own rows, and a sharded policy reaches the engine whole."""

from pathlib import Path

import ppo_toys as toys
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from test_ppo_vllm import free_port, saved_policy, serve, vllm  # noqa: F401 (fixtures)

TWO_RANKS = """
from pathlib import Path
import torch, ppo_toys as toys, test_ppo_vllm as tests
tests.install_stub()
import vllm
from vllm.engine import Engine
folder, rank = Path({folder!r}), None
settings = dict(per_device_train_batch_size=2, gradient_accumulation_steps=1, max_steps=2, use_vllm=True)
for mode in ({{"vllm_mode": "server", "vllm_server_base_url": {url!r}, "vllm_group_port": {port}}},
             {{"vllm_mode": "colocate", "vllm_tensor_parallel_size": 2}}):
    model = toys.policy().from_pretrained(folder / "policy")
    trainer = toys.trainer(folder / mode["vllm_mode"], model=model, **settings, **mode)
    rank = torch.distributed.get_rank()
    prompts = [[4 + rank, 7 + i] for i in range(3 - rank)]  # unequal counts
    responses = tests.ask(trainer, prompts, top_k=1)
    engine = Engine(toys.policy(), toys.tokenizer())
    greedy = vllm.SamplingParams(top_k=1, max_tokens=8, stop_token_ids=[toys.EOS])
    assert [response.token_ids for response in responses] == [engine.generate(ids, greedy)[0] for ids in prompts]
    trainer.train()
    norm = sum(part.detach().double().norm() for part in trainer.model.parameters())
    assert len(set(trainer.accelerator.gather(norm[None]).tolist())) == 1, "the processes' weights differ"
    difference = toys.logged(trainer, "sampling/sampling_logp_difference/mean")
    assert 0 < difference[0] < 0.1, difference
toys.leave()
"""


def test_two_processes_get_their_own_rows(tmp_path, serve):  # noqa: F811
    saved_policy(tmp_path / "policy")
    server = serve()
    body = TWO_RANKS.format(folder=str(tmp_path), url=server.url, port=free_port())
    toys.run_two(tmp_path / "two_ranks.py", body)
    # 3 + 2 prompts of unequal processes, then one rollout of 2 responses on each; only one process joins the server.
    assert server.count("/v1/completions") == 5 + 4 and server.count("/init_weight_transfer_engine") == 1


SHARDED = """
from pathlib import Path
import torch, ppo_toys as toys, test_ppo_vllm as tests
tests.install_stub()
import vllm
toys.without_compiling()
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from llmrecipes.ppo.config import PPOConfig
folder = Path({folder!r})
for kind in ("full", "lora"):
    known = PPOConfig(output_dir=str(folder), use_cpu=True)  # as long as it lives, ZeRO-3 spreads models while read
    model = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    extra = {{"peft_config": LoraConfig(r=4, target_modules="all-linear")}} if kind == "lora" else {{}}
    trainer = toys.trainer(
        folder / kind, model, per_device_train_batch_size=2, gradient_accumulation_steps=1, value_model="shared",
        use_vllm=True, num_completions_to_print=0, trainer_arguments={{"eval_dataset": toys.prompts(5, seed=2), **extra}},
    )
    del known
    trainer.train()
    trainer.evaluate()
    trainer.save_model(str(folder / kind))
    rank = trainer.args.process_index
    engine = vllm.LLM.instances[-1].engine.weights
    save_file(dict(engine.named_parameters()), folder / kind / f"engine-{{rank}}.safetensors")
toys.leave()
"""


@pytest.mark.parametrize("topology", ["fsdp2", pytest.param("zero3", marks=pytest.mark.long)])
def test_sharded_policy_reaches_the_engine_whole(tmp_path, topology):
    saved_policy(tmp_path / "policy", tie_word_embeddings=True)
    configs = Path(__file__).parent.parent / "configs" / "accelerate"
    config = yaml.safe_load((configs / f"{topology}.yaml").read_text()) | {"num_processes": 2, "use_cpu": True}
    (tmp_path / "launch.yaml").write_text(yaml.safe_dump(config))
    launcher = "accelerate.commands.launch", "--config_file", str(tmp_path / "launch.yaml")
    toys.run_two(tmp_path / "sharded.py", SHARDED.format(folder=str(tmp_path)), *launcher)
    start = load_file(tmp_path / "policy" / "model.safetensors")
    trained = load_file(tmp_path / "full" / "model.safetensors")
    adapted = PeftModel.from_pretrained(toys.policy().from_pretrained(tmp_path / "policy"), tmp_path / "lora")
    merged = adapted.merge_and_unload().state_dict()
    for kind, expected in (("full", trained), ("lora", merged)):
        for rank in (0, 1):
            engine = load_file(tmp_path / kind / f"engine-{rank}.safetensors")
            assert set(engine) == set(start)
            for name, weight in engine.items():
                torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=1e-5, msg=f"{kind}: {name}")
            name = "model.layers.0.self_attn.q_proj.weight"
            assert not torch.allclose(engine[name], start[name], atol=1e-4), f"{kind} was not trained"
