"""Masked binary ResNets: one network definition for every width vector.

Widths are inputs of the traced program: channels beyond a layer's width are
masked to zero *after* batch normalisation (a dead channel would otherwise
output BN's shift and could fire), so one compilation serves all width vectors.
A fixed net is the super-net at its own widths: with `widths=None` all masks are
None, and nothing is spent on them (benchmarks/train_step.py).

Networks: HAWIS (ASP-DAC 2022), as in its published code.

Axes: B images, H rows, W columns, C channels, L layers: the convolutions that
a width vector sets, stem first.
"""

from collections.abc import Iterator
import functools

import chex
from flax import linen as nn
import jax.numpy as jnp

from hawis_jax import errors
from hawis_jax.arithmetic import binary
from hawis_jax.networks import layers
from hawis_jax.networks.layers import Options

STEMS = ("7x7", "3x3")  # of the ImageNet network


class BasicBlock(nn.Module):
  """conv1 -> BN -> conv2 -> + shortcut -> BN, on real-valued input.

  The shortcut is a binary 1x1 convolution and BN (`projection`); else it
  subsamples the block's input and pads or slices its channels (option A).
  """

  features: tuple[int, int]  # output channels of conv1 and conv2
  strides: int  # of conv1 and the shortcut
  projection: bool
  bn_momentum: float
  options: Options

  @nn.compact
  def __call__(
    self,
    x: chex.Array,
    masks: tuple[chex.Array | None, ...],
    train: bool,
  ) -> chex.Array:
    """Real-valued `[B, H, W, C_in]` -> `[B, H', W', C_out]`.

    The masks are of the input's, conv1's and conv2's channels; x is 0 on its
    masked ones.
    """
    in_mask, mid_mask, out_mask = masks
    middle, out = self.features
    conv = functools.partial(layers.BinaryConv, options=self.options)
    bits = binary.binarize_activations(x)
    y = conv(middle, 3, self.strides, name="conv1")(bits, in_mask, mid_mask)
    y = layers.BatchNorm(self.bn_momentum, name="bn1")(y, train)
    y = _activate(y, mid_mask, self.options, "act1")
    y = binary.binarize_activations(y)
    y = conv(out, name="conv2")(y, mid_mask, out_mask)
    if self.projection:
      skip = conv(out, 1, self.strides, name="skip")(bits, in_mask, out_mask)
      y = y + layers.BatchNorm(self.bn_momentum, name="bn_skip")(skip, train)
    else:
      y = y + layers.shortcut_a(x, out, self.strides)
    y = layers.BatchNorm(self.bn_momentum, name="bn2")(y, train)
    return _activate(y, out_mask, self.options, "act2")


def _activate(y, mask, options, name):
  """What follows a normalisation; the mask last, or dead channels may fire."""
  if options.rprelu:
    y = layers.RPReLU(name=name)(y)
  return layers.apply_mask(y, mask)


class BinaryResNet(nn.Module):
  """Base of the binary ResNets; not a network itself."""

  weight_bits = 1  # what one chip stores of a weight; not a field

  max_widths: tuple[int, ...]  # `[L]`, output channels, stem first
  num_classes: int  # logits
  levels: int = 32  # of the thermometer
  bn_momentum: float = 0.9  # weight of the old BN running average
  options: Options = layers.PUBLISHED

  @nn.nowrap
  def encode(self, images: chex.Array) -> chex.Array:
    """Codes images `[B, H, W, C]`, uint8 or in [0, 1], as the network's input.

    It is thermometer code. With learnt thresholds the network codes the images
    itself: then the input is images in [0, 1].
    """
    if not self.options.learned_thresholds:
      return binary.thermometer_code(images, self.levels)
    if jnp.issubdtype(images.dtype, jnp.integer):
      images = images.astype(jnp.float32) / 255
    return images

  def _bits(self, x):
    """Makes bits of what `encode` returned."""
    chex.assert_rank(x, 4)
    if self.options.learned_thresholds:
      return layers.Thermometer(self.levels, name="thermometer")(x)
    return x

  def _masks(self, widths):
    """Makes a mask a layer, `[L]`."""
    if widths is None:
      return [None] * len(self.max_widths)
    chex.assert_shape(jnp.asarray(widths), (len(self.max_widths),))
    return [jnp.arange(m) < widths[i] for i, m in enumerate(self.max_widths)]

  def _groups(self, y, masks, blocks, projection, train):
    """Applies all blocks; `blocks` holds the number of each group."""
    for name, strides, layer in block_places(blocks):
      y = BasicBlock(
        self.max_widths[layer : layer + 2],
        strides,
        projection=projection,
        bn_momentum=self.bn_momentum,
        options=self.options,
        name=name,
      )(y, tuple(masks[layer - 1 : layer + 2]), train)
    return y


