"""Predictor-guided proposals: Thompson sampling from a Bayesian regression.

Scores of one update share their chips, and chips differ from one to the next.
So the regression is within updates and budgets: features and rewards less their
means (the exact elimination of an offset each). Accuracy is smooth in the
widths, so features are few: of each layer the logarithm of its width, its
square, its product with that of the layer before, and with the logarithm of the
budget. The state is a fixed set of sums, however many scores there are.

Axes: K budgets, P proposals for each, N vectors, L layers, F features.
"""

import chex
import flax
import jax
import jax.numpy as jnp

from hawis_jax.search import method
from hawis_jax.search import neighbours

# Vectors of an update and budget, at least: a half uniform, a half mutations.
POOL = 256
_ELITE = 16  # vectors that are mutated
_PRIOR = 1.0  # observations that the prior of a coefficient is worth


@flax.struct.dataclass
class State:
  """Sums of the regression, and what it believes to be best."""

  gram: chex.Array  # `[F, F]`, of outer products of centred features
  moment: chex.Array  # `[F]`, of centred features times rewards
  advantage_moment: chex.Array  # `[F]`, times advantages
  square: chex.Array  # of centred rewards
  count: chex.Array  # of observations, less one an update and budget
  elite: chex.Array  # int32 `[K, E, L]`


def predictor(settings: method.Settings) -> method.Method:
  """Proposes what is best by as many draws from the posterior.

  Every draw of coefficients (Thompson 1933) has its best of a pool of feasible
  vectors proposed; the pool holds uniform draws and mutations of those of the
  best posterior means so far.
  """

  def propose(key, state, context, step):
    del step
    pool_key, draw_key = jax.random.split(key)
    size = max(POOL, 4 * settings.proposals)
    pool = make_pool(pool_key, state, context, size)
    drawn = draws(draw_key, state, settings.proposals, context.feasible.ranges)
    return best_of_draws(context, pool, drawn), ()

  def learn(key, state, context, step, notes, choices, rewards, advantages):
    del step, notes
    pool = make_pool(key, state, context, POOL)
    state = observe(state, context, choices, rewards, advantages, pool)
    return state, {"noise": jnp.sqrt(_posterior(state)[2])}

  return method.Method(propose, init, learn, estimate, lambda s: s.elite)


def init(key: chex.PRNGKey, context: method.Context) -> State:
  """Returns the regression before any score."""
  elite = method.uniform_draws(key, context.feasible, _ELITE)
  size = _features(context, elite).shape[-1]
  zeros = map(jnp.zeros, ((size, size), size, size, (), ()))
  return State(*zeros, elite)


def observe(
  state: State,
  context: method.Context,
  choices: chex.Array,
  rewards: chex.Array,
  advantages: chex.Array,
  pool: chex.Array,
) -> State:
  """Learns the scores of an update, see `method.Method`.

  The next elite is of the last one, which has to win again, the update's
  vectors and a pool `[K, N, L]`.
  """
  features = _features(context, choices)
  features = features - features.mean(1, keepdims=True)
  features = features.reshape(-1, features.shape[-1])
  free = rewards.size - len(rewards)
  told = (rewards, advantages)
  rewards, advantages = ((x - x.mean(1, keepdims=True)).ravel() for x in told)
  # Rewards, which are learnt from, may be cross-entropies; candidates are
  # chosen by advantages, which are accuracies: so there are two moments.
  state = state.replace(
    gram=state.gram + features.T @ features,
    moment=state.moment + features.T @ rewards,
    advantage_moment=state.advantage_moment + features.T @ advantages,
    square=state.square + (rewards**2).sum(),
    count=state.count + free,
  )
  pool = jnp.concatenate([state.elite, choices, pool], 1)
  best = _best_distinct(pool, predict(state, context, pool))
  return state.replace(elite=jnp.take_along_axis(pool, best[..., None], 1))


def predict(
  state: State, context: method.Context, choices: chex.Array
) -> chex.Array:
  """Returns posterior means `[K, N]` of rewards, up to a constant."""
  return _features(context, choices) @ _posterior(state)[0]


def draws(
  key: chex.PRNGKey, state: State, num: int, budgets: int
) -> chex.Array:
  """Draws coefficients `[K, num, F]` from the posterior."""
  mean, factor, noise = _posterior(state)
  shape = (budgets, num, len(mean))
  normal = jax.random.normal(key, shape) * jnp.sqrt(noise)
  solve = jax.scipy.linalg.solve_triangular
  spread = solve(factor.T, normal.reshape(-1, len(mean)).T, lower=False)
  return mean[None, None] + spread.T.reshape(shape)


def rewards_of_draws(
  context: method.Context, choices: chex.Array, drawn: chex.Array
) -> chex.Array:
  """Returns what each draw expects of each of `[K, N, L]`, `[K, draws, N]`."""
  return jnp.einsum("kpf,knf->kpn", drawn, _features(context, choices))


