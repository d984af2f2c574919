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
# policy is stuck wherever it is thrown, beyond 20 (benchmarks/policy_limit.py).
_MOST_KL = 10.0


@flax.struct.dataclass
class State:
  """What a policy-gradient method learns.

  Attributes:
    params: of the policy.
    opt_state: of its optimiser.
    baseline: moving average of rewards, `[K]`, and
    deviation: of their absolute distances from it. REINFORCE's; PPO ranks.
  """

  params: chex.ArrayTree
  opt_state: chex.ArrayTree
  baseline: chex.Array
  deviation: chex.Array


def ppo(settings: method.Settings) -> method.Method:
  """PPO on ranks within an update and budget (Schulman et al. 2017)."""
  return _method(settings, epochs=settings.epochs, ranks=True)


def reinforce(settings: method.Settings) -> method.Method:
  """REINFORCE (Williams 1992): one step an update, moving baseline."""
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
    ranges = _ranges(context, settings.proposals)
    proposals = policy_network.propose(
      key, network(context), state.params, context, ranges
    )
    shape = context.feasible.ranges, settings.proposals, -1
    return proposals.choices.reshape(shape), proposals

  def learn(key, state, context, step, proposals, choices, rewards, advantages):
    del key, choices, advantages
    ranges = _ranges(context, settings.proposals)
    first, last = settings.entropy
    progress = step / max(settings.updates - 1, 1)
    entropy = first + (last - first) * progress
    if ranks:
      advantages = jax.vmap(policy_network.rank_advantages)(rewards)
      hyper = policy_network.PPOConfig(settings.clip, entropy)
      loss = functools.partial(policy_network.ppo_loss, hyper=hyper)
    else:
      state, advantages = _against_baseline(state, step, rewards)
      loss = functools.partial(policy_network.reinforce_loss, entropy=entropy)

    def epoch(carry, _):
      params, opt_state = carry
      grads = jax.grad(loss)(
        params,
        network(context),
        context,
        ranges,
        proposals,
        advantages.reshape(-1),
      )
      updates, opt_state = optimizer.update(grads, opt_state)
      return (optax.apply_updates(params, updates), opt_state), None

    (params, opt_state), _ = jax.lax.scan(
      epoch, (state.params, state.opt_state), length=epochs
    )
    now = policy_network.evaluate(
      network(context), params, context, ranges, proposals.choices
    )
    moved = (proposals.log_probs - now.log_probs).mean(0).max()
    metrics = {
      "entropy": proposals.entropies.mean(),
      "kl": moved,  # of the layer that moved most, before from after, estimated
      "policy_norm": optax.tree.norm(params),
    }
    return state.replace(params=params, opt_state=opt_state), metrics

  return method.Method(init, propose, learn, limits={"kl": _MOST_KL})


def _ranges(context, proposals):
  """The budget of each proposal, `[K P]`."""
  return jnp.repeat(jnp.arange(context.feasible.ranges), proposals)


def _against_baseline(state, step, rewards):
  """(state with the next baseline, advantages of about unit size)."""
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
