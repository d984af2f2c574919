"""TPUs that need not be there: abstract devices to compile for.

They come from libtpu, of the extra `tpu`; the process must run on the CPU.
"""

import dataclasses
import math
import os
import re

import jax
from jax.experimental import topologies

from hawis_jax import errors


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device as JAX counts it, half a chip of v2, v3 and tpu7x.

  From the pages of cloud.google.com/tpu/docs on each version.

  Attributes:
    memory: of HBM [bytes].
    flops: peak, bfloat16 [1/s].
    axes: of a topology, a torus of so many dimensions.
    options: of the topology.
  """

  memory: float
  flops: float
  axes: int
  options: dict = dataclasses.field(default_factory=dict)


_GIB = 2**30
CHIPS = {
  "v2": Chip(8 * _GIB, 23e12, 2),
  "v3": Chip(16 * _GIB, 61e12, 2),
  "v4": Chip(32 * _GIB, 275e12, 3, {"chip_config_name": "megacore"}),
  "v5e": Chip(16 * _GIB, 197e12, 2),
  "v5p": Chip(95 * _GIB, 459e12, 3),
  "v6e": Chip(32 * _GIB, 918e12, 2),
  "tpu7x": Chip(96 * _GIB, 1153e12, 3),
}


def topology(name: str) -> tuple[list[jax.Device], Chip]:
  """Returns (abstract devices, those of a host side by side, their chip).

  Args:
    name: e.g. "v5e:16x16".

  Raises:
    InputError: there is no such topology, or no libtpu.
  """
  allowed = ", ".join(
    f"{chip}:{'x'.join('ABC'[: CHIPS[chip].axes])}" for chip in CHIPS
  )
  allowed = f"allowed are {allowed}, e.g. v5e:16x16"
  version, _, layout = name.partition(":")
  sizes = layout.split("x")
  chip = CHIPS.get(version)
  if (
    chip is None
    or len(sizes) != chip.axes
    or not all(re.fullmatch("[1-9][0-9]*", size) for size in sizes)
  ):
    raise errors.InputError(f"--topology: got {name!r}, {allowed}")
  # Else libtpu asks the machine what it is, and waits for an answer.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  host = [min(int(size), most) for size, most in zip(sizes, (2, 2, 1))]
  host += [1] * (3 - len(host))
  try:
    found = topologies.get_topology_desc(
      platform="tpu",
      topology_name=name,
      chips_per_host_bounds=host,
      **chip.options,
    )
  except Exception as error:  # as different ones as reasons
    if "libtpu" in str(error) or isinstance(error, ImportError):
      raise errors.InputError(
        "--topology: libtpu is missing: pip install 'hawis_jax[tpu]'"
      ) from error
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise errors.InputError(
      f"--topology: got {name!r} ({reason}), {allowed}"
    ) from error
  order = sorted(found.devices, key=lambda d: (d.process_index, d.id))
  if len(order) > math.prod(map(int, sizes)) * 2:
    raise AssertionError(f"{name}: {len(order)} devices")
  return order, chip
