"""The report's pages in a browser: nothing is cut off, nor white on dark."""

import json
import os
import shutil
import subprocess

import pytest

from hawis_jax.report import compare

# What is seen of a page with all its details open.
_LOOK = """
(async () => {
  for (const each of document.querySelectorAll("details")) each.open = true;
  await new Promise((then) => setTimeout(then, 300));
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const behind = (mark) => {
    const color = getComputedStyle(mark).backgroundColor;
    const isClear = numbers(color)[3] === 0;
    return isClear ? behind(mark.parentElement) : numbers(color);
  };
  const figures = [...document.querySelectorAll("svg")].map((svg) => {
    const whole = svg.getBoundingClientRect();
    const isLarge = (shape) => {
      const box = shape.getBoundingClientRect();
      return box.width * box.height > 0.3 * whole.width * whole.height;
    };
    const fills = (marks) => marks.map((mark) => getComputedStyle(mark).fill)
      .filter((fill) => fill.startsWith("rgb")).map(numbers);
    const shapes = [...svg.querySelectorAll("path, rect")].filter(isLarge);
    return { back: behind(svg), areas: fills(shapes),
      texts: fills([...svg.querySelectorAll("text")]) };
  });
  const root = document.documentElement;
  const cut = [...document.querySelectorAll(".wide:has(table)")]
    .filter((place) => place.scrollWidth > place.clientWidth)
    .map((place) => place.getAttribute("aria-labelledby"));
  return { width: innerWidth, whole: root.scrollWidth, shown: root.clientWidth,
    isDark: matchMedia("(prefers-color-scheme: dark)").matches, cut, figures };
})()
"""


class _Browser:
  """A headless Chromium, by the DevTools protocol through two pipes."""

  def __init__(self, program, folder):
    read, self._out = os.pipe()
    self._in, write = os.pipe()
    self._process = subprocess.Popen(
      [
        *("bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "-", program),
        *("--headless=new", "--no-sandbox", "--disable-gpu"),
        *("--remote-debugging-pipe", f"--user-data-dir={folder}"),
      ],
      pass_fds=(read, write),
      stderr=subprocess.DEVNULL,
    )
    os.close(read)
    os.close(write)
    self._number, self._rest, self._session = 0, b"", {}
    target = self.ask("Target.createTarget", url="about:blank")["targetId"]
    attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
    self._session = {"sessionId": attached["sessionId"]}
    self.ask("Page.enable")

  def ask(self, method, **params):
    """Returns the answer to a command."""
    self._number += 1
    message = {"id": self._number, "method": method, "params": params}
    text = json.dumps(message | self._session)
    os.write(self._out, text.encode() + b"\0")
    answer = self._wait(lambda each: each.get("id") == self._number)
    assert "error" not in answer, answer
    return answer["result"]

  def _wait(self, is_wanted):
    while True:
      while b"\0" not in self._rest:
        more = os.read(self._in, 1 << 20)
        assert more, "the browser has ended"
        self._rest += more
      text, _, self._rest = self._rest.partition(b"\0")
      message = json.loads(text)
      if is_wanted(message):
        return message

  def look(self, page, width, scheme):
    """Returns what `_LOOK` sees of a page."""
    self.ask(
      "Emulation.setDeviceMetricsOverride",
      **dict(width=width, height=900, deviceScaleFactor=1, mobile=False),
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    self.ask("Emulation.setEmulatedMedia", features=[feature])
    self.ask("Page.navigate", url=page.as_uri())
    self._wait(lambda each: each.get("method") == "Page.loadEventFired")
    how = dict(returnByValue=True, awaitPromise=True)
    return self.ask("Runtime.evaluate", expression=_LOOK, **how)["result"][
      "value"
    ]

  def close(self):
    self._process.kill()
    self._process.wait()
    os.close(self._in)
    os.close(self._out)


def _lightness(color):
  """Relative luminance (WCAG 2) of a colour, from 0 to 1."""
  shares = [part / 255 for part in color[:3]]
  linear = [
    s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares
  ]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one, other):
  low, high = sorted([_lightness(one), _lightness(other)])
  return (high + 0.05) / (low + 0.05)


@pytest.fixture
def browser(tmp_path):
  names = ("chromium", "chromium-browser", "google-chrome")
  program = next(filter(None, map(shutil.which, names)), None)
  if not program:
    pytest.skip("needs chromium, which is not installed")
  browser = _Browser(program, tmp_path / "profile")
  yield browser
  browser.close()


@pytest.mark.slow
def test_pages_fit_every_screen_in_light_and_dark(browser, finished, tmp_path):
  other = shutil.copytree(finished, tmp_path / "other")
  pages = [
    finished / "report" / "index.html",
    compare.run([finished, other], tmp_path / "compared"),
  ]
  for page in pages:
    for width in (390, 768, 1440):
      for scheme in ("light", "dark"):
        seen = browser.look(page, width, scheme)
        place = (page.parent.name, width, scheme)
        assert (seen["width"], seen["isDark"]) == (width, scheme == "dark")
        assert seen["whole"] <= seen["shown"], place
        assert not seen["cut"], place
        assert seen["figures"]
        for figure in seen["figures"]:
          assert figure["texts"]
          for color in [figure["back"], *figure["areas"]]:
            assert (_lightness(color) < 0.2) == (scheme == "dark"), place
          for color in figure["texts"]:
            assert _contrast(color, figure["back"]) > 4.5, (place, color)
