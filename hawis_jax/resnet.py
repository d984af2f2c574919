"""Masked binary ResNets: one network definition for every width vector.

Widths are inputs of the traced program: channels beyond a layer's width are
masked to zero *after* batch normalisation (a dead channel would otherwise
output BN's shift and could fire), so one compilation serves all width vectors,
and a fixed net is the super-net at its own widths.

Network: HAWIS (ASP-DAC 2022), ResNet-20/32 as in its published code.

Axes: B images, H rows, W columns, C channels, L layers (3x3 convolutions).
"""

import functools

import chex
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import binary
from hawis_jax import errors

BN_EPSILON = 1e-5


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last.

  Training normalises with the batch's biased variance; where `batch_stats` is
  mutable, running averages are updated with the unbiased one, as in PyTorch.

  Attributes:
    momentum: weight of the old running average; 0 keeps the batch's moments,
      with the biased variance, to be pooled over batches.
  """

  momentum: float = 0.9

  @nn.compact
  def __call__(self, x: chex.Array, train: bool) -> chex.Array:
    """Normalises `[..., C]` over its leading axes."""
    size = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (size,))
    bias = self.param("bias", nn.initializers.zeros, (size,))
    update = self.is_mutable_collection("batch_stats")
    if update or not train:
      mean = self.variable("batch_stats", "mean", jnp.zeros, (size,))
      var = self.variable("batch_stats", "var", jnp.ones, (size,))
    if not train:
      return self._normalize(x, mean.value, var.value, scale, bias)
    axes = tuple(range(x.ndim - 1))
    batch_mean = x.mean(axes)
    batch_var = jnp.square(x - batch_mean.reshape((1,) * len(axes) + (-1,)))
    batch_var = batch_var.mean(axes)
    if update and not self.is_initializing():
      count = x.size // size
      keep = self.momentum
      unbiased = batch_var * (count / max(count - 1, 1) if keep else 1)
      mean.value = keep * mean.value + (1 - keep) * batch_mean
      var.value = keep * var.value + (1 - keep) * unbiased
    return self._normalize(x, batch_mean, batch_var, scale, bias)

  def _normalize(self, x, mean, var, scale, bias):
    gain = scale * jax.lax.rsqrt(var + BN_EPSILON)
    shape = (1,) * (x.ndim - 1) + (-1,)
    return (x - mean.reshape(shape)) * gain.reshape(shape) + bias.reshape(shape)


class BinaryConv(nn.Module):
  """1-bit convolution of bits; `size` 0 is a linear layer on `[B, C]`.

  A variable `weight` in the collection `crossbar` (see `crossbar.program`)
  replaces the signs by one chip's effective weights.
  """

  features: int
  size: int = 3
  strides: int = 1

  @nn.compact
  def __call__(
    self, bits: chex.Array, in_mask: chex.Array, out_mask: chex.Array
  ) -> chex.Array:
    """Bits `[B, H, W, C_in]` or `[B, C_in]` -> sums times alpha.

    Args:
      bits: input, 0 on masked channels.
      in_mask: bool `[C_in]` and
      out_mask: bool `[C_out]`, the active channels, for alpha.
    """
    taps = (self.size, self.size) if self.size else ()
    kernel = self.param(
      "kernel", _he_normal, (*taps, bits.shape[-1], self.features)
    )
    alpha = binary.weight_scale(kernel, in_mask, out_mask)
    if self.has_variable("crossbar", "weight"):
      weights = self.get_variable("crossbar", "weight")
    else:
      weights = binary.binarize_weights(kernel)
    product = jnp.matmul
    if self.size:
      product = functools.partial(
        binary.convolve, strides=self.strides, padding=self.size // 2
      )
    bits = bits.astype(kernel.dtype)
    return binary.scaled_product(product, bits, weights, alpha)


_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class BasicBlock(nn.Module):
  """conv1 -> BN -> conv2 -> + shortcut -> BN, on real-valued input.

  The shortcut (option A) subsamples the block's input and pads or slices its
  channels to conv2's.
  """

  features: tuple[int, int]
  strides: int
  bn_momentum: float

  @nn.compact
  def __call__(
    self, x: chex.Array, masks: tuple[chex.Array, ...], train: bool
  ) -> chex.Array:
    """Real-valued `[B, H, W, C_in]` -> `[B, H', W', C_out]`.

    Args:
      x: input, 0 on masked channels.
      masks: bool, of the input's, conv1's and conv2's channels.
      train: normalise with batch statistics.
    """
    in_mask, mid_mask, out_mask = masks
    y = binary.binarize_activations(x)
    y = BinaryConv(self.features[0], strides=self.strides, name="conv1")(
      y, in_mask, mid_mask
    )
    y = BatchNorm(self.bn_momentum, name="bn1")(y, train)
    y = binary.binarize_activations(_mask(y, mid_mask))
    y = BinaryConv(self.features[1], name="conv2")(y, mid_mask, out_mask)
    y = y + shortcut_a(x, self.features[1], self.strides)
    y = BatchNorm(self.bn_momentum, name="bn2")(y, train)
    return _mask(y, out_mask)


def shortcut_a(x: chex.Array, features: int, strides: int) -> chex.Array:
  """Subsamples `[B, H, W, C]`; pads or slices its channels to `features`."""
  x = x[:, ::strides, ::strides, :features]
  return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


def _mask(x, mask):
  return x * mask.reshape((1,) * (x.ndim - 1) + (-1,)).astype(x.dtype)


class CifarResNet(nn.Module):
  """ResNet of depth 6 n + 2 with maskable widths; any input size.

  Attributes:
    depth: 6 n + 2.
    max_widths: output channels of every 3x3 convolution, stem first: `[L]`,
      L = 6 n + 1.
    num_classes: logits.
    bn_momentum: weight of the old BN running average.
  """

  depth: int
  max_widths: tuple[int, ...]
  num_classes: int
  bn_momentum: float = 0.9

  @nn.compact
  def __call__(
    self, bits: chex.Array, widths: chex.Array | None = None, *, train: bool
  ) -> chex.Array:
    """Returns logits.

    Args:
      bits: `[B, H, W, planes]` thermometer code.
      widths: int `[L]`, 1 to `max_widths`; None: `max_widths`.
      train: normalise with batch statistics; update them where mutable.

    Returns:
      `[B, num_classes]`.
    """
    chex.assert_rank(bits, 4)
    sizes = self.max_widths
    if widths is None:
      widths = sizes
    chex.assert_shape(jnp.asarray(widths), (len(sizes),))
    masks = [jnp.arange(m) < widths[i] for i, m in enumerate(sizes)]
    all_planes = jnp.ones(bits.shape[-1])
    y = BinaryConv(sizes[0], name="stem")(bits, all_planes, masks[0])
    y = _mask(BatchNorm(self.bn_momentum, name="bn_stem")(y, train), masks[0])
    blocks = (self.depth - 2) // 6
    layer = 1
    for stage in range(3):
      for block in range(blocks):
        y = BasicBlock(
          (sizes[layer], sizes[layer + 1]),
          strides=2 if stage and not block else 1,
          bn_momentum=self.bn_momentum,
          name=f"stage{stage + 1}_block{block}",
        )(y, tuple(masks[layer - 1 : layer + 2]), train)
        layer += 2
    y = jnp.maximum(y, 0).mean((1, 2))
    y = BatchNorm(self.bn_momentum, name="bn_head")(y, train)
    y = binary.binarize_activations(_mask(y, masks[-1]))
    return BinaryConv(self.num_classes, size=0, name="head")(
      y, masks[-1], jnp.ones(self.num_classes)
    )


def init(module: nn.Module, key: chex.PRNGKey, planes: int) -> dict:
  """Returns fresh variables: He normal kernels (fan-out), BN scale 1, shift 0.

  The distribution is that of `module.init`; all kernels come from one draw,
  because a draw a layer multiplies the compile time.

  Args:
    module: a network of this file.
    key: consumed.
    planes: channels of the input bits.
  """
  # Variables don't depend on the image size.
  bits = jax.ShapeDtypeStruct((1, 8, 8, planes), jnp.float32)
  shapes = jax.eval_shape(
    lambda key, bits: module.init(key, bits, train=False), key, bits
  )
  flat = traverse_util.flatten_dict(shapes)
  kernels = [path for path in sorted(flat) if path[-1] == "kernel"]
  sizes = [flat[path].size for path in kernels]
  normal = jax.random.normal(key, (sum(sizes),))
  draws = jnp.split(normal, np.cumsum(sizes)[:-1])
  for path, draw in zip(kernels, draws, strict=True):
    shape = flat[path].shape
    fan_out = draw.size // shape[-2]
    flat[path] = draw.reshape(shape) * np.sqrt(2 / fan_out, dtype=np.float32)
  constant = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0}
  for path, leaf in flat.items():
    if path[-1] in constant:
      value = constant[path[-1]]
      flat[path] = jnp.full(leaf.shape, value, leaf.dtype)
  return traverse_util.unflatten_dict(flat)


def recalibrate(
  module: nn.Module,
  variables: dict,
  bits: chex.Array,
  widths: chex.Array | None = None,
) -> dict:
  """Returns `batch_stats` measured on calibration batches at given widths.

  The moments of the batches are pooled: mean of the means; mean of the biased
  variances plus variance of the means.

  Args:
    module: a network of this file.
    variables: its variables; `batch_stats` are ignored.
    bits: `[N, B, H, W, planes]`, N calibration batches.
    widths: int `[L]`; None: the maximum widths.
  """
  raw = module.clone(bn_momentum=0.0)

  def moments(batch):
    _, updated = raw.apply(
      variables, batch, widths, train=True, mutable=["batch_stats"]
    )
    return updated["batch_stats"]

  batches = jax.lax.map(moments, bits)
  flat = traverse_util.flatten_dict(batches)
  pooled = {path: value.mean(0) for path, value in flat.items()}
  for path, value in flat.items():
    if path[-1] == "mean":
      pooled[(*path[:-1], "var")] += value.var(0)
  return traverse_util.unflatten_dict(pooled)


def cifar_resnet(
  depth: int, max_widths: tuple[int, ...], num_classes: int
) -> CifarResNet:
  """Returns the masked binary ResNet of `depth` 6 n + 2.

  Args:
    depth: 8, 14, 20, 26, 32, ...
    max_widths: `[depth - 1]` channels, the upper limit of every width vector.
    num_classes: logits, at least 2.

  Raises:
    InputError: a depth that is not 6 n + 2, or widths that do not fit it.
  """
  if depth < 8 or (depth - 2) % 6:
    raise errors.InputError(
      f"network depth: got {depth}, allowed are 8, 14, 20, ... (6 n + 2)"
    )
  if len(max_widths) != depth - 1 or min(max_widths) < 1:
    raise errors.InputError(
      f"width vector: got {tuple(max_widths)}, needed are {depth - 1} widths "
      "of at least 1 channel"
    )
  return CifarResNet(depth, tuple(int(w) for w in max_widths), num_classes)
