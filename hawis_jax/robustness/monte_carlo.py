"""The Monte Carlo engine: which images a net classifies on which chips.

Chips are evaluated in chunks. A chunk is programmed, then images stream past
it, one block after the other; what a block's chips share (its code, and all up
to the first layer whose weights differ) is computed once. Devices of a mesh
take shares of chips and images and run one local program.

Chip s is the key fold_in(key, s), and its images are classified in blocks of a
size that follows from the image and the backend alone. So what a chip
classifies does not depend, to the bit, on chunks, segments or devices.

Axes: S chips, K chips of a chunk, N images, M blocks of B images.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import flax
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from hawis_jax import backend
from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax.networks import any_flax
from hawis_jax.networks import net_variables
from hawis_jax.networks import products
from hawis_jax.robustness import calibration
from hawis_jax.runtime import device_memory
from hawis_jax.runtime import programs
from hawis_jax.runtime import sharding

# Pixels and images of a block, at most: chosen on CPU. Accelerators' are a
# guess that none has measured yet.
_BLOCK = {"cpu": (16 * 32 * 32, 128)}
_ACCELERATOR_BLOCK = (512 * 32 * 32, 1024)
_CHIPS = 4  # of a chunk, a device


class Batches(NamedTuple):
  """Images to evaluate on, the last batch padded."""

  image: chex.Array  # uint8 `[N, B, H, W, C]`
  label: chex.Array  # int32 `[N, B]`
  mask: chex.Array  # bool `[N, B]`, False on padding


class Scores(NamedTuple):
  """Of every chip and candidate.

  Where a chip's weights or logits are not finite: -1, NaN and NaN.
  """

  correct: chex.Array  # images classified correctly, int32 `[S, P]`
  # Their share, `[S, P]`. Compiled division may round differently in
  # differently batched programs, so exact results divide `correct`.
  accuracy: chex.Array
  cross_entropy: chex.Array  # mean over images [nat], `[S, P]`


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a chunk may take; results don't depend on it."""

  chips: int = 0  # of a chunk, a device; 0: as many as is fast
  images: int = 1024  # that are on the devices at a time, about
  memory: float = 0  # of a device [bytes]; 0: all that it has


FREE = Limits()


@dataclasses.dataclass(frozen=True)
class Setting:
  """What all chips have in common; see `evaluation.evaluate_chips`."""

  module: nn.Module
  variables: dict
  device: crossbar.Device
  faults: Mapping[str, chex.Array] | None = None
  layers: tuple[str, ...] | None = None
  calibration: chex.Array | None = None
  placing: crossbar.Placing | None = None
  compensated: bool = False


def classify(
  key: chex.PRNGKey,
  setting: Setting,
  images: np.ndarray,
  labels: np.ndarray,
  chips: range,
  *,
  limits: Limits = FREE,
  devices: Sequence[jax.Device] | None = None,
  progress: Callable[[float], None] | None = None,
  clipped: Callable[[dict[str, np.ndarray]], None] | None = None,
) -> Iterator[np.ndarray]:
  """Yields which images a chunk of chips gets right, bool `[K, N]`, in order.

  Images, uint8 `[N, H, W, C]`, and labels, int `[N]`, stay on the host. Chip s
  of `chips` is fold_in(key, s). `progress` is called with the number of chips
  that are done, parts of a chunk included; `clipped`, before a chunk is
  yielded, with the share of conversions that clip, {"scope/layer": `[K]`}, of a
  device that has converters; `devices` None: all.

  Raises:
    InputError: the device can't read the net; the net never reads a layer of
      its chips; images or labels that it can't classify; variables, or a chip's
      weights or logits, that are not finite; one chip does not fit the memory.
  """
  _check(setting, images, labels, limits)
  mesh = sharding.evaluation_mesh(len(chips), devices)
  try:
    shared = shared_variables(setting, images)
  except (flax.errors.FlaxError, AssertionError) as error:
    raise errors.InputError(
      f"variables, images: got what doesn't fit the net: "
      f"{' '.join(str(error).split())}"
    ) from error
  counted = clipped is not None
  plan = make_plan(setting, shared, images, len(chips), mesh, limits, counted)
  for start in range(0, len(chips), plan.chunk):
    numbers = chips[start : start + plan.chunk]
    # The last chunk is filled up: another shape would be another program.
    padded = np.resize(np.asarray(numbers, np.int32), plan.chunk)
    programmed = got = None  # the chunk before, else both are in memory
    programmed, finite = plan.program(key, padded)
    _check_finite(finite, numbers)
    correct = np.empty((len(numbers), len(images)), bool)
    counts = {}
    for first in range(0, len(images), plan.segment):
      part = slice(first, first + plan.segment)
      blocks = _blocks(images[part], labels[part], first, plan)
      got, finite, found = plan.evaluate(shared, programmed, *blocks)
      count = min(plan.segment, len(images) - first)
      correct[:, part] = sharding.fetch(got)[: len(numbers), :count]
      _check_finite({"logits": finite}, numbers)
      for name, of_images in found.items():
        of_images = sharding.fetch(of_images)[: len(numbers), :count]
        counts[name] = counts.get(name, 0) + of_images.sum(1, dtype=np.int64)
      if progress:
        done = (first + count) / len(images) * len(numbers)
        progress(start + done)
    if counted:
      clipped({name: x[:, 0] / x[:, 1] for name, x in counts.items()})
    yield correct


