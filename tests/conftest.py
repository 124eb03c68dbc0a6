"""The libraries are kept from garbage collection: while they are imported, and in Trainer, which asks for it often."""

import gc

gc.disable()


def pytest_collection_finish():
    gc.collect()
    gc.freeze()
    gc.enable()
