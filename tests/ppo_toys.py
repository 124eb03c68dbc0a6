"""Tiny models, tokenizer and prompts shared by the PPO tests."""

import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from datasets import Dataset
from forked import run_python
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from llmrecipes.generation import Response, sample_responses
from llmrecipes.ppo.config import PPOConfig
from llmrecipes.ppo.trainer import PPOTrainer

VOCABULARY, PAD, EOS = 64, 0, 2
ROOT = Path(__file__).parent.parent
TOPOLOGIES = {"ddp": "cpu", "fsdp2": "fsdp2", "zero2": "zero2", "zero3": "zero3"}  # files of configs/accelerate
# The share of the weights and of the optimizer's state that one of two processes holds.
SHARDED = {
    "fsdp2": {"weights": 0.5, "moments": 0.5},
    "zero2": {"weights": 1.0, "moments": 0.5},
    "zero3": {"weights": 0.5, "moments": 0.5},
}
MOMENTS = ("exp_avg", "momentum_buffer")  # of AdamW and of Muon, as large as the weights
CHAT = "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}{% if add_generation_prompt %}w1 {% endif %}"


def tokenizer(pad_is_eos: bool = False, vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(vocabulary - 4))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad = "</s>" if pad_is_eos else "<pad>"
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, eos_token="</s>", unk_token="<unk>")
    made.chat_template = CHAT
    return made


def llama_config(vocabulary: int = VOCABULARY, **changes) -> LlamaConfig:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": 1,
    }
    return LlamaConfig(vocab_size=vocabulary, **{**sizes, **changes})


def policy(seed: int = 0, **changes) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(llama_config(**changes))


def reward_model(seed: int = 1, **changes) -> LlamaForSequenceClassification:
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(llama_config(**{"num_labels": 1, **changes}))


def prompts(count: int = 64, seed: int = 1) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (count,), generator=generator).tolist()
    rows = [torch.randint(4, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_list([{"prompt": row, "number": i} for i, row in enumerate(rows)])


def even_share(completion_ids, **_) -> list[float]:
    """Share of response tokens with an even id."""
    return [sum(token % 2 == 0 for token in row) / len(row) for row in completion_ids]


def trainer(tmp_path, model=None, reward=even_share, data=None, tok=None, trainer_arguments=None, **arguments) -> PPOTrainer:
    settings = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 8,
        "max_steps": 4,
        "num_ppo_epochs": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "seed": 3,
    }
    args = PPOConfig(**{**settings, **arguments})
    return PPOTrainer(
        model=model or policy(),
        args=args,
        train_dataset=prompts() if data is None else data,
        processing_class=tok or tokenizer(),
        reward_funcs=reward,
        sampler=sample_responses,
        **(trainer_arguments or {}),
    )


def shares_held(trainer, model=None) -> dict[str, float]:
    """The share of `model`'s weights (the trained one's), and of the optimizer's state, that this process holds between
    two steps."""
    weights = list((model or trainer.model).parameters())
    held = [p.ds_tensor if hasattr(p, "ds_id") else getattr(p, "_local_tensor", p) for p in weights]
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters() if p.requires_grad)
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # inside accelerate's and DeepSpeed's
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    moments = [moment for state in optimizer.state.values() for name, moment in state.items() if name in MOMENTS]
    return {
        "weights": sum(p.numel() for p in held) / sum(getattr(p, "ds_numel", p.numel()) for p in weights),
        "moments": sum(getattr(m, "_local_tensor", m).numel() for m in moments) / trained,
    }


def launch(script: str, topology: str, inputs: Path, folder: Path, *argv: str) -> str:
    """What `script inputs folder topology argv...` prints, started in two processes on CPUs under the launch config."""
    config = yaml.safe_load((ROOT / "configs" / "accelerate" / f"{TOPOLOGIES[topology]}.yaml").read_text())
    (folder / "launch.yaml").write_text(yaml.safe_dump(config | {"num_processes": 2, "use_cpu": True}))
    result = run_launched(folder / "launch.yaml", script, inputs, folder, topology, *argv)
    return result.stdout + result.stderr


def run_launched(config: Path, script: str, *argv) -> subprocess.CompletedProcess:
    """`script` with `argv`, started by accelerate under the launch config; it has to succeed."""
    command = ["-m", "accelerate.commands.launch", "--config_file", config, script, *argv]
    result = run_python(*command, env={"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}, children=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
    return result


def run_two(script: Path, body: str, *launcher: str) -> None:
    """Runs `body`, written to `script`, in two processes on CPUs; it may import the tests and has to succeed."""
    script.write_text(f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(ROOT)]!r}\n" + body)
    launcher = launcher or ("torch.distributed.run", "--standalone", "--nproc_per_node=2")
    done = run_python("-m", *launcher, script, env={"DS_ACCELERATOR": "cpu"}, children=True)
    assert done.returncode == 0, done.stderr[-6000:]


def without_compiling() -> None:
    """DeepSpeed's processes talk by gloo alone, not by an operator that it would compile for a minute on two cores."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def leave() -> None:
    """Ends a process of a launch when all are done. Python's own exit aborts now and then in one of torch's threads, when
    nothing is left to do (see `parsing._leave_for_good`)."""
    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def lora() -> dict:
    return {"peft_config": LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1)}


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: part.detach().clone() for name, part in trainer.model.named_parameters()}


def assert_equal_weights(one: dict, other: dict) -> None:
    for name in one:
        assert torch.equal(one[name], other[name]), name


def scripted_sampler(model, prompts, **_) -> list[Response]:
    """Responses that depend on the prompt alone, so that runs with other batches or processes see the same."""
    return [Response([4 + (sum(ids) * k) % 60 for k in range(1, 2 + sum(ids) % 7)], "length") for ids in prompts]


class Scripted:
    """Responses of four tokens to every prompt, of which a tool wrote the third; odd prompts' are cut."""

    def __init__(self, **told):
        self.told = told

    def __call__(self, model, prompts, **_):
        rows = [[4 + (sum(ids) * k) % 60 for k in range(1, 5)] for ids in prompts]
        return [
            Response(row, "length" if len(ids) % 2 else "stop", **self.told) for ids, row in zip(prompts, rows, strict=True)
        ]


def one_update(tmp_path, sampler, **arguments) -> PPOTrainer:
    settings = {"max_steps": 1, "num_ppo_epochs": 1, "whiten_advantages": False} | arguments
    trained = trainer(tmp_path, data=prompts(8), **settings)
    trained.sampler = sampler
    trained.train()
    return trained
