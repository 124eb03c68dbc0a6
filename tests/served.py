"""A page of ours served on a free port while a test looks at it."""

from contextlib import contextmanager
from threading import Thread

from llmrecipes.web import prepare_server


@contextmanager
def served(app):
    """The address of `app`, an ASGI application, which ends with the block."""
    address, run, stop = prepare_server(app, "127.0.0.1", 0)
    thread = Thread(target=run)
    thread.start()
    try:
        yield address
    finally:
        stop()
        thread.join(20)
