"""Selection by training: the search's best are trained, the worse half goes.

Successive halving (Jamieson & Talwalkar, AISTATS 2016) of the first method's
best vectors at the main budget and the uniform net of equal cost. All inherit
the super-net's weights and are trained on chips at their own widths, on the
same batches and chips; one program serves all, because widths are its input.
After every round they are scored on new chips, of all validation images, and
the better half goes on. What decides is the mean of that score and the
super-net's: their chips and weights are not the same, so part of what each errs
by is its own. The uniform net always goes on, so the net that is found is never
worse than it by what the last round decides by.

Axes: L layers, S chips of all scenarios.
"""

from collections.abc import Callable, Iterator, Mapping
import functools
import pathlib
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from hawis_jax import errors
from hawis_jax.config import settings
from hawis_jax.networks import net_variables
from hawis_jax.pipeline import candidates
from hawis_jax.pipeline import nets
from hawis_jax.pipeline.experiment import Experiment
from hawis_jax.runtime import checkpoint
from hawis_jax.runtime import loop
from hawis_jax.runtime import programs
from hawis_jax.runtime import sharding
from hawis_jax.runtime.metrics import Metrics
from hawis_jax.search import reward
from hawis_jax.training import fixed_net
from hawis_jax.training import optimization

Widths = tuple[int, ...]


def select(
  experiment: Experiment,
  scorer: reward.Scorer,
  scores: Mapping[Widths, float],
  uniform: Widths | None,
  metrics: Metrics,
  folder: pathlib.Path,
) -> dict:
  """Returns what is selected, and all scores, for search/result.json.

  Args:
    experiment: of the run.
    scorer: the super-net that they inherit from, and images.
    scores: {widths: robust score in the super-net} of the search's candidates,
      the best first, and of `uniform`; all of the same chips.
    uniform: widths of the net to beat; None: there is none.
    metrics: of the run.
    folder: where every training is saved, to go on from.

  Raises:
    InputError: a chip is not finite.
    Preempted: the run was asked to stop.
  """
  config = experiment.config.search
  first = [uniform] if uniform else []
  first += [widths for widths in scores if widths != uniform]
  alive = first[: config.selected]
  sizes = round_sizes(len(alive))
  steps = _steps(experiment.config, sizes)
  train = _trainer(experiment, steps, metrics, folder)
  score = _scorer(experiment, scorer)
  # Copies: a training donates its first state.
  params = {widths: scorer.params for widths in alive}
  rounds = []
  for index, size in enumerate(sizes):
    alive = _better(alive, rounds, uniform, size)
    params = {
      widths: train(params[widths], widths, index, first.index(widths))
      for widths in alive
    }
    rounds.append([])
    for widths in alive:
      entry = {"widths": list(widths), **score(params[widths], widths, index)}
      entry["mean"] = (entry["score"] + scores[widths]) / 2
      rounds[-1].append(entry)
  # The first of equal ones: the uniform net is not given up for nothing.
  found = max(rounds[-1], key=lambda entry: entry["mean"])
  return {"found": found["widths"], "steps": steps, "rounds": rounds}


