"""Stage 1: pre-train the masked-width super-net.

Every step trains the maximum, the minimum and some random width vectors (the
sandwich rule of Yu & Huang, ICCV 2019) in one pass, their width vectors being
inputs of one compiled program. The maximum net learns the labels, the others
its softmax (in-place distillation). Random vectors are uniform in cost.

Axes: N vectors of a step, B images, L layers.
"""

import functools
import pathlib

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hawis_jax import budgets
from hawis_jax import checkpoint
from hawis_jax import experiment as experiment_lib
from hawis_jax import metrics as metrics_lib
from hawis_jax import optimize
from hawis_jax import sharding
from hawis_jax import widths as widths_lib


def run(
  experiment: experiment_lib.Experiment,
  workdir: pathlib.Path,
  metrics: metrics_lib.Metrics,
) -> dict:
  """Trains the super-net, or what is left of it; returns its `params`."""
  config = experiment.config.pretrain
  root = experiment.key("pretrain")
  mesh = sharding.training_mesh()
  state, optimizer = _init(experiment)
  state = sharding.place(state, mesh, split=True)
  sampler = functools.partial(
    sample_widths,
    bands=budgets.cost_bands(
      experiment.space, experiment.costs, config.cost_bins
    ),
    space=experiment.space,
    num=config.random_widths,
  )
  step_function = functools.partial(
    sandwich_step,
    module=experiment.supernet,
    optimizer=optimizer,
    distill=config.distill,
    mesh=mesh,
  )
  widest = np.array([experiment.space.max_widths], np.int32)
  jit = functools.partial(
    jax.jit,
    donate_argnums=0,
    out_shardings=(sharding.of(state), sharding.replicated(mesh)),
  )

  @jit
  def warm_up(state, batch):
    return step_function(state, widest, batch)

  @jit
  def sandwich(state, step, batch):
    key = jax.random.fold_in(root, step)
    return step_function(state, sampler(key), batch)

  def update(state, step, batch):
    if step < config.warmup_steps:
      return warm_up(state, batch)
    return sandwich(state, step, batch)

  with checkpoint.Checkpoints(workdir / "pretrain") as checkpoints:
    state = optimize.run_steps(
      update,
      state,
      name="pretrain",
      total=config.steps,
      checkpoints=checkpoints,
      metrics=metrics,
      log_every=experiment.config.log_every,
      checkpoint_seconds=experiment.config.checkpoint_seconds,
      batches=functools.partial(
        experiment.train_batches, experiment.splits.train, config.batch_size
      ),
    )
  return state.params


def load(experiment: experiment_lib.Experiment, workdir: pathlib.Path) -> dict:
  """Returns the pre-trained super-net's `params`.

  Raises:
    InputError: the stage has not finished.
  """
  steps = experiment.config.pretrain.steps
  example = jax.eval_shape(lambda: _init(experiment)[0])
  with checkpoint.Checkpoints(workdir / "pretrain") as checkpoints:
    state = optimize.load_final(checkpoints, example, steps, "pretrain")
  return state.params


def _init(experiment):
  """Returns (state at step 0, optimiser)."""
  config = experiment.config.pretrain
  optimizer = optimize.make_optimizer(config.optimizer, config.steps)
  state = optimize.init_state(
    experiment.supernet,
    experiment.key("pretrain_init"),
    experiment.splits.image_shape,
    optimizer,
  )
  return state, optimizer


def sample_widths(
  key: chex.PRNGKey,
  bands: budgets.FeasibleSet,
  space: widths_lib.WidthSpace,
  num: int,
) -> chex.Array:
  """Draws a sandwich: maximum, minimum, `num` vectors uniform in cost.

  Args:
    key: consumed.
    bands: windows, from `budgets.cost_bands`.
    space: of the vectors.
    num: random vectors.

  Returns:
    int32 `[2 + num, L]` widths.
  """

  def draw(key):
    band_key, vector_key = jax.random.split(key)
    band = jax.random.randint(band_key, (), 0, bands.windows)
    return widths_lib.take(space.table, bands.sample(vector_key, band))

  ends = jnp.array([space.max_widths, space.min_widths], jnp.int32)
  return jnp.concatenate([ends, jax.vmap(draw)(jax.random.split(key, num))])


def sandwich_loss(
  params: dict,
  module: nn.Module,
  widths: chex.Array,
  inputs: chex.Array,
  labels: chex.Array,
  distill: bool,
  looped: bool = False,
) -> tuple[chex.Array, chex.Array]:
  """Summed loss of N width vectors; the first is the maximum net.

  Args:
    params: of the super-net.
    module: the super-net.
    widths: int `[N, L]`.
    inputs: `[B, H, W, C]`, from `module.encode`.
    labels: int `[B]`.
    distill: vectors after the first learn its softmax, not the labels.
    looped: one vector after the other, for images on several devices: XLA
      can't split the images of the weight gradients of all at once.

  Returns:
    (loss, logits `[N, B, classes]`).
  """

  # Batch statistics only: a running average would mix widths.
  def apply(vector):
    return module.apply({"params": params}, inputs, vector, train=True)

  logits = jax.lax.map(apply, widths) if looped else jax.vmap(apply)(widths)
  loss = optimize.cross_entropy(logits[0], labels)
  for student in logits[1:]:
    if distill:
      loss += optimize.distillation(student, logits[0])
    else:
      loss += optimize.cross_entropy(student, labels)
  return loss, logits


def sandwich_step(
  state: optimize.TrainState,
  widths: chex.Array,
  batch: dict[str, chex.Array],
  *,
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  distill: bool,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[optimize.TrainState, dict[str, chex.Array]]:
  """One optimiser step on N width vectors, the maximum first.

  The maximum net uses every weight, so weight decay moves none that the step
  did not train.

  Args:
    state: before.
    widths: int `[N, L]`.
    batch: image uint8 `[B, H, W, C]`, label int `[B]`.
    module: the super-net.
    optimizer: of `state`.
    distill: see `sandwich_loss`.
    mesh: whose `data` axis the batch is split on; None: one device's.
  """
  inputs = module.encode(batch["image"])
  grad = jax.value_and_grad(sandwich_loss, has_aux=True)
  (loss, logits), grads = grad(
    sharding.gathered(state.params, mesh),
    module,
    widths,
    inputs,
    batch["label"],
    distill,
    mesh is not None and mesh.size > 1,
  )
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  hits = (logits.argmax(-1) == batch["label"][None]).mean(-1)
  values = {
    "loss": loss,
    "accuracy_max": hits[0],
    "accuracy_mean": hits.mean(),
    "weight_norm": optax.tree.norm(params),
  }
  return state.replace(params=params, opt_state=opt_state), values
