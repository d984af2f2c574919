"""Several finished runs beside each other, by their reports.

The first run is compared with each other one, net by net, on what both have
measured.
"""

from collections.abc import Mapping, Sequence
import math
import os
import pathlib

import pandas as pd

from hawis_jax import errors
from hawis_jax.report import facts
from hawis_jax.report import figures
from hawis_jax.report import render
from hawis_jax.report import style
from hawis_jax.robustness import scenarios
from hawis_jax.robustness import statistics
from hawis_jax.runtime import storage

# Of data: the same images. A file's name may change, or its content.
_SHARED = ("name", "version", "test_images", "test_digest")


def run(
  folders: Sequence[str | os.PathLike], out: pathlib.Path
) -> pathlib.Path:
  """Writes a comparison of runs; returns the path of its page.

  Args:
    folders: work directories of two or more finished runs.
    out: folder of index.html, robustness.svg, .pdf and .csv, differences.csv.

  Raises:
    InputError: there are too few runs, one is not finished, or they have no
      measurement in common; `out` can't be written.
  """
  if len(folders) < 2:
    raise errors.InputError(
      f"runs: got {len(folders)}, needed are two or more to compare"
    )
  paths = [pathlib.Path(folder) for folder in folders]
  names = _names(paths)
  runs = {n: _load(path) for n, path in zip(names, paths, strict=True)}
  pairs = differences(runs, dict(zip(names, paths, strict=True)))
  if not pairs:
    raise errors.InputError(
      f"runs: got {', '.join(names)}, which share no net and severity"
    )
  drawn = {"robustness": figures.draw_one(figures.robustness, overlay(runs))}
  files = render.files(drawn)
  table = pd.DataFrame(pairs)
  # In the unit of the page's table, which the headings name.
  shares = ["difference", "low95", "high95"]
  table[shares] *= 100
  table = table.rename(columns={name: f"{name}_points" for name in shares})
  files["differences.csv"] = table.to_csv(index=False).encode()
  page = render.page(
    "compare.html.j2",
    drawn,
    _tables(runs, pairs),
    runs=runs,
    pairs=pairs,
    same={name: same_nets(runs[names[0]], run) for name, run in runs.items()},
    looks=style.net_looks(overlay(runs)["nets"]),
  )
  files["index.html"] = page.encode()
  with storage.write_errors(out):
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
      storage.write_bytes(out / name, content)
  return out / "index.html"


def _names(paths):
  """The folders' own names, or their paths where these are alike."""
  names = [path.resolve().name for path in paths]
  if len({*names}) < len(names):
    names = [str(path) for path in paths]
  if len({*names}) < len(names):
    raise errors.InputError(f"runs: got {', '.join(names)}: one is there twice")
  return names


def _load(path):
  file = path / "report" / "report.json"
  if not file.is_file():
    raise errors.InputError(
      f"{path}: got no report/report.json, needed is a finished run: run it "
      "with --stages all"
    )
  content = storage.read_record(file)
  if content.get("format") != facts.FORMAT:
    raise errors.InputError(
      f"{file}: got format {content.get('format')}, allowed is {facts.FORMAT}: "
      "make it anew with --stages report"
    )
  if content["missing"]:
    raise errors.InputError(
      f"{path}: got a run that lacks {content['missing'][0]}, needed is a "
      "finished one"
    )
  return content


def overlay(runs: Mapping[str, dict]) -> dict:
  """Returns what `figures.robustness` draws of all runs' nets together."""
  return {
    "nets": {
      f"{n}: {net}": x for n, c in runs.items() for net, x in c["nets"].items()
    },
    "accuracy": [
      {**row, "net": f"{n}: {row['net']}"}
      for n, content in runs.items()
      for row in content["accuracy"]
    ],
    "chance": next(iter(runs.values()))["chance"],
  }


def differences(
  runs: Mapping[str, dict], folders: Mapping[str, pathlib.Path]
) -> list[dict]:
  """Returns first run - other run, at all that both have measured.

  Where seed and test images are the same, so are the random numbers of chip s:
  the difference is paired, see `statistics.paired_difference`. Else its
  interval is that of two independent means (see `independent_difference`).

  Args:
    runs: {name: content of report.json}.
    folders: their work directories.
  """
  first, *others = runs
  found = []
  for other in others:
    by_place = {
      (row["net"], facts.place(row)): row for row in runs[other]["accuracy"]
    }
    for ours in runs[first]["accuracy"]:
      theirs = by_place.get((ours["net"], facts.place(ours)))
      if theirs is None:
        continue
      paired = is_paired(runs[first], runs[other], ours["net"])
      if paired:
        tables = [
          _load_correct(folders[run], row, runs[run])
          for run, row in ((first, ours), (other, theirs))
        ]
        gap = statistics.paired_difference(*tables)
      else:
        gap = independent_difference(ours, theirs)
      place = ("net", "statistics", "scenario", "severity")
      found.append(
        {
          "run": first,
          "other": other,
          **{part: ours[part] for part in place},
          "label": _label({first: ours, other: theirs}, runs),
          "paired": paired,
          "difference": gap["difference"],
          "low95": gap["ci95"][0],
          "high95": gap["ci95"][1],
        }
      )
  return found


