"""The reward, the chips behind it, and the choice of candidates."""

import functools
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import short_run

from hawis_jax import cost
from hawis_jax import errors
from hawis_jax.config import settings
from hawis_jax.networks import net_variables
from hawis_jax.networks import width_vectors
from hawis_jax.pipeline import candidates
from hawis_jax.pipeline import halving
from hawis_jax.pipeline import results
from hawis_jax.pipeline import search
from hawis_jax.pipeline.experiment import prepare
from hawis_jax.robustness import monte_carlo
from hawis_jax.runtime import loop
from hawis_jax.runtime import sharding
from hawis_jax.runtime.metrics import Metrics
from hawis_jax.search import method
from hawis_jax.search import registry
from hawis_jax.search import reward
from hawis_jax.search import selection
from hawis_jax.search import update


@pytest.mark.parametrize("scenarios, chips", [(1, 1), (3, 4), (2, 9)])
def test_robust_score_is_the_formula(rng, scenarios, chips):
  """Mean over scenarios of (1 - b) mean + b mean of the worst quarter."""
  values = rng.uniform(size=(scenarios, chips, 5)).astype(np.float32)
  weight = float(rng.uniform())
  expected = np.zeros(5)
  for scenario in values.astype(np.float64):
    worst = np.sort(scenario, axis=0)[: int(np.ceil(chips / 4))]
    expected += (1 - weight) * scenario.mean(0) + weight * worst.mean(0)
  score = jax.jit(reward.robust_score, static_argnums=(1, 2))
  got = score(values.reshape(-1, 5), scenarios, weight)
  np.testing.assert_allclose(got, expected / scenarios, atol=1e-5)


def test_chips_are_shared_by_scenarios():
  keys = jax.jit(
    lambda key: [
      jax.random.key_data(each) for each in reward.chip_keys(key, 4, 3)
    ]
  )(jax.random.key(3))
  keys = np.stack(jax.device_get(keys))
  np.testing.assert_array_equal(keys[0], keys[1])
  np.testing.assert_array_equal(keys[0], keys[2])
  assert len(np.unique(keys[0], axis=0)) == 4


def test_candidates_are_distinct_and_one_lucky_score_counts_half():
  choices = np.array([[0, 1], [2, 2], [0, 1], [0, 1], [1, 0], [2, 2]])
  advantages = np.array([0.03, -0.01, 0.02, 0.04, 0.044, 0.01])
  best = selection.best_vectors(choices, advantages, 2)
  # (0 1), scored thrice: 0.09 / 4; (1 0), once: 0.044 / 2.
  assert [tuple(vector.tolist()) for vector, _ in best] == [(0, 1), (1, 0)]
  # Given is the plain mean of their advantages.
  np.testing.assert_allclose(
    [advantage for _, advantage in best], [0.03, 0.044]
  )
  everything = selection.best_vectors(choices, advantages, 10)
  assert len(everything) == 3
  np.testing.assert_allclose(everything[-1][1], 0, atol=1e-9)


def test_candidates_shrink_to_what_a_method_predicts(rng):
  choices = rng.integers(0, 6, (40, 1))
  advantages = rng.normal(size=40)
  best = selection.best_vectors(
    choices, advantages, 6, lambda v: 3 * v[:, 0] + 7
  )
  offset = np.mean(advantages - 3 * choices[:, 0])
  values = []
  for vector, mean in best:
    own = advantages[choices[:, 0] == vector[0]]
    np.testing.assert_allclose(mean, own.mean())
    predicted = 3 * vector[0] + offset
    values.append(predicted + (own - predicted).sum() / (len(own) + 1))
  assert values == sorted(values, reverse=True)


def test_the_front_is_what_no_other_dominates(rng):
  points = rng.integers(0, 8, (30, 2))
  entries = [
    {
      "budget": 0,
      "widths": [int(i)],
      "score": float(score),
      "cost": {"energy_joule": float(energy)},
    }
    for i, (score, energy) in enumerate(points)
  ]
  got = selection.front({"a": entries[:15], "b": entries[15:]})
  expected = {
    (float(score), float(energy))
    for score, energy in points
    if not any(
      s >= score and e <= energy and (s, e) != (score, energy)
      for s, e in points
    )
  }
  assert {(p["score"], p["energy_joule"]) for p in got} == expected
  assert len(got) == len(expected)
  assert [p["energy_joule"] for p in got] == sorted(
    p["energy_joule"] for p in got
  )


def _config(data_dir):
  """A small space on the digits."""
  config = settings.default()
  config.network.depth = 8
  config.network.base_widths = (4, 4, 8)
  config.search.budget_uniform = 1.5
  config.space.choices = ((4, 8), (4, 6, 8), (8, 12))
  config.search.images = config.search.calibration_images = 64
  config.search.batch_size = 32
  config.data.levels, config.data.data_dir = 4, str(data_dir)
  return config