def _check(setting, images, labels, limits):
  """Raises InputError before long work."""
  crossbar.validate(setting.device)
  missing = {"params", "batch_stats"} - set(setting.variables)
  if missing:
    raise errors.InputError(
      f"variables: got none of {', '.join(sorted(missing))}, needed are params "
      "and batch_stats"
    )
  given = setting.calibration
  if _is_own(setting.module):
    _check_own(setting, images, labels)
  else:
    errors.check_images(images, labels, setting.module.num_classes)
  if given is not None and (
    np.shape(given)[2:] != images.shape[1:] or given.dtype != np.uint8
  ):
    raise errors.InputError(
      f"calibration: got shape {np.shape(given)}, needed are uint8 "
      f"[M, B, {', '.join(map(str, images.shape[1:]))}]"
    )
  for name, least in (("chips", 0), ("images", 1), ("memory", 0)):
    value = getattr(limits, name)
    if not is_number(value, whole=name != "memory") or value < least:
      raise errors.InputError(
        f"limits.{name}: got {value!r}, allowed are numbers of at least {least}"
      )
  device, bits = setting.device, _bits(setting.module)
  crossbar.check_faults(setting.faults or {})
  present = crossbar.bit_effects(device)
  if setting.module.weight_bits is None and present:
    raise errors.InputError(
      f"device: got one with {', '.join(present)} and a float net, allowed is "
      "one without: they read inputs of bits"
    )
  net = _on_chips(setting.module, setting.variables)
  crossbar.check_readout(net, device, bits, setting.layers)
  if setting.calibration is not None and device.adc_bits == 1:
    raise errors.InputError(
      "calibration: got images with adc_bits = 1, allowed is None: a sense "
      "amplifier's threshold folds the normalisation as it is"
    )
  if setting.compensated and device.adc_bits == 1:
    raise errors.InputError(
      "compensated: got True with adc_bits = 1, allowed is False: a sense "
      "amplifier has no sum to be multiplied"
    )
  # A comparison with NaN is False: such a net would seem to be a bad one.
  flat = traverse_util.flatten_dict(dict(setting.variables), sep="/")
  for name, value in flat.items():
    if not np.isfinite(value).all():
      raise errors.InputError(
        f"variables, {name}: got a value that is not finite; nothing that a "
        "chip computes with it would mean anything"
      )


def _is_own(module):
  """Returns whether a net is the user's: its inputs are numbers, no bits."""
  return isinstance(module, any_flax.AnyFlax)


def _check_own(setting, images, labels):
  """Raises InputError where a net of `any_flax` can't be measured so."""
  any_flax.check_device(setting.device)
  if setting.calibration is not None:
    raise errors.InputError(
      "calibration: got images with a net of any_flax, allowed is None: its "
      "statistics are used as they are"
    )
  errors.check_inputs(images)
  if not np.isfinite(images).all():
    raise errors.InputError("images: got a number that is not finite")
  classes = setting.module.classes(setting.variables, images)
  errors.check_labels(labels, len(images), classes)


def _on_chips(module, variables):
  """Returns variables whose `params` are what chips hold."""
  return {**variables, "params": any_flax.kernels(module, variables["params"])}


def is_number(value: Any, whole: bool) -> bool:
  """Returns whether a value is a (whole) number; bools are none."""
  kinds = (int, np.integer) if whole else (int, float, np.number)
  return isinstance(value, kinds) and not isinstance(value, bool)


