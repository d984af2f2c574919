"""The launch files: what they start, and what they do when it ends."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time

from absl import flags
import pytest
import yaml

from hawis_jax import main

_ROOT = pathlib.Path(__file__).parents[1]
_LAUNCH = _ROOT / "launch"
_SCRIPTS = sorted(path.name for path in _LAUNCH.glob("*.sh"))
_SECONDS = 60  # a script that takes longer hangs

_FLAGS = ["--config=configs/digits.py", "--x=(\"a b\", 'c', $HOME, *, \\)"]
_CREATE = [
  "create_tpu.sh",
  "a-b",
  "--zone=z",
  "--type=v5litepod-16",
  "--poll=0",
]
_RUN = ["run_tpu.sh", "a-b", "--zone=z", "--nfs=10.0.0.2:/share"]
_RUN_BUCKET = ["run_tpu.sh", "a-b", "--zone=z", "--bucket=gs://b-1/runs/"]

# Stands for a program: writes its arguments down and gives the next of its
# answers, [status, stdout], to the arguments that hold a given text.
_FAKE = r"""#!{python} -SE
import json, pathlib, shutil, sys
me = pathlib.Path(sys.argv[0])
with (me.parent / "calls.jsonl").open("a") as file:
  file.write(json.dumps([me.name, *sys.argv[1:]]) + "\n")
if "a-b:results.tgz" in sys.argv:
  shutil.copy(me.parent / "results.tgz", sys.argv[-3])
answers = me.with_suffix(".json")
known = json.loads(answers.read_text()) if answers.exists() else {{}}
for text, queue in known.items():
  if any(text in argument for argument in sys.argv[1:]):
    status, output = queue.pop(0) if len(queue) > 1 else queue[0]
    answers.write_text(json.dumps(known))
    sys.stdout.write(output)
    sys.exit(status)