def _scores(devices, seed, data_dir, block=16):
  """Scores of five vectors on a mesh of some devices, `[S, P]`."""
  config = _config(data_dir)
  experiment = prepare(config)
  shape = experiment.splits.image_shape
  init = jax.jit(net_variables.init, static_argnums=(0, 2))
  net = init(experiment.supernet, jax.random.key(seed), shape)
  scorer = candidates.make_scorer(experiment, net["params"])
  rng = np.random.default_rng(seed)
  vectors = [
    [rng.choice(c) for c in experiment.space.choices] for _ in range(5)
  ]
  mesh = sharding.evaluation_mesh(1, jax.devices()[:devices])
  devices = settings.search_devices(config)[:-1]
  score = reward.make_score(experiment.supernet, devices, block, mesh)
  keys = reward.chip_keys(jax.random.key(seed), 3, 2)
  replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  arguments = jax.device_put((scorer, jnp.array(vectors), keys), replicated)
  scores = jax.jit(score)(*arguments)
  return np.asarray(scores.accuracy), np.asarray(scores.cross_entropy)


_CHILD = """
import sys
sys.path.insert(0, {tests!r})
import jax, numpy as np, test_search as t
assert len(jax.devices()) == 8
for devices in (2, 8):
  accuracy, entropy = t._scores(devices, {seed}, {data!r})
  np.savez({path!r} + str(devices), accuracy=accuracy, entropy=entropy)
"""


@pytest.mark.slow
@pytest.mark.exact
def test_scores_do_not_depend_on_the_number_of_devices(tmp_path, rng):
  """Vectors are shared out: 5 over 1, 2 and 8 devices; of one, also by two."""
  seed = int(rng.integers(2**31))
  accuracy, entropy = _scores(1, seed, tmp_path)
  assert accuracy.shape == (6, 5) and np.ptp(accuracy) > 0
  np.testing.assert_array_equal(_scores(1, seed, tmp_path, 2)[0], accuracy)
  tests, path = pathlib.Path(__file__).parent, str(tmp_path / "scores")
  child = _CHILD.format(
    tests=str(tests), seed=seed, data=str(tmp_path), path=path
  )
  flags = os.environ.get("XLA_FLAGS", "")
  environment = os.environ | {
    "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=8",
    "JAX_PLATFORMS": "cpu",
  }
  subprocess.run([sys.executable, "-c", child], env=environment, check=True)
  for devices in (2, 8):
    with np.load(f"{path}{devices}.npz") as other:
      np.testing.assert_array_equal(other["accuracy"], accuracy)
      np.testing.assert_allclose(other["entropy"], entropy, rtol=1e-5)


def test_the_penalty_is_on_what_exceeds_the_budget():
  space = width_vectors.width_space(((8, 16, 24), (16, 40), (32, 64, 80)), 7)
  geometry = cost.cifar_geometry(8, (9, 9, 3), 8, 10, (64, 64))
  costs = cost.tables(space.table, geometry, "energy")
  cheapest, dearest = cost.cost_range(space, costs)
  amounts = np.array([0.3, 0.6]) * dearest + 0.7 * cheapest
  feasible = cost.feasible_set(space, costs, [(0, 1.01 * dearest)] * 2)
  context = method.make_context(
    space, feasible, costs, geometry.positions, amounts
  )

  @jax.jit
  def draw_and_take_excess(key, context, feasible):
    keys = jax.random.split(key, (3, 2, 50))
    draw = jax.vmap(jax.vmap(jax.vmap(feasible.sample, (0, None))), (0, None))
    choices = draw(keys, jnp.arange(2))
    return width_vectors.take(context.widths, choices), update.excess(
      context, choices
    )

  vectors, got = jax.device_get(
    draw_and_take_excess(jax.random.key(0), context, feasible)
  )
  spent = cost.network_cost(vectors.astype(np.int64), geometry).energy_joule
  expected = np.maximum(spent / amounts[None, :, None] - 1, 0)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
  assert (got == 0).any() and (got > 0).any()


