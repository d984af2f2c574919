"""Variables of any network: fresh ones, and recalibrated BN statistics.

Axes: N batches, B images, H rows, W columns, C channels, L layers.
"""

from collections.abc import Mapping
import hashlib

import chex
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax.arithmetic import integer


def init(
  module: nn.Module, key: chex.PRNGKey, image_shape: tuple[int, int, int]
) -> dict:
  """Returns fresh variables of a network for images (H, W, C).

  They are those of `module.init`, but kernels are He normal by their fan-out
  (He et al., ICCV 2015). All come from one draw, because a draw a layer
  multiplies the compile time (those of `module.init` are never computed).

  >>> import hawis_jax as hx
  >>> net = hx.cifar_resnet(8, (4, 4, 4, 6, 6, 8, 8), num_classes=10, levels=8)
  >>> make = jax.jit(lambda key: hx.init_variables(net, key, (8, 8, 1)))
  >>> make(jax.random.key(0))["params"]["stem"]["kernel"].shape
  (3, 3, 8, 4)
  """
  errors.check_key(key)
  images = jnp.zeros((1, *image_shape), jnp.uint8)
  flat = traverse_util.flatten_dict(
    module.init(key, module.encode(images), train=False)
  )
  kernels = [path for path in sorted(flat) if path[-1] == "kernel"]
  sizes = [flat[path].size for path in kernels]
  normal = jax.random.normal(key, (sum(sizes),))
  draws = jnp.split(normal, np.cumsum(sizes)[:-1])
  for path, draw in zip(kernels, draws, strict=True):
    shape = flat[path].shape
    fan_out = draw.size // shape[-2]
    flat[path] = draw.reshape(shape) * np.sqrt(2 / fan_out, dtype=np.float32)
  return traverse_util.unflatten_dict(flat)


def crossbar_bits(module: nn.Module) -> int:
  """Returns the bits of a net's weights on chips: 0, analog, of a float net."""
  return 0 if module.weight_bits is None else module.weight_bits


def in_units(chip: Mapping, params: Mapping, bits: int, scales: str) -> Mapping:
  """Returns a float net's weights, of what a chip holds of them.

  Args:
    chip: `crossbar` of `crossbar.program`, folded.
    params: of the net.
    bits: of what is held, as `crossbar.program`'s.
    scales: of it.
  """
  flat, kernels = traverse_util.flatten_dict(chip), {}
  for (*path, name), weight in flat.items():
    kernel = traverse_util.flatten_dict(params)[(*path, "kernel")]
    kernels[(*path, name)] = weight * integer.weight_step(kernel, bits, scales)
  return traverse_util.unflatten_dict(kernels)


def shapes(module: nn.Module, image_shape: tuple[int, int, int]) -> dict:
  """Returns the shapes and types of `init`'s variables, at no cost."""
  return jax.eval_shape(
    lambda key: init(module, key, image_shape), jax.random.key(0)
  )


def digest(variables: chex.ArrayTree) -> str:
  """Returns the SHA-256 of a net's variables, in hexadecimal."""
  sha256 = hashlib.sha256()
  for leaf in jax.tree.leaves(variables):
    sha256.update(np.asarray(leaf).tobytes())
  return sha256.hexdigest()


def with_scales(
  module: nn.Module,
  variables: dict,
  image_shape: tuple[int, int, int],
  widths: chex.Array | None = None,
) -> dict:
  """Returns a net's variables with `scales` that its widths determine.

  These are weight scales alpha and gains of batch normalisation: what a program
  would compute anew at every use, in a loop over small blocks of images for as
  long as the net itself (XLA fuses a gain's root into every element).

  Args:
    module: a network.
    variables: its `params` and `batch_stats`.
    image_shape: (H, W, C) of the images.
    widths: int `[L]`; None: the net's own.
  """
  code = module.encode(jnp.zeros((1, *image_shape), jnp.uint8))
  net = {name: variables[name] for name in ("params", "batch_stats")}
  _, found = module.apply(net, code, widths, train=False, mutable=["scales"])
  return {**variables, **found}


def check_read(used: Mapping) -> None:
  """Checks that a net's logits depend on every layer that chips hold.

  `used` says so of each entry of a chip, nested as its `crossbar` is.

  Raises:
    InputError: they do not: the net would be as accurate on any chip.
  """
  flat = traverse_util.flatten_dict(dict(used))
  for layer in dict.fromkeys(path[:-1] for path in flat):
    if not any(flat[path] for path in flat if path[:-1] == layer):
      raise errors.InputError(
        f"layers: got {'/'.join(layer) or 'the net'}, which chips hold and the "
        "net never reads in its forward pass: use hx.any_flax for a net of "
        "other layers than ours, or choose layers that it reads"
      )


def recalibrate(
  module: nn.Module,
  variables: dict,
  images: chex.Array,
  widths: chex.Array | None = None,
) -> dict:
  """Returns `batch_stats` measured on calibration batches at given widths.

  The moments of the batches are pooled: mean of the means; mean of the biased
  variances plus variance of the means.

  Args:
    module: a network.
    variables: its variables; `batch_stats` are ignored.
    images: calibration batches `[N, B, H, W, C]`, as for `encode`.
    widths: int `[L]`; None: the maximum widths.
  """
  raw = module.clone(bn_momentum=0.0)

  def moments(numbered):
    first, batch = numbered
    # Noise a read of its own, not that of the images with numbers from 0.
    net = crossbar.for_images(variables, -1 - first - jnp.arange(len(batch)))
    # Encoded one by one: the code of all would take more than the network.
    _, updated = raw.apply(
      net, raw.encode(batch), widths, train=True, mutable=["batch_stats"]
    )
    return updated["batch_stats"]

  first = jnp.arange(images.shape[0]) * images.shape[1]
  flat = traverse_util.flatten_dict(jax.lax.map(moments, (first, images)))
  pooled = {path: value.mean(0) for path, value in flat.items()}
  # The total variance: that within the batches and that between them.
  for path, value in flat.items():
    if path[-1] == "mean":
      pooled[(*path[:-1], "var")] += value.var(0)
  return traverse_util.unflatten_dict(pooled)
