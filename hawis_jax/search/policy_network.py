"""The policy network: proposes width vectors inside a budget.

Autoregressive over layers: a GRU sees what has been chosen and spent and gives
logits over the next layer's choices. They are added to the log number of
feasible completions of each choice, so a fresh policy (all its logits 0) is the
exact uniform sampler of the budget, and no infeasible vector has any
probability. (Limits on further costs are not counted, only kept.) It sees the
budget, so one policy serves several.

Axes: P proposals, K budgets, L layers, C choices.
"""

from typing import NamedTuple

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from hawis_jax.search import method


class Policy(nn.Module):
  """One step of the autoregressive policy."""

  num_choices: int  # C
  hidden: int = 64  # GRU units

  @nn.compact
  def __call__(
    self, carry: chex.Array, features: chex.Array
  ) -> tuple[chex.Array, chex.Array]:
    """GRU state `[hidden]` and features `[F]` -> (state, logits `[C]`)."""
    carry, output = nn.GRUCell(self.hidden)(carry, features)
    # Zeros: a fresh policy adds nothing to the numbers of completions.
    logits = nn.Dense(
      self.num_choices, kernel_init=nn.initializers.zeros, name="logits"
    )(output)
    return carry, logits


class Proposals(NamedTuple):
  """A batch of proposals."""

  choices: chex.Array  # int32 `[P, L]`, indices
  log_probs: chex.Array  # float32 `[P, L]`
  entropies: chex.Array  # float32 `[P, L]`, of each layer's distribution [nat]


def init(key: chex.PRNGKey, policy: Policy, context: method.Context) -> dict:
  """Returns the policy's parameters; the fresh policy samples uniformly."""
  features = _features(context, 0, context.feasible.start())
  return policy.init(key, jnp.zeros(policy.hidden), features)


def propose(
  key: chex.PRNGKey,
  policy: Policy,
  params: dict,
  context: method.Context,
  budgets: chex.Array,
) -> Proposals:
  """Draws a feasible vector for each of `budgets`, int `[P]` indices."""
  keys = jax.random.split(key, (len(budgets), context.widths.shape[0]))
  return jax.vmap(
    lambda budget, key: _unroll(
      policy, params, context, budget, key, jax.random.categorical
    )
  )(budgets, keys)


def evaluate(
  policy: Policy,
  params: dict,
  context: method.Context,
  budgets: chex.Array,
  choices: chex.Array,
) -> Proposals:
  """Returns given feasible `choices` `[P, L]` with their probabilities."""
  return jax.vmap(
    lambda budget, given: _unroll(
      policy, params, context, budget, given, lambda given, logits: given
    )
  )(budgets, choices)


def _unroll(policy, params, context, budget, inputs, choose):
  """Runs one vector through the policy; `choose(inputs[l], logits)`."""
  feasible = context.feasible

  def step(carry, given):
    hidden, prefix = carry
    features = _features(context, budget, prefix)
    hidden, logits = policy.apply(params, hidden, features)
    counts = feasible.log_counts(budget, prefix)
    log_probs = jax.nn.log_softmax(logits + counts)
    choice = choose(given, log_probs)
    possible = jnp.isfinite(counts)
    # 0 times -inf would be NaN, and so would be its gradient.
    finite = jnp.where(possible, log_probs, 0)
    entropy = -jnp.sum(jnp.where(possible, jnp.exp(finite) * finite, 0))
    prefix = feasible.extend(budget, prefix, choice)
    return (hidden, prefix), (choice, log_probs[choice], entropy)

  start = (jnp.zeros(policy.hidden), feasible.start())
  _, outputs = jax.lax.scan(step, start, inputs)
  return Proposals(*outputs)


def _features(context, budget, prefix):
  """float32 `[F + 2 C + 3]`: everything the policy sees of one step."""
  layer, amount = prefix.layer, context.budget[budget]
  left = (amount - prefix.spent) / amount
  before = jnp.maximum(layer - 1, 0)  # of the stem: masked below
  input_width = context.widths[before, prefix.previous]
  input_width = input_width / context.widths[before].max()
  input_width = jnp.where(layer == 0, 0.0, input_width)
  marginal = context.feasible.marginal(budget, prefix) / amount
  counts = context.feasible.log_counts(budget, prefix)
  scalars = jnp.stack([input_width, left, context.budget_share[budget]])
  # What a choice adds is clipped: beyond the budget, all are alike.
  return jnp.concatenate(
    [
      context.layer_features[layer],
      jnp.where(context.valid[layer], jnp.minimum(marginal, 2), 0.0),
      jnp.isfinite(counts).astype(jnp.float32),
      scalars,
    ]
  )


def rank_advantages(rewards: chex.Array) -> chex.Array:
  """Returns ranks of rewards `[P]`, of mean 0 and variance 1; ties share."""
  above = (rewards[:, None] > rewards[None]).sum(1)
  equal = (rewards[:, None] == rewards[None]).sum(1)
  ranks = above + 0.5 * equal
  ranks = ranks - ranks.mean()
  return ranks / jnp.maximum(ranks.std(), 1e-6)