"""


class _Fakes:
  """Programs on PATH that do nothing but remember."""

  def __init__(self, folder):
    self.folder = folder
    folder.mkdir()

  def answer(self, program, **answers):
    self.add(program)
    (self.folder / f"{program}.json").write_text(json.dumps(answers))

  def add(self, *programs):
    for program in programs:
      path = self.folder / program
      path.write_text(_FAKE.format(python=sys.executable))
      path.chmod(0o755)

  def calls(self):
    path = self.folder / "calls.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]

  def commands(self):
    """What gcloud was told to run on workers."""
    found = [[a for a in c if a.startswith("--command=")] for c in self.calls()]
    return [call[0].removeprefix("--command=") for call in found if call]


@pytest.fixture
def fakes(tmp_path):
  fakes = _Fakes(tmp_path / "bin")
  fakes.add("gcloud", "srun", "scontrol", "python")
  fakes.answer("git", **{"ls-files": [[0, "setup.cfg\0"]]})
  return fakes


def _run(script, *arguments, fakes=None, **environment):
  """Returns (exit status, stdout, stderr) of one of the scripts."""
  path = os.environ["PATH"]
  if fakes:
    environment["PATH"] = f"{fakes.folder}{os.pathsep}{path}"
  result = subprocess.run(
    [_LAUNCH / script, *arguments],
    env=os.environ | environment,
    capture_output=True,
    text=True,
    timeout=_SECONDS,
  )
  return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("script", _SCRIPTS)
def test_every_script_explains_itself(script):
  status, output, _ = _run(script, "--help")
  assert status == 0
  assert output.startswith("usage: ") and f"launch/{script}" in output
  assert "--dry-run" in output
  status, _, error = _run(script, "--wrong=1")
  assert status == 2
  assert "--wrong=1: no such option" in error


@pytest.mark.parametrize("script", _SCRIPTS)
def test_scripts_are_sound(script):
  source = (_LAUNCH / script).read_text()
  assert re.search(r"^set -euo pipefail$", source, re.MULTILINE)
  assert max(map(len, source.splitlines())) <= 80
  for checker in (["bash", "-n"], ["shellcheck"]):
    if not shutil.which(checker[0]):
      pytest.skip(f"needs {checker[0]}")
    command = [*checker, _LAUNCH / script]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
  "command, message",
  [
    (["create_tpu.sh"], "NAME: got ''"),
    (["create_tpu.sh", "A_b", "--zone=z"], "NAME: got 'A_b'"),
    (["create_tpu.sh", "a", "b"], "b: got a second NAME"),
    (["create_tpu.sh", "a"], "--zone: missing"),
    (["create_tpu.sh", "a", "--zone=z"], "--type: missing"),
    (["create_tpu.sh", "a", "--zone=z", "--type=v9-8"], "--runtime: missing"),
    ([*_CREATE, "--poll=soon"], "--poll: got 'soon'"),
    (["run_tpu.sh", "a", "--zone=z", "--nfs=gs://b"], "--nfs: got 'gs://b'"),
    (["run_tpu.sh", "a", "--zone=z", "--bucket=b"], "--bucket: got 'b'"),
    ([*_RUN, "--bucket=gs://b-1"], "--nfs: got '10.0.0.2:/share', allowed is"),
    ([*_RUN, "--run=../x", "--", *_FLAGS], "--run: got '../x'"),
    ([*_RUN, "--retries=-1", "--", *_FLAGS], "--retries: got '-1'"),
    ([*_RUN], "FLAGS: missing"),
    ([*_RUN, "--", *_FLAGS, "--workdir=x"], "--workdir: is set by --run"),
    (["slurm.sh"], "FLAGS: missing"),
    (["slurm.sh", "--retries=x", "--", *_FLAGS], "--retries: got 'x'"),
    (["slurm.sh", "--", *_FLAGS], "SLURM_JOB_ID: missing"),
    (["detached.sh", "name"], "NAME and COMMAND: got 1 words"),
  ],
)
def test_mistakes_are_one_line(command, message, fakes, monkeypatch):
  monkeypatch.delenv("SLURM_JOB_ID", raising=False)
  status, output, error = _run(*command, fakes=fakes)
  assert status == 2
  assert error.startswith(f"error: {message}") and error.count("\n") == 1
  assert not output and not fakes.calls()


def test_dry_runs_start_nothing(fakes):
  for command in (
    [*_CREATE, "--dry-run"],
    [*_CREATE, "--delete", "--dry-run"],
    [*_RUN, "--dry-run", "--", *_FLAGS],
    [*_RUN, "--stop", "--dry-run"],
    ["slurm.sh", "--dry-run", "--", *_FLAGS],
    ["detached.sh", "--dry-run", str(fakes.folder / "x"), "srun"],
  ):
    status, output, error = _run(*command, fakes=fakes)
    assert status == 0 and output and not error, error
  assert {call[0] for call in fakes.calls()} <= {"git"}
  assert not list(fakes.folder.glob("x*"))


# This machine


def test_local_processes_know_each_other():
  options = ["--processes=2", "--devices=3", "--port=1234", "--dry-run"]
  status, output, _ = _run(
    "local_multiprocess.sh", *options, "--", *_FLAGS, PYTHON="my python"
  )
  assert status == 0
  lines = output.splitlines()
  assert len(lines) == 2
  for index, line in enumerate(lines):
    words = shlex.split(line)
    assert "JAX_NUM_CPU_DEVICES=3" in words
    assert words[words.index("my python") + 1 :] == [
      "-m",
      "hawis_jax.main",
      *_FLAGS,
      "--distributed",
      "--coordinator_address=localhost:1234",
      "--num_processes=2",
      f"--process_id={index}",
    ]


def _is_running(pid):
  """Whether a process does anything yet; a dead one may wait for its parent."""
  shown = subprocess.run(
    ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
  )
  return shown.stdout.strip()[:1] not in ("", "Z")


@pytest.mark.parametrize("presses, status", [(1, 75), (2, -signal.SIGINT)])
def test_local_processes_are_told_of_ctrl_c(
  tmp_path, nothing_ignored, presses, status
):
  """As SIGTERM; a second one doesn't wait for them. None is left."""
  python = tmp_path / "python"
  ending = "exit 75" if presses == 1 else "touch told"
  python.write_text(
    "#!/usr/bin/env bash\n"
    f"trap '{ending}' TERM; echo $$ >pid; touch ready\n"
    "while :; do sleep 0.05; done\n"
  )
  python.chmod(0o755)
  script = _LAUNCH / "local_multiprocess.sh"
  process = subprocess.Popen(
    [script, "--processes=1", "--port=1", "--", *_FLAGS],
    cwd=tmp_path,
    env=os.environ | {"PYTHON": str(python)},
  )
  try:
    _wait_for(tmp_path / "ready")
    child = int((tmp_path / "pid").read_text())
    process.send_signal(signal.SIGINT)
    if presses == 2:
      _wait_for(tmp_path / "told")
      process.send_signal(signal.SIGINT)
    assert process.wait(timeout=_SECONDS) == status
    deadline = time.monotonic() + _SECONDS
    while _is_running(child):
      assert time.monotonic() < deadline
      time.sleep(0.05)
  finally:
    process.terminate()  # which ends the other
    process.wait(timeout=_SECONDS)


