"""Stopping on request: clusters send SIGTERM before they take a machine away.

A loop asks `reached` after every step; where it is true, it saves and raises
`errors.Preempted`. All processes of a run stop at the same step: JAX's runtime
agrees on it. A run of one process without that runtime watches the signals
itself, Ctrl-C and a terminal that is closed included; the second one ends it at
once.
"""

from collections.abc import Iterator
import contextlib
import itertools
import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

from hawis_jax.runtime import terminal

# With --distributed JAX catches SIGTERM itself.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Watch:
  """What the signal handler leaves behind, and how often it was looked for."""

  def __init__(self):
    self.noticed = False
    self.asked = itertools.count(1)
    self.terminals = []  # descriptors of the standard streams on one


_watch = _Watch()


@contextlib.contextmanager
def watch() -> Iterator[None]:
  """Watches for signals to stop while the block runs."""
  _watch.noticed = False
  main_thread = threading.current_thread() is threading.main_thread()
  if jax.distributed.is_initialized() or not main_thread:
    yield
    return
  _watch.terminals = [stream for stream in (1, 2) if os.isatty(stream)]
  before = {
    number: signal.signal(number, _notice)
    for number in _SIGNALS
    if signal.getsignal(number) != signal.SIG_IGN  # nohup
  }
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def reached() -> bool:
  """Whether all processes are to save and stop now.

  Every process calls it equally often: calls are what they agree on.
  """
  if jax.distributed.is_initialized():
    return multihost_utils.reached_preemption_sync_point(next(_watch.asked))
  return _watch.noticed


def _notice(number, _):
  for each in _SIGNALS:  # the next one is not ours
    if signal.getsignal(each) == _notice:
      signal.signal(each, signal.SIG_DFL)
  _watch.noticed = True
  name = signal.Signals(number).name
  text = f"{name}: saving after this step; once more to end at once\n"
  # Not by print, which the signal may have interrupted.
  with contextlib.suppress(OSError):
    os.write(2, text.encode())
  if number == signal.SIGHUP:  # what is printed now must not fail
    for stream in _watch.terminals:
      terminal.discard(stream)
