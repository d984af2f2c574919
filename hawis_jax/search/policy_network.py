"""The policy network: proposes width vectors inside a budget.

Autoregressive over layers: a GRU sees what has been chosen and spent and gives
logits over the next layer's choices. They are added to the log number of
feasible completions of each choice, so a fresh policy (all its logits 0) is the
exact uniform sampler of the budget_range, and no infeasible vector has any
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


def init(key: chex.PRNGKey, policy: Policy, context: method.Context) -> dict:
  """Returns the policy's parameters; the fresh policy samples uniformly."""
  features = _features(context, 0, context.feasible.start())
  return policy.init(key, jnp.zeros(policy.hidden), features)


def propose(
  key: chex.PRNGKey,
  policy: Policy,
  params: dict,
  context: method.Context,
  ranges: chex.Array,
) -> Proposals:
  """Draws a feasible vector for each of `ranges`, int `[P]`: its budget."""
  keys = jax.random.split(key, (len(ranges), context.widths.shape[0]))
  return jax.vmap(
    lambda budget_range, key: _unroll(
      policy, params, context, budget_range, key, jax.random.categorical
    )
  )(ranges, keys)


def evaluate(
  policy: Policy,
  params: dict,
  context: method.Context,
  ranges: chex.Array,
  choices: chex.Array,
) -> Proposals:
  """Log-probabilities and entropies of given feasible `choices` `[P, L]`."""
  return jax.vmap(
    lambda budget_range, given: _unroll(
      policy, params, context, budget_range, given, lambda given, logits: given
    )
  )(ranges, choices)


def _unroll(policy, params, context, budget_range, inputs, choose):
  """Runs one vector through the policy; `choose(inputs[l], logits)`."""
  feasible = context.feasible

  def step(carry, given):
    hidden, prefix = carry
    features = _features(context, budget_range, prefix)
    hidden, logits = policy.apply(params, hidden, features)
    counts = feasible.log_counts(budget_range, prefix)
    log_probs = jax.nn.log_softmax(logits + counts)
    choice = choose(given, log_probs)
    possible = jnp.isfinite(counts)
    finite = jnp.where(possible, log_probs, 0)
    entropy = -jnp.sum(jnp.where(possible, jnp.exp(finite) * finite, 0))
    prefix = feasible.extend(budget_range, prefix, choice)
    return (hidden, prefix), (choice, log_probs[choice], entropy)

  start = (jnp.zeros(policy.hidden), feasible.start())
  _, outputs = jax.lax.scan(step, start, inputs)
  return Proposals(*outputs)


def _features(context, budget_range, prefix):
  """float32 `[F + 2 C + 3]`: everything the policy sees of one step."""
  layer, budget = prefix.layer, context.budget[budget_range]
  left = (budget - prefix.spent) / budget
  before = jnp.maximum(layer - 1, 0)
  input_width = context.widths[before, prefix.previous]
  input_width = input_width / context.widths[before].max()
  input_width = jnp.where(layer == 0, 0.0, input_width)
  marginal = context.feasible.marginal(budget_range, prefix) / budget
  counts = context.feasible.log_counts(budget_range, prefix)
  scalars = jnp.stack([input_width, left, context.budget_share[budget_range]])
  return jnp.concatenate(
    [
      context.layer_features[layer],
      jnp.where(context.valid[layer], jnp.minimum(marginal, 2), 0.0),
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
  context: method.Context,
  ranges: chex.Array,
  proposals: Proposals,
  advantages: chex.Array,
  hyper: PPOConfig,
) -> chex.Array:
  """Clipped surrogate of PPO (Schulman et al. 2017), ratio of each layer.

  Args:
    params: of the policy.
    policy: the network.
    context: of the proposals.
    ranges: their budgets, int `[P]`.
    proposals: drawn with the old parameters.
    advantages: `[P]`.
    hyper: see `PPOConfig`.
  """
  now = evaluate(policy, params, context, ranges, proposals.choices)
  ratio = jnp.exp(now.log_probs - proposals.log_probs)
  clipped = jnp.clip(ratio, 1 - hyper.clip, 1 + hyper.clip)
  advantage = jnp.minimum(
    ratio * advantages[:, None], clipped * advantages[:, None]
  )
  return -advantage.mean() - hyper.entropy * now.entropies.mean()


def reinforce_loss(
  params: dict,
  policy: Policy,
  context: method.Context,
  ranges: chex.Array,
  proposals: Proposals,
  advantages: chex.Array,
  entropy: chex.Numeric,
) -> chex.Array:
  """REINFORCE (Williams 1992), entropy bonus; arguments of `ppo_loss`."""
  now = evaluate(policy, params, context, ranges, proposals.choices)
  advantage = advantages * now.log_probs.sum(-1)
  return -advantage.mean() - entropy * now.entropies.mean()


def rank_advantages(rewards: chex.Array) -> chex.Array:
  """Ranks of `[P]` rewards, ties averaged, scaled to mean 0 and variance 1."""
  above = (rewards[:, None] > rewards[None]).sum(1)
  equal = (rewards[:, None] == rewards[None]).sum(1)
  ranks = above + 0.5 * equal
  ranks = ranks - ranks.mean()
  return ranks / jnp.maximum(ranks.std(), 1e-6)
