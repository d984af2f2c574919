"""What the training stages share: the optimiser, and the loop over steps."""

from collections.abc import Callable, Iterator
import math
import time
from typing import Any

import chex
import flax
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import optax

from hawis_jax import checkpoint
from hawis_jax import errors
from hawis_jax import metrics as metrics_lib
from hawis_jax import processes
from hawis_jax import sharding
from hawis_jax import variables as variables_lib


@flax.struct.dataclass
class TrainState:
  """What a training step changes.

  Attributes:
    params: of the network.
    batch_stats: BN running averages; empty in super-net training.
    opt_state: of the optimiser.
    average: moving average of `params` and `batch_stats`; () without one.
  """

  params: chex.ArrayTree
  batch_stats: chex.ArrayTree
  opt_state: chex.ArrayTree
  average: chex.ArrayTree = ()


def init_state(
  module: nn.Module,
  key: chex.PRNGKey,
  image_shape: tuple[int, int, int],
  optimizer: optax.GradientTransformation,
  averaging: bool = False,
) -> TrainState:
  """Returns the state before step 0 of a network for images of a shape."""
  return make_init(module, image_shape, optimizer, averaging)(key)


def make_init(
  module: nn.Module,
  image_shape: tuple[int, int, int],
  optimizer: optax.GradientTransformation,
  averaging: bool = False,
  mesh: jax.sharding.Mesh | None = None,
):
  """Returns a jitted function, key -> the state before step 0.

  Args:
    module: a network.
    image_shape: (H, W, C) of its images.
    optimizer: of the state.
    averaging: whether the state has a moving average.
    mesh: the state is made where it stays, see `sharding.split`; None: on one
      device.
  """

  def make(key):
    fresh = variables_lib.init(module, key, image_shape)
    params, batch_stats = fresh["params"], fresh["batch_stats"]
    average = jax.tree.map(jnp.copy, (params, batch_stats)) if averaging else ()
    return TrainState(params, batch_stats, optimizer.init(params), average)

  if mesh is None:
    return jax.jit(make)
  fresh = jax.eval_shape(make, jax.random.key(0))
  return jax.jit(make, out_shardings=sharding.split(fresh, mesh))


def load_final(
  checkpoints: checkpoint.Checkpoints, example: Any, total: int, stage: str
) -> Any:
  """Returns the state that a finished stage left.

  Args:
    checkpoints: of the stage.
    example: of the state, arrays or their shapes.
    total: steps of the stage.
    stage: its name, for the error.

  Raises:
    InputError: the stage has not finished.
  """
  restored = checkpoints.restore(example)
  step, state = restored if restored else (0, None)
  if step < total:
    raise errors.InputError(
      f"{checkpoints.directory}: got step {step}, needed is {total}; run "
      f"--stages {stage} first"
    )
  return state


def make_optimizer(
  config: ml_collections.ConfigDict, steps: int
) -> optax.GradientTransformation:
  """Builds the optimiser of a config section; L2 decay as in PyTorch.

  Args:
    config: name, learning_rate, schedule, milestones, momentum, weight_decay.
    steps: length of the run, for the schedule.
  """
  rate = config.learning_rate
  if config.schedule == "cosine":
    rate = optax.cosine_decay_schedule(rate, steps)
  elif config.schedule == "multistep":
    drops = {}
    for share in config.milestones:  # in a short run some fall together
      step = int(steps * share)
      drops[step] = 0.1 * drops.get(step, 1.0)
    rate = optax.piecewise_constant_schedule(rate, drops)
  if config.name == "sgd":
    rule = optax.sgd(rate, config.momentum)
  else:
    rule = optax.adam(rate)
  if not config.weight_decay:
    return rule
  return optax.chain(optax.add_decayed_weights(config.weight_decay), rule)


def cross_entropy(
  logits: chex.Array, labels: chex.Array, smoothing: float = 0.0
) -> chex.Array:
  """Mean cross-entropy [nat].

  Args:
    logits: `[B, classes]`.
    labels: int `[B]`.
    smoothing: share of a label that is spread over all classes.
  """
  if not smoothing:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()
  targets = jax.nn.one_hot(labels, logits.shape[-1])
  targets = optax.smooth_labels(targets, smoothing)
  return optax.softmax_cross_entropy(logits, targets).mean()


