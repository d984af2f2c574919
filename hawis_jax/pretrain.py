"""Stage 1: pre-train the masked-width super-net.

Every step trains the maximum, the minimum and some random width vectors (the
sandwich rule of Yu & Huang, ICCV 2019) in one pass, their width vectors being
inputs of one compiled program. The maximum net learns the labels, the others
its softmax (in-place distillation). Random vectors are uniform in cost, and
some of them can be trained on defective chips, so that the super-net ranks
robustness too.

Axes: N vectors of a step, B images, L layers.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import chex
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hawis_jax import budgets
from hawis_jax import checkpoint
from hawis_jax import config as config_lib
from hawis_jax import crossbar
from hawis_jax import experiment as experiment_lib
from hawis_jax import loop
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
  programs = make_programs(experiment, sharding.training_mesh())

  def update(state, step, batch):
    if step < config.warmup_steps:
      return programs.warm_up(state, batch)
    return programs.sandwich(state, step, batch)

  with checkpoint.Checkpoints(workdir / "pretrain") as checkpoints:
    state = loop.run_steps(
      update,
      programs.init(experiment.key("pretrain_init")),
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


class Programs(NamedTuple):
  """The stage's jitted functions; states are placed as by `sharding.split`.

  Attributes:
    init: key -> the state at step 0.
    warm_up: (state, batch) -> (state, metrics); the maximum net alone.
    sandwich: (state, step, batch) -> (state, metrics).
  """

  init: Callable[..., Any]
  warm_up: Callable[..., Any]
  sandwich: Callable[..., Any]


def make_programs(
  experiment: experiment_lib.Experiment, mesh: jax.sharding.Mesh
) -> Programs:
  """Returns the stage's programs for the devices of a mesh."""
  config = experiment.config.pretrain
  root, chip_root = map(experiment.key, ("pretrain", "pretrain_chips"))
  devices = config_lib.pretrain_devices(experiment.config)
  init, optimizer = _make_init(experiment, mesh)
  state = jax.eval_shape(init, root)
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
    out_shardings=(sharding.split(state, mesh), sharding.replicated(mesh)),
  )

  @jit
  def warm_up(state, batch):
    return step_function(state, widest, batch)

  @jit
  def sandwich(state, step, batch):
    vectors = sampler(jax.random.fold_in(root, step))
    if not devices:
      return step_function(state, vectors, batch)
    key = jax.random.fold_in(chip_root, step)
    params = sharding.gathered(state.params, mesh)
    chip = sample_chip(key, params, devices)
    return step_function(
      state, vectors, batch, chip, faulty=config.faulty_widths
    )

  return Programs(init, warm_up, sandwich)


def load(experiment: experiment_lib.Experiment, workdir: pathlib.Path) -> dict:
  """Returns the pre-trained super-net's `params`.

  Raises:
    InputError: the stage has not finished.
  """
  steps = experiment.config.pretrain.steps
  example = jax.eval_shape(lambda: init(experiment)[0])
  with checkpoint.Checkpoints(workdir / "pretrain") as checkpoints:
    state = loop.load_final(checkpoints, example, steps, "pretrain")
  return state.params


def init(
  experiment: experiment_lib.Experiment,
) -> tuple[optimize.TrainState, optax.GradientTransformation]:
  """Returns (state at step 0, on one device, optimiser)."""
  make, optimizer = _make_init(experiment)
  return make(experiment.key("pretrain_init")), optimizer


def _make_init(experiment, mesh=None):
  """Returns (key -> state at step 0, optimiser)."""
  config = experiment.config.pretrain
  optimizer = optimize.make_optimizer(config.optimizer, config.steps)
  make = optimize.make_init(
    experiment.supernet, experiment.splits.image_shape, optimizer, mesh=mesh
  )
  return make, optimizer


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


