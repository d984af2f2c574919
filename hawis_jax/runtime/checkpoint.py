"""Checkpoints of a stage: Orbax's `Checkpointer`, and proof of what it reads.

Orbax writes a step to a temporary name and commits it whole, on any file system
that etils knows, gs:// included. It notices bytes that are missing and not bits
that are flipped; so every leaf's type and checksum stand in the checkpoint's
metadata, and what is read must agree with them. All processes of a run must
share the file system.
"""

from collections.abc import Iterator
import contextlib
import functools
import gc
import logging
import os
import sys
import textwrap
from typing import Any, Self
import warnings

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
from orbax.checkpoint import v1 as ocp

from hawis_jax import errors
from hawis_jax.runtime import distributed
from hawis_jax.runtime import storage

_SHOWN = 3  # differing entries named in an error
_LONGEST = 200  # characters of what Orbax says in an error
_MAX_STEP = 2**31 - 1
_PARTIAL = "orbax-checkpoint-tmp"  # after a step's name, while it is written
_COMPLETE = "commit_success.txt"  # of a step in gs:// storage, written last
_CLOSED = "Event loop is closed"
_ARRAYS = (jax.Array, jax.ShapeDtypeStruct, np.ndarray)

_log = logging.getLogger(__name__)


class Reader:
  """Reads the checkpoints of one stage, and writes nothing.

  Attributes:
    directory: of the stage, which need not be there.
  """

  def __init__(self, directory: str | os.PathLike):
    """Takes the directory."""
    self.directory = _absolute(directory)
    self._damaged = []

  def latest_step(self) -> int | None:
    """Returns the newest checkpoint's step, None where there is none."""
    return max(_steps(self.directory), default=None)

  def restore(self, like: Any) -> tuple[int, Any] | None:
    """Reads the newest good checkpoint; logs those it has to skip.

    Args:
      like: pytree like the one saved, of arrays or `jax.ShapeDtypeStruct`s.
        Arrays come back with its shardings, where it has none on the first
        device of each process.

    Returns:
      (step, state), bit for bit as saved, or None where nothing was saved.

    Raises:
      InputError: no checkpoint is good, or it holds another kind of state.
    """
    self._damaged = []
    for step in sorted(_steps(self.directory), reverse=True):
      folder = self.directory / f"{step}"
      state, fault = None, None
      try:
        state = _load(folder, like)
      except errors.InputError:
        raise
      except Exception as error:  # Orbax's for damaged files are of any type
        fault = textwrap.shorten(f"{type(error).__name__}: {error}", _LONGEST)
      # Another process may have met what this one has not.
      fine = multihost_utils.process_allgather(np.int32(fault is None))
      if fine.all():
        return step, state
      _log.warning("skipping a damaged checkpoint: %s: %s", folder, fault)
      self._damaged.append(step)
    if not self._damaged:
      return None
    raise errors.InputError(
      f"{self.directory}: got only damaged checkpoints, needed is one to go on "
      "from; delete this folder to start the stage again"
    )


