"""What all stages share: data, network, width space, costs and budget."""

import dataclasses

import chex
from flax import linen as nn
import jax
import ml_collections
import numpy as np

from hawis_jax import config as config_lib
from hawis_jax import cost
from hawis_jax import crossbar
from hawis_jax import data
from hawis_jax import errors
from hawis_jax import resnet
from hawis_jax import robustness
from hawis_jax import widths

# Append only: a key is its use's place here.
KEY_USES = (
  "pretrain_init",
  "pretrain",
  "policy",
  "search",
  "finalists",
  "train_init",
  "robustness",
)


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A checked configuration and what follows from it.

  Attributes:
    config: as given.
    splits: train, validation and test data.
    space: width choices.
    geometry: of the network, for its cost.
    costs: int64 `[L, C, C]` of kind `config.space.cost`.
    budget: greatest cost of the found net.
    device: ideal device with the configured conductances and tiles.
    widths: of the named reference nets: baseline_1x and uniform.
  """

  config: ml_collections.ConfigDict
  splits: data.Splits
  space: widths.WidthSpace
  geometry: cost.Geometry
  costs: np.ndarray
  budget: float
  device: crossbar.Device
  widths: dict[str, tuple[int, ...]]

  def network(self, max_widths: tuple[int, ...]) -> nn.Module:
    """The network at given maximum widths."""
    return resnet.cifar_resnet(
      self.config.network.depth, max_widths, self.splits.num_classes
    )

  @property
  def supernet(self) -> nn.Module:
    """The network at the space's maximum widths."""
    return self.network(self.space.max_widths)

  def key(self, use: str) -> chex.PRNGKey:
    """The random key of one use; uses don't share a stream."""
    return jax.random.fold_in(
      jax.random.key(self.config.seed), KEY_USES.index(use)
    )

  def cost(self, net_widths: tuple[int, ...]) -> cost.Cost:
    """Exact cost of a width vector."""
    return cost.network_cost(np.array(net_widths, np.int64), self.geometry)

  def evaluation(
    self, source: data.Source, batch_size: int, limit: int | None = None
  ) -> robustness.Batches:
    """A source's first `limit` images in padded batches; None: all."""
    return robustness.Batches(
      **data.evaluation_batches(source, batch_size, limit)
    )


def prepare(config: ml_collections.ConfigDict) -> Experiment:
  """Loads the data and derives the rest; expects a validated config.

  Raises:
    InputError: the data can't be read, or the budget can't be met.
  """
  splits = data.load(config.data)
  _check_images(config, splits)
  num_layers = config.network.depth - 1
  space = config_lib.width_space(config)
  device = config_lib.device(config)
  geometry = cost.cifar_geometry(
    config.network.depth,
    splits.image_shape,
    config.data.levels,
    splits.num_classes,
    device.tile_shape,
  )
  costs = cost.pair_costs(space.table, geometry, config.space.cost)
  base = stage_widths(config.network.base_widths, num_layers)
  name, budget = "config.search.budget", config.search.budget
  if not budget:
    name = f"config.search.budget_uniform = {config.search.budget_uniform:g}"
    scaled = np.array(base) * config.search.budget_uniform
    budget = getattr(
      cost.network_cost(scaled.astype(np.int64), geometry), config.space.cost
    )
  cheapest, dearest = widths.cost_range(space, costs)
  if not cheapest <= budget <= dearest:
    raise errors.InputError(
      f"{name}: got {budget:g} {config.space.cost}, allowed by "
      f"config.space.choices is {cheapest} to {dearest}"
    )
  slack = config.search.budget_slack
  widths.feasible_set(space, costs, (1 - slack) * budget, budget, name)
  return Experiment(
    config=config,
    splits=splits,
    space=space,
    geometry=geometry,
    costs=costs,
    budget=float(budget),
    device=device,
    widths=dict(
      baseline_1x=base,
      uniform=widths.uniform_widths(space, base, costs, budget, slack),
    ),
  )


def _check_images(config, splits):
  """Raises InputError where a field asks for more images than there are."""
  for field, split in (
    ("pretrain.batch_size", "train"),
    ("search.images", "validation"),
    ("search.calibration_images", "train"),
    ("train.batch_size", "train"),
    ("robustness.calibration_images", "train"),
  ):
    section, name = field.split(".")
    most = len(getattr(splits, split))
    if config[section][name] > most:
      raise errors.InputError(
        f"config.{field}: got {config[section][name]}, allowed is at most "
        f"{most}, the {split} images of {splits.name}"
      )


def stage_widths(base: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
  """Spreads widths a stage over the layers; the stem has the first."""
  per_stage = num_layers // 3
  return (base[0],) + tuple(w for w in base for _ in range(per_stage))
