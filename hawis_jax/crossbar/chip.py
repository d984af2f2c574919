"""Chips: a whole net, or a layer of it, on defective crossbars.

A chip has one of three forms (docs/crossbar.md). "Fold": read-out is linear,
and one effective kernel a layer represents the chip exactly. "Tiled":
converters, noise drawn anew at every read, and gated or non-linear cells on
resistive lines need its tiles one by one (see `readout`). "Planes": cells of a
binary net stick and nothing else is wrong; the effective weights are -1, 0 and
1, and two bit planes hold them (see `popcount`).

All but the planes is differentiable: a cell passes its weight's gradient as its
conductance depends on the weight, the binarisers' straight-through gradients
included; a stuck cell gets none, and of a sliced weight the least slice alone
passes it. Or, for training, all gradients are straight through.

Axes: T tiles of all slices of all layers, R rows and C columns of a tile.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

import chex
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import errors
from hawis_jax.arithmetic import integer
from hawis_jax.arithmetic import popcount
from hawis_jax.crossbar import cells
from hawis_jax.crossbar import converters
from hawis_jax.crossbar import defects
from hawis_jax.crossbar import devices
from hawis_jax.crossbar import mapping
from hawis_jax.crossbar import readout
from hawis_jax.crossbar import tiles
from hawis_jax.crossbar import wires

# Of a layer's key, for noise a read: beyond its tile rows, before its slices.
_READS = 2**30 - 1
FORMS = ("float32", "bfloat16", "planes")  # of a chip's weights
_AS_IT_COMES = mapping.Placing()
# Arrays whose IR drop is solved at a time: 64 x 64 cells take 0.2 MB each.
_WIRED_ARRAYS = 128


def effective_weights(
  key: chex.PRNGKey,
  weights: chex.Array,
  device: devices.Device,
  bits: int = 1,
  write: chex.Numeric = 0,
  scales: str = "channel",
) -> chex.Array:
  """Returns the weights that one chip multiplies by; ideal: the exact integers.

  Arguments are those of `conductances`; the result has the shape of `weights`.
  Formulas and sources: docs/crossbar.md.

  >>> import hawis_jax as hx, jax, jax.numpy as jnp
  >>> kernel = jnp.array([[0.3, -0.2]])
  >>> hx.effective_weights(jax.random.key(0), kernel, hx.Device()).tolist()
  [[1.0, -1.0]]
  >>> stuck = hx.Device(stuck_off=1.0)
  >>> hx.effective_weights(jax.random.key(0), kernel, stuck).tolist()
  [[0.0, 0.0]]

  Raises:
    InputError: a bad device, other bits or scales; analog weights in non-linear
      cells; or read-out is not linear, so that no weights say what the chip
      does.
  """
  errors.check_key(key)
  devices.validate(device)
  if devices.needs_tiles(device):
    raise errors.InputError(
      "effective weights: got a device with converters or noise a read, "
      f"allowed are {', '.join(devices.TILE_EFFECTS)} of 0, and gated cells "
      "without resistances, as non-linear ones: else read-out is no linear "
      "map; use crossbar.program"
    )
  device = defects.of_chip(key, device)
  (layer,) = _layers([key], [weights], device, bits, write, scales)
  return _folded(layer, weights)


def program(
  key: chex.PRNGKey,
  variables: dict,
  device: devices.Device,
  bits: int = 1,
  write: chex.Numeric = 0,
  faults: Mapping[str, chex.Array] | None = None,
  *,
  layers: Sequence[str] | None = None,
  form: str = "float32",
  scales: str | None = None,
  straight_through: bool = False,
  placement: mapping.Placement | None = None,
) -> dict:
  """Programs every kernel of a net into one chip, see docs/crossbar.md.

  >>> import hawis_jax as hx, jax, jax.numpy as jnp
  >>> net = {"params": {"head": {"kernel": jnp.array([[0.3, -0.2]])}}}
  >>> chip = hx.program(jax.random.key(0), net, hx.Device(stuck_on=0.1))
  >>> chip["crossbar"]["head"]["weight"].shape
  (1, 2)

  Args:
    key: of one chip; consumed.
    variables: of a network: `params` with its `kernel`s; `converters`, of
      `robustness.calibration`, where ranges or thresholds come from the net.
    device: severities may be traced.
    bits: of the network's weights, see `conductances`.
    write: number of the programming, see `defects.cell_conductances`.
    faults: of a measured chip, beside those drawn, {"scope/layer": int8
      `[slices, row_tiles, col_tiles, 2, R, C]`}, at least the layer's tiles: 1
      where a cell is stuck on, -1 where it is stuck off, else 0.
    layers: patterns, as "stage3_*", of the layers to program: the others are
      computed exactly. None: all.
    form: of the weights: "float32"; or, where `is_ternary`, "bfloat16" (same
      integers, no gradients) or "planes".
    scales: of the network's weights of several bits, its own `weight_scales`,
      see `conductances`; None: of 1 bit, which has none.
    straight_through: a weight's gradient is that of what it multiplies,
      whatever its cells are: a stuck cell's too, which another chip will need.
    placement: of the chip's weights, from `mapping.place` of the same
      arguments. None: as they come.

  Returns:
    `variables` with a collection `crossbar` that holds under each layer's path
    its effective kernel `weight`; or what `readout.read` needs; or the planes
    `used` and `negative` (see `popcount`). `params` (hence scales and biases,
    which are digital) are unchanged. Noise a read also needs `for_images`.

  Raises:
    InputError: a bad device; other bits: a float net can't be programmed, nor
      one of integers with 1 bit; no scales of several bits; a sense amplifier
      where `check_readout` has none; no calibrated range; faults or a placement
      that don't fit; no layer matches; a form that can't hold the weights;
      analog weights in non-linear cells.
  """
  errors.check_key(key)
  devices.validate(device)
  cells.check_integers(variables, bits, scales)
  keys, kernels = cells.layer_keys(key, variables["params"], layers)
  check_readout(variables, device, bits, layers)
  device = defects.of_chip(key, device)
  names = ["/".join(path) for path in kernels]
  programmed = _layers(
    keys,
    list(kernels.values()),
    device,
    bits,
    write,
    scales,
    faults,
    names,
    form,
    straight_through and devices.needs_tiles(device),
    placement,
  )
  chip = {}
  for path, layer_key, layer in zip(kernels, keys, programmed, strict=True):
    kernel = kernels[path]
    if form == "planes":
      planes = popcount.weight_planes(_folded(layer, kernel))
      entries = dict(zip(("used", "negative"), planes, strict=True))
    elif devices.needs_tiles(device):
      converted = devices.is_present(device.adc_bits)
      solved = bool({"added", "cells"} & set(layer))
      # The noise of word lines is drawn a tile's rows at a time.
      noisy_rows = devices.is_present(device.dac_noise)
      one_read = not (converted or solved or noisy_rows)
      entries = _tiled(layer, kernel, device, one_read)
      if solved:
        entries |= _networks(device, bits, kernel.dtype)
      if noisy_rows:
        entries["dac_noise"] = jnp.asarray(device.dac_noise, kernel.dtype)
      if converted:
        converter = _converter(path, variables, device, bits)
        entries["converter"] = converter
        if devices.is_present(device.adc_noise):
          entries["converter_noise"] = jnp.asarray(
            device.adc_noise, kernel.dtype
          )
        if any(device.adc_inl):
          entries["inl"] = jnp.asarray(device.adc_inl, kernel.dtype)
      if layer["copies"] > 1:
        entries["copies"] = jnp.asarray(layer["copies"], kernel.dtype)
      if bits > 1 and not device.analog_inputs:
        entries["planes"] = jnp.asarray(readout.planes(bits), kernel.dtype)
      noisy = {"variances", "converter_noise", "shot", "dac_noise"}
      if noisy & set(entries):
        entries["read_key"] = jax.random.fold_in(layer_key, _READS)
    else:
      weight = _folded(layer, kernel)
      if straight_through:
        integers = cells.kernel_integers(kernel, bits, scales)
        weight = jax.lax.stop_gradient(weight)
        weight += integers - jax.lax.stop_gradient(integers)
      if form == "bfloat16":
        weight = weight.astype(jnp.bfloat16)
      entries = {"weight": weight}
    chip.update({(*path, name): value for name, value in entries.items()})
  return {**variables, "crossbar": traverse_util.unflatten_dict(chip)}


def for_images(variables: dict, images: chex.Array) -> dict:
  """Returns a chip of `program` whose noise a read follows from chip and image.

  `images` are the numbers, int `[B]`, of the batch to be read, whatever batch
  they are in.
  """
  chip = traverse_util.flatten_dict(variables.get("crossbar", {}))
  keys = {
    (*path[:-1], "read_keys"): jax.vmap(jax.random.fold_in, (None, 0))(
      key, images
    )
    for path, key in chip.items()
    if path[-1] == "read_key"
  }
  if not keys:
    return variables
  return {**variables, "crossbar": traverse_util.unflatten_dict(chip | keys)}


def check_readout(
  variables: Mapping[str, Any],
  device: devices.Device,
  bits: int = 1,
  layers: Sequence[str] | None = None,
) -> None:
  """Checks that a device can read the layers of a net that are on chips.

  Arguments are those of `program`. Nothing is checked if the device's converter
  is traced.

  Raises:
    InputError: a sense amplifier would read a part of a column or of a weight,
      or has no threshold.
  """
  if isinstance(device.adc_bits, jax.Array) or device.adc_bits != 1:
    return
  if bits != 1:
    raise errors.InputError(
      f"adc_bits: got 1, a sense amplifier, allowed for {bits}-bit weights and "
      "inputs are 0 and 2 to 16: signs of bit planes don't add up"
    )
  kernels = cells.matching(cells.kernels_of(variables["params"]), layers)
  for path, kernel in kernels.items():
    rows = kernel.size // kernel.shape[-1]
    most, _ = cells.weight_shape(device)
    if rows > most:
      raise errors.InputError(
        f"adc_bits: got 1, a sense amplifier, but a column of layer "
        f"{'/'.join(path)} has {rows} rows; allowed are at most the {most} "
        "of a tile: signs of parts don't add up"
      )
    if "threshold" not in _converters(variables, path):
      raise errors.InputError(
        f"adc_bits: got 1, a sense amplifier, but layer {'/'.join(path)} has "
        "no threshold; allowed are layers whose sums are only normalised and "
        "binarised (of our nets layers = ('*/conv1',): others' sums are added "
        "to a shortcut, or are logits), with calibration.calibrate_converters"
      )


def _converters(variables, path):
  """Returns what `converters` has of a layer."""
  found = variables.get("converters", {})
  for scope in path:
    found = found.get(scope, {})
  return found


def is_ternary(
  device: devices.Device,
  bits: int = 1,
  placing: mapping.Placing | None = None,
) -> bool:
  """Returns whether effective weights are -1, 0 or 1: cells stick at most."""
  copies = placing.copies if placing else 1
  is_pair = device.mapping == "differential"
  return bits == 1 and copies == 1 and is_pair and devices.only_sticks(device)


def _layers(
  keys,
  kernels,
  device,
  bits,
  write,
  scales,
  faults=None,
  names=("",),
  form="float32",
  straight_through=False,
  placement=None,
):
  """Returns a dict a layer of what its cells amount to.

  `weights` and, with noise a read, its `variances`, times inputs, and the
  `thermal` ones, whatever the inputs: in units of a digit of 1, `[slices,
  row_tiles, R, C_out]`; of columns that are subtracted digitally the same as
  `taken_weights`, ..., one of all columns of a tile where they share it;
  `place`: value of a digit, `[slices]`; `copies`: whose average is the weight,
  among the slices.
  """
  if bits == 0 and devices.is_present(device.nonlinearity):
    raise errors.InputError(
      f"nonlinearity: got {device.nonlinearity} with analog weights (bits = 0),"
      " allowed is 0: their inputs are of many voltages, and cells conduct G V "
      "at the read voltage alone"
    )
  placing = placement.placing if placement else _AS_IT_COMES
  cuts = mapping.cut(kernels, names, device, placing, bits, scales)
  stacked = cells.stack_tiles(keys, cuts, device, faults, names)
  mapping.check_placement(placement, stacked[1].shape)
  ternary = is_ternary(device, bits, placing)
  if form not in FORMS or (form != "float32" and not ternary):
    raise errors.InputError(
      f"form: got {form!r}, allowed are {', '.join(FORMS)}; others than "
      "float32 for 1-bit weights on a device of which stuck_on and stuck_off "
      "are the only effects, without copies"
    )

  def amounts(keys, integers, faults, placement):
    if placement:
      integers = mapping.onto(integers, placement)
    if form == "float32":
      part = keys, integers, faults, device, bits, write
      found = _tile_weights(*part)
    else:
      # No conductances: int8 signs of a chip take a fraction of the memory.
      found = {"weights": cells.ternary_weights(keys, integers, faults, device)}
    return mapping.back(found, placement) if placement else found

  slices, steps = cells.cell_slices(device, bits)
  place = (steps + 1.0) ** np.arange(slices)
  found = cells.in_blocks(amounts, *stacked, placement)
  if straight_through:
    integers = stacked[1]
    found = jax.lax.stop_gradient(found)
    found["weights"] += integers - jax.lax.stop_gradient(integers)
  parts = {name: cells.by_layer(array, cuts) for name, array in found.items()}
  return [
    {
      "place": jnp.asarray(np.tile(place, copies), kernel.dtype),
      "copies": copies,
      **{
        name: part[layer]
        if name == "cells"  # whole arrays: all of one's cells load its wires
        else _join_columns(part[layer], kernel.shape[-1], placing)
        for name, part in parts.items()
      },
    }
    for layer, (kernel, copies) in enumerate(
      zip(kernels, mapping.copies(placing, names), strict=True)
    )
  ]


def _tile_weights(keys, integers, faults, device, bits, write):
  """Returns what some tiles amount to: arrays `[T, R, C]`, see `_layers`."""
  targets, g = cells.program_tiles(keys, integers, faults, device, bits, write)
  unit, digital = cells.unit(device, bits), devices.is_digital(device)

  def seen(found, sign):
    """What converters see of cells: {prefix of names: array}."""
    if device.mapping == "differential" and sign > 0 and not digital:
      return {"": found.sum(1)}  # of two slices XLA draws all cells twice
    added, taken = cells.parts(found, device)
    if digital:
      return {"": added, "taken_": taken}
    return {"": added if taken is None else added + sign * taken}

  def add(name, arrays):
    for prefix, array in arrays.items():
      found[prefix + name] = found.get(prefix + name, 0) + array

  if "gated" in devices.tile_effects(device):
    added, taken = cells.parts(g, device)
    taken = jnp.broadcast_to(taken, added.shape)
    found = dict(weights=jnp.zeros_like(added), added=added, taken=taken)
    return found | defects.converter_errors(keys, added.shape[-1], device)
  if "nonlinearity" in devices.tile_effects(device):
    weights = seen(g, -1)[""] * unit
    found = dict(weights=weights, cells=g)
    return found | defects.converter_errors(keys, weights.shape[-1], device)
  found, current = {}, g
  if devices.is_wired(device):
    current = wires.wire_transfer(g, device, _WIRED_ARRAYS)
  add("weights", {name: x * unit for name, x in seen(current, -1).items()})
  if device.mapping == "offset":
    # An input of 1 adds g_off of an ideal -1, and is counted by itself.
    found["weights"] -= 1 + device.g_off * unit
  if current is g and not digital:
    # Weights of cells on target or stuck are integers, which a product rounds.
    rounded, known = _known_weights(g, targets, integers, device, bits)
    rounding = jnp.where(known, rounded - found["weights"], 0)
    found["weights"] += jax.lax.stop_gradient(rounding)
  if devices.is_present(device.read_noise):
    factor = jnp.square(unit * device.read_noise)
    for prefix, cell in seen(current, 1).items():
      thermal, driven = defects.read_noise_variances(cell, device)
      add("variances", {prefix: factor * driven})
      add("thermal", {prefix: factor * thermal})
  if devices.is_present(device.telegraph_noise):
    # Half the time a cell is one step up: mean 1/2, variance 1/4.
    step = defects.telegraph_step(g, device) * (unit * device.telegraph_noise)
    add("weights", seen(0.5 * step, -1))
    add("variances", seen(0.25 * jnp.square(step), 1))
  if devices.is_present(device.white_noise):
    std = defects.white_noise_std(g, device) * (unit * device.white_noise)
    # A dead line carries no current, whatever the noise's law.
    shape = g.shape[1:]
    dead = jax.vmap(lambda key: defects.on_dead_line(key, shape, device))(keys)
    add("variances", seen(jnp.square(jnp.where(dead, 0, std)), 1))
  # A column of weights, and then one that is taken from it, has its converter.
  columns = {name: found[name].shape[-1] for name in found if "weights" in name}
  built = defects.converter_errors(keys, sum(columns.values()), device)
  for name, errors_of in built.items():
    add(name, {"": errors_of[..., : columns["weights"]]})
    if digital:
      add(name, {"taken_": errors_of[..., columns["weights"] :]})
  return found


def _networks(device, bits, dtype):
  """Returns what `readout.read` needs to solve for each input."""
  unit = cells.unit(device, bits)
  if not device.gated:
    word, bit = wires.line_resistances(device)
    curve = device.nonlinearity * device.read_voltage
    found = dict(unit=unit, word_line=word, bit_line=bit, curve=curve)
    return {name: jnp.asarray(x, dtype) for name, x in found.items()}
  direction = "downward" if device.sense_side == "last" else "upward"
  found = {"unit": unit, direction: wires.gated_ladder(device)}
  if devices.is_present(device.read_noise):
    variances = defects.read_noise_variances(1.0, device)
    found["shot"] = jnp.square(unit * device.read_noise) * sum(variances)
  return {name: jnp.asarray(x, dtype) for name, x in found.items()}


def _known_weights(g, targets, integers, device, bits):
  """Returns (integers, where they hold) of cells on target or stuck."""
  _, steps = cells.cell_slices(device, bits)
  is_on, is_off = g == device.g_on, g == device.g_off
  digits = cells.levels(integers, device)
  digits = jnp.where(is_on, steps, jnp.where(is_off, 0, digits))
  known = is_on | is_off | (g == targets)
  added, taken = cells.parts(digits, device)
  if device.mapping == "differential":
    return added - taken, known.all(1)
  known, others = cells.parts(known, device)
  if taken is None:
    return 2 * added - 1, known
  factor = 2 if device.mapping == "single" else 1
  return factor * (added - taken), known & others


def _folded(layer, kernel):
  """Returns the effective kernel: slices by their significance."""
  weights = layer["weights"]
  place = layer["place"].reshape(-1, 1, 1, 1)
  matrix = (weights * place).sum(0) if len(weights) > 1 else weights
  if layer["copies"] > 1:
    matrix = matrix / layer["copies"]
  matrix = matrix.reshape(-1, kernel.shape[-1])
  matrix = matrix[: kernel.size // kernel.shape[-1]]
  return tiles.matrix_to_kernel(matrix, kernel.shape).astype(kernel.dtype)


def _tiled(layer, kernel, device, one_read):
  """Returns what `readout.read` needs of a layer but its converter and keys.

  With `one_read` all row tiles are read at once: without converters their
  currents, and the variances of their noise, just add up.
  """
  place, columns = layer["place"], kernel.shape[-1]
  is_digital = "taken_weights" in layer
  if is_digital:
    layer = {
      name: jnp.concatenate([x, layer[f"taken_{name}"]], -1)
      for name, x in layer.items()
      if f"taken_{name}" in layer
    }
  names = [x for x in ("weights", "variances", "thermal") if x in layer]
  if one_read:
    layer = {
      name: layer[name].reshape(len(place), 1, -1, kernel.shape[-1])
      for name in names
    }
  read = {"factors": jnp.repeat(place, layer["weights"].shape[1])}
  for name in names:
    kernels, starts = readout.read_kernels(layer[name], kernel.shape)
    read[{"weights": "kernels"}.get(name, name)] = kernels
  solved = [x for x in ("added", "taken", "cells") if x in layer]
  for name in solved:
    read[name] = layer[name].reshape(-1, *layer[name].shape[2:])
  if "thermal" in read:
    # Of a channel: its taps' rows are there whatever part of the image they
    # meet, but a narrower net has not all channels.
    taps = tuple(range(1, kernel.ndim - 1))
    read["thermal"] = read["thermal"].sum(taps)
  for name in ("offsets", "gains", "capacitors"):
    if name in layer:
      *_, rows, width = layer[name].shape
      shape = (-1, width) if rows == 1 else (-1, rows, width)
      read[name] = layer[name].reshape(shape)
  read = {name: value.astype(kernel.dtype) for name, value in read.items()}
  read["starts"] = jnp.asarray(starts)
  if solved:
    row_tiles, rows = layer["weights"].shape[1:3]
    taps = int(np.prod(kernel.shape[:-2]))
    firsts = readout.first_rows(row_tiles, rows, starts, taps)
    read["firsts"] = jnp.asarray(firsts)
  if is_digital:
    minus = np.arange(columns)
    if device.mapping == "single":  # one bias column a tile
      minus //= cells.weight_shape(device)[1]
    read["minus"] = jnp.asarray(columns + minus)
  return read


def _converter(path, variables, device, bits):
  """Returns the converter of a layer's tiles."""
  known = _converters(variables, path)
  rows, _ = cells.weight_shape(device)
  most = rows * cells.largest_digit(device, bits)
  scaled, granular = converters.symmetric, converters.granular
  if devices.is_digital(device):
    most = rows * cells.unit(device, bits) * device.g_on
    scaled = converters.unsigned
    granular = functools.partial(converters.unsigned, most=1)
  if device.analog_inputs:
    most *= integer.largest(bits)
  if device.adc_range == "granular":
    converter = granular(device.adc_bits)
  elif device.adc_range == "full_scale":
    converter = scaled(device.adc_bits, most)
  elif "range" in known:
    converter = scaled(device.adc_bits, known["range"])
  else:
    raise errors.InputError(
      f"adc_range: got 'calibrated', but layer {'/'.join(path)} has no range; "
      "use calibration.calibrate_converters, or 'full_scale'"
    )
  if "threshold" not in known:
    return converter
  sense = converters.sense_amplifier(most, known["threshold"])
  is_sense = jnp.asarray(device.adc_bits) == 1
  return converters.Converter(
    *(jnp.where(is_sense, *pair) for pair in zip(sense, converter, strict=True))
  )


def _join_columns(cut, columns, placing):
  """Returns `[slices, row_tiles, R, C_out]` of a cut kernel's tiles."""
  slices, row_tiles, _, rows, width = cut.shape
  cut = cut[..., : width - placing.spare_columns]
  joined = cut.transpose(0, 1, 3, 2, 4).reshape(slices, row_tiles, rows, -1)
  return joined[..., :columns]
