"""SPICE netlists of crossbar arrays with their wires and loads.

Axes: R rows (inputs) and C columns (outputs) of one array.
"""

from collections.abc import Iterator

import numpy as np

from hawis_jax import errors

DIALECTS = ("ngspice", "hspice")


def spice_netlist(
  g: np.ndarray,
  voltages: np.ndarray,
  *,
  wire_resistance: float,
  load_resistance: float,
  dialect: str = "ngspice",
) -> str:
  """Returns the netlist of the network that `crossbar.wires` solves.

  Nodes, of cell (i, j), row i from 0 at the far end of the bit lines:
    in_i: driver of row i, at its voltage.
    w_i_j: word line at the cell; w_i_0 hangs on in_i by the load resistance.
    b_i_j: bit line at the cell; that of the last row hangs on out_j by the load
      resistance.
    out_j: read-out of column j, at 0 V.
  Where a resistance is 0, no resistor is written, and nodes that it would join
  bear the name of the first in the order in, w, and of the last in the order b,
  out. Open cells are left out.

  Args:
    g: conductances `[R, C]` [S], finite and >= 0; 0 is an open cell.
    voltages: of the drivers, `[R]` [V].
    wire_resistance: of one cell pitch of a word line or bit line [ohm], >= 0.
    load_resistance: of a driver and of a read-out [ohm], >= 0.
    dialect: "ngspice", to be run as `ngspice -b file`, which prints a line
      `i(vout_j) = <current>` a column; or "hspice", which prints every
      `i(vout_j)` in a sweep of one point. Positive is out of the array, into
      out_j.

  Raises:
    InputError: names the argument, what it got and what is allowed.
  """
  g, voltages = np.asarray(g), np.asarray(voltages)
  _check(g, voltages, wire_resistance, load_resistance, dialect)
  g, voltages = g.astype(np.float64), voltages.astype(np.float64)
  rows, columns = g.shape
  lines = [
    f"* {rows} x {columns} crossbar, wire {wire_resistance:g} ohm, load "
    f"{load_resistance:g} ohm"
  ]
  lines += [f"Vin_{i} in_{i} 0 DC {float(v)!r}" for i, v in enumerate(voltages)]
  lines += [f"Vout_{j} out_{j} 0 DC 0" for j in range(columns)]
  lines += _resistors(g, wire_resistance, load_resistance)
  lines += _analysis(columns, voltages[0], dialect)
  return "\n".join(lines) + "\n"


def _check(g, voltages, wire_resistance, load_resistance, dialect):
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
  both = dict(wire_resistance=wire_resistance, load_resistance=load_resistance)
  for name, value in both.items():
    if not (np.isfinite(value) and value >= 0):
      raise errors.InputError(
        f"{name}: got {value!r}, needed is a finite number >= 0 [ohm]"
      )


def _resistors(g, wire_resistance, load_resistance) -> Iterator[str]:
  rows, columns = g.shape

  def word(i, j):
    j = j if wire_resistance else 0
    return f"w_{i}_{j}" if j or load_resistance else f"in_{i}"

  def bit(i, j):
    i = i if wire_resistance else rows - 1
    return f"b_{i}_{j}" if i < rows - 1 or load_resistance else f"out_{j}"

  if load_resistance:
    load = repr(float(load_resistance))
    for i in range(rows):
      yield f"Rin_{i} in_{i} {word(i, 0)} {load}"
    for j in range(columns):
      yield f"Rout_{j} {bit(rows - 1, j)} out_{j} {load}"
  if wire_resistance:
    wire = repr(float(wire_resistance))
    for i in range(rows):
      for j in range(columns - 1):
        yield f"Rw_{i}_{j} {word(i, j)} {word(i, j + 1)} {wire}"
    for i in range(rows - 1):
      for j in range(columns):
        yield f"Rb_{i}_{j} {bit(i, j)} {bit(i + 1, j)} {wire}"
  for i, j in np.argwhere(g > 0):
    yield f"Rcell_{i}_{j} {word(i, j)} {bit(i, j)} {float(1 / g[i, j])!r}"


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
