import gc


def pytest_collection_finish():
    """The imported libraries are left out of garbage collection, which Trainer asks for at each of its steps and ends."""
    gc.collect()
    gc.freeze()
