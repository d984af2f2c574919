"""The engine: the same bits however chips, images and devices are divided."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import montecarlo
from hawis_jax import resnet
from hawis_jax import variables as variables_lib

_STUCK = crossbar.Device(stuck_off=0.1, stuck_on=0.02)
_VARIATION = crossbar.Device(stuck_off=0.1, variation=0.4)
_NOISY = crossbar.Device(
  stuck_off=0.1, adc_bits=5, read_noise=2e3, tile_shape=(24, 16)
)
_IMAGES = 300  # three blocks of 128


def _net(seed):
  rng = np.random.default_rng(seed)
  module = resnet.cifar_resnet(8, (6, 5, 6, 8, 10, 12, 12), 10, levels=4)
  images = rng.integers(0, 256, (_IMAGES, 8, 8, 1)).astype(np.uint8)
  labels = rng.integers(0, 10, _IMAGES)
  init = jax.jit(variables_lib.init, static_argnums=(0, 2))
  net = init(module, jax.random.key(seed), (8, 8, 1))
  recalibrate = jax.jit(variables_lib.recalibrate, static_argnums=0)
  code = module.encode(jnp.asarray(images[:64]))
  net["batch_stats"] = recalibrate(module, net, code[None])
  return module, net, images, labels


@pytest.fixture(scope="module")
def net():
  return _net(int(np.random.default_rng().integers(2**31)))


def _hits(net, device, chips, **kwargs):
  module, variables, images, labels = net
  fields = {
    name: kwargs.pop(name)
    for name in ("layers", "calibration")
    if name in kwargs
  }
  setting = montecarlo.Setting(module, variables, device, **fields)
  chunks = montecarlo.classify(
    jax.random.key(5), setting, images, labels, chips, **kwargs
  )
  return np.concatenate(list(chunks))


@pytest.mark.parametrize(
  "device",
  [_STUCK, _VARIATION, pytest.param(_NOISY, marks=pytest.mark.slow)],
)
def test_chunks_and_segments_do_not_matter(net, device):
  reference = _hits(net, device, range(5))
  assert reference.shape == (5, _IMAGES)
  assert 0 < reference.mean() < 1
  assert len({row.tobytes() for row in reference}) == 5
  for limits in (montecarlo.Limits(1, 1), montecarlo.Limits(3, 200)):
    np.testing.assert_array_equal(
      reference, _hits(net, device, range(5), limits=limits)
    )
  np.testing.assert_array_equal(reference[3:], _hits(net, device, range(3, 5)))


@pytest.mark.parametrize("device", [_STUCK, _VARIATION])
def test_layers_that_are_not_on_the_chip_are_exact(net, device):
  """Against the net programmed by hand; no layer is the ideal net."""
  module, variables, images, labels = net
  layers = ("stage3_*",)
  got = _hits(net, device, range(3), layers=layers)
  code = module.encode(jnp.asarray(images))
  for chip in range(3):
    key = jax.random.fold_in(jax.random.key(5), chip)
    programmed = crossbar.program(key, variables, device, layers=layers)
    logits = module.apply(programmed, code, train=False)
    want = np.asarray(logits).argmax(-1) == labels
    # Sums of another order may turn a bit that is at its threshold.
    assert (got[chip] == want).mean() > 0.99
  whole = _hits(net, device, range(3))
  assert (whole != got).any()


def test_recalibrated_on_every_chip_whatever_the_form(net):
  """Stuck cells as bit planes, and with a variation that changes nothing."""
  images = net[2][:64].reshape(2, 32, 8, 8, 1)
  planes = _hits(net, _STUCK, range(3), calibration=images)
  dense = crossbar.Device(stuck_off=0.1, stuck_on=0.02, variation=1e-30)
  floats = _hits(net, dense, range(3), calibration=images)
  assert (planes == floats).mean() > 0.99
  assert (planes != _hits(net, _STUCK, range(3))).any()


def test_progress_counts_chips(net):
  seen = []
  limits = montecarlo.Limits(chips=2, images=128)
  _hits(net, _STUCK, range(5), limits=limits, progress=seen.append)
  assert seen == sorted(seen)
  assert seen[0] < 2 and seen[-1] == 5


def test_a_chunk_takes_no_more_memory_than_allowed(net, monkeypatch):
  """What XLA needs, by its own account, stays below; results are the same."""
  needed = []
  compile_ = montecarlo._compile

  def recorded(*args, **kwargs):
    compiled = compile_(*args, **kwargs)
    needed.append(compiled.needs.memory)
    return compiled

  monkeypatch.setattr(montecarlo, "_compile", recorded)
  free = montecarlo.Limits(chips=8)
  reference = _hits(net, _STUCK, range(8), limits=free)
  most = max(needed)
  needed.clear()
  tight = montecarlo.Limits(chips=8, memory=0.7 * most)
  np.testing.assert_array_equal(
    reference, _hits(net, _STUCK, range(8), limits=tight)
  )
  assert max(needed[-2:]) <= 0.7 * most  # the last try is taken
  with pytest.raises(errors.InputError, match="memory: got 1e-06 GB"):
    _hits(net, _STUCK, range(8), limits=montecarlo.Limits(memory=1e3))


def _child(code, environment, **values):
  """Runs code that may import this file in a process; returns its output."""
  tests = pathlib.Path(__file__).parent
  child = subprocess.run(
    [sys.executable, "-c", code.format(tests=str(tests), **values)],
    env={**os.environ, "PYTHONPATH": str(tests.parent), **environment},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert child.returncode == 0, child.stderr
  return child.stdout


_MEASURED = """
import ctypes, gc, sys
sys.path.insert(0, {tests!r})
from hawis_jax import backend
backend.configure()
import jax, numpy as np, test_montecarlo as t
from hawis_jax import montecarlo, resnet, variables
module = resnet.cifar_resnet(
  8, (64, 64, 64, 128, 128, 256, 256), 10, levels=4)
