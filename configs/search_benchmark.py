"""All search methods on the digits, three budgets of energy each.

for seed in 0 1 2 3 4 5 6 7; do
  python -m hawis_jax.main --config configs/search_benchmark.py \
    --config.seed=$seed --workdir runs/search_benchmark/$seed \
    --stages pretrain,search
done
python benchmarks/search.py --runs runs/search_benchmark

Every method proposes equally many vectors, scored on the same chips.
"""

import pathlib

from hawis_jax.config import load
from hawis_jax.search import registry

_DIGITS = pathlib.Path(__file__).with_name("digits.py")


def get_config():
  """Returns the configuration."""
  c = load.load(_DIGITS)
  c.space.cost = "energy"
  c.space.technology = "neurosim_22nm"
  c.device.preset = "reram_wan2022"
  # Without the preset's write error, as benchmarks/search.py was measured.
  c.search.scenarios = (
    dict(stuck_on=0.0175, stuck_off=0.0904, write_error=0.0),
    dict(variation=0.5),
  )
  c.pretrain.faulty_widths = 0
  c.search.selection = 0.0  # of the first method alone
  c.search.front = (0.7, 1.4)
  c.search.methods = registry.NAMES
  c.search.updates = 20
  c.search.proposals = 8
  c.search.population = 32
  c.search.tournament = 8
  c.search.candidates = 4
  return c
