"""What a compiled program needs and does on one device, as XLA tells it.

XLA's own count of operations takes the body of a loop once. Here a computation
counts as often as it runs, where the number of a loop's rounds is known; else
once.
"""

import collections
from collections.abc import Iterator
import dataclasses
import math
import re
from typing import Any

import numpy as np

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-permute",
  "reduce-scatter",
)

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # others end with their number
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLEE = re.compile(
  r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)="
  r"%?([\w.\-]+)"
)
_CALLEES = re.compile(
  r"\b(?:branch_computations|called_computations)=\{([^}]*)\}"
)


@dataclasses.dataclass(frozen=True)
class Needs:
  """Of one run of a program on one device.

  Attributes:
    arguments: [bytes].
    outputs: that are not in the place of donated arguments [bytes].
    temporary: [bytes].
    flops: of its products (convolutions and dots), with 2 a multiply-add.
    collectives: {kind: (number, bytes)}; of a gathered or scattered array the
      bytes are those of the whole.
  """

  arguments: int
  outputs: int
  temporary: int
  flops: float
  collectives: dict[str, tuple[int, int]]

  @property
  def memory(self) -> int:
    """All that must be in the device's memory at a time [bytes]."""
    return self.arguments + self.outputs + self.temporary


def needs(executable: Any) -> Needs:
  """Reads what `jax.jit(...).lower(...).compile()` returned."""
  sizes = executable.memory_analysis()
  flops, moved = work(executable.as_text())
  return Needs(
    arguments=sizes.argument_size_in_bytes,
    outputs=sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
    temporary=sizes.temp_size_in_bytes,
    flops=flops,
    collectives=moved,
  )


def work(text: str) -> tuple[float, dict[str, tuple[int, int]]]:
  """Returns (`flops`, `collectives`) of a program from its HLO text."""
  program, entry = _parse(text)
  flops, moved = 0.0, collections.defaultdict(lambda: np.zeros(2, np.int64))
  for name, rounds in _rounds(program, entry):
    for one in program[name].values():
      flops += rounds * _flops(one, program[name])
      kind = one.operation.removesuffix("-start")
      if kind in COLLECTIVES:
        size = _moved(one, program[name])
        moved[kind] += np.array([rounds, rounds * size], np.int64)
  return flops, {k: tuple(map(int, v)) for k, v in sorted(moved.items())}


@dataclasses.dataclass(frozen=True)
class _Instruction:
  """A line of a program.

  Attributes:
    shapes: of the result, [(type, dimensions)], several of a tuple.
    operation: e.g. "convolution".
    operands: their names.
    rest: of the line, its attributes.
  """

  shapes: list[tuple[str, tuple[int, ...]]]
  operation: str
  operands: list[str]
  rest: str


def _parse(text):
  """({computation: {name: instruction}}, the first computation's name)."""
  program, entry, current = {}, None, None
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header:
      current = program.setdefault(header[2], {})
      entry = header[2] if header[1] else entry
    elif current is not None:
      found = _INSTRUCTION.match(line)
      if found:
        current[found[1]] = _instruction(found[2])
  return program, entry


def _instruction(text):
  end = _closing(text, 0) if text[0] == "(" else text.index(" ")
  operation, _, rest = text[end:].strip().partition("(")
  close = _closing(f"({rest}", 0) - 1
  operands = re.findall(r"%([\w.\-]+)", rest[:close])
  if operation == "constant":
    operands = [rest[: close - 1]]
  return _Instruction(_shapes(text[:end]), operation, operands, rest[close:])


def _closing(text, start):
  """Index behind the parenthesis that closes the one at `start`."""
  depth = 0
  for index in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[index], 0)
    if not depth:
      return index + 1
  return len(text)


def _shapes(text):
  return [
    (kind, tuple(map(int, filter(None, sizes.split(",")))))
    for kind, sizes in _SHAPE.findall(text)
  ]


def _bytes(shapes):
  total = 0
  for kind, sizes in shapes:
    digits = re.search(r"\d+", kind)
    bits = _BITS.get(kind, int(digits[0]) if digits else 0)
    total += math.prod(sizes) * bits // 8
  return total


def _rounds(program, entry) -> Iterator[tuple[str, int]]:
  """Yields (computation, how often it runs), once for every caller."""
  left = [(entry, 1)]
  while left:
    name, rounds = left.pop()
    yield name, rounds
    for one in program[name].values():
      times = rounds
      if one.operation == "while":
        times *= _trips(one, program)
      callees = _CALLEE.findall(one.rest)
      for several in _CALLEES.findall(one.rest):
        callees += re.findall(r"[\w.\-]+", several)
      left += [(callee, times) for callee in callees if callee in program]


def _trips(loop, program):
  """Rounds of a loop: stated, or what its counter is compared with."""
  known = re.search(r'known_trip_count[^}]*?"n":"(\d+)"', loop.rest)
  if known:
    return int(known[1])
  condition = program[re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]]
  for one in condition.values():
    if one.operation == "compare" and "direction=LT" in one.rest:
      limit = condition.get(one.operands[1])
      if limit is not None and limit.operation == "constant":
        return int(limit.operands[0])
  return 1


def _moved(one, computation):
  """Bytes of a collective."""
  given = sum(_bytes(computation[name].shapes) for name in one.operands)
  made = _bytes(one.shapes)
  if one.operation.endswith("-start") and made > given:
    made -= given  # the result of a start holds its operands too
  return max(given, made)


def _flops(one, computation):
  if one.operation == "dot":
    left = computation[one.operands[0]].shapes[0][1]
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)[1]
    summed = math.prod(left[int(a)] for a in axes.split(",") if a)
    return 2.0 * math.prod(one.shapes[0][1]) * summed
  if one.operation == "convolution":
    return _convolution_flops(one, computation)
  return 0.0


def _convolution_flops(one, computation):
  """As XLA counts: without products of padding and of dilation's zeros."""
  left, right = (computation[n].shapes[0][1] for n in one.operands[:2])
  result = one.shapes[0][1]
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest).groups()
  window = re.search(r"window=\{([^}]*)\}", one.rest)
  fields = dict(f.split("=") for f in window[1].split()) if window else {}
  spatial = [c for c in labels[2] if c.isdigit()]

  def each(field, default):
    return fields[field].split("x") if field in fields else default

  ones = ["1"] * len(spatial)
  options = zip(
    spatial,
    each("stride", ones),
    each("pad", ["0_0"] * len(spatial)),
    each("lhs_dilate", ones),
    each("rhs_dilate", ones),
    strict=True,
  )
  pairs = 1
  for axis, stride, pad, spread, step in options:
    size, kernel, out = (
      shape[label.index(axis)]
      for shape, label in zip((left, right, result), labels, strict=True)
    )
    starts = np.arange(out) * int(stride) - int(pad.split("_")[0])
    places = starts[:, None] + np.arange(kernel) * int(step)
    inside = (places >= 0) & (places <= (size - 1) * int(spread))
    pairs *= int((inside & (places % int(spread) == 0)).sum())
  others = math.prod(
    size for size, c in zip(result, labels[2], strict=True) if c in "bf"
  )
  return 2.0 * others * pairs * right[labels[1].index("i")]
