"""The report's numbers in words: percent, intervals, counts, costs."""

from hawis_jax import cost

# What follows an amount of each of `cost.KINDS`.
NOUNS = {
  "arrays": "crossbar arrays",
  "macs": "binary MACs",
  "energy": "of energy",
  "latency": "of latency",
  "interval": "between images",
  "area": "of area",
}
_PREFIXES = ("f", "p", "n", "µ", "m", "", "k", "M")


def percent(share: float) -> str:
  """A share in percent, without the sign."""
  return f"{100 * share:.2f}"


def estimate(value: float, interval: list[float]) -> str:
  """A share and its interval in percent."""
  low, high = map(percent, interval)
  return f"{percent(value)} [{low}, {high}]"


def difference(row: dict) -> str:
  """Signed percentage points with their interval."""
  numbers = [f"{100 * x:+.2f}" for x in (row["difference"], *row["ci95"])]
  mean, low, high = ("0.00" if float(n) == 0 else n for n in numbers)
  return f"{mean} [{low}, {high}]"


def amount(count: float | None) -> str:
  """A count: whole up to 9,999, then three digits and a prefix; None: "-"."""
  if count is None:
    return "-"
  if count < 1e4:
    return f"{count:,.6g}"
  unit, suffix = next(
    (unit, suffix)
    for unit, suffix in zip((1e3, 1e6, 1e9, 1e12, 1e15), "kMGTP", strict=True)
    if count < 999.5 * unit
  )
  return f"{_three_digits(count / unit)} {suffix}"


def prefix(value: float) -> tuple[float, str]:
  """(its size, its letter) of the prefix that `value` is written with."""
  sizes = {10.0 ** (3 * i - 15): p for i, p in enumerate(_PREFIXES)}
  size = max((s for s in sizes if value >= 0.9995 * s), default=1e-15)
  return size, sizes[size]


def quantity(kind: str, value: float | None) -> str:
  """An amount of one of `cost.KINDS` with its unit: "31.2 µJ"; None: "-".

  Counts have no unit, see `NOUNS`.
  """
  if value is None:
    return "-"
  if kind in cost.COUNTS:
    return amount(value)
  if not value:
    return "0"
  if kind == "area":
    return f"{_three_digits(1e6 * value)} mm²"
  size, letter = prefix(value)
  return f"{_three_digits(value / size)} {letter}{cost.KINDS[kind].unit}"


def of_cost(kind: str, value: float) -> str:
  """An amount in running text: "31.2 µJ of energy", "240 crossbar arrays"."""
  return f"{quantity(kind, value)} {NOUNS[kind]}"


def by(technology: str, *kinds: str) -> str:
  """What goes with amounts: " by isaac_32nm"; "": they are all counts."""
  return "" if {*kinds} <= {*cost.COUNTS} else f" by {technology}"


def _three_digits(value):
  return f"{value:#.3g}".rstrip(".")
