"""Teachers of binary nets: the super-net, or a float net of any origin."""

import pathlib
from typing import NamedTuple

from flax import linen as nn

from hawis_jax import counterparts
from hawis_jax import errors
from hawis_jax import experiment as experiment_lib
from hawis_jax import interop
from hawis_jax import pretrain


class Teacher(NamedTuple):
  """A network whose softmax is learnt.

  Attributes:
    module: with `encode` and `apply`, as all networks here.
    variables: its `params` and `batch_stats`; without `batch_stats`, it
      normalises with the batch's statistics.
  """

  module: nn.Module
  variables: dict


def from_supernet(
  experiment: experiment_lib.Experiment, workdir: pathlib.Path
) -> Teacher:
  """The super-net at its maximum widths.

  Raises:
    InputError: it has not been pre-trained.
  """
  params = pretrain.load(experiment, workdir)
  return Teacher(experiment.supernet, {"params": params})


def from_file(experiment: experiment_lib.Experiment) -> Teacher:
  """The float ResNet of `config.train.teacher`, PyTorch weights in a file.

  Raises:
    InputError: the file is missing or damaged, or holds another network.
  """
  config = experiment.config
  module = file_module(experiment)
  try:
    variables = interop.from_torch_state_dict(config.train.teacher, module)
  except errors.InputError as error:
    raise errors.InputError(f"config.train.teacher: {error}") from error
  return Teacher(module, variables)


def file_module(experiment: experiment_lib.Experiment) -> nn.Module:
  """The network that `from_file` returns; nothing is read."""
  config = experiment.config
  depth, classes = config.train.teacher_depth, experiment.splits.num_classes
  if config.network.family == "cifar":
    return counterparts.cifar_counterpart(depth, None, classes)
  return counterparts.imagenet_counterpart(depth, classes)
