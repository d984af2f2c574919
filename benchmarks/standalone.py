"""Stand-alone training of many width vectors by one compiled program.

Every net is the masked super-net at its widths: to the bit the narrower net
(tests/test_resnet.py), initialised as that one would be. So nothing is compiled
between two nets, and training one costs as much as training the widest.

Axes: B images of a batch, L layers.
"""

import dataclasses
import functools

import chex
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax.pipeline import nets
from hawis_jax.pipeline.experiment import Experiment
from hawis_jax.training import fixed_net
from hawis_jax.training import optimization


@dataclasses.dataclass(frozen=True)
class AtWidths:
  """The super-net at given widths, with the methods that training needs."""

  module: nn.Module
  widths: chex.Array

  def encode(self, images: chex.Array) -> chex.Array:
    return self.module.encode(images)

  def apply(self, variables: dict, inputs: chex.Array, **arguments):
    return self.module.apply(variables, inputs, self.widths, **arguments)


def make_fit(experiment: Experiment, steps: int):
  """Returns a function: (widths `[L]`, seed) -> (variables, last accuracy).

  Trained by `config.train`, its schedule shortened to `steps`; the accuracy is
  that of the last tenth of the training batches. Nets of the same seed see the
  same batches and start from the same draws.
  """
  config, module = experiment.config.train, experiment.supernet
  optimizer = optimization.make_optimizer(
    nets.optimizer_settings(config.optimizer), steps
  )
  images, labels = experiment.unpadded(experiment.splits.train)

  @jax.jit
  def start(widths, key):
    state = optimization.init_state(
      module, key, experiment.splits.image_shape, optimizer
    )
    return state.replace(params=narrowed(state.params, module, widths))

  # Not a scan over steps: on CPU a loop's convolutions and their gradients are
  # compiled to code that took 12 times as long.
  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, widths, batch):
    return fixed_net.train_step(
      state,
      batch,
      module=AtWidths(module, widths),
      optimizer=optimizer,
      recipe=fixed_net.Recipe(),
    )

  @functools.lru_cache
  def order(seed):
    """Images of every batch, int `[steps, B]`."""
    rng = np.random.default_rng(seed)
    epochs = -(-steps * config.batch_size // len(labels))
    rows = [rng.permutation(len(labels)) for _ in range(epochs)]
    rows = np.concatenate(rows)[: steps * config.batch_size]
    return rows.reshape(steps, -1)

  def fit(widths, seed):
    widths = jnp.asarray(widths, jnp.int32)
    state, accuracy = start(widths, jax.random.key(seed)), []
    for rows in order(seed):
      batch = {"image": images[rows], "label": labels[rows]}
      state, values = step(state, widths, batch)
      accuracy.append(values["accuracy"])
    last = np.mean(jax.device_get(accuracy[-max(1, steps // 10) :]))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return variables, float(last)

  return fit


def narrowed(params: dict, module: nn.Module, widths: chex.Array) -> dict:
  """Fresh weights of the super-net as those of a net of some widths.

  They are He normal of their fan-out, which is smaller in a narrower net.

  Args:
    params: from `variables.init`.
    module: the super-net.
    widths: int `[L]`.
  """
  flat = traverse_util.flatten_dict(params)
  kernels = [path for path in sorted(flat) if path[-1] == "kernel"]
  blocks = [path for path in kernels if path[0].startswith("stage")]
  layers = [("stem", "kernel"), *blocks]
  for index, path in enumerate(layers):
    widest = module.max_widths[index]
    flat[path] *= jnp.sqrt(widest / widths[index]).astype(jnp.float32)
  return traverse_util.unflatten_dict(flat)
