"""IR drop: what wires and loads leave of an array's currents, exactly.

docs/crossbar.md has the networks. Where word lines feed the cells, currents are
linear in the input voltages: one matrix, the transfer matrix, says all, and
takes the place of the conductances in whatever multiplies by them. Where they
gate the cells, each input has a network of its own, whose columns are apart:
`gated_currents`. So it has where cells are not ohmic: `nonlinear_currents`.

The nodal equations have 2 R C unknowns. They are solved row by row, from the
far end of the bit lines to their read-out: Y, C x C, is the admittance of the
rows so far seen from the bit lines, J, C x R, the currents they deliver to
grounded bit lines per volt on each row.

Axes: R rows and C columns of one array.
"""

import functools

import chex
import jax
from jax import custom_batching
import jax.numpy as jnp
import numpy as np

from hawis_jax import errors
from hawis_jax.crossbar import devices

# Size at which `_series` turns from halves to a polynomial (measured).
_LEAF = 32

# J grows in two steps, as its columns of rows to come are zero, but in steps of
# no fewer rows than this: each is a program to compile.
_FEWEST_ROWS = 32

# Of `nonlinear_currents`: Newton's steps, of which at most 17 were seen to be
# needed, steps of each for its linear system, and cells solved at a time.
_STEPS, _LINEAR_STEPS, _CELLS = 40, 200, 2**18
# Least a V: float32 tells no curve from a straight line there.
_STRAIGHT = 1e-4

# Accelerators round operands by default, and J sums currents row after row.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def wire_transfer(
  g: chex.Array, device: devices.Device, batch_size: int | None = None
) -> chex.Array:
  """Returns `transfer` with the wires and loads of a device.

  The network, and its source, stand in docs/crossbar.md, under "IR drop": that
  of ohmic cells which are not gated.

  >>> import hawis_jax as hx, jax.numpy as jnp
  >>> g = jnp.full((2, 2), 1e-4)
  >>> device = hx.Device(wire_resistance=1.0, load_resistance=1.0)
  >>> current = hx.wire_transfer(g, device)
  >>> bool((current < g).all())
  True

  Raises:
    InputError: a bad device, or one of gated or non-linear cells.
  """
  devices.validate(device)
  for field in set(devices.BY_INPUT) & set(devices.tile_effects(device)):
    raise errors.InputError(
      f"{field}: got {getattr(device, field)!r} with resistive wires, allowed "
      f"is {getattr(devices.Device(), field)!r}: currents are not linear in "
      "the inputs; use crossbar.program"
    )
  flipped = [
    axis
    for axis, is_flipped in (
      (-1, device.source_side == "last"),
      (-2, device.sense_side == "first"),
    )
    if is_flipped
  ]
  current = transfer(jnp.flip(g, flipped), *resistances(device), batch_size)
  return jnp.flip(current, flipped)


def resistances(
  device: devices.Device,
) -> tuple[tuple[chex.Numeric, chex.Numeric], ...]:
  """Returns ((wires that feed, bit lines), (drivers, sensing ends)) [ohm]."""

  def total(*fields):
    values = [getattr(device, field) for field in fields]
    there = [value for value in values if devices.is_present(value)]
    return sum(there[1:], there[0]) if there else 0.0

  return tuple(
    tuple(
      total(f"{part}_resistance", f"{line}_{part}_resistance")
      for line in ("source", "sense")
    )
    for part in ("wire", "load")
  )


