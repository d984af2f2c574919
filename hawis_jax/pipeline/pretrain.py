"""Stage 1: pre-train the masked-width super-net (see `training.supernet`)."""

from collections.abc import Callable
import functools
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from hawis_jax import cost
from hawis_jax.config import settings
from hawis_jax.pipeline import nets
from hawis_jax.pipeline import provenance
from hawis_jax.pipeline.experiment import Experiment
from hawis_jax.runtime import checkpoint
from hawis_jax.runtime import loop
from hawis_jax.runtime import sharding
from hawis_jax.runtime.metrics import Metrics
from hawis_jax.training import hardware_aware
from hawis_jax.training import supernet


def run(
  experiment: Experiment, workdir: pathlib.Path, metrics: Metrics
) -> None:
  """Trains the super-net, or what is left of it."""
  config = experiment.config.pretrain
  programs = make_programs(experiment, sharding.training_mesh())

  def update(state, step, batch):
    if step < config.warmup_steps:
      return programs.warm_up(state, batch)
    return programs.sandwich(state, step, batch)

  folder = workdir / "pretrain"
  provenance.record(experiment, workdir, "pretrain")
  with checkpoint.Checkpoints(folder) as checkpoints:
    loop.run_steps(
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


def make_programs(experiment: Experiment, mesh: jax.sharding.Mesh) -> Programs:
  """Returns the stage's programs for the accelerators of a mesh."""
  config = experiment.config.pretrain
  root, chip_root = map(experiment.key, ("pretrain", "pretrain_chips"))
  devices = settings.pretrain_devices(experiment.config)
  chips = nets.chips(devices, experiment.config)
  init, optimizer = nets.supernet_init(experiment, mesh)
  state = jax.eval_shape(init, root)
  bands = cost.cost_bands(experiment.space, experiment.costs, config.cost_bins)
  step_function = functools.partial(
    supernet.sandwich_step,
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
    vectors = supernet.sample_widths(
      jax.random.fold_in(root, step),
      bands,
      experiment.space,
      config.random_widths,
    )
    if not devices:
      return step_function(state, vectors, batch)
    program = functools.partial(
      hardware_aware.program,
      jax.random.fold_in(chip_root, step),
      module=experiment.supernet,
      settings=chips,
      most=chips.most_at(step / config.steps),
      images=config.batch_size,
    )
    return step_function(
      state, vectors, batch, program, faulty=config.faulty_widths
    )

  return Programs(init, warm_up, sandwich)
