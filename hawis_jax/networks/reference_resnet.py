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
from hawis_jax.arithmetic import binary
from hawis_jax.arithmetic import integer
from hawis_jax.networks import layers
from hawis_jax.networks import products
from hawis_jax.networks import resnet

# Of the images' channels, over the training sets.
CIFAR_NORM = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET_NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# {depth: (blocks of each group, convolutions of a block)}
_IMAGENET = {
  18: ((2, 2, 2, 2), 2),
  34: ((3, 4, 6, 3), 2),
  50: ((3, 4, 6, 3), 3),
  101: ((3, 4, 23, 3), 3),
  152: ((3, 8, 36, 3), 3),
}


class QuantConv(nn.Module):
  """Convolution of float or of quantised operands; `size` 0 is linear.

  Quantised: the latent weights' steps follow from their magnitudes. That of the
  activations follows from the batch's range in training, else from its running
  average `max_abs` in `batch_stats`: the largest magnitude that is not clipped.
  `max_abs` starts at 0, which stands for "none yet": the first batch that is
  seen takes its place, and sets it where `batch_stats` is mutable.

  Variables in the collection `crossbar` (see `crossbar.program`) replace the
  integer weights by one chip: its effective weights, or its tiles. Of a float
  net they are the weights themselves (see `training.hardware_aware`).
  """

  features: int  # C_out
  size: int = 3  # k of the k x k kernel, padded by k // 2; linear: has a bias
  strides: int = 1  # of both axes
  bits: int | None = None  # of weights and activations; None: float
  momentum: float = 0.9  # weight of the old running average
  scales: str = "channel"  # or "tensor", see `integer`

  @nn.compact
  def __call__(self, x: chex.Array, train: bool) -> chex.Array:
    """`[B, H, W, C_in]` -> `[B, H', W', C_out]`; linear: without H, W."""
    kernel = layers.he_kernel(self, x.shape[-1])
    product = binary.multiply
    if self.size:
      product = functools.partial(
        binary.convolve, strides=self.strides, padding=self.size // 2
      )
    x = x.astype(kernel.dtype)
    if self.bits is None:
      if self.has_variable("crossbar", "kernels"):
        raise errors.InputError(
          "variables: got a chip that is read tile by tile and a float net, "
          "allowed is one without converters, noise a read and gated or "
          "non-linear cells on resistive lines: they read inputs of bits"
        )
      if self.has_variable("crossbar", "weight"):
        kernel = self.get_variable("crossbar", "weight")
        product = products.on_chips(product, of_bfloat16=False)
      y = product(x, kernel)
    else:
      step_x = integer.scale(self._max_abs(x, train), self.bits)
      step_w = integer.weight_step(kernel, self.bits, self.scales)
      x = integer.quantize(x, step_x, self.bits)
      if self.has_variable("crossbar", "kernels"):
        sums = layers.read_tiles(self, product, x)
      elif self.has_variable("crossbar", "weight"):
        weights = self.get_variable("crossbar", "weight")
        sums = products.on_chips(product)(x, weights)
      else:
        sums = product(x, integer.quantize(kernel, step_w, self.bits))
      y = sums * (step_x * step_w)
    if not self.size:
      bias = self.param("bias", nn.initializers.zeros, (self.features,))
      y = y + bias.reshape(1, -1)
    return y

  def _max_abs(self, x, train):
    """Returns the range of the activations; updates its running average."""
    batch = integer.activation_range(x, self.scales)
    update = self.is_mutable_collection("batch_stats")
    if train and not update:
      return batch
    average = self.variable("batch_stats", "max_abs", jnp.zeros, (), x.dtype)
    known = jnp.where(average.value > 0, average.value, batch)
    if update and not self.is_initializing():
      keep = self.momentum if train else 1
      average.value = keep * known + (1 - keep) * batch
    return batch if train else known


