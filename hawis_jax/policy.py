"""The policy network: proposes width vectors inside a budget.

Autoregressive over layers: a GRU sees what has been chosen and spent and gives
logits over the next layer's choices. They are added to the log number of
feasible completions of each choice, so a fresh policy (all its logits 0) is the
exact uniform sampler of the feasible set, and no infeasible vector has any
probability.

Axes: P proposals, L layers, C choices.
"""

import dataclasses
from typing import NamedTuple

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import widths as widths_lib


class Policy(nn.Module):
  """One step of the autoregressive policy.

  Attributes:
    num_choices: C.
    hidden: GRU units.
  """

  num_choices: int
  hidden: int = 64

  @nn.compact
  def __call__(
    self, carry: chex.Array, features: chex.Array
  ) -> tuple[chex.Array, chex.Array]:
    """GRU state `[hidden]` and features `[F]` -> (state, logits `[C]`)."""
    carry, output = nn.GRUCell(self.hidden)(carry, features)
    logits = nn.Dense(
      self.num_choices, kernel_init=nn.initializers.zeros, name="logits"
    )(output)
    return carry, logits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
  """What proposals depend on beside the policy's parameters.

  Attributes:
    feasible: the width vectors within the budget.
    budget: in the units of `feasible`, scalar float32.
    widths: int32 `[L, C]`.
    valid: bool `[L, C]`, False on padding of `widths`.
    layer_features: float32 `[L, F]` what is known of a layer beforehand.
    budget_share: budget / cost of the dearest vector, scalar float32.
  """

  feasible: widths_lib.FeasibleSet
  budget: chex.Array
  widths: chex.Array
  valid: chex.Array
  layer_features: chex.Array
  budget_share: chex.Array


class Proposals(NamedTuple):
  """A batch of proposals.

  Attributes:
    choices: int32 `[P, L]`, indices.
    log_probs: float32 `[P, L]`.
    entropies: float32 `[P, L]` of each layer's distribution [nat].
  """

  choices: chex.Array
  log_probs: chex.Array
  entropies: chex.Array


def make_context(
  space: widths_lib.WidthSpace,
  feasible: widths_lib.FeasibleSet,
  positions: tuple[int, ...],
  budget_share: float,
) -> Context:
  """Builds the policy's inputs for one budget.

  Args:
    space: of the vectors.
    feasible: those within the budget.
    positions: output positions (spatial size) of each layer, `[L]`.
    budget_share: budget / cost of the dearest vector.
  """
  num_layers = len(space.choices)
  size = np.log2(np.array(positions, np.float64))[:, None]
  layer_features = np.concatenate(
    [np.eye(num_layers), size / size.max().clip(1)], axis=1
  )
  budget = feasible.completions.shape[-1] - 1
  return Context(
    feasible=feasible,
    budget=jnp.float32(budget),
    widths=jnp.asarray(space.table, jnp.int32),
    valid=jnp.asarray(space.valid),
    layer_features=jnp.asarray(layer_features, jnp.float32),
    budget_share=jnp.float32(budget_share),
  )


def init(key: chex.PRNGKey, policy: Policy, context: Context) -> dict:
  """Returns the policy's parameters; the fresh policy samples uniformly."""
  zero = jnp.zeros((), jnp.int32)
  features = _features(context, zero, zero, zero)
  return policy.init(key, jnp.zeros(policy.hidden), features)


def propose(
  key: chex.PRNGKey, policy: Policy, params: dict, context: Context, num: int
) -> Proposals:
  """Draws `num` feasible width vectors."""
  keys = jax.random.split(key, (num, context.widths.shape[0]))
  return jax.vmap(
    lambda k: _unroll(policy, params, context, k, jax.random.categorical)
  )(keys)


def evaluate(
  policy: Policy, params: dict, context: Context, choices: chex.Array
) -> Proposals:
  """Log-probabilities and entropies of given feasible `choices` `[P, L]`."""
  return jax.vmap(
    lambda c: _unroll(policy, params, context, c, lambda given, logits: given)
  )(choices)


def _unroll(policy, params, context, inputs, choose):
  """Runs one vector through the policy; `choose(inputs[l], logits)`."""

  def step(carry, layer_and_input):
    hidden, previous, spent = carry
    layer, given = layer_and_input
    features = _features(context, layer, previous, spent)
    hidden, logits = policy.apply(params, hidden, features)
    counts = context.feasible.log_counts(layer, previous, spent)
    log_probs = jax.nn.log_softmax(logits + counts)
    choice = choose(given, log_probs)
    possible = jnp.isfinite(counts)
    finite = jnp.where(possible, log_probs, 0)
    entropy = -jnp.sum(jnp.where(possible, jnp.exp(finite) * finite, 0))
    spent = spent + context.feasible.units[layer, previous, choice]
    return (hidden, choice, spent), (choice, log_probs[choice], entropy)

  num_layers = context.widths.shape[0]
  zero = jnp.zeros((), jnp.int32)
  start = (jnp.zeros(policy.hidden), zero, zero)
  _, outputs = jax.lax.scan(step, start, (jnp.arange(num_layers), inputs))
  return Proposals(*outputs)


def _features(context, layer, previous, spent):
  """float32 `[F + 2 C + 3]`: everything the policy sees of one step."""
  left = (context.budget - spent) / context.budget
  before = jnp.maximum(layer - 1, 0)
  input_width = context.widths[before, previous] / context.widths[before].max()
  input_width = jnp.where(layer == 0, 0.0, input_width)
  marginal = context.feasible.units[layer, previous] / context.budget
  counts = context.feasible.log_counts(layer, previous, spent)
  scalars = jnp.stack([input_width, left, context.budget_share])
  return jnp.concatenate(
    [
      context.layer_features[layer],
      jnp.where(context.valid[layer], marginal, 0.0),
      jnp.isfinite(counts).astype(jnp.float32),
      scalars,
    ]
  )


class PPOConfig(NamedTuple):
  """Hyperparameters of `ppo_loss`.

  Attributes:
    clip: of the probability ratio.
    entropy: weight of the entropy bonus; may be traced.
  """

  clip: float
  entropy: chex.Numeric


def ppo_loss(
  params: dict,
  policy: Policy,
  context: Context,
  proposals: Proposals,
  advantages: chex.Array,
  hyper: PPOConfig,
) -> chex.Array:
  """Clipped surrogate of PPO (Schulman et al. 2017), ratio of each layer.

  Args:
    params: of the policy.
    policy: the network.
    context: of the proposals.
    proposals: drawn with the old parameters.
    advantages: `[P]`.
    hyper: see `PPOConfig`.
  """
  now = evaluate(policy, params, context, proposals.choices)
  ratio = jnp.exp(now.log_probs - proposals.log_probs)
  clipped = jnp.clip(ratio, 1 - hyper.clip, 1 + hyper.clip)
  gain = jnp.minimum(ratio * advantages[:, None], clipped * advantages[:, None])
  return -gain.mean() - hyper.entropy * now.entropies.mean()


def rank_advantages(rewards: chex.Array) -> chex.Array:
  """Ranks of `[P]` rewards, ties averaged, scaled to mean 0 and variance 1."""
  above = (rewards[:, None] > rewards[None]).sum(1)
  equal = (rewards[:, None] == rewards[None]).sum(1)
  ranks = above + 0.5 * equal
  ranks = ranks - ranks.mean()
  return ranks / jnp.maximum(ranks.std(), 1e-6)
