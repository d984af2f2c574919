"""What all stages share: data, network, width space, costs and budget."""

from collections.abc import Iterator
import dataclasses

import chex
from flax import linen as nn
import jax
import ml_collections
import numpy as np

from hawis_jax import config as config_lib
from hawis_jax import cost
from hawis_jax import counterparts
from hawis_jax import crossbar
from hawis_jax import data
from hawis_jax import errors
from hawis_jax import layers
from hawis_jax import nets
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
  "pretrain_chips",
)


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A checked configuration and what follows from it.

  Attributes:
    config: as given.
    splits: train, validation and test data.
    geometry: of the network, for its cost.
    device: ideal device with the configured conductances and tiles.
    widths: of the named width vectors, but for the found one.
    space: width choices; None, like the next two, without a search.
    costs: int64 `[L, C, C]` of kind `config.space.cost`.
    budget: greatest cost of the found net.
  """

  config: ml_collections.ConfigDict
  splits: data.Splits
  geometry: cost.Geometry
  device: crossbar.Device
  widths: dict[str, tuple[int, ...]]
  space: widths.WidthSpace | None = None
  costs: np.ndarray | None = None
  budget: float | None = None

  def network(self, max_widths: tuple[int, ...]) -> nn.Module:
    """The binary network at given maximum widths."""
    network, classes = self.config.network, self.splits.num_classes
    levels = self.config.data.levels
    options = layers.Options(
      channel_scale=network.channel_scale,
      rprelu=network.rprelu,
      learned_thresholds=network.learned_thresholds,
      compute=network.compute,
    )
    if network.family == "cifar":
      return resnet.cifar_resnet(
        network.depth, max_widths, classes, levels=levels, options=options
      )
    return resnet.imagenet_resnet18(
      max_widths,
      classes,
      network.stem,
      image_size=self.splits.image_shape[0],
      levels=levels,
      options=options,
    )

  def counterpart(
    self, max_widths: tuple[int, ...], bits: int | None
  ) -> nn.Module:
    """The float (`bits` None) or 8-bit network of the same widths."""
    network, classes = self.config.network, self.splits.num_classes
    if network.family == "cifar":
      return counterparts.cifar_counterpart(
        network.depth, max_widths, classes, bits=bits
      )
    return counterparts.imagenet_counterpart(
      network.depth, classes, max_widths, bits=bits
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

  def train_batches(
    self, source: data.Source, batch_size: int, start_step: int
  ) -> Iterator[dict[str, np.ndarray]]:
    """Batches of a training stage from `start_step` on."""
    return data.train_batches(
      source,
      seed=self.config.seed,
      batch_size=batch_size,
      augment=self.config.data.augment,
      start_step=start_step,
      read_threads=self.config.data.read_threads,
    )

  def evaluation(
    self, source: data.Source, batch_size: int, limit: int | None = None
  ) -> robustness.Batches:
    """A source's first `limit` images in padded batches; None: all."""
    return robustness.Batches(
      **data.evaluation_batches(source, batch_size, limit)
    )

  def unpadded(
    self, source: data.Source, limit: int | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 `[N, H, W, C]`, labels `[N]`), the first `limit`."""
    count = min(limit or len(source), len(source))
    return robustness.unpadded(self.evaluation(source, count, count))

  def evaluation_stream(
    self, source: data.Source, batch_size: int, limit: int | None = None
  ) -> Iterator[robustness.Batches]:
    """The batches of `evaluation`, one after the other, not all in memory."""
    for batch in data.evaluation_stream(source, batch_size, limit):
      yield robustness.Batches(**batch)


def prepare(config: ml_collections.ConfigDict) -> Experiment:
  """Loads the data and derives the rest; expects a validated config.

  Raises:
    InputError: the data can't be read, or the budget can't be met.
  """
  splits = data.load(config.data)
  _check_images(config, splits)
  device = config_lib.device(config)
  geometry = _geometry(config, splits, device.tile_shape)
  num_layers = config.network.depth - 1
  base = tuple(config.network.base_widths)
  experiment = Experiment(
    config=config,
    splits=splits,
    geometry=geometry,
    device=device,
    widths={**widths.PRESETS, nets.BASELINE: widths.spread(base, num_layers)},
  )
  if not config_lib.searches(config):
    return experiment
  return _with_search(experiment)


def _geometry(config, splits, tile_shape):
  network, levels = config.network, config.data.levels
  if network.family == "cifar":
    return cost.cifar_geometry(
      network.depth, splits.image_shape, levels, splits.num_classes, tile_shape
    )
  return cost.imagenet_geometry(
    network.stem, splits.image_shape[0], levels, splits.num_classes, tile_shape
  )


def _with_search(experiment):
  """Adds the width space and its budget."""
  config, geometry = experiment.config, experiment.geometry
  base = np.array(experiment.widths[nets.BASELINE])
  space = config_lib.width_space(config)
  costs = cost.pair_costs(space.table, geometry, config.space.cost)
  name, budget = "config.search.budget", config.search.budget
  if not budget:
    name = f"config.search.budget_uniform = {config.search.budget_uniform:g}"
    scaled = (base * config.search.budget_uniform).astype(np.int64)
    budget = getattr(cost.network_cost(scaled, geometry), config.space.cost)
  cheapest, dearest = widths.cost_range(space, costs)
  if not cheapest <= budget <= dearest:
    raise errors.InputError(
      f"{name}: got {budget:g} {config.space.cost}, allowed by "
      f"config.space.choices is {cheapest} to {dearest}"
    )
  slack = config.search.budget_slack
  widths.feasible_set(space, costs, (1 - slack) * budget, budget, name)
  uniform = widths.uniform_widths(space, base, costs, budget, slack)
  return dataclasses.replace(
    experiment,
    space=space,
    costs=costs,
    budget=float(budget),
    widths={**experiment.widths, "uniform": uniform},
  )


def _check_images(config, splits):
  """Raises InputError where a field asks for more images than there are."""
  needs = [
    ("train.batch_size", "train"),
    ("robustness.images", "test"),
  ]
  calibrating = config.robustness.batch_norm == "chip"
  if calibrating or config.train.int8 == "quantized":
    needs.append(("robustness.calibration_images", "train"))
  if config_lib.searches(config):
    needs += [
      ("pretrain.batch_size", "train"),
      ("search.images", "validation"),
      ("search.calibration_images", "train"),
    ]
  for field, split in needs:
    section, name = field.split(".")
    most = len(getattr(splits, split))
    if config[section][name] > most:
      raise errors.InputError(
        f"config.{field}: got {config[section][name]}, allowed is at most "
        f"{most}, the {split} images of {splits.name}"
      )
