"""The public names: documented, with examples that run, imported when used."""

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import hawis_jax as hx

_ROOT = pathlib.Path(__file__).parents[1]
_EXAMPLES = sorted((_ROOT / "examples").glob("*.py"))
_NAMES = [name for name in hx.__all__ if name != "__version__"]


def _module(name):
  module, _, attribute = hx._PUBLIC[name].partition(":")
  return importlib.import_module(f"hawis_jax.{module}"), attribute or name


@pytest.mark.parametrize("name", _NAMES)
def test_public_name_has_an_example_that_runs(name):
  """And a docstring that begins with a sentence; tables have the package's."""
  value = getattr(hx, name)
  is_table = isinstance(value, dict)
  documentation = hx.__doc__ if is_table else inspect.getdoc(value)
  assert re.match(r"[A-Z].+?\.\s", documentation, re.DOTALL)
  names = {} if is_table else dict(vars(_module(name)[0]))
  parser, output = doctest.DocTestParser(), io.StringIO()
  test = parser.get_doctest(documentation, names, name, None, None)
  assert f"hx.{name}" in "".join(example.source for example in test.examples)
  # The examples are a user's, who has not set what tests set.
  with jax.numpy_rank_promotion("allow"):
    doctest.DocTestRunner().run(test, out=output.write)
  assert not output.getvalue()


@pytest.mark.parametrize("name", ["PRESETS", "WIDTHS"])
def test_a_table_has_a_comment_above_it(name):
  module, attribute = _module(name)
  sources = pathlib.Path(module.__file__).parent.glob("*.py")
  pattern = rf"^#.*\n{attribute}\b.* = \{{"
  assert any(
    re.search(pattern, path.read_text(), re.MULTILINE) for path in sources
  )


def test_dir_is_all_and_other_names_are_refused():
  assert dir(hx) == sorted(hx.__all__)
  with pytest.raises(AttributeError, match="has no attribute 'sweep'"):
    hx.sweep  # noqa: B018


def test_import_takes_neither_jax_nor_flax():
  program = (
    "import sys; before = set(sys.modules); import hawis_jax; "
    "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
  )
  result = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=True
  )
  imported = set(result.stdout.split())
  assert "hawis_jax" in imported
  assert imported - {"hawis_jax"} <= sys.stdlib_module_names


@pytest.mark.parametrize("path", _EXAMPLES, ids=lambda path: path.stem)
def test_example_uses_public_names_alone(path):
  tree = ast.parse(path.read_text())
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom):
      assert not (node.module or "").startswith("hawis_jax")
    elif isinstance(node, ast.Import):
      for alias in node.names:
        assert not alias.name.startswith("hawis_jax.")
        assert alias.name != "hawis_jax" or alias.asname == "hx"
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      assert node.value.id != "hx" or node.attr in hx.__all__


def _run(path):
  """Runs an example; returns what it prints, and its names."""
  names, output = {}, io.StringIO()
  code = compile(path.read_text(), path, "exec")
  with contextlib.redirect_stdout(output):
    exec(code, names)  # noqa: S102
  return output.getvalue(), names


def test_example_of_chips_runs():
  output, names = _run(_ROOT / "examples" / "evaluate_chips.py")
  agreement = names["agreement"]
  assert agreement.shape == (16,) and agreement.std() > 0
  assert output.startswith(f"{agreement.mean():.1%} of the images")
  assert agreement.mean() > 0.5  # ten classes, a tenth of the cells


@pytest.mark.slow
def test_example_of_a_search_finds_the_best_vector():
  """The score's maximum is within the budget, among the evenest vectors."""
  output, names = _run(_ROOT / "examples" / "search_own_score.py")
  best, geometry = names["best"], names["geometry"]
  assert output.startswith(str(best.widths))
  assert hx.network_cost(best.widths, geometry).macs <= 1.5e6
  assert (best.scores <= best.score + 1e-9).all()
  np.testing.assert_allclose(
    best.scores, np.sqrt(best.vectors).sum(1), rtol=1e-6
  )
  assert len(best.scores) == 40 * 16


_SPACE = (((4, 8), (8, 16), (16, 32)), 7)


