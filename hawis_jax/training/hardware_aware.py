"""Training on chips: every step draws new ones (docs/robust_nets.md).

A net that is trained on chips works on chips that it has never met (Joshi et
al., Nature Communications 2020; of binary nets Hirtzlin et al., AICAS 2019, and
Buschjaeger et al., arXiv:2002.00909). A step divides its batch over K chips, so
that its gradient is a mean over chips at the price of one batch. It passes
straight through all defects to the latent weight, that of a stuck cell too:
another chip will need it.

Axes: K chips, N batches, B images.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hawis_jax import backend
from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax.networks import any_flax
from hawis_jax.networks import net_variables
from hawis_jax.runtime import sharding
from hawis_jax.training import optimization

# A float net's chips hold integers of its weights: what else is analog.
_FLOAT_BITS = 8


@dataclasses.dataclass(frozen=True)
class Settings:
  """Which chips a step draws, and what it learns of them."""

  devices: tuple[crossbar.Device, ...]  # of the scenarios; see `crossbar.stack`
  chips: int = 1  # K
  # A chip has a share of its device's severities, uniform from 0 to this.
  most_severity: float = 1.0
  # Shares of all steps: up to the first there are no defects, and from there
  # `most_severity` is reached in a line at the second.
  ramp: tuple[float, float] = (0.0, 0.0)
  worst: float = 1.0  # share of the K chips, of the largest losses, that counts

  @property
  def counted(self) -> int:
    """Chips of a step whose losses count."""
    # 0.28 of 25 chips are 7, though as floats their product is above it.
    return max(1, math.ceil(self.worst * self.chips - 1e-9))

  def most_at(self, progress: chex.Numeric) -> chex.Numeric:
    """Returns the largest share of severities at a share of all steps."""
    start, end = self.ramp
    if not end:
      return self.most_severity
    risen = (progress - start) / max(end - start, 1e-6)
    return self.most_severity * jnp.clip(risen, 0, 1)


def program(
  key: chex.PRNGKey,
  variables: dict,
  module: nn.Module,
  settings: Settings,
  most: chex.Numeric,
  images: int,
) -> dict:
  """Returns a net's variables on a new chip, to be trained.

  Args:
    key: consumed.
    variables: at least `params`.
    module: the net.
    settings: its devices are of equal probability.
    most: of `Settings.most_at`.
    images: that the chip will read, B: each has noise of its own.
  """
  choice_key, share_key, chip_key = jax.random.split(key, 3)
  devices, share = settings.devices, most * jax.random.uniform(share_key)
  scales = getattr(module, "weight_scales", "channel")
  bits = _FLOAT_BITS if module.weight_bits is None else module.weight_bits
  held = any_flax.kernels(module, variables["params"])

  def on(device):
    return crossbar.program(
      chip_key,
      {"params": held},
      crossbar.scaled(device, share),
      bits,
      scales=scales,
      straight_through=True,
    )["crossbar"]

  choice = jax.random.randint(choice_key, (), 0, len(devices))
  is_alike = not any(map(crossbar.needs_tiles, devices))
  if backend.platform() == "cpu" and is_alike:
    # A branch draws its own device's effects alone.
    chip = jax.lax.switch(choice, [functools.partial(on, d) for d in devices])
  else:
    chip = on(jax.tree.map(lambda x: x[choice], crossbar.stack(devices)))
  if module.weight_bits is None:
    params = variables["params"]
    chip = net_variables.in_units(chip, params, bits, scales)
  net = {**variables, "crossbar": chip}
  return crossbar.for_images(net, jnp.arange(images))


def loss_on_chips(
  loss_function: Callable[[dict, Any], tuple[chex.Array, Any]],
  key: chex.PRNGKey,
  variables: dict,
  batch: chex.ArrayTree,
  module: nn.Module,
  settings: Settings,
  most: chex.Numeric,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[chex.Array, Any]:
  """Returns (loss, mean of the rest) of a batch divided over K new chips.

  Args:
    loss_function: (variables, part of the batch) -> (loss, rest).
    key: consumed.
    variables: of the net.
    batch: arrays `[B, ...]`, in any structure, B a multiple of K.
    module: the net.
    settings: of the chips.
    most: of `Settings.most_at`.
    mesh: whose devices take part in each chip's images; None: one device.
  """
  num = settings.chips
  size = len(jax.tree.leaves(batch)[0]) // num

  def one(key, part):
    net = program(key, variables, module, settings, most, size)
    return loss_function(net, part)

  keys = jax.random.split(key, num)
  parts = jax.tree.map(lambda x: x.reshape(num, size, *x.shape[1:]), batch)
  if mesh is not None:
    where = sharding.on_data(mesh, axis=1)
    parts = jax.lax.with_sharding_constraint(parts, where)
  if backend.platform() == "cpu":
    # Vmapped, convolutions would be grouped ones, which are slow there.
    take = lambda k: jax.tree.map(lambda x: x[k], (keys, parts))  # noqa: E731
    found = [one(*take(k)) for k in range(num)]
    losses, rest = jax.tree.map(lambda *x: jnp.stack(x), *found)
  else:
    losses, rest = jax.vmap(one)(keys, parts)
  worst = jnp.sort(losses)[-settings.counted :]
  return worst.mean(), jax.tree.map(lambda x: x.mean(0), rest)


def train_on_chips(
  loss_fn: Callable[[dict, Any], Any],
  net: nn.Module | any_flax.AnyFlax,
  device: crossbar.Device | Sequence[crossbar.Device],
  num_chips: int = 1,
  *,
  most_severity: float = 1.0,
  worst: float = 1.0,
  has_aux: bool = False,
) -> Callable[[dict, chex.PRNGKey, Any], Any]:
  """Returns `loss_fn` on chips, for a training loop of one's own.

  The result maps (variables, key, batch) to a loss. It draws `num_chips` new
  chips by the key and divides the batch between them; the loss is the mean over
  them. Its gradient passes straight through rounding, signs and all defects to
  the kernels, those of stuck cells too, which another chip will need (Joshi et
  al., Nature Communications 2020; docs/robust_nets.md). It is pure: jit it, or
  differentiate it as any loss. The same arguments give the same loss.

  >>> import hawis_jax as hx, jax, numpy as np, optax
  >>> from flax import linen as nn
  >>> mlp = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(3)])
  >>> net = hx.any_flax(mlp, weights="binary")
  >>> x, y = np.random.default_rng(0).normal(size=(60, 8)), np.arange(60) % 3
  >>> variables, optimizer = mlp.init(jax.random.key(0), x), optax.adam(1e-3)
  >>> def loss_fn(variables, batch):
  ...   logits = net.apply(variables, batch[0], train=True)
  ...   labels = batch[1]
  ...   loss = optax.softmax_cross_entropy_with_integer_labels
  ...   return loss(logits, labels).mean()
  >>> device = hx.Device(stuck_off=0.1, variation=0.3)
  >>> loss = hx.train_on_chips(loss_fn, net, device, num_chips=4)
  >>> @jax.jit
  ... def step(variables, state, key, batch):
  ...   value, grads = jax.value_and_grad(loss)(variables, key, batch)
  ...   updates, state = optimizer.update(grads, state)
  ...   return optax.apply_updates(variables, updates), state, value
  >>> state, key = optimizer.init(variables), jax.random.key(1)
  >>> for i in range(3):
  ...   new_chips = jax.random.fold_in(key, i)
  ...   variables, state, value = step(variables, state, new_chips, (x, y))
  >>> bool(np.isfinite(value))
  True

  Args:
    loss_fn: (variables, part of the batch) -> loss, a scalar. The variables are
      those given, and the chip; it passes them to `net.apply`.
    net: of `hx.any_flax`, or one of ours.
    device: of the chips; of several, each chip draws one.
    num_chips: K, of a step.
    most_severity: a chip has a share of its device's severities, uniform from
      0 to this: a net that meets all is good on all (docs/robust_nets.md).
    worst: share of the K chips, of the largest losses, that counts.
    has_aux: `loss_fn` returns (loss, rest), as of `jax.value_and_grad`, and so
      does the result: the mean of the rest over chips, e.g. new `batch_stats`.

  Raises:
    InputError: a bad argument; a device that can't be trained on. When it is
      called: a batch that K does not divide; a layer that chips hold and
      `loss_fn` never reads.
  """
  any_flax.check_net(net)
  several = isinstance(device, tuple | list)
  devices = tuple(device) if several else (device,)
  is_own = isinstance(net, any_flax.AnyFlax)
  for one in devices:
    _check_device(one)
    if is_own:
      any_flax.check_device(one)
  if not devices:
    raise errors.InputError("device: got none, needed is at least one")
  crossbar.check_stack(devices)
  if type(num_chips) is not int or num_chips < 1:
    raise errors.InputError(
      f"num_chips: got {num_chips!r}, allowed is a whole number of at least 1"
    )
  for name, value, most in (
    ("most_severity", most_severity, math.inf),
    ("worst", worst, 1),
  ):
    is_finite = isinstance(value, int | float) and math.isfinite(value)
    if not is_finite or not 0 < value <= most:
      raise errors.InputError(
        f"{name}: got {value!r}, allowed is a finite number above 0"
        + f", up to {most}" * math.isfinite(most)
      )
  for one in devices:  # under jit the severities drawn can't be checked
    try:
      crossbar.validate(crossbar.scaled(one, most_severity))
    except errors.InputError as error:
      raise errors.InputError(
        f"most_severity: got {most_severity!r}, at which a device is none: "
        f"{error}"
      ) from error
  settings = Settings(devices, num_chips, float(most_severity), worst=worst)

  def of_part(variables, part):
    found = loss_fn(variables, part)
    return found if has_aux else (found, ())

  @functools.cache
  def check(structure, shapes):
    """Checks what `loss_fn` reads, once for a shape of the batch."""
    variables, key, part = jax.tree.unflatten(structure, shapes)
    if is_own:  # which layers it calls
      jax.eval_shape(of_part, variables, part)
      if not net.was_called(variables["params"]):
        raise errors.InputError(
          "loss_fn: got one that never calls the apply of net, needed is "
          "net.apply(variables, ...) of hx.any_flax in it, not the module's own"
        )
    chip = jax.eval_shape(
      lambda key, variables: program(key, variables, net, settings, 1.0, 1),
      key,
      variables,
    )["crossbar"]
    reading = variables, chip, part
    traced = jax.jit(
      lambda variables, chip, part: of_part(
        {**variables, "crossbar": chip}, part
      )
    ).trace(*reading)
    if jax.tree.map(jnp.shape, traced.out_info[0]) != ():
      raise errors.InputError(
        "loss_fn: got a loss that is no scalar, needed is one; with "
        "has_aux=True (loss, rest)"
      )
    used = backend.used_inputs(traced, reading, lambda out: out[0])
    net_variables.check_read(used[1])

  def loss(variables, key, batch):
    if not isinstance(variables, Mapping) or "params" not in variables:
      raise errors.InputError(
        "variables: got no params, needed are (variables, key, batch) with the "
        "net's params in the variables"
      )
    key = backend.typed_key(key)
    sizes = {sum(np.shape(leaf)[:1]) for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or min(sizes) % num_chips or not min(sizes):
      raise errors.InputError(
        f"batch: got arrays of lengths {', '.join(map(str, sorted(sizes)))}, "
        f"needed is one length, a multiple of num_chips = {num_chips}"
      )
    size = min(sizes) // num_chips
    part = jax.tree.map(lambda x: x[:size], batch)
    leaves, structure = jax.tree.flatten((variables, key, part))
    check(structure, tuple(jax.typeof(leaf) for leaf in leaves))
    value, rest = loss_on_chips(
      of_part, key, variables, batch, net, settings, most_severity
    )
    return (value, rest) if has_aux else value

  return loss


def design_statistics(
  key: chex.PRNGKey,
  module: nn.Module,
  variables: dict,
  images: chex.Array,
  settings: Settings,
  num_chips: int,
  widths: chex.Array | None = None,
) -> dict:
  """Returns `batch_stats` that are the mean over many chips of those of each.

  Args:
    key: consumed.
    module: the net.
    variables: its `params`.
    images: calibration batches `[N, B, H, W, C]`, as for `encode`.
    settings: of the chips.
    num_chips: over which the mean is.
    widths: int `[L]`, of a super-net; None: all of the net.
  """

  def one(key):
    net = program(key, variables, module, settings, settings.most_severity, 1)
    return net_variables.recalibrate(module, net, images, widths)

  found = jax.lax.map(one, jax.random.split(key, num_chips))
  return jax.tree.map(lambda x: x.mean(0), found)


_CALIBRATION_BATCHES = 4  # of the statistics of a retrained net


def retrain_for_chip(
  key: chex.PRNGKey,
  module: nn.Module,
  variables: dict,
  images: np.ndarray,
  labels: np.ndarray,
  device: crossbar.Device,
  *,
  faults: Mapping[str, chex.Array] | None = None,
  placement: crossbar.Placement | None = None,
  steps: int = 50,
  batch_size: int = 64,
  learning_rate: float = 1e-3,
  margin: float = 0.0,
  seed: int = 0,
) -> dict:
  """Returns a trained net's variables, trained on for one known chip.

  Every step trains on the same chip, by Adam with a cosine schedule: weights
  whose cells work learn to make up for those whose cells do not. Weights of
  dead cells have a gradient like the others, and hold nothing that they learn.
  At the end statistics are measured on the chip, with the first images.

  >>> import hawis_jax as hx, jax, numpy as np
  >>> net = hx.cifar_resnet(8, (4, 4, 4, 6, 6, 8, 8), num_classes=10, levels=8)
  >>> variables = hx.init_variables(net, jax.random.key(0), (8, 8, 1))
  >>> images, labels = np.zeros((8, 8, 8, 1), np.uint8), np.arange(8)
  >>> data, chip = (images, labels), (jax.random.key(7), net, variables)
  >>> device = hx.Device(stuck_off=0.1)
  >>> known = hx.retrain_for_chip(*chip, *data, device)  # doctest: +SKIP

  Args:
    key: of the chip, as of `crossbar.program`.
    module: the net, of 1-bit or 8-bit weights.
    variables: its `params`, and all else that `crossbar.program` needs.
    images: of training, uint8 `[N, H, W, C]`; they stay on the host.
    labels: int `[N]`.
    device: with what is known of the chip alone: write-verify finds stuck cells
      and dead lines, but what cells vary by changes with the next programming.
    faults: measured ones, as of `crossbar.program`.
    placement: of the weights, from `crossbar.place`; None: as they come.
    steps: of the optimiser.
    batch_size: B [images].
    learning_rate: at first.
    margin: of `optimization.margin_loss`, for a binary net that was trained by
      it; 0, and of other nets: cross-entropy.
    seed: of the order of the images.

  Raises:
    InputError: a bad argument; a net that the device can't hold.
  """
  errors.check_key(key)
  images, labels = np.asarray(images), np.asarray(labels)
  errors.check_images(images, labels, module.num_classes)
  for name, value, most in (
    ("steps", steps, math.inf),
    ("batch_size", batch_size, len(images)),
  ):
    is_whole = isinstance(value, int | np.integer)
    if not is_whole or isinstance(value, bool) or not 1 <= value <= most:
      raise errors.InputError(
        f"{name}: got {value!r}, allowed is a whole number from 1"
        + f" to {most}, the images" * math.isfinite(most)
      )
  for name, value, least in (
    ("learning_rate", learning_rate, 0),
    ("margin", margin, 0),
  ):
    if not isinstance(value, int | float) or not least <= value < math.inf:
      raise errors.InputError(
        f"{name}: got {value!r}, allowed is a finite number of at least {least}"
      )
  if isinstance(module, any_flax.AnyFlax):
    raise errors.InputError(
      "module: got a net of any_flax, needed is one of ours: train yours in a "
      "loop of your own, with hx.train_on_chips"
    )
  _check_device(device)
  loss = margin if module.weight_bits == 1 else 0
  # Severities are inputs, so that all chips of a device have one program.
  chip = key, jax.tree.map(np.float32, device), faults, placement
  optimizer = _Retraining(float(learning_rate), int(steps), float(loss))
  state = _start(variables["params"], optimizer)
  others = {k: v for k, v in variables.items() if k != "params"}
  order = np.random.default_rng(seed)
  epoch = np.empty(0, np.int64)
  for _ in range(steps):
    if len(epoch) < batch_size:
      epoch = order.permutation(len(images))
    rows, epoch = np.split(epoch, [batch_size])
    batch = images[rows], labels[rows]
    state = _retrain_step(state, others, chip, batch, module, optimizer)
  count = min(_CALIBRATION_BATCHES, len(images) // batch_size)
  first = images[: count * batch_size].reshape(
    count, batch_size, *images.shape[1:]
  )
  params = state[0]
  found = _on_chip_statistics({**others, "params": params}, chip, first, module)
  return {**variables, "params": params, "batch_stats": found}


def _check_device(device):
  crossbar.validate(device)
  if device.adc_bits == 1:
    raise errors.InputError(
      "adc_bits: got 1, a sense amplifier, allowed in training on a chip are 0 "
      "and 2 to 16: its threshold is of a net that is trained"
    )


@dataclasses.dataclass(frozen=True)
class _Retraining:
  """What a retraining is compiled for."""

  learning_rate: float
  steps: int
  margin: float

  @property
  def rule(self):
    return optax.adam(
      optax.cosine_decay_schedule(self.learning_rate, self.steps)
    )


@functools.partial(jax.jit, static_argnums=1)
def _start(params, optimizer):
  return params, optimizer.rule.init(params)


def _programmed(variables, chip, module, images):
  key, device, faults, placement = chip
  net = crossbar.program(
    key,
    variables,
    device,
    module.weight_bits,
    faults=faults,
    scales=getattr(module, "weight_scales", None),
    straight_through=True,
    placement=placement,
  )
  return crossbar.for_images(net, jnp.arange(images))


@functools.partial(jax.jit, static_argnums=(4, 5))
def _retrain_step(state, others, chip, batch, module, optimizer):
  images, labels = batch

  def loss_of(params):
    net = _programmed({**others, "params": params}, chip, module, len(labels))
    logits, _ = module.apply(
      net, module.encode(images), train=True, mutable=["batch_stats"]
    )
    if optimizer.margin:
      return optimization.margin_loss(logits, labels, optimizer.margin)
    return optimization.cross_entropy(logits, labels)

  params, moments = state
  updates, moments = optimizer.rule.update(jax.grad(loss_of)(params), moments)
  return optax.apply_updates(params, updates), moments


@functools.partial(jax.jit, static_argnums=3)
def _on_chip_statistics(variables, chip, images, module):
  net = _programmed(variables, chip, module, 1)
  return net_variables.recalibrate(module, net, images)
