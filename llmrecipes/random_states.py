"""States of the random generators that a training draws from: Python's, NumPy's, torch's on CPU and GPUs."""

import random

import numpy as np
import torch


def random_states() -> dict:
    """All of them as they are now."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict) -> None:
    """All of them as `random_states` returned them."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.random.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