def _feasible():
  space = hx.width_space(*_SPACE)
  geometry = hx.cifar_geometry(8, (8, 8, 1), 16, 10)
  costs = hx.cost_tables(space.table, geometry, "macs")
  return hx.feasible_set(space, costs, (0.0, 1e9))


def test_a_noisy_score_counts_by_its_mean():
  """A vector's score is the mean of its scores, however they vary."""
  noise = np.random.default_rng(1)
  best = hx.search_widths(
    jax.random.key(0),
    lambda widths: widths.sum(1) + noise.normal(0, 20, len(widths)),
    _feasible(),
    method=hx.random_search(proposals=32),
    num_updates=8,
  )
  same = (best.vectors == best.widths).all(1)
  assert best.score == best.scores[same].mean()
  assert np.std(best.scores - best.vectors.sum(1)) > 10


@pytest.mark.parametrize(
  "scores", [np.zeros(3), np.full(4, np.nan)], ids=["shape", "nan"]
)
def test_scores_that_cannot_be_learnt_from_are_refused(scores):
  with pytest.raises(hx.InputError, match="needed are 4 finite scores"):
    hx.search_widths(
      jax.random.key(0),
      lambda widths: scores,
      _feasible(),
      method=hx.random_search(proposals=4),
    )


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: hx.evolution(tournament=0), "evolution, tournament: got 0"),
    (lambda: hx.evolution(2.5), "evolution, proposals: got 2.5"),
    (lambda: hx.policy(1), "policy, proposals: got 1, .* integer from 2"),
    (lambda: hx.local_search(1), "local, proposals: got 1, .* from 2"),
    (lambda: hx.ppo(clip=0.0), "ppo, clip: got 0.0, needed is more than 0"),
    (lambda: hx.policy(entropy=(-1.0, 0)), r"entropy: got \(-1.0, 0\)"),
  ],
)
def test_a_method_refuses_what_it_cannot_search_with(make, message):
  with pytest.raises(hx.InputError, match=message):
    make()


def test_a_search_of_no_updates_is_refused():
  with pytest.raises(hx.InputError, match="num_updates: got 0, needed is an"):
    hx.search_widths(jax.random.key(0), None, _feasible(), num_updates=0)


@pytest.mark.parametrize("key", [0, np.int64(3), np.zeros((3, 2), np.uint32)])
def test_a_seed_is_no_key(key):
  kernel = np.ones((2, 2), np.float32)
  net = {"params": {"head": {"kernel": kernel}}}
  small = hx.cifar_resnet(8, (4,) * 7, num_classes=10, levels=8)
  space = hx.width_space(((4, 8),), num_layers=1)
  for door in (
    lambda: hx.program(key, net, hx.Device()),
    lambda: hx.conductances(key, kernel, hx.Device()),
    lambda: hx.effective_weights(key, kernel, hx.Device()),
    lambda: hx.place(key, net, hx.Device(), hx.Placing()),
    lambda: hx.init_variables(small, key, (8, 8, 1)),
    lambda: hx.search_widths(key, lambda widths: widths.sum(-1), space),
  ):
    with pytest.raises(hx.InputError, match="key: got .*, needed is one key"):
      door()


def test_keys_of_another_kind_are_refused_before_they_meet_a_program():
  net = hx.cifar_resnet(8, (4,) * 7, num_classes=10, levels=8)
  variables = hx.init_variables(net, jax.random.key(0), (8, 8, 1))
  images, labels = np.zeros((2, 8, 8, 1), np.uint8), np.arange(2)
  key = jax.random.key(0, impl="rbg")
  with pytest.raises(
    hx.InputError, match="got a key<rbg>, needed is a key<fry>"
  ):
    hx.evaluate_chips(key, net, variables, images, labels, hx.Device())


def test_a_field_that_a_device_does_not_have_is_told_with_its_like():
  with pytest.raises(hx.InputError, match="did you mean 'stuck_off'"):
    hx.Device(stuck_of=0.1)
  with pytest.raises(hx.InputError, match="Device: got 'preset', allowed are"):
    hx.Device(preset="pcm")
