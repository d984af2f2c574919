"""Cells: what a net's weights program into the tiles of one chip.

docs/crossbar.md has how weights of 1 and of several bits become levels of a
differential pair of cells, and the other mappings of 1 bit. With
`Device.cell_bits` = c, |q| is cut into slices of c bits, each a pair of cells
of 2^c levels in tiles of its own.

Axes: T tiles of all slices of all layers, R rows and C columns of a tile's
weights; 2 arrays of a tile, of as many cells, where `cell_shape` is not else.
"""

from collections.abc import Callable, Mapping, Sequence
import fnmatch
from typing import Any, NamedTuple

import chex
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import errors
from hawis_jax.arithmetic import binary
from hawis_jax.arithmetic import integer
from hawis_jax.crossbar import defects
from hawis_jax.crossbar import devices
from hawis_jax.crossbar import tiles

# Computed at a time: 128 MB of float32. Of all cells of a large net compilers
# keep several arrays that long at once.
_CELLS = 2**25


class Cells(NamedTuple):
  """A layer's cells, `[slices, row_tiles, col_tiles, 2, R, C]` each.

  Axis 2: the positive and the negative array. Slices: see `Device.cell_bits`,
  least significant first. Cells beyond the matrix are targeted at g_off.

  Attributes:
    targets: what is programmed [S].
    conductances: what is there [S].
    faults: int8, 1 stuck on, -1 stuck off, 0 healthy.
    steps: of every cell, from g_off to g_on (a scalar).
  """

  targets: chex.Array
  conductances: chex.Array
  faults: chex.Array
  steps: chex.Numeric


def conductances(
  key: chex.PRNGKey,
  weights: chex.Array,
  device: devices.Device,
  bits: int = 1,
  write: chex.Numeric = 0,
  scales: str = "channel",
) -> tuple[chex.Array, chex.Array]:
  """Programs one layer into the tiles of one chip; returns (g_pos, g_neg).

  Each is `[row_tiles, col_tiles, R, C]` [S]; of weights that are sliced,
  `[slices, row_tiles, col_tiles, R, C]`, least significant first. Cells beyond
  the matrix are programmed to g_off in both arrays. Formulas and sources:
  docs/crossbar.md.

  >>> import hawis_jax as hx, jax, jax.numpy as jnp
  >>> device = hx.Device(g_on=2e-5, g_off=1e-6, tile_shape=(2, 1))
  >>> g_pos, _ = hx.conductances(jax.random.key(0), jnp.array([[1.0]]), device)
  >>> (g_pos * 1e6).round().tolist()  # the second row holds no weight
  [[[[20.0], [1.0]]]]

  Args:
    key: of one layer of one chip; consumed.
    weights: latent kernel `[kh, kw, C_in, C_out]` or `[C_in, C_out]`.
    device: severities may be traced.
    bits: 1: the weights' signs count (both cells of an exact 0 are off, as
      those of padding); 2 to 8: their integers, as of `integer.quantize` with
      the kernel's own steps; 0, analog: conductances are proportional to the
      weights, and the largest of a scale is 1.
    write: number of the programming, see `defects.cell_conductances`.
    scales: of other than 1 bit: a step an output channel, or "tensor": one in
      all, see `integer.weight_step`.

  Raises:
    InputError: a bad device, other bits or scales.
  """
  errors.check_key(key)
  devices.validate(device)
  if device.mapping != "differential":
    raise errors.InputError(
      f"mapping: got {device.mapping!r}, allowed is 'differential': others "
      "have no two arrays; cells.chip_cells returns theirs"
    )
  device = defects.of_chip(key, device)
  cut = cut_kernel(weights, device, bits, scales)
  _, g = program_tiles(*stack_tiles([key], [cut], device), device, bits, write)
  (g,) = by_layer(g, [cut])
  if cut.shape[0] == 1:
    g = g[0]
  return g[..., 0, :, :], g[..., 1, :, :]


