"""Devices as a mesh: chips on the axis `sample`, images on the axis `data`."""

from collections.abc import Sequence
import math
import os

import jax
from jax import sharding
import numpy as np

SAMPLE, DATA = "sample", "data"


def evaluation_mesh(
  num_chips: int, devices: Sequence[jax.Device] | None = None
) -> sharding.Mesh:
  """The mesh to evaluate chips on: as many devices on `sample` as have chips.

  Args:
    num_chips: to be evaluated.
    devices: None: all.
  """
  devices = jax.devices() if devices is None else devices
  sample = max(
    n
    for n in range(1, len(devices) + 1)
    if len(devices) % n == 0 and n <= max(num_chips, 1)
  )
  grid = np.array(devices).reshape(sample, -1)
  return sharding.Mesh(grid, (SAMPLE, DATA))


def memory_bytes(mesh: sharding.Mesh) -> float:
  """Memory of one device of a mesh; of the CPU: its share of the machine's.

  Infinite where the device does not say.
  """
  device = mesh.devices.flat[0]
  if device.platform == "cpu":
    return _machine_bytes() / mesh.devices.size
  stats = device.memory_stats() or {}
  return stats.get("bytes_limit", math.inf)


def _machine_bytes():
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