def best_of_draws(
  context: method.Context, pool: chex.Array, drawn: chex.Array
) -> chex.Array:
  """Returns the best of a pool by each draw, int32 `[K, draws, L]`, distinct.

  A second score on the same chips would be the first one again.
  """
  values = rewards_of_draws(context, pool, drawn)
  best = _without_repeats(pool, values)
  return jnp.take_along_axis(pool, best[..., None], 1)


def closest(
  pool: chex.Array, spent: chex.Array, targets: chex.Array
) -> chex.Array:
  """Returns for each target cost `[K, P]` the closest of a pool, distinct."""
  far = jnp.abs(spent[:, None] - targets[..., None])
  best = _without_repeats(pool, -far)
  return jnp.take_along_axis(pool, best[..., None], 1)


def estimate(
  state: State,
  context: method.Context,
  budget: chex.Numeric,
  choices: chex.Array,
) -> chex.Array:
  """Returns the posterior means of advantages, see `method.Method`."""
  every = (context.feasible.ranges, *choices.shape)
  every = jnp.broadcast_to(choices[None], every)
  state = state.replace(moment=state.advantage_moment)
  return predict(state, context, every)[budget]


def _features(context: method.Context, choices: chex.Array) -> chex.Array:
  """Choices of each budget `[K, N, L]` -> `[K, N, F]`, about of unit size."""
  logs = jnp.log(context.widths.astype(jnp.float32))
  valid = context.valid
  count = valid.sum(1, keepdims=True)
  mean = jnp.where(valid, logs, 0).sum(1, keepdims=True) / count
  centred = jnp.where(valid, logs - mean, 0)
  size = jnp.sqrt((centred**2).sum(1, keepdims=True) / count)
  scaled = centred / jnp.maximum(size, 1e-6)
  z = scaled[jnp.arange(len(scaled)), choices]
  share = jnp.log(context.budget_share)
  share = share - share.mean()
  share = share / jnp.maximum(jnp.abs(share).max(), 1e-6)
  return jnp.concatenate(
    [z, z**2, z[..., :-1] * z[..., 1:], z * share[:, None, None]], -1
  )


def _posterior(state):
  """Returns (mean `[F]`, Cholesky factor of noise x precision, noise)."""
  # Ridge regression; the noise is the residual variance per degree of freedom.
  size = len(state.moment)
  precision = state.gram + _PRIOR * jnp.eye(size)
  factor = jnp.linalg.cholesky(precision)
  mean = jax.scipy.linalg.cho_solve((factor, True), state.moment)
  residual = state.square - mean @ state.moment
  # While scores are fewer than features, the prior leaves some of them free.
  free = jnp.maximum(state.count - size, state.count / 4)
  noise = jnp.maximum(residual, 0) / jnp.maximum(free, 1)
  return mean, factor, jnp.where(state.count > 0, noise, 1.0)


def make_pool(
  key: chex.PRNGKey, state: State, context: method.Context, size: int
) -> chex.Array:
  """Draws feasible vectors `[K, size, L]`: uniform, and of the elite's kin."""
  budgets = jnp.arange(context.feasible.ranges)
  uniform_key, parent_key, mutation_key = jax.random.split(key, 3)
  shape = len(budgets), size // 2
  uniform = method.uniform_draws(uniform_key, context.feasible, size // 2)
  parents = jax.random.randint(parent_key, shape, 0, _ELITE)
  parents = jnp.take_along_axis(state.elite, parents[..., None], 1)
  mutate = jax.vmap(neighbours.mutate, (0, None, None, 0))
  mutations = jax.vmap(mutate, (0, None, 0, 0))(
    jax.random.split(mutation_key, shape), context, budgets, parents
  )
  return jnp.concatenate([uniform, mutations], 1)


def _without_repeats(pool, values):
  """Of each draw in turn the best vector not yet taken, places `[K, P]`."""

  def one_budget(pool, values):
    def pick(taken, row):
      best = jnp.where(taken, -jnp.inf, row).argmax()
      return taken | (pool == pool[best][None]).all(-1), best

    taken = jnp.zeros(len(pool), bool)
    return jax.lax.scan(pick, taken, values)[1]

  return jax.vmap(one_budget)(pool, values)


def _best_distinct(pool, values):
  """Places `[K, E]` of the best distinct vectors of `[K, N, L]`."""

  def one_budget(pool, values):
    order = jnp.argsort(-values)
    same = (pool[order][:, None] == pool[order][None]).all(-1)
    repeats = jnp.tril(same, -1).any(1)
    ranked = jnp.argsort(repeats, stable=True)  # firsts before repeats
    return order[ranked[:_ELITE]]

  return jax.vmap(one_budget)(pool, values)
