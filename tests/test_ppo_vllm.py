"""Rollouts by vLLM: the server's HTTP interface and the colocated engine, both against a stand-in (tests/vllm_stub) of what
TRL's client uses of vLLM; the correction against hand-computed values."""

import copy
import math
import os
import socket
import sys
import time
from pathlib import Path

import ppo_toys as toys
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from ppo_toys import logged
from test_ppo_resume import assert_same

from llmrecipes.config import InputError
from llmrecipes.generation import Response
from llmrecipes.ppo import experience
from llmrecipes.ppo.config import PPOConfig
from llmrecipes.ppo.losses import importance_sampling_ratio, policy_loss
from llmrecipes.tokenizers import train_tokenizer

STUB = Path(__file__).parent / "vllm_stub"
CORRECTION = {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 2.0}


def install_stub() -> None:
    """Puts the stand-in where `import vllm` finds it and lets TRL take the CPU for a GPU in the one place it asks."""
    sys.path.insert(0, str(STUB))
    from trl.generation.vllm_client import VLLMClient

    original = VLLMClient.init_communicator
    VLLMClient.init_communicator = lambda self, device: original(self, device="cuda")


@pytest.fixture
def vllm():
    environment, path, modules = dict(os.environ), list(sys.path), dict(sys.modules)
    ours = ("trl.generation", "vllm", "vllm_server")

    def forget():
        for name in [name for name in sys.modules if name in ours or name.startswith(tuple(f"{n}." for n in ours))]:
            del sys.modules[name]

    forget()  # TRL looks for vLLM when these are imported
    install_stub()
    import vllm

    yield vllm
    forget()
    sys.modules.update({name: module for name, module in modules.items() if name not in sys.modules})
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)  # a colocated engine writes RANK and others


@pytest.fixture
def serve(vllm):
    from vllm_server import Server

    started = []

    def start(tokenizer=None, **options) -> Server:
        tokenizer = tokenizer or toys.tokenizer()
        started.append(Server(toys.policy(seed=9, vocabulary=len(tokenizer)), tokenizer, **options))  # other weights yet
        return started[-1]

    yield start
    for server in started:
        server.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def by_server(server, **arguments) -> dict:
    return {
        "use_vllm": True,
        "vllm_mode": "server",
        "vllm_server_base_url": server.url,
        "vllm_server_timeout": 5.0,
        "vllm_group_port": free_port(),
        **CORRECTION,
        **arguments,
    }


class Recorded:
    """Wraps a sampler: keeps its responses and the policy's weights at each call."""

    def __init__(self, trainer):
        self.sampler, self.responses, self.weights = trainer.sampler, [], []
        trainer.sampler = self

    def __call__(self, model, prompts, **options):
        self.weights.append(copy.deepcopy(model.state_dict()))
        self.responses.append(self.sampler(model, prompts, **options))
        return self.responses[-1]

    def __getattr__(self, name):
        return getattr(self.sampler, name)


def saved_policy(folder, **changes):
    """The toy policy as read from where a colocated engine reads it too."""
    toys.policy(**changes).save_pretrained(folder)
    toys.tokenizer().save_pretrained(folder)
    return toys.policy().from_pretrained(folder)


def assert_holds(engine, weights: dict[str, torch.Tensor]) -> None:
    for name, weight in engine.weights.named_parameters():
        assert torch.equal(weight, weights[name]), name


# ---- The correction ----


@pytest.mark.parametrize(
    ("mode", "low", "high", "expected"),
    [
        ("token_truncate", 0.8, 1.5, [[1.5, 0.8, 1.0], [1.25, 0.0, 0.0]]),
        ("token_truncate", None, 1.5, [[1.5, 0.5, 1.0], [1.25, 0.0, 0.0]]),
        ("token_mask", 0.8, 1.5, [[0.0, 0.0, 1.0], [1.25, 0.0, 0.0]]),
        ("token_mask", 0.4, None, [[2.0, 0.5, 1.0], [1.25, 0.0, 0.0]]),
        ("sequence_truncate", None, 1.2, [[1.0, 1.0, 1.0], [1.2, 0.0, 0.0]]),
        ("sequence_mask", None, 1.2, [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]),
    ],
)
def test_ratio_equals_the_hand_computed(mode, low, high, expected):
    # Ratios of row 0: 2, 1/2, unknown (counts as 1), in all 1; of row 1: 5/4, then padding.
    policy = torch.tensor([[0.6, 0.2, 0.3], [0.5, 0.9, 0.9]]).log()
    sampler = torch.tensor([[0.3, 0.4, math.nan], [0.4, math.nan, 0.1]]).log()
    mask = torch.tensor([[True, True, True], [True, False, False]])
    ratio = importance_sampling_ratio(policy, sampler, mask, mode, low, high)
    torch.testing.assert_close(ratio, torch.tensor(expected))


