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
from hawis_jax.networks import net_variables
from hawis_jax.runtime import sharding

# Pixels and images of a block, at most: chosen on CPU. Accelerators' are a
# guess that none has measured yet.
_BLOCK = {"cpu": (16 * 32 * 32, 128)}
_ACCELERATOR_BLOCK = (512 * 32 * 32, 1024)
_CHIPS = 4  # of a chunk, a device
# Of chips that an accelerator computes at the same time: 256 MB of float32.
_MOST_WEIGHTS = 2**26


class Batches(NamedTuple):
  """Images to evaluate on, the last batch padded."""

  image: chex.Array  # uint8 `[N, B, H, W, C]`
  label: chex.Array  # int32 `[N, B]`
  mask: chex.Array  # bool `[N, B]`, False on padding


class Scores(NamedTuple):
  """Of every chip and candidate."""

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
) -> Iterator[np.ndarray]:
  """Yields which images a chunk of chips gets right, bool `[K, N]`, in order.

  Images, uint8 `[N, H, W, C]`, and labels, int `[N]`, stay on the host. Chip s
  of `chips` is fold_in(key, s). `progress` is called with the number of chips
  that are done, parts of a chunk included; `devices` None: all.

  Raises:
    InputError: the device can't read the net; a variable is not finite; one
      chip does not fit the memory.
  """
  _check(setting)
  mesh = sharding.evaluation_mesh(len(chips), devices)
  shared = shared_variables(setting, images)
  plan = make_plan(setting, shared, images, len(chips), mesh, limits)
  for start in range(0, len(chips), plan.chunk):
    numbers = chips[start : start + plan.chunk]
    # The last chunk is filled up: another shape would be another program.
    padded = np.resize(np.asarray(numbers, np.int32), plan.chunk)
    programmed = got = None  # the chunk before, else both are in memory
    programmed = plan.program(key, padded)
    correct = np.empty((len(numbers), len(images)), bool)
    for first in range(0, len(images), plan.segment):
      part = slice(first, first + plan.segment)
      blocks = _blocks(images[part], labels[part], first, plan)
      got = plan.evaluate(shared, programmed, *blocks)
      count = min(plan.segment, len(images) - first)
      correct[:, part] = sharding.fetch(got)[: len(numbers), :count]
      if progress:
        done = (first + count) / len(images) * len(numbers)
        progress(start + done)
    yield correct


def _check(setting):
  """Raises InputError before long work."""
  device, bits = setting.device, setting.module.weight_bits
  crossbar.check_readout(setting.variables, device, bits, setting.layers)
  if setting.calibration is not None and device.adc_bits == 1:
    raise errors.InputError(
      "calibration: got images with adc_bits = 1, allowed is None: a sense "
      "amplifier's threshold folds the normalisation as it is"
    )
  # A comparison with NaN is False: such a net would seem to be a bad one.
  flat = traverse_util.flatten_dict(dict(setting.variables), sep="/")
  for name, value in flat.items():
    if not np.isfinite(value).all():
      raise errors.InputError(
        f"variables, {name}: got a value that is not finite; nothing that a "
        "chip computes with it would mean anything"
      )


class Needs(NamedTuple):
  """Of a device's memory, while a program runs, by XLA's account [bytes]."""

  arguments: int
  outputs: int
  temporary: int

  @property
  def memory(self) -> int:
    """All of it."""
    return sum(self)


def needs(executable: Any) -> Needs:
  """Returns what `jax.jit(...).lower(...).compile()` takes of one device."""
  sizes = executable.memory_analysis()
  # Outputs in the place of donated arguments are counted with those.
  return Needs(
    sizes.argument_size_in_bytes,
    sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
    sizes.temp_size_in_bytes,
  )


@dataclasses.dataclass(frozen=True)
class Plan:
  """How chips are evaluated."""

  chunk: int  # K
  block: int  # B
  segment: int  # images a call
  program: Callable[..., Any]  # (key, numbers `[K]`) -> chips
  # (shared, chips, images, labels, numbers) -> correct
  evaluate: Callable[..., Any]
  executables: dict[str, Any]  # of both programs, by name


