"""Effects on cells: what random draws do to conductances, and the draws.

Every effect is a pure function of conductances, draws and parameters;
`cell_conductances` applies those that are present, in the order of
docs/crossbar.md. Draws are a function of (layer's key, slice, tile row, tile
column) alone, each effect on a stream of its own. So nets of different widths
on one chip share the defects of the cells they share, and nothing depends on
batching or devices.

Axes: T tiles of all layers, 2 = (positive, negative) array of the differential
pair, R rows and C columns of a tile. `normal` is n ~ N(0, 1) and `uniform` u in
[0, 1), both of the shape of `g` [S].
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp

from hawis_jax.crossbar import converters
from hawis_jax.crossbar import devices
from hawis_jax.crossbar import draws

# Key stream of each effect: never renumber, chips would change.
_FAULT, _VARIATION, _GAUSSIAN, _DRIFT, _ROWS, _COLUMNS, _LEGACY, _WRITE = range(
  8
)
_TILE_VARIATION, _TILE_RATE, _RELAXATION, _FLICKER = 8, 9, 10, 11
_OFFSET, _GAIN, _CAPACITORS = 12, 13, 14
# Of a chip's key, beyond its layers: what all its cells share.
_CHIP_VARIATION, _CHIP_RATE = 2**30, 2**30 - 2
# Slices of a weight after the first have layer keys of their own: these, far
# beyond any tile row.
_SLICES = 2**30

BOLTZMANN = 1.380649e-23  # [J / K]
ELEMENTARY_CHARGE = 1.602176634e-19  # [C]
_LEGACY_CONSTANTS = (1.38e-23, 1.6e-19)  # the published code's


def tile_keys(
  layer_key: chex.PRNGKey, grid: tuple[int, int], cell_slice: int = 0
) -> chex.Array:
  """Returns one key a tile, `[row_tiles * col_tiles]`, row-major.

  They follow from the key of one layer of one chip, which is consumed, and from
  the slice (see `Device.cell_bits`); a tile's does not depend on the grid (row
  tiles, column tiles).
  """
  if cell_slice:
    layer_key = jax.random.fold_in(layer_key, _SLICES + cell_slice)
  rows, columns = jnp.indices(grid).reshape(2, -1)
  by_row = jax.vmap(jax.random.fold_in, (None, 0))(layer_key, rows)
  return jax.vmap(jax.random.fold_in)(by_row, columns)


def of_chip(key: chex.PRNGKey, device: devices.Device) -> devices.Device:
  """Returns the device as one chip has it, of what all its cells share drawn.

  Its fault rates are the chip's; `chip_variation` is theta itself. The key is
  the chip's, and not consumed.
  """
  own = {}
  if devices.is_present(device.chip_variation):
    bits = draws.words(jax.random.fold_in(key, _CHIP_VARIATION), (2, 1, 1))
    own["chip_variation"] = device.chip_variation * draws.normal(bits[0, 0, 0])
  rates = _rates(device)
  if rates is not None and devices.is_present(device.chip_dispersion):
    stream = jax.random.fold_in(key, _CHIP_RATE)
    rates = _dispersed(stream, rates, device.chip_dispersion)
    own.update(zip(("stuck_on", "stuck_off"), rates, strict=True))
    own["chip_dispersion"] = 0.0
  return dataclasses.replace(device, **own)


def _dispersed(key, rates, dispersion):
  """Returns (on, off) of a part, whose p = on + off is beta distributed.

  Its variance is dispersion p (1 - p), and on / off stays as it is.
  """
  mean = sum(rates)
  # Where there is no share, or no dispersion, it is not used.
  inside = jnp.clip(mean, 1e-6, 1 - 1e-6)
  rho = jnp.maximum(dispersion, 1e-6)
  total = 1 / rho - 1
  share = jax.random.beta(key, inside * total, (1 - inside) * total)
  apart = (dispersion > 0) & (mean > 0) & (mean < 1)
  factor = jnp.where(apart, share / inside, 1)
  return tuple(jax.lax.stop_gradient(rate * factor) for rate in rates)


def target_conductances(
  levels: chex.Array, steps: int, device: devices.Device
) -> chex.Array:
  """Returns what cells are programmed to [S]: evenly spaced from g_off to g_on.

  `levels`, any shape, run from 0 (exactly g_off) to `steps` (exactly g_on).
  """
  step = (device.g_on - device.g_off) / steps
  # Sum first: were it a product plus g_off, compilers might fuse the two and
  # round differently from one program to the next.
  between = (levels + device.g_off / step) * step
  g = jnp.where(levels == steps, device.g_on, between)
  g = jnp.where(levels == 0, device.g_off, g)
  slope = between - jax.lax.stop_gradient(between)
  return jax.lax.stop_gradient(g) + slope


def write_error(
  g: chex.Array, normal: chex.Array, device: devices.Device
) -> chex.Array:
  """Returns max(G + severity sigma(G) n, 0), sigma a measured polynomial."""
  sigma = _polynomial(device.write_sigma, g * 1e6)
  error = device.write_error * 1e-6 * jnp.maximum(sigma, 0) * normal
  return jnp.maximum(g + error, 0)


def _polynomial(coefficients, x):
  """Returns c_0 + c_1 x + ..."""
  value = jnp.zeros_like(x)
  for coefficient in reversed(coefficients):
    value = value * x + coefficient
  return value


def elapsed(device: devices.Device) -> chex.Numeric:
  """Returns the time since programming [s] of relaxation and 1/f noise."""
  if not devices.is_present(device.drift_time):
    return device.retention_time
  return jnp.maximum(device.retention_time, device.drift_time)


def relaxation(
  g: chex.Array, target: chex.Array, normal: chex.Array, device: devices.Device
) -> chex.Array:
  """Returns max(G + what `Device.relaxation` says of its target, 0)."""
  micro = target * 1e6
  since = jnp.log(jnp.maximum(elapsed(device) / device.relaxation_start, 1))
  shift = _polynomial(device.relaxation_shift, micro) * since
  spread = _polynomial(device.relaxation_spread, micro)
  spread += _polynomial(device.relaxation_growth, micro) * since
  change = shift + jnp.maximum(spread, 0) * normal
  return jnp.maximum(g + device.relaxation * 1e-6 * change, 0)


def read_disturb(g: chex.Array, device: devices.Device) -> chex.Array:
  """Returns G after reads that each set cells a little further.

  Cells drift and saturate (HfO2: Shim et al., IRPS 2020; a million pulses of
  0.2 V: Yao et al., Nature 577, 641 (2020), extended data figure 7); that they
  do so exponentially is assumed.
  """
  gone = -jnp.expm1(-device.read_disturb * device.disturb)
  # Not g_on less the rest: without reads G stays as it is, to the bit.
  return g + (device.g_on - g) * gone


def warmed(g: chex.Array, device: devices.Device) -> chex.Array:
  """Returns G at a temperature other than that of programming.

  Conduction is thermally activated (Arrhenius); see `Device.activation`.
  """
  on, off = device.activation
  place = jnp.log(jnp.maximum(g, device.g_off) / device.g_on)
  place = jnp.minimum(place, 0) / jnp.log(device.g_off / device.g_on)
  energy = (on + (off - on) * jnp.clip(place, 0, 1)) * ELEMENTARY_CHARGE
  before = device.temperature - device.temperature_rise
  # 1 / before - 1 / temperature, of which float32 would leave little.
  inverse = device.temperature_rise / (device.temperature * before)
  return g * jnp.exp(energy / BOLTZMANN * inverse)


def flicker_noise(
  g: chex.Array, before: chex.Array, normal: chex.Array, device: devices.Device
) -> chex.Array:
  """Returns G with the 1/f noise that has accumulated since programming.

  See `Device.flicker_noise`; `before` is G before drift, and a result below 0
  counts as 0.
  """
  slope, power, most, by_log = device.flicker
  share = jnp.maximum(before / device.g_on, 1e-9)
  relative = jnp.minimum(slope * share**-power, most)
  sigma = g * relative + 1e-6 * by_log * jnp.log10(jnp.maximum(g * 1e6, 1))
  reads = (elapsed(device) / device.flicker_read + 1) / 2
  # A time of less than a read has no noise yet; its root has no slope.
  there = reads > 1
  root = jnp.sqrt(jnp.log(jnp.where(there, reads, 2.0)))
  grown = jnp.where(there, device.flicker_noise * root, 0)
  return jnp.maximum(g + grown * sigma * normal, 0)


def lognormal_variation(
  g: chex.Array, normal: chex.Array, gamma: chex.Numeric
) -> chex.Array:
  """Returns G exp(-gamma n)."""
  return g * jnp.exp(-gamma * normal)


def gaussian_variation(
  g: chex.Array, normal: chex.Array, sigma: chex.Numeric
) -> chex.Array:
  """Returns max(G (1 + s n), 0)."""
  return g * jnp.maximum(1 + sigma * normal, 0)


def drift(
  g: chex.Array, normal: chex.Array, device: devices.Device
) -> chex.Array:
  """Returns G (t / t_0)^-nu, nu = max(mu + sigma n, 0); G itself up to t_0."""
  log_share = jnp.log(jnp.maximum(g / device.g_on, 1e-9))

  def clipped_line(a, b, low, high):
    return jnp.clip(a * log_share + b, low, high)

  mean = clipped_line(*device.drift_mean)
  exponent = jnp.maximum(mean + clipped_line(*device.drift_std) * normal, 0)
  periods = jnp.maximum(device.drift_time / device.drift_start, 1)
  return g * jnp.exp(-exponent * jnp.log(periods))


def stick(
  g: chex.Array,
  uniform: chex.Array,
  stuck_on: chex.Numeric,
  stuck_off: chex.Numeric,
  device: devices.Device,
) -> chex.Array:
  """Puts cells of u < stuck_on at g_on, of u >= 1 - stuck_off at g_off.

  One draw decides both faults, whose rates these are.
  """
  return _stick(g, *_is_stuck(uniform, stuck_on, stuck_off), device)


def _stick(g, is_on, is_off, device):
  g = jnp.where(is_on, device.g_on, g)
  return jnp.where(is_off, device.g_off, g)


def fault_states(
  keys: chex.Array, shape: tuple[int, ...], device: devices.Device
) -> chex.Array:
  """Returns which cells `cell_conductances` sticks, of the same keys.

  int8 `[T, *shape]`: 1 stuck on, -1 stuck off, 0 healthy; `shape` is that of a
  tile's pair of arrays, (2, R, C).
  """
  if _rates(device) is None:
    return jnp.zeros((len(keys), *shape), jnp.int8)

  def one_tile(key):
    is_on, is_off = _stuck_cells(key, shape, device)
    return jnp.where(is_off, -1, jnp.where(is_on, 1, 0)).astype(jnp.int8)

  return jax.vmap(one_tile)(keys)


def _stuck_cells(tile_key, shape, device):
  """Returns (on, off) of a tile's cells, bool of `shape`, (2, R, C)."""
  rates = _rates(device)
  if devices.is_present(device.tile_dispersion):
    stream = jax.random.fold_in(tile_key, _TILE_RATE)
    rates = _dispersed(stream, rates, device.tile_dispersion)
  stream = jax.random.fold_in(tile_key, _FAULT)
  uniform = draws.uniform(draws.words(stream, shape))
  if device.fault_cluster == 1:
    return _is_stuck(uniform, *rates)
  least = _least_nearby(uniform, device.fault_cluster)
  on, off = rates
  return least < on, (least >= on) & (least < on + off)


