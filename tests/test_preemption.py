"""Signals to stop, in this process; tests/faults has those of whole runs."""

import os
import signal
import subprocess
import sys

from jax.experimental import multihost_utils
import numpy as np
import pytest

from hawis_jax.runtime import checkpoint
from hawis_jax.runtime import preemption

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

pytestmark = pytest.mark.usefixtures("nothing_ignored", "_noticed_is_forgotten")


@pytest.fixture
def _noticed_is_forgotten():
  """Else the next loop of this process would stop."""
  yield
  with preemption.watch():
    pass


@pytest.mark.parametrize("number", _SIGNALS)
def test_the_first_signal_is_noticed_the_second_is_not_ours(number, capfd):
  before = [signal.getsignal(each) for each in _SIGNALS]
  with preemption.watch():
    assert not preemption.reached()
    os.kill(os.getpid(), number)
    assert preemption.reached() and preemption.reached()
    assert capfd.readouterr().err.startswith(f"{number.name}: saving after")
    for each in _SIGNALS:  # the system's own: it ends the process
      assert signal.getsignal(each) == signal.SIG_DFL
  assert [signal.getsignal(each) for each in _SIGNALS] == before
  with preemption.watch():  # another run of this process
    assert not preemption.reached()


def test_what_is_ignored_stays_ignored():
  """As under nohup."""
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with preemption.watch():
      os.kill(os.getpid(), signal.SIGHUP)
      assert not preemption.reached()
      os.kill(os.getpid(), signal.SIGTERM)
      assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  finally:
    signal.signal(signal.SIGHUP, before)


def test_saves_leave_the_count_of_calls_alone(tmp_path, monkeypatch):
  """Processes agree by it on where to stop; Orbax would count its own steps."""
  counts = []
  monkeypatch.setattr(
    multihost_utils, "reached_preemption_sync_point", counts.append
  )
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(3, {"x": np.arange(3.0)})
    checkpoints.save(4, {"x": np.arange(3.0)})
    assert checkpoints.latest_step() == 4
  assert not counts


_ON_A_TERMINAL = """
import fcntl, pathlib, sys, termios, time
from hawis_jax.runtime import preemption

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
with preemption.watch():
  print("watching", flush=True)
  while not preemption.reached():
    time.sleep(0.01)
  print("progress", flush=True)
  pathlib.Path(sys.argv[1]).write_text("saved")
sys.exit(75)
"""


def test_a_terminal_that_is_closed(tmp_path):
  """What is printed afterwards, to nobody, fails nothing."""
  ours, theirs = os.openpty()
  process = subprocess.Popen(
    [sys.executable, "-c", _ON_A_TERMINAL, tmp_path / "saved"],
    stdin=theirs,
    stdout=theirs,
    stderr=theirs,
    start_new_session=True,
  )
  os.close(theirs)
  shown = b""
  while b"watching" not in shown:
    shown += os.read(ours, 1000)
  os.close(ours)
  assert process.wait(timeout=60) == 75
  assert (tmp_path / "saved").exists()


_TALKS = """
import pathlib, sys, time
from hawis_jax.runtime.metrics import Metrics

with Metrics(pathlib.Path(sys.argv[1])) as metrics:
  progress = metrics.stage("pretrain", 2)
  input()  # until nobody reads any more
  progress.report(1, {"loss": 1.0})
  progress.report(2, {"loss": 0.5})
  metrics.say("done")
"""


def test_output_that_nobody_reads(tmp_path):
  process = subprocess.Popen(
    [sys.executable, "-c", _TALKS, tmp_path],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  assert process.stdout.readline().startswith(b"pretrain  begins")
  process.stdout.close()
  process.stdin.write(b"\n")
  process.stdin.close()
  assert process.wait(timeout=60) == 0
  assert process.stderr.read() == b""
  process.stderr.close()
  assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
