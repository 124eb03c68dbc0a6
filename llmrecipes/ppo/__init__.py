"""PPO with a reward model or reward functions, on `transformers.Trainer`.

`config` holds the arguments, `trainer` the Trainer, `setup` what it is made of, `experience` and `objective` the numbered
steps, `rollout` the sampled batch, `rewards` the scoring, `policy_value` the trained module, `losses` the mathematics,
`prompts` the reading and ordering of prompts.
"""

import importlib

_HOMES = {"PPOTrainer": "trainer", "PPOConfig": "config"}


def __getattr__(name: str):  # lazily: the parser reads this package's source and loads no torch
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