def test_ratio_weighs_each_token_of_the_policy_loss_alone():
    mask, old = torch.tensor([[True, True], [True, False]]), torch.zeros(2, 2)
    advantages, weights = torch.tensor([[1.0, -2.0], [3.0, 9.0]]), torch.tensor([[0.5, 2.0], [0.0, 7.0]])
    loss, stats = policy_loss(old, old, advantages, mask, 0.2, weights)
    assert loss.item() == -0.5 + 4.0 and stats["ratio"].item() == 3.0


# ---- Server ----


def test_run_by_a_server_equals_one_that_is_given_its_responses(tmp_path, serve):
    server = serve()
    trainer = toys.trainer(tmp_path / "server", **by_server(server))
    recorded = Recorded(trainer)
    trainer.train()

    # One update of the weights for each of the two rollouts, with what the policy was then.
    assert server.count("/update_weights") == server.count("/reset_prefix_cache") == 2
    assert_holds(server.engine, recorded.weights[1])
    assert not torch.equal(recorded.weights[0]["lm_head.weight"], recorded.weights[1]["lm_head.weight"])

    asked = [body for path, body in server.requests if path == "/v1/completions"]
    sampled = [prompt for prompt, _ in server.completions]
    assert len(asked) == 16 and all(body["prompt"][0] in trainer.train_dataset["prompt_ids"] for body in asked)
    assert len({body["seed"] for body in asked}) == 16
    expected = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "max_tokens": 8}
    assert all(body[name] == value for body in asked for name, value in expected.items())
    assert all(body["stop_token_ids"] == [toys.EOS] for body in asked) and sorted(sampled) == sorted(
        body["prompt"][0] for body in asked
    )

    def replay(name, change):
        replayed = toys.trainer(tmp_path / name, **CORRECTION)
        rollouts = iter(recorded.responses)
        replayed.sampler = lambda *_, **__: [change(response) for response in next(rollouts)]
        replayed.train()
        return replayed

    assert_same(trainer, replay("same", lambda response: response))
    uncorrected = replay("uncorrected", lambda response: Response(response.token_ids, response.finish_reason))
    assert logged(uncorrected, "score") == logged(trainer, "score")
    assert logged(uncorrected, "policy_loss")[0] != logged(trainer, "policy_loss")[0]

    assert 0 < logged(trainer, "sampling/sampling_logp_difference/mean")[0] < 0.1
    least, mean, most = (logged(trainer, f"sampling/importance_sampling_ratio/{name}")[0] for name in ("min", "mean", "max"))
    assert least < mean < most <= 2.0 and mean == pytest.approx(1, abs=0.1)


def test_logged_figures_equal_those_computed_from_the_rollout(tmp_path, serve, monkeypatch):
    trainer = toys.trainer(tmp_path, max_steps=1, **by_server(serve(), vllm_importance_sampling_mode="sequence_mask"))
    recorded, seen = Recorded(trainer), []
    make_rollout = experience.make_rollout
    monkeypatch.setattr(experience, "make_rollout", lambda *args: seen.append(make_rollout(*args)) or seen[-1])
    trainer.train()
    rows = [
        (policy[: len(response.logprobs)], torch.tensor(response.logprobs))
        for policy, response in zip(seen[0].logprobs, recorded.responses[0], strict=True)
    ]
    differences = torch.cat([(policy - sampler).abs() for policy, sampler in rows])
    ratios = torch.stack([(policy - sampler).sum().exp() for policy, sampler in rows])
    expected = {
        "sampling_logp_difference/mean": differences.mean(),
        "sampling_logp_difference/max": differences.max(),
        "importance_sampling_ratio/min": ratios.min(),
        "importance_sampling_ratio/mean": ratios.mean(),
        "importance_sampling_ratio/max": ratios.max(),
    }
    for name, value in expected.items():
        assert logged(trainer, f"sampling/{name}") == [pytest.approx(value.item(), rel=1e-5)], name
    mask = torch.arange(seen[0].logprobs.shape[1]) < seen[0].response_lengths[:, None]
    torch.testing.assert_close(seen[0].importance_sampling_ratio, ratios[:, None] * mask)


def test_resumed_run_equals_the_uninterrupted_one(tmp_path, serve):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}
    whole = toys.trainer(tmp_path, **settings, **by_server(serve()))
    whole.train()
    server = serve()
    resumed = toys.trainer(tmp_path, **settings, **by_server(server))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))  # in the middle of the first rollout
    assert server.count("/update_weights") == 1
    assert_same(resumed, whole)