# Cloud TPU


def _states(*states):
  return {"state.state": [[0, state] for state in states]}


@pytest.mark.parametrize(
  "states, steps, status",
  [
    (["", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], ["create"], 0),
    (["ACTIVE"], [], 0),
    (["PROVISIONING", "ACTIVE"], [], 0),
    (["SUSPENDED", "ACCEPTED", "ACTIVE"], ["delete", "create"], 0),
    (["FAILED", "ACTIVE"], ["delete", "create"], 0),
    (["", "ACCEPTED", "FAILED"], ["create"], 1),
    (["", "ACTIVE", "SUSPENDED"], ["create"], 0),
    (["", ""], ["create"], 1),
  ],
)
def test_a_slice_is_made_ready(states, steps, status, fakes):
  fakes.answer("gcloud", **_states(*states))
  command = [*_CREATE, "--spot", "--", "--description=for a b"]
  assert _run(*command, fakes=fakes)[0] == status
  calls = [call for call in fakes.calls() if "list" not in call]
  assert [call[4] for call in calls] == steps
  for call in calls:
    assert call[:4] == ["gcloud", "compute", "tpus", "queued-resources"]
    assert call[5] == "a-b" and "--zone=z" in call
    if call[4] == "delete":
      assert {"--force", "--quiet"} < set(call)
    else:
      assert set(call[6:]) == {
        "--node-id=a-b",
        "--zone=z",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--spot",
        "--description=for a b",
      }


def test_nothing_is_requested_where_gcloud_fails(fakes):
  fakes.answer("gcloud", **{"state.state": [[7, ""]]})
  assert _run(*_CREATE, fakes=fakes)[0] == 7
  assert len(fakes.calls()) == 1


def test_a_slice_is_deleted(fakes):
  assert (
    _run("create_tpu.sh", "a-b", "--zone=z", "--delete", fakes=fakes)[0] == 0
  )
  (call,) = fakes.calls()
  assert call[4:6] == ["delete", "a-b"] and "--force" in call


def _workdir(folder):
  """A work directory; a checkpoint in it is not to be fetched."""
  for name in (
    "config.json",
    "train/found/result.json",
    "train/found/20/state",
  ):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)
  return folder


