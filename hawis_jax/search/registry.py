"""Search methods: what proposes width vectors and learns from their scores.

All propose only what `cost.FeasibleSet` holds, are scored by the same scorer on
the same chips, and are pure functions, so that an update is one program.
"""

from hawis_jax.search import evolution
from hawis_jax.search import method
from hawis_jax.search import policy
from hawis_jax.search import policy_gradient
from hawis_jax.search import predictor
from hawis_jax.search import random_search

_BUILDERS = {
  "policy": policy.policy,
  "ppo": policy_gradient.ppo,
  "reinforce": policy_gradient.reinforce,
  "predictor": predictor.predictor,
  "evolution": evolution.regularized_evolution,
  "local": evolution.local_search,
  "random": random_search.random_search,
  "per_stage": random_search.per_stage,
}
NAMES = tuple(_BUILDERS)
MEANINGS = {
  "policy": "PPO with a learned reward model (DyNA-PPO)",
  "ppo": "PPO on ranks within an update (Schulman et al., 2017)",
  "reinforce": "REINFORCE with a moving baseline (Williams, 1992)",
  "predictor": "Thompson sampling from a Bayesian linear regression",
  "evolution": "regularised evolution (Real et al., AAAI 2019)",
  "local": "hill climbing from a random vector",
  "random": "uniform draws from the budget range",
  "per_stage": "random vectors of one scale a stage",
}


def build(name: str, settings: method.Settings) -> method.Method:
  """Returns the method of one of `NAMES`."""
  return _BUILDERS[name](settings)
