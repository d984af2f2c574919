"""Tile-by-tile read-out against the fold, on layers of ResNet-20.

python benchmarks/readout.py

For every layer, a convolution 3x3 of bits: milliseconds of the fold (one
convolution with a chip's effective weights), of the tiled path with a 6-bit
converter on 64 rows, and their ratio; temporary memory of both. "noise" is the
ratio with thermal noise of every read drawn as well.
"""

import functools
import time

from hawis_jax import backend

backend.configure()

# ruff: noqa: E402
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import crossbar
from hawis_jax.arithmetic import binary
from hawis_jax.crossbar import readout

_IMAGES = 96
_ROUNDS = 9
# name: (height = width, input channels, output channels)
_LAYERS = {
  "1x stage 1": (32, 16, 16),
  "1x stage 2": (16, 32, 32),
  "1x stage 3": (8, 64, 64),
  "HAWIS-A stage 1": (32, 80, 80),
  "HAWIS-A stage 2": (16, 112, 112),
  "HAWIS-A stage 3": (8, 216, 216),
}
_product = functools.partial(binary.convolve, strides=1, padding=1)


def _chip(kernel, device):
  variables = {"params": {"layer": {"kernel": kernel}}}
  chip = jax.jit(crossbar.program)(jax.random.key(0), variables, device)
  chip = crossbar.for_images(chip, jnp.arange(_IMAGES))
  return chip["crossbar"]["layer"]


def _fold(x, layer):
  return _product(x, layer["weight"])


def _tiled(x, layer):
  return readout.read(_product, x, layer)


def _compiled(function, *arguments):
  """(function, temporary memory in MB)."""
  compiled = jax.jit(function).lower(*arguments).compile()
  return compiled, compiled.memory_analysis().temp_size_in_bytes / 1e6


def _milliseconds(*calls):
  """Median over interleaved rounds of each call, so that all meet all loads."""
  times = [[] for _ in calls]
  for _ in range(_ROUNDS):
    for call, spent in zip(calls, times, strict=True):
      start = time.perf_counter()
      jax.block_until_ready(call())
      spent.append(1e3 * (time.perf_counter() - start))
  return [float(np.median(spent)) for spent in times]


def main():
  print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
  print(f"{_IMAGES} images; tiles of 64 x 64; converters of 6 bits")
  print(
    f"{'layer':16} {'fold ms':>8} {'tiled ms':>9} {'ratio':>6} {'noise':>6} "
    f"{'fold MB':>8} {'tiled MB':>9}"
  )
  rng = np.random.default_rng(0)
  for name, (size, c_in, c_out) in _LAYERS.items():
    x = jnp.asarray(
      rng.integers(0, 2, (_IMAGES, size, size, c_in)), jnp.float32
    )
    kernel = jnp.asarray(rng.normal(size=(3, 3, c_in, c_out)), jnp.float32)
    faulty = dict(stuck_on=0.0175, stuck_off=0.0904, variation=0.1)
    chips = [
      _chip(kernel, crossbar.Device(**faulty, **fields))
      for fields in ({}, dict(adc_bits=6), dict(adc_bits=6, read_noise=1.0))
    ]
    calls, memory = [], []
    for function, chip in zip((_fold, _tiled, _tiled), chips, strict=True):
      compiled, megabytes = _compiled(function, x, chip)
      calls.append(functools.partial(compiled, x, chip))
      memory.append(megabytes)
    fold, tiled, noisy = _milliseconds(*calls)
    print(
      f"{name:16} {fold:8.2f} {tiled:9.2f} {tiled / fold:6.2f} "
      f"{noisy / fold:6.2f} {memory[0]:8.1f} {memory[1]:9.1f}"
    )


if __name__ == "__main__":
  main()
