"""CPU seconds of each test, including all processes that it starts, also through a fork server; other load hardly matters.
A pytest plugin for Linux, with or without workers; prints the slowest files and tests.

Launch: OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile -m "not long" -p benchmarks.cpu_of_tests
"""

import ctypes
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

TICKS = os.sysconf("SC_CLK_TCK")
PR_SET_CHILD_SUBREAPER = 36
spent = Counter()  # CPU seconds of each test


def pytest_configure():
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphaned processes stay descendants of this one


def cpu_seconds() -> float:
    """User and system seconds of this process, its descendants, and the processes that these have waited for."""
    total, todo = 0, [os.getpid()]
    while todo:
        process = Path("/proc", str(todo.pop()))
        with suppress(OSError):  # it has ended
            total += sum(map(int, (process / "stat").read_text().rsplit(")", 1)[1].split()[11:15]))
            for thread in (process / "task").iterdir():
                with suppress(OSError):  # the thread has ended; its process has not
                    todo += (thread / "children").read_text().split()
    return total / TICKS


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_setup(item):
    item.cpu_seconds = cpu_seconds()
    yield


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_teardown(item):
    yield
    item.user_properties.append(("cpu_seconds", cpu_seconds() - item.cpu_seconds))


def pytest_runtest_logreport(report):
    if report.when == "teardown":
        spent[report.nodeid] = dict(report.user_properties).get("cpu_seconds", 0)


def pytest_terminal_summary(terminalreporter):
    files = Counter()
    for test, seconds in spent.items():
        files[test.split("::")[0]] += seconds
    terminalreporter.section(f"{spent.total():.0f} CPU seconds in {len(spent)} tests, without imports at the start")
    for slowest in (files.most_common(15), spent.most_common(25)):
        terminalreporter.write("".join(f"{seconds:7.1f} s  {name}\n" for name, seconds in slowest) + "\n")
