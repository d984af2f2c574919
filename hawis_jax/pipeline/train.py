"""Stage 3: train the found net, other binary nets, and reference nets."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import numpy as np

from hawis_jax.config import settings
from hawis_jax.networks import net_names
from hawis_jax.pipeline import nets
from hawis_jax.pipeline import provenance
from hawis_jax.pipeline import results
from hawis_jax.pipeline.experiment import Experiment
from hawis_jax.robustness import evaluation
from hawis_jax.robustness import monte_carlo
from hawis_jax.runtime import checkpoint
from hawis_jax.runtime import distributed
from hawis_jax.runtime import loop
from hawis_jax.runtime import programs
from hawis_jax.runtime import sharding
from hawis_jax.runtime import storage
from hawis_jax.runtime.metrics import Metrics
from hawis_jax.training import fixed_net


def run(
  experiment: Experiment, workdir: pathlib.Path, metrics: Metrics
) -> None:
  """Trains every net of `config.train.nets`, or what is left of it."""
  trained = nets.trained(experiment)
  for number, net in enumerate(trained, 1):
    with metrics.counted("net", net, number, len(trained)):
      train_net(net, experiment, workdir, metrics)


def jobs(
  experiment: Experiment, workdir: pathlib.Path
) -> Iterator[Callable[[], Any]]:
  """Yields what compiles the stage's programs, of the nets that are known.

  Those that a teacher trains are compiled when they are called.
  """
  mesh, config = sharding.training_mesh(), experiment.config.train

  def compile_step(net):
    module = results.net_module(net, experiment, workdir)
    made = make_programs(net, module, experiment, mesh)
    state = nets.state_shapes(made.init, mesh)
    batch = nets.batch_shapes(experiment, config.batch_size, mesh)
    made.step.compile(state, np.int32(0), batch, None)

  for net in nets.trained(experiment):
    is_binary = net_names.parse(net).kind == net_names.BINARY
    folder = results.net_folder(workdir, net)
    is_done = checkpoint.Reader(folder).latest_step() == config.steps
    if not is_done and (not is_binary or config.loss != "teacher"):
      yield functools.partial(compile_step, net)


def train_net(
  net: str, experiment: Experiment, workdir: pathlib.Path, metrics: Metrics
) -> None:
  """Trains one net into `<workdir>/train/<net>`."""
  config, splits = experiment.config.train, experiment.splits
  module = results.net_module(net, experiment, workdir)
  mesh = sharding.training_mesh()
  teacher = teacher_variables = None
  if net_names.parse(net).kind == net_names.BINARY:
    teacher = results.load_teacher(experiment, workdir)
  if teacher:
    teacher_variables = sharding.place(teacher.variables, mesh, split=True)
  made = make_programs(
    net, module, experiment, mesh, teacher and teacher.module
  )
  provenance.record(experiment, workdir, "train", net)
  source = splits.train
  if config.use_validation:
    source = splits.train_and_validation
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      checkpoint.Checkpoints(results.net_folder(workdir, net))
    )
    validation = _validation(module, experiment, mesh)
    if config.select == "best":
      if checkpoints.latest_step() is None:  # of a training that was deleted
        best = results.best_folder(workdir, net)
        distributed.on_first(lambda: storage.remove_folder(best))
      best = stack.enter_context(
        checkpoint.Checkpoints(results.best_folder(workdir, net), keep=1)
      )
      validation = dataclasses.replace(validation, best=loop.Best(best))
    loop.run_steps(
      lambda state, step, batch: made.step(
        state, np.int32(step), batch, teacher_variables
      ),
      made.init(experiment.key("train_init")),
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
  """Of a net; states are placed as by `sharding.split`.

  Attributes:
    init: key -> the state at step 0.
    step: (state, number of the step, batch, the teacher's variables or None) ->
      (state, metrics).
  """

  init: Callable[..., Any]
  step: programs.Program


@programs.once(16)
def make_programs(
  net: str,
  module: nn.Module,
  experiment: Experiment,
  mesh: jax.sharding.Mesh,
  teacher_module: nn.Module | None = None,
) -> Programs:
  """Returns the programs that train a net on the accelerators of a mesh."""
  config = experiment.config.train
  init, optimizer = nets.net_init(net, module, experiment, mesh)
  recipe = fixed_net.Recipe(config.microbatches, config.label_smoothing)
  name, root = net_names.parse(net), experiment.key("train_chips")
  if name.kind == net_names.BINARY:
    recipe = dataclasses.replace(
      recipe,
      margin=config.margin if config.loss == "margin" else 0.0,
      weight_penalty=config.weight_penalty,
      ema=config.ema,
    )
  if name.on_chips:
    devices = settings.train_devices(experiment.config)
    chips = nets.chips(devices, experiment.config)
    recipe = dataclasses.replace(recipe, chips=chips)
  state = jax.eval_shape(init, experiment.key("train_init"))
  where = sharding.split(state, mesh), sharding.replicated(mesh)

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=where)
  def step(state, number, batch, teacher):
    return fixed_net.train_step(
      state,
      batch,
      teacher,
      jax.random.fold_in(root, number),
      number / config.steps,
      module=module,
      optimizer=optimizer,
      recipe=recipe,
      teacher_module=teacher_module,
      mesh=mesh,
    )

  return Programs(init, programs.of(step))


def check_teacher(experiment: Experiment, workdir: pathlib.Path) -> None:
  """Reads a teacher that is a file, to fail before long work starts.

  Raises:
    InputError: it is damaged, or holds another network.
  """
  config = experiment.config.train
  if config.loss == "teacher" and pathlib.Path(config.teacher).is_file():
    results.load_teacher(experiment, workdir)


def _validation(module, experiment, mesh) -> loop.Validation | None:
  """Measures accuracy on the validation images, if that is asked for."""
  every = experiment.config.train.validate_every
  if not every:
    return None
  size = 8 * monte_carlo.block_size(experiment.splits.image_shape)
  where = sharding.on_data(mesh)

  def validate(state):
    batches = experiment.evaluation_stream(
      experiment.splits.validation, -(-size // mesh.size) * mesh.size
    )
    batches = (sharding.put(batch, where) for batch in batches)
    return evaluation.ideal_accuracy(module, state.variables, batches)

  return loop.Validation(validate, "accuracy_validation", every)
