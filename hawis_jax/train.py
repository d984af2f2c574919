"""Stage 3: train the found net, other binary nets, and their counterparts.

A fixed net is the masked network at its own widths: no second definition.

Axes: B images.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax

from hawis_jax import checkpoint
from hawis_jax import counterparts
from hawis_jax import experiment as experiment_lib
from hawis_jax import loop
from hawis_jax import metrics as metrics_lib
from hawis_jax import montecarlo
from hawis_jax import nets
from hawis_jax import optimize
from hawis_jax import robustness
from hawis_jax import search
from hawis_jax import sharding
from hawis_jax import teachers

_BEST = "best"  # folder of the state that `train.select` may ask for


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a net is trained, beside its optimiser.

  Attributes:
    microbatches: parts a batch is split into; gradients are averaged, and BN
      normalises and updates its statistics part by part.
    label_smoothing: share of a label that goes to all classes.
    weight_penalty: factor of `optimize.weight_penalty`.
    ema: decay a step of the moving average; 0: none.
  """

  microbatches: int = 1
  label_smoothing: float = 0.0
  weight_penalty: float = 0.0
  ema: float = 0.0


def run(
  experiment: experiment_lib.Experiment,
  workdir: pathlib.Path,
  metrics: metrics_lib.Metrics,
) -> None:
  """Trains every net of `config.train.nets`, or what is left of it."""
  for net in trained(experiment.config.train):
    train_net(net, experiment, workdir, metrics)


def trained(config: ml_collections.ConfigDict) -> list[str]:
  """The nets of `config.train.nets` but those that `load` makes of float ones.

  Args:
    config: the section `train`.
  """
  return [
    net
    for net in config.nets
    if nets.parse(net).kind != nets.INT8 or config.int8 != "quantized"
  ]


def load(
  net: str, experiment: experiment_lib.Experiment, workdir: pathlib.Path
) -> tuple[nn.Module, dict]:
  """Returns a trained net: (module, its `params` and `batch_stats`).

  Raises:
    InputError: it has not been trained.
  """
  config = experiment.config
  module = net_module(net, experiment, workdir)
  name = nets.parse(net)
  if name.kind == nets.INT8 and config.train.int8 == "quantized":
    _, variables = load(f"{name.widths}_float", experiment, workdir)
    images = experiment.evaluation(
      experiment.splits.train, *_calibration_size(experiment)
    ).image
    return module, counterparts.quantize(module, variables, images)
  init, _ = _make_init(net, module, experiment)
  example = jax.eval_shape(init, experiment.key("train_init"))
  folder = workdir / "train" / net
  with checkpoint.Checkpoints(folder) as checkpoints:
    steps = config.train.steps
    state = loop.load_final(checkpoints, example, steps, "train")
  if config.train.select == "best":
    with checkpoint.Checkpoints(folder / _BEST) as checkpoints:
      state = loop.Best(checkpoints).load(example)
  return module, _variables(state)


def chosen_step(
  net: str, experiment: experiment_lib.Experiment, workdir: pathlib.Path
) -> int:
  """Returns the step of training that `load`'s net is of.

  Raises:
    InputError: it has not been trained.
  """
  config, name = experiment.config.train, nets.parse(net)
  if config.select == "last":
    return config.steps
  if name.kind == nets.INT8 and config.int8 == "quantized":
    net = f"{name.widths}_float"
  with checkpoint.Checkpoints(workdir / "train" / net / _BEST) as checkpoints:
    return checkpoints.latest_step()


def _calibration_size(experiment):
  """(batch size, images) that 8-bit nets are calibrated with."""
  config = experiment.config.robustness
  return config.calibration_batch, config.calibration_images


def net_module(
  net: str, experiment: experiment_lib.Experiment, workdir: pathlib.Path
) -> nn.Module:
  """Returns a net's module; the found net's widths are the search's result."""
  name = nets.parse(net)
  if name.widths == "found":
    found = search.load_result(workdir)["found"]
    field = f"{workdir}/search/result.json: found"
    widths = tuple(int(w) for w in experiment.space.check(found, field))
  else:
    widths = experiment.widths[name.widths]
  return _of_kind(name.kind, widths, experiment)


