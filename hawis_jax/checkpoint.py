"""Checkpoints of a stage; the only file that imports Orbax.

    <directory>/<step>/state/       the pytree, written by Orbax
    <directory>/<step>/leaves.json  type and shape of every leaf
    <directory>/<step>/files.json   digests of all files (see files.py)

A save goes to `<step>.part` and is renamed at its end, so a folder `<step>`
was complete once. In a bucket (see `buckets`), where there is no renaming, a
folder `<step>` is one once it has files.json, which is written last. Digests
are checked before anything is read: Orbax notices missing bytes but no flipped
ones. All processes must share the file system, or the bucket.
"""

from concurrent import futures
import functools
import logging
import os
import shutil
import sys
from typing import Any, Self
import warnings

import jax
from jax.experimental import multihost_utils
import numpy as np
from orbax.checkpoint import v1 as ocp

from hawis_jax import buckets
from hawis_jax import errors
from hawis_jax import files

_SHOWN = 3  # differing entries named in an error
_ARRAYS = (jax.Array, jax.ShapeDtypeStruct, np.ndarray)
_NONE, _ALL_DAMAGED = -1, -2  # in place of a step, between processes

_log = logging.getLogger(__name__)


def _unraisable(hook, what):
  """Drops what comes of a failed save's writes that nobody waits for."""
  if what.object is None and str(what.exc_value) == "Event loop is closed":
    return
  hook(what)


# What Orbax prints, with long tracebacks, where a save fails: it also raises.
logging.getLogger("absl").addFilter(
  lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname
)
logging.getLogger("asyncio").addFilter(
  lambda record: "orbax" not in record.getMessage()
)
warnings.filterwarnings(
  "ignore",
  "coroutine '(OrbaxLayout|async_serialize).*' was never awaited",
  RuntimeWarning,
)
sys.unraisablehook = functools.partial(_unraisable, sys.unraisablehook)


class Checkpoints:
  """Writes and restores the checkpoints of one stage.

  Every process calls every method. As a context manager it waits for the last
  save on leaving.

  Attributes:
    directory: of the stage; one object at a time may write to it.
  """

  def __init__(self, directory: str | os.PathLike, keep: int = 2):
    """Creates the directory and removes what interrupted saves left there.

    Args:
      directory: of the stage.
      keep: how many of the newest checkpoints stay.

    Raises:
      InputError: the directory can't be created or written to.
    """
    self._in_bucket = buckets.holds(directory)
    self.directory = files.as_path(directory)
    if not self._in_bucket:
      self.directory = self.directory.absolute()
    self._keep = keep
    self._damaged: set[int] = set()
    self._pending: futures.Future | None = None
    files.make_directory(self.directory)
    if jax.process_index() == 0:
      self._clear()
    multihost_utils.sync_global_devices(f"cleared {self.directory}")
    self._thread = futures.ThreadPoolExecutor(1, "checkpoint")

  def save(self, step: int, state: Any) -> None:
    """Starts to save `state`; returns as soon as it may be donated.

    Waits first for the save before it. When complete, it replaces a checkpoint
    of the same step, and all but the last `keep` good ones are removed. (In a
    bucket one of the same step is removed before.)

    Args:
      step: steps (or updates) done.
      state: pytree of jax and numpy arrays, int, float, bool and str. Orbax
        can't store numpy scalars and empty arrays.

    Raises:
      InputError: the save before this one failed, as for lack of space.
    """
    self.wait()
    leaves = _leaves(state)
    part = self.directory / f"{step}.part"
    if self._in_bucket:
      part = self.directory / f"{step}"
      if jax.process_index() == 0:
        self._discard(step)
        self._clear()
      multihost_utils.sync_global_devices(f"save {part}")
    with files.write_errors(part):
      response = ocp.save_async(part, state)
    self._pending = self._thread.submit(self._finish, response, step, leaves)

  def latest_step(self) -> int | None:
    """Returns the newest good checkpoint's step; errors as for `restore`."""
    self.wait()
    return _newest_good(self.directory)

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
    step = self.latest_step()
    if step is None:
      return None
    folder = self.directory / f"{step}"
    _check_leaves(folder, _leaves(like))
    self._damaged = {s for s in _steps(self.directory) if s > step}
    loaded = ocp.load(folder, jax.tree.map(_abstract, like))
    return step, jax.tree.map(_own, like, loaded)

  def wait(self) -> None:
    """Waits for the last save; raises what made it fail."""
    pending, self._pending = self._pending, None
    if pending:
      pending.result()

  def close(self) -> None:
    """Waits for the last save and ends the background thread."""
    try:
      self.wait()
    finally:
      self._thread.shutdown()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _finish(self, response, step, leaves):
    """Makes `<step>.part` a checkpoint; runs in the background."""
    folder = self.directory / f"{step}"
    with files.write_errors(folder):
      response.result()
      if jax.process_index() != 0:
        return
      part = self.directory / (f"{step}" if self._in_bucket else f"{step}.part")
      files.write_json(part / "leaves.json", leaves)
      files.seal(part)
      steps = _steps(self.directory)
      good = [s for s in steps if s < step and s not in self._damaged]
      old = set(steps) - set(good[max(0, len(good) - self._keep + 1) :])
      if not self._in_bucket:
        if step in old:
          self._discard(step)
        part.rename(folder)  # first: at no time is there none
      for each in old - {step}:
        self._discard(each)
      self._clear()

  def _discard(self, step):
    """Makes a checkpoint one that `_clear` deletes."""
    if self._in_bucket:
      files.unseal(self.directory / f"{step}")
      return
    (self.directory / f"{step}").rename(self.directory / f"{step}.part-old")

  def _clear(self):
    """Deletes interrupted saves and half deleted checkpoints."""
    if self._in_bucket:
      for step, sealed in _sealed(self.directory).items():
        if not sealed:
          (self.directory / f"{step}").rmtree(missing_ok=True)
      return
    for folder in self.directory.glob("*.part*"):
      shutil.rmtree(folder)