def round_sizes(num: int) -> list[int]:
  """Returns how many of `num` candidates are trained in every round.

  >>> round_sizes(8)
  [8, 4, 2]
  """
  sizes = [num]
  while sizes[-1] > 2:
    sizes.append(-(-sizes[-1] // 2))
  return sizes


def jobs(experiment: Experiment) -> Iterator[Callable[[], Any]]:
  """Yields what compiles the programs, were there as many as are wanted."""
  config, mesh = experiment.config, sharding.training_mesh()

  def compile_step():
    sizes = round_sizes(config.search.selected)
    made = _programs(experiment, _steps(config, sizes))
    params = net_variables.shapes(
      experiment.supernet, experiment.splits.image_shape
    )["params"]
    state = jax.eval_shape(made.start, params)
    state = sharding.abstract(state, sharding.replicated(mesh))
    made.step.compile(
      state,
      np.int32(0),
      nets.batch_shapes(experiment, config.train.batch_size, mesh),
      np.empty(len(experiment.supernet.max_widths), np.int32),
    )

  yield compile_step
  yield lambda: candidates.compile_score(experiment, ideal=False, vectors=1)


def _steps(config, sizes):
  """Of a candidate in a round."""
  return int(config.search.selection * config.train.steps / sum(sizes))


def _better(alive, rounds, uniform, size):
  """The best `size` of the last round, in the order of `alive`."""
  if not rounds:
    return alive
  means = [entry["mean"] for entry in rounds[-1]]
  kept = sorted(range(len(alive)), key=lambda i: -means[i])
  kept.sort(key=lambda i: alive[i] != uniform)  # it stays whatever it scores
  return [alive[i] for i in sorted(kept[:size])]


class _Programs(NamedTuple):
  """Of a training.

  Attributes:
    start: params -> the state before step 0.
    step: (state, number of the step, batch, widths) -> (state, metrics).
  """

  start: Callable[..., Any]
  step: programs.Program


@programs.once(1)
def _programs(experiment, steps):
  """What trains a candidate for so many steps."""
  config, section = experiment.config, experiment.config.train
  mesh, module = sharding.training_mesh(), experiment.supernet
  optimizer = optimization.make_optimizer(
    nets.optimizer_settings(section.optimizer), steps
  )
  root = experiment.key("selection_chips")
  recipe = fixed_net.Recipe(
    section.microbatches,
    section.label_smoothing,
    section.margin if section.loss == "margin" else 0.0,
    chips=nets.chips(settings.selection_devices(config), config),
  )

  # Once: every call of `make_init` is another program to compile.
  make = optimization.make_init(
    module, experiment.splits.image_shape, optimizer
  )

  def start(params):
    fresh = make(root)
    params = jax.tree.map(jnp.copy, params)
    return fresh.replace(params=params, opt_state=optimizer.init(params))

  @functools.partial(
    jax.jit, donate_argnums=0, out_shardings=sharding.replicated(mesh)
  )
  def step(state, number, batch, widths):
    return fixed_net.train_step(
      state,
      batch,
      key=jax.random.fold_in(root, number),
      progress=1.0,
      module=module,
      optimizer=optimizer,
      recipe=recipe,
      mesh=mesh,
      widths=widths,
    )

  return _Programs(start, programs.of(step))


def _trainer(experiment, steps, metrics, folder):
  """Returns (params, widths, round, number of the candidate) -> params."""
  config, section = experiment.config, experiment.config.train
  start, step = _programs(experiment, steps)
  mesh = sharding.training_mesh()

  def train(params, widths, index, number):
    before = index * steps  # every round has batches and chips of its own
    batches = functools.partial(
      experiment.train_batches, experiment.splits.train, section.batch_size
    )
    widths = np.array(widths, np.int32)
    place = folder / f"{index}_{number}"
    with checkpoint.Checkpoints(place, keep=1) as checkpoints:
      return loop.run_steps(
        lambda state, now, batch: step(
          state, np.int32(before + now), batch, widths
        ),
        sharding.place(start(params), mesh),
        name=f"search/selection/{index}_{number}",
        total=steps,
        checkpoints=checkpoints,
        metrics=metrics,
        log_every=config.log_every,
        checkpoint_seconds=config.checkpoint_seconds,
        batches=lambda first: batches(before + first),
      ).params

  return train


def _scorer(experiment, scorer):
  """Returns (params, widths, round) -> {"score", "chips"}."""
  config = experiment.config.search
  score = candidates.make_score(experiment, ideal=False)
  scorer = scorer.replace(
    images=experiment.evaluation(
      experiment.splits.validation, config.batch_size
    )
  )
  num = len(settings.search_devices(experiment.config)) - 1
  root = experiment.key("selection")

  def score_one(params: chex.ArrayTree, widths: Widths, index: int) -> dict:
    keys = reward.chip_keys(
      jax.random.fold_in(root, index), config.candidate_chips, num
    )
    placed = sharding.place(
      (scorer.replace(params=params), keys), sharding.training_mesh()
    )
    vectors = np.array([widths], np.int32)
    accuracy = np.asarray(score(placed[0], vectors, placed[1]).accuracy)
    robust = reward.robust_score(accuracy, num, config.cvar_weight)[0]
    if not np.isfinite(robust):
      raise errors.InputError(
        "config.search.scenarios: got chips whose weights or logits are not "
        "finite in float32 after training"
      )
    chips = accuracy.astype(np.float64).reshape(num, -1).mean(0)
    return {"score": float(robust), "chips": chips.tolist()}

  return score_one