@pytest.mark.parametrize(
  "statuses, state, retries, tries, status",
  [
    ([0], "READY", 0, 1, 0),
    ([75, 75, 0], "READY", 5, 3, 0),
    ([75], "READY", 2, 3, 75),
    ([75], "READY", 0, 1, 75),
    ([2], "READY", 5, 1, 2),
    ([134], "READY", 5, 1, 134),
    ([75], "", 5, 1, 75),
    ([255], "PREEMPTED", 5, 1, 75),  # ssh's own, to machines that are gone
  ],
)
def test_a_run_is_started_again_after_75_alone(
  statuses, state, retries, tries, status, fakes, tmp_path
):
  fakes.answer(
    "gcloud",
    **{
      "detached.sh": [[one, ""] for one in statuses],
      "value(state)": [[0, state]],
    },
  )
  with tarfile.open(fakes.folder / "results.tgz", "w:gz") as tar:
    tar.add(_workdir(tmp_path / "work"), ".")
  results = tmp_path / "my results"
  command = [*_RUN, f"--retries={retries}", f"--results={results}"]
  assert _run(*command, "--", *_FLAGS, fakes=fakes)[0] == status
  runs = [text for text in fakes.commands() if "detached.sh" in text]
  assert len(runs) == tries
  # The same command with another name, by which a lost connection is resumed.
  assert len(set(runs)) == tries
  for text in runs:
    words = shlex.split(text)
    assert words[: words.index("launch/detached.sh")] == [
      "cd",
      "hawis_jax",
      "&&",
    ]
    at = words.index("-m")
    assert words[at:] == [
      "-m",
      "hawis_jax.main",
      *_FLAGS,
      "--workdir=/mnt/hawis_jax/a-b",
      "--distributed",
    ]
  assert (results / "config.json").exists() == (status == 0)


def test_all_workers_install_run_and_mount(fakes):
  fakes.answer("gcloud", **{"detached.sh": [[2, ""]]})
  _run(*_RUN, "--run=x/y", "--", *_FLAGS, fakes=fakes)
  copy, install, run = [call for call in fakes.calls() if call[0] == "gcloud"]
  for call in (copy, install, run):
    assert "--worker=all" in call and "--zone=z" in call
  assert copy[4] == "scp" and copy[-3] == "a-b:"
  assert "mount -t nfs 10.0.0.2:/share /mnt/hawis_jax" in install[-1]
  assert "--constraints=constraints.txt" in install[-1]
  assert "--workdir=/mnt/hawis_jax/x/y" in run[-1]
  syntax = ["bash", "-n", "-c", install[-1].removeprefix("--command=")]
  assert subprocess.run(syntax).returncode == 0


def test_in_a_bucket_nothing_is_mounted(fakes, tmp_path):
  results = f"--results={tmp_path / 'results'}"
  assert _run(*_RUN_BUCKET, results, "--", *_FLAGS, fakes=fakes)[0] == 0
  _, install, run, fetch = [
    call for call in fakes.calls() if call[0] == "gcloud"
  ]
  assert "mount" not in install[-1] and ".[tpu,gcs]" in install[-1]
  syntax = ["bash", "-n", "-c", install[-1].removeprefix("--command=")]
  assert subprocess.run(syntax).returncode == 0
  assert "--workdir=gs://b-1/runs/a-b " in run[-1]
  assert fetch[1:4] == ["storage", "rsync", "--recursive"]
  assert fetch[-2:] == ["gs://b-1/runs/a-b", str(tmp_path / "results")]
  pattern = re.compile(fetch[4].removeprefix("--exclude="))
  for name in ("pretrain/2000/leaves.json", "search/8/state/x", "lock"):
    assert pattern.fullmatch(name)
  for name in ("config.json", "search/result.json", "report/index.html"):
    assert not pattern.match(name)


def test_no_run_starts_where_installing_fails(fakes):
  fakes.answer("gcloud", **{"uv": [[3, ""]]})
  assert _run(*_RUN, "--retries=3", "--", *_FLAGS, fakes=fakes)[0] == 3
  assert not [text for text in fakes.commands() if "detached.sh" in text]