def test_selection_keeps_the_better_half_and_the_uniform_net(monkeypatch):
  """Which scores worst until the last round, where it is best."""
  config = settings.default()
  config.search.selection, config.train.steps = 0.5, 100
  vectors = {(n,): 0.0 for n in range(10)}
  uniform, trained = (3,), []
  scores = {3: (0.0, 0.0, 0.9), 7: (0.6, 0.8, 0.8), 5: (0.7, 0.7, 0.1)}

  def trainer(experiment, steps, metrics, folder):
    assert steps == 50 // (8 + 4 + 2)

    def train(params, widths, index, number):
      trained.append((index, widths))
      return params + 1

    return train

  def scorer(experiment, given):
    def score(params, widths, index):
      assert params == index + 1  # it goes on from the round before
      found = scores.get(widths[0], (widths[0] / 100,) * 3)
      return {"score": found[index], "chips": []}

    return score

  monkeypatch.setattr(halving, "_trainer", trainer)
  monkeypatch.setattr(halving, "_scorer", scorer)
  experiment = types.SimpleNamespace(config=config)
  start = types.SimpleNamespace(params=0)
  found = halving.select(experiment, start, vectors, uniform, None, None)
  assert found["found"] == [3]
  rounds = [[w for i, (w,) in trained if i == n] for n in range(3)]
  # The first eight; of those the best four, uniform among them; the best two.
  assert rounds == [[3, 0, 1, 2, 4, 5, 6, 7], [3, 5, 6, 7], [3, 7]]
  scores[3] = (0.0, 0.0, 0.8)  # equal: it is not given up
  found = halving.select(experiment, start, vectors, uniform, None, None)
  assert found["found"] == [3]
  # The super-net's score counts as much as that after training, in each round.
  trained.clear()
  vectors[(6,)], vectors[(5,)] = 1.1, 1.2
  found = halving.select(experiment, start, vectors, uniform, None, None)
  assert [w for i, (w,) in trained if i == 2] == [3, 5]
  assert found["found"] == [5]
  assert [entry["mean"] for entry in found["rounds"][2]] == [0.4, 0.65]
  # Where there is none within the budget, a candidate has its place.
  trained.clear()
  found = halving.select(experiment, start, vectors, None, None, None)
  assert [w for i, (w,) in trained if i == 0] == [*range(8)]
  assert [w for i, (w,) in trained if i == 2] == [5, 6]