def test_evaluation_samples_from_the_weights_of_the_moment(tmp_path, serve):
    server = serve()
    trainer = toys.trainer(
        tmp_path,
        max_steps=2,
        trainer_arguments={"eval_dataset": toys.prompts(8, seed=5)},
        per_device_eval_batch_size=4,
        num_completions_to_print=0,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="kl",
        greater_is_better=False,
        **by_server(server),
    )
    trainer.train()
    assert server.count("/update_weights") == 1 + 2  # the rollout's, then one for each evaluation of two batches
    assert trainer.state.best_global_step == 1
    for _ in range(2):  # the policy is the one after step 1 again; a second time it is there already
        trainer.evaluate()
        assert server.count("/update_weights") == 4
    assert_holds(server.engine, trainer.model.policy.state_dict())


@pytest.mark.parametrize("mode", ["server", "colocate"])
def test_adapter_is_merged_for_the_engine_and_the_weights_below_it_stay_exactly_as_they_are(tmp_path, vllm, serve, mode):
    lora = {"peft_config": LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)}
    server, model = serve(), saved_policy(tmp_path / "policy")
    arguments = by_server(server) if mode == "server" else {"use_vllm": True}
    trainer = toys.trainer(tmp_path, model, learning_rate=0.0, max_steps=6, trainer_arguments=lora, **arguments)
    before = copy.deepcopy(trainer.model.policy.state_dict())
    trainer.train()
    engine = server.engine if mode == "server" else vllm.LLM.instances[-1].engine
    assert mode == "colocate" or server.count("/update_weights") == 3
    for name, weight in trainer.model.policy.state_dict().items():
        assert torch.equal(weight, before[name]), name
    merged = copy.deepcopy(trainer.model.policy).merge_and_unload()
    for name, weight in engine.weights.named_parameters():
        torch.testing.assert_close(weight, merged.get_parameter(name), atol=1e-6, rtol=1e-5)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(merged.get_parameter(name), toys.policy().get_parameter(name), atol=1e-3)
    assert logged(trainer, "sampling/sampling_logp_difference/mean")[-1] < 0.1


def ask(trainer, prompts, **options):
    trainer.sampler.sync_weights(0)
    settings = {"max_new_tokens": 8, "eos_token_ids": [toys.EOS], "generator": torch.Generator().manual_seed(0)}
    return trainer.sampler(None, prompts, **{**settings, **options})


def test_finish_reason_says_whether_the_model_ended_the_response(tmp_path, serve, caplog):
    tok = train_tokenizer(["abc"], 259, 64)  # bytes and special tokens, of which the second is no EOS
    special = next(token for token in tok.all_special_tokens if token != tok.eos_token)
    strings = [*"0123456789ABC", "NO", special]
    data = Dataset.from_list([{"prompt": "abc"}] * 8)
    trainer = toys.trainer(
        tmp_path,
        model=toys.policy(vocabulary=259),
        tok=tok,
        data=data,
        stop_strings=strings,
        per_device_generation_batch_size=100,
        **by_server(serve(tok)),
    )
    torch.nn.init.zeros_(trainer.model.policy.lm_head.weight)  # each token as likely as any other
    options = {"eos_token_ids": trainer.eos_token_ids, "stopping_criteria": trainer.stopping_criteria}
    with torch.no_grad():
        responses = ask(trainer, [[65, 66]] * 120, **options)
    ends = {"eos": 0, "string": 0, "special": 0, "length": 0}
    for response in responses:
        ids, text = response.token_ids, tok.decode(response.token_ids)
        end = "eos" if ids[-1] in trainer.eos_token_ids else "special" if text.endswith(special) else "length"
        end = "string" if text[-1] in "0123456789ABC" or text.endswith("NO") else end
        ends[end] += 1
        assert response.finish_reason == ("length" if end == "length" else "stop")
        assert end != "length" or len(ids) == 8
        assert not set(trainer.eos_token_ids) & set(ids[:-1]) and len(response.logprobs) == len(ids)
        assert not any(string in tok.decode(ids[:-1]) for string in strings)
    assert all(count > 1 for count in ends.values()), ends
    assert len({tuple(response.token_ids) for response in responses}) > 100  # each has its own seed
    assert not [record for record in caplog.records if record.name.startswith("urllib3")]  # nothing retried or dropped


def test_correction_switched_off_asks_for_no_logprobs_and_weighs_nothing(tmp_path, serve):
    server = serve(logprobs_mode="raw_logprobs")
    trainer = toys.trainer(tmp_path, max_steps=1, **by_server(server, vllm_importance_sampling_correction=False))
    trainer.train()
    assert all(body["logprobs"] is None for path, body in server.requests if path == "/v1/completions")
    assert trainer._rollout.importance_sampling_ratio is None
    assert not any(name.startswith("sampling/") for entry in trainer.state.log_history for name in entry)


