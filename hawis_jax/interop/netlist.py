"""SPICE netlists of crossbar arrays with their wires and loads.

Axes: R rows (inputs) and C columns (outputs) of one array.
"""

from collections.abc import Iterator

import numpy as np

from hawis_jax import errors
from hawis_jax.crossbar import devices

DIALECTS = ("ngspice", "hspice")
# Of a switch [ohm]: much less than cells, and as little as ngspice's own leaks.
_RON, _ROFF = "1e-3", "1e12"


def spice_netlist(
  g: np.ndarray,
  voltages: np.ndarray,
  *,
  wire_resistance: float | tuple[float, float],
  load_resistance: float | tuple[float, float],
  dialect: str = "ngspice",
  source_side: str = "first",
  sense_side: str = "last",
  gated: bool = False,
  nonlinearity: float = 0.0,
  read_voltage: float | None = None,
) -> str:
  """Returns the netlist of the network that `crossbar.wires` solves.

  Nodes, of cell (i, j), row i and column j from 0:
    in_i: driver of row i, at its voltage.
    w_i_j: word line at the cell; at the line's driven end it hangs on in_i by
      the load resistance.
    b_i_j: bit line at the cell; at its end that is read it hangs on out_j by
      the load resistance.
    out_j: read-out of column j, at 0 V.
  Of gated cells:
    in_i: gates of row i, at its voltage.
    source: driver of all source lines, at the largest voltage.
    w_i_j: source line at the cell; that of its driven end hangs on source.
    c_i_j: between the cell's switch, which in_i closes, and its resistor.
  Where a resistance is 0, no resistor is written, and nodes that it would join
  bear the name of the first in the order in or source, w, and of the last in
  the order b, out. Open cells are left out; so are, for HSPICE, gated cells
  that are off, and all switches. Of non-linear cells Bcell_i_j (HSPICE:
  Gcell_i_j) are sources of current in the place of resistors.

  Args:
    g: conductances `[R, C]` [S], finite and >= 0; 0 is an open cell.
    voltages: of the drivers, `[R]` [V]; of gated rows 0 or one above 0.
    wire_resistance: of one cell pitch of a word line (of gated cells: source
      line) or bit line [ohm], >= 0; or one of each.
    load_resistance: of a driver and of a read-out [ohm], >= 0; or one of each.
    dialect: "ngspice", to be run as `ngspice -b file`, which prints a line
      `i(vout_j) = <current>` a column; or "hspice", which prints every
      `i(vout_j)` in a sweep of one point. Positive is out of the array, into
      out_j.
    source_side: "first" or "last", the column where word lines are driven; of
      gated cells the row where source lines are.
    sense_side: "first" or "last", the row where bit lines are read.
    gated: word lines gate the cells, see `crossbar.Device`.
    nonlinearity: of the cells [1/V], see `crossbar.Device`; not of gated ones.
    read_voltage: at which non-linear cells have `g` [V].

  Raises:
    InputError: names the argument, what it got and what is allowed.
  """
  g, voltages = np.asarray(g), np.asarray(voltages)
  wires, loads = (
    resistance if isinstance(resistance, tuple) else (resistance,) * 2
    for resistance in (wire_resistance, load_resistance)
  )
  _check(g, voltages, wires, loads, dialect)
  sides = dict(source_side=source_side, sense_side=sense_side)
  for name, side in sides.items():
    if side not in devices.SIDES:
      raise errors.InputError(
        f"{name}: got {side!r}, allowed are {', '.join(devices.SIDES)}"
      )
  if gated and not np.isin(voltages, (0, max(voltages.max(), 0))).all():
    raise errors.InputError(
      f"voltages: got {voltages.tolist()} with gated cells, allowed are 0 and "
      "one voltage above 0: a gate is open or not"
    )
  curve = _curve(nonlinearity, read_voltage, gated)
  g, voltages = g.astype(np.float64), voltages.astype(np.float64)
  rows, columns = g.shape
  lines = [
    f"* {rows} x {columns} crossbar, wire {_words(wires)} ohm, load "
    f"{_words(loads)} ohm" + ", gated" * gated
  ]
  lines += [f"Vin_{i} in_{i} 0 DC {float(v)!r}" for i, v in enumerate(voltages)]
  lines += [f"Vout_{j} out_{j} 0 DC 0" for j in range(columns)]
  if gated:
    lines.append(f"Vsource source 0 DC {float(voltages.max())!r}")
    if dialect == "ngspice":
      half = float(voltages.max() / 2)
      lines.append(f".model gate sw vt={half!r} ron={_RON} roff={_ROFF}")
  on = np.arange(rows)[voltages > 0] if gated and dialect == "hspice" else None
  lines += _resistors(
    g, wires, loads, *sides.values(), gated, on, curve, dialect
  )
  if curve and dialect == "ngspice":
    # Its own tolerances, of 0.1 %, are those of voltages.
    lines.append(".options reltol=1e-9 abstol=1e-15 vntol=1e-12")
  lines += _analysis(columns, voltages[0], dialect)
  return "\n".join(lines) + "\n"


def _words(pair):
  return " and ".join(f"{x:g}" for x in dict.fromkeys(pair))