@pytest.mark.slow
def test_a_selection_that_was_stopped_goes_on(data_dir, tmp_path, monkeypatch):
  """Trainings that are finished are not done again, the others are the same."""
  config = short_run.config(
    data__data_dir=str(data_dir), search__selection=3.0, search__selected=3
  )
  experiment = prepare(config)
  init = jax.jit(net_variables.init, static_argnums=(0, 2))
  shape = experiment.splits.image_shape
  net = init(experiment.supernet, jax.random.key(0), shape)
  scorer = candidates.make_scorer(experiment, net["params"])
  (uniform,) = experiment.uniforms
  narrow, wide = experiment.space.min_widths, experiment.space.max_widths
  run_steps, names = loop.run_steps, []

  def counted(*args, **kwargs):
    if stopping and len(names) == 4:
      raise errors.Preempted("here")
    names.append(kwargs["name"])
    return run_steps(*args, **kwargs)

  monkeypatch.setattr(loop, "run_steps", counted)

  def select(folder):
    with Metrics(tmp_path / folder) as metrics:
      place = tmp_path / folder / "selection"
      vectors = {w: 0.0 for w in (tuple(narrow), tuple(wide), uniform)}
      return halving.select(
        experiment, scorer, vectors, uniform, metrics, place
      )

  stopping = False
  whole = select("whole")
  assert len(names) == 3 + 2 and whole["steps"] == 3 * 8 // (3 + 2)
  stopping = True
  names.clear()
  with pytest.raises(errors.Preempted):
    select("stopped")
  stopping = False
  lines = (tmp_path / "stopped" / "metrics.jsonl").read_text()
  assert select("stopped") == whole
  after = (tmp_path / "stopped" / "metrics.jsonl").read_text()[len(lines) :]
  assert '"search/selection/1_' in after and "selection/0_" not in after


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Returns a function: (search fields) -> (work directory, traced vectors).

  It runs the whole search but for the net: accuracy is a function of widths
  that saturates. `traced` has the number of vectors of every time that the
  score of the updates was traced.
  """
  monkeypatch.setattr(results, "load_supernet", lambda experiment, workdir: {})

  def call(experiment_seed=0, **fields):
    config = _config(tmp_path / "tfds")
    config.seed = experiment_seed
    config.space.choices = ((4, 8, 12, 16), (4, 8, 12, 16), (8, 16, 24, 32))
    config.space.cost = "macs"
    config.search.candidates = config.search.candidate_chips = 2
    config.search.update(fields)
    experiment = prepare(config)
    widest = jnp.asarray(experiment.space.max_widths)
    traced = []  # of every scorer; the first is that of the updates

    def make_score(*_):
      mine = []
      traced.append(mine)

      def score(scorer, vectors, keys):
        mine.append(len(vectors))
        advantage = 0.5 * jnp.log(1 + (vectors / widest[None]).mean(-1))
        accuracy = jnp.tile(advantage[None], (sum(map(len, keys)), 1))
        return monte_carlo.Scores(accuracy, accuracy, -accuracy)

      return score

    monkeypatch.setattr(reward, "make_score", make_score)
    workdir = tmp_path / str(fields)
    with Metrics(workdir) as metrics:
      search.run(experiment, workdir, metrics)
    return workdir, traced[0]

  return call


def test_updates_are_traced_and_compiled_once(run, caplog):
  """Those of one call and of the next ones."""
  with jax.log_compiles():
    _, traced = run(
      methods=("evolution",), updates=6, updates_per_call=2, proposals=4
    )
  assert traced == [4 + 4]  # with the references
  compiled = "Finished XLA compilation of jit(updates)"
  assert sum(compiled in message for message in caplog.messages) == 1


def test_a_reward_that_is_not_finite_stops_the_search(run, monkeypatch):
  robust = reward.robust_score
  monkeypatch.setattr(
    reward, "robust_score", lambda *args: robust(*args) * np.nan
  )
  with pytest.raises(errors.DivergenceError) as error:
    run(methods=("random",), updates=2, proposals=2)
  message = str(error.value)
  assert message.startswith("search: random") and " is nan at step 1" in message
  assert "last good checkpoint: none" in message


@pytest.mark.parametrize("method", ["ppo", "reinforce"])
def test_a_policy_that_runs_away_stops_the_search(run, rng, method):
  """In whichever update of a call; ten times the default rate is fine."""
  fields = dict(methods=(method,), updates=24, updates_per_call=4, proposals=16)
  seed = int(rng.integers(99))
  run(**fields, learning_rate=0.1, experiment_seed=seed)
  with pytest.raises(errors.DivergenceError) as error:
    run(**fields, learning_rate=3.0, experiment_seed=seed)
  assert f"search: {method}_kl is " in str(error.value), seed
  assert ", above 10 at step " in str(error.value)


def test_every_update_meets_new_chips(tmp_path):
  """Which all vectors of the update share."""
  config = _config(tmp_path)
  config.search.update(methods=("random",), updates=3, proposals=2)
  experiment = prepare(config)
  built = search.build_methods(experiment)
  context = search.make_context(experiment)

  def score(scorer, vectors, keys):
    chips = jax.vmap(jax.random.uniform)(jnp.concatenate(keys))
    accuracy = jnp.tile(chips[:, None], (1, len(vectors)))
    return monte_carlo.Scores(accuracy, accuracy, accuracy)

  step_function = jax.jit(
    functools.partial(search.make_step(experiment, built, score), scorer=None)
  )
  state = search.init(experiment, built, context)
  for step in range(3):
    key = jax.random.key(4)
    state, _ = step_function(state, step, context=context, key=key)
  scores = np.asarray(state.reference_scores)
  assert len(np.unique(scores)) == 3
  np.testing.assert_array_equal(np.ptp(scores, axis=(1, 2)), 0)


def test_a_state_keeps_its_types(tmp_path):
  """Of every method: else the next call would be compiled anew."""
  config = _config(tmp_path)
  config.search.update(methods=registry.NAMES, updates=6, proposals=4)
  experiment = prepare(config)
  built = search.build_methods(experiment)
  context = search.make_context(experiment)

  def score(scorer, vectors, keys):
    accuracy = jnp.zeros((sum(map(len, keys)), len(vectors)))
    return monte_carlo.Scores(accuracy, accuracy, accuracy)

  def after(state, step, key):
    step_function = search.make_step(experiment, built, score)
    return step_function(state, step, None, context, key)[0]

  def types(state):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state)

  before = jax.eval_shape(lambda: search.init(experiment, built, context))
  step = jax.ShapeDtypeStruct((), jnp.int32)
  key = jax.eval_shape(lambda: experiment.key("search"))
  assert types(jax.eval_shape(after, before, step, key)) == types(before)


def test_a_penalty_moves_the_search_towards_the_budget(run):
  """Wider nets score better: a low penalty is worth it, a high one not."""
  late = {}
  for penalty in (0.02, 2.0):
    workdir, _ = run(
      methods=("evolution",),
      budget_uniform=2.0,
      updates=24,
      updates_per_call=8,
      proposals=24,
      population=24,
      tournament=8,
      penalty=penalty,
    )
    with np.load(workdir / "search" / "evaluations.npz") as table:
      spent = (table["macs"] / table["budgets"][0])[:, 0, 0]  # [U, P]
    assert (
      spent.min() < 0.8 and spent.max() > 1.5
    )  # a budget is no budget_range
    late[penalty] = spent[12:].mean()
    result = results.load_search(workdir)
    (best,) = result["best"]["evolution"]
    assert best["cost"]["macs"] <= result["budgets"][0]
  assert 0.8 < late[2.0] < 1.3 < late[0.02]
