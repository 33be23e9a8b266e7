"""Processes for tests, forked from one that has imported what they need and done nothing else.

A fork of the process that runs the tests would not do: autograd cannot run in the fork of a process where it has run on
threads. A process of its own would import everything anew.
"""

from __future__ import annotations

import multiprocessing

METHOD = "forkserver"


def prepare_server() -> None:
    """Let the server, which starts with the first process, import the modules of the tests that use it."""
    modules = ["test_distributed", "test_faults"]
    multiprocessing.set_forkserver_preload([f"tests.unit.pretraining.{name}" for name in modules])
