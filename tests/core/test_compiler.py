"""The process that compiles does not outlive who asked for it."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

_CHILD = "from emorl_core.models.compiler import end_with; end_with({parent}); print('on', flush=True); input()"
_PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {child!r}.format(parent=os.getpid())], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
input()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has gone")
def test_it_ends_with_a_server_that_is_killed() -> None:
    command = [sys.executable, "-c", _PARENT.format(child=_CHILD)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        compiler = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
        until = time.monotonic() + 30
        while compiler.is_running() and compiler.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until, "it is still there"
            time.sleep(0.01)


def test_it_does_not_begin_where_who_asked_has_gone() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _CHILD.format(parent=1)], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert ran.stderr.strip() == "who asked for it has gone"
