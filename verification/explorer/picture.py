"""A picture in a notebook that tells where it was clicked and shows marks: the one piece of JavaScript of the explorer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anywidget
import traitlets

SCRIPT = """
function render({ model, el }) {
  const sheet = document.createElement("div");
  const image = document.createElement("img");
  sheet.className = "plumecast-map";
  image.draggable = false;
  sheet.append(image);
  el.append(sheet);

  let shown = "";
  function show() {
    const before = shown;
    shown = URL.createObjectURL(new Blob([model.get("png")], { type: "image/png" }));
    image.onload = () => before && URL.revokeObjectURL(before);
    image.src = shown;
  }

  function mark() {
    sheet.querySelectorAll("span").forEach((one) => one.remove());
    for (const [across, down] of model.get("marks")) {
      const ring = document.createElement("span");
      ring.style.left = `${100 * across}%`;
      ring.style.top = `${100 * down}%`;
      sheet.append(ring);
    }
  }

  const describe = () => { image.alt = model.get("alt"); };
  const fade = () => sheet.classList.toggle("stale", model.get("stale"));

  image.addEventListener("click", (event) => {
    const box = image.getBoundingClientRect();
    model.send({ across: (event.clientX - box.left) / box.width, down: (event.clientY - box.top) / box.height });
  });
  const follows = Object.entries({ png: show, alt: describe, marks: mark, stale: fade });
  for (const [name, follow] of follows) {
    model.on(`change:${name}`, follow);
    follow();
  }
  return () => {
    follows.forEach(([name, follow]) => model.off(`change:${name}`, follow));
    URL.revokeObjectURL(shown);
  };
}
export default { render };
"""

STYLE = """
.plumecast-map { position: relative; line-height: 0; background: white; }
.plumecast-map img { width: 100%; cursor: crosshair; }
.plumecast-map.stale img { opacity: 0.25; }
.plumecast-map span { position: absolute; width: 10px; height: 10px; margin: -8px 0 0 -8px; border: 3px solid #d4007a;
  border-radius: 50%; box-shadow: 0 0 0 1.5px white, inset 0 0 0 1.5px white; pointer-events: none; }
"""


class ClickablePicture(anywidget.AnyWidget):
    """A PNG. alt: what it shows, in words. marks: shares of width and height at which rings are drawn. stale: shown faded."""

    _esm = SCRIPT
    _css = STYLE
    png = traitlets.Bytes(b"").tag(sync=True)
    alt = traitlets.Unicode("").tag(sync=True)
    marks: traitlets.List[Any] = traitlets.List().tag(sync=True)
    stale = traitlets.Bool(False).tag(sync=True)

    def on_click(self, callback: Callable[[float, float], None]) -> None:
        """Call back with the share of the width from the left and of the height from the top."""

        def told(_: Any, content: dict[str, float], __: Any) -> None:
            callback(float(content["across"]), float(content["down"]))

        self.on_msg(told)
