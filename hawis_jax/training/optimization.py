"""What the training stages share: their state, optimiser and losses."""

import dataclasses

import chex
import flax
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import optax

from hawis_jax.networks import net_variables
from hawis_jax.runtime import sharding


@flax.struct.dataclass
class TrainState:
  """What a training step changes."""

  params: chex.ArrayTree
  batch_stats: chex.ArrayTree  # BN running averages
  opt_state: chex.ArrayTree
  average: chex.ArrayTree = ()  # of `params` and `batch_stats`; (): none

  @property
  def variables(self) -> dict:
    """What the net is evaluated with: the averages, where there are any."""
    params, batch_stats = self.average or (self.params, self.batch_stats)
    return {"params": params, "batch_stats": batch_stats}


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
  """An optimiser."""

  name: str = "sgd"  # or "adam"
  learning_rate: float = 0.1  # at its greatest
  schedule: str = "cosine"  # "multistep" or "constant"
  # Shares of the steps at which "multistep" drops tenfold.
  milestones: tuple[float, ...] = (0.5, 0.65, 0.8)
  momentum: float = 0.9  # of "sgd"
  weight_decay: float = 0.0  # L2, added to the gradient


def init_state(
  module: nn.Module,
  key: chex.PRNGKey,
  image_shape: tuple[int, int, int],
  optimizer: optax.GradientTransformation,
  averaging: bool = False,
) -> TrainState:
  """Returns the state before step 0 of a network for images of a shape."""
  return make_init(module, image_shape, optimizer, averaging)(key)


def make_init(
  module: nn.Module,
  image_shape: tuple[int, int, int],
  optimizer: optax.GradientTransformation,
  averaging: bool = False,
  mesh: jax.sharding.Mesh | None = None,
):
  """Returns a jitted function, key -> the state before step 0.

  Images are (H, W, C). On a mesh the state is made where it stays, see
  `sharding.split`: the whole of it may not fit one device.
  """

  def make(key):
    fresh = net_variables.init(module, key, image_shape)
    params, batch_stats = fresh["params"], fresh["batch_stats"]
    # Copies: a donated state must not hold one buffer twice.
    average = jax.tree.map(jnp.copy, (params, batch_stats)) if averaging else ()
    return TrainState(params, batch_stats, optimizer.init(params), average)

  if mesh is None:
    return jax.jit(make)
  fresh = jax.eval_shape(make, jax.random.key(0))
  return jax.jit(make, out_shardings=sharding.split(fresh, mesh))


def make_optimizer(
  settings: OptimizerSettings, steps: int
) -> optax.GradientTransformation:
  """Returns an optimiser for a run of so many steps; L2 decay as in PyTorch."""
  rate = settings.learning_rate
  if settings.schedule == "cosine":
    rate = optax.cosine_decay_schedule(rate, steps)
  elif settings.schedule == "multistep":
    drops = {}
    for share in settings.milestones:  # in a short run some fall together
      step = int(steps * share)
      drops[step] = 0.1 * drops.get(step, 1.0)
    rate = optax.piecewise_constant_schedule(rate, drops)
  if settings.name == "sgd":
    rule = optax.sgd(rate, settings.momentum)
  else:
    rule = optax.adam(rate)
  if not settings.weight_decay:
    return rule
  return optax.chain(optax.add_decayed_weights(settings.weight_decay), rule)


def cross_entropy(
  logits: chex.Array, labels: chex.Array, smoothing: float = 0.0
) -> chex.Array:
  """Returns the mean cross-entropy [nat] of logits `[B, classes]`.

  A share `smoothing` of each of the labels, int `[B]`, is spread over all
  classes.
  """
  if not smoothing:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()
  targets = jax.nn.one_hot(labels, logits.shape[-1])
  targets = optax.smooth_labels(targets, smoothing)
  return optax.softmax_cross_entropy(logits, targets).mean()


def margin_loss(
  logits: chex.Array, labels: chex.Array, margin: float
) -> chex.Array:
  """Returns the mean of max(0, margin - y logit) over `[B, classes]`.

  y is 1 for the label, int `[B]`, and -1 for the other classes: the modified
  hinge loss of Buschjaeger et al. (DATE 2021), which asks for logits that bit
  errors do not turn.
  """
  signs = 2 * jax.nn.one_hot(labels, logits.shape[-1]) - 1
  return jnp.maximum(margin - signs * logits, 0).mean()


def distillation(logits: chex.Array, teacher: chex.Array) -> chex.Array:
  """Returns the mean KL(teacher || student) [nat] of logits `[B, classes]`."""
  # No gradient flows to the teacher: in a sandwich, it is trained too.
  teacher = jax.lax.stop_gradient(jax.nn.log_softmax(teacher))
  return optax.losses.kl_divergence_with_log_targets(
    jax.nn.log_softmax(logits), teacher
  ).mean()


def weight_penalty(params: chex.ArrayTree, target: float = 0.01) -> chex.Array:
  """Returns the sum of (|w| - target)^2 over all kernels.

  It keeps latent weights near their threshold (published ImageNet recipe).
  """
  flat = traverse_util.flatten_dict(params)
  kernels = [leaf for path, leaf in flat.items() if path[-1] == "kernel"]
  return sum(jnp.square(jnp.abs(w) - target).sum() for w in kernels)
