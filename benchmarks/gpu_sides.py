"""What benchmarks/gpu.py compares: in training the recipes' trainers and a hand-written loop, on random tokens; in PPO the
sides of ppo_sides.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def ppo_side(side: str, trl: str | None, *arguments: str) -> dict:
    """What ppo_sides.py with `side` and `arguments` finds in a process of its own; RuntimeError with what it printed if it
    fails. trl: the folder with trl 1.12.0."""
    path = os.pathsep.join(([trl] if side == "trl" else []) + [str(ROOT), os.environ.get("PYTHONPATH", "")])
    script = [sys.executable, str(ROOT / "benchmarks/ppo_sides.py"), side, *arguments]
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(script, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-1500:])
    return json.loads(done.stdout.splitlines()[-1])


def build_model(shape: tuple):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width, heads, length, _, vocabulary = shape
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=-(-8 * width // 3) // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2 * length,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def arguments(cls, folder: str, shape: tuple, steps: int, **more):
    import torch

    cuda = torch.cuda.is_available()
    values = {
        "per_device_train_batch_size": shape[4],
        "learning_rate": 1e-4,
        "logging_steps": steps,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": cuda,
        "use_cpu": not cuda,
        "torch_compile": cuda,
        "optim": "adamw_torch_fused",
        "dataloader_pin_memory": cuda,
        "activation_checkpointing": False,
        "dataloader_num_workers": 2 if cuda else 0,
    }
    return cls(output_dir=folder, max_steps=steps, **values | more)


def build_pretraining(shape: tuple, steps: int, folder: str, **keys):
    """The recipe's trainer of pretraining, with `keys` of its own, on random rows of full length."""
    import torch
    from datasets import Dataset
    from transformers import TrainingArguments

    from llmrecipes.pretraining import PretrainTrainer
    from llmrecipes.tokens.blocks import collate_blocks

    *_, length, rows, vocabulary = shape
    ids = torch.randint(3, vocabulary, (rows * steps, length))
    return PretrainTrainer(
        model=build_model(shape),
        args=arguments(TrainingArguments, folder, shape, steps),
        train_dataset=Dataset.from_dict({"input_ids": ids.tolist()}).with_format("torch"),
        data_collator=collate_blocks,
        **keys,
    )


def chats(shape: tuple, number: int) -> dict[str, list[list[int]]]:
    """Random rows of different lengths, most of a tenth to a half of the longest; the first half of each carries no loss."""
    import torch

    *_, longest, _, vocabulary = shape
    torch.manual_seed(0)
    lengths = (longest / 4 * (0.6 * torch.randn(number)).exp()).clamp(8, longest).int().tolist()
    ids = [torch.randint(3, vocabulary, (length,)).tolist() for length in lengths]
    return {"input_ids": ids, "labels": [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in ids]}


def build_sft(shape: tuple, steps: int, folder: str, packed: bool, lora: bool, **keys):
    """The recipe's trainer of SFT on rows of different lengths, packed into blocks or joined without padding, three rows for
    each of a block's, with `keys` for its arguments. It has the rows of `steps` steps, no more."""
    import peft
    import trl
    from datasets import Dataset
    from ppo_sides import build_tokenizer

    from llmrecipes.sft import SFTTrainer

    *_, length, rows, vocabulary = shape
    batch = rows if packed else 3 * rows
    rows_of = {"packing": True} if packed else {"padding_free": True}
    trainer = SFTTrainer(
        model=build_model(shape),
        args=arguments(
            trl.SFTConfig, folder, shape, steps, max_length=length, per_device_train_batch_size=batch, **rows_of | keys
        ),
        train_dataset=Dataset.from_dict(chats(shape, (5 if packed else 1) * batch * steps)),
        processing_class=build_tokenizer(vocabulary, False),
        peft_config=peft.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
    )
    trainer.train_dataset = trainer.train_dataset.select(range(batch * steps))
    return trainer


def documents(trainer) -> list[int]:
    """Lengths of the rows that `trainer` learns from, before they are packed or joined."""
    rows = trainer.train_dataset
    if "seq_lengths" in rows.column_names:
        return [length for block in rows["seq_lengths"] for length in block]
    return [len(ids) for ids in rows["input_ids"]]


class Recipe:
    """The recipe's trainer, with what `llmrecipes.resume.run_training` adds to a step, to be run several times."""

    def __init__(self, trainer):
        from training import Clock

        from llmrecipes.logs import use_readable_log
        from llmrecipes.pacing import keep_gpu_busy, stop_where_not_finite

        self.clock, self.trainer, self.losses = Clock(), use_readable_log(trainer), []
        self.trainer.add_callback(self.clock)
        stop_where_not_finite(self.trainer)
        keep_gpu_busy(self.trainer, given={})
        self.model = self.trainer.model

    @property
    def optimizer(self):
        return self.trainer.optimizer

    def run(self) -> list[tuple[float, float]]:
        """Runs the steps; returns the times at which they ended."""
        import torch

        torch.manual_seed(0)  # the rows in one order
        self.losses.append(self.trainer.train().training_loss)
        return self.clock.times


class BareLoop:
    """A hand-written loop with the trainer's rows, precision, compilation, fused AdamW and attention without a mask, which
    in SFT the trainer decides on in its first step, and with all logits."""

    def __init__(self, model, trainer, steps: int):
        import torch

        self.args, self.trainer = trainer.args, trainer
        self.model = model.to(self.args.device).train()
        self.forward = torch.compile(self.model) if self.args.torch_compile else self.model
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
        from llmrecipes.attention import BORDERS

        known = ("input_ids", "labels", "position_ids", *BORDERS)
        batches = list(trainer.get_train_dataloader())[:steps]
        self.batches = [{name: value for name, value in batch.items() if name in known} for batch in batches]

    def run(self) -> list[tuple[float, float]]:
        """Runs the steps; returns the times at which they ended."""
        import torch
        from training import now

        from llmrecipes.attention import BY_DOCUMENT, WITHOUT_MASK, attention_of

        own = BY_DOCUMENT if getattr(self.trainer, "_by_document", False) else "sdpa"
        name = WITHOUT_MASK if getattr(self.trainer, "_needs_no_mask", False) else own
        times = []
        for step, batch in enumerate(self.batches, 1):
            batch = {
                key: value.to(self.args.device, non_blocking=True) if torch.is_tensor(value) else value
                for key, value in batch.items()
            }
            autocast = torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16)
            with autocast, attention_of(self.model, name):
                loss = self.forward(**batch, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            times.append(now(step in (1, len(self.batches))))
        return times
