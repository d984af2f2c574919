"""Named devices. Every number has its source, or says that it has none.

[fit] marks a polynomial that another simulator read off a published figure; two
such fits of one figure differ by 0.1 to 0.6 uS, or 1.1 to 1.8 times.
"""

import os
import pathlib
from typing import Any

from hawis_jax import errors
from hawis_jax.crossbar.devices import Device
from hawis_jax.crossbar.devices import with_fields

_CMO_RETENTION = dict(
  relaxation=1.0,
  relaxation_shift=(-0.08900206,),
  relaxation_spread=(0.41183342,),
  relaxation_growth=(0.04201137,),
  relaxation_start=1.0,
  flicker_noise=1.0,
  flicker=(0.0, 0.0, 0.0, 0.0277316483),
  flicker_read=1e-6,
  retention_time=1.0,
)

# hx.PRESETS["pcm"].g_on is 25e-6 [S]: devices to use, or to replace fields of.
PRESETS = {
  # Conductances, voltage and tile: the published HAWIS tolerance test, whose
  # base is PytorX (its benchmark has the same). Fault rates: the test's
  # defaults, measured on a 4-Mb HfO2 chip.
  "hawis_published": Device(
    g_on=3.33e-4,
    g_off=3.33e-7,
    read_voltage=3.3,
    tile_shape=(64, 64),
    stuck_on=0.0175,
    stuck_off=0.0904,
  ),
  # NeuRRAM: Wan et al., Nature 608, 504 (2022), HfO2, 1 s after programming, so
  # that the first relaxation is in it; cubic [fit] and its end of 39.26 uS:
  # CrossSim, RRAM_Wan.py. Voltage across a cell in its verifying reads: the
  # chip's control code. g_off: no source; 1 uS keeps the ratio of the published
  # plots.
  "reram_wan2022": Device(
    g_on=39.26e-6,
    g_off=1e-6,
    read_voltage=0.1,
    write_error=1.0,
    write_sigma=(1.053, 0.2374, -1.167e-2, 1.536e-4),
    write_range=(0.0, 39.26e-6),
  ),
  # The same chip a day after programming, of another reading of its figure,
  # which goes on: quartics in G / 40 uS at 1 s, 1 and 2 days [fit]: aihwkit
  # 1.2, reram.py, ReRamWan2022NoiseModel. Growth: the root of the difference of
  # the variances at a day and at 1 s over ln(86400), a quartic of ours within
  # 0.4 %. In between nothing is known: linear in ln t is assumed. At 2 days the
  # deviation is 6 % above that fit at most.
  "reram_wan2022_relaxed": Device(
    g_on=39.26e-6,
    g_off=1e-6,
    read_voltage=0.1,
    write_error=1.0,
    write_sigma=(
      0.348,
      16.030 / 40,
      -43.853 / 40**2,
      45.393 / 40**3,
      -16.815 / 40**4,
    ),
    write_range=(0.0, 39.26e-6),
    relaxation=1.0,
    relaxation_growth=(
      5.38886610e-2,
      3.43301016e-2,
      -1.67965298e-3,
      3.33839255e-5,
      -2.58907129e-7,
    ),
    retention_time=86400.0,
  ),
  # Milo et al., IRPS 2021, 4-kbit HfO2, IGVVA-100 programming; line [fit] and
  # range: CrossSim, RRAM_Milo.py. Voltage: the end of its I-V model there.
  "reram_milo2021": Device(
    g_on=225e-6,
    g_off=50e-6,
    read_voltage=0.5,
    write_error=1.0,
    write_sigma=(4.782321, -0.009107),
    write_range=(50e-6, 225e-6),
  ),
  # CMO/HfOx: Falcone et al., arXiv:2502.04524, 0.2 % acceptance range; line and
  # conductances: aihwkit 1.2, reram.py (ReRamCMONoiseModel) and conductance.py.
  # Relaxation and 1/f noise, from 1 s on: the same model's decay_dict and
  # read_dict; it clips results to g_off and g_on, we do not. Voltage: no
  # source.
  "hfox_cmo": Device(
    g_on=88.2e-6,
    g_off=9e-6,
    read_voltage=0.2,
    write_error=1.0,
    write_sigma=(8.1107e-4, 1.06879e-3),
    write_range=(8e-6, 90e-6),
    **_CMO_RETENTION,
  ),
  # The same at 2 % acceptance range.
  "hfox_cmo_2percent": Device(
    g_on=88.2e-6,
    g_off=9e-6,
    read_voltage=0.2,
    write_error=1.0,
    write_sigma=(1.12185391e-2, 1.129027418e-2),
    write_range=(8e-6, 90e-6),
    **_CMO_RETENTION,
  ),
  # Phase-change memory: Joshi et al., Nature Communications 11, 2473 (2020);
  # Nandakumar et al., ICECS 2019. Write error, drift, t_0 and 1/f noise, here
  # of 20 s: aihwkit 1.2, pcm.py, whose polynomial is in G / 25 uS. On/off ratio
  # of 100: CrossSim, PCM_Joshi.py. Voltage: no source. Drift starts with
  # `drift_time`, which is then the time of the noise too.
  "pcm": Device(
    g_on=25e-6,
    g_off=0.25e-6,
    read_voltage=0.2,
    write_error=1.0,
    write_sigma=(0.26348, 1.9650 / 25, -1.1731 / 25**2),
    write_range=(0.0, 25e-6),
    drift_start=20.0,
    drift_mean=(-0.0155, 0.0244, 0.049, 0.1),
    drift_std=(-0.0125, -0.0059, 0.008, 0.045),
    flicker_noise=1.0,
    flicker=(0.0088, 0.65, 0.2, 0.0),
    flicker_read=2.5e-7,
    retention_time=20.0,
  ),
  # MNSIM 2.0, its SimConfig.ini of 30 and 150 kohm (a later one differs): tile,
  # voltage, fault rates, 6-bit converters, and a variation of 5 %, which it
  # draws for resistances. Wires: its Crossbar.py; its load resistor of a
  # divider read-out (67 kohm) is not that of a current read-out.
  "mnsim": Device(
    g_on=1 / 3e4,
    g_off=1 / 1.5e5,
    read_voltage=0.5,
    tile_shape=(128, 128),
    stuck_on=0.01,
    stuck_off=0.09,
    gaussian_variation=0.05,
    wire_resistance=2.82,
    adc_bits=6,
  ),
  # ISAAC: Shafiee et al., ISCA 2016: tile, 2-bit cells, 1-bit inputs, 8-bit
  # converters of one unit of current, so that nothing is lost. There weights
  # have an offset, and columns of large sums are stored flipped: 8 bits do for
  # all sums of 128 rows. Here they are differential: 8 bits do for sums of -128
  # to 127 of -384 to 384. It gives no conductances and no voltage: those of
  # hawis_published stand in.
  "isaac": Device(
    tile_shape=(128, 128), cell_bits=2, adc_bits=8, adc_range="granular"
  ),
}

