"""The process that compiles: it stands still when told to, and does not outlive who asked for it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from emorl_core.errors import UnsupportedModel
from emorl_core.models.compiling import Compilation, Recipe

_CHILD = "from emorl_core.models.compiler import end_with; end_with({parent}); print('on', flush=True); input()"
_PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {child!r}.format(parent=os.getpid())], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
input()
"""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has gone")
def test_it_ends_with_a_server_that_is_killed() -> None:
    command = [sys.executable, "-c", _PARENT.format(child=_CHILD)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        compiler = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
        until(lambda: not compiler.is_running() or compiler.status() == psutil.STATUS_ZOMBIE)


def test_it_does_not_begin_where_who_asked_has_gone() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _CHILD.format(parent=1)], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert ran.stderr.strip() == "who asked for it has gone"


def test_it_stands_still_when_told_to_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emorl_core.models.compiling._RUN", "import time; time.sleep(600)")
    compilation = Compilation([Recipe("nowhere:nothing", (), ())], tmp_path, finish=list)
    outcome: list[UnsupportedModel] = []

    def make() -> None:
        with pytest.raises(UnsupportedModel) as caught:
            compilation.make()
        outcome.append(caught.value)

    asking = threading.Thread(target=make)
    compilation.pause(True)  # there is nothing yet
    asking.start()
    until(lambda: compilation._process is not None)
    assert compilation._process is not None
    compiler = psutil.Process(compilation._process.pid)
    compilation.pause(True)
    until(lambda: compiler.status() == psutil.STATUS_STOPPED)
    compilation.pause(False)
    until(lambda: compiler.status() != psutil.STATUS_STOPPED)
    compilation.pause(True)
    compilation.stop()  # a process that stands still ends, too
    asking.join(60)
    assert [error.message for error in outcome]