def transfer(
  g: chex.Array,
  wire_resistance: chex.Numeric | tuple[chex.Numeric, chex.Numeric],
  load_resistance: chex.Numeric | tuple[chex.Numeric, chex.Numeric],
  batch_size: int | None = None,
) -> chex.Array:
  """Returns what arrays compute once wires and loads are counted.

  That is the current at the read-out of column j per volt on row i, `[..., R,
  C]` [S], equal to `g` where there is no resistance. Rounding: a few 1e-6 of
  the largest in float32, 1e-12 in float64; with a load above 10 kohm more, in
  proportion to the load.

  Cost: about 2.5 max(R, C) min(R, C)^3 multiply-adds an array, in matrix
  products. Memory, in numbers of g's dtype: about 8 R C for each array that is
  solved at the same time, and 4 R C min(R, C) more to reverse a gradient.

  Args:
    g: conductances `[..., R, C]` [S], >= 0; 0 is an open cell.
    wire_resistance: of one cell pitch of a word line or bit line [ohm], >= 0, a
      scalar; or (word line, bit line). May be traced.
    load_resistance: of a driver and of a read-out [ohm], >= 0, as above.
    batch_size: how many arrays are solved at the same time; None: all.
  """
  wires, loads = (
    value if isinstance(value, tuple) else (value, value)
    for value in (wire_resistance, load_resistance)
  )
  solve = functools.partial(_transfer, wires=wires, loads=loads)
  flat = g.reshape(-1, *g.shape[-2:])
  if batch_size is None:
    return jax.vmap(solve)(flat).reshape(g.shape)
  return jax.lax.map(solve, flat, batch_size=batch_size).reshape(g.shape)


