"""UCI digits (8x8): the whole pipeline in a few minutes on two cores.

python -m hawis_jax.main --config configs/digits.py

The found net, trained on chips, stands beside itself trained without, and
beside opponents trained on chips: as large and uniform, of the 1x widths, and
of these with 8-bit weights.
"""

from hawis_jax.config import settings


def get_config():
  """Returns the configuration."""
  c = settings.default()
  c.data.name = "digits"
  c.data.levels = 8
  c.network.depth = 8
  c.network.base_widths = (8, 16, 32)
  c.space.choices = (
    (8, 12, 16, 20, 24),
    (16, 24, 32, 40, 48),
    (32, 48, 64, 80, 96),
  )
  c.pretrain.steps = 1000
  c.pretrain.warmup_steps = 200
  c.pretrain.batch_size = 64
  c.pretrain.faulty_widths = 2
  c.search.budget_uniform = 2.0
  c.search.updates = 30
  c.search.images = 128  # half the validation images; all rank the candidates
  c.search.proposals = 16
  c.search.chips = 4
  c.search.vectors_per_step = 32
  c.search.batch_size = 64
  c.search.candidates = 8
  # What chips do where widths matter most.
  c.search.scenarios = (
    dict(device=1.0),  # its own effects: 1.75 % stuck on, 9.04 % off
    dict(variation=0.7),
  )
  c.search.selection = 1.0
  c.hardware_aware.most_severity = 1.5  # on search.scenarios
  c.train.nets = (
    "found_chips",
    "found",
    "uniform_chips",
    "baseline_1x_chips",
    "baseline_1x_int8_chips",
  )
  c.train.loss = "margin"
  c.train.steps = 2000
  c.train.batch_size = 64
  c.train.optimizer.name = "adam"
  c.train.optimizer.learning_rate = 1e-2
  c.train.optimizer.schedule = "cosine"
  # Of four that were tried, the best for 8-bit nets on chips: there SGD of a
  # learning rate of 0.1 learns nothing of use.
  c.train.reference_optimizer.name = "adam"
  c.train.reference_optimizer.learning_rate = 3e-3
  c.robustness.chips = 32
  return c