init = jax.jit(variables.init, static_argnums=(0, 2))
images, labels = np.zeros((300, 8, 8, 1), np.uint8), np.zeros(300, np.int32)
net = module, init(module, jax.random.key(0), (8, 8, 1)), images, labels

def memory(name):
  with open("/proc/self/status") as file:
    line = next(line for line in file if line.startswith(name))
  return 1024 * int(line.split()[1])

for limit in (0, {limit}):
  limits = montecarlo.Limits(chips=16, memory=limit)
  t._hits(net, t._VARIATION, range(16), limits=limits)  # compiles
  taken = []
  for _ in range(3):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is freed is not to be used again
    before = memory("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
      file.write("5")  # the peak counts from here
    t._hits(net, t._VARIATION, range(16), limits=limits)
    taken.append(memory("VmHWM") - before)
  print(min(taken))  # what else the process does only adds to it
"""


@pytest.mark.skipif(
  not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc"
)
def test_the_measured_peak_stays_below_the_limit():
  """Of the process, which without a limit goes beyond it."""
  limit = 80_000_000
  # What is freed goes back at once, and is counted when it is used again.
  malloc = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
  output = _child(_MEASURED, dict.fromkeys(malloc, "65536"), limit=limit)
  free, limited = map(int, output.split())
  assert limited <= limit < free, (limited, free)


def test_memory_does_not_grow_with_chips(net):
  """Shapes of the compiled programs do not depend on S, or on N."""
  _hits(net, _VARIATION, range(8))
  after = montecarlo._compile.cache_info().currsize
  _hits(net, _VARIATION, range(16))
  assert montecarlo._compile.cache_info().currsize == after


def test_variables_that_are_not_finite_are_refused(net):
  module, variables, images, labels = net
  kernel = variables["params"]["stem"]["kernel"].at[0, 0, 0, 0].set(jnp.nan)
  params = {**variables["params"], "stem": {"kernel": kernel}}
  bad = module, {**variables, "params": params}, images, labels
  with pytest.raises(errors.InputError, match="params/stem/kernel: got a valu"):
    _hits(bad, _STUCK, range(2))


_ON_DEVICES = """
import sys
sys.path.insert(0, {tests!r})
from hawis_jax import backend
backend.configure()
import jax
import numpy as np
import test_montecarlo as t
net = t._net({seed})
devices = jax.devices()[:{devices}]
hits = [t._hits(net, d, range(6), devices=devices) for d in
        (t._STUCK, t._VARIATION, t._NOISY)]
np.save({path!r}, np.stack(hits))
print(len(devices))
"""


@pytest.mark.parametrize(
  "devices", [pytest.param(2, marks=pytest.mark.slow), 8]
)
def test_devices_do_not_matter(tmp_path, devices):
  """1 device here, 2 or 8 in another process: the same hits."""
  seed = int(np.random.default_rng().integers(2**31))
  path = str(tmp_path / "hits.npy")
  flags = os.environ.get("XLA_FLAGS", "").split()
  flags = [f for f in flags if "device_count" not in f]
  flags.append("--xla_force_host_platform_device_count=8")
  output = _child(
    _ON_DEVICES,
    {"XLA_FLAGS": " ".join(flags)},
    seed=seed,
    devices=devices,
    path=path,
  )
  assert output.split() == [str(devices)]
  net = _net(seed)
  reference = [
    _hits(net, device, range(6)) for device in (_STUCK, _VARIATION, _NOISY)
  ]
  np.testing.assert_array_equal(np.load(path), reference)