def _least_nearby(uniform, side):
  """Returns the least draw of the square that ends at a cell, again uniform.

  So a cell whose draw is small sticks a whole square. Edges wrap around: cells
  there are as likely to stick as all others.
  """
  least = uniform
  for axis in (1, 2):
    shifted = [jnp.roll(least, shift, axis) for shift in range(side)]
    least = functools.reduce(jnp.minimum, shifted)
  # P(least < x) = 1 - (1 - x)^(side^2).
  return -jnp.expm1(side**2 * jnp.log1p(-least))


def on_dead_line(
  tile_key: chex.PRNGKey, shape: tuple[int, ...], device: devices.Device
) -> chex.Array:
  """Returns which cells of a tile are on dead lines.

  bool, to be broadcast to `shape`, (2, R, C).
  """
  found = jnp.zeros((shape[0], 1, 1), bool)
  for effect, severity, axis in (
    (_ROWS, device.dead_rows, 2),
    (_COLUMNS, device.dead_columns, 1),
  ):
    if devices.is_present(severity):
      lines = list(shape)
      lines[axis] = 1
      stream = jax.random.fold_in(tile_key, effect)
      found = found | (draws.uniform(draws.words(stream, lines)) < severity)
  return found


def _rates(device):
  """Returns (on, off); None where neither fault is present."""
  rates = device.stuck_on, device.stuck_off
  if not any(map(devices.is_present, rates)):
    return None
  return tuple(0 if p is None else p for p in rates)


