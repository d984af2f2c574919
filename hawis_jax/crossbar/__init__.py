"""Crossbar physics: devices, tiles, defects, and the chips made of them."""

from hawis_jax.crossbar.chip import conductances
from hawis_jax.crossbar.chip import effective_weights
from hawis_jax.crossbar.chip import program
from hawis_jax.crossbar.devices import DEFECTS
from hawis_jax.crossbar.devices import Device
from hawis_jax.crossbar.devices import PRESETS
from hawis_jax.crossbar.devices import validate

__all__ = (
  "DEFECTS",
  "PRESETS",
  "Device",
  "conductances",
  "effective_weights",
  "program",
  "validate",
)
