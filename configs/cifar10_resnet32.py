"""CIFAR-10, ResNet-32: HAWIS from the super-net on, or one named net.

All stages, with a search of its own (an accelerator's work):
python -m hawis_jax.main --config configs/cifar10_resnet32.py

The 1x net by the published recipe, 400 epochs of all 50,000 training images:
python -m hawis_jax.main --config configs/cifar10_resnet32.py:1x

The data set must be prepared (python -m hawis_jax.data prepare cifar10).
"""

import pathlib

from hawis_jax.config import load

_SAME = pathlib.Path(__file__).with_name("cifar10_resnet20.py")


def get_config(preset: str = ""):
  """Returns the configuration; `preset` names a width vector."""
  return load.load(_SAME, preset, 32)