# ---- What a user can mend ----


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"health": 503}, "not ready within 0.5 s.*503"),
        ({"logprobs_mode": "raw_logprobs"}, "--logprobs-mode processed_logprobs"),
        ({"weight_transfer_config": False}, "--weight-transfer-config"),
    ],
)
def test_server_that_cannot_serve_is_named_in_one_line(tmp_path, serve, options, says):
    server = serve(**options)
    with pytest.raises(InputError, match=says) as error:
        toys.trainer(tmp_path, **by_server(server, vllm_server_timeout=0.5))
    assert "\n" not in str(error.value) and "vLLM server" in str(error.value)


def test_server_that_is_down_is_named_after_the_timeout(tmp_path, vllm):
    started, port = time.monotonic(), free_port()
    down = {"use_vllm": True, "vllm_mode": "server", "vllm_server_host": "127.0.0.1", "vllm_server_port": port}
    with pytest.raises(InputError, match=rf"vLLM server http://127.0.0.1:{port}: not ready within 1 s"):
        toys.trainer(tmp_path, vllm_server_timeout=1.0, **down)
    assert time.monotonic() - started >= 1


def test_refusal_of_the_server_is_one_line(tmp_path, serve):
    server = serve()
    trainer = toys.trainer(tmp_path, **by_server(server))
    server.max_model_len = 9
    with pytest.raises(InputError, match="vLLM server .*400.*maximum context length"):
        ask(trainer, [[5, 6]])


def test_without_vllm_the_config_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("llmrecipes.ppo.config_checks.find_spec", lambda name: None)
    with pytest.raises(InputError, match="use_vllm: vLLM is not installed here .pip install"):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, use_vllm=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"vllm_server_base_url": "localhost:8000"}, "vllm_server_base_url: 'localhost:8000' must begin with http"),
        ({"old_logprobs": "sampler"}, "old_logprobs: sampler is for the built-in decode loop"),
        ({"vllm_mode": "remote"}, "vllm_mode: 'remote' is not one of colocate, server"),
        ({"vllm_tensor_parallel_size": 2}, "vllm_tensor_parallel_size: 2 does not divide the 1 processes"),
        ({"vllm_importance_sampling_clip_min": 4.0}, "clip_min: 4.0 must be less than"),
        ({"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": None}, "clip_max: a"),
        ({"vllm_max_model_length": 8, "max_completion_length": 8}, "leaves no room for a prompt"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(tmp_path, vllm, arguments, says):
    with pytest.raises(InputError, match=says):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, use_vllm=True, **arguments)


def test_context_of_the_engine_bounds_the_prompts(tmp_path, vllm):
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, use_vllm=True, vllm_max_model_length=100)
    assert args.max_prompt_length == 100 - args.max_completion_length


def test_policy_that_lies_nowhere_is_refused(tmp_path, vllm):
    with pytest.raises(InputError, match="vLLM starts from the policy's folder"):
        toys.trainer(tmp_path, use_vllm=True)


# ---- Colocate ----


def test_colocated_engine_trains_as_a_server_does_asleep_or_awake(tmp_path, vllm, serve):
    by_a_server = toys.trainer(tmp_path / "server", **by_server(serve()))
    by_a_server.train()
    for sleep in (False, True):
        model = saved_policy(tmp_path / "policy")
        arguments = {"use_vllm": True, "vllm_enable_sleep_mode": sleep, "per_device_generation_batch_size": 5}
        trainer = toys.trainer(tmp_path / str(sleep), model=model, **arguments, **CORRECTION)
        trainer.train()
        assert_same(trainer, by_a_server)
        llm = vllm.LLM.instances[-1]
        wake, put = ["wake_up ['weights']"] * sleep, ["wake_up ['kv_cache']"] * sleep
        rollout = [*wake, "reset_prefix_cache", *put, "generate", *["sleep"] * sleep]
        assert llm.calls == ["sleep"] * sleep + rollout * 2
        expected = {"gpu_memory_utilization": 0.3, "max_num_seqs": 5, "enable_sleep_mode": sleep, "model_impl": "vllm"}
        assert expected.items() <= llm.arguments.items() and llm.arguments["logprobs_mode"] == "processed_logprobs"


@pytest.mark.parametrize("scale", [1e-2, 1e-4])
def test_an_adapter_is_merged_into_bfloat16_weights_with_a_single_rounding(scale):
    """As `sync_weights` merges it: rounding first the adapter's change and then the sum would lose more of it."""
    policy = get_peft_model(toys.policy().bfloat16(), LoraConfig(r=4, target_modules=["q_proj"]))
    layer = policy.base_model.model.model.layers[0].self_attn.q_proj
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(up, std=scale)
    exact = layer.base_layer.weight.detach().float() + layer.scaling["default"] * up @ down
    policy.merge_adapter()
    assert down.dtype == torch.float32 and torch.equal(layer.base_layer.weight, exact.bfloat16())
