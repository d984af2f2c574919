"""A training step of the masked-width super-net, and the sandwich it trains.

Every step trains the maximum, the minimum and some random width vectors (the
sandwich rule of Yu & Huang, ICCV 2019) in one pass, their width vectors being
inputs of one compiled program. The maximum net learns the labels, the others
its softmax (in-place distillation). Random vectors are uniform in cost, and
some of them can be trained on defective chips, so that the super-net ranks
robustness too.

Axes: N vectors of a step, B images, L layers.
"""

from collections.abc import Callable

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from hawis_jax import cost
from hawis_jax.networks import width_vectors
from hawis_jax.runtime import sharding
from hawis_jax.training import optimization


def sample_widths(
  key: chex.PRNGKey,
  bands: cost.FeasibleSet,
  space: width_vectors.WidthSpace,
  num: int,
) -> chex.Array:
  """Draws a sandwich, int32 `[2 + num, L]`: maximum, minimum, random widths.

  Random vectors are uniform in cost: in one of the `bands`, from
  `cost.cost_bands`, and uniform within it.
  """

  def draw(key):
    band_key, vector_key = jax.random.split(key)
    band = jax.random.randint(band_key, (), 0, bands.ranges)
    return width_vectors.take(space.table, bands.sample(vector_key, band))

  # The rule's extremes bound what all others can do.
  ends = jnp.array([space.max_widths, space.min_widths], jnp.int32)
  return jnp.concatenate([ends, jax.vmap(draw)(jax.random.split(key, num))])


def sandwich_loss(
  params: dict,
  module: nn.Module,
  widths: chex.Array,
  inputs: chex.Array,
  labels: chex.Array,
  distill: bool,
  program: Callable[[dict], dict] | None = None,
  faulty: int = 0,
) -> tuple[chex.Array, chex.Array]:
  """Returns the summed loss of N width vectors, and logits `[N, B, classes]`.

  Widths are int `[N, L]`, the first those of the maximum net; inputs `[B, H, W,
  C]`, from `module.encode`; labels int `[B]`. With `distill`, vectors after the
  first learn its softmax, not the labels; the last `faulty` are on the chip
  that `program` makes of `params`, as of `hardware_aware`.
  """

  def apply(variables, widths):
    # Batch statistics only: a running average would mix widths.
    return jax.vmap(
      lambda vector: module.apply(variables, inputs, vector, train=True)
    )(widths)

  ideal = len(widths) - faulty
  logits = apply({"params": params}, widths[:ideal])
  if faulty:
    on_it = apply(program({"params": params}), widths[ideal:])
    logits = jnp.concatenate([logits, on_it])
  loss = optimization.cross_entropy(logits[0], labels)
  for student in logits[1:]:
    loss += (
      optimization.distillation(student, logits[0])
      if distill
      else optimization.cross_entropy(student, labels)
    )
  return loss, logits


def looped_gradients(
  params: dict,
  module: nn.Module,
  widths: chex.Array,
  inputs: chex.Array,
  labels: chex.Array,
  distill: bool,
  program: Callable[[dict], dict] | None = None,
  faulty: int = 0,
) -> tuple[tuple[chex.Array, chex.Array], dict]:
  """Returns what `value_and_grad` of `sandwich_loss` does, vector by vector.

  So one vector's activations are held at a time, and XLA can split the images
  over devices, which it can't of the weight gradients of all vectors at once.
  """

  def loss_of(params, vector, target, on_chip):
    net = {"params": params}
    net = program(net) if on_chip else net
    logits = module.apply(net, inputs, vector, train=True)
    if target is None or not distill:
      return optimization.cross_entropy(logits, labels), logits
    return optimization.distillation(logits, target), logits

  grad = jax.value_and_grad(loss_of, has_aux=True)
  (loss, first), grads = grad(params, widths[0], None, False)
  found, logits = (loss, grads), [first[None]]
  ideal = len(widths) - faulty
  for vectors, on_chip in ((widths[1:ideal], False), (widths[ideal:], True)):
    if not len(vectors):
      continue

    def add(found, vector, on_chip=on_chip):
      (loss, student), grads = grad(params, vector, first, on_chip)
      return jax.tree.map(jnp.add, found, (loss, grads)), student

    found, students = jax.lax.scan(add, found, vectors)
    logits.append(students)
  loss, grads = found
  return (loss, jnp.concatenate(logits)), grads


def sandwich_step(
  state: optimization.TrainState,
  widths: chex.Array,
  batch: dict[str, chex.Array],
  program: Callable[[dict], dict] | None = None,
  *,
  module: nn.Module,
  optimizer: optax.GradientTransformation,
  distill: bool,
  faulty: int = 0,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[optimization.TrainState, dict[str, chex.Array]]:
  """Takes one optimiser step on N width vectors `[N, L]`, the maximum first.

  A batch has `image` uint8 `[B, H, W, C]` and `label` int `[B]`, and is split
  on the `data` axis of a mesh; for the rest see `sandwich_loss`.
  """
  inputs = module.encode(batch["image"])
  params, labels = sharding.gathered(state.params, mesh), batch["label"]
  several = mesh is not None and mesh.size > 1
  gradients = (
    looped_gradients
    if several
    else jax.value_and_grad(sandwich_loss, has_aux=True)
  )
  (loss, logits), grads = gradients(
    params, module, widths, inputs, labels, distill, program, faulty
  )
  grads = sharding.gathered(grads, mesh)
  # The maximum net uses every weight, so weight decay moves none that the step
  # did not train.
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  correct = (logits.argmax(-1) == labels[None]).mean(-1)
  values = {
    "loss": loss,
    "accuracy_max": correct[0],
    "accuracy_mean": correct.mean(),
    "weight_norm": optax.tree.norm(params),
  }
  if faulty:
    values["accuracy_faulty"] = correct[-faulty:].mean()
  return state.replace(params=params, opt_state=opt_state), values
