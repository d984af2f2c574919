"""Search methods for `search_widths`, to be called by their names.

Every method proposes only feasible vectors, `proposals` an update.
"""

import dataclasses

from hawis_jax import errors
from hawis_jax.search.method import Settings

_COUNTS = {"proposals", "hidden", "epochs", "imagined", "groups"}
_COUNTS |= {"population", "tournament"}
_COMPARING = {"policy", "ppo", "reinforce", "predictor", "local"}


@dataclasses.dataclass(frozen=True)
class Choice:
  """A method of `registry.NAMES`, and how it searches."""

  name: str
  settings: Settings


def _choose(name, fields):
  """Returns the choice; `fields` are the arguments of its constructor."""
  for field, value in fields.items():
    where = f"{name}, {field}"
    if field in _COUNTS:
      # Of one proposal nothing is learnt: it has no other to be compared with.
      several = field == "proposals" and name in _COMPARING
      errors.check_count(value, where, 2 if several else 1)
    elif field == "entropy":
      if len(value) != 2 or not min(value) >= 0:
        raise errors.InputError(
          f"{where}: got {value!r}, needed are two numbers of at least 0"
        )
    elif field != "least_correlation" and not value > 0:
      raise errors.InputError(f"{where}: got {value!r}, needed is more than 0")
  return Choice(name, Settings(**fields))


def policy(
  proposals: int = 64,
  *,
  hidden: int = 64,
  learning_rate: float = 1e-2,
  epochs: int = 4,
  clip: float = 0.2,
  entropy: tuple[float, float] = (0.05, 0.001),
  imagined: int = 8,
  least_correlation: float = 0.1,
) -> Choice:
  """Returns PPO with a learned reward model (Angermueller et al., ICLR 2020).

  The policy of `ppo` takes many cheap steps on what the regression of
  `predictor` expects, and only what it then proposes is scored. While the ranks
  of new scores are not those that the regression expects, it is `ppo`.

  >>> import hawis_jax as hx
  >>> hx.policy(16).settings.proposals
  16

  Args:
    proposals: vectors an update, at least 2.
    hidden: GRU units of the policy.
    learning_rate: Adam's.
    epochs: gradient steps on a set of proposals.
    clip: of the probability ratio.
    entropy: weight of the entropy bonus, in the first and the last update.
    imagined: sets of proposals an update that the regression scores.
    least_correlation: that ranks have, for the regression to be used.
  """
  return _choose("policy", locals())


def ppo(
  proposals: int = 64,
  *,
  hidden: int = 64,
  learning_rate: float = 1e-2,
  epochs: int = 4,
  clip: float = 0.2,
  entropy: tuple[float, float] = (0.05, 0.001),
) -> Choice:
  """Returns PPO on ranks within an update (Schulman et al. 2017).

  A recurrent policy chooses layer after layer. Fresh, it samples the feasible
  vectors uniformly.

  >>> import hawis_jax as hx
  >>> hx.ppo(proposals=16).name
  'ppo'

  Args:
    proposals: vectors an update, at least 2.
    hidden: GRU units of the policy.
    learning_rate: Adam's.
    epochs: gradient steps an update.
    clip: of the probability ratio.
    entropy: weight of the entropy bonus, in the first and the last update.
  """
  return _choose("ppo", locals())


def reinforce(
  proposals: int = 64,
  *,
  hidden: int = 64,
  learning_rate: float = 1e-2,
  entropy: tuple[float, float] = (0.05, 0.001),
) -> Choice:
  """Returns REINFORCE with a moving baseline (Williams 1992).

  The policy is that of `ppo`, as are the arguments; a step an update.

  >>> import hawis_jax as hx
  >>> hx.reinforce(hidden=32).settings.hidden
  32
  """
  return _choose("reinforce", locals())


def predictor(proposals: int = 64) -> Choice:
  """Returns Thompson sampling (1933) from a Bayesian linear regression.

  Its features are logarithms of widths, their squares and neighbours' products.
  Each of the `proposals` draws of coefficients an update proposes its best of a
  pool of feasible vectors.

  >>> import hawis_jax as hx
  >>> hx.predictor().name
  'predictor'
  """
  return _choose("predictor", locals())


def evolution(
  proposals: int = 64, *, population: int = 64, tournament: int = 16
) -> Choice:
  """Returns regularised evolution (Real et al., AAAI 2019).

  The best of a random tournament is a child's parent; the oldest vectors leave.

  >>> import hawis_jax as hx
  >>> hx.evolution(population=32, tournament=8).settings.tournament
  8

  Args:
    proposals: children an update.
    population: vectors that may be parents; so many first ones are random.
    tournament: vectors that meet for a child.
  """
  return _choose("evolution", locals())


def local_search(proposals: int = 64) -> Choice:
  """Returns hill climbing (White et al., UAI 2021).

  The best vector so far and `proposals` - 1 neighbours of it, which differ in
  up to four layers, are scored anew in every update.

  >>> import hawis_jax as hx
  >>> hx.local_search(proposals=8).name
  'local'
  """
  return _choose("local", locals())


def random_search(proposals: int = 64) -> Choice:
  """Returns uniform draws (Li & Talwalkar, UAI 2019), `proposals` an update.

  >>> import hawis_jax as hx
  >>> hx.random_search(proposals=8).name
  'random'
  """
  return _choose("random", locals())


def per_stage(proposals: int = 64, *, groups: int = 3) -> Choice:
  """Returns random draws of the vectors of one scale a group of blocks.

  Published ones are of that kind, e.g. HAWIS-A of ResNet-18 (ASP-DAC 2022).

  >>> import hawis_jax as hx
  >>> hx.per_stage(groups=4).settings.groups  # a ResNet for ImageNet
  4

  Args:
    proposals: vectors an update.
    groups: of blocks; all have as many layers, and the first has the stem too.
  """
  return _choose("per_stage", locals())