def sample_device(
  key: chex.PRNGKey, devices: Sequence[crossbar.Device]
) -> crossbar.Device:
  """Draws one of some devices, all its defects at a share of their levels.

  The share is uniform in [0, 1), so that training meets what scores do, from
  the ideal net to the devices themselves, and nothing worse.

  Args:
    key: consumed.
    devices: alike in their static fields, see `crossbar.stack`.

  Returns:
    A device with traced levels.
  """
  choice_key, share_key = jax.random.split(key)
  choice = jax.random.randint(choice_key, (), 0, len(devices))
  share = jax.random.uniform(share_key)
  device = jax.tree.map(lambda x: x[choice], crossbar.stack(devices))
  levels = {field: getattr(device, field) for field in crossbar.DEFECTS}
  return dataclasses.replace(
    device,
    **{k: v * share for k, v in levels.items() if crossbar.is_present(v)},
  )


def sample_chip(
  key: chex.PRNGKey, params: dict, devices: Sequence[crossbar.Device]
) -> dict:
  """Draws a chip of a device of `sample_device` and programs the super-net.

  Returns:
    The collection `crossbar` of `crossbar.program`.
  """
  device_key, chip_key = jax.random.split(key)
  device = sample_device(device_key, devices)
  return crossbar.program(chip_key, {"params": params}, device)["crossbar"]


def on_chip(params: dict, chip: dict) -> dict:
  """Variables of a net on a chip, to be trained.

  The gradient of an effective weight is its latent weight's, as in the
  binariser: that of a stuck cell's weight too, which another chip will need.

  Args:
    params: of the net, which the gradient is for.
    chip: collection `crossbar` with their effective weights.
  """
  latent = traverse_util.flatten_dict(params)
  weights = {}
  for path, weight in traverse_util.flatten_dict(chip).items():
    kernel = latent[(*path[:-1], "kernel")]
    straight_through = kernel - jax.lax.stop_gradient(kernel)
    weights[path] = jax.lax.stop_gradient(weight) + straight_through
  return {"params": params, "crossbar": traverse_util.unflatten_dict(weights)}


def sandwich_loss(
  params: dict,
  module: nn.Module,
  widths: chex.Array,
  inputs: chex.Array,
  labels: chex.Array,
  distill: bool,
  chip: dict | None = None,
  faulty: int = 0,
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
    chip: from `sample_chip`; None: `faulty` is 0.
    faulty: so many vectors, the last, are on it.
    looped: one vector after the other, for images on several devices: XLA
      can't split the images of the weight gradients of all at once.

  Returns:
    (loss, logits `[N, B, classes]`).
  """

  def apply(variables, widths):
    # Batch statistics only: a running average would mix widths.
    def one(vector):
      return module.apply(variables, inputs, vector, train=True)

    return jax.lax.map(one, widths) if looped else jax.vmap(one)(widths)

  ideal = len(widths) - faulty
  logits = apply({"params": params}, widths[:ideal])
  if faulty:
    on_it = apply(on_chip(params, chip), widths[ideal:])
    logits = jnp.concatenate([logits, on_it])
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
  chip: dict | None = None,
  *,
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  distill: bool,
  faulty: int = 0,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[optimize.TrainState, dict[str, chex.Array]]:
  """One optimiser step on N width vectors, the maximum first.

  The maximum net uses every weight, so weight decay moves none that the step
  did not train.

  Args:
    state: before.
    widths: int `[N, L]`.
    batch: image uint8 `[B, H, W, C]`, label int `[B]`.
    chip: see `sandwich_loss`.
    module: the super-net.
    optimizer: of `state`.
    distill: see `sandwich_loss`.
    faulty: see `sandwich_loss`.
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
    chip,
    faulty,
    mesh is not None and mesh.size > 1,
  )
  grads = sharding.gathered(grads, mesh)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  hits = (logits.argmax(-1) == batch["label"][None]).mean(-1)
  values = {
    "loss": loss,
    "accuracy_max": hits[0],
    "accuracy_mean": hits.mean(),
    "weight_norm": optax.tree.norm(params),
  }
  if faulty:
    values["accuracy_faulty"] = hits[-faulty:].mean()
  return state.replace(params=params, opt_state=opt_state), values
