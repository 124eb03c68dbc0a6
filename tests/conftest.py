"""The libraries are kept from garbage collection: while they are imported, and in Trainer, which asks for it often.

A test's random numbers do not depend on the tests before it.
"""

import gc

gc.disable()


def pytest_collection_finish():
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_runtest_setup():
    import torch

    torch.manual_seed(0)
