// Tables without room, nets that are switched off, and the value of the nearest
// point. Without this script such tables scroll, all nets are shown, and a
// browser shows the titles by itself.
"use strict";
{
  const fit = () => {
    for (const table of document.querySelectorAll(".wide table")) {
      table.classList.remove("cards");
      const place = table.parentNode;
      const isWide = place.scrollWidth > place.clientWidth;
      table.classList.toggle("cards", isWide);
    }
  };
  fit();
  addEventListener("resize", fit);
  document.addEventListener("toggle", fit, true); // of details, that hid one

  const reach = 16; // pixels from the pointer
  for (const group of document.querySelectorAll(".nets")) {
    group.hidden = false;
    group.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", shown);
      for (const part of document.querySelectorAll("svg [data-net]")) {
        if (part.dataset.net !== button.dataset.of) continue;
        part.style.display = shown ? "" : "none";
      }
    });
  }

  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.append(tip);

  // Titles become tips of ours: at once, and on a touch.
  for (const svg of document.querySelectorAll("svg")) {
    const marks = [];
    for (const title of svg.querySelectorAll("title")) {
      marks.push([title.parentNode, title.textContent]);
      title.remove();
    }
    const distance = ([mark], x, y) => {
      const box = mark.getBoundingClientRect();
      if (!box.width && !box.height) return Infinity; // not shown
      if (mark.tagName === "use") {
        const across = (box.left + box.right) / 2 - x;
        return Math.hypot(across, (box.top + box.bottom) / 2 - y);
      }
      return mark.matches(":hover") ? reach : Infinity;
    };
    const show = (event) => {
      const [x, y] = [event.clientX, event.clientY];
      let best = null;
      let least = reach + 1;
      for (const mark of marks) {
        const away = distance(mark, x, y);
        if (away < least) [best, least] = [mark, away];
      }
      tip.hidden = !best;
      if (!best) return;
      tip.textContent = best[1];
      const right = Math.max(0, innerWidth - tip.offsetWidth - 8);
      const below = y + tip.offsetHeight + 24 < innerHeight;
      tip.style.left = Math.min(x + 12, right) + "px";
      tip.style.top = (below ? y + 16 : y - tip.offsetHeight - 8) + "px";
    };
    svg.addEventListener("pointermove", show);
    svg.addEventListener("pointerdown", show);
    svg.addEventListener("pointerleave", () => { tip.hidden = true; });
  }
}