def _is_stuck(uniform, stuck_on, stuck_off):
  """Returns (on, off): where both, as for rates that add up to 1, off holds."""
  return uniform < stuck_on, uniform >= 1 - stuck_off


def read_noise_variances(
  g: chex.Array, device: devices.Device
) -> tuple[chex.Array, chex.Array]:
  """Returns variances [S^2] of a cell at 0 V, and what a read at V adds.

  At 0 V it is thermal noise, 4 k T G df / V^2 (Johnson; Nyquist). At V it is
  shot noise of the currents there and back, 2 q (I+ + I-) df / V^2, where
  I+ - I- = G V and, by detailed balance, I+ / I- = exp(q V / k T): together
  2 q G V coth(q V / 2 k T), thermal at small V and 2 q I at large V. Small
  negative G count as 0.
  """
  voltage = device.read_voltage
  scaled = jnp.maximum(g, 0) * device.bandwidth / voltage**2
  energy = BOLTZMANN * device.temperature
  # Where T is 0, the cotangent is 1.
  ratio = ELEMENTARY_CHARGE * voltage / 2 / jnp.maximum(energy, 1e-30)
  driven = 2 * ELEMENTARY_CHARGE * voltage / jnp.tanh(ratio)
  thermal = 4 * energy
  # Rounding would make it negative at small V.
  return scaled * thermal, scaled * jnp.maximum(driven - thermal, 0)


