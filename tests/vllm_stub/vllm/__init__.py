"""What TRL and llmrecipes use of vLLM 0.30, under its names and signatures, on a CPU: a stand-in for tests, only on the
path of those that ask for it. Its engine computes in bfloat16, so its log-probabilities differ from a float32 policy's.
"""

from dataclasses import dataclass
from types import SimpleNamespace

from safetensors.torch import load_file
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoTokenizer

from .engine import Engine, Logprob
from .sampling_params import SamplingParams

__version__ = "0.30.0"


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list | None
    outputs: list[CompletionOutput]
    finished: bool


def _read(folder):
    """The model in `folder`; by hand, because from_pretrained would spread it over the processes under ZeRO-3."""
    config = AutoConfig.from_pretrained(folder)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    model.load_state_dict(load_file(f"{folder}/model.safetensors"), strict=False)  # without a tied head
    return model


class LLM:
    """`calls` records what was asked of each engine, `instances` the engines."""

    instances: list["LLM"] = []

    def __init__(
        self,
        model: str,
        *,
        tokenizer=None,
        trust_remote_code=False,
        tensor_parallel_size=1,
        dtype="auto",
        quantization=None,
        seed=0,
        gpu_memory_utilization=0.9,
        **engine_args,
    ):
        known = {"max_model_len", "max_num_seqs", "enable_sleep_mode", "model_impl", "distributed_executor_backend"}
        unknown = set(engine_args) - known - {"max_num_batched_tokens", "logprobs_mode"}
        assert not unknown, unknown
        self.arguments = {"gpu_memory_utilization": gpu_memory_utilization, "seed": seed, **engine_args}
        self.engine = Engine(_read(model), AutoTokenizer.from_pretrained(model))
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=SimpleNamespace(load_weights=self._load_weights)))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))
        self.calls: list[str] = []
        self.awake = {"weights", "kv_cache"}
        LLM.instances.append(self)

    def _load_weights(self, pairs):
        assert "weights" in self.awake, "the weights' memory is not there"
        self.engine.load_weights(pairs)

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None, priority=None):
        assert self.awake == {"weights", "kv_cache"}
        self.calls.append("generate")
        outputs = []
        for number, (prompt, params) in enumerate(zip(prompts, sampling_params, strict=True)):
            assert isinstance(params, SamplingParams)
            ids = prompt["prompt_token_ids"]
            tokens, logprobs, text, reason = self.engine.generate(ids, params)
            output = CompletionOutput(0, text, tokens, None, None if params.logprobs is None else logprobs, reason)
            outputs.append(RequestOutput(str(number), None, ids, None, [output], True))
        return outputs

    def sleep(self, level: int = 1):
        self.calls.append("sleep")
        self.awake.clear()
        self.engine.discard()

    def wake_up(self, tags: list[str] | None = None):
        self.calls.append(f"wake_up {tags}")
        self.awake |= set(tags or {"weights", "kv_cache"})

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset_prefix_cache")
        return True
