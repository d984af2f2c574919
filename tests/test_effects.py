"""Effects on cells against formulas in NumPy float64, and their scopes.

Axes: 2 = (positive, negative) array, R rows and C columns of a tile.
"""

import dataclasses
import functools

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax.crossbar import cells
from hawis_jax.crossbar import defects

_TILE = (64, 64)
_SHAPE = (384, 256)  # of the weights: 24 tiles
_GRID = (6, 4)
_DISPERSIONS = ("chip_dispersion", "tile_dispersion")
# Effects on cells.
_SEVERITIES = tuple(
  name
  for name in crossbar.DEFECTS
  if name not in ("read_noise", "telegraph_noise", "white_noise", *_DISPERSIONS)
  and name not in crossbar.CIRCUIT_ERRORS
)
_MEASURED = tuple(
  name for name, device in crossbar.PRESETS.items() if device.write_error
)
_PCM_DRIFT = dict(
  drift_mean=(-0.0155, 0.0244, 0.049, 0.1),
  drift_std=(-0.0125, -0.0059, 0.008, 0.045),
)
# All effects, each with constants of its own that let no draw be clipped.
_ALL = crossbar.Device(
  stuck_on=0.1,
  stuck_off=0.2,
  dead_rows=0.1,
  dead_columns=0.05,
  variation=0.3,
  gaussian_variation=0.1,
  chip_variation=0.2,
  tile_variation=0.1,
  write_error=1.5,
  write_sigma=(0.01, 0.05, -1e-5),
  drift_time=1e5,
  drift_mean=(-0.02, 0.3, 0.2, 0.5),
  drift_std=(-0.004, 0.01, 0.005, 0.03),
  legacy_noise=0.5,
  relaxation=0.5,
  relaxation_shift=(-0.002, -0.003),
  relaxation_spread=(0.005, 0.004),
  relaxation_growth=(0.001, 0.0005),
  retention_time=1e6,
  flicker_noise=0.7,
  flicker=(0.0088, 0.65, 0.03, 0.01),
  flicker_read=1e-3,
  read_disturb=1e6,
  disturb=3e-7,
  temperature_rise=40.0,
  temperature=340.0,
  activation=(-0.01, 0.15),
)
_POLYNOMIALS = (
  "write_sigma",
  "relaxation_shift",
  "relaxation_spread",
  "relaxation_growth",
)

_conductances = jax.jit(crossbar.conductances, static_argnames="bits")
_effective = jax.jit(crossbar.effective_weights, static_argnames="bits")
_program = jax.jit(
  functools.partial(crossbar.program, scales="channel"), static_argnames="bits"
)
_drift = jax.jit(defects.drift)


@jax.jit
def _fault_states(key, device):
  keys = defects.tile_keys(key, _GRID)
  return defects.fault_states(keys, (2, *_TILE), device)


def _key(rng):
  return jax.random.key(rng.integers(2**31))


def _integers(rng, shape=_SHAPE, bits=8):
  """Random integer weights, the largest one in every column."""
  if bits == 1:
    return rng.choice(np.float32([-1, 1]), shape)
  top = 2 ** (bits - 1) - 1
  weights = rng.integers(-top, top + 1, shape).astype(np.float32)
  weights.reshape(-1, shape[-1])[0] = top
  return weights


