"""PPO with a reward model or reward functions, on `transformers.Trainer`.

`config` holds the arguments, `config_checks` what is refused of them, `trainer` the Trainer, `setup` the models it is built
from and their checks, `experience` and `objective` the numbered steps of the algorithm, `rollout` the sampled batch,
`rewards` the scoring, `policy_value` the trained module, `losses` the mathematics, `prompts` the reading and ordering of
prompts.
"""

import importlib

_HOMES = {"PPOTrainer": "trainer", "PPOConfig": "config"}


def __getattr__(name: str):  # lazy: the argument parser only reads this package's source and must not load torch
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