def _steps(directory):
  if buckets.holds(directory):
    found = _sealed(directory)
    return sorted(step for step, sealed in found.items() if sealed)
  names = (path.name for path in directory.iterdir())
  return sorted(int(name) for name in names if name.isdecimal())


def _sealed(directory):
  """{step: whether it is a checkpoint} of the folders in a bucket."""
  found = {}
  for path in files.contents(directory):
    step, *rest = path.relative_to(directory).parts
    if step.isdecimal():
      found[int(step)] = found.get(int(step), False) or files.is_seal(rest)
  return found


def _newest_good(directory):
  """Newest undamaged step, None where there is no checkpoint at all.

  The first process looks and tells the others.
  """
  found = _NONE
  if jax.process_index() == 0:
    for step in reversed(_steps(directory)):
      fault = files.fault(directory / f"{step}")
      if fault is None:
        found = step
        break
      found = _ALL_DAMAGED
      _log.warning("skipping a damaged checkpoint: %s", fault)
  found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
  if found == _ALL_DAMAGED:
    raise errors.InputError(
      f"{directory}: got only damaged checkpoints, needed is one to go on "
      "from; delete this folder to start the stage again"
    )
  return None if found == _NONE else found


def _leaves(state):
  """Returns {name: type and shape} of a pytree's leaves."""
  leaves = {}
  for path, leaf in jax.tree.leaves_with_path(state):
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    if isinstance(leaf, _ARRAYS) and 0 not in leaf.shape:
      leaves[name] = f"{leaf.dtype}{list(leaf.shape)}"
    elif type(leaf) in (bool, int, float, str):
      leaves[name] = type(leaf).__name__
    else:
      raise TypeError(f"{name}: got {leaf!r}, which Orbax can't store")
  return leaves


def _check_leaves(folder, expected):
  """Raises InputError naming the first differences, if there are any."""
  got = files.read_json(folder / "leaves.json")
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