def _pair(q):
  """Integers of whole tiles -> levels `[2, row, col, R, C]` of their cells."""
  (rows, columns), (r, c) = q.shape, _TILE
  cut = (
    q.astype(np.float64)
    .reshape(rows // r, r, columns // c, c)
    .transpose(0, 2, 1, 3)
  )
  return np.maximum(np.stack([cut, -cut]), 0)


def _targets(q, device, steps=127):
  return device.g_off + _pair(q) / steps * (device.g_on - device.g_off)


def _traced(device):
  """The same device with all effects on cells in its program, absent or not.

  One compilation serves all severities; a test says that nothing else changes.
  """
  severities = {name: np.float32(getattr(device, name)) for name in _SEVERITIES}
  polynomials = {
    name: (getattr(device, name) + (0.0,) * 5)[:5] for name in _POLYNOMIALS
  }
  return dataclasses.replace(
    device, **severities, **polynomials, write_range=(0.0, 1.0)
  )


def _chip(q, device, key, bits=8, write=0):
  """Conductances `[2, row, col, R, C]` of a chip that holds the integers q."""
  g = _conductances(key, q, device, bits=bits, write=write)
  return np.stack(g).astype(np.float64)


def _faults(key, device):
  """1 stuck on, -1 stuck off, 0 healthy, as `_chip`."""
  faults = np.asarray(_fault_states(key, device))
  return np.moveaxis(faults.reshape(*_GRID, 2, *_TILE), 2, 0)


def _sigma(device, g):
  """Standard deviation of programming [S]."""
  micro = np.polyval(device.write_sigma[::-1], 1e6 * g)
  return 1e-6 * np.maximum(micro, 0) * device.write_error


def _are_normal(z, lower=None, clipped=None):
  """KS test of standard normal draws; where `clipped`, only z <= lower."""
  shares = stats.norm.cdf(z)
  if lower is not None:
    below = np.random.default_rng(0).uniform(size=z.shape)
    shares = np.where(clipped, below * stats.norm.cdf(lower), shares)
  return _are_uniform(shares)


def _are_uniform(shares):
  return stats.kstest(np.ravel(shares), "uniform").pvalue > 1e-6


def _is_binomial(events, p):
  events = np.asarray(events)
  return stats.binomtest(int(events.sum()), events.size, p).pvalue > 1e-6


def _are_independent(a, b):
  """Chi-square test of two arrays of bool."""
  a, b = np.ravel(a), np.ravel(b)
  table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
  return stats.chi2_contingency(table).pvalue > 1e-6


def test_write_error_is_the_measured_polynomial(rng):
  """Of the target's conductance; at 0 where it would be negative."""
  for name in _MEASURED:
    device = dataclasses.replace(
      crossbar.PRESETS[name], relaxation=0.0, flicker_noise=0.0
    )
    q = _integers(rng)
    for severity in (device.write_error, 3.0):
      scaled = dataclasses.replace(device, write_error=severity)
      g = _chip(q, _traced(scaled), _key(rng))
      targets = _targets(q, device)
      sigma = _sigma(scaled, targets)
      assert sigma.min() > 0 and g.min() >= 0
      z = (g - targets) / sigma
      assert _are_normal(z, -targets / sigma, g == 0), (name, severity)


def _retention(device, g):
  """Mean and std of relaxation, std of 1/f noise [S] of targets g, in float64.

  Relaxation in uS over ln t, and the noise a power or a logarithm of G.
  """
  micro, time = 1e6 * g, max(device.retention_time, device.drift_time)
  since = np.log(max(time / device.relaxation_start, 1))
  shift, spread, growth = (
    np.polyval(getattr(device, f"relaxation_{name}")[::-1], micro)
    for name in ("shift", "spread", "growth")
  )
  std = np.maximum(spread + growth * since, 0)
  a, p, most, k = device.flicker
  relative = np.minimum(a * (g / device.g_on) ** -p, most)
  noise = micro * relative + k * np.log10(np.maximum(micro, 1))
  noise *= np.sqrt(np.log((time / device.flicker_read + 1) / 2))
  return (
    device.relaxation * 1e-6 * shift * since,
    device.relaxation * 1e-6 * std,
    device.flicker_noise * 1e-6 * noise,
  )


# As aihwkit 1.2 writes them, in uS: inference/noise/reram.py,
# ReRamWan2022NoiseModel and ReRamCMONoiseModel, and pcm.py, PCMLikeNoiseModel.
def _wan_std(g, time):
  """Of what is there at a time, about the target."""
  coefficients = {
    1: [-16.815, 45.393, -43.853, 16.030, 0.348],
    86400: [-16.458, 47.095, -50.773, 22.086, 0.701],
    172800: [-11.934, 37.062, -43.507, 20.274, 0.782],
  }
  return np.polyval(coefficients[time], g / 40)


def _cmo(g, time, slope, offset):
  """Mean and std."""
  mean = g - 0.08900206 * np.log(time)
  relaxed = 0.04201137 * np.log(time) + 0.41183342
  read = 0.0277316483 * np.log10(mean)
  read *= np.sqrt(np.log((time + 1e-6) / 2e-6))
  return mean, np.sqrt((slope * g + offset) ** 2 + relaxed**2 + read**2)


def _pcm_std(g, time):
  """Without drift."""
  share = g / 25
  programmed = -1.1731 * share**2 + 1.9650 * share + 0.26348
  q = np.minimum(0.0088 / np.maximum(share**0.65, 1e-3), 0.2)
  read = g * q * np.sqrt(np.log((time + 250e-9) / (2 * 250e-9)))
  return np.hypot(programmed, read)


def _levels_of(device, rng):
  """[(target [uS], what a chip's cells of it are)], of both states."""
  g = _chip(_integers(rng, bits=1), _traced(device), _key(rng), bits=1) * 1e6
  low, high = device.g_off * 1e6, device.g_on * 1e6
  is_on = abs(g - high) < abs(g - low)
  return [(low, g[~is_on]), (high, g[is_on])]


@pytest.mark.parametrize("time", [1.0, 3600.0, 86400.0])
def test_cmo_cells_relax_as_the_source_says(rng, time):
  """Mean and deviation of both states, of both acceptance ranges."""
  for name, line in (
    ("hfox_cmo", (0.00106879, 0.00081107)),
    ("hfox_cmo_2percent", (0.01129027418, 0.0112185391)),
  ):
    device = dataclasses.replace(crossbar.PRESETS[name], retention_time=time)
    for target, g in _levels_of(device, rng):
      mean, std = _cmo(target, time, *line)
      # The noise is that of the cell's own conductance: nearly the mean's.
      error = 5 * std / np.sqrt(g.size)
      assert abs(g.mean() - mean) < error, (name, target)
      assert g.std() == pytest.approx(std, rel=0.01), (name, target)
      assert stats.kstest((g - mean) / std, "norm").pvalue > 1e-6


def test_wan_cells_spread_as_the_source_says(rng):
  """To the day's fit, within 0.4 % of the growth; above that of two days."""
  relaxed = crossbar.PRESETS["reram_wan2022_relaxed"]
  g = np.linspace(1, 39.26, 100)
  for time, tolerance in ((1, 1e-6), (86400, 4e-3), (172800, 0.06)):
    device = dataclasses.replace(relaxed, retention_time=float(time))
    shift, std, noise = _retention(device, g * 1e-6)
    assert not shift.any() and not noise.any()
    total = np.hypot(_sigma(device, g * 1e-6), std) * 1e6
    np.testing.assert_allclose(total, _wan_std(g, time), rtol=tolerance)
    for target, found in _levels_of(device, rng):
      expected = _wan_std(target, time)
      if target > 10:
        assert found.std() == pytest.approx(expected, rel=tolerance + 0.01)
      elif time == 1:  # else clipped at 0 twice
        share = stats.norm.cdf(-target / expected)
        assert _is_binomial(found == 0, share)


def test_a_pair_of_pcm_cells_spreads_by_5_8_percent_of_a_step_at_20_s(rng):
  device = crossbar.PRESETS["pcm"]
  both = [_pcm_std(g, 20.0) for g in (25.0, 0.25)]
  step = np.hypot(*both) / 24.75
  assert round(100 * step, 1) == 5.8
  found = [
    g.std() if target > 1 else np.sqrt(np.mean((g[g > target] - target) ** 2))
    for target, g in _levels_of(device, rng)
  ]
  # Half of the off cells, whose other half is cut off at 0.
  assert np.hypot(*found) / 24.75 == pytest.approx(step, rel=0.01)
  without = dataclasses.replace(device, flicker_noise=0.0)
  pair = np.hypot(*(_sigma(without, x) for x in (25e-6, 0.25e-6)))
  assert round(100 * pair / 24.75e-6, 1) == 4.4


def test_retention_has_one_clock(rng):
  """The later of its own time and drift's; before t_0 nothing grows."""
  own = crossbar.Device(retention_time=100.0)
  assert float(defects.elapsed(own)) == 100
  for drift, expected in ((50.0, 100), (1e4, 1e4), (np.float32(1e4), 1e4)):
    device = dataclasses.replace(own, drift_time=drift)
    assert float(defects.elapsed(device)) == expected
  g = np.float32([1e-5, 1e-4])
  normal = np.float32([1.0, -1.0])
  device = dataclasses.replace(
    crossbar.PRESETS["hfox_cmo"], relaxation_start=50.0, flicker_read=10.0
  )
  early, start = (
    dataclasses.replace(device, retention_time=t) for t in (0.0, 50.0)
  )
  np.testing.assert_array_equal(
    defects.relaxation(g, g, normal, early),
    defects.relaxation(g, g, normal, start),
  )
  np.testing.assert_array_equal(defects.flicker_noise(g, g, normal, early), g)
  # The noise is that of the state before drift, and a share of what is left.
  pcm = dataclasses.replace(crossbar.PRESETS["pcm"], g_on=25e-6)
  before, after = np.float32([2.5e-5]), np.float32([1e-5])
  found = defects.flicker_noise(after, before, np.float32([1.0]), pcm)
  expected = 1e-5 * (1 + 0.0088 * np.sqrt(np.log(20 / 5e-7)))
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_gaussian_variation(rng):
  """max(G (1 + s n), 0) of every level."""
  q = _integers(rng)
  for sigma in (0.05, 0.5, 2.0):
    device = crossbar.Device(gaussian_variation=sigma)
    g = _chip(q, _traced(device), _key(rng))
    z = (g / _targets(q, device) - 1) / sigma
    assert _are_normal(z, -1 / sigma, g == 0)
    assert _is_binomial(g == 0, stats.norm.cdf(-1 / sigma))


def _pcm_exponent(share):
  """(mean, std) of PCM's exponent at G / g_on."""
  mean = np.clip(-0.0155 * np.log(share) + 0.0244, 0.049, 0.1)
  return mean, np.clip(-0.0125 * np.log(share) - 0.0059, 0.008, 0.045)


def test_drift_exponents(rng):
  """Each max(N(mu, sigma^2), 0), recovered from what a chip lost in a day."""
  for device, exponent in (
    (
      crossbar.Device(
        drift_start=20.0,
        drift_mean=(0.0, 0.1, 0.1, 0.1),
        drift_std=(0.0, 0.05, 0.05, 0.05),
      ),
      lambda share: (0.1, 0.05),
    ),
    (crossbar.PRESETS["pcm"], _pcm_exponent),
  ):
    silent = dict.fromkeys(("write_error", "relaxation", "flicker_noise"), 0.0)
    device = dataclasses.replace(device, **silent, drift_time=86400.0)
    q = _integers(rng)
    g, targets = _chip(q, _traced(device), _key(rng)), _targets(q, device)
    found = -np.log(g / targets) / np.log(86400.0 / 20.0)
    mean, std = exponent(targets / device.g_on)
    # Some cells do not drift at all: their exponent was drawn below 0.
    still = found < 1e-6
    assert still.any()
    assert _are_normal((found - mean) / std, -mean / std, still)


@settings(max_examples=20)
@given(
  st.integers(0, 2**31),
  st.floats(1e-3, 1e3),
  st.lists(st.floats(0, 1e6), min_size=3, max_size=3),
)
def test_drift_is_a_power_law_of_every_cell(seed, start, periods):
  """None up to t_0, then monotone, on one line of log G over log t."""
  rng = np.random.default_rng(seed)
  g = rng.uniform(1e-7, 3e-4, 200).astype(np.float32)
  normal = rng.normal(size=200).astype(np.float32)
  device = crossbar.Device(drift_start=start, **_PCM_DRIFT)

  def at(period):
    after = dataclasses.replace(device, drift_time=np.float32(period * start))
    return np.asarray(_drift(g, normal, after), np.float64)

  mean, std = _pcm_exponent(g.astype(np.float64) / device.g_on)
  exponent = np.maximum(mean + std * normal, 0)
  before = g.astype(np.float64)
  for period in sorted(periods):
    now = at(period)
    np.testing.assert_allclose(
      now, g * np.maximum(period, 1.0) ** -exponent, rtol=1e-5
    )
    assert (now <= before).all()
    before = now
  for period in (0.0, 0.999):
    np.testing.assert_array_equal(at(period), g)
  assert (at(100.0) < g)[exponent > 1e-3].all()


def test_dead_lines_are_binomial(rng):
  """Whole lines of single arrays carry exactly nothing, others all."""
  for rows, columns in ((0.1, 0.0), (0.0, 0.3), (0.2, 0.02)):
    device = crossbar.Device(dead_rows=rows, dead_columns=columns)
    q = _integers(rng)
    targets = _targets(q, device)
    g = _chip(q, _traced(device), _key(rng))
    dead = g == 0
    lines = dead.all(-1), dead.all(-2)
    by_lines = lines[0][..., :, None] | lines[1][..., None, :]
    np.testing.assert_array_equal(dead, by_lines)
    np.testing.assert_allclose(g[~dead], targets[~dead], rtol=1e-6)
    for line, rate in zip(lines, (rows, columns), strict=True):
      assert line.shape == (2, *_GRID, 64)
      if not rate:
        assert not line.any()
        continue
      assert _is_binomial(line, rate)
      # Between arrays of a pair, tiles, and neighbours.
      assert _are_independent(line[0], line[1])
      assert _are_independent(line[:, :-1], line[:, 1:])
      assert _are_independent(line[:, :, :-1], line[:, :, 1:])
      assert _are_independent(line[..., :-1], line[..., 1:])
    if rows and columns:
      assert _are_independent(*lines)


def test_weights_on_dead_lines(rng):
  """What is left of a weight is its other cell."""
  device = crossbar.Device(g_off=1e-5, dead_rows=0.4, dead_columns=0.3)
  q, key = _integers(rng, _TILE, bits=1), _key(rng)
  g = _chip(q, device, key, bits=1)[:, 0, 0]
  live = ~((g == 0).all(-1, keepdims=True) | (g == 0).all(-2, keepdims=True))
  levels = _targets(q, device, 1)[:, 0, 0] * live
  expected = (levels[0] - levels[1]) / (device.g_on - device.g_off)
  got = _effective(key, q, device)
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  assert len(np.unique(np.round(expected, 5))) == 7  # 0, +-1, ...


def test_dead_lines_have_no_white_noise(rng):
  """Whatever its law; a live cell that is at 0 has that of its law."""
  net = {"params": {"a": {"kernel": _integers(rng, _TILE, bits=1)}}}
  key = _key(rng)

  @jax.jit
  def conductances(sigma):
    held = dataclasses.replace(device, gaussian_variation=sigma)
    return cells.chip_cells(key, net, held)["a"].conductances

  device = crossbar.Device(
    dead_rows=0.4, dead_columns=0.3, gaussian_variation=2.0, white_noise=0.1
  )
  dead, g = (np.asarray(conductances(s))[0, 0, 0] for s in (0.0, 2.0))
  dead = dead == 0
  assert ((g == 0) & ~dead).sum() > 100 and 0.4 < dead.mean() < 0.8
  for law, std in (("independent", device.g_on), ("proportional", g)):
    noisy = dataclasses.replace(device, white_noise_law=law)
    got = _program(key, net, noisy, bits=1)["crossbar"]["a"]["variances"]
    std = 0.1 * std / (device.g_on - device.g_off)
    expected = np.where(dead, 0, std**2).sum(0)
    np.testing.assert_allclose(np.reshape(got, _TILE), expected, rtol=1e-5)


def _legacy_shares(g, targets, device, step):
  """Distribution function of the published noise: two normals, half each."""
  density = 4 * 1.38e-23 * device.temperature
  density += 2 * 1.6e-19 * device.read_voltage
  thermal = targets * device.bandwidth * density / device.read_voltage**2
  std = np.sqrt(thermal + (step / 3) ** 2)
  a, b = device.telegraph
  jump = targets * (b * targets + a) / (targets - b * targets - a)
  z = (g - targets) / std
  return (stats.norm.cdf(z) + stats.norm.cdf(z - jump / std)) / 2


def test_legacy_noise_is_the_published_formula(rng):
  """G + sqrt(thermal + (step / 3)^2) n + telegraph with probability 1/2."""
  for constants in (
    {},
    {"temperature": 5e3, "bandwidth": 1e12, "telegraph": (1e-7, 0.01)},
    {"bandwidth": 1e13, "read_voltage": 1.0},
  ):
    device = crossbar.Device(legacy_noise=1.0, **constants)
    q, key = _integers(rng), _key(rng)
    g, targets = _chip(q, _traced(device), key), _targets(q, device)
    step = (device.g_on - device.g_off) / 127
    assert _are_uniform(_legacy_shares(g, targets, device, step))
    # A severity is a factor of all that it adds.
    half = dataclasses.replace(device, legacy_noise=0.5)
    half = _chip(q, _traced(half), key) - targets
    atol = 1e-6 * device.g_on
    np.testing.assert_allclose(half, (g - targets) / 2, rtol=0, atol=atol)


def test_legacy_noise_of_binary_cells(rng):
  """Half of the off cells, a quarter of all, become negative."""
  device = crossbar.Device(legacy_noise=1.0)
  q = _integers(rng, bits=1)
  g, targets = _chip(q, device, _key(rng), bits=1), _targets(q, device, 1)
  step = device.g_on - device.g_off
  assert _are_uniform(_legacy_shares(g, targets, device, step))
  off = targets < 1e-6
  p = _legacy_shares(0.0, device.g_off, device, step)
  assert p == pytest.approx(0.5, abs=0.003)
  assert _is_binomial(g[off] < 0, p)
  assert (g < 0).mean() == pytest.approx(0.25, abs=0.01)


@jax.jit
def _read_noise(g, device):
  variances = defects.read_noise_variances(g, device)
  return *variances, defects.telegraph_step(g, device)


@settings(max_examples=20)
@given(
  st.integers(0, 2**31),
  st.floats(0.01, 5),
  st.floats(1e3, 1e9),
  st.floats(1, 1000),
  st.floats(0, 0.4),
)
def test_noise_a_read_is_the_formula(seed, voltage, bandwidth, temperature, b):
  """SI units in float32 lose nothing, down to no conductance at all."""
  a = 1e-7
  g = 10 ** np.random.default_rng(seed).uniform(-8, -3, 50)
  g = np.append(g, [0.0, 1.99 * a, 2.01 * a, a, a / (1 - b)])
  device = crossbar.Device(
    read_voltage=voltage,
    bandwidth=bandwidth,
    temperature=temperature,
    telegraph=(a, b),
  )
  *variances, jump = jax.device_get(_read_noise(np.float32(g), device))
  undriven, added = variances
  k, q = 1.380649e-23, 1.602176634e-19
  thermal = 4 * k * temperature
  driven = 2 * q * voltage / np.tanh(q * voltage / (2 * k * temperature))
  for got, density in ((undriven, thermal), (undriven + added, driven)):
    expected = g * bandwidth * density / voltage**2
    # A root is what is drawn with: what underflows is no noise.
    np.testing.assert_allclose(
      np.sqrt(got), np.sqrt(expected), rtol=1e-5, atol=1e-18
    )
  assert (added >= 0).all()
  expected = np.zeros_like(g)
  far = g > 2 * a
  expected[far] = (g * (b * g + a))[far] / (g - b * g - a)[far]
  np.testing.assert_allclose(jump, expected, rtol=1e-5)


@pytest.mark.parametrize(
  "voltage, temperature, density",
  [
    (1e-6, 300, 4 * 1.380649e-23 * 300),  # thermal
    (3.3, 300, 2 * 1.602176634e-19 * 3.3),  # shot
    (0.1, 0, 2 * 1.602176634e-19 * 0.1),
    # 2 q V coth(1.934086); 4 k T + 2 q V would be 4.861e-20.
    (0.1, 300, 3.341131e-20),
  ],
)
def test_thermal_and_shot_noise_are_one(voltage, temperature, density):
  device = crossbar.Device(
    read_voltage=voltage, temperature=temperature, bandwidth=1e7
  )
  found = sum(defects.read_noise_variances(np.float32(1e-4), device))
  expected = 1e-4 * 1e7 * density / voltage**2
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_stuck_cells_are_those_of_the_fault_states(rng):
  """Whatever they hold, and on chips of other effects too."""
  q = np.where(_integers(rng) > 0, np.float32(100), -100)
  q[0, 0] = 127
  key = _key(rng)
  faults = crossbar.Device(stuck_on=0.1, stuck_off=0.2)
  several = dataclasses.replace(
    _ALL, dead_rows=0.0, dead_columns=0.0, temperature_rise=0.0
  )
  states = []
  for device in (faults, several):
    # No healthy cell is at an end for both of two opposite weights.
    one, other = (_chip(sign * q, _traced(device), key) for sign in (1, -1))
    on = (one == np.float32(device.g_on)) & (other == np.float32(device.g_on))
    off = (one == np.float32(device.g_off)) & (
      other == np.float32(device.g_off)
    )
    assert _is_binomial(on, 0.1) and _is_binomial(off, 0.2)
    states.append(on * 1 - off)
  np.testing.assert_array_equal(*states)
  np.testing.assert_array_equal(_faults(key, faults), states[0])


def test_stuck_cells_that_vary(rng):
  """Each is a varied cell that had the ends for a target."""
  device = crossbar.Device(
    stuck_on=0.3, stuck_off=0.3, variation=0.5, stuck_cells_vary=True
  )
  key = _key(rng)
  healthy = dataclasses.replace(device, stuck_on=0.0, stuck_off=0.0)
  q = _integers(rng)
  factor = _chip(q, _traced(healthy), key) / _targets(q, device)
  at = _chip(q, _traced(device), key) / factor
  on, off = (np.isclose(at, g, rtol=1e-5) for g in (device.g_on, device.g_off))
  states = _faults(key, device)
  assert on[states > 0].all() and off[states < 0].all()
  np.testing.assert_allclose(
    at[states == 0], _targets(q, device)[states == 0], rtol=1e-5
  )
  # They do vary, as all others.
  assert _are_normal(-np.log(factor)[states != 0] / 0.5)


def test_a_new_write_changes_the_write_error_alone(rng):
  later = ("legacy_noise", "drift_time", "relaxation", "flicker_noise")
  later += ("read_disturb", "temperature_rise")
  device = dataclasses.replace(_ALL, **dict.fromkeys(later, 0.0))
  q, key = _integers(rng), _key(rng)

  def chip(device, write):
    return _chip(q, _traced(device), key, write=write)

  first, second = chip(device, 0), chip(device, 1)
  np.testing.assert_array_equal(first, chip(device, 0))
  fixed = (_faults(key, device) != 0) | (first == 0)  # stuck, or dead lines
  assert 0.3 < fixed.mean() < 0.6
  np.testing.assert_array_equal(first[fixed], second[fixed])
  assert (first != second)[~fixed].mean() > 0.999
  # The ratio of both writes is that of their errors: all else is the same.
  others = ("variation", "gaussian_variation", "chip_variation")
  others += ("tile_variation", "stuck_on", "stuck_off")
  written = dataclasses.replace(device, **dict.fromkeys(others, 0.0))
  one, two = (chip(written, write)[~fixed] for write in (0, 1))
  np.testing.assert_allclose(
    first[~fixed] / second[~fixed], one / two, rtol=1e-5
  )
  targets = _targets(q, device)[~fixed]
  a, b = ((g - targets) / _sigma(device, targets) for g in (one, two))
  assert _are_normal(a) and _are_normal(b)
  assert stats.pearsonr(a, b).pvalue > 1e-6
  unwritten = dataclasses.replace(device, write_error=0.0)
  np.testing.assert_array_equal(chip(unwritten, 0), chip(unwritten, 7))


def _line(constants, g, device):
  a, b, low, high = constants
  share = np.maximum(g / device.g_on, 1e-9)  # noise may leave less than none
  return np.clip(a * np.log(share) + b, low, high)


def _disturbed(g, device):
  left = np.exp(-device.read_disturb * device.disturb)
  return device.g_on - (device.g_on - g) * left


def _warmed(g, device):
  """Arrhenius, with k / e = 8.617333e-5 eV / K."""
  ends = np.log([device.g_off, device.g_on])
  place = np.log(np.maximum(g, device.g_off))
  energy = np.interp(place, ends, device.activation[::-1])
  hot, cold = device.temperature, device.temperature - device.temperature_rise
  factor = np.exp(-energy / 8.617333e-5 * (1 / hot - 1 / cold))
  # Where there is none, not even the rounding of its constants.
  return g * factor if device.temperature_rise else g


def _compose(levels, draws, device):
  """All effects in their order, by formula, with given draws."""

  def stuck(g):
    g = np.where((draws["faults"] == 1) & there["stuck_on"], device.g_on, g)
    return np.where(
      (draws["faults"] == -1) & there["stuck_off"], device.g_off, g
    )

  there = {name: getattr(device, name) > 0 for name in _SEVERITIES}
  g = stuck(levels) if device.stuck_cells_vary else levels
  target = g
  g = g + _sigma(device, g) * draws["write_error"]
  shift, std, _ = _retention(device, target)
  g = g + shift + std * draws["relaxation"]
  g = g * np.exp(-device.variation * draws["variation"])
  g = g * (1 + device.gaussian_variation * draws["gaussian_variation"])
  for whole in ("chip_variation", "tile_variation"):
    g = g * np.exp(-getattr(device, whole) * draws[whole])
  exponent = _line(device.drift_mean, g, device)
  exponent += _line(device.drift_std, g, device) * draws["drift_time"]
  *_, noise = _retention(device, g)
  lost = max(device.drift_time / device.drift_start, 1) ** -exponent
  # Of the state before drift but for the logarithm's part.
  by_log = 1e-6 * device.flicker[3] * device.flicker_noise
  by_log *= np.sqrt(
    np.log((device.retention_time / device.flicker_read + 1) / 2)
  )
  logs = [np.log10(np.maximum(1e6 * x, 1)) for x in (g, g * lost)]
  noise = (noise - by_log * logs[0]) * lost + by_log * logs[1]
  g = g * lost + noise * draws["flicker_noise"]
  g = _disturbed(g, device)
  step = (device.g_on - device.g_off) / 127
  jump = device.telegraph[1] / (1 - device.telegraph[1]) * g
  noise = step / 3 * draws["legacy_noise"] + jump * draws["legacy_jump"]
  g = g + device.legacy_noise * noise
  g = _warmed(g if device.stuck_cells_vary else stuck(g), device)
  for line in ("dead_rows", "dead_columns"):
    g = np.where(draws[line] & there[line], 0, g)
  return g


@pytest.fixture(scope="module")
def drawn():
  """(integers, key, {effect: its draws}), each of a chip with it alone."""
  rng = np.random.default_rng(0)
  q, key, device = _integers(rng), _key(rng), _ALL
  targets = _targets(q, device)

  def alone(effect, **constants):
    severities = dict.fromkeys(_SEVERITIES, 0.0)
    severities[effect] = getattr(device, effect)
    one = dataclasses.replace(device, **{**severities, **constants})
    return _chip(q, _traced(one), key)

  shift, relaxed, noise = _retention(device, targets)
  exponent = -np.log(alone("drift_time") / targets)
  exponent /= np.log(device.drift_time / device.drift_start)
  still, jumping = (
    alone("legacy_noise", legacy_noise=1.0, telegraph=(0.0, b))
    for b in (0.0, 0.5)
  )
  return (
    q,
    key,
    {
      "faults": _faults(key, device),
      "dead_rows": alone("dead_rows") == 0,
      "dead_columns": alone("dead_columns") == 0,
      "write_error": (alone("write_error") - targets) / _sigma(device, targets),
      **{
        name: -np.log(alone(name) / targets) / getattr(device, name)
        for name in ("variation", "chip_variation", "tile_variation")
      },
      "gaussian_variation": (alone("gaussian_variation") / targets - 1)
      / device.gaussian_variation,
      "drift_time": (exponent - _line(device.drift_mean, targets, device))
      / _line(device.drift_std, targets, device),
      "legacy_noise": (still - targets)
      / ((device.g_on - device.g_off) / 127 / 3),
      "legacy_jump": jumping - still > targets / 2,
      "relaxation": (alone("relaxation") - targets - shift) / relaxed,
      "flicker_noise": (alone("flicker_noise") - targets) / noise,
    },
  )


def test_reads_and_warmth_move_cells_as_their_formulas(rng):
  """At their ends too: all at g_on, as measured Arrhenius lines, no effect."""
  g = np.geomspace(_ALL.g_off, _ALL.g_on, 9)
  device = dataclasses.replace(_ALL, read_disturb=1e3, disturb=1.0)
  at = lambda **c: dataclasses.replace(device, **c)  # noqa: E731
  np.testing.assert_allclose(defects.read_disturb(g, device), device.g_on)
  for reads in (0.0, 1e5):
    one = at(read_disturb=reads, disturb=2e-6)
    np.testing.assert_allclose(
      defects.read_disturb(g, one), _disturbed(g, one), rtol=1e-5
    )
  for rise in (-80.0, 0.0, 15.0):
    one = at(temperature_rise=rise)
    np.testing.assert_allclose(
      defects.warmed(g, one), _warmed(g, one), rtol=1e-5
    )
  # 0.1 eV from 300 to 330 K: exp(0.1 / 8.617e-5 (1 / 300 - 1 / 330)) = 1.421.
  one = at(activation=(0.1, 0.1), temperature=330.0, temperature_rise=30.0)
  np.testing.assert_allclose(defects.warmed(g, one) / g, 1.4213, rtol=1e-4)
  np.testing.assert_array_equal(defects.warmed(g * 0, one), 0)


def test_a_memory_is_read_at_the_temperature_of_its_circuit():
  """Its rise ends there, and begins as far below."""
  memory = crossbar.Device(
    temperature=350.0, temperature_rise=40.0, activation=(0.0, 0.1)
  )
  one = crossbar.in_circuit(memory, crossbar.Device(temperature=300.0))
  off = np.asarray(defects.warmed(jnp.float32(one.g_off), one))
  power = -0.1 / 8.617333262e-5 * (1 / 300 - 1 / 260)
  np.testing.assert_allclose(off, one.g_off * np.exp(power), rtol=1e-5)


def test_stuck_cells_warm_as_all_others(rng):
  """A pair of them, both at g_off, cancels whatever the temperature."""
  q = _integers(rng, bits=1)
  device = crossbar.Device(
    g_off=3e-5, stuck_off=0.3, temperature_rise=80.0, activation=(0.0, 0.3)
  )
  found = np.unique(abs(np.round(_effective(_key(rng), q, device), 4)))
  assert len(found) == 2 and found[0] == 0
  healthy = dataclasses.replace(device, stuck_off=0.0)
  np.testing.assert_allclose(
    found[1], abs(np.float32(_effective(_key(rng), q, healthy))), rtol=1e-4
  )


def test_heat_beyond_any_cell_is_refused():
  for changes, words in (
    ({"temperature_rise": 299.0}, r"change conductances by exp\(1.73e"),
    ({"temperature_rise": 300.0}, "needed are temperatures above 0"),
    ({"temperature_rise": 9.0, "activation": (0.0, 0.0)}, "without a measured"),
  ):
    fields = {"activation": (0.0, 0.15)} | changes
    with pytest.raises(errors.InputError, match=words):
      crossbar.validate(crossbar.Device(**fields))

  @jax.jit
  def warm(rise):
    device = crossbar.Device(temperature_rise=rise)
    return crossbar.effective_weights(
      jax.random.key(0), np.ones((2, 2)), device
    )

  with pytest.raises(errors.InputError, match="a measured activation"):
    warm(40.0)


def test_chips_that_only_warm_are_alike(rng):
  q = _integers(rng, bits=1)
  device = crossbar.Device(
    g_on=1e-4, g_off=1e-6, temperature_rise=50.0, activation=(0.0, 0.2)
  )
  one, two = (np.asarray(_effective(_key(rng), q, device)) for _ in range(2))
  np.testing.assert_array_equal(one, two)
  ratio = float(_warmed(np.float64(1e-6), device)) / 1e-6
  np.testing.assert_allclose(abs(one), (1 - ratio / 100) / 0.99, rtol=1e-5)


def test_every_effect_has_draws_of_its_own(drawn):
  """Independent of all others', and between arrays, tiles and cells."""
  _, _, draws = drawn

  def are_uncorrelated(a, b):
    return stats.pearsonr(np.ravel(a), np.ravel(b)).pvalue > 1e-6

  assert _is_binomial(draws["legacy_jump"], 0.5)
  for name in (
    "write_error",
    "variation",
    "gaussian_variation",
    "drift_time",
    "relaxation",
    "flicker_noise",
  ):
    assert _are_normal(draws[name]), name
  cells = {
    name: np.asarray(draw, np.float64)
    for name, draw in draws.items()
    if not name.startswith(("dead", "chip", "tile"))
  }
  for name, x in cells.items():
    assert are_uncorrelated(x[0], x[1]), name
    for shift in (1, 2, 3, 4):  # along tile rows, tile columns, R and C
      assert are_uncorrelated(x, np.roll(x, 1, shift)), name
    for other, y in cells.items():
      # Magnitudes too: of draws that are the same but for their sign.
      if name < other:
        assert are_uncorrelated(x, y), (name, other)
        assert are_uncorrelated(abs(x), y), (name, other)
        assert are_uncorrelated(x, abs(y)), (name, other)
    for line, axis in (("dead_rows", -1), ("dead_columns", -2)):
      dead = draws[line].all(axis).astype(float)
      assert are_uncorrelated(x.mean(axis), dead), (line, name)


def test_chips_and_tiles_vary_as_wholes(drawn):
  """A tile's pair has one factor, and a chip's tiles have one more."""
  q, key, draws = drawn
  theta = draws["chip_variation"]
  np.testing.assert_allclose(theta, theta[0, 0, 0, 0, 0], atol=1e-4)
  theta = draws["tile_variation"]
  by_tile = theta[0, ..., 0, 0]
  expected = np.broadcast_to(by_tile[..., None, None], theta.shape)
  np.testing.assert_allclose(theta, expected, atol=1e-4)
  assert len(np.unique(by_tile.round(3))) > 20 and _are_normal(by_tile)
  device = crossbar.Device(chip_variation=0.3)

  @jax.jit
  @jax.vmap
  def factor(key):
    return defects.of_chip(key, device).chip_variation

  assert _are_normal(factor(jax.random.split(key, 500)) / 0.3)


@jax.jit
def _numbers_of_stuck_cells(keys, device):
  """Of chips of four tiles: `[S, 4, 2]`, (on, off)."""

  def one(key):
    own = defects.of_chip(key, device)
    states = defects.fault_states(defects.tile_keys(key, (2, 2)), _SMALL, own)
    return jnp.stack([(states == x).sum((1, 2, 3)) for x in (1, -1)], -1)

  return jax.vmap(one)(keys)


_SMALL = (2, 8, 8)


@pytest.mark.slow
def test_numbers_of_stuck_cells_are_beta_binomial(rng):
  """Over chips of one dispersion, and over tiles of another about those."""
  chips, size = 4000, 2 * 8 * 8
  mean = 0.15
  for chip, tile in ((0.05, 0.0), (0.0, 0.1), (0.2, 0.05), (0.0, 0.0)):
    device = crossbar.Device(
      stuck_on=np.float32(mean / 3),
      stuck_off=np.float32(mean * 2 / 3),
      chip_dispersion=np.float32(chip),
      tile_dispersion=np.float32(tile),
    )
    keys = jax.random.split(_key(rng), chips)
    numbers = np.asarray(_numbers_of_stuck_cells(keys, device), np.float64)
    stuck = numbers.sum(-1)
    # Of two cells of a tile, and of two tiles of a chip.
    within, across = chip + (1 - chip) * tile, chip
    total = stuck.sum(1)
    variance = mean * (1 - mean) * 4 * size
    variance *= 1 + (size - 1) * within + 3 * size * across
    spread = np.square(total - 4 * size * mean)
    error = spread.std() / np.sqrt(chips)
    assert abs(spread.mean() - variance) < 5 * error, (chip, tile)
    assert abs(total.mean() - 4 * size * mean) < 5 * np.sqrt(variance / chips)
    # The kinds keep their shares, of all that are stuck.
    on = numbers[..., 0].sum()
    assert _is_binomial(np.repeat([True, False], [on, stuck.sum() - on]), 1 / 3)
    if not (chip and tile):
      of, counts = (4 * size, total) if chip else (size, stuck.ravel())
      rho = chip or tile
      scale = (1 / rho - 1) if rho else 1e9
      exact = stats.betabinom(of, mean * scale, (1 - mean) * scale)
      ends = exact.cdf(counts - 1), exact.cdf(counts)
      assert _are_uniform(rng.uniform(*ends)), (chip, tile)


@pytest.mark.slow
def test_stuck_cells_in_clusters(rng):
  """Squares of one kind: each cell as likely, of pairs what overlaps say."""
  side, rates = 3, (0.02, 0.08)
  device = crossbar.Device(
    stuck_on=rates[0], stuck_off=rates[1], fault_cluster=side
  )

  @jax.jit
  def states(key):
    return defects.fault_states(
      defects.tile_keys(key, _GRID), (2, 64, 64), device
    )

  found = np.stack([states(_key(rng)) for _ in range(40)])
  found = found.reshape(-1, 64, 64)
  for kind, rate in ((1, rates[0]), (-1, rates[1])):
    share = (found == kind).mean((1, 2))
    assert abs(share.mean() - rate) < 5 * share.std() / np.sqrt(len(share))
  edge = (found[:, 0] != 0).mean(1)
  assert abs(edge.mean() - 0.1) < 5 * edge.std() / np.sqrt(len(edge))
  healthy = found == 0
  for down, right in ((0, 1), (1, 1), (2, 0), (3, 0), (0, 7)):
    overlap = max(side - down, 0) * max(side - right, 0)
    expected = 0.9 ** (2 - overlap / side**2)
    both = healthy & np.roll(healthy, (down, right), (1, 2))
    share = both.mean((1, 2))
    error = share.std() / np.sqrt(len(share))
    assert abs(share.mean() - expected) < 5 * error, (down, right)


@pytest.mark.slow
def test_all_forms_are_of_the_chip_of_its_own_fault_rates(rng):
  """Fold, planes, cells, and what placing knows."""
  device = crossbar.Device(
    stuck_on=0.1,
    stuck_off=0.2,
    chip_dispersion=0.3,
    tile_dispersion=0.1,
    fault_cluster=2,
    tile_shape=(16, 16),
  )
  net = {"params": {"a": {"kernel": _integers(rng, (40, 20), bits=1)}}}
  key = _key(rng)

  @jax.jit
  def forms(key):
    fold, planes = (
      crossbar.program(key, net, device, form=form)["crossbar"]["a"]
      for form in ("float32", "bfloat16")
    )
    layer = cells.chip_cells(key, net, device)["a"]
    known = crossbar.known_faults(key, net, device, crossbar.Placing())
    return fold["weight"], planes["weight"], layer.faults, known

  fold, planes, faults, known = map(np.asarray, forms(key))
  np.testing.assert_array_equal(fold, planes.astype(np.float32))
  np.testing.assert_array_equal(faults.reshape(known.shape), known)
  given = {"a": faults}
  healthy = crossbar.Device(tile_shape=(16, 16))
  again = crossbar.program(key, net, healthy, faults=given)["crossbar"]["a"]
  np.testing.assert_array_equal(fold, again["weight"])
  assert 20 < (fold != net["params"]["a"]["kernel"]).sum() < 700


@pytest.mark.parametrize("vary", [False, True])
@settings(max_examples=15)
@given(there=st.sets(st.sampled_from(_SEVERITIES)))
def test_effects_keep_their_draws_and_their_order(drawn, vary, there):
  """Any effects together are the formulas, with the draws of each alone."""
  q, key, draws = drawn
  device = dataclasses.replace(
    _ALL,
    stuck_cells_vary=vary,
    telegraph=(0.0, 0.3),
    **dict.fromkeys(set(_SEVERITIES) - there, 0.0),
  )
  expected = _compose(_targets(q, device), draws, device)
  got = _chip(q, _traced(device), key)
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * device.g_on)


