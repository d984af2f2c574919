"""The engine: the same bits however chips, images and devices are divided."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_net

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax.robustness import monte_carlo

_STUCK = crossbar.Device(stuck_off=0.1, stuck_on=0.02)
_VARIATION = crossbar.Device(stuck_off=0.1, variation=0.4)
_NOISY = crossbar.Device(
  stuck_off=0.1, adc_bits=5, read_noise=2e3, tile_shape=(24, 16)
)
# With whether layers' gains are compensated.
_ALL = ((_STUCK, False), (_VARIATION, False), (_NOISY, False), (_NOISY, True))
_DIVIDED = monte_carlo.Limits(chips=3, images=200)  # two chunks, two segments


def _correct(tiny, device, chips, **kwargs):
  module, variables, images, labels = tiny
  fields = {
    name: kwargs.pop(name)
    for name in ("layers", "calibration", "compensated")
    if name in kwargs
  }
  setting = monte_carlo.Setting(module, variables, device, **fields)
  chunks = monte_carlo.classify(
    jax.random.key(5), setting, images, labels, chips, **kwargs
  )
  return np.concatenate(list(chunks))


@pytest.mark.exact
@pytest.mark.parametrize(
  ("device", "compensated"),
  [
    (_STUCK, False),
    pytest.param(_VARIATION, True, marks=pytest.mark.slow),
    pytest.param(_VARIATION, False, marks=pytest.mark.slow),
    pytest.param(_NOISY, True, marks=pytest.mark.slow),
  ],
)
def test_chunks_and_segments_do_not_matter(tiny, device, compensated):
  correct = functools.partial(_correct, tiny, device, compensated=compensated)
  reference = correct(range(5))
  assert reference.shape == (5, len(tiny.images))
  assert 0 < reference.mean() < 1
  assert len({row.tobytes() for row in reference}) == 5
  np.testing.assert_array_equal(reference, correct(range(5), limits=_DIVIDED))
  alone = monte_carlo.Limits(1, 1)
  np.testing.assert_array_equal(
    reference[3:], correct(range(3, 5), limits=alone)
  )


@pytest.mark.parametrize("device", [_STUCK, _VARIATION])
def test_layers_that_are_not_on_the_chip_are_exact(tiny, device):
  """Against the net programmed by hand; no layer is the ideal net."""
  module, variables, images, labels = tiny
  layers = ("stage3_*",)
  got = _correct(tiny, device, range(3), layers=layers)

  @jax.jit
  def by_hand(chip):
    key = jax.random.fold_in(jax.random.key(5), chip)
    programmed = crossbar.program(key, variables, device, layers=layers)
    return module.apply(programmed, module.encode(images), train=False)

  for chip in range(3):
    want = np.asarray(by_hand(chip)).argmax(-1) == labels
    # Sums of another order may turn a bit that is at its threshold.
    assert (got[chip] == want).mean() > 0.99
  whole = _correct(tiny, device, range(3), limits=_DIVIDED)
  assert (whole != got).any()


def test_recalibrated_on_every_chip_whatever_the_form(tiny):
  """Stuck cells as bit planes, and with a variation that changes nothing."""
  images = tiny.images[:64].reshape(2, 32, 8, 8, 1)
  planes = _correct(tiny, _STUCK, range(3), calibration=images)
  dense = crossbar.Device(stuck_off=0.1, stuck_on=0.02, variation=1e-30)
  floats = _correct(tiny, dense, range(3), calibration=images)
  assert (planes == floats).mean() > 0.99
  whole = _correct(tiny, _STUCK, range(3), limits=_DIVIDED)
  assert (planes != whole).any()


@pytest.mark.slow
def test_clipping_is_counted_on_every_chip_however_they_are_divided(tiny):
  """By layers on chips; what is classified stays the same."""
  device = crossbar.Device(adc_bits=3, adc_range="granular", stuck_off=0.1)
  found = []
  for limits in (_DIVIDED, monte_carlo.FREE):
    chunks = []
    layers = ("stage3_*", "head")
    got = _correct(
      *(tiny, device, range(5)),
      **dict(layers=layers, limits=limits, clipped=chunks.append),
    )
    names = {name.split("/")[0] for name in chunks[0]}
    assert names == {"stage3_block0", "head"}
    found.append(
      {name: np.concatenate([x[name] for x in chunks]) for name in chunks[0]}
    )
  plain = _correct(tiny, device, range(5), layers=layers)
  np.testing.assert_array_equal(got, plain)
  for name, shares in found[0].items():
    np.testing.assert_array_equal(shares, found[1][name])
    assert shares.shape == (5,) and 0 < shares.max() < 1


def test_progress_counts_chips(tiny):
  seen = []
  _correct(tiny, _STUCK, range(5), limits=_DIVIDED, progress=seen.append)
  assert seen == sorted(seen)
  assert seen[0] < 3 and seen[-1] == 5


def test_a_chunk_takes_no_more_memory_than_allowed(tiny, monkeypatch):
  """What XLA needs, by its own account, stays below; results are the same."""
  needed = []
  compile_ = monte_carlo._compile

  def recorded(*args, **kwargs):
    compiled = compile_(*args, **kwargs)
    needed.append(compiled.needs.memory)
    return compiled

  monkeypatch.setattr(monte_carlo, "_compile", recorded)
  reference = _correct(tiny, _STUCK, range(5))
  most = max(needed)
  needed.clear()
  tight = monte_carlo.Limits(memory=0.7 * most)
  np.testing.assert_array_equal(
    reference, _correct(tiny, _STUCK, range(5), limits=tight)
  )
  assert max(needed[-2:]) <= 0.7 * most  # the last try is taken
  with pytest.raises(errors.InputError, match="memory: got 1e-06 GB"):
    _correct(tiny, _STUCK, range(8), limits=monte_carlo.Limits(memory=1e3))


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
from hawis_jax.networks import net_variables, resnet
module = resnet.cifar_resnet(
  8, (64, 64, 64, 128, 128, 256, 256), 10, levels=4)
init = jax.jit(net_variables.init, static_argnums=(0, 2))
images, labels = np.zeros((300, 8, 8, 1), np.uint8), np.zeros(300, np.int32)
net = module, init(module, jax.random.key(0), (8, 8, 1)), images, labels

def memory(name):
  with open("/proc/self/status") as file:
    line = next(line for line in file if line.startswith(name))
  return 1024 * int(line.split()[1])

for limit in (0, {limit}):
  limits = t.monte_carlo.Limits(chips=16, memory=limit)
  t._correct(net, t._VARIATION, range(16), limits=limits)  # compiles
  taken = []
  for _ in range(3):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is freed is not to be used again
    before = memory("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
      file.write("5")  # the peak counts from here
    t._correct(net, t._VARIATION, range(16), limits=limits)
    taken.append(memory("VmHWM") - before)
  print(min(taken))  # what else the process does only adds to it
"""