class Checkpoints(Reader):
  """Writes and restores the checkpoints of one stage.

  Every process calls every method. As a context manager it waits for the last
  save on leaving.

  Attributes:
    directory: of the stage; one object at a time may write to it.
  """

  def __init__(self, directory: str | os.PathLike, keep: int = 2):
    """Creates the directory and removes what interrupted saves left there.

    Args:
      directory: of the stage. What else lies there is left alone, except
        folders that are named like a step.
      keep: how many of the newest checkpoints stay.

    Raises:
      InputError: the directory can't be created or written to.
    """
    super().__init__(directory)
    self._saving = None
    with storage.write_errors(directory):
      distributed.on_first(lambda: _clear(self.directory))
      self._orbax = ocp.training.Checkpointer(
        os.fspath(self.directory),
        preservation_policy=ocp.training.preservation_policies.LatestN(keep),
        step_name_format=_Names(),
        lightweight_initialize=True,  # damaged metadata would end the start
      )
      # JAX's runtime agrees on where to stop by one count of calls, which
      # `preemption.reached` keeps. Orbax would ask it with a step in between,
      # and no process would ever stop; no option of its keeps it from that.
      self._orbax._manager.reached_preemption = lambda step: False

  def save(self, step: int, state: Any) -> None:
    """Starts to save `state`; returns as soon as it may be donated.

    Waits first for the save before it. When complete, it replaces a checkpoint
    of the same step.

    Args:
      step: steps (or updates) done.
      state: pytree of jax and numpy arrays, int, float, bool and str. Orbax
        can't store numpy scalars and empty arrays.

    Raises:
      InputError: the save before this one failed, as for lack of space.
    """
    leaves = {name: _type(name, leaf) for name, leaf in _named(state)}
    sums = {name: _checksum(leaf) for name, leaf in _named(state)}
    self.wait()
    with storage.write_errors(self.directory / f"{step}"):
      while self._damaged:  # else they would count among the newest
        self._orbax.delete(self._damaged.pop())
      self._saving = self._orbax.save_async(
        step,
        state,
        force=True,
        overwrite=True,
        custom_metadata={
          "leaves": leaves,
          "checksums": sums,
          "digest": storage.record_digest([leaves, sums]),
        },
      )

  def latest_step(self) -> int | None:
    """See `Reader.latest_step`; waits for the last save."""
    self.wait()
    return super().latest_step()

  def restore(self, like: Any) -> tuple[int, Any] | None:
    """See `Reader.restore`; waits for the last save."""
    self.wait()
    return super().restore(like)

  def wait(self) -> None:
    """Waits for the last save; raises what made it fail."""
    saving, self._saving = self._saving, None
    with storage.write_errors(self.directory):
      if saving:  # a thread that may hold the error, and speaks of it
        saving.result()
      self._orbax.wait()

  def close(self) -> None:
    """Waits for the last save and lets go of the directory."""
    try:
      self.wait()
    finally:
      with storage.write_errors(self.directory):
        self._orbax.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_) -> None:
    self.close()


def _load(folder, like):
  """The state in a step's folder, which is proven to be what was saved."""
  saved = ocp.metadata(folder).custom_metadata
  if saved["digest"] != storage.record_digest(
    [saved["leaves"], saved["checksums"]]
  ):
    raise ValueError("got other metadata than was saved")
  _check_leaves(
    folder, saved["leaves"], {n: _type(n, leaf) for n, leaf in _named(like)}
  )
  loaded = ocp.load(folder, jax.tree.map(_abstract, like))
  state = jax.tree.map(_own, like, loaded)
  for name, leaf in _named(state):
    if _checksum(leaf) != saved["checksums"][name]:
      raise ValueError(f"{name}: got another content than was saved")
  return state


def saved_digest(
  directory: str | os.PathLike, step: int | None = None
) -> str | None:
  """Returns what tells a saved state from any other, without reading it all.

  Args:
    directory: of a stage.
    step: of the checkpoint; None: the newest.

  Returns:
    The digest of the leaves' types and checksums, in hexadecimal; None where
    there is no such checkpoint, or its metadata is damaged.
  """
  directory = _absolute(directory)
  step = max(_steps(directory), default=None) if step is None else step
  if step is None or step not in _steps(directory):
    return None
  try:
    return ocp.metadata(directory / f"{step}").custom_metadata["digest"]
  except Exception:  # Orbax's for damaged files are of any type
    return None


def _absolute(directory):
  """Orbax fails on others, in the middle of a save."""
  if not storage.is_remote(directory):
    directory = os.path.abspath(directory)
  return epath.Path(directory)


def _steps(directory):
  """All complete steps, damaged ones as well."""
  if not directory.is_dir():  # gs:// storage has no empty folders
    return []
  return [
    int(path.name)
    for path in directory.iterdir()
    if _is_step(path.name) and path.is_dir() and _is_complete(path)
  ]


class _Names:
  """Orbax's names of steps; what has another name is no step."""

  def __init__(self):
    standard = ocp.path.step.standard_name_format()
    self.build_name = standard.build_name
    self.find_step = standard.find_step

  def find_all(self, folder):
    for step in _steps(folder):
      yield ocp.training.CheckpointMetadata(
        step, path=folder / self.build_name(step), metadata=None
      )


def _is_step(name):
  return name.isdecimal() and str(int(name)) == name and int(name) <= _MAX_STEP


def _is_complete(path):
  """Whether a folder named like a step was written to its end."""
  return not storage.is_remote(path) or (path / _COMPLETE).exists()


def _clear(directory):
  """Removes saves that were cut off: Orbax would take more for such ones."""
  if not directory.exists():
    return
  for path in directory.iterdir():
    name, _, rest = path.name.partition(".")
    partial = rest.startswith(_PARTIAL) or not (rest or _is_complete(path))
    if _is_step(name) and partial and path.is_dir():
      path.rmtree()