def test_an_absent_effect_is_one_of_severity_0(rng):
  """Bit for bit, though one is in the program and the other is not."""
  q, key = _integers(rng), _key(rng)
  # As users compile: with less, programs that differ round in their own way.
  conductances = jax.jit(
    crossbar.conductances,
    static_argnames="bits",
    compiler_options={"xla_backend_optimization_level": 3},
  )
  names = rng.permutation(_SEVERITIES)
  # Some are absent, then the others, then all.
  for absent in (names[::2], names[1::2], names):
    zeros = dict(zip(absent, (0, 0.0, None) * 6, strict=False))
    device = dataclasses.replace(_ALL, **zeros)
    leaves = len(jax.tree.leaves(_ALL)) - len(absent)
    assert len(jax.tree.leaves(device)) == leaves
    traced = dataclasses.replace(device, **dict.fromkeys(absent, 0.0))
    got, expected = (
      np.stack(conductances(key, q, d, bits=8))
      for d in (device, _traced(traced))
    )
    np.testing.assert_array_equal(got, expected, absent)
    assert len(np.unique(got)) > 100


@pytest.mark.parametrize(
  "bits, cell_bits, absent",
  [(8, 2, ()), (1, 0, ("stuck_on", "stuck_off", "variation", "legacy_noise"))],
)
@pytest.mark.exact
def test_narrower_nets_share_all_draws_of_the_cells_they_share(
  rng, bits, cell_bits, absent
):
  """A cell's conductance follows from the chip and from what it holds."""
  device = dataclasses.replace(
    _ALL,
    cell_bits=cell_bits,
    tile_shape=(32, 16),
    **dict.fromkeys(absent, 0.0),
  )
  wide = {
    "a": {"kernel": _integers(rng, (3, 3, 9, 40), bits)},
    "b": {"c": {"kernel": _integers(rng, (50, 20), bits)}},
  }
  widths = {"a": (5, 33), "b": (50, 7)}

  def narrow(path, kernel):
    c_in, c_out = widths[path[0].key]
    return kernel[..., :c_in, :c_out]

  nets = wide, jax.tree_util.tree_map_with_path(narrow, wide)
  key = _key(rng)
  large, small = (
    jax.device_get(_program(key, {"params": net}, device, bits=bits, write=3))
    for net in nets
  )
  large = jax.tree_util.tree_map_with_path(narrow, large["crossbar"])
  pairs = [jax.tree.leaves(chip) for chip in (small["crossbar"], large)]
  assert len(pairs[0]) == 2
  for ours, theirs in zip(*pairs, strict=True):
    # The order in which slices add up is the compiler's.
    atol = 0 if cell_bits == 0 else 1e-4
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)
    assert len(np.unique(np.round(ours, 3))) > 30


