"""An emulator of Google Cloud Storage, with generations as the real one has."""

import contextlib
import http
import logging
import os
import socket
import socketserver
import threading

from gcp_storage_emulator import exceptions
from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import objects

BUCKET = "tests"
_UPLOADS = "_media_upload", "_multipart_upload", "_create_resumable_upload"


@contextlib.contextmanager
def running():
  """Serves an empty bucket; yields the environment variables to find it by."""
  logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  before = {name: getattr(objects, name) for name in (*_UPLOADS, "download")}
  lock = threading.Lock()
  for name in _UPLOADS:
    setattr(objects, name, _conditional(before[name], lock))
  objects.download = _with_generation(before["download"])
  for _, handlers in server.HANDLERS:
    for method, handler in handlers.items():
      if handler is objects.delete:
        handlers[method] = _conditional(handler, lock)
  serving = server.create_server(
    "localhost", port, in_memory=True, default_bucket=BUCKET
  )
  serving.start()
  # gcsfs reads the first of them, TensorStore the second.
  variables = {
    "STORAGE_EMULATOR_HOST": f"http://localhost:{port}",
    "TENSORSTORE_GCS_HTTP_URL": f"http://localhost:{port}",
  }
  os.environ |= variables
  # Of clients that were killed, or that need no more of an answer.
  handle_error = socketserver.BaseServer.handle_error
  socketserver.BaseServer.handle_error = lambda *_: None
  try:
    yield variables
  finally:
    socketserver.BaseServer.handle_error = handle_error
    for name in variables:
      del os.environ[name]
    serving.stop()
    for name, function in before.items():
      setattr(objects, name, function)


def _conditional(change, lock):
  """Minds `ifGenerationMatch`: of what is replaced or deleted; 0: nothing."""

  def conditional(request, response, storage, *args, **kwargs):
    (wanted,) = request.query.get("ifGenerationMatch", [None])
    if wanted is None:
      return change(request, response, storage, *args, **kwargs)
    if "object_id" in request.params:
      name = request.params["object_id"]
    elif "name" in request.query:
      (name,) = request.query["name"]
    else:
      name = request.data["meta"]["name"]
    with lock:
      if _generation(storage, request.params["bucket_name"], name) == wanted:
        return change(request, response, storage, *args, **kwargs)
    response.status = http.HTTPStatus.PRECONDITION_FAILED
    return None

  return conditional


def _with_generation(download):
  """Tells the generation, by which TensorStore writes again."""

  def told(request, response, storage, *args, **kwargs):
    bucket, name = (request.params[x] for x in ("bucket_name", "object_id"))
    response["x-goog-generation"] = _generation(storage, bucket, name)
    return download(request, response, storage, *args, **kwargs)

  return told


def _generation(storage, bucket, name):
  try:
    return storage.get_file_obj(bucket, name)["generation"]
  except exceptions.NotFound:
    return "0"
