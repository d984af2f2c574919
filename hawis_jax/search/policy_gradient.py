"""Policy gradients: PPO, and REINFORCE with a moving baseline.

Axes: K budgets, P proposals for each, L layers.
"""

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
_MOST_KL = 10.0


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
  optimizer = optax.adam(settings.learning_rate)

  def network(context):
    return policy_network.Policy(context.widths.shape[1], settings.hidden)

  def init(key, context):
    params = policy_network.init(key, network(context), context)
    none = jnp.zeros(context.feasible.ranges)
    return State(params, optimizer.init(params), none, none)

  def propose(key, state, context, step):
    del step
    proposals = policy_network.propose(
      key, network(context), state.params, context, budgets(context)
    )
    shape = context.feasible.ranges, settings.proposals, -1
    return proposals.choices.reshape(shape), proposals

  def budgets(context):
    """The budget of each proposal, `[K P]`."""
    return jnp.repeat(jnp.arange(context.feasible.ranges), settings.proposals)

  def learn(key, state, context, step, proposals, choices, rewards, advantages):
    del key, choices, advantages
    first, last = settings.entropy
    # Exploration is bought at first; at the end the policy is to decide.
    progress = step / max(settings.updates - 1, 1)
    entropy = first + (last - first) * progress
    if ranks:
      # Ranks have one size, whatever the chips of the update did to scores.
      advantages = jax.vmap(policy_network.rank_advantages)(rewards)
    else:
      state, advantages = _against_baseline(state, step, rewards)
    advantages = advantages.reshape(-1)

    def evaluate(params):
      return policy_network.evaluate(
        network(context), params, context, budgets(context), proposals.choices
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

  return method.Method(propose, init, learn, limits={"kl": _MOST_KL})


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
