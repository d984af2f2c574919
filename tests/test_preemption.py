"""Signals to stop, in this process; tests/faults has those of whole runs."""

import os
import signal

import pytest

from hawis_jax import command_line
from hawis_jax import preemption

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.mark.parametrize("number", _SIGNALS)
def test_the_first_signal_is_noticed_the_second_is_not_ours(number, capsys):
  before = [signal.getsignal(each) for each in _SIGNALS]
  with preemption.watch():
    assert not preemption.reached()
    os.kill(os.getpid(), number)
    assert preemption.reached() and preemption.reached()
    assert capsys.readouterr().err.startswith(f"{number.name}: saving after")
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


def test_the_exit_status_of_preemption_is_the_systems():
  assert (
    command_line.PREEMPTED == 75
  )  # EX_TEMPFAIL of sysexits.h; launch/ counts on it
