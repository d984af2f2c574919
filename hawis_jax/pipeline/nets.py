"""The nets of a run: their modules, optimisers and initial states."""

from collections.abc import Callable
import functools
from typing import Any

import chex
from flax import linen as nn
import jax
import ml_collections
import numpy as np
import optax

from hawis_jax import crossbar
from hawis_jax.config import settings
from hawis_jax.networks import net_names
from hawis_jax.networks import net_variables
from hawis_jax.networks import reference_resnet
from hawis_jax.pipeline.experiment import Experiment
from hawis_jax.runtime import sharding
from hawis_jax.training import hardware_aware
from hawis_jax.training import optimization


def trained(experiment: Experiment) -> list[str]:
  """Returns the nets that are trained: all but those made of float ones."""
  config = experiment.config.train
  return [net for net in config.nets if not is_quantized(net, experiment)]


def is_quantized(net: str, experiment: Experiment) -> bool:
  """Returns whether an 8-bit net is made of its trained float net."""
  is_int8 = net_names.parse(net).kind == net_names.INT8
  return is_int8 and experiment.config.train.int8 == "quantized"


def module(
  net: str, experiment: Experiment, found: tuple[int, ...] | None = None
) -> nn.Module:
  """Returns a net's module.

  Args:
    net: its name.
    experiment: of the run.
    found: widths of the found net; None: as wide as the space allows.
  """
  name = net_names.parse(net)
  widths = experiment.widths.get(name.widths)
  if widths is None:
    widths = found or experiment.space.max_widths
  if name.kind == net_names.BINARY:
    return experiment.network(widths)
  return experiment.reference(
    widths, 8 if name.kind == net_names.INT8 else None
  )


def teacher_module(experiment: Experiment) -> nn.Module:
  """Returns the float network that a file in `config.train.teacher` holds."""
  config = experiment.config
  depth, classes = config.train.teacher_depth, experiment.splits.num_classes
  if config.network.family == "cifar":
    return reference_resnet.cifar_reference(depth, None, classes)
  return reference_resnet.imagenet_reference(depth, classes)


def optimizer_settings(section) -> optimization.OptimizerSettings:
  """Returns what a section of the configuration says of an optimiser."""
  return optimization.OptimizerSettings(**section.to_dict())


def supernet_init(
  experiment: Experiment, mesh: jax.sharding.Mesh | None = None
) -> tuple[Callable[..., Any], optax.GradientTransformation]:
  """Returns (key -> the super-net's state at step 0, its optimiser).

  Args:
    experiment: of the run.
    mesh: the state is made where it stays; None: on one accelerator.
  """
  config = experiment.config.pretrain
  optimizer = optimization.make_optimizer(
    optimizer_settings(config.optimizer), config.steps
  )
  init = optimization.make_init(
    experiment.supernet, experiment.splits.image_shape, optimizer, mesh=mesh
  )
  return init, optimizer


def net_init(
  net: str,
  network: nn.Module,
  experiment: Experiment,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[Callable[..., Any], optax.GradientTransformation]:
  """Returns (key -> a net's state at step 0, its optimiser).

  Args:
    net: its name.
    network: its module.
    experiment: of the run.
    mesh: the state is made where it stays; None: on one accelerator.
  """
  config = experiment.config.train
  binary = net_names.parse(net).kind == net_names.BINARY
  section = config.optimizer if binary else config.reference_optimizer
  optimizer = optimization.make_optimizer(
    optimizer_settings(section), config.steps
  )
  averaging = binary and config.ema > 0
  init = optimization.make_init(
    network, experiment.splits.image_shape, optimizer, averaging, mesh
  )
  return init, optimizer


def batch_shapes(
  experiment: Experiment, size: int, mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of a training batch, split on a mesh."""
  images = size, *experiment.splits.image_shape
  batch = {
    "image": jax.ShapeDtypeStruct(images, np.uint8),
    "label": jax.ShapeDtypeStruct((size,), np.int32),
  }
  return sharding.abstract(batch, sharding.on_data(mesh))


def state_shapes(
  init: Callable[..., Any], mesh: jax.sharding.Mesh
) -> optimization.TrainState:
  """Returns the shapes of a training state, split on a mesh."""
  state = jax.eval_shape(init, jax.random.key(0))
  return sharding.abstract(state, sharding.split(state, mesh))


def chips(
  devices: list[crossbar.Device], config: ml_collections.ConfigDict
) -> hardware_aware.Settings:
  """Returns what `config.hardware_aware` says, of devices of `settings`."""
  section = config.hardware_aware
  return hardware_aware.Settings(
    tuple(devices),
    section.chips,
    section.most_severity,
    tuple(section.ramp),
    section.worst,
  )


def ideal_statistics(
  module: nn.Module, variables: dict, experiment: Experiment
) -> dict:
  """Returns a net's variables, whose statistics are those of ideal weights.

  While a net is trained on chips its running averages are over chips of all
  severities, and fit none.
  """
  images = calibration_images(experiment)
  return {**variables, "batch_stats": _ideal(module, variables, images)}


def design_statistics(
  module: nn.Module, variables: dict, experiment: Experiment
) -> dict:
  """Returns a net's variables, whose statistics are means over many chips."""
  config = experiment.config
  found = _design(
    module,
    chips(settings.design_devices(config), config),
    config.robustness.design_chips,
    experiment.key("design_chips"),
    variables,
    calibration_images(experiment),
  )
  return {**variables, "batch_stats": found}


def calibration_images(experiment: Experiment) -> chex.Array:
  """Returns images of training, uint8 `[N, B, H, W, C]`."""
  config = experiment.config.robustness
  return experiment.evaluation(
    experiment.splits.train, config.calibration_batch, config.calibration_images
  ).image


@functools.partial(jax.jit, static_argnums=0)
def _ideal(module, variables, images):
  return net_variables.recalibrate(module, variables, images)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _design(module, chips, num_chips, key, variables, images):
  return hardware_aware.design_statistics(
    key, module, variables, images, chips, num_chips
  )