# Wires from cell to cell at 22 nm [ohm], of a pitch of 2, 4 and 12 F: NeuroSim
# V1.4, Param.cpp: rho / (W^2 aspect ratio) with W = F = 40 nm.
WIRE_RESISTANCES = {
  pitch: 2.97e-8 / (40e-9**2 * 1.9) * pitch * 40e-9 for pitch in (2, 4, 12)
}


def preset(name: Any, field: str = "preset") -> Device:
  """Returns a named device.

  Raises:
    InputError: there is none of this name; `field` is for the message.
  """
  if not isinstance(name, str) or name not in PRESETS:
    raise errors.InputError(
      f"{field}: got {name!r}, allowed are {', '.join(PRESETS)}"
    )
  return PRESETS[name]


def load_device(path: str | os.PathLike) -> Device:
  """Returns the device of a JSON file, as `device.preset` names one.

  >>> import hawis_jax as hx, pathlib, tempfile
  >>> path = pathlib.Path(tempfile.mkdtemp(), "mine.json")
  >>> _ = path.write_text('{"preset": "pcm", "stuck_off": 0.02}')
  >>> hx.load_device(path).stuck_off
  0.02

  Args:
    path: of an object {"field": value} of a device, SI units; "preset" is one
      of `hx.PRESETS` to start from.

  Raises:
    InputError: it can't be read, is no such object, or a field of it is bad.
  """
  try:
    text = pathlib.Path(path).read_bytes()
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or error
    raise errors.InputError(f"{path}: can't be read: {reason}") from error
  return from_json(text, str(path))


def from_json(text: str | bytes, name: str = "device") -> Device:
  """Returns a device of JSON: {"field": value}, and "preset" to start from.

  Raises:
    InputError: it is no such object, or a field of it is bad; `name`, such as
      the path of the file, is for the message.
  """
  values = errors.parse_fields(text, name)
  base = Device()
  if "preset" in values:
    base = preset(values.pop("preset"), f"{name}: preset")
  values = {
    field: tuple(value) if isinstance(value, list) else value
    for field, value in values.items()
  }
  return with_fields(base, values, name)
