"""TPUs that need not be there: abstract devices to compile for.

They come from libtpu, of the extra `tpu`; the process must run on the CPU.
"""

import dataclasses
import importlib.util
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


# libtpu is not to ask the machine what it is, of which it would warn, nor to
# mind other processes: none has a TPU.
_QUIET = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_MIN_LOG_LEVEL": "3",
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
  if importlib.util.find_spec("libtpu") is None:
    raise errors.InputError(
      "--topology: libtpu is missing: pip install 'hawis_jax[tpu]'"
    )
  for field, value in _QUIET.items():
    os.environ.setdefault(field, value)
  # A host has up to 2 x 2 chips, so that 1 x 1 is allowed too.
  host = [min(int(size), 2) for size in sizes[:2]] + [1]
  try:
    found = topologies.get_topology_desc(
      platform="tpu",
      topology_name=name,
      chips_per_host_bounds=host,
      **chip.options,
    )
  except Exception as error:  # as different ones as reasons
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise errors.InputError(
      f"--topology: got {name!r} ({reason}), {allowed}"
    ) from error
  return sorted(found.devices, key=lambda d: (d.process_index, d.id)), chip