def white_noise_std(g: chex.Array, device: devices.Device) -> chex.Array:
  """Returns the standard deviation at a read over `white_noise` [S]."""
  if device.white_noise_law == "independent":
    return jnp.full_like(g, device.g_on)
  if device.white_noise_law == "proportional":
    return g
  there = g > 0
  return jnp.where(there, device.g_on**2 / jnp.where(there, g, 1.0), 0)


def converter_errors(
  keys: chex.PRNGKey, columns: int, device: devices.Device
) -> dict[str, chex.Array]:
  """Returns errors of tiles' converters, those that are present, by name.

  Offsets and relative gain errors are `[T, 1, C]`, errors of capacitors `[T,
  16, C]`; keys are of `tile_keys`.
  """

  def drawn(effect, rows=1):
    def one(key):
      bits = draws.words(jax.random.fold_in(key, effect), (1, rows, columns))
      return draws.normal(bits)[0]

    return jax.vmap(one)(keys)

  found = {
    name: sigma * drawn(effect)
    for name, effect, sigma in (
      ("offsets", _OFFSET, device.adc_offset),
      ("gains", _GAIN, device.adc_gain),
    )
    if devices.is_present(sigma)
  }
  if devices.is_present(device.adc_mismatch):
    normal = drawn(_CAPACITORS, converters.MOST_BITS + 1)
    of_tile = functools.partial(capacitor_errors, device=device)
    found["capacitors"] = jax.vmap(of_tile)(normal)
  return found


def capacitor_errors(normal: chex.Array, device: devices.Device) -> chex.Array:
  """Returns what each bit adds too much to a level [LSB], `[16, C]`.

  A SAR converter of b bits compares with levels of a capacitive divider: a
  capacitor of 2^i units for bit i, and a last one of one unit that no bit
  switches. 2^i units err by sqrt(2^i) times what one does, s n; a code's level
  is 2^b times the share of the capacitors of its bits in all of them. So levels
  of 0 and 2^b are exact, and that of code u deviates by s sqrt(u (1 - u /
  2^b)), at most by s sqrt(2^(b - 2)), in the middle.

  Args:
    normal: of the last capacitor, of bit 0's, of bit 1's, ..., `[17, C]`.
    device: its `adc_mismatch` is s.
  """
  bits = jnp.arange(converters.MOST_BITS)
  units = jnp.where(bits < device.adc_bits, 2.0**bits, 0)[:, None]
  own = device.adc_mismatch * jnp.sqrt(units) * normal[1:]
  last = device.adc_mismatch * normal[:1]
  share = (own.sum(0, keepdims=True) + last) / 2.0**device.adc_bits
  return (own - units * share) / (1 + share)


def telegraph_step(g: chex.Array, device: devices.Device) -> chex.Array:
  """Returns dG = G (b G + a) / (G - b G - a) [S] where G > 2 a; below, 0.

  The formula of Ielmini et al. has a pole at a; below 2 a it is not used.

  Args:
    g: conductances [S].
    device: `telegraph` = (a, b).
  """
  a, b = device.telegraph
  valid = g > 2 * a
  safe = jnp.where(valid, g, 1.0)
  step = safe * ((b * safe + a) / (safe - b * safe - a))
  return jnp.where(valid, step, 0)


