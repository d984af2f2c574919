"""Kendall's tau of several scores with one truth, and how sure it is.

Intervals are percentile bootstraps over width vectors: all scores, and the
differences between them, are of the same resamples.

Axes: N width vectors, R resamples.
"""

import numpy as np

_RESAMPLES = 2000


def tau(x, y, counts):
  """Kendall's tau-b, `[R]`, of vectors that occur `counts` `[R, N]` times.

  Pairs of a vector with itself, which resampling makes, do not count.
  """
  x, y = (np.sign(np.subtract.outer(v, v)) for v in (x, y))

  def pairs(signs):
    return np.einsum("ri,ij,rj->r", counts, signs, counts)

  return pairs(x * y) / np.sqrt(pairs(x * x) * pairs(y * y))


def _counts(num):
  """Of every vector in the sample (first row) and in resamples."""
  rng = np.random.default_rng(0)
  resampled = rng.multinomial(num, np.full(num, 1 / num), _RESAMPLES)
  return np.concatenate([np.ones((1, num)), resampled])


def _summary(taus):
  """{tau, ci95} of the sample's and the resamples' values."""
  low, high = np.nanquantile(taus[1:], (0.025, 0.975))
  return {"tau": float(taus[0]), "ci95": [float(low), float(high)]}


def correlations(truth, scores, rows) -> dict:
  """Taus of one set of vectors, averaged over super-nets.

  Args:
    truth: {"clean", "robust": `[seeds, N]`}.
    scores: {variant: [a super-net's scores {quantity: `[N]`}]}.
    rows: slice of the set's vectors.

  Returns:
    {variant or "seeds of the truth": {quantity: tau, ci95, and of all variants
    but the first `gain`, the difference to it, with the same}}.
  """
  counts = _counts(rows.stop - rows.start)
  # What differs by rounding errors alone is tied.
  means = {name: values.mean(0).round(9) for name, values in truth.items()}
  between = {
    quantity: _summary(
      tau(values[0, rows], values[1, rows], counts),
    )
    for quantity, values in truth.items()
    if len(values) > 1
  }
  found, first = {"seeds of the truth": between}, None
  for variant, nets in scores.items():
    taus = {
      quantity: np.mean(
        [
          tau(
            np.array(net[quantity])[rows],
            means[quantity.split()[0]][rows],
            counts,
          )
          for net in nets
        ],
        axis=0,
      )
      for quantity in nets[0]
    }
    found[variant] = {}
    for quantity, values in taus.items():
      summary = _summary(values)
      if first:
        summary["gain"] = _summary(values - first[quantity])
      found[variant][quantity] = summary
    first = first or taus
  return found


def _show(summary):
  low, high = summary["ci95"]
  text = f"{summary['tau']:5.2f} ({low:5.2f} to {high:4.2f})"
  if "gain" in summary:
    low, high = summary["gain"]["ci95"]
    text += f" {summary['gain']['tau']:+.2f} ({low:+.2f} to {high:+.2f})"
  return text


def report(found):
  """Prints {truth: {set of vectors: what `correlations` returns}}."""
  for truth, sets in found.items():
    for name, rows in sets.items():
      print(f"\ntruth: {truth} images; width vectors: {name}")
      quantities = max(map(list, rows.values()), key=len)
      print(f"{'':28}" + "".join(f"{q:46}" for q in quantities))
      for variant, summaries in rows.items():
        cells = [
          f"{_show(summaries[q]) if q in summaries else '':46}"
          for q in quantities
        ]
        print(f"{variant:28}" + "".join(cells).rstrip())