def _check_finite(finite, numbers):
  """Raises InputError where what chips have, bool `[K, ...]`, is not finite."""
  for name, of_chips in finite.items():
    of_chips = sharding.fetch(of_chips)[: len(numbers)]
    bad = ~of_chips.reshape(len(numbers), -1).all(1)
    if bad.any():
      raise errors.InputError(
        f"device: got chip {numbers[int(bad.argmax())]}, whose {name} are not "
        "finite in float32; allowed are parameters that leave them finite"
      )


@dataclasses.dataclass(frozen=True)
class Plan:
  """How chips are evaluated."""

  chunk: int  # K
  block: int  # B
  segment: int  # images a call
  # (key, numbers `[K]`) -> chips, what of them is finite by name
  program: Callable[..., Any]
  # (shared, chips, images, labels, numbers) -> correct, finite
  evaluate: Callable[..., Any]  # also counts of conversions, by name
  executables: dict[str, Any]  # of both programs, by name


def block_size(image_shape: Sequence[int]) -> int:
  """Returns B, for images of (H, W, C), or a user's inputs of any shape."""
  pixels, most = _BLOCK.get(backend.platform(), _ACCELERATOR_BLOCK)
  return max(1, min(pixels // int(np.prod(image_shape[:2])), most))


def weights_form(
  device: crossbar.Device, bits: int, placing: crossbar.Placing | None = None
) -> str:
  """Returns the fastest exact form of a chip's weights on this backend."""
  if not crossbar.is_ternary(device, bits, placing):
    return "float32"
  return "planes" if backend.platform() == "cpu" else "bfloat16"


def _form(setting):
  # Compensated by a factor that is no integer; or of inputs that are no bits.
  if setting.compensated or _is_own(setting.module):
    return "float32"
  return weights_form(setting.device, _bits(setting.module), setting.placing)


def ideal_net(variables: dict) -> dict:
  """Returns a binary net with its weights in the fastest exact form."""
  device = crossbar.Device()
  form = weights_form(device, 1)
  return crossbar.program(jax.random.key(0), variables, device, form=form)


def make_plan(
  setting: Setting,
  shared: dict,
  images: np.ndarray | jax.ShapeDtypeStruct,
  num_chips: int,
  mesh: jax.sharding.Mesh,
  limits: Limits,
  counted: bool = False,
) -> Plan:
  """Compiles for as many chips a chunk as fit, halving from the best.

  Shapes are enough: of the variables of `setting`, `shared` (which are those of
  `shared_variables`) and `images`. The mesh is `sharding.evaluation_mesh`'s.
  `counted`: conversions that clip are counted.

  Raises:
    InputError: one chip does not fit the memory.
  """
  sample = mesh.shape[sharding.SAMPLE]
  data = mesh.size // sample
  block = block_size(images.shape[1:])
  images_a_step = block * data
  most = -(-len(images) // images_a_step) * images_a_step
  segment = min(-(-limits.images // images_a_step) * images_a_step, most)
  steps = (segment // block, block)
  blocks = [np.empty(steps, np.int32)] * 2
  blocks = [np.empty((*steps, *images.shape[1:]), images.dtype), *blocks]
  form = _form(setting)
  chips = min(limits.chips or _CHIPS, -(-num_chips // sample))
  memory = limits.memory or sharding.memory_bytes(mesh)
  # Severities are inputs: all devices of a sweep have one program.
  device = jax.tree.map(np.float32, setting.device)
  net = setting.variables, device, setting.faults
  compile_ = functools.partial(
    _compile,
    module=setting.module,
    layers=setting.layers,
    form=form,
    placing=setting.placing,
    compensated=setting.compensated,
    counted=counted,
    mesh=mesh,
    way=products.way(),
  )
  while True:
    chosen = jax.random.key(0), np.empty(chips * sample, np.int32)
    known = placement = calibrate = None
    if setting.placing:
      known = compile_("known_faults", *_abstract(*chosen, None, *net))
      placement = _abstract_placement(known.out, setting.placing)
    program = compile_("program", *_abstract(*chosen, placement, *net))
    chips_out = program.out[0]
    if setting.calibration is not None:
      read = setting.variables, chips_out, setting.calibration
      calibrate = compile_("calibrate", *_abstract(*read))
      chips_out = chips_out | calibrate.out[0]
    evaluate = compile_("evaluate", *_abstract(shared, chips_out, *blocks))
    parts = [p for p in (known, program, calibrate, evaluate) if p]
    needed = max(part.needs.memory for part in parts)
    if needed <= memory and all(part.executable for part in parts):
      break
    if chips == 1:
      raise device_memory.too_little(
        memory, needed, f"one chip and {segment} images"
      )
    chips //= 2
  return Plan(
    chunk=chips * sample,
    block=block,
    segment=segment,
    program=_programmer(setting, known, program, calibrate, net),
    evaluate=evaluate,
    executables=dict(program=program.executable, evaluate=evaluate.executable),
  )


def _programmer(setting, known, program, calibrate, net):
  """Returns (key, numbers) -> chips, placed on the host, what is finite."""
  device, bits = setting.device, _bits(setting.module)

  @functools.cache
  def tiles():  # shapes alone are enough until a chip is programmed
    scales = _scales(setting.module)
    net = _on_chips(setting.module, setting.variables)
    found = crossbar.tiles_of(
      net, device, setting.placing, bits, setting.layers, scales
    )
    return jax.device_get(found)

  def place(key, numbers):
    states = sharding.fetch(known(key, numbers, None, *net))
    placements = [
      crossbar.match(tiles(), chip, setting.placing, device, bits)
      for chip in states
    ]
    return jax.tree.map(lambda *chips: np.stack(chips), *placements)

  def place_and_program(key, numbers):
    placement = place(key, numbers) if setting.placing else None
    chips, finite = program(key, numbers, placement, *net)
    if calibrate is None:
      return chips, finite
    own, more = calibrate(setting.variables, chips, setting.calibration)
    return chips | own, finite | more

  return place_and_program


def _abstract_placement(states, placing):
  """Placements of chips that have the `known_faults` `[K, T, 2, R, C]`."""
  chips, num, _, _, columns = states.shape
  shape = chips, num, columns
  return crossbar.Placement(
    jax.ShapeDtypeStruct(shape, np.int32),
    jax.ShapeDtypeStruct(shape, np.int8),
    placing,
  )


def _abstract(*arguments):
  """Their shapes and types: (leaves, structure), to be hashed."""
  leaves, structure = jax.tree.flatten(
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
  )
  return tuple(leaves), structure


@dataclasses.dataclass(frozen=True)
class _Compiled:
  """The same local program on every device of a mesh."""

  executable: Any  # None: no device can hold it
  shardings: tuple[NamedSharding, ...]  # of its arguments
  out: Any  # shapes and types of its result
  needs: device_memory.Needs  # of one device

  def __call__(self, *arguments):
    pairs = zip(arguments, self.shardings, strict=True)
    return self.executable(*(sharding.put(x, where) for x, where in pairs))


# Kept, because scenarios of a sweep differ in values more than in shapes.
@programs.once(64, of_a_run=False)
def _compile(
  function,
  leaves,
  structure,
  *,
  module,
  layers,
  form,
  placing,
  compensated,
  counted,
  mesh,
  way,
):
  """Compiles one of four functions for arguments of `_abstract`.

  They are `_known_faults`, `_program`, `_calibrate` and `_evaluate`.
  """
  arguments = jax.tree.unflatten(structure, leaves)
  if function == "calibrate":
    local = functools.partial(_calibrate, module)
    specs, out = (P(), P(sharding.SAMPLE), P()), P(sharding.SAMPLE)
  elif function != "evaluate":
    local = {"known_faults": _known_faults, "program": _program}[function]
    local = functools.partial(local, module, layers, form, placing, compensated)
    specs = (P(), *[P(sharding.SAMPLE)] * 2, *[P()] * 3)
    out = P(sharding.SAMPLE)
  else:
    # Vmapped, chips share the layers before the first of `layers`; what follows
    # is exact for binary nets alone, whatever number of chips share it.
    is_binary = module.weight_bits == 1 and not _is_own(module)
    vmapped = form == "planes" or (layers and is_binary)
    vmapped = vmapped or way.method != "loop"
    local = functools.partial(_evaluate, module, vmapped, counted)
    specs = (P(), P(sharding.SAMPLE), *[P(sharding.data(mesh))] * 3)
    out = P(sharding.SAMPLE, sharding.data(mesh))
  sharded = jax.shard_map(
    local, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False
  )
  shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
  traced = jax.jit(sharded, in_shardings=shardings).trace(*arguments)
  if function == "evaluate":
    used = backend.used_inputs(traced, arguments, lambda out: out[0])
    net_variables.check_read(used[1]["crossbar"])
  lowered = traced.lower()
  executable, needs = device_memory.compile_lowered(lowered)
  return _Compiled(executable, shardings, lowered.out_info, needs)


def shared_variables(
  setting: Setting, images: np.ndarray | jax.ShapeDtypeStruct
) -> dict:
  """Returns the variables that all chips share; shapes in `eval_shape`."""
  form = _form(setting)
  if _is_own(setting.module):
    return {k: v for k, v in setting.variables.items() if k != "crossbar"}
  names = ("params", "batch_stats", "converters")
  shared = {k: v for k, v in setting.variables.items() if k in names}
  shared = _with_scales(setting.module, shared, images.shape[1:])
  if setting.calibration is not None:  # every chip has its own
    del shared["batch_stats"], shared["scales"]
  if form == "planes" and setting.layers is not None:
    # Layers that are not on chips are counted too.
    shared = ideal_net(shared)
  return shared


_with_scales = jax.jit(net_variables.with_scales, static_argnums=(0, 2))


def _bits(module):
  return net_variables.crossbar_bits(module)


def _scales(module):
  return getattr(module, "weight_scales", "channel")


def _chip(key, setting, form, placement=None):
  """What one chip has of its own: its weights."""
  module = setting.module
  net = {k: v for k, v in setting.variables.items() if k != "batch_stats"}
  net = crossbar.program(
    key,
    _on_chips(module, net),
    setting.device,
    _bits(module),
    faults=setting.faults,
    layers=setting.layers,
    form=form,
    scales=_scales(module),
    placement=placement,
  )
  if setting.compensated:
    net = calibration.compensate(net, _bits(module), _scales(module))
  chip = net["crossbar"]
  if module.weight_bits is None:
    chip = net_variables.in_units(chip, net["params"], 0, _scales(module))
  return {"crossbar": chip}


def _known_faults(
  module, layers, form, placing, compensated, key, numbers, _, *net
):
  """Returns what write-verify finds on one device's chips."""
  del form, compensated
  variables, device, faults = net
  return jax.lax.map(
    lambda number: crossbar.known_faults(
      jax.random.fold_in(key, number),
      _on_chips(module, variables),
      device,
      placing,
      _bits(module),
      faults,
      layers,
      _scales(module),
    ),
    numbers,
  )


def _program(
  module, layers, form, placing, compensated, key, numbers, placement, *net
):
  """Returns the chips of one device, `[K]` of every leaf, and if finite."""
  variables, device, faults = net
  setting = Setting(
    module, variables, device, faults, layers, None, placing, compensated
  )

  def one(chip):
    number, placement = chip
    return _chip(jax.random.fold_in(key, number), setting, form, placement)

  chips = jax.lax.map(one, (numbers, placement))
  return chips, jax.vmap(_finite)(chips)


def _calibrate(module, variables, chips, images):
  """Statistics measured on each chip of one device, and if they are finite."""

  def one(chip):
    net = {**variables, **chip}
    net["batch_stats"] = net_variables.recalibrate(module, net, images)
    net = net_variables.with_scales(module, net, images.shape[2:])
    return {name: net[name] for name in ("batch_stats", "scales")}

  found = jax.lax.map(one, chips)
  return found, jax.vmap(_finite)(found)


def _finite(chip):
  """Whether all of it is finite, a bool by name; of what can be otherwise."""
  # Of what the chip is used as: not fused into what computes it, whose rounding
  # might change.
  leaves = jax.tree_util.tree_leaves_with_path(chip)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): jnp.isfinite(
      jax.lax.optimization_barrier(leaf)
    ).all()
    for path, leaf in leaves
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  }


def _blocks(images, labels, first, plan):
  """A segment in blocks: uint8 `[M, B, H, W, C]`, labels and numbers `[M, B]`.

  Padding has label -1, which no class has.
  """
  pad = plan.segment - len(images)
  images = np.pad(images, [(0, pad), *[(0, 0)] * (images.ndim - 1)])
  labels = np.pad(labels, (0, pad), constant_values=-1).astype(np.int32)
  numbers = np.arange(first, first + plan.segment, dtype=np.int32)
  return tuple(
    x.reshape(-1, plan.block, *x.shape[1:]) for x in (images, labels, numbers)
  )


def _evaluate(module, vmapped, counted, shared, chips, images, labels, numbers):
  """Correct of one device's chips, bool `[K, M B]`, and if finite, `[K, M]`.

  And counts of conversions by layer, int32 `[K, M B, 2]`, where `counted`.
  """

  def block(inputs):
    images, labels, numbers = inputs
    code = module.encode(images)

    def one(own):
      net = _with_chip(shared, own, numbers)
      logits, found = module.apply(
        net, code, None, train=False, mutable=["clipped"] if counted else []
      )
      found = traverse_util.flatten_dict(found.get("clipped", {}))
      counts = {"/".join(path[:-1]): x for path, x in found.items()}
      finite = jnp.isfinite(logits).all()
      return logits.argmax(-1) == labels, finite, counts

    return jax.vmap(one)(chips) if vmapped else jax.lax.map(one, chips)

  correct, finite, counts = jax.lax.map(block, (images, labels, numbers))

  def by_chip(x):
    return x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])

  return by_chip(correct), finite.swapaxes(0, 1), jax.tree.map(by_chip, counts)


def _with_chip(shared, own, numbers):
  """A net on one chip, whose noise the numbers of images decide."""
  flat = traverse_util.flatten_dict(shared) | traverse_util.flatten_dict(own)
  return crossbar.for_images(traverse_util.unflatten_dict(flat), numbers)


def score_chips(
  module: nn.Module,
  variables: dict,
  widths: chex.Array,
  batch_stats: dict | None,
  batches: Batches,
  chip_keys: chex.Array,
  device: crossbar.Device,
  calibration: chex.Array | None = None,
) -> Scores:
  """Scores P candidates of one super-net on S chips; pure, to be jitted.

  Candidates are their widths, int `[P, L]`, and `batch_stats` with a leading
  axis P; they share a chip's weights, so they fold into the batch. Without
  `batch_stats` each is recalibrated on every chip, with the images `[N, B, H,
  W, C]` of `calibration`. Chips are bit planes where they can be, as in
  `classify`.
  """
  params = {"params": variables["params"]}
  form = weights_form(device, module.weight_bits)
  num, image_shape = len(widths), batches.image.shape[2:]

  def with_scales(widths, norm):
    net = {**params, "batch_stats": norm}
    net = net_variables.with_scales(module, net, image_shape, widths)
    return {name: net[name] for name in ("batch_stats", "scales")}

  def on_chip(widths, chip):
    net = {**params, **chip}
    norm = net_variables.recalibrate(module, net, calibration, widths)
    return with_scales(widths, norm)

  if batch_stats is not None:
    own_of_all = jax.vmap(with_scales)(widths, batch_stats)

  def score_chip(key):
    chip = _chip(key, Setting(module, params, device), form)
    if batch_stats is not None:
      own = own_of_all
    else:
      own = jax.vmap(on_chip, (0, None))(widths, chip)

    def score_batch(carry, batch):
      first, correct, losses, finite = carry
      size = batch.label.size
      inputs = module.encode(batch.image)
      numbers = first + jnp.arange(size)
      logits = jax.vmap(
        lambda widths, own: module.apply(
          _with_chip(params, {**chip, **own}, numbers),
          inputs,
          widths,
          train=False,
        )
      )(widths, own)
      hit = jnp.argmax(logits, -1) == batch.label[None]
      picked = jnp.take_along_axis(
        jax.nn.log_softmax(logits), batch.label[None, :, None], -1
      )
      mask = batch.mask[None]
      correct += (hit & mask).sum(-1, dtype=jnp.int32)
      losses += (-picked[..., 0] * mask).sum(-1)
      finite &= jnp.isfinite(logits).all((1, 2))
      return (first + size, correct, losses, finite), None

    start = (
      jnp.int32(0),
      jnp.zeros(num, jnp.int32),
      jnp.zeros(num, jnp.float32),
      jnp.ones(num, bool),
    )
    (_, correct, losses, finite), _ = jax.lax.scan(score_batch, start, batches)
    for is_finite in _finite(chip).values():
      finite &= is_finite
    count = batches.mask.sum().astype(jnp.float32)
    accuracy, loss = (
      jnp.where(finite, x.astype(jnp.float32) / count, jnp.nan)
      for x in (correct, losses)
    )
    return Scores(jnp.where(finite, correct, -1), accuracy, loss)

  # One after the other: vmapped, they would take as many times the memory, and
  # a chip's candidates have images enough at a time.
  return jax.lax.map(score_chip, chip_keys)