def chip_cells(
  key: chex.PRNGKey,
  variables: dict,
  device: devices.Device,
  bits: int = 1,
  write: chex.Numeric = 0,
  faults: Mapping[str, chex.Array] | None = None,
  scales: str = "channel",
) -> dict[str, Cells]:
  """Returns the cells of the chip that `program` makes of the same arguments.

  They are {"scope/layer": its cells}.

  Raises:
    InputError: other bits or scales; faults that don't fit.
  """
  device = defects.of_chip(key, device)
  keys, kernels = layer_keys(key, variables["params"], None)
  names = ["/".join(path) for path in kernels]
  cuts = [
    cut_kernel(kernel, device, bits, scales) for kernel in kernels.values()
  ]
  stacked = stack_tiles(keys, cuts, device, faults, names)
  targets, g = program_tiles(*stacked, device, bits, write)
  states = fault_states(*stacked, device)
  _, steps = cell_slices(device, bits)
  parts = [by_layer(array, cuts) for array in (targets, g, states)]
  return {
    name: Cells(*layer, steps)
    for name, *layer in zip(names, *parts, strict=True)
  }


def kernels_of(params: Mapping) -> Mapping[tuple[str, ...], chex.Array]:
  """Returns {path: kernel} by layer, sorted: its place gives a layer's key."""
  if all(isinstance(path, tuple) for path in params):
    return params
  flat = traverse_util.flatten_dict(params)
  return {
    path[:-1]: flat[path] for path in sorted(flat) if path[-1] == "kernel"
  }


def matching(
  kernels: Mapping[tuple[str, ...], Any],
  patterns: Sequence[str] | None,
  field: str = "layers",
) -> Mapping[tuple[str, ...], Any]:
  """Returns the kernels whose layers match one of some patterns; None: all.

  `field` is for errors.

  Raises:
    InputError: no pattern, or one that no layer matches.
  """
  if patterns is None:
    return kernels
  if not patterns:
    raise errors.InputError(
      f"{field}: got none, needed are patterns of layers, or None for all"
    )
  names = {path: "/".join(path) for path in kernels}
  for pattern in patterns:
    if not fnmatch.filter(names.values(), pattern):
      raise errors.InputError(
        f"{field}: got {pattern!r}, allowed are patterns that match some of "
        f"{', '.join(names.values())}"
      )
  return {
    path: kernel
    for path, kernel in kernels.items()
    if any(fnmatch.fnmatchcase(names[path], pattern) for pattern in patterns)
  }


def layer_keys(
  key: chex.PRNGKey, params: Mapping, patterns: Sequence[str] | None
) -> tuple[list[chex.PRNGKey], Mapping[tuple[str, ...], chex.Array]]:
  """Returns keys and kernels of the layers that match, see `matching`.

  A layer's key follows from that of the chip, which is consumed, and from its
  place among all layers.
  """
  kernels = kernels_of(params)
  chosen = matching(kernels, patterns)
  keys = [
    jax.random.fold_in(key, place)
    for place, path in enumerate(kernels)
    if path in chosen
  ]
  return keys, chosen


def weight_shape(device: devices.Device) -> tuple[int, int]:
  """Returns how many (rows, columns) of weights a tile has."""
  rows, columns = device.tile_shape
  return (
    rows // (1 + (device.mapping == "complementary")),
    columns // (1 + (device.mapping == "interleaved")),
  )


def cell_shape(device: devices.Device) -> tuple[int, int, int]:
  """Returns (arrays, rows, columns) of a tile's cells."""
  rows, columns = device.tile_shape
  return (
    1 + (device.mapping == "differential"),
    rows,
    columns + (device.mapping == "single"),
  )


def parts(
  found: chex.Array, device: devices.Device
) -> tuple[chex.Array, chex.Array | None]:
  """Returns what adds to weights and what is taken from them, `[T, R, C]`.

  It is found of all cells, of `cell_shape`. None is taken where the digital
  side takes it. Of pairs of cells a weight is the difference, else twice that.
  """
  if device.mapping == "differential":
    return found[:, 0], found[:, 1]
  if device.mapping == "complementary":
    return found[:, 0, ::2], found[:, 0, 1::2]
  if device.mapping == "interleaved":
    return found[:, 0, :, ::2], found[:, 0, :, 1::2]
  if device.mapping == "single":
    return found[:, 0, :, :-1], found[:, 0, :, -1:]
  return found[:, 0], None


