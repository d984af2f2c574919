"""What all stages share: data, network, width space, costs and budget."""

from collections.abc import Iterator, Sequence
import dataclasses

import chex
from flax import linen as nn
import jax
import ml_collections
import numpy as np

from hawis_jax import cost
from hawis_jax import crossbar
from hawis_jax import data
from hawis_jax import errors
from hawis_jax.config import settings
from hawis_jax.networks import layers
from hawis_jax.networks import net_names
from hawis_jax.networks import reference_resnet
from hawis_jax.networks import resnet
from hawis_jax.networks import width_vectors
from hawis_jax.robustness import monte_carlo
from hawis_jax.runtime import sharding

# Append only: a key is its use's place here.
KEY_USES = (
  "pretrain_init",
  "pretrain",
  "policy",
  "search",
  "candidates",
  "train_init",
  "robustness",
  "pretrain_chips",
  "train_chips",
  "design_chips",
  "selection",
  "selection_chips",
)

_READ_BATCH = 1024  # images that are read at a time


@dataclasses.dataclass(frozen=True, eq=False)  # compared and hashed by identity
class Experiment:
  """A checked configuration and what follows from it.

  Attributes:
    config: as given, with every net of `train.nets` named.
    splits: train, validation and test data.
    geometry: of the network, for its cost.
    device: ideal device with the configured conductances and tiles.
    widths: of the named width vectors, but for found ones.
    space: width choices; None, and what follows empty, without a search.
    costs: `[L, A, C, C]` of kind `config.space.cost`, see `cost.tables`, or of
      the user's own.
    budgets: greatest costs, ascending.
    main_budget: index of the found net's.
    limits: on other costs of every net searched.
    feasible: the width vectors within each budget and all limits.
    uniforms: the uniformly scaled net of each budget; None: there is none.
  """

  config: ml_collections.ConfigDict
  splits: data.Splits
  geometry: cost.Geometry
  device: crossbar.Device
  widths: dict[str, tuple[int, ...]]
  space: width_vectors.WidthSpace | None = None
  costs: np.ndarray | None = None
  budgets: tuple[float, ...] = ()
  main_budget: int = 0
  limits: tuple[cost.Limit, ...] = ()
  feasible: cost.FeasibleSet | None = None
  uniforms: tuple[tuple[int, ...] | None, ...] = ()

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

  def reference(
    self, max_widths: tuple[int, ...], bits: int | None
  ) -> nn.Module:
    """The float (`bits` None) or 8-bit network of the same widths."""
    network, classes = self.config.network, self.splits.num_classes
    quantized = dict(bits=bits, scales=self.config.train.int8_scales)
    if network.family == "cifar":
      return reference_resnet.cifar_reference(
        network.depth, max_widths, classes, **quantized
      )
    return reference_resnet.imagenet_reference(
      network.depth, classes, max_widths, **quantized
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

  def cost(self, net_widths: chex.Array | tuple[int, ...]) -> cost.Cost:
    """Exact cost of width vectors `[..., L]`."""
    return cost.network_cost(np.array(net_widths, np.int64), self.geometry)

  def exact_costs(self, net_widths: tuple[int, ...]) -> dict[str, float]:
    """All costs of one width vector of the space, by name."""
    found = self.cost(net_widths)._asdict()
    if self.config.space.cost not in cost.KINDS:
      choices = self.space.choices_of(np.array(net_widths))
      found[cost.OWN] = cost.vector_cost(self.costs, choices)
    return {name: np.asarray(value).item() for name, value in found.items()}

  def train_batches(
    self, source: data.Source, batch_size: int, start_step: int
  ) -> Iterator[dict[str, jax.Array]]:
    """Batches of a training stage from `start_step` on, over all devices.

    Each process reads the rows of its own devices.
    """
    shares = data.train_batches(
      source,
      seed=self.config.seed,
      batch_size=batch_size,
      augment=self.config.data.augment,
      start_step=start_step,
      read_threads=self.config.data.read_threads,
      shard=(jax.process_index(), jax.process_count()),
    )
    mesh = sharding.training_mesh()
    return (sharding.batch(rows, mesh) for rows in shares)

  def evaluation(
    self, source: data.Source, batch_size: int, limit: int | None = None
  ) -> monte_carlo.Batches:
    """A source's first `limit` images in padded batches; None: all."""
    return monte_carlo.Batches(
      **data.evaluation_batches(source, batch_size, limit)
    )

  def unpadded(
    self, source: data.Source, limit: int | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 `[N, H, W, C]`, labels `[N]`), the first `limit`."""
    count = min(limit or len(source), len(source))
    images = np.empty((count, *self.splits.image_shape), np.uint8)
    labels = np.empty(count, np.int32)
    done = 0
    # Never twice in memory: an ImageNet's test set is 7.5 GB.
    for batch in data.evaluation_stream(source, _READ_BATCH, count):
      real = batch["mask"]
      part = slice(done, done + int(real.sum()))
      images[part], labels[part] = batch["image"][real], batch["label"][real]
      done = part.stop
    return images, labels

  def evaluation_stream(
    self, source: data.Source, batch_size: int, limit: int | None = None
  ) -> Iterator[monte_carlo.Batches]:
    """The batches of `evaluation`, one after the other, not all in memory."""
    for batch in data.evaluation_stream(source, batch_size, limit):
      yield monte_carlo.Batches(**batch)


def prepare(config: ml_collections.ConfigDict) -> Experiment:
  """Loads the data and derives the rest; expects a validated config.

  Raises:
    InputError: the data can't be read, or the budget can't be met.
  """
  check_batches(config, jax.device_count())
  splits = data.load(config.data)
  _check_images(config, splits)
  return with_splits(config, splits)


def prepare_trained(
  config: ml_collections.ConfigDict, trained: ml_collections.ConfigDict
) -> Experiment:
  """`prepare` of a configuration that measures the nets of another run.

  Widths, budgets and what else the nets are follow from `trained`, that run's
  configuration; device and circuits from `config`.

  Raises:
    InputError: the data can't be read.
  """
  splits = data.load(config.data)
  _check_images(config, splits)
  config = config.copy_and_resolve_references()
  config.train.nets = settings.nets(config)
  return dataclasses.replace(
    with_splits(trained, splits),
    config=config,
    device=settings.device(config),
    geometry=_geometry(config, splits, settings.hardware(config)),
  )


def with_splits(
  config: ml_collections.ConfigDict, splits: data.Splits
) -> Experiment:
  """`prepare` without the data's part.

  Raises:
    InputError: the budget can't be met.
  """
  config = config.copy_and_resolve_references()
  config.train.nets = settings.nets(config)
  device = settings.device(config)
  geometry = _geometry(config, splits, settings.hardware(config))
  num_layers = config.network.depth - 1
  base = tuple(config.network.base_widths)
  experiment = Experiment(
    config=config,
    splits=splits,
    geometry=geometry,
    device=device,
    widths={
      **width_vectors.PRESETS,
      net_names.BASELINE: width_vectors.spread(base, num_layers),
    },
  )
  if not settings.searches(config):
    return experiment
  return _with_search(experiment)


def _geometry(config, splits, hardware):
  network, levels = config.network, config.data.levels
  if network.family == "cifar":
    return cost.cifar_geometry(
      network.depth, splits.image_shape, levels, splits.num_classes, hardware
    )
  return cost.imagenet_geometry(
    network.stem, splits.image_shape[0], levels, splits.num_classes, hardware
  )


def _with_search(experiment):
  """Adds the width space, its budgets and limits."""
  config, geometry = experiment.config, experiment.geometry
  search, kind = config.search, config.space.cost
  space = settings.width_space(config)
  costs = settings.own_costs(config)
  if costs is None:
    costs = cost.tables(space.table, geometry, kind)
  experiment = dataclasses.replace(experiment, space=space, costs=costs)
  main = _main_budget(experiment)
  shares = settings.shares(config)
  experiment = dataclasses.replace(
    experiment,
    budgets=tuple(float(share * main) for share in shares),
    main_budget=shares.index(1.0),
    limits=tuple(
      cost.Limit(
        cost.tables(space.table, geometry, limited),
        _amount(experiment, limited, most, "config.search.limits"),
        limited == "interval",
        limited,
      )
      for limited, most in search.limits
    ),
  )
  for budget in experiment.budgets:
    _check_budget(experiment, budget)
  slack = search.budget_slack
  feasible = cost.feasible_set(
    space,
    costs,
    [((1 - slack) * budget, budget) for budget in experiment.budgets],
    experiment.limits,
    "config.search.budget",
    "config.search.limits",
  )
  uniforms = [_uniform(experiment, budget) for budget in experiment.budgets]
  named = dict(experiment.widths)
  wanted = {net_names.parse(net).widths for net in config.train.nets}
  for share, widths in zip(shares, uniforms, strict=True):
    name = net_names.at_share("uniform", share)
    if widths:
      named[name] = widths
    elif name in wanted:
      raise errors.InputError(
        f"config.train.nets: got {name}, but no uniformly scaled net is within "
        f"{share:g} x config.search.budget and limits; leave it out, or allow "
        "more"
      )
  return dataclasses.replace(
    experiment, feasible=feasible, uniforms=tuple(uniforms), widths=named
  )


def _main_budget(experiment):
  """`config.search.budget`, in the unit of `config.space.cost`."""
  config = experiment.config
  search, kind = config.search, config.space.cost
  if search.budget:
    return search.budget
  if search.budget_of:
    name = "config.search.budget_of"
    return _amount(experiment, kind, search.budget_of, name)
  base = np.array(experiment.widths[net_names.BASELINE])
  scaled = (base * search.budget_uniform).astype(np.int64)
  name = f"config.search.budget_uniform = {search.budget_uniform:g}"
  return _of_kind(experiment, kind, scaled, f"{name}, base_widths times it")


def _amount(experiment, kind, amount, name):
  """A number as it is; or what the net of a named width vector costs."""
  if not isinstance(amount, str):
    return amount
  vector, layers = (
    experiment.widths.get(amount),
    experiment.config.network.depth,
  )
  if vector is None or len(vector) != layers - 1:
    names = [n for n, v in experiment.widths.items() if len(v) == layers - 1]
    raise errors.InputError(
      f"{name}: got {amount!r}, allowed are numbers and {', '.join(names)}"
    )
  return _of_kind(experiment, kind, vector, name)


def _of_kind(experiment, kind, vector, name):
  """What a vector costs; own costs are known of the space's widths alone."""
  if kind in cost.KINDS:
    return cost.KINDS[kind].of(experiment.cost(vector))
  choices = experiment.space.choices_of(experiment.space.check(vector, name))
  return cost.vector_cost(experiment.costs, choices).item()


def _check_budget(experiment, budget):
  kind, search = experiment.config.space.cost, experiment.config.search
  cheapest, dearest = cost.cost_range(experiment.space, experiment.costs)
  # Sums in another order may differ in their last bits.
  if cheapest * (1 - 1e-9) <= budget <= dearest * (1 + 1e-9):
    return
  name = "config.search.budget"
  if search.budget_of:
    name = f"config.search.budget_of = {search.budget_of}"
  elif not search.budget:
    name = f"config.search.budget_uniform = {search.budget_uniform:g}"
  if budget != experiment.budgets[experiment.main_budget]:
    name = f"config.search.front = {search.front}"
  raise errors.InputError(
    f"{name}: got {f'{budget:g} {cost.unit(kind)}'.strip()}, allowed by "
    f"config.space.choices is {cheapest:g} to {dearest:g}"
  )


def _uniform(experiment, budget):
  """The uniformly scaled net within a budget and all limits; None: none is."""
  space = experiment.space

  def net_cost(widths):
    choices = space.choices_of(np.array(widths))
    for limit in experiment.limits:
      measure = cost.vector_cost
      if limit.slowest:
        measure = cost.slowest_entry
      if measure(limit.costs, choices) > limit.most:
        return np.inf
    return cost.vector_cost(experiment.costs, choices)

  return width_vectors.uniform_widths(
    space,
    experiment.widths[net_names.BASELINE],
    net_cost,
    budget,
    experiment.config.search.budget_slack,
  )


def check_batches(
  config: ml_collections.ConfigDict,
  devices: int,
  stages: Sequence[str] = ("train", "pretrain"),
) -> None:
  """Checks that batches can be split evenly over all devices.

  Args:
    config: of the run.
    devices: their number.
    stages: whose batches.

  Raises:
    InputError: names the field.
  """
  parts = config.train.microbatches
  if settings.trains_on_chips(config):
    parts *= config.hardware_aware.chips
  sizes = {"train": (config.train.batch_size, parts)}
  if settings.searches(config):
    sizes["pretrain"] = (config.pretrain.batch_size, 1)
  for stage, (size, parts) in sizes.items():
    if stage not in stages:
      continue
    if size % (devices * parts):
      by = f"{devices}, the number of devices"
      if parts > 1:
        by = f"{devices * parts}, devices times train.microbatches"
        if parts != config.train.microbatches:
          by += " times hardware_aware.chips"
      raise errors.InputError(
        f"config.{stage}.batch_size: got {size}, allowed are multiples of {by}"
      )


def _check_images(config, splits):
  """Raises InputError where a field asks for more images than there are."""
  needs = [
    ("train.batch_size", "train"),
    ("robustness.images", "test"),
  ]
  calibrating = config.robustness.batch_norm != ("fixed",)
  calibrating |= settings.trains_on_chips(config)
  calibrating |= any(
    severity.device.adc_bits and severity.device.adc_range == "calibrated"
    for scenario in settings.sweeps(config)
    for severity in scenario.severities
  )
  if calibrating or config.train.int8 == "quantized":
    needs.append(("robustness.calibration_images", "train"))
  if settings.searches(config):
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
