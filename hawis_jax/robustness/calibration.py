"""Ranges of converters that are chosen by what a net's partial sums are."""

import dataclasses
import functools

import chex
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp

from hawis_jax import crossbar


def calibrate_converters(
  module: nn.Module,
  variables: dict,
  images: chex.Array,
  device: crossbar.Device,
) -> dict:
  """Returns `variables` with `converters`: the range of each layer's.

  A layer's range is the greatest, over its tiles, of `device.adc_percentile` of
  the magnitude of partial sums of images uint8 `[B, H, W, C]`.
  """
  # The hardware is designed once, for the defect-free net: all chips have the
  # same ranges, whatever the device's effects.
  ideal = dataclasses.replace(
    crossbar.without_effects(device),
    adc_bits=16,  # any: the tiles are read one by one, without the converters
    adc_range="full_scale",
  )
  return {**variables, **_calibrate(module, variables, images, ideal)}


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