def distillation(logits: chex.Array, teacher: chex.Array) -> chex.Array:
  """Mean KL(teacher || student) [nat], both logits `[B, classes]`.

  No gradient flows to the teacher.
  """
  teacher = jax.lax.stop_gradient(jax.nn.log_softmax(teacher))
  return optax.losses.kl_divergence_with_log_targets(
    jax.nn.log_softmax(logits), teacher
  ).mean()


def weight_penalty(params: chex.ArrayTree, target: float = 0.01) -> chex.Array:
  """Sum of (|w| - target)^2 over all kernels.

  It keeps latent weights near their threshold (published ImageNet recipe).
  """
  flat = traverse_util.flatten_dict(params)
  kernels = [leaf for path, leaf in flat.items() if path[-1] == "kernel"]
  return sum(jnp.square(jnp.abs(w) - target).sum() for w in kernels)


def run_steps(
  update: Callable[..., tuple[Any, dict[str, chex.Array]]],
  state: Any,
  *,
  name: str,
  total: int,
  checkpoints: checkpoint.Checkpoints,
  metrics: metrics_lib.Metrics,
  log_every: int,
  checkpoint_seconds: float,
  stride: int = 1,
  validate: Callable[[Any], dict[str, float]] | None = None,
  validate_every: int = 0,
  batches: Callable[[int], Iterator[dict[str, jax.Array]]] | None = None,
) -> Any:
  """Runs a stage's steps from its last checkpoint to its end.

  Args:
    update: (state, step[, batch]) -> (state, metrics of scalars). A pure
      function of its arguments: that makes a resumed run bit-identical.
    state: at step 0, placed where it is to stay; the structure of the
      checkpoints.
    name: of the stage, for metrics and errors.
    total: steps; the state after the last one is always saved.
    checkpoints: of the stage.
    metrics: of the run.
    log_every: steps between two looks at the metrics.
    checkpoint_seconds: least time between two checkpoints [s].
    stride: steps that one `update` does, a divisor of `total`.
    validate: state -> metrics, added to those of some steps;
    validate_every: steps between them, and after the last one; 0: never.
    batches: start step -> batches from there on; None: `update` takes none.

  Returns:
    The final state.

  Raises:
    DivergenceError: a metric is not finite; nothing of it is saved.
  """
  restored = checkpoints.restore(state)
  start, state = restored if restored else (0, state)
  if start >= total:
    return state
  # On several CPU devices, steps on their way at the same time can wait for
  # each other's collectives without end.
  waiting = jax.default_backend() == "cpu" and jax.device_count() > 1
  progress = metrics.stage(name, total=total, start=start)
  stream = batches(start) if batches else None
  saved, pending = time.monotonic(), []
  for step in range(start, total, stride):
    batch = (next(stream),) if stream else ()
    state, values = update(state, step, *batch)
    pending.append(jax.block_until_ready(values) if waiting else values)
    done = step + stride
    validating = validate_every and (
      done % validate_every == 0 or done == total
    )
    if done % log_every and done != total and not validating:
      continue
    pending = jax.device_get(pending)
    first = done - (len(pending) - 1) * stride
    for index, values in enumerate(pending):
      _check_finite(name, first + index * stride, values, checkpoints)
    shown = {k: float(v) for k, v in pending[-1].items()}
    if validating:
      shown |= validate(state)
    progress.report(done, shown)
    pending = []
    late = time.monotonic() - saved > checkpoint_seconds
    if done == total or processes.on_first(lambda late=late: late):
      checkpoints.save(done, state)
      saved = time.monotonic()
  checkpoints.wait()
  return state


def _check_finite(name, step, values, checkpoints):
  bad = [key for key, value in values.items() if not math.isfinite(value)]
  if not bad:
    return
  last = checkpoints.latest_step()
  good = "none" if last is None else f"step {last} in {checkpoints.directory}"
  raise errors.DivergenceError(
    f"{name}: {bad[0]} is {float(values[bad[0]])} at step {step}; last good "
    f"checkpoint: {good}. Lower the learning rate or start from another seed"
  )