def test_results_are_fetched_without_checkpoints(fakes, tmp_path):
  status, output, _ = _run(*_RUN, "--dry-run", "--", *_FLAGS, fakes=fakes)
  assert status == 0
  lines = [shlex.split(line) for line in output.splitlines() if "-czf" in line]
  command = lines[0][-1].removeprefix("--command=")
  work = _workdir(tmp_path / "work")
  command = command.replace("/mnt/hawis_jax/a-b", str(work))
  subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
  with tarfile.open(tmp_path / "results.tgz") as tar:
    names = {name for name in tar.getnames() if name.endswith(".json")}
    assert names == {"./config.json", "./train/found/result.json"}
    assert not [name for name in tar.getnames() if "20" in name]


# A command that outlives its connection


def _start_detached(name, command):
  return subprocess.Popen(
    [_LAUNCH / "detached.sh", name, *command],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )


def _wait_for(path):
  deadline = time.monotonic() + _SECONDS
  while not path.exists():
    assert time.monotonic() < deadline, path
    time.sleep(0.05)


def test_a_lost_connection_finds_its_run_again(tmp_path):
  name, go = tmp_path / "runs" / "one", tmp_path / "go"
  source = f"echo started; until [ -e {go} ]; do sleep 0.05; done; exit 75"
  first = _start_detached(name, ["bash", "-c", source])
  _wait_for(name.with_suffix(".pid"))
  os.killpg(first.pid, signal.SIGKILL)
  first.communicate(timeout=_SECONDS)
  again = _start_detached(name, ["bash", "-c", source])
  go.touch()
  output, _ = again.communicate(timeout=_SECONDS)
  assert again.returncode == 75
  assert output == "started\n"  # once, and shown again
  late = _start_detached(name, ["bash", "-c", source])
  assert late.communicate(timeout=_SECONDS)[0] == "started\n"
  assert late.returncode == 75


def test_a_run_is_told_to_stop(fakes, tmp_path):
  _run("run_tpu.sh", "a-b", "--zone=z", "--stop", fakes=fakes)
  (stop,) = fakes.commands()
  runs = tmp_path / "hawis_jax_runs"
  ended = _start_detached(runs / "0", ["true"])
  ended.communicate(timeout=_SECONDS)
  # A process of somebody else has the number of the one that ended.
  other = subprocess.Popen(["sleep", "60"])
  (runs / "0.pid").write_text(f"{other.pid}\n")
  ready = tmp_path / "ready"
  source = f"trap 'exit 75' TERM; touch {ready}; while :; do sleep 0.05; done"
  process = _start_detached(runs / "1", ["bash", "-c", source])
  _wait_for(ready)
  subprocess.run(["bash", "-c", stop], cwd=tmp_path, check=True)
  process.communicate(timeout=_SECONDS)
  assert process.returncode == 75
  assert other.poll() is None
  other.kill()
  other.wait()


# SLURM


@pytest.mark.parametrize(
  "status, restarts, requeued",
  [
    (75, "0", True),
    (75, "4", True),
    (75, "5", False),
    (0, "0", False),
    (1, "0", False),
    (2, "0", False),
    (143, "0", False),
  ],
)
def test_slurm_requeues_after_75_alone(status, restarts, requeued, fakes):
  fakes.answer("srun", **{"hawis_jax.main": [[status, ""]]})
  environment = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": restarts}
  environment |= {"SLURM_CPUS_PER_TASK": "3", "PYTHON": "my python"}
  command = ["slurm.sh", "--retries=5", "--", *_FLAGS]
  assert _run(*command, fakes=fakes, **environment)[0] == status
  srun, *others = fakes.calls()
  assert others == ([["scontrol", "requeue", "17"]] if requeued else [])
  assert "--cpus-per-task=3" in srun
  at = srun.index("my python")
  assert srun[at + 1 :] == ["-m", "hawis_jax.main", *_FLAGS, "--distributed"]


