"""Stage 3: train the found net and its counterparts from scratch.

A fixed net is the masked network at its own widths: no second definition.

Axes: B images.
"""

import functools
import pathlib

import chex
from flax import linen as nn
import jax
import optax

from hawis_jax import binary
from hawis_jax import checkpoint
from hawis_jax import data
from hawis_jax import experiment as experiment_lib
from hawis_jax import metrics as metrics_lib
from hawis_jax import optimize
from hawis_jax import pretrain
from hawis_jax import search


def run(
  experiment: experiment_lib.Experiment,
  workdir: pathlib.Path,
  metrics: metrics_lib.Metrics,
) -> None:
  """Trains every net of `config.train.nets`, or what is left of it."""
  config = experiment.config.train
  teacher = None
  if config.loss == "supernet":
    teacher = pretrain.load(experiment, workdir)
  for net in config.nets:
    train_net(net, experiment, workdir, metrics, teacher)


def load(
  net: str, experiment: experiment_lib.Experiment, workdir: pathlib.Path
) -> tuple[nn.Module, dict]:
  """Returns a trained net: (module, its `params` and `batch_stats`).

  Raises:
    InputError: it has not been trained.
  """
  module = _module(net, experiment, workdir)
  example = jax.eval_shape(lambda: _init(module, experiment)[0])
  with checkpoint.Checkpoints(workdir / "train" / net) as checkpoints:
    steps = experiment.config.train.steps
    state = optimize.load_final(checkpoints, example, steps, "train")
  return module, {"params": state.params, "batch_stats": state.batch_stats}


def net_widths(
  net: str, experiment: experiment_lib.Experiment, workdir: pathlib.Path
) -> tuple[int, ...]:
  """Widths of a net; the found net's are read from the search's result."""
  if net == "found":
    found = search.load_result(workdir)["found"]
    name = f"{workdir}/search/result.json: found"
    return tuple(int(w) for w in experiment.space.check(found, name))
  return experiment.widths[net]


def train_net(
  net: str,
  experiment: experiment_lib.Experiment,
  workdir: pathlib.Path,
  metrics: metrics_lib.Metrics,
  teacher: dict | None = None,
) -> None:
  """Trains one net into `<workdir>/train/<net>`.

  Args:
    net: "found", "baseline_1x" or "uniform".
    experiment: of the run.
    workdir: of the run.
    metrics: of the run.
    teacher: the super-net's `params`; None: learn the labels.
  """
  config = experiment.config.train
  module = _module(net, experiment, workdir)
  state, optimizer = _init(module, experiment)
  step_function = functools.partial(
    train_step,
    module=module,
    optimizer=optimizer,
    levels=experiment.config.data.levels,
    teacher_module=experiment.supernet,
  )

  @functools.partial(jax.jit, donate_argnums=0)
  def jitted(state, batch, teacher):
    return step_function(state, batch, teacher=teacher)

  with checkpoint.Checkpoints(workdir / "train" / net) as checkpoints:
    optimize.run_steps(
      lambda state, step, batch: jitted(state, batch, teacher),
      state,
      name=f"train/{net}",
      total=config.steps,
      checkpoints=checkpoints,
      metrics=metrics,
      log_every=experiment.config.log_every,
      checkpoint_seconds=experiment.config.checkpoint_seconds,
      batches=lambda start: data.train_batches(
        experiment.splits.train,
        seed=experiment.config.seed,
        batch_size=config.batch_size,
        augment=experiment.config.data.augment,
        start_step=start,
        read_threads=experiment.config.data.read_threads,
      ),
    )


def _module(net, experiment, workdir):
  return experiment.network(tuple(net_widths(net, experiment, workdir)))


def _init(module, experiment):
  """Returns (state at step 0, optimiser)."""
  config = experiment.config.train
  optimizer = optimize.make_optimizer(config.optimizer, config.steps)
  key = experiment.key("train_init")
  planes = experiment.geometry.planes
  return optimize.init_state(module, key, planes, optimizer), optimizer


def train_step(
  state: optimize.TrainState,
  batch: dict[str, chex.Array],
  *,
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  levels: int,
  teacher: dict | None = None,
  teacher_module: nn.Module | None = None,
) -> tuple[optimize.TrainState, dict[str, chex.Array]]:
  """One optimiser step of a fixed net.

  Args:
    state: before.
    batch: image uint8 `[B, H, W, C]`, label int `[B]`.
    module: the net.
    optimizer: of `state`.
    levels: thermometer levels.
    teacher: `params` of `teacher_module`, which then sets the loss, KL(teacher
      || student); None: cross-entropy with the labels.
    teacher_module: the super-net.
  """
  bits = binary.thermometer_code(batch["image"], levels)

  def loss_function(params):
    logits, updated = module.apply(
      {"params": params, "batch_stats": state.batch_stats},
      bits,
      train=True,
      mutable=["batch_stats"],
    )
    if teacher is None:
      loss = optimize.cross_entropy(logits, batch["label"])
    else:
      target = teacher_module.apply({"params": teacher}, bits, train=True)
      loss = optimize.distillation(logits, target)
    return loss, (logits, updated["batch_stats"])

  grad = jax.value_and_grad(loss_function, has_aux=True)
  (loss, (logits, batch_stats)), grads = grad(state.params)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  values = {
    "loss": loss,
    "accuracy": (logits.argmax(-1) == batch["label"]).mean(),
    "weight_norm": optax.tree.norm(params),
  }
  return optimize.TrainState(params, batch_stats, opt_state), values
