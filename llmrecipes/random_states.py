"""States of the random generators that training draws from: Python's, NumPy's, and torch's on CPU and GPUs."""

import contextlib
import random

import numpy as np
import torch


def random_states() -> dict:
    """The current states of all generators."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict) -> None:
    """Sets all generators to states returned by `random_states`."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.random.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])


@contextlib.contextmanager
def kept_random_states():
    """Sets all generators back, at the end, to the states that they have now."""
    states = random_states()
    try:
        yield
    finally:
        set_random_states(states)