def _transfer(g, wires, loads):
  rows, columns = g.shape
  if rows < columns:
    # Reciprocity: drive the read-outs, read the drivers. The lines swap roles,
    # and each starts at its other end.
    swapped = _transfer(g.T[::-1, ::-1], wires[::-1], loads[::-1])
    return swapped[::-1, ::-1].T
  word_wire, wire = (jnp.asarray(r, g.dtype) for r in wires)
  word_load, load = (jnp.asarray(r, g.dtype) for r in loads)
  lines = jax.vmap(_word_line, (0, None, None))(g, word_wire, word_load)
  lines["row"] = jnp.arange(rows)

  def add_row(carry, line):
    y, j = carry
    y, _ = _series(y, wire, largest)
    # Not S J: most of S is a 1 that would be rounded, row after row.
    j -= wire * _matmul(y, j)
    j = j.at[:, line["row"]].set(line["current"])
    return (y + _word_line_admittance(line), j), None

  largest, largest_at_load = _bounds(g, wire, load)
  y = jnp.zeros((columns, columns), g.dtype)
  j = jnp.zeros((columns, 0), g.dtype)
  step = max(_FEWEST_ROWS, -(-rows // 2))
  for start in range(0, rows, step):
    stop = min(start + step, rows)
    j = jnp.pad(j, ((0, 0), (0, stop - start)))
    segment = jax.tree.map(lambda x, s=slice(start, stop): x[s], lines)
    (y, j), _ = jax.lax.scan(add_row, (y, j), segment)
  _, s = _series(y, load, largest_at_load)
  return _matmul(s, j).T


def _bounds(g, wire, load):
  """Returns how large wire * Y gets before a row, and load * Y at the end.

  A row adds at most the largest conductance to Y, whose eigenvalues y become
  y / (1 + wire * y) at the next: wire * Y stays below the fixed point.
  """
  g, wire, load = jax.lax.stop_gradient((g, wire, load))
  most = _largest(g)
  added = wire * most
  fixed_point = added / 2 + jnp.sqrt(added + added**2 / 4)
  y = fixed_point / jnp.where(wire > 0, wire, 1)
  y = jnp.where(wire > 0, y, jnp.inf)
  y = jnp.minimum(y, most * g.shape[0])
  return wire * y, load * y


@custom_batching.custom_vmap
def _largest(g):
  return jnp.max(g)


@_largest.def_vmap
def _largest_of_batch(axis_size, in_batched, g):
  """Returns the batch's: `_series` need not stop at each array's own time."""
  del axis_size, in_batched
  return _largest(g), False


def _word_line(g, wire, load):
  """Returns what `_word_line_admittance` needs of a word line, `[C]` each.

  A line is a ladder: series resistors, and cells to bit lines, which are
  grounded here. Nothing is divided by a conductance or a resistance, and
  nothing subtracted: both may be 0, or small without loss of digits.

  g: conductances. impedance: of a node to ground. depth: the voltage of node k
  falls by exp(-(depth_k - depth_j)) from node j <= k, exp(-depth_k) from the
  driver. own: admittance of a cell's bit line to ground by way of the line.
  current: through a cell per volt of the driver.
  """

  def backward(beyond, cell):
    # From a node outwards, without and with the node's own cell.
    behind = beyond / (1 + wire * beyond)
    return cell + behind, (behind, cell + behind)

  def forward(towards, cell):
    # From a node to the driver, without the node's own cell.
    return wire + towards / (1 + cell * towards), towards

  nothing = jnp.zeros_like(g[0])
  _, (behind, onwards) = jax.lax.scan(backward, nothing, g, reverse=True)
  _, towards = jax.lax.scan(forward, nothing + load, g)
  share = 1 / (1 + onwards * towards)
  series = jnp.where(jnp.arange(g.size) == 0, load, wire)
  depth = jnp.cumsum(jnp.log1p(series * onwards))
  return dict(
    g=g,
    impedance=towards * share,
    depth=depth,
    own=g * (1 + behind * towards) * share,
    current=g * jnp.exp(-depth),
  )


@functools.partial(jax.checkpoint, prevent_cse=False)
def _word_line_admittance(line):
  """Returns a word line seen from its bit lines, `[C, C]` [S].

  The driver is at 0 V. It is (diag(g)^-1 + r)^-1 with r the line's resistances,
  without either inverse.
  """
  g, depth = line["g"], line["depth"]
  # The decay between two nodes, exp(-|depth_j - depth_k|), without an
  # exponential for each pair, which would take a third of all time. With powers
  # of two apart nothing overflows on long lines.
  halvings = jnp.floor(depth / jnp.log(2.0))
  rest = depth - jnp.log(2.0) * halvings
  nearer = g * line["impedance"] * jnp.exp(rest)
  farther = g * jnp.exp(-rest)
  products = jnp.where(
    jnp.triu(jnp.ones((g.size, g.size), bool), 1),
    nearer[:, None] * farther[None],
    farther[:, None] * nearer[None],
  )
  between = jnp.abs(halvings[:, None] - halvings[None])
  admittance = -products * _power_of_half(between)
  is_diagonal = jnp.eye(g.size, dtype=bool)
  return jnp.where(is_diagonal, line["own"][:, None], admittance)


def _power_of_half(n):
  """Returns 0.5^n by its bits; 0 where that is not a normal number."""
  info = jnp.finfo(n.dtype)
  exponent = jnp.maximum(info.maxexp - 1 - n, 0).astype(f"int{info.bits}")
  return jax.lax.bitcast_convert_type(exponent << info.nmant, n.dtype)


# The polynomial's loop has no fixed length, hence no reverse derivative of its
# own; that of an inverse is known.
@jax.custom_jvp
def _series(y, resistance, largest):
  """Puts a resistor in series with every port of a network.

  By halves, and at last by a polynomial: all in matrix products, which is what
  is fast, on batches too, while LAPACK and rank-1 updates are slow at this
  size. Nothing is subtracted that may cancel, so that S keeps its digits where
  the resistor is far larger than the network's own resistance.

  Of symmetric admittances y `[C, C]` [S], it returns Y S, the admittances from
  beyond the resistors, and S = (I + resistance Y)^-1, the voltages of the old
  ports per volt at the new ones. `largest` bounds resistance times the
  eigenvalues of y.
  """
  size = y.shape[-1]
  if size <= _LEAF:
    return _series_polynomial(y, resistance, largest)
  half = size // 2
  a, b, d = y[:half, :half], y[:half, half:], y[half:, half:]
  f_a, s_a = _series(a, resistance, largest)
  b_a = _matmul(s_a, b)
  d_a = d - resistance * _matmul(b.T, b_a)
  f_d, s_d = _series(d_a, resistance, largest)
  f_b = _matmul(b_a, s_d)
  by_b = _matmul(f_b, resistance * b_a.T)
  s_b = -resistance * f_b
  s_a = s_a + resistance * by_b
  return (
    jnp.block([[f_a - by_b, f_b], [f_b.T, f_d]]),
    jnp.block([[s_a, s_b], [s_b.T, s_d]]),
  )


def _series_polynomial(y, resistance, largest):
  """Returns `_series` by a polynomial of Y, whose degree `largest` tells.

  Of all x = u - v t, the chosen one makes e = 1 - (1 + t) x, a Chebyshev
  polynomial, smallest over 0 <= t <= largest. Then 1 / (1 + t) =
  x (1 + e) (1 + e^2) (1 + e^4) ...
  """
  largest = jnp.maximum(largest, 1e-2)  # its square must not underflow
  excess = 8 / largest + 8 / largest**2
  error = 1 / (1 + excess)
  u, v = excess * error, 8 * error / largest**2
  enough = -jnp.log(jnp.finfo(y.dtype).eps) / jnp.log1p(excess)
  doublings = jnp.ceil(jnp.log2(jnp.maximum(enough, 1))).astype(int)
  one = jnp.eye(y.shape[-1], dtype=y.dtype)
  t = resistance * y
  e = error * one - (v * largest) * t + v * _matmul(t, t)

  def double(_, carry):
    product, e = carry
    e = _matmul(e, e)
    return product + _matmul(product, e), e

  product, _ = jax.lax.fori_loop(1, doublings, double, (one + e, e))
  s = u * product - v * _matmul(t, product)
  return _matmul(y, s), s


@_series.defjvp
def _series_jvp(primals, tangents):
  y, resistance, largest = primals
  y_dot, resistance_dot, _ = tangents
  f, s = _series(y, resistance, largest)
  f_dot = _matmul(s, _matmul(y_dot, s)) - resistance_dot * _matmul(f, f)
  return (f, s), (f_dot, -resistance * f_dot - resistance_dot * f)


def gated_ladder(device: devices.Device) -> chex.Array:
  """Returns what `gated_currents` needs of a device, `[4]` [ohm].

  A column's current is that of a two-terminal network. Where source and bit
  line both end at the row from which it is seen, each pitch of one is in series
  with that of the other.
  """
  (source_wire, sense_wire), (source_load, sense_load) = resistances(device)
  if device.source_side == device.sense_side:
    source_wire, sense_wire = 0.0, source_wire + sense_wire
    source_load, sense_load = 0.0, source_load + sense_load
  parts = source_wire, sense_wire, source_load, sense_load
  return jnp.stack([jnp.asarray(part) for part in parts])


def gated_currents(
  gates: chex.Array, g: chex.Array, ladder: chex.Array
) -> chex.Array:
  """Returns each column's current per volt of its source line, `[..., C]` [S].

  The network stands in docs/crossbar.md, under "Gated cells". A gate may be
  anything from 0 (the cell is open) to 1: of its conductance that share counts,
  so that gates have gradients.

  Rows are added from the first on, where the source line is driven, to the
  last, where the bit line is read. Seen from their end of both lines, relative
  to the driver, rows so far are a reciprocal two-port: i_bit = y v_bit - (1 -
  u) i_source, v_source = h i_source + (1 - u) v_bit. Nothing is divided by a
  conductance or a resistance, and y has no difference in it.

  Args:
    gates: of the rows, `[..., R]`.
    g: conductances `[R, C]` [S], >= 0.
    ladder: of `gated_ladder`.
  """
  source_wire, sense_wire, source_load, sense_load = ladder.astype(g.dtype)

  def add_row(carry, row):
    y, u, h = carry
    cells, wired, gate = row
    # A pitch of both lines. Nothing hangs on the first row's.
    drop = 1 / (1 + sense_wire * y)
    h = h + wired * source_wire + sense_wire * jnp.square(1 - u) * drop
    u = (u + sense_wire * y) * drop
    y = y * drop
    # A cell between them.
    cell = gate[..., None] * cells.reshape((1,) * gate.ndim + (-1,))
    share = 1 / (1 + cell * h)
    return (y + cell * jnp.square(u) * share, u * share, h * share), None

  nothing = jnp.zeros((*gates.shape[:-1], g.shape[-1]), g.dtype)
  start = nothing, nothing + 1, nothing + source_load
  wired = (jnp.arange(len(g)) > 0).astype(g.dtype)
  rows = g, wired, jnp.moveaxis(gates, -1, 0).astype(g.dtype)
  (y, _, _), _ = jax.lax.scan(add_row, start, rows)
  return y / (1 + sense_load * y)


def line_resistances(device: devices.Device) -> tuple[chex.Array, chex.Array]:
  """Returns (word `[C, C]`, bit `[R, R]`), resistances of lines [ohm].

  A line's cell j loses voltage word[j, k] for each ampere of its cell k: the
  resistance that both have in common, up to the line's end.
  """
  (source_wire, sense_wire), (source_load, sense_load) = resistances(device)
  rows, columns = (np.arange(n) for n in device.tile_shape)
  if device.source_side == "last":
    columns = columns[::-1]
  if device.sense_side == "last":
    rows = rows[::-1]
  return tuple(
    load + wire * np.minimum(cells[:, None], cells)
    for load, wire, cells in (
      (source_load, source_wire, columns),
      (sense_load, sense_wire, rows),
    )
  )


def nonlinear_currents(
  inputs: chex.Array,
  g: chex.Array,
  lines: tuple[chex.Array, chex.Array],
  curve: chex.Numeric,
) -> chex.Array:
  """Returns columns' currents per volt, `[..., T, C]` [S]; no gradient.

  The network, its equations and the solver stand in docs/crossbar.md, under
  "Non-linear cells". NaN where the solver has not converged.

  Args:
    inputs: of the word lines, in units of the read voltage, `[..., R]`, from
      -1 to 1.
    g: conductances at the read voltage, `[T, R, C]` [S], >= 0.
    lines: of `line_resistances`.
    curve: a times the read voltage, >= 0. May be traced.
  """
  inputs, g, lines, curve = jax.lax.stop_gradient((inputs, g, lines, curve))
  word, bit = (jnp.asarray(line, g.dtype) for line in lines)
  curve = jnp.maximum(jnp.asarray(curve, g.dtype), _STRAIGHT)
  tolerance = jnp.finfo(g.dtype).eps ** 0.7

  def drop(currents):
    return _matmul(currents, word) + _matmul(bit, currents)

  def solve(x, g):
    def current(volts):
      return g * (jnp.sinh(curve * volts) / jnp.sinh(curve))

    def rest(volts):
      return x[:, None] - volts - drop(current(volts))

    def is_open(state):
      step, _, error = state
      return (step < _STEPS) & (jnp.abs(error).max() > tolerance)

    def newton(state):
      step, volts, error = state
      # (1 + M D)^-1 = 1 - M h (1 + h M h)^-1 h of M, the drops, and D = h^2:
      # symmetric, its eigenvalues at least 1, whatever cells are open.
      slope = curve * jnp.cosh(curve * volts) / jnp.sinh(curve)
      h = jnp.sqrt(g * slope)
      shares, _ = jax.scipy.sparse.linalg.cg(
        lambda y: y + h * drop(h * y),
        h * error,
        tol=1e-3,
        maxiter=_LINEAR_STEPS,
      )
      # No voltage in the network is beyond those of its drivers.
      volts = jnp.clip(volts + error - drop(h * shares), -1, 1)
      return step + 1, volts, rest(volts)

    start = jnp.broadcast_to(x[:, None], g.shape)
    state = jax.lax.while_loop(is_open, newton, (0, start, rest(start)))
    solved = jnp.abs(state[2]).max() <= tolerance
    # One more: of steep curves currents err by more than voltages do.
    _, volts, _ = newton(state)
    return jnp.where(solved, current(volts).sum(0), jnp.nan)

  flat = inputs.reshape(-1, inputs.shape[-1]).astype(g.dtype)
  found = jax.lax.map(
    lambda x: jax.vmap(solve, (None, 0))(x, g),
    flat,
    batch_size=max(_CELLS // g.size, 1),
  )
  return found.reshape(*inputs.shape[:-1], *found.shape[1:])
