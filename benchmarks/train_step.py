"""Training steps of the configurations against the same products alone.

python benchmarks/train_step.py [net ...]

For each net: time of one step (thermometer code, forward, backward, update) on
a constant batch, and of its products alone: the convolutions of that step,
forward and both gradients, one after the other on random operands. Their ratio
says what all else costs. "masks" is the ratio of the step without masks, which
a fixed net is trained with, to one with the masks' code taken out; "super-net"
that of a step with all masks, at the net's own widths.
"""

import functools
import sys
import time
from unittest import mock

from hawis_jax import backend

backend.configure()

# ruff: noqa: E402
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax.arithmetic import binary
from hawis_jax.networks import layers
from hawis_jax.networks import net_variables
from hawis_jax.networks import resnet
from hawis_jax.networks import width_vectors
from hawis_jax.training import optimization

_ROUNDS = 7
# name: (width vector, images a step, classes)
_NETS = {
  "cifar10_resnet20:1x": ("resnet20_1x", 128, 10),
  "cifar10_resnet20:hawis_a": ("resnet20_hawis_a", 16, 10),
  "cifar10_resnet32:1x": ("resnet32_1x", 128, 10),
  "imagenet_resnet18:1x": ("resnet18_1x", 2, 1000),
}


def _network(vector, classes):
  """(module, image size)."""
  if len(vector) == 17:
    return resnet.imagenet_resnet18(vector, classes), 224
  return resnet.cifar_resnet(len(vector) + 1, vector, classes), 32


def _gradient_step(module, params, images, labels, vector):
  """Returns a function that takes one step of SGD."""

  def loss(params):
    logits = module.apply(
      {"params": params}, module.encode(images), vector, train=True
    )
    return optimization.cross_entropy(logits, labels)

  @jax.jit
  def step(params):
    grads = jax.grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

  jax.block_until_ready(step(params))  # traced with the code of this moment
  return functools.partial(step, params)


def _products(module, params, images):
  """Returns a function that computes the step's products alone."""
  calls = []

  def record(product, bits, weights, alpha):
    calls.append((product, bits.shape, weights.shape))
    return product(bits, weights) * alpha

  with mock.patch.object(binary, "scaled_product", record):
    jax.eval_shape(
      lambda p: module.apply({"params": p}, module.encode(images), train=True),
      params,
    )
  rng = np.random.default_rng(0)
  operands = [
    [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]
    for _, *shapes in calls
  ]

  @jax.jit
  def run(operands):
    results = []
    for index, (product, _, _) in enumerate(calls):
      bits, weights = operands[index]
      y, pull_back = jax.vjp(product, bits, weights)
      by_bits, by_weights = pull_back(y)
      # The first layer's input needs no gradient.
      results.append(by_weights.sum() + (by_bits.sum() if index else 0))
    return results

  jax.block_until_ready(run(operands))
  return functools.partial(run, operands)


def _without_masks():
  scale = binary.weight_scale
  return (
    mock.patch.object(layers, "apply_mask", lambda x, mask: x),
    mock.patch.object(
      binary, "weight_scale", lambda w, *rest: scale(w, None, None, rest[-1])
    ),
  )


def _measure(name):
  """Median seconds of every variant, measured in turn."""
  preset, count, classes = _NETS[name]
  vector = width_vectors.PRESETS[preset]
  module, size = _network(vector, classes)
  rng = np.random.default_rng(0)
  shape = (size, size, 3)
  images = jnp.asarray(rng.integers(0, 256, (count, *shape)), jnp.uint8)
  labels = jnp.asarray(rng.integers(0, classes, count))
  init = jax.jit(net_variables.init, static_argnums=(0, 2))
  params = init(module, jax.random.key(0), shape)["params"]
  make = functools.partial(_gradient_step, module, params, images, labels)
  variants = {"step": make(None), "masked": make(jnp.array(vector))}
  apply_mask, weight_scale = _without_masks()
  with apply_mask, weight_scale:
    variants["maskless"] = make(None)
  variants["products"] = _products(module, params, images)
  seconds = {variant: [] for variant in variants}
  for _ in range(_ROUNDS):
    for variant, run in variants.items():
      start = time.perf_counter()
      jax.block_until_ready(run())
      seconds[variant].append(time.perf_counter() - start)
  return {k: float(np.median(v)) for k, v in seconds.items()}, count


def main(names: list[str]) -> None:
  """Prints the table."""
  print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
  print(
    f"{'net':26} {'images/s':>9} {'step/s':>8} {'step / products':>16} "
    f"{'masks':>7} {'super-net':>10}"
  )
  for name in names or _NETS:
    times, count = _measure(name)
    step = times["step"]
    print(
      f"{name:26} {count / step:9.1f} {1 / step:8.3f} "
      f"{step / times['products']:16.2f} {step / times['maskless']:7.2f} "
      f"{times['masked'] / times['maskless']:10.2f}",
      flush=True,
    )


if __name__ == "__main__":
  main(sys.argv[1:])
