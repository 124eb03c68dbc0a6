"""The libraries are kept from garbage collection: while they are imported, and in Trainer, which asks for it often. What
is installed is read once: accelerate parses a package's metadata again each time it unwraps a model.

A test's random numbers do not depend on the tests before it. The tests of a file share one browser.
"""

import functools
import gc
import importlib.metadata
import shutil

import pytest

gc.disable()
importlib.metadata.metadata = functools.cache(importlib.metadata.metadata)
pytest.register_assert_rewrite("package_index", "push_hub")  # their fixtures: `pytest_plugins` of the files that use them


def pytest_collection_finish():
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_runtest_setup():
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="module")
def chromium():
    """Playwright's browser, started once for a file; it is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")
    path = shutil.which("chromium")
    if not path:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def browser(chromium):
    """The same without the pages of the tests before: a page left open goes on drawing and asking."""
    yield chromium
    for context in chromium.contexts:
        context.close()