def test_mean_output_at_the_published_rates(rng):
  """E[w_eff w] = 1 - zeros - 2 flips = 1 - p_on - p_off, and so do outputs."""
  device = crossbar.PRESETS["hawis_published"]
  on, off = device.stuck_on, device.stuck_off
  zeros, flips = on * (1 - off) + off * (1 - on), on * off
  mean = 1 - zeros - 2 * flips
  assert mean == pytest.approx(1 - 0.0175 - 0.0904)
  variance = (1 - zeros) - mean**2  # of w_eff w, which is -1, 0 or 1
  w = _integers(rng, (1024, 512), bits=1)
  assert round(100 * zeros, 1) == 10.5  # percent
  got = np.asarray(_effective(_key(rng), w, device))
  error = (got * w).mean() - mean
  assert abs(error) < 5 * np.sqrt(variance / w.size)
  inputs = rng.integers(0, 2, 1024)
  off_by = inputs @ got - mean * (inputs @ w)
  assert _are_normal(off_by / np.sqrt(variance * inputs.sum()))


_DIFFERENTIABLE = (
  "variation",
  "gaussian_variation",
  "chip_variation",
  "tile_variation",
  "write_error",
  "drift_time",
  "legacy_noise",
  "relaxation",
  "flicker_noise",
  "read_disturb",
  "temperature_rise",
)


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def test_weights_have_gradients_with_respect_to_severities(rng, x64):
  """Against finite differences, all effects together."""
  q, key = _integers(rng, (8, 8)).astype(np.float64), _key(rng)
  direction = rng.normal(size=(8, 8))
  # Neither clipped lines nor exponents near 0 nor the telegraph noise's pole:
  # finite differences across those say nothing.
  smooth = dataclasses.replace(
    _ALL,
    drift_mean=(-0.02, 0.3, -9.0, 9.0),
    drift_std=(0.0, 0.03, 0.0, 9.0),
    telegraph=(1e-15, 0.0015),
    tile_shape=(8, 8),
  )

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss(severities):
    device = dataclasses.replace(smooth, **severities)
    terms = crossbar.effective_weights(key, q, device, bits=8) * direction
    return terms.sum(), abs(terms).sum()

  severities = {
    name: np.float64(getattr(_ALL, name)) for name in _DIFFERENTIABLE
  }
  (_, terms), slopes = jax.device_get(loss(severities))
  for name, severity in severities.items():
    step = 1e-5 * severity
    ends = [
      np.asarray(loss({**severities, name: severity + s})[0][0])
      for s in (step, -step)
    ]
    expected = (ends[0] - ends[1]) / (2 * step)
    assert abs(slopes[name]) > 0, name
    # Terms of either sign may leave a slope far below their rounding errors.
    atol = 1e-9 * terms / severity
    np.testing.assert_allclose(
      slopes[name], expected, rtol=1e-7, atol=atol, err_msg=name
    )


def test_weights_have_gradients_at_severity_0(rng):
  """d/dgamma (G+ - G-) = G- n- - G+ n+, from the first bit of variation."""
  q, key = _integers(rng, _TILE, bits=1), _key(rng)

  @jax.jit
  def slope(gamma):
    def weights(gamma):
      device = crossbar.Device(variation=gamma)
      return crossbar.effective_weights(key, q, device)

    return jax.jvp(weights, (gamma,), (jnp.ones_like(gamma),))[1]

  np.testing.assert_allclose(slope(0.0), slope(1e-5), rtol=1e-3, atol=1e-4)


def test_stuck_cells_pass_no_gradient(rng):
  """Whether or not they are stuck where they should be."""
  q, key = _integers(rng, _TILE, bits=1), _key(rng)
  device = crossbar.Device(stuck_on=0.5, stuck_off=0.5)

  @jax.jit
  @jax.grad
  def slope(q):
    return crossbar.effective_weights(key, q, device).sum()

  np.testing.assert_array_equal(slope(q), 0)
