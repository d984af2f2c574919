"""The tolerance test: ResNet-20 on defective crossbars, effect by effect.

The published sweeps (stuck on 0 to 2 %, stuck off 0 to 10 %, variation of gamma
0 to 1.1, the published noise, IR drop with its wires of 28 ohm) and what it has
not: physical noise, wires of 22 nm, converters. Every net meets the same chips.

The net found by a search of its own, against the 1x net and its 8-bit one:
python -m hawis_jax.main --config configs/tolerance_resnet20.py

The published test's 8-bit net has `--config.train.int8_scales=tensor`.

A published width vector ("1x", "4x", "hawis_a" or "hawis_b") instead:
python -m hawis_jax.main --config configs/tolerance_resnet20.py:hawis_a

The data set must be prepared (python -m hawis_jax.data prepare cifar10). Nets
that configs/cifar10_resnet20.py trained are the same: copy their folders from
its work directory's train/. Not measured here in full: it takes an accelerator.
"""

import pathlib

from hawis_jax import crossbar
from hawis_jax.config import load

_CIFAR10 = pathlib.Path(__file__).with_name("cifar10_resnet20.py")
_WIRES = tuple(crossbar.WIRE_RESISTANCES.values())  # 22 nm; 2, 4, 12 F


def get_config(preset: str = ""):
  """Returns the configuration; `preset` names a published width vector."""
  c = load.load(_CIFAR10)
  c.device.preset = "hawis_published"
  c.train.nets = (
    f"resnet20_{preset}" if preset else "found",
    "baseline_1x",
    "baseline_1x_int8",
  )
  c.robustness.calibration_images = 100
  c.robustness.calibration_batch = 100
  c.robustness.scenarios = (
    dict(stuck_on=(0.0, 0.005, 0.01, 0.015, 0.02)),
    dict(stuck_off=(0.0, 0.02, 0.04, 0.06, 0.08, 0.1)),
    dict(name="default rates", stuck_on=0.0175, stuck_off=0.0904),
    dict(variation=tuple(round(0.1 * i, 1) for i in range(12))),
    dict(legacy_noise=(0.0, 1.0)),
    dict(read_noise=(1.0, 10.0, 100.0)),
    dict(telegraph_noise=1.0),
    dict(
      name="IR drop, loads of 4 ohm",
      wire_resistance=(0.0, *(round(r, 2) for r in _WIRES), 28.0),
      load_resistance=4.0,
    ),
    dict(
      name="calibrated converters",
      adc_bits=(3, 4, 5, 6, 8),
      adc_range="calibrated",
    ),
  )
  return c
