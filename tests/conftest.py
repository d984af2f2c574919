"""Cheap compilation, seeds, and what several tests use.

The fast tier (`python -m pytest`) has fixed seeds, and XLA optimises little.
The slow tier (`python -m pytest -m slow`) draws fresh seeds and prints them,
compiles as users do, and adds all tests marked `exact`, because programs that
are optimised less may be fused, and so rounded, in another way.
"""

import contextlib
import fcntl
import os
import pathlib
import resource
import shutil
import signal

import hypothesis
import numpy as np
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What XLA has compiled is kept: for both workers, for programs that tests
# start, and for the next time.
_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# An entry that another process is still writing is compiled anew.
os.environ["PYTHONWARNINGS"] = (
  "ignore:Error reading persistent compilation cache entry"
)

from hawis_jax import backend  # noqa: E402

backend.configure()

import jax  # noqa: E402
import short_run  # noqa: E402
import tiny_net  # noqa: E402

from hawis_jax import main  # noqa: E402
from hawis_jax.config import fields as config_fields  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# Files whose tests take longest come first: else one worker idles at the end.
_FIRST = ("test_pipeline", "test_golden", "test_published", "test_wires")
# Of one test of the fast tier, the CPU seconds of all: 2 % are 20 s where they
# are 1,000, and more where the machine is slower.
_MOST_SHARE = 0.02
_WHOLE = 1000  # tests, at least, of a run of the whole fast tier
_START = pytest.StashKey[float]()


def _is_slow_tier(config) -> bool:
  return "slow" in config.option.markexpr.replace("not slow", "")


def pytest_configure(config):
  # The first example compiles: a deadline an example would measure that.
  register = hypothesis.settings.register_profile
  register("fast", deadline=None, derandomize=True, database=None)
  register("slow", deadline=None, print_blob=True)
  if _is_slow_tier(config):
    hypothesis.settings.load_profile("slow")
    return
  hypothesis.settings.load_profile("fast")
  flag = "--xla_backend_optimization_level"
  given = os.environ.get("XLA_FLAGS", "")
  if flag not in given:  # before jax starts its backend
    os.environ["XLA_FLAGS"] = f"{given} {flag}=0".strip()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
  """A worker has a whole file, whose fixtures are then made once."""
  rank = {name: place for place, name in enumerate(_FIRST)}
  items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
  for item in items:
    item.add_marker(pytest.mark.xdist_group(item.path.stem))
    drawn = getattr(item.obj, "is_hypothesis_test", False)
    if _is_slow_tier(config) and (drawn or item.get_closest_marker("exact")):
      item.add_marker(pytest.mark.slow)


def _cpu_seconds():
  """Of this process and its children; other load hardly changes it."""
  usages = map(
    resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  return sum(usage.ru_utime + usage.ru_stime for usage in usages)


_for_all = 0.0  # CPU seconds spent on what other tests use too


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
  item.stash[_START] = _cpu_seconds() - _for_all
  return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
  report = yield
  spent = _cpu_seconds() - _for_all - item.stash[_START]
  report.user_properties.append(("cpu_seconds", spent))
  return report


def pytest_terminal_summary(terminalreporter, config):
  """The ten slowest tests; in CI one of too great a share fails."""
  seconds = {}
  for reports in terminalreporter.stats.values():
    for report in reports:
      if getattr(report, "user_properties", None):
        spent = dict(report.user_properties)["cpu_seconds"]
        seconds[report.nodeid] = max(spent, seconds.get(report.nodeid, 0))
  slowest = sorted(seconds.items(), key=lambda pair: -pair[1])[:10]
  total = sum(seconds.values())
  terminalreporter.section(f"{total:.0f} CPU seconds; the slowest tests")
  for name, spent in slowest:
    terminalreporter.line(f"{spent:6.1f} {name}")
  above = [name for name, spent in slowest if spent > _MOST_SHARE * total]
  is_whole = len(seconds) > _WHOLE and not _is_slow_tier(config)
  if above and is_whole and os.environ.get("CI"):
    terminalreporter.line(
      f"{len(above)} of the fast tier's tests took more than "
      f"{_MOST_SHARE:.0%} of its CPU seconds: make them cheaper, or mark them "
      "slow"
    )
    terminalreporter._session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _generator(request):
  seed = 0
  if _is_slow_tier(request.config):
    seed = int(np.random.SeedSequence().entropy % 2**31)
    print(f"seed of {request.fixturename}:", seed)  # shown where a test fails
  return np.random.default_rng(seed)


@pytest.fixture
def rng(request):
  """Random numbers: the same in the fast tier, others each time in the slow."""
  return _generator(request)


@pytest.fixture(scope="module", autouse=True)
def _programs_are_freed():
  """Else a worker's programs take gigabytes; the cache on disk keeps them."""
  yield
  jax.clear_caches()


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """Data beside the project that a checkout may lack."""
  path = pathlib.Path(__file__).parents[2] / "shared"
  if not path.is_dir():
    pytest.skip(f"needs {path}, which is not there")
  return path


@pytest.fixture(scope="session")
def session_dir(tmp_path_factory):
  """A folder of all workers: a run's config.json names its data's folder."""
  base = tmp_path_factory.getbasetemp()
  return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def data_dir(session_dir):
  return session_dir / "tfds"


@pytest.fixture
def run(data_dir):
  """Returns a function that runs the program in this process."""

  def call(
    workdir, *arguments, config=short_run.CONFIG, overrides=True, **fields
  ):
    values = {**short_run.SHORT, "data.data_dir": data_dir} if overrides else {}
    values |= {name.replace("__", "."): v for name, v in fields.items()}
    overrides = [f"--config.{name}={value}" for name, value in values.items()]
    argv = ["main", f"--config={config}", f"--workdir={workdir}"]
    argv += [*overrides, *arguments]
    return main.run(argv)

  return call


@pytest.fixture
def after(run, session_dir, tmp_path):
  """Returns a function that copies a run's work directory after a stage.

  All tests share what a stage left: it is run once, by itself.
  """
  base = session_dir

  def copy(stage, name="finished", stages=config_fields.STAGES, **fields):
    global _for_all
    start = _cpu_seconds()
    with open(base / f"{name}.lock", "w") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)  # the other worker may be running it
      original = None
      for each in stages[: stages.index(stage) + 1]:
        before, original = original, base / f"{name}_{each}"
        if original.exists():
          continue
        workdir = base / f"{name}_unfinished"
        shutil.rmtree(workdir, ignore_errors=True)
        if before:
          shutil.copytree(before, workdir)
        with contextlib.chdir(base):  # relative, as users give it
          assert run(workdir.name, f"--stages={each}", **fields) == 0
        workdir.rename(original)
    _for_all += _cpu_seconds() - start
    return shutil.copytree(original, tmp_path / f"{name}_{stage}")

  return copy


@pytest.fixture
def finished(after):
  """A copy of the work directory of a finished run."""
  return after("report")


@pytest.fixture
def nothing_ignored():
  """No signal to stop; a process in the background, and its children, may."""
  numbers = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
  before = {n: signal.signal(n, signal.SIG_DFL) for n in numbers}
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny(request):
  """A tiny random net, its images and labels."""
  return tiny_net.make(_generator(request))
