"""Compiles the pipeline's programs for devices that need not be there.

The programs are those that the stages run, with their shardings; arrays are
shapes only, and images zeros.
"""

from collections.abc import Iterator, Sequence
import functools
import math

import jax
import jax.numpy as jnp
import ml_collections

from hawis_jax import compiled
from hawis_jax import config as config_lib
from hawis_jax import crossbar
from hawis_jax import data
from hawis_jax import experiment as experiment_lib
from hawis_jax import montecarlo
from hawis_jax import nets
from hawis_jax import pretrain
from hawis_jax import scoring
from hawis_jax import search
from hawis_jax import sharding
from hawis_jax import sweep
from hawis_jax import teachers
from hawis_jax import train
from hawis_jax import variables as variables_lib

STAGES = ("init", "pretrain", "search", "train", "robustness")


def prepare(
  config: ml_collections.ConfigDict,
  devices: int,
  stages: Sequence[str] = STAGES,
) -> experiment_lib.Experiment:
  """`experiment.prepare`, without data and with a super-net if need be.

  Args:
    config: where its nets need no search, "found" is added, if a stage has a
      super-net. A teacher that is a file need not be there.
    devices: that batches are split over.
    stages: some of `STAGES`.

  Raises:
    InputError: as `config.validate` and `experiment.prepare`.
  """
  config = ml_collections.ConfigDict(config)  # a copy
  if set(stages) - {"train", "robustness"} and "found" not in config.train.nets:
    config.train.nets = (*config.train.nets, "found")
  loss = config.train.loss
  if loss == "teacher":  # its file may not be there to be found
    config.train.loss = "labels"
  config_lib.validate(config)
  config.train.loss = loss
  if "pretrain" in stages:
    experiment_lib.check_batches(config, devices, ["pretrain"])
  return experiment_lib.with_splits(config, data.blank(config.data))


def programs(
  stage: str,
  experiment: experiment_lib.Experiment,
  devices: Sequence[jax.Device],
  memory: float,
) -> Iterator[tuple[str, compiled.Needs]]:
  """Compiles the programs of one stage; yields (name, what it needs).

  To be called within `backend.compiling_for`.

  Args:
    stage: one of `STAGES`: "init" makes the super-net's training state,
      "pretrain" is a step on it, "search" an update, "train" a step of every
      net that is trained, and "robustness" programs chips and classifies images
      on them, once for every kind of chip. A found net is as wide as may be.
    experiment: from `prepare`.
    devices: to compile for.
    memory: of one device [bytes], for "robustness".

  Raises:
    InputError: "robustness" does not fit the memory; "train" has batches that
      can't be split.
  """
  if stage == "robustness":
    yield from _robustness(experiment, devices, memory)
    return
  mesh = sharding.training_mesh(devices)
  if stage == "train":
    yield from _train(experiment, mesh)
    return
  lower = {"init": _init, "pretrain": _pretrain, "search": _search}[stage]
  yield stage, compiled.needs(lower(experiment, mesh).compile())


def state_bytes(
  experiment: experiment_lib.Experiment, devices: Sequence[jax.Device]
) -> int:
  """Bytes of the super-net's training state on one device; from shapes."""
  mesh = sharding.training_mesh(devices)
  state = jax.eval_shape(pretrain.make_programs(experiment, mesh).init, _key())
  shares = jax.tree.map(
    lambda leaf, where: (
      math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    ),
    state,
    sharding.split(state, mesh),
  )
  return sum(jax.tree.leaves(shares))


def _key():
  return jax.eval_shape(lambda: jax.random.key(0))


def _init(experiment, mesh):
  return pretrain.make_programs(experiment, mesh).init.lower(_key())


def _pretrain(experiment, mesh):
  made = pretrain.make_programs(experiment, mesh)
  batch = _batch(experiment, experiment.config.pretrain.batch_size, mesh)
  return made.sandwich.lower(_state(made, mesh), jnp.int32(0), batch)


def _state(made, mesh):
  return _split(jax.eval_shape(made.init, _key()), mesh)


def _split(tree, mesh):
  return sharding.abstract(tree, sharding.split(tree, mesh))


def _batch(experiment, size, mesh):
  batch = {
    "image": jax.ShapeDtypeStruct(
      (size, *experiment.splits.image_shape), jnp.uint8
    ),
    "label": jax.ShapeDtypeStruct((size,), jnp.int32),
  }
  return sharding.abstract(batch, sharding.on_data(mesh))


def _search(experiment, mesh):
  methods = search.build_methods(experiment)
  context = search.make_context(experiment)
  params = variables_lib.shapes(
    experiment.supernet, experiment.splits.image_shape
  )["params"]
  scorer = scoring.make_scorer(experiment, params)
  state = jax.eval_shape(lambda: search.init(experiment, methods, context))
  state, scorer, context, key = sharding.abstract(
    (state, scorer, context, _key()), sharding.replicated(mesh)
  )
  updates = search.make_updates(experiment, methods, mesh)
  return updates.lower(state, jnp.int32(0), scorer, context, key)


def _train(experiment, mesh):
  config = experiment.config.train
  experiment_lib.check_batches(experiment.config, mesh.size, ["train"])
  batch = _batch(experiment, config.batch_size, mesh)
  for net in train.trained(config):
    module, teacher = train.widest_module(net, experiment), None
    if nets.parse(net).kind == nets.BINARY:
      teacher = _teacher(experiment, mesh)
    made = train.make_programs(
      net, module, experiment, mesh, teacher and teacher.module
    )
    lowered = made.step.lower(
      _state(made, mesh), batch, teacher and teacher.variables
    )
    yield f"train/{net}", compiled.needs(lowered.compile())


def _teacher(experiment, mesh):
  """The teacher of binary nets, with shapes in place of its variables."""
  config, shape = experiment.config.train, experiment.splits.image_shape
  if config.loss == "labels":
    return None
  if config.loss == "supernet":
    module = experiment.supernet
    variables = {"params": variables_lib.shapes(module, shape)["params"]}
  else:
    if config.teacher in config.nets:
      module = train.widest_module(config.teacher, experiment)
    else:
      module = teachers.file_module(experiment)
    variables = variables_lib.shapes(module, shape)
  return teachers.Teacher(module, _split(variables, mesh))


def _robustness(experiment, devices, memory):
  config = experiment.config.robustness
  shape = experiment.splits.image_shape
  count = config.images or len(experiment.splits.test)
  images = jax.ShapeDtypeStruct((count, *shape), jnp.uint8)
  limits = sweep.make_limits(experiment)
  if not limits.memory:
    limits = montecarlo.Limits(limits.chips, limits.images, memory)
  seen = set()
  for step in sweep.todo_list(experiment.config):
    level = step.level
    if level is None or not level.is_random:
      continue
    module = train.widest_module(step.net, experiment)
    form = montecarlo.weights_form(level.device, module.weight_bits)
    kind = module, form, crossbar.needs_tiles(level.device)
    if kind in seen:
      continue
    seen.add(kind)
    variables = variables_lib.shapes(module, shape)
    variables = jax.eval_shape(
      functools.partial(sweep.calibrated, experiment, level, module), variables
    )
    setting = sweep.make_setting(experiment, level, module, variables)
    shared = jax.eval_shape(
      lambda setting=setting: montecarlo.shared_variables(setting, images)
    )
    mesh = sharding.evaluation_mesh(config.chips, devices)
    plan = montecarlo.make_plan(
      setting, shared, images, config.chips, mesh, limits
    )
    for name, needs in plan.needs.items():
      yield f"{step.net}, {step.scenario}: {name}", needs
