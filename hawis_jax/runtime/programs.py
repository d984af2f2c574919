"""Programs that are compiled once: when they are first called, or before.

Some 30 % of the CPU time of the digits' run is XLA's compilation, on one core.
What later stages will call is known by its shapes, so a thread compiles it
beside the stage that runs (see `pipeline.stages`), where a core is free.
"""

from collections.abc import Callable, Iterator
from concurrent import futures
import contextlib
import functools
import inspect
import os
import sys
import threading
from typing import Any

import jax

from hawis_jax import backend

_NICE = 10  # steps of a training wait for the slower of their threads
Jobs = Callable[[], Iterator[Callable[[], Any]]]


class _Made:
  """What is made when it is first asked for, by one of those who ask."""

  def __init__(self, make):
    self._make, self._lock, self._value = make, threading.Lock(), None

  def get(self):
    with self._lock:
      if self._make:
        self._value = self._make()
        self._make = None  # and what it holds
      return self._value


_of_runs = []  # caches, to be emptied


def once(
  most: int, of_a_run: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
  """`functools.lru_cache(most)`, whose callers wait for one that is computing.

  What raises is computed anew at the next call. Results `of_a_run` are
  forgotten at its end: they hold its data.
  """

  def decorate(function):
    signature = inspect.signature(function)

    @functools.lru_cache(most)
    def cached(values, named):
      return _Made(lambda: function(*values, **dict(named)))

    asking = threading.Lock()  # else two may miss at once

    @functools.wraps(function)
    def call(*values, **named):
      # However they are given: by place, by name, or not at all.
      bound = signature.bind(*values, **named)
      bound.apply_defaults()
      with asking:
        made = cached(bound.args, tuple(bound.kwargs.items()))
      return made.get()

    if of_a_run:
      _of_runs.append(cached)

    call.cache_info = cached.cache_info
    return call

  return decorate


class Program:
  """A function that is compiled once for arguments of the same shapes."""

  def __init__(self, compile_: Callable[..., Any]):
    """Takes arguments -> executable."""
    self._compile, self._made = compile_, {}

  def compile(self, *arguments: Any) -> Any:
    """Returns the executable; shapes, placed as arrays will be, are enough.

    Raises:
      InputError: by `device_memory.fitting`, what does not fit a device.
    """
    leaves, structure = jax.tree.flatten(arguments)
    key = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    if key not in self._made:
      make = functools.partial(self._compile, *arguments)
      self._made.setdefault(key, _Made(make))
    return self._made[key].get()

  def __call__(self, *arguments: Any) -> Any:
    """Calls the executable; arguments are arrays."""
    return self.compile(*arguments)(*arguments)


def of(jitted: Any) -> Program:
  """Returns the program of `jax.jit(...)`."""
  return Program(lambda *arguments: jitted.lower(*arguments).compile())


@contextlib.contextmanager
def ahead() -> Iterator[Callable[[Jobs], None]]:
  """Yields a function that has jobs done one after the other on a thread.

  What is left when it closes is not done; what is being compiled then goes on
  by itself, and the process ends after it. A job that fails does so again where
  its program is called, and is told there. The thread takes what time the run
  leaves. With accelerators, of several processes and elsewhere than on Linux no
  job is done: none of these was measured.
  """
  is_alone = jax.process_count() == 1 and backend.platform() == "cpu"
  if not is_alone or not sys.platform.startswith("linux"):
    try:
      yield lambda jobs: None
    finally:
      _forget()
    return
  closing = threading.Event()

  def do(jobs):
    with contextlib.suppress(Exception):
      for job in jobs():
        if closing.is_set():
          return
        with contextlib.suppress(Exception):
          job()

  def give_way():
    """On Linux a thread has a priority of its own."""
    with contextlib.suppress(OSError):
      os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)

  executor = futures.ThreadPoolExecutor(1, "ahead", give_way)
  try:
    yield lambda jobs: executor.submit(do, jobs)
  finally:
    closing.set()
    executor.shutdown(wait=False, cancel_futures=True)
    _forget()


def _forget():
  for cached in _of_runs:
    cached.cache_clear()