def unit(device: devices.Device, bits: int) -> chex.Numeric:
  """Returns what a cell's conductance of 1 S adds to a weight's digit."""
  _, steps = cell_slices(device, bits)
  is_single = device.mapping in ("single", "offset")
  return (2 if is_single else 1) * steps / (device.g_on - device.g_off)


def cell_slices(device: devices.Device, bits: int) -> tuple[int, int]:
  """Returns (number of slices, steps of a cell from g_off to g_on)."""
  if bits == 1:
    return 1, 1
  if device.mapping != "differential":
    kind = f"weights of {bits} bits" if bits else "analog weights"
    raise errors.InputError(
      f"mapping: got {device.mapping!r} with {kind}, allowed is "
      "'differential': the others are of 1 bit"
    )
  if bits == 0 and device.cell_bits:
    raise errors.InputError(
      f"cell_bits: got {device.cell_bits} with analog weights, allowed is 0: "
      "only integers are cut into slices"
    )
  if bits == 0:
    return 1, 1
  if not device.cell_bits:
    return 1, integer.largest(bits) + device.spare_level
  return -(-(bits - 1) // device.cell_bits), 2**device.cell_bits - 1


def largest_digit(device: devices.Device, bits: int) -> int:
  """Returns the largest integer of one slice of a weight."""
  slices, steps = cell_slices(device, bits)
  return steps if slices > 1 else integer.largest(bits)


def check_integers(
  variables: Mapping[str, Any], bits: int, scales: str | None
) -> None:
  """Checks that a net's weights are quantised on its chip as in the net.

  `variables` are the net's, with `batch_stats` where there are any.

  Raises:
    InputError: 1 bit for a net of integers; or no scales of several bits, which
      no variable tells.
  """
  if bits in (0, *range(2, 9)) and scales is None:
    raise errors.InputError(
      f"scales: got None with bits = {bits}, needed are the net's own "
      f"weight_scales: {', '.join(integer.SCALES)}"
    )
  stats = traverse_util.flatten_dict(dict(variables.get("batch_stats", {})))
  if bits == 1 and any(path[-1] == "max_abs" for path in stats):
    raise errors.InputError(
      "bits: got 1, needed are the net's own weight_bits, 2 to 8: its "
      "activations have ranges, as those of integers"
    )


def kernel_integers(kernel: chex.Array, bits: int, scales: str) -> chex.Array:
  """Returns the integers of a kernel, in its shape and with its gradient.

  Of analog weights (0 bits) they are shares of the largest, from -1 to 1.
  """
  if bits not in range(9):
    raise errors.InputError(
      f"bits of a crossbar's weights: got {bits}, allowed are 1 to 8, and 0 "
      "for analog ones"
    )
  if bits == 1:
    return binary.binarize_weights(kernel, zero=0)
  step = integer.weight_step(kernel, bits, scales)
  if bits == 0:
    return kernel / step
  return integer.quantize(kernel, step, bits)


def cut_kernel(
  kernel: chex.Array,
  device: devices.Device,
  bits: int,
  scales: str,
  spare_columns: int = 0,
) -> chex.Array:
  """Returns integers `[slices, row_tiles, col_tiles, R, C]`; 0: no weight.

  The last `spare_columns` of every tile hold none.
  """
  integers = kernel_integers(kernel, bits, scales)
  matrix = tiles.kernel_to_matrix(integers)[None]
  slices, steps = cell_slices(device, bits)
  if slices > 1:
    # Digits of the magnitude: all slices have the weight's sign.
    place = (steps + 1.0) ** np.arange(slices).reshape(-1, 1, 1)
    digit = jnp.floor(jnp.abs(matrix) / place) % (steps + 1)
    rest = matrix[0] - jax.lax.stop_gradient(matrix[0])
    # Straight through: a weight's gradient is that of its units.
    matrix = (jnp.sign(matrix) * digit).at[0].add(rest)
  if device.mapping in ("single", "offset"):
    # Cells without a weight are off, as those of a weight of -1.
    return cut_matrices(matrix + 1, device, spare_columns) - 1
  return cut_matrices(matrix, device, spare_columns)


def cut_matrices(
  matrices: chex.Array, device: devices.Device, spare_columns: int
) -> chex.Array:
  """Returns the tiles of `[slices, rows, columns]`, as of `cut_kernel`."""
  rows, columns = weight_shape(device)
  used = rows, columns - spare_columns
  cut = jax.vmap(lambda x: tiles.split(x, used))(matrices)
  if not spare_columns:
    return cut
  return jnp.pad(cut, [(0, 0)] * 4 + [(0, spare_columns)])


def program_tiles(
  keys: chex.PRNGKey,
  integers: chex.Array,
  faults: chex.Array | None,
  device: devices.Device,
  bits: int,
  write: chex.Numeric,
) -> tuple[chex.Array, chex.Array]:
  """Returns (targets, conductances) of some tiles' cells, `[T, 2, R, C]` [S].

  All layers' tiles can be drawn in one call: a draw a layer multiplies the
  compile time of a deep net. `keys`, `integers` and `faults` are of
  `stack_tiles`; `write` numbers the programming.
  """
  held = levels(integers, device)
  _, steps = cell_slices(device, bits)
  targets = defects.target_conductances(held, steps, device)
  g = defects.cell_conductances(keys, targets, device, steps, write, faults)
  return targets, g


def levels(integers: chex.Array, device: devices.Device) -> chex.Array:
  """Returns what every cell holds, in steps from g_off."""
  if device.mapping in ("single", "offset"):
    held = ((integers + 1) / 2)[:, None]
    if device.mapping == "offset":
      return held
    return jnp.concatenate([held, jnp.full_like(held[..., :1], 0.5)], axis=-1)
  # Not a maximum, for its gradient at 0: the positive cell's, as published.
  positive = integers >= 0
  axis = {"differential": 1, "complementary": 2, "interleaved": 3}
  axis = axis[device.mapping]
  held = jnp.where(
    jnp.stack([positive, ~positive], axis=axis),
    jnp.stack([integers, -integers], axis=axis),
    0,
  )
  return held.reshape(len(held), *cell_shape(device))


def fault_states(
  keys: chex.PRNGKey,
  integers: chex.Array,
  faults: chex.Array | None,
  device: devices.Device,
  dead_lines: bool = False,
) -> chex.Array:
  """Returns which cells of some tiles (of `stack_tiles`) are stuck.

  int8 `[T, 2, R, C]`: 1 stuck on, -1 stuck off, 0 healthy. With `dead_lines`
  their cells count as stuck off.
  """
  del integers
  shape = cell_shape(device)
  states = defects.fault_states(keys, shape, device)
  if faults is not None:
    states = jnp.where(faults, faults, states)
  if dead_lines:
    dead = jax.vmap(lambda key: defects.on_dead_line(key, shape, device))(keys)
    states = jnp.where(dead, jnp.int8(-1), states)
  return states


def ternary_weights(
  keys: chex.PRNGKey,
  integers: chex.Array,
  faults: chex.Array | None,
  device: devices.Device,
) -> chex.Array:
  """Returns 1-bit weights of tiles whose cells stick at most, int8 `[T, R, C]`.

  -1, 0 or 1: the integers that the conductances of `program_tiles` amount to;
  no gradient.
  """
  states = fault_states(keys, integers, faults, device)
  signs = integers[:, None]
  # int8 throughout: float32 of all cells would be four times the memory.
  targets = jnp.concatenate([signs > 0, signs < 0], axis=1)
  is_on = jnp.where(states == 0, targets, states > 0).astype(jnp.int8)
  return is_on[:, 0] - is_on[:, 1]


def in_blocks(
  function: Callable[..., Any],
  keys: chex.PRNGKey,
  integers: chex.Array,
  *others: Any,
) -> Any:
  """Computes a function of tiles, of a large net some tiles after the others.

  `function` maps (keys, integers, faults) of some tiles, as of `stack_tiles`,
  and what else has a tile axis, to arrays `[T, ...]`; what it computes of a
  tile depends on that tile alone.
  """
  arguments = keys, integers, *others
  num, rows, columns = integers.shape
  blocks = -(-num // max(_CELLS // (2 * rows * columns), 1))
  if blocks == 1:
    return function(*arguments)
  size = -(-num // blocks)

  def cut(array):
    # The last block repeats its last tile: all blocks run one program.
    last = jnp.repeat(array[-1:], blocks * size - num, axis=0)
    padded = jnp.concatenate([array, last])
    return padded.reshape(blocks, size, *array.shape[1:])

  found = jax.lax.map(
    lambda block: function(*block), jax.tree.map(cut, arguments)
  )
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num], found)


def check_faults(faults: Mapping[str, chex.Array]) -> None:
  """Checks that measured faults are -1, 0 or 1; those traced are not known.

  Raises:
    InputError: they are not.
  """
  for name, array in faults.items():
    if isinstance(array, jax.core.Tracer):
      continue
    wrong = ~np.isin(array, (-1, 0, 1))
    if wrong.any():
      raise errors.InputError(
        f"faults of {name}: got {np.asarray(array)[wrong][0]}, allowed are 1 "
        "(stuck on), -1 (stuck off) and 0 (healthy)"
      )


def stack_tiles(
  keys: Sequence[chex.PRNGKey],
  cuts: Sequence[chex.Array],
  device: devices.Device,
  faults: Mapping[str, chex.Array] | None = None,
  names: Sequence[str] = (),
) -> tuple[chex.PRNGKey, chex.Array, chex.Array | None]:
  """Returns all layers' tiles: keys `[T]`, integers `[T, R, C]` and faults.

  The faults are the measured ones, int8 `[T, 2, R, C]`; None: none.
  """
  tile_keys = [
    defects.tile_keys(key, cut.shape[1:3], cell_slice)
    for key, cut in zip(keys, cuts, strict=True)
    for cell_slice in range(cut.shape[0])
  ]
  integers = [cut.reshape(-1, *cut.shape[3:]) for cut in cuts]
  measured = _measured(faults, names, cuts, cell_shape(device))
  return jnp.concatenate(tile_keys), jnp.concatenate(integers), measured


def by_layer(array: chex.Array, cuts: Sequence[chex.Array]) -> list[chex.Array]:
  """Returns each layer's part of `[T, ...]`, shaped as its cut kernel is."""
  ends = np.cumsum([int(np.prod(cut.shape[:3])) for cut in cuts])[:-1]
  return [
    part.reshape(*cut.shape[:3], *part.shape[1:])
    for part, cut in zip(jnp.split(array, ends), cuts, strict=True)
  ]


def _measured(faults, names, cuts, shape):
  if faults is None:
    return None
  check_faults(faults)
  unknown = sorted(set(faults) - set(names))
  if unknown:
    raise errors.InputError(
      f"faults: got layer {unknown[0]!r}, allowed are {', '.join(names)}"
    )
  states = []
  for name, cut in zip(names, cuts, strict=True):
    needed = (*cut.shape[:3], *shape)
    array = faults.get(name, np.zeros(needed, np.int8))
    fits = array.ndim == 6 and array.shape[3:] == needed[3:]
    if not fits or any(a < b for a, b in zip(array.shape, needed, strict=True)):
      raise errors.InputError(
        f"faults of {name}: got an array of shape {tuple(array.shape)}, needed "
        f"is at least {needed} (slices, row tiles, column tiles, arrays, rows, "
        "columns)"
      )
    # A wider net's map serves a narrower one: its cells are the first ones.
    array = jnp.asarray(array)[tuple(map(slice, needed[:3]))]
    states.append(array.astype(jnp.int8).reshape(-1, *needed[3:]))
  return jnp.concatenate(states)