def block_places(
  blocks: tuple[int, ...], convolutions: int = 2
) -> Iterator[tuple[str, int, int]]:
  """Yields the name, strides and first layer of every block.

  The first block of each group but the first strides by 2.

  Args:
    blocks: of each group.
    convolutions: of each block.
  """
  layer = 1  # after the stem
  for group, count in enumerate(blocks):
    for block in range(count):
      # Groups are "stage" in the parameters' names alone: checkpoints depend on
      # them, and so do the draws of initial weights and of chips.
      name = f"stage{group + 1}_block{block}"
      yield name, 2 if group and not block else 1, layer
      layer += convolutions


class CifarResNet(BinaryResNet):
  """ResNet of depth 6 n + 2 with maskable widths; any input size."""

  depth: int = 20  # 6 n + 2; L = 6 n + 1

  @nn.compact
  def __call__(
    self, x: chex.Array, widths: chex.Array | None = None, *, train: bool
  ) -> chex.Array:
    """Returns logits `[B, num_classes]`.

    Args:
      x: `[B, H, W, C]`, from `encode`.
      widths: int `[L]`, 1 to `max_widths`; None: `max_widths`.
      train: normalise with batch statistics; update them where mutable.
    """
    masks = self._masks(widths)
    conv = functools.partial(layers.BinaryConv, options=self.options)
    y = conv(self.max_widths[0], name="stem")(self._bits(x), None, masks[0])
    y = layers.BatchNorm(self.bn_momentum, name="bn_stem")(y, train)
    y = _activate(y, masks[0], self.options, "act_stem")
    blocks = ((self.depth - 2) // 6,) * 3
    y = self._groups(y, masks, blocks, False, train)
    y = jnp.maximum(y, 0).mean((1, 2))
    y = layers.BatchNorm(self.bn_momentum, name="bn_head")(y, train)
    y = _activate(y, masks[-1], self.options, "act_head")
    bits = binary.binarize_activations(y)
    return conv(self.num_classes, 0, name="head")(bits, masks[-1], None)


class ImageNetResNet18(BinaryResNet):
  """ResNet-18 with binary projection shortcuts in every block; L = 17."""

  # Its first convolution, or "3x3". Its channels are not searched: as many as
  # thermometer planes ("7x7"), or twice as many ("3x3").
  stem: str = "7x7"
  image_size: int = 224  # H = W [pixels]; the head reads the last map whole

  @nn.compact
  def __call__(
    self, x: chex.Array, widths: chex.Array | None = None, *, train: bool
  ) -> chex.Array:
    """Returns logits `[B, num_classes]`; arguments as of `CifarResNet`."""
    chex.assert_shape(x, (None, self.image_size, self.image_size, None))
    masks = self._masks(widths)
    y = self._stem(self._bits(x), masks[0], train)
    y = self._groups(y, masks, (2, 2, 2, 2), True, train)
    # A product of the flattened map, written so that channels can be masked.
    y = layers.BinaryConv(
      self.num_classes,
      size=y.shape[1],
      padding=0,
      options=self.options,
      name="head",
    )(binary.binarize_activations(y), masks[-1], None)
    return y.reshape(-1, self.num_classes)

  def _stem(self, bits, mask, train):
    """`[B, H, W, planes]` -> `[B, H / 4, W / 4, max_widths[0]]`."""
    conv = functools.partial(layers.BinaryConv, options=self.options)
    planes = bits.shape[-1]
    if self.stem == "7x7":
      y = conv(planes, 7, 2, name="stem_conv1")(bits, None, None)
      y = y + layers.average_pool(bits)
    else:
      y = conv(2 * planes, 3, 2, name="stem_conv1")(bits, None, None)
      skip = conv(2 * planes, 1, name="stem_skip1")(bits, None, None)
      y = y + layers.average_pool(skip)
    y = layers.BatchNorm(self.bn_momentum, name="bn_stem1")(y, train)
    y = _activate(y, None, self.options, "act_stem1")
    bits = binary.binarize_activations(y)
    width = self.max_widths[0]
    y = conv(width, 3, 2, name="stem_conv2")(bits, None, mask)
    skip = conv(width, 1, name="stem_skip2")(bits, None, mask)
    y = y + layers.average_pool(skip)
    y = layers.BatchNorm(self.bn_momentum, name="bn_stem2")(y, train)
    return _activate(y, mask, self.options, "act_stem2")


def cifar_resnet(
  depth: int,
  max_widths: tuple[int, ...],
  num_classes: int,
  *,
  levels: int = 32,
  options: Options = layers.PUBLISHED,
) -> CifarResNet:
  """Returns the masked binary ResNet of `depth` 6 n + 2.

  It is that of HAWIS (ASP-DAC 2022), for small images of any size.

  >>> import hawis_jax as hx
  >>> import numpy as np
  >>> net = hx.cifar_resnet(8, (4, 4, 4, 6, 6, 8, 8), num_classes=10, levels=8)
  >>> net.encode(np.zeros((2, 8, 8, 3), np.uint8)).shape  # thermometer code
  (2, 8, 8, 24)

  Args:
    depth: 8, 14, 20, 26, 32, ...
    max_widths: `[depth - 1]` channels, the upper limit of every width vector.
    num_classes: logits, at least 2.
    levels: thermometer levels.
    options: see `layers.Options`.

  Raises:
    InputError: a depth that is not 6 n + 2, or widths that do not fit it.
  """
  check_depth(depth)
  max_widths = checked_widths(max_widths, depth - 1)
  return CifarResNet(
    max_widths, num_classes, levels, options=options, depth=depth
  )


def imagenet_resnet18(
  max_widths: tuple[int, ...],
  num_classes: int = 1000,
  stem: str = "7x7",
  *,
  image_size: int = 224,
  levels: int = 32,
  options: Options = layers.PUBLISHED,
) -> ImageNetResNet18:
  """Returns the masked binary ResNet-18 of HAWIS (ASP-DAC 2022).

  >>> import hawis_jax as hx
  >>> widths = hx.WIDTHS["resnet18_1x"]
  >>> net = hx.imagenet_resnet18(widths, num_classes=100, image_size=64)
  >>> len(net.max_widths), net.stem
  (17, '7x7')

  Args:
    max_widths: `[17]` channels, the upper limit of every width vector.
    num_classes: logits, at least 2.
    stem: "7x7" or "3x3".
    image_size: height and width of the images [pixels].
    levels: thermometer levels.
    options: see `layers.Options`.

  Raises:
    InputError: widths or a stem that the network has not.
  """
  if stem not in STEMS:
    raise errors.InputError(
      f"network stem: got {stem!r}, allowed are {', '.join(STEMS)}"
    )
  return ImageNetResNet18(
    checked_widths(max_widths, 17),
    num_classes,
    levels,
    options=options,
    stem=stem,
    image_size=image_size,
  )


def check_depth(depth: int) -> None:
  """Raises an InputError unless `depth` is 6 n + 2."""
  if depth < 8 or (depth - 2) % 6:
    raise errors.InputError(
      f"network depth: got {depth}, allowed are 8, 14, 20, ... (6 n + 2)"
    )


def checked_widths(
  max_widths: tuple[int, ...], num_layers: int
) -> tuple[int, ...]:
  """Returns widths `[num_layers]` as integers, or raises an InputError."""
  if len(max_widths) != num_layers or min(max_widths) < 1:
    raise errors.InputError(
      f"width vector: got {tuple(max_widths)}, needed are {num_layers} widths "
      "of at least 1 channel"
    )
  return tuple(int(width) for width in max_widths)
