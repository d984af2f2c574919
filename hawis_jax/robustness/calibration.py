"""What chips are set to: converters' ranges and thresholds, layers' factors.

Axes: B images, H rows, W columns, C channels, K known inputs.
"""

import dataclasses
import functools

import chex
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax.arithmetic import binary
from hawis_jax.crossbar import cells
from hawis_jax.crossbar import readout
from hawis_jax.networks import layers
from hawis_jax.networks import products
from hawis_jax.networks import resnet

_KNOWN_INPUTS = 64  # K
# Of the first one, for its noise: no image's, and no calibration image's.
_KNOWN_NUMBER = -(2**30)
# A layer that conducts less of what it was programmed to has lost its weights.
_LEAST_GAIN = 1e-4


def calibrate_converters(
  module: nn.Module,
  variables: dict,
  images: chex.Array | None,
  device: crossbar.Device,
) -> dict:
  """Returns `variables` with `converters`, what a device's are set to.

  That is the `range` of each layer's: the greatest, over its tiles, of
  `device.adc_percentile` of the magnitude of partial sums of images uint8 `[B,
  H, W, C]` (None: no ranges); and, where `adc_bits` is 1, each `threshold` of
  `thresholds`.

  Raises:
    InputError: a bad device; no one threshold does what follows a layer.
  """
  crossbar.validate(device)
  found = {}
  if images is not None:
    # The hardware is designed once, for the defect-free net: all chips have the
    # same ranges, whatever the device's effects.
    ideal = dataclasses.replace(
      crossbar.without_effects(device),
      adc_bits=16,  # any: the tiles are read one by one, without the converters
      adc_range="full_scale",
    )
    found = _calibrate(module, variables, images, ideal)["converters"]
    found = traverse_util.flatten_dict(found)
  if device.adc_bits == 1:
    known = thresholds(module, variables, device)
    for (*path, _), threshold in known.items():
      if jnp.isnan(threshold).any():
        raise errors.InputError(
          f"adc_bits: got 1, a sense amplifier, but after {'/'.join(path)} an "
          "RPReLU has a slope below 0, and no one threshold tells the bits of "
          "the layer's sums; allowed are 0 and 2 to 16"
        )
    found |= known
  return {**variables, "converters": traverse_util.unflatten_dict(found)}


def thresholds(
  module: nn.Module, variables: dict, device: crossbar.Device
) -> dict[tuple[str, ...], chex.Array]:
  """Returns {(*layer, "threshold"): `[C]`} of a net's sense amplifiers.

  A threshold folds what follows a product: its scale, batch normalisation, an
  RPReLU if there is one, and the binariser. The sums of each block's conv1
  alone are only normalised and binarised; those of other layers are added to a
  shortcut, or are logits. It is halfway between the two whole sums that have
  different bits, hence exact, whichever sign the normalisation's gain has; at
  the end of the sums where all have the same bit; NaN where bits change twice.
  """
  if not isinstance(module, resnet.BinaryResNet):
    return {}
  most = device.tile_shape[0]
  found = {}
  for block, params in variables["params"].items():
    if "conv1" not in params:
      continue
    kernel = params["conv1"]["kernel"]
    sums = jnp.arange(-most, most + 1.0, dtype=kernel.dtype)[:, None]
    sums = jnp.broadcast_to(sums, (sums.size, kernel.shape[-1]))
    alpha = binary.weight_scale(
      kernel, per_channel=module.options.channel_scale
    )
    y = binary.scale(sums, alpha)
    norm = {
      "params": params["bn1"],
      "batch_stats": variables["batch_stats"][block]["bn1"],
    }
    y = layers.BatchNorm().apply(norm, y, train=False)
    if module.options.rprelu:
      y = layers.RPReLU().apply({"params": params["act1"]}, y)
    bits = binary.binarize_activations(y)
    changes = bits[1:] != bits[:-1]
    first = sums[0, 0] + changes.argmax(0) + 0.5
    once = changes.sum(0) <= 1
    found[block, "conv1", "threshold"] = jnp.where(once, first, jnp.nan)
  return found


def compensate(chip: dict, bits: int = 1, scales: str = "channel") -> dict:
  """Returns a chip of `crossbar.program` whose layers' gains are compensated.

  Each layer reads known inputs once; g of s = g t is fitted by least squares to
  its sums s, t being those that programming aimed at; and all its sums are
  multiplied by 1 / g, digitally, after its converters. So one factor a layer
  undoes what all of its cells have in common: global drift compensation (Le
  Gallo et al., Advanced Electronic Materials 2018; Joshi et al., Nature
  Communications 2020). They divide currents' sum by what it was right after
  programming; a slope to the aim undoes more than drift, and noise that is read
  adds no bias to it. An ideal layer's g is 1.

  Args:
    chip: variables with `params` and `crossbar`.
    bits: of the network's weights, as of `crossbar.program`.
    scales: of its weights of several bits, as of `crossbar.program`.
  """
  numbers = _KNOWN_NUMBER - jnp.arange(_KNOWN_INPUTS)
  read = crossbar.for_images(chip, numbers)["crossbar"]
  read, params, own = map(
    traverse_util.flatten_dict, (read, chip["params"], chip["crossbar"])
  )
  for path in dict.fromkeys(path[:-1] for path in own):
    kernel = params[(*path, "kernel")]
    layer = {name: x for (*of, name), x in read.items() if tuple(of) == path}
    # The same rows are driven on all chips, at the largest input.
    shape = _KNOWN_INPUTS, *kernel.shape[:-1]
    driven = jax.random.bernoulli(jax.random.key(0), np.float32(0.5), shape)
    inputs = driven.astype(kernel.dtype) * max(2 ** (bits - 1) - 1, 1)
    product = binary.multiply
    if kernel.ndim == 4 and kernel.shape[0] == kernel.shape[1]:
      product = functools.partial(binary.convolve, strides=1, padding=0)
    elif kernel.ndim > 2:
      # Of users' nets, whose weights are folded: one sum over all taps.
      product = _flat_product
    product = products.on_chips(product)
    aimed = product(inputs, cells.kernel_integers(kernel, bits, scales))
    if "weight" in layer:
      name, sums = "weight", product(inputs, layer["weight"])
    else:
      name, sums = "factors", readout.read(product, inputs, layer)
    gain = (sums * aimed).sum() / jnp.square(aimed).sum()
    own[(*path, name)] *= jnp.where(gain > _LEAST_GAIN, 1 / gain, 1)
  return {**chip, "crossbar": traverse_util.unflatten_dict(own)}


def _flat_product(inputs, kernel):
  rows = inputs.reshape(len(inputs), -1)
  return binary.multiply(rows, kernel.reshape(-1, kernel.shape[-1]))


@functools.partial(jax.jit, static_argnums=0)
def _calibrate(module, variables, images, device):
  net = crossbar.program(
    jax.random.key(0),
    variables,
    device,
    module.weight_bits,
    scales=getattr(module, "weight_scales", "channel"),
  )
  flat = traverse_util.flatten_dict(net["crossbar"])
  flat = {path: x for path, x in flat.items() if path[-1] != "converter"}
  # A layer that holds a percentile measures its partial sums.
  percentile = jnp.float32(device.adc_percentile)
  asked = {(*path[:-1], "percentile"): percentile for path in flat}
  net["crossbar"] = traverse_util.unflatten_dict(flat)
  net["converters"] = traverse_util.unflatten_dict(asked)
  _, updated = module.apply(
    net, module.encode(images), train=False, mutable=["converters"]
  )
  return updated
