"""The reference nets of the binary networks: float and 8-bit ResNets.

Standard residual networks (He et al., CVPR 2016) of the same depth and widths,
to be compared with on the same crossbars, and to be teachers. A float net and
its 8-bit one have the same parameters: train the latter from scratch or from
the float net's (quantisation-aware), or `quantize` the trained float net.

Axes: N batches, B images, H rows, W columns, C channels, L convolutions of the
main path, stem first.
"""

import functools

import chex
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import errors
from hawis_jax.networks import layers
from hawis_jax.networks.quantized_layers import QuantConv

# Of the images' channels, over the training sets.
CIFAR_NORM = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET_NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# depth: (blocks of each stage, convolutions of a block)
_IMAGENET = {
  18: ((2, 2, 2, 2), 2),
  34: ((3, 4, 6, 3), 2),
  50: ((3, 4, 6, 3), 3),
  101: ((3, 4, 23, 3), 3),
  152: ((3, 8, 36, 3), 3),
}


class Block(nn.Module):
  """Convolutions with BN and ReLU between, + shortcut, ReLU.

  Attributes:
    features: output channels of its two (3x3, 3x3) or three (1x1, 3x3, 1x1)
      convolutions.
    strides: of the first 3x3 convolution and the shortcut.
    projection: a shortcut that changes the shape is a 1x1 convolution and BN;
      else it subsamples, and pads or slices channels (option A).
    bn_momentum: weight of the old running averages.
    bits: see `QuantConv`.
  """

  features: tuple[int, ...]
  strides: int
  projection: bool
  bn_momentum: float
  bits: int | None

  @nn.compact
  def __call__(self, x: chex.Array, train: bool) -> chex.Array:
    """`[B, H, W, C_in]` -> `[B, H', W', C_out]`."""
    conv = functools.partial(
      QuantConv, bits=self.bits, momentum=self.bn_momentum
    )
    norm = functools.partial(layers.BatchNorm, self.bn_momentum)
    sizes = (3, 3) if len(self.features) == 2 else (1, 3, 1)
    y = x
    for i, size in enumerate(sizes):
      strides = self.strides if i == sizes.index(3) else 1
      y = nn.relu(y) if i else y
      y = conv(self.features[i], size, strides, name=f"conv{i + 1}")(y, train)
      y = norm(name=f"bn{i + 1}")(y, train)
    out = self.features[-1]
    if not self.projection:
      x = _shortcut_a(x, out, self.strides)
    elif self.strides > 1 or x.shape[-1] != out:
      x = conv(out, 1, self.strides, name="skip")(x, train)
      x = norm(name="bn_skip")(x, train)
    return nn.relu(x + y)


def _shortcut_a(x, features, strides):
  """Option A with as many zero channels before as after.

  Checkpoints of the usual PyTorch implementation (akamaster's) need it so.
  """
  before = max(features - x.shape[-1], 0) // 2
  return jnp.roll(layers.shortcut_a(x, features, strides), before, -1)


class ResNet(nn.Module):
  """Float or 8-bit ResNet of fixed widths, for small images or for ImageNet.

  Attributes:
    max_widths: output channels of every convolution of the main path: `[L]`.
    num_classes: logits.
    blocks: of each stage.
    imagenet: stem of a 7x7/2 convolution and 3x3/2 maximum pooling, projection
      shortcuts; else a 3x3 stem and option A.
    mean: of the images' channels in [0, 1].
    std: their standard deviations.
    weight_bits: of all weights and activations; None: float.
    bn_momentum: weight of the old running averages.
  """

  max_widths: tuple[int, ...]
  num_classes: int
  blocks: tuple[int, ...]
  imagenet: bool
  mean: tuple[float, ...]
  std: tuple[float, ...]
  weight_bits: int | None = None
  bn_momentum: float = 0.9

  @nn.nowrap
  def encode(self, images: chex.Array) -> chex.Array:
    """The network's input: images `[B, H, W, C]`, normalised.

    Images of another number of channels than `mean` get mean and standard
    deviation 0.5.

    Args:
      images: uint8, or floating point in [0, 1].
    """
    chex.assert_rank(images, 4)
    if jnp.issubdtype(images.dtype, jnp.integer):
      images = images.astype(jnp.float32) / 255
    if images.shape[-1] != len(self.mean):
      return (images - 0.5) / 0.5
    mean, std = (
      jnp.asarray(values, images.dtype).reshape(1, 1, 1, -1)
      for values in (self.mean, self.std)
    )
    return (images - mean) / std

  @nn.compact
  def __call__(
    self, x: chex.Array, widths: None = None, *, train: bool
  ) -> chex.Array:
    """Returns logits.

    Args:
      x: `[B, H, W, C]`, from `encode`.
      widths: None, since the widths are fixed.
      train: use the batch's statistics and ranges; update them where mutable.

    Returns:
      `[B, num_classes]`.
    """
    if widths is not None:
      raise errors.InputError(
        f"widths: got {widths}, allowed is None: the widths of a float or "
        f"{self.weight_bits}-bit reference net are fixed"
      )
    chex.assert_rank(x, 4)
    conv = functools.partial(
      QuantConv, bits=self.weight_bits, momentum=self.bn_momentum
    )
    size, strides = (7, 2) if self.imagenet else (3, 1)
    y = conv(self.max_widths[0], size, strides, name="stem")(x, train)
    y = nn.relu(layers.BatchNorm(self.bn_momentum, name="bn_stem")(y, train))
    if self.imagenet:
      y = nn.max_pool(y, (3, 3), (2, 2), ((1, 1), (1, 1)))
    y = self._stages(y, train).mean((1, 2))
    return conv(self.num_classes, 0, name="head")(y, train)

  def _stages(self, y, train):
    """All blocks; the first one of each stage but the first strides."""
    convolutions = (len(self.max_widths) - 1) // sum(self.blocks)
    layer = 1
    for stage, count in enumerate(self.blocks):
      for block in range(count):
        y = Block(
          self.max_widths[layer : layer + convolutions],
          strides=2 if stage and not block else 1,
          projection=self.imagenet,
          bn_momentum=self.bn_momentum,
          bits=self.weight_bits,
          name=f"stage{stage + 1}_block{block}",
        )(y, train)
        layer += convolutions
    return y