def block_size(image_shape: Sequence[int]) -> int:
  """Returns B, for images of (H, W, C)."""
  pixels, most = _BLOCK.get(backend.platform(), _ACCELERATOR_BLOCK)
  return max(1, min(pixels // (image_shape[0] * image_shape[1]), most))


def weights_form(device: crossbar.Device, bits: int) -> str:
  """Returns the fastest exact form of a chip's weights on this backend."""
  if not crossbar.is_ternary(device, bits):
    return "float32"
  return "planes" if backend.platform() == "cpu" else "bfloat16"


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
) -> Plan:
  """Compiles for as many chips a chunk as fit, halving from the best.

  Shapes are enough: of the variables of `setting`, `shared` (which are those of
  `shared_variables`) and `images`. The mesh is `sharding.evaluation_mesh`'s.

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
  form = weights_form(setting.device, setting.module.weight_bits)
  chips = min(limits.chips or _CHIPS, -(-num_chips // sample))
  memory = limits.memory or sharding.memory_bytes(mesh)
  # Severities are inputs: all devices of a sweep have one program.
  device = jax.tree.map(np.float32, setting.device)
  net = (setting.variables, device, setting.faults, setting.calibration)
  compile_ = functools.partial(
    _compile, module=setting.module, layers=setting.layers, form=form, mesh=mesh
  )
  while True:
    numbers = np.empty(chips * sample, np.int32)
    program = compile_("program", *_abstract(jax.random.key(0), numbers, *net))
    evaluate = compile_("evaluate", *_abstract(shared, program.out, *blocks))
    needed = max(program.needs.memory, evaluate.needs.memory)
    if needed <= memory:
      break
    if chips == 1:
      raise errors.InputError(
        f"memory: got {memory / 1e9:.3g} GB a device, needed for one chip and "
        f"{segment} images are {needed / 1e9:.3g} GB"
      )
    chips //= 2
  return Plan(
    chunk=chips * sample,
    block=block,
    segment=segment,
    program=lambda key, numbers: program(key, numbers, *net),
    evaluate=evaluate,
    executables=dict(program=program.executable, evaluate=evaluate.executable),
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

  executable: Any
  shardings: tuple[NamedSharding, ...]  # of its arguments
  out: Any  # shapes and types of its result
  needs: Needs  # of one device

  def __call__(self, *arguments):
    pairs = zip(arguments, self.shardings, strict=True)
    return self.executable(*(sharding.put(x, where) for x, where in pairs))


# Kept, because scenarios of a sweep differ in values more than in shapes.
@functools.lru_cache(maxsize=64)
def _compile(function, leaves, structure, *, module, layers, form, mesh):
  """Compiles `_program` or `_evaluate` for arguments of `_abstract`."""
  arguments = jax.tree.unflatten(structure, leaves)
  if function == "program":
    local = functools.partial(_program, module, layers, form)
    specs = (P(), P(sharding.SAMPLE), *[P()] * 4)
    out = P(sharding.SAMPLE)
  else:
    # Vmapped, chips share the layers before the first of `layers`; what follows
    # is exact for binary nets alone, whatever number of chips share it.
    vmapped = form == "planes" or (layers and module.weight_bits == 1)
    local = functools.partial(_evaluate, module, vmapped)
    specs = (P(), P(sharding.SAMPLE), *[P(sharding.data(mesh))] * 3)
    out = P(sharding.SAMPLE, sharding.data(mesh))
  sharded = jax.shard_map(
    local, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False
  )
  shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
  lowered = jax.jit(sharded, in_shardings=shardings).lower(*arguments)
  executable = lowered.compile()
  return _Compiled(executable, shardings, lowered.out_info, needs(executable))


def shared_variables(
  setting: Setting, images: np.ndarray | jax.ShapeDtypeStruct
) -> dict:
  """Returns the variables that all chips share; shapes in `eval_shape`."""
  form = weights_form(setting.device, setting.module.weight_bits)
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


def _chip(key, setting, form):
  """What one chip has of its own: its weights, and recalibrated statistics."""
  module = setting.module
  net = {k: v for k, v in setting.variables.items() if k != "batch_stats"}
  net = crossbar.program(
    key,
    net,
    setting.device,
    module.weight_bits,
    faults=setting.faults,
    layers=setting.layers,
    form=form,
    scales=getattr(module, "weight_scales", "channel"),
  )
  own = {"crossbar": net["crossbar"]}
  if setting.calibration is not None:
    inputs = jnp.asarray(setting.calibration)
    shape = inputs.shape[2:]
    net["batch_stats"] = net_variables.recalibrate(
      module, net, jax.lax.map(module.encode, inputs)
    )
    net = net_variables.with_scales(module, net, shape)
    own |= {name: net[name] for name in ("batch_stats", "scales")}
  return own


def _program(module, layers, form, key, numbers, *net):
  """Returns the chips of one device, `[K]` of every leaf."""
  variables, device, faults, calibration = net
  setting = Setting(module, variables, device, faults, layers, calibration)
  return jax.lax.map(
    lambda number: _chip(jax.random.fold_in(key, number), setting, form),
    numbers,
  )


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


def _evaluate(module, vmapped, shared, chips, images, labels, numbers):
  """Correct of the chips of one device, bool `[K, M B]`."""

  def block(inputs):
    images, labels, numbers = inputs
    code = module.encode(images)

    def one(own):
      return _logits(module, shared, own, code, numbers).argmax(-1) == labels

    return jax.vmap(one)(chips) if vmapped else jax.lax.map(one, chips)

  correct = jax.lax.map(block, (images, labels, numbers))
  return correct.swapaxes(0, 1).reshape(correct.shape[1], -1)


def _logits(module, shared, own, code, numbers, widths=None):
  """Logits `[B, classes]` of one chip, whose noise the numbers decide."""
  flat = traverse_util.flatten_dict(shared) | traverse_util.flatten_dict(own)
  net = crossbar.for_images(traverse_util.unflatten_dict(flat), numbers)
  return module.apply(net, code, widths, train=False)


def score_chips(
  module: nn.Module,
  variables: dict,
  widths: chex.Array,
  batch_stats: dict,
  batches: Batches,
  chip_keys: chex.Array,
  device: crossbar.Device,
) -> Scores:
  """Scores P candidates of one super-net on S chips; pure, to be jitted.

  Candidates are their widths, int `[P, L]`, and `batch_stats` with a leading
  axis P; they share a chip's weights, so they fold into the batch. Chips are
  bit planes where they can be, as in `classify`.
  """
  params = {"params": variables["params"]}
  form = weights_form(device, module.weight_bits)
  num, image_shape = len(widths), batches.image.shape[2:]
  own = jax.vmap(
    lambda widths, norm: net_variables.with_scales(
      module, {**params, "batch_stats": norm}, image_shape, widths
    )
  )(widths, batch_stats)
  own = {name: own[name] for name in ("batch_stats", "scales")}

  def score_chip(key):
    chip = _chip(key, Setting(module, params, device), form)

    def score_batch(carry, batch):
      first, correct, losses = carry
      size = batch.label.size
      inputs = module.encode(batch.image)
      numbers = first + jnp.arange(size)
      logits = jax.vmap(
        lambda widths, own: _logits(
          module, params, {**chip, **own}, inputs, numbers, widths
        )
      )(widths, own)
      hit = jnp.argmax(logits, -1) == batch.label[None]
      picked = jnp.take_along_axis(
        jax.nn.log_softmax(logits), batch.label[None, :, None], -1
      )
      mask = batch.mask[None]
      correct += (hit & mask).sum(-1)
      losses += (-picked[..., 0] * mask).sum(-1)
      return (first + size, correct, losses), None

    zeros = jnp.int32(0), jnp.zeros(num, jnp.int32), jnp.zeros(num)
    (_, correct, losses), _ = jax.lax.scan(score_batch, zeros, batches)
    count = batches.mask.sum()
    return Scores(correct, correct / count, losses / count)

  # Looped over on CPU, vmapped elsewhere: as many as memory is likely to hold.
  together = 0
  if backend.platform() != "cpu":
    together = _MOST_WEIGHTS // sum(x.size for x in jax.tree.leaves(params))
  if len(chip_keys) <= together:
    return jax.vmap(score_chip)(chip_keys)
  size = together if together > 1 else None
  return jax.lax.map(score_chip, chip_keys, batch_size=size)