@contextlib.contextmanager
def without_leftovers() -> Iterator[None]:
  """Drops what Orbax prints, and gcsfs's tracebacks, where they also raise.

  The error that it raises becomes our one line. After an error it goes on to
  the process's end: threads of a failed save may still be writing.
  """
  of_orbax = f"{os.sep}orbax{os.sep}"
  filters = {
    "absl": lambda record: of_orbax not in record.pathname,
    "root": lambda record: of_orbax not in record.pathname,
    "asyncio": lambda record: (
      not any(word in record.getMessage() for word in ("orbax", "tensorstore"))
    ),
    "gcsfs": _without_traceback,  # of requests that it gave up, and raises too
  }
  hook = sys.unraisablehook

  def without_orbax(what):
    """Of coroutines that nobody waits for any more."""
    code = getattr(what.object, "cr_code", None)
    closed = what.object is None and str(what.exc_value) == _CLOSED
    if not (closed or code and of_orbax in code.co_filename):
      hook(what)

  undo = contextlib.ExitStack()
  undo.enter_context(warnings.catch_warnings())
  warnings.filterwarnings(
    "ignore", "coroutine '.*' was never awaited", RuntimeWarning
  )
  for name, keep in filters.items():
    logging.getLogger(name).addFilter(keep)
    undo.callback(logging.getLogger(name).removeFilter, keep)
  sys.unraisablehook = without_orbax
  undo.callback(setattr, sys, "unraisablehook", hook)
  yield
  gc.collect()  # what would be told when it is found later
  undo.close()


def _without_traceback(record):
  record.exc_info = None
  return True


def _named(state):
  """[(name, leaf)] of a pytree."""
  return [
    (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
    for path, leaf in jax.tree.leaves_with_path(state)
  ]


def _type(name, leaf):
  """Type and shape of a leaf, as text."""
  if isinstance(leaf, _ARRAYS) and 0 not in leaf.shape:
    return f"{leaf.dtype}{list(leaf.shape)}"
  if type(leaf) in (bool, int, float, str):
    return type(leaf).__name__
  raise TypeError(f"{name}: got {leaf!r}, which Orbax can't store")


def _checksum(leaf):
  """A number that every flipped bit changes, however the leaf is sharded."""
  if not isinstance(leaf, _ARRAYS):
    return str(leaf)
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    return int(_sum_on_devices(leaf))
  return int(_weighted_sum(np.asarray(leaf), np))


def _weighted_sum(array, library):
  """Sum of the words, each times its own odd number, modulo 2**32."""
  words = array.reshape(-1)
  size = min(words.dtype.itemsize, 4)
  words = words.view(f"uint{8 * size}").astype(library.uint32)
  weights = 2 * library.arange(words.size, dtype=library.uint32) + 1
  return library.sum(words * weights, dtype=library.uint32)


_sum_on_devices = jax.jit(functools.partial(_weighted_sum, library=jax.numpy))


def _check_leaves(folder, got, expected):
  """Raises InputError naming the first differences, if there are any."""
  differing = [
    f"{name}: got {got.get(name, 'nothing')}, "
    f"expected {expected.get(name, 'nothing')}"
    for name in {**expected, **got}
    if got.get(name) != expected.get(name)
  ]
  if differing:
    more = len(differing) - _SHOWN
    raise errors.InputError(
      f"{folder} holds another state than this configuration's: "
      + "; ".join(differing[:_SHOWN])
      + (f"; and {more} more" if more > 0 else "")
      + "; use the configuration it was made with, or another --workdir"
    )


def _abstract(leaf):
  """What Orbax takes for a leaf to restore: arrays need a sharding."""
  if not isinstance(leaf, _ARRAYS) or isinstance(leaf, np.ndarray):
    return leaf
  sharding = leaf.sharding or _on_first_devices()
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _on_first_devices():
  """A whole array on the first device of each process."""
  firsts = {}
  for device in jax.devices():
    firsts.setdefault(device.process_index, device)
  mesh = jax.sharding.Mesh(np.array(list(firsts.values())), ("process",))
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def _own(leaf, loaded):
  """This process's copy of what has no sharding."""
  if isinstance(leaf, _ARRAYS) and not isinstance(leaf, np.ndarray):
    return loaded if leaf.sharding else loaded.addressable_data(0)
  return loaded
