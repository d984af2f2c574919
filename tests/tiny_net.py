"""One tiny net with its images, for all tests that any small net serves.

Variables are drawn in NumPy, and programs are made once a process and have few
shapes: what tests take most time for is compiling.
"""

import functools
from typing import NamedTuple

from flax import linen as nn
from flax import traverse_util
import jax
import numpy as np
import optax

from hawis_jax.networks import layers
from hawis_jax.networks import net_variables
from hawis_jax.networks import resnet
from hawis_jax.training import fixed_net
from hawis_jax.training import optimization

WIDTHS = (6, 5, 6, 8, 10, 12, 12)
# Not monotone, so that shortcuts slice and pad.
NARROWER = (3, 5, 2, 8, 4, 7, 12)
SHAPE = (8, 8, 1)  # of the images
SGD = optax.sgd(1.0)  # a step moves by the gradient
_RECIPE = fixed_net.Recipe()


class Tiny(NamedTuple):
  """A net and what it classifies.

  Attributes:
    module: a binary ResNet-8.
    variables: its `params` and `batch_stats`.
    images: uint8 `[300, 8, 8, 1]`: three blocks of the Monte Carlo engine.
    labels: int32 `[300]`.
  """

  module: nn.Module
  variables: dict
  images: np.ndarray
  labels: np.ndarray

  def batch(self, size):
    """The first images, as training takes them."""
    return {"image": self.images[:size], "label": self.labels[:size]}


def make(rng):
  """Returns a random `Tiny`."""
  net = module()
  variables = random_variables(net, SHAPE, rng)
  images = rng.integers(0, 256, (300, *SHAPE)).astype(np.uint8)
  # With any other statistics it would find nearly all images alike.
  variables["batch_stats"] = jax.device_get(
    _statistics(net, variables, images[:64])
  )
  labels = rng.integers(0, 10, 300).astype(np.int32)
  return Tiny(net, variables, images, labels)


@functools.partial(jax.jit, static_argnums=0)
def _statistics(module, variables, images):
  return net_variables.recalibrate(module, variables, images[None])


def module(options=layers.PUBLISHED):
  """Its net, also with other options."""
  return resnet.cifar_resnet(8, WIDTHS, 10, levels=8, options=options)


def random_variables(module, image_shape, rng):
  """Random ones of any network: activations of order 1, statistics too."""
  # Shifts of 0 would put dead channels exactly on the edge of the gradient.
  draw = {"scale": (0.5, 1.5), "bias": (-0.5, 1), "mean": (-1, 1)}
  draw |= {"var": (0.5, 2), "max_abs": (0, 0)}
  flat = traverse_util.flatten_dict(
    net_variables.shapes(module, image_shape), sep="/"
  )
  for path, leaf in flat.items():
    name = path.rpartition("/")[2]
    if name == "kernel":
      fan_in = np.prod(leaf.shape[:-1])
      value = rng.normal(size=leaf.shape) * np.sqrt(2 / fan_in)
    else:
      value = rng.uniform(*draw[name], leaf.shape)
    flat[path] = np.asarray(value, leaf.dtype)
  return traverse_util.unflatten_dict(flat, sep="/")


def random_state(module, optimizer, rng, averaging=False):
  """A state of training, with random variables."""
  net = random_variables(module, SHAPE, rng)
  start = net["params"], net["batch_stats"]
  average = start if averaging else ()
  moments = jax.jit(optimizer.init)(net["params"])
  return optimization.TrainState(*start, moments, average)


@functools.cache
def step(module, optimizer, recipe=_RECIPE, teacher_module=None):
  """The jitted step of training: (state, batch, teacher's variables)."""
  return jax.jit(
    functools.partial(
      fixed_net.train_step,
      module=module,
      optimizer=optimizer,
      recipe=recipe,
      teacher_module=teacher_module,
    )
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply(module, train, variables, images, widths=None):
  """Logits of images, uint8."""
  bits = module.encode(images)
  return module.apply(variables, bits, widths, train=train)