@pytest.mark.slow
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


def test_memory_does_not_grow_with_chips(tiny):
  """Shapes of the compiled programs do not depend on S, or on N."""
  _correct(tiny, _VARIATION, range(8))
  after = monte_carlo._compile.cache_info().currsize
  _correct(tiny, _VARIATION, range(16))
  assert monte_carlo._compile.cache_info().currsize == after


def test_variables_that_are_not_finite_are_refused(tiny):
  kernel = tiny.variables["params"]["stem"]["kernel"].copy()
  kernel[0, 0, 0, 0] = np.nan
  params = {**tiny.variables["params"], "stem": {"kernel": kernel}}
  bad = tiny._replace(variables={**tiny.variables, "params": params})
  with pytest.raises(errors.InputError, match="params/stem/kernel: got a valu"):
    _correct(bad, _STUCK, range(2))


def test_chips_that_are_not_finite_are_refused(tiny, monkeypatch):
  """Weights of NaN would be class 0, a tenth of the labels."""
  _correct(tiny, _VARIATION, range(2))
  monkeypatch.setattr(crossbar, "validate", lambda device: device)
  bad = dataclasses.replace(_VARIATION, variation=np.nan)
  refused = "got chip 5, whose crossbar/head/weight are not finite in float32"
  with pytest.raises(errors.InputError, match=refused):
    _correct(tiny, bad, range(5, 7))
  # Finite weights of which a scale is not.
  params = tiny.variables["params"]
  head = {"kernel": params["head"]["kernel"] * np.float32(1e38)}
  params = {**params, "head": head}
  bad = tiny._replace(variables={**tiny.variables, "params": params})
  with pytest.raises(errors.InputError, match="got chip 0, whose logits are"):
    _correct(bad, _VARIATION, range(2))


_ON_DEVICES = """
import sys
sys.path.insert(0, {tests!r})
from hawis_jax import backend
backend.configure()
import jax
import numpy as np
import test_montecarlo as t
import tiny_net
from hawis_jax.networks import products
tiny = tiny_net.make(np.random.default_rng({seed}))
for count in (2, 8):
  devices = jax.devices()[:count]
  correct = [t._correct(tiny, d, range(6), devices=devices, compensated=own)
             for d, own in t._ALL]
  np.save({folder!r} + f"/{{count}}.npy", np.stack(correct))
  for method in ("matmul", "grouped"):  # of stuck cells alone
    with products.using(products.Way(method)), backend.compiling_for("tpu"):
      again = t._correct(tiny, t._STUCK, range(6), devices=devices)
    np.testing.assert_array_equal(again, correct[0])
print(len(devices))
"""


@pytest.mark.slow
@pytest.mark.exact
def test_devices_do_not_matter(tmp_path, rng):
  """1 device here, 2 or 8 in another process: the same correct."""
  seed = int(rng.integers(2**31))
  flags = os.environ.get("XLA_FLAGS", "").split()
  flags = [f for f in flags if "device_count" not in f]
  flags.append("--xla_force_host_platform_device_count=8")
  output = _child(
    _ON_DEVICES,
    {"XLA_FLAGS": " ".join(flags)},
    seed=seed,
    folder=str(tmp_path),
  )
  assert output.split() == ["8"]
  tiny = tiny_net.make(np.random.default_rng(seed))
  reference = [
    _correct(tiny, device, range(6), compensated=own) for device, own in _ALL
  ]
  for count in (2, 8):
    np.testing.assert_array_equal(np.load(tmp_path / f"{count}.npy"), reference)