def widest_module(net: str, experiment: experiment_lib.Experiment) -> nn.Module:
  """`net_module`, but the found net as wide as the space allows."""
  name = nets.parse(net)
  widths = experiment.widths.get(name.widths)
  if widths is None:
    widths = experiment.space.max_widths
  return _of_kind(name.kind, widths, experiment)


def _of_kind(kind, widths, experiment):
  if kind == nets.BINARY:
    return experiment.network(widths)
  return experiment.counterpart(widths, 8 if kind == nets.INT8 else None)


def train_net(
  net: str,
  experiment: experiment_lib.Experiment,
  workdir: pathlib.Path,
  metrics: metrics_lib.Metrics,
) -> None:
  """Trains one net into `<workdir>/train/<net>`."""
  config, splits = experiment.config.train, experiment.splits
  module = net_module(net, experiment, workdir)
  mesh = sharding.training_mesh()
  teacher = None
  if nets.parse(net).kind == nets.BINARY:
    teacher = _teacher(experiment, workdir)
  programs = make_programs(
    net, module, experiment, mesh, teacher and teacher.module
  )
  teacher_variables = None
  if teacher:
    teacher_variables = sharding.place(teacher.variables, mesh, split=True)
  source = splits.train
  if config.use_validation:
    source = splits.train_and_validation
  folder = workdir / "train" / net
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(checkpoint.Checkpoints(folder))
    validation = _validation(module, experiment, mesh)
    if config.select == "best":
      best = stack.enter_context(checkpoint.Checkpoints(folder / _BEST, keep=1))
      validation = dataclasses.replace(validation, best=loop.Best(best))
    loop.run_steps(
      lambda state, step, batch: programs.step(state, batch, teacher_variables),
      programs.init(experiment.key("train_init")),
      name=f"train/{net}",
      total=config.steps,
      checkpoints=checkpoints,
      metrics=metrics,
      log_every=experiment.config.log_every,
      checkpoint_seconds=experiment.config.checkpoint_seconds,
      validation=validation,
      batches=functools.partial(
        experiment.train_batches, source, config.batch_size
      ),
    )


class Programs(NamedTuple):
  """Jitted functions of a net; states are placed as by `sharding.split`.

  Attributes:
    init: key -> the state at step 0.
    step: (state, batch, the teacher's variables or None) -> (state, metrics).
  """

  init: Callable[..., Any]
  step: Callable[..., Any]


def make_programs(
  net: str,
  module: nn.Module,
  experiment: experiment_lib.Experiment,
  mesh: jax.sharding.Mesh,
  teacher_module: nn.Module | None = None,
) -> Programs:
  """Returns the programs that train a net on the devices of a mesh."""
  config = experiment.config.train
  init, optimizer = _make_init(net, module, experiment, mesh)
  recipe = Recipe(config.microbatches, config.label_smoothing)
  if nets.parse(net).kind == nets.BINARY:
    recipe = dataclasses.replace(
      recipe, weight_penalty=config.weight_penalty, ema=config.ema
    )
  state = jax.eval_shape(init, experiment.key("train_init"))
  where = sharding.split(state, mesh), sharding.replicated(mesh)

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=where)
  def step(state, batch, teacher):
    return train_step(
      state,
      batch,
      teacher,
      module=module,
      optimizer=optimizer,
      recipe=recipe,
      teacher_module=teacher_module,
      mesh=mesh,
    )

  return Programs(init, step)


def check_teacher(experiment: experiment_lib.Experiment) -> None:
  """Reads a teacher that is a file, to fail before long work starts.

  Raises:
    InputError: it is damaged, or holds another network.
  """
  config = experiment.config.train
  if config.loss == "teacher" and pathlib.Path(config.teacher).is_file():
    teachers.from_file(experiment)


def _teacher(experiment, workdir):
  """The teacher of the binary nets; None where labels teach."""
  config = experiment.config.train
  if config.loss == "labels":
    return None
  if config.loss == "supernet":
    return teachers.from_supernet(experiment, workdir)
  if pathlib.Path(config.teacher).is_file():
    return teachers.from_file(experiment)
  return teachers.Teacher(*load(config.teacher, experiment, workdir))


