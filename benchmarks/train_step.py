"""Training steps against their products alone; ways to do small maps.

python benchmarks/train_step.py [net ...]
python benchmarks/train_step.py --small-maps
python benchmarks/train_step.py --on-chips

For each net: time of one step (thermometer code, forward, backward, update) on
a constant batch, and of its products alone: the convolutions of that step,
forward and both gradients, one after the other on random operands. Their ratio
says what all else costs. "masks" is the ratio of the step without masks, which
a fixed net is trained with, to one with the masks' code taken out; "super-net"
that of a step with all masks, at the net's own widths.

--small-maps: a forward pass of the digits super-net, with maps up to 2x2 by
XLA's convolution, and by patches and a matrix product.

--on-chips: a step of the digits net of twice the 1x widths on ideal weights, on
K = 1 and 2 new chips a step, and the draw of a chip alone.

All are medians of calls in turn.
"""

import functools
import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax

from hawis_jax import crossbar
from hawis_jax.arithmetic import binary
from hawis_jax.networks import layers
from hawis_jax.networks import net_variables
from hawis_jax.networks import resnet
from hawis_jax.networks import width_vectors
from hawis_jax.training import fixed_net
from hawis_jax.training import hardware_aware
from hawis_jax.training import optimization

# name: (width vector, images a step, classes)
_NETS = {
  "cifar10_resnet20:1x": ("resnet20_1x", 128, 10),
  "cifar10_resnet20:hawis_a": ("resnet20_hawis_a", 16, 10),
  "cifar10_resnet32:1x": ("resnet32_1x", 128, 10),
  "imagenet_resnet18:1x": ("resnet18_1x", 2, 1000),
}
_init = jax.jit(net_variables.init, static_argnums=(0, 2))


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

  # Traced with the code of this moment.
  return functools.partial(step.lower(params).compile(), params)


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

  return functools.partial(run, operands)


def _without_masks():
  scale = binary.weight_scale
  return (
    mock.patch.object(layers, "apply_mask", lambda x, mask: x),
    mock.patch.object(
      binary, "weight_scale", lambda w, *rest: scale(w, None, None, rest[-1])
    ),
  )


def net_calls(vector, count, classes):
  """Returns {variant: call} of one net."""
  module, size = resnet.imagenet_resnet18, 224
  if len(vector) != 17:
    module = functools.partial(resnet.cifar_resnet, len(vector) + 1)
    size = 32
  module, shape = module(vector, classes), (size, size, 3)
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.integers(0, 256, (count, *shape)), jnp.uint8)
  labels = jnp.asarray(rng.integers(0, classes, count))
  params = _init(module, jax.random.key(0), shape)["params"]
  make = functools.partial(_gradient_step, module, params, images, labels)
  calls = {"step": make(None), "masked": make(jnp.array(vector))}
  apply_mask, weight_scale = _without_masks()
  with apply_mask, weight_scale:
    calls["maskless"] = make(None)
  return calls | {"products": _products(module, params, images)}


def of_nets(names: list[str], rounds: int) -> None:
  """Prints a line for each net."""
  print(
    f"{'net':26} {'images/s':>9} {'step/s':>8} {'step / products':>16} "
    f"{'masks':>7} {'super-net':>10}"
  )
  for name in names:
    preset, count, classes = _NETS[name]
    calls = net_calls(width_vectors.PRESETS[preset], count, classes)
    times = measure.seconds(calls, rounds)
    step, maskless = times["step"], times["maskless"]
    print(
      f"{name:26} {count / step:9.1f} {1 / step:8.3f} "
      f"{step / times['products']:16.2f} {step / maskless:7.2f} "
      f"{times['masked'] / maskless:10.2f}",
      flush=True,
    )


def of_small_maps(rounds: int) -> None:
  """Prints times of a forward pass of both ways."""
  experiment, images = measure.prepare(), 256
  module, shape = experiment.supernet, experiment.splits.image_shape
  net = _init(module, jax.random.key(0), shape)
  code = module.encode(jnp.zeros((images, *shape), jnp.uint8))
  calls = {}
  for name, small_map in (("convolution", 0), ("patches", 4)):
    apply = jax.jit(lambda net, code: module.apply(net, code, train=False))
    with mock.patch.object(binary, "_SMALL_MAP", small_map):
      compiled = apply.lower(net, code).compile()
    calls[name] = functools.partial(compiled, net, code)
  times = measure.seconds(calls, rounds)
  for name, time in times.items():
    print(f"{name:12} {1e3 * time:7.2f} ms ({images} images)")
  print(f"ratio        {times['convolution'] / times['patches']:7.2f}")


def chip_calls(size=64):
  """Returns {way: call} to train on `size` images, and to draw chips alone."""
  experiment = measure.prepare()
  module = experiment.network((16, 16, 16, 32, 32, 64, 64))
  optimizer, key = optax.adam(1e-2), jax.random.key(0)
  shape = experiment.splits.image_shape
  state = optimization.init_state(module, key, shape, optimizer)
  images, labels = experiment.unpadded(experiment.splits.train, size)
  batch = {"image": images, "label": labels}
  stuck = crossbar.Device(stuck_on=0.0175, stuck_off=0.0904)
  varying = crossbar.Device(variation=0.7)
  numbers = itertools.count()

  def step(chips):
    run = jax.jit(
      functools.partial(
        fixed_net.train_step,
        module=module,
        optimizer=optimizer,
        recipe=fixed_net.Recipe(chips=chips),
      )
    )
    return lambda: run(
      state, batch, None, jax.random.fold_in(key, next(numbers))
    )

  def draw(chips):
    run = jax.jit(
      lambda key, params: hardware_aware.program(
        key, {"params": params}, module, chips, 1.0, size
      )["crossbar"]
    )
    return lambda: run(jax.random.fold_in(key, next(numbers)), state.params)

  calls = {"plain": step(None)}
  scenarios = {"variation": (varying,), "stuck": (stuck,)}
  scenarios["both"] = stuck, varying
  for name, devices in scenarios.items():
    calls[f"{name}, draw alone"] = draw(hardware_aware.Settings(devices))
  for name, fields in (
    ("drift", {"drift_time": 1e4, "drift_mean": (0.0, 0.1, 0.1, 0.1)}),
    ("wires", {"wire_resistance": 1.0}),
    ("converters", {"adc_bits": 6}),
    ("noise a read", {"read_noise": 1.0}),
  ):
    scenarios[name] = (crossbar.Device(**fields),)
  for name, devices in scenarios.items():
    for num in (1, 2) if name == "both" else (1,):
      chips = hardware_aware.Settings(devices, num)
      calls[f"{name}, K = {num}"] = step(chips)
  return calls


def of_chips(rounds: int) -> None:
  """Prints a line for each way to train, and for drawing chips alone."""
  times = measure.seconds(chip_calls(), rounds)
  for name, time in times.items():
    print(f"{name:24} {1e3 * time:7.2f} ms {time / times['plain']:6.2f}")


def main() -> None:
  parser = measure.parser(__doc__)
  parser.add_argument("nets", nargs="*", metavar="net", default=list(_NETS))
  parser.add_argument("--small-maps", action="store_true")
  parser.add_argument("--on-chips", action="store_true")
  parser.add_argument("--rounds", type=int, default=9)
  options = parser.parse_args()
  print(measure.machine())
  if options.small_maps:
    of_small_maps(options.rounds)
  elif options.on_chips:
    of_chips(options.rounds)
  else:
    of_nets(options.nets, options.rounds)


if __name__ == "__main__":
  main()
