"""Devices as a mesh: chips on the axis `sample`, images on the axis `data`.

What is on several devices is one global array, also where they belong to
several processes: each process holds its own devices' part of it.
"""

from collections.abc import Sequence
import math
import os
from typing import Any

import jax
from jax import sharding
from jax.experimental import multihost_utils
import numpy as np

SAMPLE, DATA = "sample", "data"

_P = sharding.PartitionSpec
# Leaves of a training state from this size on are split: below, the time of
# gathering them before each use is worth more than the memory [bytes].
_SPLIT_BYTES = 2**22


def evaluation_mesh(
  num_chips: int, devices: Sequence[jax.Device] | None = None
) -> sharding.Mesh:
  """The mesh to evaluate chips on: as many devices on `sample` as have chips.

  Args:
    num_chips: to be evaluated.
    devices: None: all, those of a process side by side.
  """
  if devices is None:
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  sample = max(
    n
    for n in range(1, len(devices) + 1)
    if len(devices) % n == 0 and n <= max(num_chips, 1)
  )
  grid = np.array(devices).reshape(sample, -1)
  return sharding.Mesh(grid, (SAMPLE, DATA))


def training_mesh() -> sharding.Mesh:
  """All devices on `data`, those of a process side by side."""
  return evaluation_mesh(num_chips=1)


def place(tree: Any, mesh: sharding.Mesh, *, split: bool = False) -> Any:
  """Puts arrays on all devices of a mesh, whole or, if large, split.

  Args:
    tree: of arrays, the same on all processes; other leaves stay as they are.
    mesh: of the result.
    split: leaves of `_SPLIT_BYTES` and more are divided over `data`, on their
      largest axis that divides; else every device has all of every leaf.
  """
  shares = mesh.shape[DATA] if split else 1

  def one(leaf):
    if not isinstance(leaf, jax.Array | np.ndarray):
      return leaf
    return put(leaf, sharding.NamedSharding(mesh, _split(leaf, shares)))

  return jax.tree.map(one, tree)


def _split(leaf, shares):
  """The PartitionSpec of a leaf of a training state."""
  axes = [a for a, size in enumerate(leaf.shape) if size % shares == 0]
  if shares == 1 or leaf.nbytes < _SPLIT_BYTES or not axes:
    return _P()
  largest = max(axes, key=lambda axis: leaf.shape[axis])
  return _P(*[None] * largest, DATA)


def gathered(tree: Any, mesh: sharding.Mesh | None) -> Any:
  """What is split, whole for its use in a jitted function; None: as it is.

  Without this, XLA may gather the images' activations instead.
  """
  if mesh is None or mesh.size == 1:
    return tree
  return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def put(tree: Any, where: sharding.Sharding) -> Any:
  """`jax.device_put`, also on devices of other processes.

  Args:
    tree: of arrays, the same on all processes; or placed so already.
    where: of every leaf.
  """
  if where.is_fully_addressable:
    return jax.device_put(tree, where)

  def one(leaf):
    if isinstance(leaf, jax.Array):
      if leaf.sharding == where:
        return leaf
      if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(one(jax.random.key_data(leaf)))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, where, lambda i: host[i])

  return jax.tree.map(one, tree)


def batch(
  rows: dict[str, np.ndarray], mesh: sharding.Mesh
) -> dict[str, jax.Array]:
  """A batch that is split on `data`, from the rows that each process read.

  Args:
    rows: arrays `[B / processes, ...]`, the first process's come first.
    mesh: from `training_mesh`.

  Returns:
    Global arrays `[B, ...]`.
  """
  where = sharding.NamedSharding(mesh, _P(DATA))
  return {
    name: jax.make_array_from_process_local_data(where, value)
    for name, value in rows.items()
  }


def fetch(array: jax.Array) -> np.ndarray:
  """All of an array, on every process."""
  if array.is_fully_addressable or array.is_fully_replicated:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


def of(tree: Any) -> Any:
  """Shardings of a tree of arrays, e.g. to have a result placed like it."""
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def replicated(mesh: sharding.Mesh) -> sharding.NamedSharding:
  """The whole array on every device."""
  return sharding.NamedSharding(mesh, _P())


def memory_bytes(mesh: sharding.Mesh) -> float:
  """Memory of one device of a mesh; of the CPU: its share of the machine's.

  The least of all processes. Infinite where the device does not say.
  """
  device, devices = mesh.local_devices[0], len(mesh.local_devices)
  if device.platform == "cpu":
    memory = _machine_bytes() / devices
  else:
    memory = (device.memory_stats() or {}).get("bytes_limit", math.inf)
  if jax.process_count() == 1:
    return memory
  # In GB, since float32 is what can be sent.
  everyone = multihost_utils.process_allgather(np.float32(memory / 1e9))
  return float(everyone.min()) * 1e9


def _machine_bytes():
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
