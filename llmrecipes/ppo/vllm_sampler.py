"""Sampling by vLLM, in this process ("colocate") or by a server, in place of `llmrecipes.generation.sample_responses`.

TRL's `VLLMGeneration` starts the engine or connects to the server and streams the policy's weights to it. Its `generate` is
not used: it gives all prompts one seed (every row would be drawn with the same noise), requires the same number of prompts
on every process, and does not return why a response ended.
"""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrecipes.config import InputError
from llmrecipes.generation import Response
from llmrecipes.ppo.config import PPOConfig

Sampled = tuple[list[int], list[float | None] | None]  # a response's tokens and, if asked for, their log-probabilities


class VLLMSampler:
    """A callable with the signature of `sample_responses` whose responses come from vLLM.

    Args:
        policy: the model to sample from, or its PEFT wrapper; `sync_weights` hands its weights to the engine.
        args: PPOConfig; reads vllm_*, stop_strings and per_device_generation_batch_size.
        accelerator: the trainer's. The main process talks to the server and distributes the responses.
        tokenizer: the policy's.

    Raises InputError if the policy cannot be handed over, or the server does not answer or lacks a setting.
    """

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        args: PPOConfig,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
    ):
        from trl.generation.vllm_generation import VLLMGeneration

        if getattr(policy, "is_quantized", False):
            raise InputError("use_vllm: quantised weights cannot be handed to vLLM; drop load_in_4bit or load_in_8bit")
        if args.vllm_mode == "colocate" and not policy.name_or_path:
            raise InputError("use_vllm: vLLM starts from the policy's folder or Hub name, and this policy has none")
        self.args, self.accelerator = args, accelerator
        self.url = args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}"
        self.url = self.url.rstrip("/")
        self.at_a_time = args.per_device_generation_batch_size * accelerator.num_processes  # requests to a server
        self.frozen_weights = _FrozenWeights(policy)
        self._synced_step: int | None = None
        if args.vllm_mode == "server" and accelerator.is_main_process:
            wait_for_server(self.url, args.vllm_server_timeout)
        with self._one_line_errors():
            self.generation = VLLMGeneration(
                model=policy,
                accelerator=accelerator,
                processing_class=tokenizer,
                mode=args.vllm_mode,
                server_base_url=self.url,
                server_timeout=args.vllm_server_timeout,
                group_port=args.vllm_group_port,
                tensor_parallel_size=args.vllm_tensor_parallel_size,
                gpu_memory_utilization=args.vllm_gpu_memory_utilization,
                max_model_length=args.vllm_max_model_length,
                max_num_seqs=args.per_device_generation_batch_size * args.vllm_tensor_parallel_size,
                enable_sleep_mode=args.vllm_enable_sleep_mode,
                model_impl=args.vllm_model_impl,
                trust_remote_code=args.trust_remote_code,
            )
            if args.vllm_mode == "server" and accelerator.is_main_process:
                self._prepare_client(self.generation.vllm_client)

    def _prepare_client(self, client) -> None:
        from requests.adapters import HTTPAdapter

        retries = client.session.get_adapter(self.url).max_retries
        client.session.mount(self.url, HTTPAdapter(max_retries=retries, pool_maxsize=self.at_a_time))
        mode = client.get_server_info()["model_config"]["logprobs_mode"]
        if self.args.vllm_importance_sampling_correction and mode != "processed_logprobs":
            raise InputError(
                f"vLLM server {self.url}: runs with --logprobs-mode {mode}, whose log-probabilities ignore the "
                "temperature; restart it with --logprobs-mode processed_logprobs, or set "
                "vllm_importance_sampling_correction: false"
            )

    def sync_weights(self, step: int) -> None:
        """Sends the policy's weights, adapters merged, to the engine unless it already has those of this optimizer step.
        Every process must call it."""
        if step == self._synced_step and not self.args.vllm_enable_sleep_mode:  # asleep, an engine forgets them
            return
        with self._one_line_errors(), self.frozen_weights.kept():
            self.generation.sync_weights()
        self._synced_step = step

    def forget(self) -> None:
        """To be called when the policy's weights were replaced: the next `sync_weights` sends them whatever the step."""
        self._synced_step = None

    def __call__(
        self,
        model: PreTrainedModel,
        prompts: list[list[int]],
        *,
        max_new_tokens: int,
        eos_token_ids: list[int],
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        stopping_criteria: Callable | None = None,
        **unused,
    ) -> list[Response]:
        """One response per prompt, in order, from the weights of the last `sync_weights` (`model` is ignored). Every
        process must call it; `generator` draws a seed for each response. A log-probability is None if unknown."""
        # Sets every field that the served model's generation config could set, so that none of its defaults apply. Special
        # tokens are kept in the text because a stop string may be one.
        settings = {
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "logprobs": 0 if self.args.vllm_importance_sampling_correction else None,
        }
        extra = {
            "stop_token_ids": list(eos_token_ids),
            "stop": list(self.args.stop_strings or []),
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
        }
        device = "cpu" if generator is None else generator.device
        seeds = torch.randint(2**31, (len(prompts),), generator=generator, device=device).tolist()
        ask = self._ask_server if self.args.vllm_mode == "server" else self._ask_engine
        responses = []
        for tokens, logprobs in ask(prompts, seeds, settings, extra):
            if not tokens:
                raise InputError("vLLM returned an empty response; the engine was stopped or the request aborted")
            # Derived, not read: TRL's client drops vLLM's own reason.
            stopped = tokens[-1] in eos_token_ids
            if stopping_criteria is not None and not stopped:
                complete = bool(stopping_criteria(torch.tensor([tokens]), None)[0])
                stopped = complete or len(tokens) < max_new_tokens
            responses.append(Response(tokens, "stop" if stopped else "length", logprobs))
        return responses

    def _ask_server(self, prompts, seeds, settings, extra) -> list[Sampled]:
        """Sends the prompts of all processes from the main one; each keeps its own answers."""
        mine = list(zip(prompts, seeds, strict=True))
        counts, rows = gather_object([len(mine)]), gather_object(mine)
        answers = [None]
        if self.accelerator.is_main_process:

            def send(row: tuple[list[int], int]) -> Sampled:
                prompt, seed = row
                answer = self.generation.vllm_client.generate(
                    [prompt],
                    **settings,
                    structured_outputs_regex=self.args.vllm_structured_outputs_regex,
                    generation_kwargs={**extra, "seed": seed},
                )
                tokens = answer["completion_ids"][0]
                if answer["logprobs"] is None:
                    return tokens, None
                columns = zip(tokens, answer["logprob_token_ids"][0], answer["logprobs"][0], strict=True)
                return tokens, [values[ids.index(token)] for token, ids, values in columns]

            # A request has one seed, so each response is its own request; as many at a time as the processes would decode.
            with self._one_line_errors(), ThreadPoolExecutor(self.at_a_time) as pool:
                answers = [list(pool.map(send, rows))]
        broadcast_object_list(answers, from_process=0)
        start = sum(counts[: self.accelerator.process_index])
        return answers[0][start : start + len(mine)]

    def _ask_engine(self, prompts, seeds, settings, extra) -> list[Sampled]:
        """Asks the engine in this process. Processes that share an engine by tensor parallelism each pass it the prompts of
        the whole group, and keep their own answers."""
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        llm, own = self.generation.llm, slice(0, len(prompts))
        if self.args.vllm_tensor_parallel_size > 1:
            group = self.generation.tp_group
            parts = [None] * self.args.vllm_tensor_parallel_size
            torch.distributed.all_gather_object(parts, (prompts, seeds), group=group)
            start = sum(len(part[0]) for part in parts[: torch.distributed.get_rank(group)])
            own = slice(start, start + len(prompts))
            prompts, seeds = ([row for part in parts for row in part[i]] for i in (0, 1))
            # The engine's first collective can hang behind one of the training's (huggingface/trl#3671).
            self.accelerator.wait_for_everyone()
        if self.args.vllm_structured_outputs_regex is not None:
            extra = {**extra, "structured_outputs": StructuredOutputsParams(regex=self.args.vllm_structured_outputs_regex)}
        params = [SamplingParams(n=1, seed=seed, **settings, **extra) for seed in seeds]
        if self.args.vllm_enable_sleep_mode:
            llm.wake_up(tags=["kv_cache"])  # sync_weights has woken the weights
        # The engine has a dtype of its own; the trainer's autocast would change its kernels' inputs.
        with torch.autocast(self.accelerator.device.type, enabled=False):
            outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling_params=params, use_tqdm=False)
        if self.args.vllm_enable_sleep_mode:
            llm.sleep(level=2)
        return [_from_output(output.outputs[0]) for output in outputs[own]]

    @contextmanager
    def _one_line_errors(self):
        """Turns errors of server mode into one line: TRL and requests raise many types, some of them bare `Exception`."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            if self.args.vllm_mode != "server":
                raise
            raise InputError(f"vLLM server {self.url}: {' '.join(str(error).split())[:500]}") from error


def _from_output(output) -> Sampled:
    """Tokens and log-probabilities of vLLM's CompletionOutput; NaN, which vLLM may return, becomes None."""
    tokens = list(output.token_ids)
    if output.logprobs is None:
        return tokens, None
    values = [entry[token].logprob for token, entry in zip(tokens, output.logprobs, strict=True)]
    return tokens, [None if math.isnan(value) else value for value in values]


