"""Strict JAX for all tests, and what several of them use."""

import os
import pathlib
import signal
import sys

from absl import flags
import hypothesis
import pytest

from hawis_jax import backend

os.environ.setdefault("JAX_PLATFORMS", "cpu")
backend.configure()

import jax  # noqa: E402
import short_run  # noqa: E402

from hawis_jax import main  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
  """One worker has all whole runs, which then compile once; one has a file."""
  for item in items:
    group = "runs" if "run" in item.fixturenames else item.path.stem
    item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """Data beside the project that a checkout may lack."""
  path = pathlib.Path(__file__).parents[2] / "shared"
  if not path.is_dir():
    pytest.skip(f"needs {path}, which is not there")
  return path


# The first example compiles: a deadline an example would measure that.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory):
  """These tests start the program often; it compiles the same each time."""
  fields = {
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
    "jax_persistent_cache_min_compile_time_secs": 0.1,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  before = {name: getattr(jax.config, name) for name in fields}
  for name, value in fields.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("tfds")


@pytest.fixture
def run(data_dir, compilation_cache, monkeypatch):
  """Returns a function that runs the program in this process."""

  def call(
    workdir, *arguments, config=short_run.CONFIG, overrides=True, **fields
  ):
    values = {**short_run.SHORT, "data.data_dir": data_dir} if overrides else {}
    values |= {name.replace("__", "."): v for name, v in fields.items()}
    overrides = [f"--config.{name}={value}" for name, value in values.items()]
    argv = ["main", f"--config={config}", f"--workdir={workdir}"]
    argv += [*overrides, *arguments]
    for name in list(flags.FLAGS):
      if name.startswith("config."):  # of the call before
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    monkeypatch.setattr(sys, "argv", argv)  # config_flags reads it
    return main.run(argv)

  return call


@pytest.fixture(scope="session")
def finished_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("finished")


@pytest.fixture
def finished(run, finished_dir):
  """The work directory of a finished run; the first test to ask runs it."""
  if not (finished_dir / "report" / "report.json").exists():
    assert run(finished_dir) == 0
  return finished_dir


@pytest.fixture
def nothing_ignored():
  """No signal to stop; a process in the background, and its children, may."""
  numbers = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
  before = {n: signal.signal(n, signal.SIG_DFL) for n in numbers}
  yield
  for number, handler in before.items():
    signal.signal(number, handler)