class Block(nn.Module):
  """Convolutions with BN and ReLU between, + shortcut, ReLU.

  A shortcut that changes the shape is a 1x1 convolution and BN (`projection`);
  else it subsamples, and pads or slices channels (option A).
  """

  # Output channels of its two (3x3, 3x3) or three (1x1, 3x3, 1x1) convolutions.
  features: tuple[int, ...]
  strides: int  # of the first 3x3 convolution and the shortcut
  projection: bool
  bn_momentum: float
  bits: int | None  # see `QuantConv`
  scales: str

  @nn.compact
  def __call__(self, x: chex.Array, train: bool) -> chex.Array:
    """`[B, H, W, C_in]` -> `[B, H', W', C_out]`."""
    conv = functools.partial(
      QuantConv,
      bits=self.bits,
      momentum=self.bn_momentum,
      scales=self.scales,
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
      # As many zero channels before as after: checkpoints of the usual PyTorch
      # implementation (akamaster's) need it so.
      before = max(out - x.shape[-1], 0) // 2
      x = jnp.roll(layers.shortcut_a(x, out, self.strides), before, -1)
    elif self.strides > 1 or x.shape[-1] != out:
      x = conv(out, 1, self.strides, name="skip")(x, train)
      x = norm(name="bn_skip")(x, train)
    return nn.relu(x + y)


class ResNet(nn.Module):
  """Float or 8-bit ResNet of fixed widths, for small images or for ImageNet."""

  max_widths: tuple[int, ...]  # `[L]`, output channels of the main path
  num_classes: int  # logits
  blocks: tuple[int, ...]  # of each group
  # Stem of a 7x7/2 convolution and 3x3/2 maximum pooling, projection shortcuts;
  # else a 3x3 stem and option A.
  imagenet: bool
  mean: tuple[float, ...]  # of the images' channels in [0, 1]
  std: tuple[float, ...]  # their standard deviations
  weight_bits: int | None = None  # of all weights, activations; None: float
  weight_scales: str = "channel"  # or "tensor", the published, see `integer`
  bn_momentum: float = 0.9  # weight of the old running averages

  @nn.nowrap
  def encode(self, images: chex.Array) -> chex.Array:
    """Normalises images `[B, H, W, C]`, uint8 or in [0, 1], as the input.

    Images of another number of channels than `mean` get mean and standard
    deviation 0.5.
    """
    chex.assert_rank(images, 4)
    if jnp.issubdtype(images.dtype, jnp.integer):
      images = images.astype(jnp.float32) / 255
    if images.shape[-1] != len(self.mean):
      return (images - 0.5) / 0.5
    mean, std = jnp.asarray((self.mean, self.std), images.dtype)
    return (images - mean[None, None, None]) / std[None, None, None]

  @nn.compact
  def __call__(
    self, x: chex.Array, widths: None = None, *, train: bool
  ) -> chex.Array:
    """Returns logits `[B, num_classes]`.

    Args:
      x: `[B, H, W, C]`, from `encode`.
      widths: None, since the widths are fixed.
      train: use the batch's statistics and ranges; update them where mutable.
    """
    if widths is not None:
      raise errors.InputError(
        f"widths: got {widths}, allowed is None: the widths of a float or "
        f"{self.weight_bits}-bit reference net are fixed"
      )
    chex.assert_rank(x, 4)
    conv = functools.partial(
      QuantConv,
      bits=self.weight_bits,
      momentum=self.bn_momentum,
      scales=self.weight_scales,
    )
    size, strides = (7, 2) if self.imagenet else (3, 1)
    y = conv(self.max_widths[0], size, strides, name="stem")(x, train)
    y = nn.relu(layers.BatchNorm(self.bn_momentum, name="bn_stem")(y, train))
    if self.imagenet:
      y = nn.max_pool(y, (3, 3), (2, 2), ((1, 1), (1, 1)))
    convolutions = (len(self.max_widths) - 1) // sum(self.blocks)
    for name, strides, layer in resnet.block_places(self.blocks, convolutions):
      y = Block(
        self.max_widths[layer : layer + convolutions],
        strides,
        projection=self.imagenet,
        bn_momentum=self.bn_momentum,
        bits=self.weight_bits,
        scales=self.weight_scales,
        name=name,
      )(y, train)
    return conv(self.num_classes, 0, name="head")(y.mean((1, 2)), train)


def cifar_reference(
  depth: int,
  max_widths: tuple[int, ...] | None,
  num_classes: int,
  bits: int | None = None,
  scales: str = "channel",
) -> ResNet:
  """Returns the ResNet of `depth` 6 n + 2 for small images.

  Args:
    depth: 8, 14, 20, 26, 32, ...
    max_widths: `[depth - 1]` channels, as for `resnet.cifar_resnet`; None: the
      published widths, 16, 32 and 64.
    num_classes: logits, at least 2.
    bits: of weights and activations, 2 to 8; None: float.
    scales: of quantised weights: "channel", with activations clipped at the
      99.99th percentile; or "tensor", with unclipped ones, as published.

  Raises:
    InputError: a depth, widths or bits that are not allowed.
  """
  resnet.check_depth(depth)
  blocks = (depth - 2) // 6
  if max_widths is None:
    max_widths = (16, *np.repeat((16, 32, 64), 2 * blocks))
  return ResNet(
    resnet.checked_widths(max_widths, depth - 1),
    num_classes,
    (blocks,) * 3,
    False,
    *CIFAR_NORM,
    weight_bits=_checked_bits(bits),
    weight_scales=scales,
  )


def imagenet_reference(
  depth: int,
  num_classes: int = 1000,
  max_widths: tuple[int, ...] | None = None,
  bits: int | None = None,
  scales: str = "channel",
) -> ResNet:
  """Returns the ResNet of `depth` for large images, as in torchvision.

  Args:
    depth: 18, 34, 50, 101 or 152.
    num_classes: logits, at least 2.
    max_widths: channels of the stem, then of every convolution of every block
      (two up to depth 34, `[17]` at depth 18; else three, with their strides in
      the second); None: the published widths.
    bits: of weights and activations, 2 to 8; None: float.
    scales: see `cifar_reference`.

  Raises:
    InputError: a depth, widths or bits that are not allowed.
  """
  if depth not in _IMAGENET:
    depths = ", ".join(map(str, _IMAGENET))
    raise errors.InputError(f"network depth: got {depth}, allowed are {depths}")
  blocks, convolutions = _IMAGENET[depth]
  if max_widths is None:
    of_block = [[c, c, 4 * c][:convolutions] for c in (64, 128, 256, 512)]
    max_widths = (64, *np.concatenate(np.repeat(of_block, blocks, axis=0)))
  return ResNet(
    resnet.checked_widths(max_widths, 1 + convolutions * sum(blocks)),
    num_classes,
    blocks,
    True,
    *IMAGENET_NORM,
    weight_bits=_checked_bits(bits),
    weight_scales=scales,
  )


def _checked_bits(bits):
  if bits is not None and bits not in range(2, 9):
    raise errors.InputError(
      f"network bits: got {bits}, allowed are 2 to 8, or None for float"
    )
  return bits


def quantize(module: ResNet, variables: dict, images: chex.Array) -> dict:
  """Quantises a trained net: finds the ranges of its activations.

  Batches go through the quantised net, normalised by its running averages; a
  range is the mean of the batches' ranges, as in training. Returned are the
  `params`, unchanged, and `batch_stats` with every layer's `max_abs`.

  Args:
    module: the 8-bit reference net.
    variables: `params` and `batch_stats` of the float one of equal widths.
    images: `[N, B, H, W, C]` to calibrate on, as for `encode`.
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
  means = {path: found.mean(0) for path, found in measured.items()}
  return {**net, "batch_stats": traverse_util.unflatten_dict(norms | means)}
