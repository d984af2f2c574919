"""Policy gradients: PPO, and REINFORCE with a moving baseline.

Axes: K budgets, P proposals for each, L layers.
"""

import functools

import chex
import flax
import jax
import jax.numpy as jnp
import optax

from hawis_jax.search import method
from hawis_jax.search import policy_network

_BASELINE_DECAY = 0.9
# Of one layer's choice [nat]: an update's own proposals, the good ones among
# them, have become exp(10) times as rare by what was learnt of them. A learning
# rate of 0.01 comes to about 1; 0.1, which still learns, to 5; 1, by which a
# policy is stuck wherever it is thrown, beyond 20 (benchmarks/search.py).
MOST_KL = 10.0


@flax.struct.dataclass
class State:
  """What a policy-gradient method learns."""

  params: chex.ArrayTree  # of the policy
  opt_state: chex.ArrayTree
  # REINFORCE's moving averages of rewards and of their absolute distances from
  # that, `[K]`; PPO has none, for it ranks.
  baseline: chex.Array
  deviation: chex.Array


def ppo(settings: method.Settings) -> method.Method:
  """Returns PPO on ranks within an update and budget (Schulman et al. 2017)."""
  return _method(settings, epochs=settings.epochs, ranks=True)


def reinforce(settings: method.Settings) -> method.Method:
  """Returns REINFORCE (Williams 1992): one step an update, moving baseline."""
  return _method(settings, epochs=1, ranks=False)


def _method(settings, epochs, ranks):
  def propose(key, state, context, step):
    del step
    proposals = draw(key, settings, state, context, settings.proposals)
    shape = context.feasible.ranges, settings.proposals, -1
    return proposals.choices.reshape(shape), proposals

  def learn(key, state, context, step, proposals, choices, rewards, advantages):
    del key, choices, advantages
    if not ranks:
      state, rewards = _against_baseline(state, step, rewards)
    return improve(
      settings, state, context, step, proposals, rewards, epochs, ranks
    )

  start = functools.partial(init, settings)
  return method.Method(propose, start, learn, limits={"kl": MOST_KL})


def init(
  settings: method.Settings, key: chex.PRNGKey, context: method.Context
) -> State:
  """Returns a fresh policy, which samples uniformly."""
  params = policy_network.init(key, _network(settings, context), context)
  none = jnp.zeros(context.feasible.ranges)
  return State(params, _optimizer(settings).init(params), none, none)


def draw(
  key: chex.PRNGKey,
  settings: method.Settings,
  state: State,
  context: method.Context,
  num: int,
) -> policy_network.Proposals:
  """Draws `num` vectors of each budget from the policy, `[K num]`."""
  network = _network(settings, context)
  budgets = jnp.repeat(jnp.arange(context.feasible.ranges), num)
  return policy_network.propose(key, network, state.params, context, budgets)


def given(
  settings: method.Settings,
  state: State,
  context: method.Context,
  choices: chex.Array,
) -> policy_network.Proposals:
  """Returns vectors `[K, P, L]` as if the policy had drawn them."""
  network, num = _network(settings, context), choices.shape[1]
  budgets = jnp.repeat(jnp.arange(context.feasible.ranges), num)
  flat = choices.reshape(-1, choices.shape[-1])
  return policy_network.evaluate(network, state.params, context, budgets, flat)


def improve(
  settings: method.Settings,
  state: State,
  context: method.Context,
  step: chex.Numeric,
  proposals: policy_network.Proposals,
  rewards: chex.Array,
  epochs: int,
  ranks: bool = True,
) -> tuple[State, dict[str, chex.Array]]:
  """Takes gradient steps on proposals `[K P]` of `draw`, of rewards `[K, P]`.

  With `ranks`, on PPO's clipped surrogate, of the rewards' ranks; else on
  REINFORCE's, of the rewards as they are.
  """
  optimizer, network = _optimizer(settings), _network(settings, context)
  budgets = jnp.repeat(jnp.arange(len(rewards)), rewards.shape[1])
  first, last = settings.entropy
  # Exploration is bought at first; at the end the policy is to decide.
  progress = step / max(settings.updates - 1, 1)
  entropy = first + (last - first) * progress
  if ranks:
    # Ranks have one size, whatever the chips of the update did to scores.
    rewards = jax.vmap(policy_network.rank_advantages)(rewards)
  advantages = rewards.reshape(-1)

  def evaluate(params):
    return policy_network.evaluate(
      network, params, context, budgets, proposals.choices
    )

  def loss(params):
    now = evaluate(params)
    if ranks:  # PPO's clipped surrogate, with the ratio of each layer
      ratio = jnp.exp(now.log_probs - proposals.log_probs)
      clipped = jnp.clip(ratio, 1 - settings.clip, 1 + settings.clip)
      advantage = jnp.minimum(
        ratio * advantages[:, None], clipped * advantages[:, None]
      )
    else:
      advantage = advantages * now.log_probs.sum(-1)
    return -advantage.mean() - entropy * now.entropies.mean()

  def epoch(carry, _):
    params, opt_state = carry
    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
    return (optax.apply_updates(params, updates), opt_state), None

  (params, opt_state), _ = jax.lax.scan(
    epoch, (state.params, state.opt_state), length=epochs
  )
  moved = proposals.log_probs - evaluate(params).log_probs
  metrics = {
    "entropy": proposals.entropies.mean(),
    # Of the layer that moved most, before from after, estimated.
    "kl": moved.mean(0).max(),
    "policy_norm": optax.tree.norm(params),
  }
  return state.replace(params=params, opt_state=opt_state), metrics


def _network(settings, context):
  return policy_network.Policy(context.widths.shape[1], settings.hidden)


def _optimizer(settings):
  return optax.adam(settings.learning_rate)


def _against_baseline(state, step, rewards):
  """Returns (state with the next baseline, advantages of about unit size)."""
  mean = rewards.mean(1)
  first = step == 0
  baseline = jnp.where(first, mean, state.baseline)
  advantages = rewards - baseline[:, None]
  size = jnp.abs(advantages).mean(1)
  deviation = jnp.where(first, size, state.deviation)
  keep = _BASELINE_DECAY
  state = state.replace(
    baseline=keep * baseline + (1 - keep) * mean,
    deviation=keep * deviation + (1 - keep) * size,
  )
  # A first update without spread says nothing of sizes to come.
  scale = jnp.maximum(jnp.maximum(deviation, size), 1e-6)
  return state, advantages / scale[:, None]
