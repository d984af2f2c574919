"""Search methods: what proposes width vectors and learns from their scores.

All of them propose only what `budgets.FeasibleSet` holds, are scored by the
same scorer on the same chips, and are pure functions, so that an update of the
search is one compiled program.
"""

import ml_collections

from hawis_jax.methods import evolution
from hawis_jax.methods import gradient
from hawis_jax.methods import predictor
from hawis_jax.methods import sampling
from hawis_jax.methods.base import Method

_BUILDERS = {
  "ppo": gradient.ppo,
  "reinforce": gradient.reinforce,
  "predictor": predictor.predictor,
  "evolution": evolution.regularized_evolution,
  "local": evolution.local_search,
  "random": sampling.random_search,
  "per_stage": sampling.per_stage,
}
NAMES = tuple(_BUILDERS)


def build(name: str, config: ml_collections.ConfigDict, stages: int) -> Method:
  """Returns a method.

  Args:
    name: one of `NAMES`.
    config: the section `search`.
    stages: of the network.
  """
  return _BUILDERS[name](config, stages)


__all__ = ["NAMES", "Method", "build"]
