"""Devices as a mesh: chips on the axis `sample`, images on the axes `data`.

There is an axis `data` for every prime factor of the devices that share images,
so that an array can be split over all of them or over a part.

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

SAMPLE, _DATA = "sample", "data"

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
  factors = _prime_factors(len(devices) // sample)
  names = [f"{_DATA}{index}" for index in range(len(factors))]
  grid = np.array(devices).reshape(sample, *factors)
  return sharding.Mesh(grid, (SAMPLE, *names))


def _prime_factors(number):
  """Ascending; of 1: itself, so that there always is an axis."""
  factors, factor = [], 2
  while number > 1:
    while number % factor == 0:
      factors.append(factor)
      number //= factor
    factor += 1
  return factors or [1]


def training_mesh(
  devices: Sequence[jax.Device] | None = None,
) -> sharding.Mesh:
  """All devices on `data`, those of a process side by side."""
  return evaluation_mesh(1, devices)


def data(mesh: sharding.Mesh) -> tuple[str, ...]:
  """The axes `data`, as one entry of a PartitionSpec."""
  return tuple(name for name in mesh.axis_names if name != SAMPLE)


def place(tree: Any, mesh: sharding.Mesh, *, split: bool = False) -> Any:
  """Puts arrays on all devices of a mesh, whole or, if large, split.

  Args:
    tree: of arrays, the same on all processes; other leaves stay as they are.
    mesh: of the result.
    split: as `split` says; else every device has all of every leaf.
  """

  def one(leaf):
    if not isinstance(leaf, jax.Array | np.ndarray):
      return leaf
    return put(leaf, _split(leaf, mesh) if split else replicated(mesh))

  return jax.tree.map(one, tree)


def split(tree: Any, mesh: sharding.Mesh) -> Any:
  """Shardings of a training state: large leaves are divided over `data`.

  A leaf of `_SPLIT_BYTES` and more is divided by as many of the prime factors
  of the number of devices as divide its axes, and has copies on the rest.

  Args:
    tree: of arrays or their shapes.
    mesh: of the state.
  """
  return jax.tree.map(lambda leaf: _split(leaf, mesh), tree)


def _split(leaf, mesh):
  """The sharding of one leaf of a training state.

  The axis of the leaf that takes the greatest share of the devices comes first,
  of equal ones the longest.
  """
  if leaf.size * leaf.dtype.itemsize < _SPLIT_BYTES:
    return replicated(mesh)
  free = list(data(mesh))
  places = [()] * len(leaf.shape)

  def taken(axis):
    """The free axes of the mesh that divide an axis of the leaf."""
    names, size = [], leaf.shape[axis]
    for name in free:
      if size % mesh.shape[name] == 0:
        names.append(name)
        size //= mesh.shape[name]
    return tuple(names)

  def gain(axis):
    return math.prod(mesh.shape[n] for n in taken(axis)), leaf.shape[axis]

  left = set(range(len(leaf.shape)))
  while left:
    axis = max(sorted(left), key=gain)
    places[axis] = taken(axis)
    free = [name for name in free if name not in places[axis]]
    left.remove(axis)
  return sharding.NamedSharding(mesh, _P(*(p or None for p in places)))


def gathered(tree: Any, mesh: sharding.Mesh | None) -> Any:
  """What is split, whole for its use in a jitted function; None: as it is.

  Of parameters and of their gradients: else XLA may split the channels of
  activations, as the state's are, and gather their images.
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
  where = on_data(mesh)
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


def abstract(tree: Any, where: Any) -> Any:
  """Shapes and types of a tree, placed, to compile without the arrays.

  Args:
    tree: of arrays or their shapes.
    where: a sharding, or a tree of them.
  """
  if isinstance(where, sharding.Sharding):
    where = jax.tree.map(lambda _: where, tree)
  return jax.tree.map(
    lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
    tree,
    where,
  )


def on_data(mesh: sharding.Mesh, axis: int = 0) -> sharding.NamedSharding:
  """An array whose axis `axis`, of images, is split over `data`."""
  return sharding.NamedSharding(mesh, _P(*[None] * axis, data(mesh)))


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