def _label(rows, runs):
  """What the rows of two runs met; of each where that is not the same.

  Effects of two devices may have the same severities, and other constants.
  """
  labels = {run: row["label"] for run, row in rows.items()}
  if len({*labels.values()}) > 1:
    return "; ".join(f"{run}: {label}" for run, label in labels.items())
  told = {run: row["effects"] for run, row in rows.items()}
  (label,) = {*labels.values()}
  first = next(iter(rows.values()))
  is_device = first["scenario"].rpartition(": ")[2] == scenarios.DEVICE
  if is_device and first["severity"]:
    told = {
      run: f"{runs[run]['config']['device.preset']}, {effects}"
      for run, effects in told.items()
    }
  if len({*told.values()}) > 1:
    each = "; ".join(f"{run}: {effects}" for run, effects in told.items())
    return f"{label} ({each})"
  return label


def same_nets(ours: dict, theirs: dict) -> list[str]:
  """Returns which nets are the same trained ones in two runs.

  They are where one run measures the nets of the other: `--from`.
  """
  trained = [
    {
      name: net["inputs"].get("trained net")
      for name, net in run["nets"].items()
    }
    for run in (ours, theirs)
  ]
  return [
    name
    for name, digest in trained[0].items()
    if digest and trained[1].get(name) == digest
  ]


def is_paired(ours: dict, theirs: dict, net: str) -> bool:
  """Returns whether a net of two runs met chips and images of the same numbers.

  `robustness.images` may leave one of them fewer images.
  """
  images = {run["nets"][net]["test_images"] for run in (ours, theirs)}
  same_seed = ours["config"]["seed"] == theirs["config"]["seed"]
  return (
    len(images) == 1
    and same_seed
    and all(ours["data"][field] == theirs["data"][field] for field in _SHARED)
  )


def independent_difference(ours: dict, theirs: dict) -> dict:
  """Returns the difference of two rows' means as if nothing were shared.

  Its interval is of theirs (Zou & Donner, 2008): each end is as far as the root
  of the sum of squares of the distances to the ends that it is due to.
  """
  (low, high), (other_low, other_high) = (
    ours["ci95_total"],
    theirs["ci95_total"],
  )
  mean, other = ours["mean"], theirs["mean"]
  below = math.hypot(mean - low, other_high - other)
  above = math.hypot(high - mean, other - other_low)
  gap = mean - other
  return {"difference": gap, "ci95": [gap - below, gap + above]}


def _load_correct(folder, row, content):
  images = content["nets"][row["net"]]["test_images"]
  path = folder / "robustness" / row["correct"]["file"]
  return storage.read_bits(path, row["correct"]["sha256"], images)


def _tables(runs, pairs):
  """The page's: differences, nets, and what differs in the configuration."""
  frame = pd.DataFrame(pairs)
  frame["place"] = [f"{row['label']}, {row['statistics']}" for row in pairs]
  frame["text"] = [
    style.estimate(
      row["difference"], (row["low95"], row["high95"]), style.points
    )
    for row in pairs
  ]
  frame["column"] = (
    frame["net"].map(style.net_name) + ": minus " + frame["other"]
  )
  nets = {net: None for content in runs.values() for net in content["nets"]}
  rows = []
  for net in nets:
    row = {"net": style.net_name(net)}
    for name, content in runs.items():
      result = content["nets"].get(net)
      told = "-"
      if result:
        clean = style.estimate(result["clean"], result["clean_ci95"])
        costs = [
          style.of_cost(kind, result[field])
          for kind, field in (("arrays", "arrays"), ("energy", "energy_joule"))
          if result[field] is not None
        ]
        told = "\n".join([f"{clean} %", *costs])
      row[name] = told
    rows.append(row)
  return {
    "differences": _wide(frame),
    "nets": pd.DataFrame(rows),
    "configuration": _configuration(runs),
  }


def _wide(frame):
  """A line a place, a column a net and other run."""
  order = [frame[part].drop_duplicates() for part in ("place", "column")]
  table = frame.pivot(index="place", columns="column", values="text")
  table = table.reindex(index=order[0], columns=order[1]).fillna("-")
  return table.rename_axis("defects, statistics").reset_index()


def _configuration(runs):
  """The fields that differ, and versions, devices and data."""
  parts = ("config", "device", "effects", "hardware", "data", "versions")
  flat = {
    name: {
      f"{part}: {field}": str(value)
      for part in parts
      for field, value in content[part].items()
    }
    for name, content in runs.items()
  }
  table = pd.DataFrame(flat).fillna("-")
  table = table[table.nunique(axis=1) > 1]
  return table.rename_axis("field").reset_index()