def test_slurm_shows_its_command(fakes):
  status, output, _ = _run(
    "slurm.sh", "--dry-run", "--", *_FLAGS, fakes=fakes, PYTHON="python"
  )
  assert status == 0
  words = shlex.split(output)
  assert words[0] == "srun"
  at = words.index("python")
  assert words[at:] == [
    "python",
    "-m",
    "hawis_jax.main",
    *_FLAGS,
    "--distributed",
  ]


def test_sbatch_reads_its_options():
  """It stops reading at the first line that is no comment."""
  lines = (_LAUNCH / "slurm.sh").read_text().splitlines()
  end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
  options = [line for line in lines if line.startswith("#SBATCH")]
  assert options and options == [
    line for line in lines[:end] if line.startswith("#SBATCH")
  ]
  # Without B: at the tasks, not at the script.
  assert "#SBATCH --signal=TERM@300" in options
  assert "#SBATCH --requeue" in options


# GKE


_KINDS = {
  "JobSet": "JobsetV1alpha2JobSet",
  "PersistentVolumeClaim": "IoK8sApiCoreV1PersistentVolumeClaim",
  "Pod": "IoK8sApiCoreV1Pod",
}


def _kubernetes():
  """All objects of the launch files, by kind."""
  objects = {}
  for path in _LAUNCH.glob("*.yaml"):
    for content in yaml.safe_load_all(path.read_text()):
      assert content["kind"] not in objects
      objects[content["kind"]] = content
  return objects


def _lost(value, read, path=""):
  """Paths of what a reader of a file has left out or changed."""
  if isinstance(value, dict):
    for key, item in value.items():
      if not isinstance(read, dict) or key not in read:
        yield f"{path}.{key}"
      else:
        yield from _lost(item, read[key], f"{path}.{key}")
  elif isinstance(value, list) and len(value) == len(read):
    for index, items in enumerate(zip(value, read, strict=True)):
      yield from _lost(*items, f"{path}[{index}]")
  elif value != read:
    yield f"{path}: {value!r} read as {read!r}"


@pytest.mark.parametrize("kind", _KINDS)
def test_kubernetes_knows_every_field(kind):
  """Models that are generated from the APIs drop what they don't know."""
  models = pytest.importorskip("kubeflow_trainer_api.models")
  content, model = _kubernetes()[kind], getattr(models, _KINDS[kind])
  assert list(_lost(content, model.from_dict(content).to_dict())) == []
  content["spec"]["unknown"] = 1
  lost = list(_lost(content, model.from_dict(content).to_dict()))
  assert lost == [".spec.unknown"]


def _job():
  """The Job of the JobSet, its pod and its container."""
  jobs = _kubernetes()["JobSet"]["spec"]["replicatedJobs"]
  job = jobs[0]["template"]["spec"]
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  return job, pod, container


def test_jobset_restarts_on_all_but_2():
  jobset = _kubernetes()["JobSet"]
  assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  policy = jobset["spec"]["failurePolicy"]
  assert policy["maxRestarts"] > 0
  assert policy["restartStrategy"] in ("Recreate", "BlockingRecreate")
  # A failure without a rule restarts; PodFailurePolicy is the reason of a Job
  # that a rule of its podFailurePolicy failed.
  (rule,) = policy["rules"]
  assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
  assert rule["action"] == "FailJobSet"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  job, pod, container = _job()
  (fatal,) = job["podFailurePolicy"]["rules"]
  assert fatal["action"] == "FailJob"
  assert fatal["onExitCodes"] == {
    "containerName": container["name"],
    "operator": "In",
    "values": [2],
  }
  assert pod["restartPolicy"] == "Never"  # podFailurePolicy is refused else
  assert job["backoffLimit"] == 0


def test_jobset_fills_its_slice():
  job, pod, container = _job()
  x, y = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
  chips = container["resources"]["limits"]["google.com/tpu"]
  assert job["parallelism"] * chips == int(x) * int(y)
  assert job["completions"] == job["parallelism"]


