"""Tile-by-tile read-out against the fold, on layers of ResNet-20.

python benchmarks/readout.py [--layers 0 1 ...] [--rounds 9]

For every layer, a convolution 3x3 of bits: milliseconds of the fold (one
convolution with a chip's effective weights), of the tiled path with a 6-bit
converter on 64 rows, and their ratio; temporary memory of both. Ratios with
thermal noise of every read as well: "noise", drawn once a column, where there
are no converters, and "both", a tile, where there are.
"""

import functools

import jax
import jax.numpy as jnp
import measure
import numpy as np

from hawis_jax import crossbar
from hawis_jax.arithmetic import binary
from hawis_jax.crossbar import readout
from hawis_jax.runtime import device_memory

_IMAGES = 96
# (name, height = width, input channels, output channels)
_LAYERS = (
  ("1x group 1", 32, 16, 16),
  ("1x group 2", 16, 32, 32),
  ("1x group 3", 8, 64, 64),
  ("HAWIS-A group 1", 32, 80, 80),
  ("HAWIS-A group 2", 16, 112, 112),
  ("HAWIS-A group 3", 8, 216, 216),
)
_FAULTY = dict(stuck_on=0.0175, stuck_off=0.0904, variation=0.1)
_product = functools.partial(binary.convolve, strides=1, padding=1)


def _fold(x, layer):
  return _product(x, layer["weight"])


def _tiled(x, layer):
  return readout.read(_product, x, layer)


# name: (how it is read, fields of the device)
_WAYS = {
  "fold": (_fold, {}),
  "tiled": (_tiled, dict(adc_bits=6)),
  "noise": (_tiled, dict(read_noise=1.0)),
  "both": (_tiled, dict(adc_bits=6, read_noise=1.0)),
}


def _chip(kernel, device):
  variables = {"params": {"layer": {"kernel": kernel}}}
  chip = jax.jit(crossbar.program)(jax.random.key(0), variables, device)
  chip = crossbar.for_images(chip, jnp.arange(_IMAGES))
  return chip["crossbar"]["layer"]


def _measure(size, c_in, c_out, rounds):
  """({way: milliseconds}, {way: temporary memory in MB})."""
  rng = np.random.default_rng(0)
  bits = rng.integers(0, 2, (_IMAGES, size, size, c_in))
  x = jnp.asarray(bits, jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(3, 3, c_in, c_out)), jnp.float32)
  calls, memory = {}, {}
  for way, (function, fields) in _WAYS.items():
    chip = _chip(kernel, crossbar.Device(**_FAULTY, **fields))
    compiled = jax.jit(function).lower(x, chip).compile()
    calls[way] = functools.partial(compiled, x, chip)
    memory[way] = device_memory.needs(compiled).temporary / 1e6
  times = measure.seconds(calls, rounds)
  return {way: 1e3 * time for way, time in times.items()}, memory


def main() -> None:
  """Prints the table."""
  parser = measure.parser(__doc__)
  every = range(len(_LAYERS))
  parser.add_argument("--layers", type=int, nargs="+", default=every)
  parser.add_argument("--rounds", type=int, default=9)
  options = parser.parse_args()
  print(measure.machine())
  print(f"{_IMAGES} images; tiles of 64 x 64; converters of 6 bits")
  print(
    f"{'layer':16} {'fold ms':>8} {'tiled ms':>9} {'ratio':>6} {'noise':>6} "
    f"{'both':>6} {'fold MB':>8} {'tiled MB':>9}"
  )
  for index in options.layers:
    name, *sizes = _LAYERS[index]
    times, memory = _measure(*sizes, options.rounds)
    fold, tiled, noisy, both = times.values()
    print(
      f"{name:16} {fold:8.2f} {tiled:9.2f} {tiled / fold:6.2f} "
      f"{noisy / fold:6.2f} {both / fold:6.2f} {memory['fold']:8.1f} "
      f"{memory['tiled']:9.1f}",
      flush=True,
    )


if __name__ == "__main__":
  main()