class _FrozenWeights:
    """The frozen weights below an adapter, kept exactly as they are while it is merged and unmerged.

    Adding and subtracting the adapter rounds: after many rollouts the reference (the policy without its adapter) would have
    drifted, and a resumed run, which loads it again, would differ from an uninterrupted one.
    """

    def __init__(self, policy: PreTrainedModel | PeftModel):
        self.policy = policy
        self.copies: list[torch.Tensor] | None = None

    @contextmanager
    def kept(self):
        if not isinstance(self.policy, PeftModel):
            yield
            return
        if self.copies is None:  # frozen, so copied once; in CPU memory, which is less scarce than a GPU's
            self.copies = [weight.to("cpu", copy=True) for weight in self._weights()]
        try:
            yield
        finally:
            for weight, copy in zip(self._weights(), self.copies, strict=True):
                weight.copy_(copy)

    def _weights(self) -> list[torch.Tensor]:
        layers = [module for module in self.policy.modules() if isinstance(module, BaseTunerLayer)]
        return [_local(weight) for layer in layers for weight in layer.get_base_layer().parameters()]


def _local(weight: torch.Tensor) -> torch.Tensor:
    """This process's storage of a weight: its shard, if the weight is sharded."""
    return weight.detach().to_local() if hasattr(weight, "to_local") else weight.detach()


def wait_for_server(url: str, timeout: float) -> None:
    """Returns once `url`/health answers 200.

    Raises InputError after `timeout` seconds, also where TRL's own wait would go on forever: with a server that accepts
    connections but never becomes ready, or another program on its port.
    """
    import httpx

    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        try:
            with httpx.stream("GET", f"{url}/health", timeout=max(left, 1.0)) as response:  # the body may never end
                status = response.status_code
            if status == 200:
                return
            reason = f"its /health answers {status}"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
        left = deadline - time.monotonic()
        if left <= 0:
            raise InputError(
                f"vLLM server {url}: not ready within {timeout:g} s ({reason}); start it as docs/ppo.md shows, or correct "
                "vllm_server_base_url, or vllm_server_host and vllm_server_port, or raise vllm_server_timeout"
            )
        time.sleep(min(left, 2.0))