def test_jobset_runs_main_in_the_shared_folder():
  _, pod, container = _job()
  (mount,) = container["volumeMounts"]
  (volume,) = pod["volumes"]
  assert mount["name"] == volume["name"]
  claim = _kubernetes()["PersistentVolumeClaim"]
  assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
  for spec in (pod, _kubernetes()["Pod"]["spec"]):
    (volume,) = spec["volumes"]
    named = volume["persistentVolumeClaim"]["claimName"]
    assert named == claim["metadata"]["name"]
  arguments = dict(
    argument.removeprefix("--").partition("=")[::2]
    for argument in container["args"]
  )
  assert "distributed" in arguments
  assert arguments["workdir"].startswith(mount["mountPath"])
  assert (_ROOT / arguments["config"]).exists()
  fields = main.config_lib.flatten(main.config_lib.default())
  for name in arguments:
    known = name.removeprefix("config.") in fields or name in flags.FLAGS
    assert known, name


# Image


def _instructions():
  lines = (_LAUNCH / "Dockerfile").read_text().splitlines()
  text = "\n".join(line for line in lines if not line.startswith("#"))
  text = text.replace("\\\n", "")
  return [line.split(maxsplit=1) for line in text.splitlines() if line]


@pytest.mark.parametrize("extra", ["", "tpu", "cuda"])
def test_image_installs_the_extra(extra, fakes, tmp_path):
  """Its commands, with a pip that remembers what it was told."""
  (install, _) = [text for name, text in _instructions() if name == "RUN"]
  for folder in ("hawis_jax", "build", "hawis_jax.egg-info"):
    (tmp_path / "app" / folder).mkdir(parents=True)
  environment = os.environ | {"EXTRA": extra}
  environment["PATH"] = f"{fakes.folder}{os.pathsep}{os.environ['PATH']}"
  command = ["sh", "-c", install]
  subprocess.run(command, cwd=tmp_path / "app", env=environment, check=True)
  (call,) = fakes.calls()
  assert call[:4] == ["python", "-m", "pip", "install"]
  assert call[call.index("-c") + 1] == "constraints.txt"
  assert call[-1] == (f".[gcs,{extra}]" if extra else ".[gcs]")
  if extra:
    setup = (_ROOT / "setup.cfg").read_text()
    assert re.search(rf"^{extra} =$", setup, re.MULTILINE)
  environment["EXTRA"] = "gpu"
  result = subprocess.run(
    command, cwd=tmp_path, env=environment, capture_output=True, text=True
  )
  assert result.returncode == 2
  assert "EXTRA: got 'gpu', allowed are tpu, cuda" in result.stderr
  assert len(fakes.calls()) == 1


def test_image_runs_main_and_not_as_root():
  instructions = _instructions()
  names = [name for name, _ in instructions]
  assert names[0] == "FROM"
  values = dict(instructions)
  assert values["USER"] != "0" and values["USER"].isdigit()
  assert names.index("USER") > len(names) - 1 - names[::-1].index("RUN")
  # A list: a shell would keep SIGTERM to itself.
  assert json.loads(values["ENTRYPOINT"]) == ["python", "-m", "hawis_jax.main"]
  for name, text in instructions:
    if name == "COPY":
      *sources, _ = text.split()
      assert all((_ROOT / source).exists() for source in sources), text


def test_image_passes_hadolint():
  if not shutil.which("hadolint"):
    pytest.skip("needs hadolint")
  command = ["hadolint", _LAUNCH / "Dockerfile"]
  result = subprocess.run(command, capture_output=True, text=True)
  assert result.returncode == 0, result.stdout


def test_the_readme_names_every_file():
  text = (_LAUNCH / "README.md").read_text()
  names = {path.name for path in _LAUNCH.iterdir()} - {"README.md"}
  assert names == {name for name in names if f"`{name}`" in text}