def legacy_noise(
  g: chex.Array,
  normal: chex.Array,
  uniform: chex.Array,
  voltage: chex.Numeric,
  step: chex.Numeric,
  device: devices.Device,
) -> chex.Array:
  """Returns G with the published test's noise, oddities included.

  For comparison only: G + sqrt(G df (4kT + 2qV) / V^2 + (step / 3)^2) n, plus
  dG where u < 1/2. Of a binary net `step`, the conductance of one step of the
  weights [S], is the whole range, so that a quarter of the cells become
  negative; dG is not kept from its pole. Where V is 0, no normal noise.
  """
  there = voltage > 0
  safe = jnp.where(there, voltage, 1.0)
  k, q = _LEGACY_CONSTANTS
  density = 4 * k * device.temperature + 2 * q * safe
  read = g * device.bandwidth * density / safe**2
  std = jnp.where(there, jnp.sqrt(read + (step / 3) ** 2), 0)
  a, b = device.telegraph
  telegraph = g * ((b * g + a) / (g - b * g - a))
  return g + std * normal + jnp.where(uniform < 0.5, telegraph, 0)


def cell_conductances(
  keys: chex.Array,
  targets: chex.Array,
  device: devices.Device,
  steps: int = 1,
  write: chex.Numeric = 0,
  faults: chex.Array | None = None,
) -> chex.Array:
  """Draws the cells of some tiles; returns conductances `[T, 2, R, C]` [S].

  Args:
    keys: `[T]`, from `tile_keys`.
    targets: `[T, 2, R, C]` [S], from `target_conductances`.
    device: of `of_chip`; severities may be traced.
    steps: from g_off to g_on.
    write: number of the programming: another one has the same chip's defects,
      and write errors of its own.
    faults: measured ones beside those drawn, `[T, 2, R, C]`: 1 stuck on, -1
      stuck off, 0 healthy.
  """

  def one_tile(key, g, faults):
    return _tile_conductances(key, g, faults, device, steps, write)

  return jax.vmap(one_tile)(keys, targets, faults)


def _tile_conductances(key, g, faults, device, steps, write):
  """One tile, `[2, R, C]`."""

  def stream(effect):
    return jax.random.fold_in(key, effect)

  def normal(key):
    return draws.normal(draws.words(key, g.shape))

  def stuck(g):
    if _rates(device) is not None:
      g = _stick(g, *_stuck_cells(key, g.shape, device), device)
    if faults is not None:
      g = jnp.where(faults > 0, device.g_on, g)
      g = jnp.where(faults < 0, device.g_off, g)
    return g

  if device.stuck_cells_vary:
    g = stuck(g)
  target = g
  if devices.is_present(device.write_error):
    written = jax.random.fold_in(stream(_WRITE), write)
    g = write_error(g, normal(written), device)
  if devices.is_present(device.relaxation):
    g = relaxation(g, target, normal(stream(_RELAXATION)), device)
  if devices.is_present(device.variation):
    g = lognormal_variation(g, normal(stream(_VARIATION)), device.variation)
  if devices.is_present(device.gaussian_variation):
    normals = normal(stream(_GAUSSIAN))
    g = gaussian_variation(g, normals, device.gaussian_variation)
  if devices.is_present(device.chip_variation):
    g = lognormal_variation(g, 1, device.chip_variation)  # see `of_chip`
  if devices.is_present(device.tile_variation):
    bits = draws.words(stream(_TILE_VARIATION), (2, 1, 1))
    g = lognormal_variation(g, draws.normal(bits[:1]), device.tile_variation)
  before = g
  if devices.is_present(device.drift_time):
    g = drift(g, normal(stream(_DRIFT)), device)
  if devices.is_present(device.flicker_noise):
    g = flicker_noise(g, before, normal(stream(_FLICKER)), device)
  if devices.is_present(device.read_disturb):
    g = read_disturb(g, device)
  if devices.is_present(device.legacy_noise):
    # The stream's own key is that of the normal draw.
    other = jax.random.split(stream(_LEGACY))[1]
    uniform = draws.uniform(draws.words(other, g.shape))
    step = (device.g_on - device.g_off) / steps
    normals = normal(stream(_LEGACY))
    noisy = legacy_noise(g, normals, uniform, device.read_voltage, step, device)
    g = g + device.legacy_noise * (noisy - g)
  if not device.stuck_cells_vary:
    g = stuck(g)
  # Of all cells, stuck or not: it is how they conduct when they are read.
  if devices.is_present(device.temperature_rise):
    g = warmed(g, device)
  # After stuck cells: whatever a cell is, its dead line carries nothing.
  return jnp.where(on_dead_line(key, g.shape, device), 0, g)
