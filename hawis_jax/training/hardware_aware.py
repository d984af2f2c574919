"""Training on chips: every step draws new ones (docs/robust_nets.md).

A net that is trained on chips works on chips that it has never met (Joshi et
al., Nature Communications 2020; of binary nets Hirtzlin et al., AICAS 2019, and
Buschjaeger et al., arXiv:2002.00909). A step divides its batch over K chips, so
that its gradient is a mean over chips at the price of one batch. It passes
straight through all defects to the latent weight, that of a stuck cell too:
another chip will need it.

Axes: K chips, N batches, B images.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import chex
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp

from hawis_jax import backend
from hawis_jax import crossbar
from hawis_jax.arithmetic import integer
from hawis_jax.networks import net_variables
from hawis_jax.runtime import sharding

# A float net's chips hold integers of its weights: what else is analog.
_FLOAT_BITS = 8


@dataclasses.dataclass(frozen=True)
class Settings:
  """Which chips a step draws, and what it learns of them."""

  devices: tuple[crossbar.Device, ...]  # of the scenarios; see `crossbar.stack`
  chips: int = 1  # K
  # A chip has a share of its device's severities, uniform from 0 to this.
  most_severity: float = 1.0
  # Shares of all steps: up to the first there are no defects, and from there
  # `most_severity` is reached in a line at the second.
  ramp: tuple[float, float] = (0.0, 0.0)
  worst: float = 1.0  # share of the K chips, of the largest losses, that counts

  def most_at(self, progress: chex.Numeric) -> chex.Numeric:
    """Returns the largest share of severities at a share of all steps."""
    start, end = self.ramp
    if not end:
      return self.most_severity
    risen = (progress - start) / max(end - start, 1e-6)
    return self.most_severity * jnp.clip(risen, 0, 1)


def program(
  key: chex.PRNGKey,
  variables: dict,
  module: nn.Module,
  settings: Settings,
  most: chex.Numeric,
  images: int,
) -> dict:
  """Returns a net's variables on a new chip, to be trained.

  Args:
    key: consumed.
    variables: at least `params`.
    module: the net.
    settings: its devices are of equal probability.
    most: of `Settings.most_at`.
    images: that the chip will read, B: each has noise of its own.
  """
  choice_key, share_key, chip_key = jax.random.split(key, 3)
  devices, share = settings.devices, most * jax.random.uniform(share_key)
  scales = getattr(module, "weight_scales", "channel")

  def on(device):
    return crossbar.program(
      chip_key,
      {"params": variables["params"]},
      crossbar.scaled(device, share),
      module.weight_bits or _FLOAT_BITS,
      scales=scales,
      straight_through=True,
    )["crossbar"]

  choice = jax.random.randint(choice_key, (), 0, len(devices))
  is_alike = not any(map(crossbar.needs_tiles, devices))
  if backend.platform() == "cpu" and is_alike:
    # A branch draws its own device's effects alone.
    chip = jax.lax.switch(choice, [functools.partial(on, d) for d in devices])
  else:
    chip = on(jax.tree.map(lambda x: x[choice], crossbar.stack(devices)))
  if module.weight_bits is None:
    chip = _in_units(chip, variables["params"], scales)
  net = {**variables, "crossbar": chip}
  return crossbar.for_images(net, jnp.arange(images))


def _in_units(chip, params, scales):
  """The weights of a float net, of a chip's integers."""
  flat, kernels = traverse_util.flatten_dict(chip), {}
  for (*path, name), weight in flat.items():
    kernel = traverse_util.flatten_dict(params)[(*path, "kernel")]
    step = integer.weight_step(kernel, _FLOAT_BITS, scales)
    kernels[(*path, name)] = weight * step
  return traverse_util.unflatten_dict(kernels)


def loss_on_chips(
  loss_function: Callable[[dict, dict], tuple[chex.Array, Any]],
  key: chex.PRNGKey,
  variables: dict,
  batch: dict[str, chex.Array],
  module: nn.Module,
  settings: Settings,
  most: chex.Numeric,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[chex.Array, Any]:
  """Returns (loss, mean of the rest) of a batch divided over K new chips.

  Args:
    loss_function: (variables, part of the batch) -> (loss, rest).
    key: consumed.
    variables: of the net.
    batch: arrays `[B, ...]`, B a multiple of K.
    module: the net.
    settings: of the chips.
    most: of `Settings.most_at`.
    mesh: whose devices take part in each chip's images; None: one device.
  """
  num, size = settings.chips, len(batch["label"]) // settings.chips

  def one(key, part):
    net = program(key, variables, module, settings, most, size)
    return loss_function(net, part)

  keys = jax.random.split(key, num)
  parts = jax.tree.map(lambda x: x.reshape(num, size, *x.shape[1:]), batch)
  if mesh is not None:
    where = sharding.on_data(mesh, axis=1)
    parts = jax.lax.with_sharding_constraint(parts, where)
  if backend.platform() == "cpu":
    # Vmapped, convolutions would be grouped ones, which are slow there.
    take = lambda k: jax.tree.map(lambda x: x[k], (keys, parts))  # noqa: E731
    found = [one(*take(k)) for k in range(num)]
    losses, rest = jax.tree.map(lambda *x: jnp.stack(x), *found)
  else:
    losses, rest = jax.vmap(one)(keys, parts)
  worst = jnp.sort(losses)[-math.ceil(settings.worst * num) :]
  return worst.mean(), jax.tree.map(lambda x: x.mean(0), rest)


def design_statistics(
  key: chex.PRNGKey,
  module: nn.Module,
  variables: dict,
  inputs: chex.Array,
  settings: Settings,
  num_chips: int,
  widths: chex.Array | None = None,
) -> dict:
  """Returns `batch_stats` that are the mean over many chips of those of each.

  Args:
    key: consumed.
    module: the net.
    variables: its `params`.
    inputs: `[N, B, H, W, C]`, encoded calibration batches.
    settings: of the chips.
    num_chips: over which the mean is.
    widths: int `[L]`, of a super-net; None: all of the net.
  """

  def one(key):
    net = program(key, variables, module, settings, settings.most_severity, 1)
    return net_variables.recalibrate(module, net, inputs, widths)

  found = jax.lax.map(one, jax.random.split(key, num_chips))
  return jax.tree.map(lambda x: x.mean(0), found)
