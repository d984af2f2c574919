"""Tile-by-tile read-out: converters, noise a read, bit-serial inputs.

Where read-out is linear a chip is one effective weight matrix (`chip`), and
none of this is needed. Else every tile is read on its own: a tile's rows are a
few neighbouring input channels, so a read is a convolution of these channels
with the tile's weights (its other taps 0). Of gated or non-linear cells with
resistive lines currents are solved for each input (`wires.gated_currents`,
`wires.nonlinear_currents`).

Axes: N reads (slices of the weights x row tiles), R rows of a tile, B images,
C channels, K taps of a kernel.
"""

from collections.abc import Callable, Mapping
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax.crossbar import converters
from hawis_jax.crossbar import draws
from hawis_jax.crossbar import wires

# What a layer has once a read; its other entries serve all reads.
_BY_READ = ("kernels", "starts", "factors", "variances", "thermal")
_BY_READ += ("offsets", "gains", "capacitors", "added", "taken", "cells")
_BY_READ += ("firsts",)
# Of a read's key, for the noise of word lines.
_ROWS = 1

Product = Callable[[chex.Array, chex.Array], chex.Array]


def read_kernels(
  tiles: chex.Array, shape: tuple[int, ...]
) -> tuple[chex.Array, np.ndarray]:
  """Rearranges a layer's tiles so that a convolution reads one of them.

  Returns kernels `[N, *taps, c, C_out]` and the first input channel of each,
  int32 `[N]`, of tiles `[slices, row_tiles, R, C_out]` (the columns of all
  column tiles joined) and the kernel's shape `[*taps, C_in, C_out]`. A read
  covers c channels, the fewest that do for all tiles.
  """
  slices, row_tiles, rows, c_out = tiles.shape
  *taps, c_in, _ = shape
  num_taps = int(np.prod(taps))
  first = np.arange(row_tiles) * rows
  last = np.minimum(first + rows, c_in * num_taps) - 1
  channels = int((last // num_taps - first // num_taps).max()) + 1
  starts = np.minimum(first // num_taps, c_in - channels)
  # Row of the tile that each (channel, tap) of its read is, if it is one.
  row = (starts * num_taps - first)[:, None] + np.arange(channels * num_taps)
  inside = (row >= 0) & (row < rows)
  row = np.where(inside, row, 0)[None, :, :, None]
  kernels = jnp.take_along_axis(tiles, row, axis=2)
  kernels = jnp.where(inside[None, :, :, None], kernels, 0)
  kernels = kernels.reshape(slices * row_tiles, channels, *taps, c_out)
  kernels = jnp.moveaxis(kernels, 1, -2)
  return kernels, np.tile(starts, slices).astype(np.int32)


def first_rows(row_tiles: int, rows: int, starts: np.ndarray, taps: int):
  """Returns where each read's rows begin among its channels' taps, int32 `[N]`.

  `starts` and the order of reads are those of `read_kernels`.
  """
  first = np.arange(row_tiles) * rows
  return (np.tile(first, len(starts) // row_tiles) - starts * taps).astype(
    np.int32
  )


def planes(bits: int) -> np.ndarray:
  """Returns the values of an integer's bits in two's complement, `[bits]`."""
  values = 2.0 ** np.arange(bits)
  values[-1] *= -1
  return values


def read(
  product: Product,
  x: chex.Array,
  layer: Mapping[str, chex.Array],
  mask: chex.Array | None = None,
  counted: bool = False,
) -> chex.Array | tuple[chex.Array, chex.Array]:
  """Reads all tiles of a layer and returns the sum of their digital sums.

  It is in units of one weight of 1 at one input of 1.

  Args:
    product: of input and kernel, e.g. a convolution with its strides.
    x: input `[B, ..., C_in]`: bits, or integers.
    layer: what `chip.program` made of it: `kernels`, `starts`, `factors`; a
      `converter` where there are any; `planes` where the bits of integers are
      applied one after the other; `variances`, `converter_noise` and
      `read_keys` (`[B]`, from `chip.for_images`) where there is noise a read;
      `offsets` and `gains` of its converters, `[N, C_out]`, and `capacitors`,
      `[N, 16, C_out]`; their `inl`; `dac_noise` of word lines; `minus`, `[C]`,
      which of further columns' codes are taken from those of the first C;
      `thermal`, the
      variances of an input channel's cells whatever its inputs,
      `[N, C, C_out]`; `copies`, whose average is returned. Of gated cells
      `kernels` are 0 and have the straight-through gradients; `added` and
      `taken` are the conductances `[N, R, C_out]` [S] and `unit` what a siemens
      of their difference is worth; `firsts` `[N]`; `downward` or `upward` (from
      which row on) the ladder; `shot`, the variance a siemens of their sum. Of
      non-linear cells `kernels` are the weights on ideal wires, whose gradients
      are the read-out's; `cells` are the pairs' conductances `[N, T, 2, R, C]`
      of T column tiles; `unit` and `firsts` as above; `word_line`, `bit_line`
      and `curve` are of `wires.nonlinear_currents`.
    mask: bool `[C_in]`, the input channels that there are, the first ones: the
      others, whose inputs are 0, have no rows; None: all.
    counted: whether to return also how many conversions clip, and of how many,
      int32 `[B, 2]`; the layer has a converter.
  """

  def accumulate(carry, sums, factor, read):
    total, counts = carry
    if "converter" in layer:
      built = layer["converter"], read.get("gains"), read.get("offsets")
      if counted:
        clips = converters.clips(sums, *built).reshape(len(x), -1)
        of = jnp.full(len(x), clips.shape[1])
        counts += jnp.stack([clips.sum(1), of], 1).astype(jnp.int32)
      sums = converters.convert(
        sums, *built, read.get("capacitors"), layer.get("inl")
      )
    if minus is not None:
      sums = sums[..., : len(minus)] - sums[..., minus]
    return total + factor * sums, counts

  minus = layer.get("minus")
  kernels = layer["kernels"]
  if minus is not None:
    kernels = kernels[..., : len(minus)]
  channels = kernels.shape[-2]
  out = jax.eval_shape(product, x[..., :channels], kernels[0])
  if mask is not None:
    layer = {**layer, "mask": mask}
  none = jnp.zeros((len(x), 2), jnp.int32) if counted else None
  start = jnp.zeros(out.shape, out.dtype), none
  total, counts = _scan(product, x, layer, start, accumulate)
  total = total / layer["copies"] if "copies" in layer else total
  return (total, counts) if counted else total


def sums_percentile(
  product: Product,
  x: chex.Array,
  layer: Mapping[str, chex.Array],
  percentile: chex.Numeric,
) -> chex.Array:
  """Returns the greatest percentile over all reads of partial sums' magnitude.

  Arguments are those of `read`, whose converter is not applied; the percentile
  is over a read's images, positions and columns.
  """

  def accumulate(greatest, sums, factor, read):
    del factor, read
    return jnp.maximum(greatest, jnp.percentile(jnp.abs(sums), percentile))

  return _scan(product, x, layer, jnp.zeros((), x.dtype), accumulate)


def _scan(product, x, layer, carry, accumulate):
  """Returns the fold of accumulate(carry, sums, factor, read) over reads."""
  if "planes" not in layer:
    return _scan_reads(product, x, layer, 0, 1.0, carry, accumulate)
  values = layer["planes"]

  def plane(carry, inputs):
    index, value = inputs
    shifted = jnp.floor((x % 2**values.size) / 2.0**index)
    bits = jax.lax.stop_gradient(shifted % 2).astype(x.dtype)
    # Straight through: x's gradient is that of the bit that is worth 1.
    bits += jnp.where(index == 0, x - jax.lax.stop_gradient(x), 0)
    return _scan_reads(
      product, bits, layer, index, value, carry, accumulate
    ), None

  return jax.lax.scan(plane, carry, (jnp.arange(values.size), values))[0]


def _scan_reads(product, bits, layer, plane, value, carry, accumulate):
  """Returns the fold over the reads of one bit plane of the input."""
  channels = layer["kernels"].shape[-2]
  number = jnp.arange(layer["kernels"].shape[0])
  reads = {
    "number": number + plane * number.size,
    **{name: layer[name] for name in _BY_READ if name in layer},
  }

  noisy = {"variances", "converter_noise", "shot"} & set(layer)

  # Solved again for its gradient: all rows' networks take more memory.
  @functools.partial(jax.checkpoint, prevent_cse=False)
  def gated(inputs, read):
    gates = _drives(product, inputs, layer["kernels"], read, len(read["added"]))
    ladder = layer.get("downward", layer.get("upward"))
    rows = [gates, read["added"], read["taken"]]
    if "upward" in layer:
      rows = [gates[..., ::-1], *(g[::-1] for g in rows[1:])]
    added, taken = (wires.gated_currents(rows[0], g, ladder) for g in rows[1:])
    return added - taken, added + taken

  def nonlinear(inputs, read):
    *tiles, rows, columns = read["cells"].shape
    drives = _drives(product, inputs, layer["kernels"], read, rows)
    g = read["cells"].reshape(-1, rows, columns)
    lines = layer["word_line"], layer["bit_line"]
    found = wires.nonlinear_currents(drives, g, lines, layer["curve"])
    found = found.reshape(*found.shape[:-2], *tiles, columns)
    difference = found[..., 0, :] - found[..., 1, :]
    return difference.reshape(*difference.shape[:-2], -1)

  # A scan: one tile's partial sums are in memory at a time.
  def step(carry, read):
    inputs = jax.lax.dynamic_slice_in_dim(
      bits, read["starts"], channels, bits.ndim - 1
    )
    sums = product(inputs, read["kernels"])
    if "added" in read:
      difference, total = gated(inputs, read)
      sums = sums + layer["unit"] * difference
    if "cells" in read:
      solved = layer["unit"] * nonlinear(inputs, read)[..., : sums.shape[-1]]
      sums = sums + jax.lax.stop_gradient(solved - sums)
    if "read_keys" in layer:
      keys = jax.vmap(jax.random.fold_in, (0, None))(
        layer["read_keys"], read["number"]
      )
    if "dac_noise" in layer:
      noise = _row_noise(product, inputs, layer["kernels"], read, keys)
      sums = sums + layer["dac_noise"] * noise
    if noisy:
      variance = jnp.zeros_like(sums)
      if "shot" in layer:
        variance = layer["shot"] * total
      if "variances" in read:
        # Of a sum of independent normal currents: the sum of their variances.
        variance = product(inputs, read["variances"])
      if "converter_noise" in layer:
        # Not of an ideal one, in a batch with others.
        built = layer["converter"].step != 0
        variance += jnp.square(built * layer["converter_noise"])
      if "thermal" in read:
        thermal = read["thermal"]
        if "mask" in layer:
          there = jax.lax.dynamic_slice_in_dim(
            layer["mask"], read["starts"], channels
          )
          thermal = there[:, None] * thermal
        columns = (1,) * (variance.ndim - 1) + (-1,)
        variance += thermal.sum(0).reshape(columns)
      sums = sums + _sqrt(variance) * _normal(keys, sums)
    return accumulate(carry, sums, value * read["factors"], read), None

  return jax.lax.scan(step, carry, reads)[0]


def _driven(product, inputs, kernels):
  """Returns what each channel's taps are driven by, `[..., channels taps]`."""
  taps, channels = kernels.shape[1:-2], kernels.shape[-2]
  slots = channels * int(np.prod(taps))
  each = np.eye(slots, dtype=kernels.dtype).reshape(channels, *taps, slots)
  return product(inputs, jnp.asarray(np.moveaxis(each, 0, -2)))


def _drives(product, inputs, kernels, read, rows):
  """Returns what each row of a tile is driven by, `[..., R]`."""
  found = _driven(product, inputs, kernels)
  # Rows beyond the matrix have no driver.
  found = jnp.pad(found, [(0, 0)] * (found.ndim - 1) + [(0, rows)])
  return jax.lax.dynamic_slice_in_dim(
    found, read["firsts"], rows, found.ndim - 1
  )


def _row_noise(product, inputs, kernels, read, keys):
  """Returns a read's sums `[..., C]` at n ~ N(0, 1) a driven row.

  It is drawn for every row at every position: a word line has another voltage
  there at each, and the same one for all columns.
  """
  driven = _driven(product, inputs, kernels)
  rows = jnp.moveaxis(read["kernels"], -2, 0)
  rows = rows.reshape(driven.shape[-1], -1)
  keys = jax.vmap(jax.random.fold_in, (0, None))(keys, _ROWS)
  noise = driven * _normal(keys, driven)
  return jnp.matmul(noise, rows, precision="highest")


def _normal(keys, like):
  """Returns n ~ N(0, 1) of the shape of `like` `[B, ...]`, a key an image."""
  words = draws.read_words(keys, like.shape[1:])
  return draws.normal(words).astype(like.dtype)


def _sqrt(x):
  """Returns the root, of gradient 0 at 0, where inputs of 0 leave no noise."""
  there = x > 0
  return jnp.where(there, jnp.sqrt(jnp.where(there, x, 1)), 0)