def _validation(module, experiment, mesh) -> loop.Validation | None:
  """Measures accuracy on the validation images, if that is asked for."""
  every = experiment.config.train.validate_every
  if not every:
    return None
  size = 8 * montecarlo.block_size(experiment.splits.image_shape)
  where = sharding.on_data(mesh)

  def validate(state):
    batches = experiment.evaluation_stream(
      experiment.splits.validation, -(-size // mesh.size) * mesh.size
    )
    batches = (sharding.put(batch, where) for batch in batches)
    return robustness.ideal_accuracy(module, _variables(state), batches)

  return loop.Validation(validate, "accuracy_validation", every)


def _variables(state):
  """What a trained net is evaluated with."""
  params, batch_stats = state.average or (state.params, state.batch_stats)
  return {"params": params, "batch_stats": batch_stats}


def _make_init(net, module, experiment, mesh=None):
  """Returns (key -> state at step 0, optimiser)."""
  config = experiment.config.train
  binary = nets.parse(net).kind == nets.BINARY
  section = config.optimizer if binary else config.counterparts
  optimizer = optimize.make_optimizer(section, config.steps)
  averaging = binary and config.ema > 0
  init = optimize.make_init(
    module, experiment.splits.image_shape, optimizer, averaging, mesh
  )
  return init, optimizer


def train_step(
  state: optimize.TrainState,
  batch: dict[str, chex.Array],
  teacher: dict | None = None,
  *,
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  recipe: Recipe,
  teacher_module: nn.Module | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[optimize.TrainState, dict[str, chex.Array]]:
  """One optimiser step of a fixed net.

  Args:
    state: before.
    batch: image uint8 `[B, H, W, C]`, label int `[B]`.
    teacher: variables of `teacher_module`, which then sets the loss, KL(teacher
      || student); without `batch_stats`, it normalises with the batch's. None:
      cross-entropy with the labels.
    module: the net.
    optimizer: of `state`.
    recipe: see `Recipe`.
    teacher_module: any network with `encode`.
    mesh: whose `data` axis the batch is split on; None: one device's.
  """

  def loss_function(params, batch_stats, part):
    logits, updated = module.apply(
      {"params": params, "batch_stats": batch_stats},
      module.encode(part["image"]),
      train=True,
      mutable=["batch_stats"],
    )
    if teacher is None:
      loss = optimize.cross_entropy(
        logits, part["label"], recipe.label_smoothing
      )
    else:
      target = teacher_module.apply(
        teacher,
        teacher_module.encode(part["image"]),
        train="batch_stats" not in teacher,
      )
      loss = optimize.distillation(logits, target)
    if recipe.weight_penalty:
      loss += recipe.weight_penalty * optimize.weight_penalty(params)
    hits = (logits.argmax(-1) == part["label"]).mean()
    return loss, (updated["batch_stats"], {"loss": loss, "accuracy": hits})

  teacher = sharding.gathered(teacher, mesh)
  grads, batch_stats, values = _mean_gradients(
    jax.grad(loss_function, has_aux=True),
    state.replace(params=sharding.gathered(state.params, mesh)),
    batch,
    recipe.microbatches,
    mesh,
  )
  grads = sharding.gathered(grads, mesh)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  average = (
    optax.incremental_update(
      (params, batch_stats), state.average, 1 - recipe.ema
    )
    if recipe.ema
    else ()
  )
  values["weight_norm"] = optax.tree.norm(params)
  state = optimize.TrainState(params, batch_stats, opt_state, average)
  return state, values


def _mean_gradients(gradient, state, batch, microbatches, mesh):
  """Returns (gradients, `batch_stats`, metrics) of a batch, part by part."""
  if microbatches == 1:
    grads, (batch_stats, values) = gradient(
      state.params, state.batch_stats, batch
    )
    return grads, batch_stats, values

  def step(carry, part):
    total, batch_stats = carry
    grads, (batch_stats, values) = gradient(state.params, batch_stats, part)
    return (jax.tree.map(jnp.add, total, grads), batch_stats), values

  parts = jax.tree.map(
    lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch
  )
  if mesh is not None:  # all devices take part in each of them
    where = sharding.on_data(mesh, axis=1)
    parts = jax.lax.with_sharding_constraint(parts, where)
  zeros = jax.tree.map(jnp.zeros_like, state.params)
  (total, batch_stats), values = jax.lax.scan(
    step, (zeros, state.batch_stats), parts
  )
  grads = jax.tree.map(lambda x: x / microbatches, total)
  return grads, batch_stats, jax.tree.map(jnp.mean, values)
