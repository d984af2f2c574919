"""How much work a run's stages are, for an estimate of the time that is left.

It is multiply-accumulates of images that pass through nets, three of them where
a gradient is taken; compilation and programming are not counted. At the speed
of what is done, that tells the order of what is ahead, not minutes.
"""

from collections.abc import Sequence
import pathlib

import numpy as np

from hawis_jax.networks import net_names
from hawis_jax.pipeline import nets
from hawis_jax.pipeline import results
from hawis_jax.pipeline import robustness
from hawis_jax.pipeline.experiment import Experiment

_GRADIENT = 3  # passes forward that a step of training counts as


def ahead(
  experiment: Experiment, workdir: pathlib.Path, stages: Sequence[str]
) -> dict[str, float]:
  """Returns the work of every progress of some stages, see `Metrics.plan`."""
  config, found = experiment.config, {}
  if "pretrain" in stages:
    section = config.pretrain
    branches = section.warmup_steps + (2 + section.random_widths) * (
      section.steps - section.warmup_steps
    )
    images = _GRADIENT * branches * section.batch_size
    found["pretrain"] = images * _macs(experiment, experiment.space.max_widths)
  if "search" in stages:
    found |= _search(experiment)
  if "train" in stages:
    images = _GRADIENT * config.train.steps * config.train.batch_size
    for net in nets.trained(experiment):
      found[f"train/{net}"] = images * _net_macs(net, experiment, workdir)
  if "robustness" in stages:
    section = config.robustness
    images = section.images or len(experiment.splits.test)
    found["robustness"] = float(
      sum(
        (section.chips if step.severity.is_random else 1)
        * images
        * _net_macs(step.net, experiment, workdir)
        for step in robustness.measurements(config)
        if step.severity is not None
      )
    )
  return found


def _search(experiment):
  """Of the search, its candidates and their selection."""
  config, section = experiment.config, experiment.config.search
  macs = _macs(experiment, experiment.space.max_widths)
  drawn = len(experiment.budgets) * len(section.methods)
  scenarios, chips = len(section.scenarios), section.chips
  vectors = drawn * section.proposals
  vectors += len(experiment.budgets) * section.references
  each = scenarios * chips * section.images + section.calibration_images
  validation = len(experiment.splits.validation)
  candidates = scenarios * section.candidate_chips * validation
  found = {
    "search": section.updates * vectors * each * macs,
    "search/candidates": drawn * section.candidates * candidates * macs,
  }
  if section.selection:
    images = section.selection * config.train.steps * config.train.batch_size
    found["search/selection"] = _GRADIENT * images * macs
  return found


def _macs(experiment, widths):
  return float(experiment.cost(np.array(widths)).macs)


def _net_macs(net, experiment, workdir):
  """Of one image; as long as it isn't found, a net is as wide as may be."""
  name = net_names.parse(net).widths
  widths = experiment.widths.get(name)
  if not widths and results.search_path(workdir).exists():
    result = results.load_search(workdir)
    widths = results.found_widths(result, experiment.config).get(name)
  return _macs(experiment, widths or experiment.space.max_widths)