def _curve(nonlinearity, read_voltage, gated):
  """Returns (a, V / sinh(a V)) of cells that are not ohmic; else None."""
  if not (devices.is_finite(nonlinearity) and nonlinearity >= 0):
    raise errors.InputError(
      f"nonlinearity: got {nonlinearity!r}, needed is a finite number >= 0"
    )
  if not nonlinearity:
    return None
  if gated:
    raise errors.InputError(
      f"nonlinearity: got {nonlinearity:g} with gated cells, allowed is 0"
    )
  if not (devices.is_finite(read_voltage) and read_voltage > 0):
    raise errors.InputError(
      f"read_voltage: got {read_voltage!r} with nonlinear cells, needed is a "
      "finite number > 0 [V]"
    )
  volts = float(read_voltage)
  return float(nonlinearity), volts / float(np.sinh(nonlinearity * volts))


def _check(g, voltages, wires, loads, dialect):
  if dialect not in DIALECTS:
    raise errors.InputError(
      f"dialect: got {dialect!r}, allowed are {', '.join(DIALECTS)}"
    )
  if g.ndim != 2 or not g.size or g.dtype.kind not in "fiu":
    raise errors.InputError(
      f"g: got shape {g.shape} of {g.dtype}, needed are numbers [rows, columns]"
    )
  if voltages.shape != g.shape[:1] or voltages.dtype.kind not in "fiu":
    raise errors.InputError(
      f"voltages: got shape {voltages.shape} of {voltages.dtype}, needed is a "
      f"number for each row, shape {g.shape[:1]}"
    )
  for v in voltages[~np.isfinite(voltages)]:
    raise errors.InputError(f"voltages: got {v}, needed are finite numbers [V]")
  for i, j in np.argwhere(~(np.isfinite(g) & (g >= 0))):
    raise errors.InputError(
      f"g[{i}, {j}]: got {g[i, j]}, needed is a finite number >= 0 [S]"
    )
  for name, pair in dict(wire_resistance=wires, load_resistance=loads).items():
    if len(pair) != 2:
      raise errors.InputError(
        f"{name}: got {pair!r}, needed is a number or one for each line [ohm]"
      )
    for value in pair:
      if not (np.isfinite(value) and value >= 0):
        raise errors.InputError(
          f"{name}: got {value!r}, needed is a finite number >= 0 [ohm]"
        )


def _resistors(
  g,
  wires,
  loads,
  source_side,
  sense_side,
  gated,
  on,
  curve,
  dialect,
) -> Iterator[str]:
  """Yields wires, loads and cells; `on`: the rows without switches."""
  rows, columns = g.shape
  (word_wire, bit_wire), (word_load, bit_load) = wires, loads
  driven = 0 if source_side == "first" else (rows if gated else columns) - 1
  read = 0 if sense_side == "first" else rows - 1

  def word(i, j):
    along, across = (i, j) if gated else (j, i)
    along = along if word_wire else driven
    if along == driven and not word_load:
      return "source" if gated else f"in_{across}"
    return f"w_{along}_{across}" if gated else f"w_{across}_{along}"

  def bit(i, j):
    i = i if bit_wire else read
    return f"b_{i}_{j}" if i != read or bit_load else f"out_{j}"

  if word_load and gated:
    for j in range(columns):
      yield f"Rin_{j} source {word(driven, j)} {float(word_load)!r}"
  elif word_load:
    for i in range(rows):
      yield f"Rin_{i} in_{i} {word(i, driven)} {float(word_load)!r}"
  if bit_load:
    for j in range(columns):
      yield f"Rout_{j} {bit(read, j)} out_{j} {float(bit_load)!r}"
  if word_wire:
    down, right = (1, 0) if gated else (0, 1)
    for i in range(rows - down):
      for j in range(columns - right):
        pair = f"{word(i, j)} {word(i + down, j + right)}"
        yield f"Rw_{i}_{j} {pair} {float(word_wire)!r}"
  if bit_wire:
    for i in range(rows - 1):
      for j in range(columns):
        yield f"Rb_{i}_{j} {bit(i, j)} {bit(i + 1, j)} {float(bit_wire)!r}"
  for i, j in np.argwhere(g > 0):
    start = word(i, j)
    if gated and on is None:
      yield f"Scell_{i}_{j} {start} c_{i}_{j} in_{i} 0 gate"
      start = f"c_{i}_{j}"
    if curve:
      end, (a, share) = bit(i, j), curve
      law = f"{float(g[i, j] * share)!r}*sinh({a!r}*v({start},{end}))"
      if dialect == "ngspice":
        yield f"Bcell_{i}_{j} {start} {end} I={law}"
      else:
        yield f"Gcell_{i}_{j} {start} {end} cur='{law}'"
    elif on is None or i in on:
      yield f"Rcell_{i}_{j} {start} {bit(i, j)} {float(1 / g[i, j])!r}"


def _analysis(columns, voltage, dialect) -> Iterator[str]:
  currents = [f"i(vout_{j})" for j in range(columns)]
  if dialect == "ngspice":
    yield from (".control", "set numdgt=15", "op")
    # One a line: a line of many is cut.
    yield from (f"print {current}" for current in currents)
    # Without `quit` its status is 1, as after a run without analyses.
    yield from ("quit 0", ".endc", ".end")
  else:
    yield ".option ingold=2 numdgt=10"
    # A sweep of one point: .print does not know operating points.
    yield f".dc Vin_0 {float(voltage)!r} {float(voltage)!r} 1"
    yield from (f".print dc {current}" for current in currents)
    yield ".end"
