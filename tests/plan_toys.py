"""A model's sizes and a job shared by the tests of plans."""

from llmrecipes.plan.architecture import read_architecture
from llmrecipes.plan.job import Job, Rollouts

LLAMA = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 2,
         "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 1024}  # fmt: skip


def job(config, **values) -> Job:
    """A micro-batch of 4 × 512 tokens, mixed precision; `rollouts` as PPO or GRPO has them."""
    grpo = values.pop("grpo", False)
    a = read_architecture(dict(config), "test")
    if values.pop("ppo", False) or grpo:
        r = {"prompt": 256, "response": 128, "decoded": 8, "responses": 64, "epochs": 4, "value": a, "reward": None,
             "separate_value": "lora" not in values and not grpo, "reward_bytes": 4,
             "reference_bytes": 0 if "lora" in values else 4,
             "chunk": None, "temperature": 1.0, "offload": False, "vllm": 0.0}  # fmt: skip
        values |= {"head": "rollouts", "length": 384, "has_reference": "lora" not in values, "rollouts": Rollouts(**r)}
        values |= {"head": "chunked", "padded": True} if grpo else {}
    default = {"head": "logits", "rows": 1, "has_reference": False, "batch": 4, "accumulation": 1, "length": 512, "gpus": 1,
               "weight_bytes": 4, "autocast": True, "optimizer": 8, "checkpointing": False, "padded": False}  # fmt: skip
    return Job(architecture=a, **default | values)
