"""A training step of one net of fixed widths, ideal or on chips.

A fixed net is the masked network at its own widths: no second definition.

Axes: B images.
"""

import dataclasses

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from hawis_jax.runtime import sharding
from hawis_jax.training import hardware_aware
from hawis_jax.training import optimization


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a net is trained, beside its optimiser."""

  # Parts a batch is split into, for memory's sake: gradients are averaged, and
  # BN normalises and updates its statistics part by part.
  microbatches: int = 1
  label_smoothing: float = 0.0  # share of a label that goes to all classes
  margin: float = 0.0  # of `optimization.margin_loss`; 0: cross-entropy
  weight_penalty: float = 0.0  # factor of `optimization.weight_penalty`
  ema: float = 0.0  # decay a step of the moving average; 0: none
  chips: hardware_aware.Settings | None = None  # None: the net is ideal


def train_step(
  state: optimization.TrainState,
  batch: dict[str, chex.Array],
  teacher: dict | None = None,
  key: chex.PRNGKey | None = None,
  progress: chex.Numeric = 0.0,
  *,
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  recipe: Recipe,
  teacher_module: nn.Module | None = None,
  mesh: jax.sharding.Mesh | None = None,
  widths: chex.Array | None = None,
) -> tuple[optimization.TrainState, dict[str, chex.Array]]:
  """Takes one optimiser step of a fixed net.

  A batch has `image` uint8 `[B, H, W, C]` and `label` int `[B]`, and is split
  on the `data` axis of a mesh (None: one device has it). The loss is KL(teacher
  || student), with the variables of a teacher module, else that of the labels.
  Where the recipe has chips, each of its microbatches draws new ones from `key`
  at `progress`, the share of all steps that are done. Widths `[L]` narrow the
  module, as those of a super-net; None: they are its own.
  """

  def loss_of(variables, part):
    logits, updated = module.apply(
      variables,
      module.encode(part["image"]),
      *(() if widths is None else (widths,)),
      train=True,
      mutable=["batch_stats"],
    )
    if teacher is not None:
      loss = optimization.distillation(logits, part["teacher"])
    elif recipe.margin:
      loss = optimization.margin_loss(logits, part["label"], recipe.margin)
    else:
      loss = optimization.cross_entropy(
        logits, part["label"], recipe.label_smoothing
      )
    correct = (logits.argmax(-1) == part["label"]).mean()
    return loss, (updated["batch_stats"], correct)

  def loss_function(params, batch_stats, part, key):
    if teacher is not None:
      logits = teacher_module.apply(
        teacher,
        teacher_module.encode(part["image"]),
        # One that was trained as a super-net has no statistics of its own.
        train="batch_stats" not in teacher,
      )
      part = {**part, "teacher": logits}
    net = {"params": params, "batch_stats": batch_stats}
    if recipe.chips is None:
      loss, (batch_stats, correct) = loss_of(net, part)
    else:
      most = recipe.chips.most_at(progress)
      loss, (batch_stats, correct) = hardware_aware.loss_on_chips(
        loss_of, key, net, part, module, recipe.chips, most, mesh
      )
    if recipe.weight_penalty:
      loss += recipe.weight_penalty * optimization.weight_penalty(params)
    return loss, (batch_stats, {"loss": loss, "accuracy": correct})

  # Each device keeps a share of the state, and needs the whole to compute.
  teacher = sharding.gathered(teacher, mesh)
  grads, batch_stats, values = _mean_gradients(
    jax.grad(loss_function, has_aux=True),
    state.replace(params=sharding.gathered(state.params, mesh)),
    batch,
    key,
    recipe.microbatches,
    mesh,
  )
  grads = sharding.gathered(grads, mesh)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  average, now = (), (params, batch_stats)
  if recipe.ema:
    average = optax.incremental_update(now, state.average, 1 - recipe.ema)
  values["weight_norm"] = optax.tree.norm(params)
  state = optimization.TrainState(params, batch_stats, opt_state, average)
  return state, values


def _mean_gradients(gradient, state, batch, key, microbatches, mesh):
  """Returns (gradients, `batch_stats`, metrics) of a batch, part by part."""
  if microbatches == 1:
    grads, (batch_stats, values) = gradient(
      state.params, state.batch_stats, batch, key
    )
    return grads, batch_stats, values

  def step(carry, inputs):
    total, batch_stats = carry
    grads, (batch_stats, values) = gradient(state.params, batch_stats, *inputs)
    return (jax.tree.map(jnp.add, total, grads), batch_stats), values

  parts = jax.tree.map(
    lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch
  )
  if mesh is not None:  # all devices take part in each of them
    where = sharding.on_data(mesh, axis=1)
    parts = jax.lax.with_sharding_constraint(parts, where)
  keys = None if key is None else jax.random.split(key, microbatches)
  zeros = jax.tree.map(jnp.zeros_like, state.params)
  (total, batch_stats), values = jax.lax.scan(
    step, (zeros, state.batch_stats), (parts, keys)
  )
  grads = jax.tree.map(lambda x: x / microbatches, total)
  return grads, batch_stats, jax.tree.map(jnp.mean, values)
