"""The ReRAM device: conductances, tile, and rates of its defects."""

import dataclasses
import math

import jax

from hawis_jax import errors


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Device:
  """A ReRAM device and the crossbar tile it sits in; SI units.

  All fields but `tile_shape` may be traced arrays, so that a sweep over levels
  compiles once. Chip scope: drawn once a chip, at fabrication.

  Attributes:
    g_on: conductance of the low-resistance state [S].
    g_off: conductance of the high-resistance state [S].
    stuck_on: share of cells stuck at `g_on` (chip scope).
    stuck_off: share of cells stuck at `g_off` (chip scope).
    variation: gamma, sigma of the lognormal device-to-device variation
      G exp(-theta), theta ~ N(0, gamma^2) (chip scope).
    tile_shape: (rows, columns) of one array.
  """

  g_on: float = 3.33e-4
  g_off: float = 3.33e-7
  stuck_on: float = 0.0
  stuck_off: float = 0.0
  variation: float = 0.0
  tile_shape: tuple[int, int] = dataclasses.field(
    default=(64, 64), metadata=dict(static=True)
  )


# Fields that describe defects; 0 is ideal.
DEFECTS = ("stuck_on", "stuck_off", "variation")

# Conductances and array: the published HAWIS tolerance test. Fault rates: its
# defaults, measured on a 4-Mb HfO2 chip.
PRESETS = {
  "hawis_published": Device(stuck_on=0.0175, stuck_off=0.0904),
}


def validate(device: Device, name: str = "device") -> Device:
  """Returns `device` if its (concrete) parameters make sense.

  Raises:
    InputError: names the field, what it got and what is allowed.
  """
  for field in ("g_on", "g_off", *DEFECTS):
    value = getattr(device, field)
    if not isinstance(value, int | float) or not math.isfinite(value):
      raise errors.InputError(
        f"{name}.{field}: got {value!r}, needed is a finite number"
      )
  if not 0 < device.g_off < device.g_on:
    raise errors.InputError(
      f"{name}.g_off, g_on: got {device.g_off:g}, {device.g_on:g} S, needed is "
      "0 < g_off < g_on"
    )
  for field in ("stuck_on", "stuck_off"):
    if not 0 <= getattr(device, field) <= 1:
      raise errors.InputError(
        f"{name}.{field}: got {getattr(device, field):g}, allowed is a share "
        "of cells in [0, 1]"
      )
  if device.stuck_on + device.stuck_off > 1:
    raise errors.InputError(
      f"{name}.stuck_on + stuck_off: got {device.stuck_on:g} + "
      f"{device.stuck_off:g}, allowed is a sum of at most 1"
    )
  if device.variation < 0:
    raise errors.InputError(
      f"{name}.variation: got {device.variation:g}, allowed is a sigma >= 0"
    )
  shape = device.tile_shape
  if len(shape) != 2 or not all(isinstance(n, int) and n > 0 for n in shape):
    raise errors.InputError(
      f"{name}.tile_shape: got {shape!r}, needed are (rows, columns) >= 1"
    )
  return device