def cifar_reference(
  depth: int,
  max_widths: tuple[int, ...] | None,
  num_classes: int,
  bits: int | None = None,
) -> ResNet:
  """Returns the ResNet of `depth` 6 n + 2 for small images.

  Args:
    depth: 8, 14, 20, 26, 32, ...
    max_widths: `[depth - 1]` channels, as for `resnet.cifar_resnet`; None: the
      published widths, 16, 32 and 64.
    num_classes: logits, at least 2.
    bits: of weights and activations, 2 to 8; None: float.

  Raises:
    InputError: a depth, widths or bits that are not allowed.
  """
  if depth < 8 or (depth - 2) % 6:
    raise errors.InputError(
      f"network depth: got {depth}, allowed are 8, 14, 20, ... (6 n + 2)"
    )
  blocks = (depth - 2) // 6
  if max_widths is None:
    max_widths = (16, *np.repeat((16, 32, 64), 2 * blocks))
  return ResNet(
    _checked_widths(max_widths, depth - 1),
    num_classes,
    (blocks,) * 3,
    False,
    *CIFAR_NORM,
    weight_bits=_checked_bits(bits),
  )


def imagenet_reference(
  depth: int,
  num_classes: int = 1000,
  max_widths: tuple[int, ...] | None = None,
  bits: int | None = None,
) -> ResNet:
  """Returns the ResNet of `depth` for large images, as in torchvision.

  Args:
    depth: 18, 34, 50, 101 or 152.
    num_classes: logits, at least 2.
    max_widths: channels of the stem, then of every convolution of every block
      (two up to depth 34, `[17]` at depth 18; else three, with their strides in
      the second); None: the published widths.
    bits: of weights and activations, 2 to 8; None: float.

  Raises:
    InputError: a depth, widths or bits that are not allowed.
  """
  if depth not in _IMAGENET:
    depths = ", ".join(map(str, _IMAGENET))
    raise errors.InputError(f"network depth: got {depth}, allowed are {depths}")
  blocks, convolutions = _IMAGENET[depth]
  if max_widths is None:
    of_stage = [64 * 2**s for s in range(len(blocks))]
    of_block = [[c, c, 4 * c][:convolutions] for c in of_stage]
    max_widths = (64, *np.concatenate(np.repeat(of_block, blocks, axis=0)))
  return ResNet(
    _checked_widths(max_widths, 1 + convolutions * sum(blocks)),
    num_classes,
    blocks,
    True,
    *IMAGENET_NORM,
    weight_bits=_checked_bits(bits),
  )


def _checked_widths(max_widths, layers_needed):
  if len(max_widths) != layers_needed or min(max_widths) < 1:
    raise errors.InputError(
      f"width vector: got {tuple(max_widths)}, needed are {layers_needed} "
      "widths of at least 1 channel"
    )
  return tuple(int(width) for width in max_widths)


def _checked_bits(bits):
  if bits is not None and bits not in range(2, 9):
    raise errors.InputError(
      f"network bits: got {bits}, allowed are 2 to 8, or None for float"
    )
  return bits


def quantize(module: ResNet, variables: dict, images: chex.Array) -> dict:
  """Quantises a trained net: finds the ranges of its activations.

  Batches go through the quantised net, normalised by its running averages; a
  range is the mean of the batches' maxima, as in training.

  Args:
    module: the 8-bit reference net.
    variables: `params` and `batch_stats` of the float one of equal widths.
    images: `[N, B, H, W, C]` to calibrate on, as for `encode`.

  Returns:
    `params`, unchanged, and `batch_stats` with every layer's `max_abs`.
  """
  flat = traverse_util.flatten_dict(variables["batch_stats"])
  norms = {path: x for path, x in flat.items() if path[-1] != "max_abs"}
  net = {**variables, "batch_stats": traverse_util.unflatten_dict(norms)}

  def ranges(batch):
    _, updated = module.apply(
      net, module.encode(batch), train=False, mutable=["batch_stats"]
    )
    flat = traverse_util.flatten_dict(updated["batch_stats"])
    return {path: x for path, x in flat.items() if path[-1] == "max_abs"}

  measured = jax.lax.map(ranges, images)
  means = {path: maxima.mean(0) for path, maxima in measured.items()}
  return {**net, "batch_stats": traverse_util.unflatten_dict(norms | means)}
