"""What all figures share: their size, style and legend."""

from collections.abc import Sequence
import io
from typing import Any

from matplotlib import artist
from matplotlib import figure as figure_lib
from matplotlib import lines
import numpy as np

# Of `matplotlib.rc_context`.
STYLE = {
  "font.family": "DejaVu Sans",
  "font.size": 8,
  "axes.titlesize": 8.5,
  "axes.titlelocation": "left",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.linewidth": 0.7,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": "#dddddd",
  "grid.linewidth": 0.5,
  "legend.frameon": False,
  "legend.fontsize": 8,
  "lines.linewidth": 1.4,
  "lines.markersize": 4,
  "text.usetex": False,
}
_WIDTH = 7.2  # inch, two columns of a paper
_DPI = 200
NEUTRAL = "#888888"  # what belongs to no net


def figure(height: float) -> figure_lib.Figure:
  """An empty figure, two columns of a paper wide and `height` high [inch]."""
  return figure_lib.Figure(figsize=(_WIDTH, height), layout="constrained")


def legend(figure: figure_lib.Figure, handles: Sequence[artist.Artist]) -> None:
  """Adds the legend below, in as few rows as fit; the figure grows with them.

  Entries fill a column first.
  """
  for rows in range(1, len(handles) + 1):
    added = figure.legend(
      handles=handles,
      loc="outside lower center",
      ncols=-(-len(handles) // rows),
      columnspacing=1.2,
      handlelength=1.8,
    )
    if added.get_window_extent().width <= figure.bbox.width:
      break
    added.remove()
  figure.set_figheight(figure.get_figheight() + 0.17 * (rows - 1))


def key(label: str, color: str = NEUTRAL, **style: Any) -> lines.Line2D:
  """A legend entry without data; `style` is Line2D's."""
  return lines.Line2D([], [], color=color, label=label, **style)


def percent(values: Sequence[float]) -> np.ndarray:
  """Shares in percent."""
  return 100 * np.asarray(values, np.float64)


def png(figure: figure_lib.Figure) -> bytes:
  """The figure as a PNG file."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white")
  return buffer.getvalue()
