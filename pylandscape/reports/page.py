"""The page: HTML with its style and its script. It asks for nothing from anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from .panes import Pane
from .sections import Section, Table

# Nothing is fetched: whatever a script might ask for, the browser refuses. plotly makes functions
# for WebGL at run time.
POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline' 'unsafe-eval'; worker-src blob:"
)
STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --ground: #ffffff;
  --card: #f6f8fa; --rule: #d1d9e0; --ok: #1a7f37; --note: #0969da; --warning: #9a6700;
  --error: #cf222e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1;
  --ground: #0d1117; --card: #161b22; --rule: #3d444d; --ok: #3fb950; --note: #58a6ff;
  --warning: #d29922; --error: #f85149; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 24px; color: var(--ink);
  background: var(--ground); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 0 0 12px; }
h3 { font-size: 15px; margin: 16px 0 6px; }
.soft, figcaption { color: var(--soft); font-size: 13px; }
.said { border-left: 4px solid var(--warning); padding: 6px 12px; background: var(--card); }
section { border: 1px solid var(--rule); border-radius: 8px; padding: 18px; margin: 20px 0; }
.panes { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr));
  gap: 16px; margin: 14px 0; }
figure { margin: 0; min-width: 0; }
.live { display: none; width: 100%; } .on .live { display: block; } .on .still { display: none; }
.still { width: 100%; max-width: 620px; background: #ffffff; border-radius: 6px; padding: 8px; }
table { border-collapse: collapse; font-size: 13px; } .wide { overflow-x: auto; }
th, td { text-align: left; padding: 3px 14px 3px 0; vertical-align: top;
  border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; }
th { white-space: nowrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
ul.verdict { list-style: none; padding: 0; margin: 0; font-size: 14px; }
.verdict b { display: inline-block; min-width: 5.5em; }
.ok b { color: var(--ok); } .note b { color: var(--note); }
.warning b { color: var(--warning); } .error b { color: var(--error); }
pre { overflow-x: auto; font-size: 12px; background: var(--card); padding: 10px; }
@media print { .live { display: none !important; } .still { display: block !important; }
  section { break-inside: avoid; border: none; padding: 0; } }
"""
SCRIPT = """
(function () {
  "use strict";
  if (!window.Plotly) { return; }
  const scenes = JSON.parse(document.getElementById("scenes").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  function colours() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    return { ink: of("--ink"), rule: of("--rule"), ground: of("--ground"), card: of("--card") };
  }
  function painted(layout) {
    const c = colours();
    const axis = { color: c.ink, gridcolor: c.rule, zerolinecolor: c.rule, linecolor: c.rule };
    const wall = { backgroundcolor: c.card, showbackground: true };
    const found = Object.assign({}, layout, { paper_bgcolor: c.ground, plot_bgcolor: c.ground,
      font: { color: c.ink, size: 12 } });
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis/.test(key)) { found[key] = Object.assign({}, axis, layout[key]); }
    }
    if (layout.scene) {
      found.scene = Object.assign({}, layout.scene);
      for (const key of ["xaxis", "yaxis", "zaxis"]) {
        found.scene[key] = Object.assign({}, axis, wall, layout.scene[key]);
      }
    }
    return found;
  }
  function hasWebGL() {
    try {
      const context = document.createElement("canvas").getContext("webgl");
      const lose = context && context.getExtension("WEBGL_lose_context");
      if (lose) { lose.loseContext(); }
      return Boolean(context);
    } catch (error) { return false; }
  }
  const webgl = hasWebGL();
  const options = { responsive: true, displaylogo: false };
  for (const [name, scene] of Object.entries(scenes)) {
    if (scene.layout.scene && !webgl) { continue; }
    const place = document.getElementById(name);
    const pane = place.parentElement;
    pane.classList.add("on");
    Plotly.newPlot(place, scene.data, painted(scene.layout), options).catch(function () {
      pane.classList.remove("on");
    });
  }
  dark.addEventListener("change", function () {
    for (const [name, scene] of Object.entries(scenes)) {
      const place = document.getElementById(name);
      if (place.parentElement.classList.contains("on")) {
        const layout = painted(scene.layout);
        if (layout.scene && place.layout.scene.camera) {
          layout.scene.camera = place.layout.scene.camera;
        }
        Plotly.react(place, scene.data, layout, options);
      }
    }
  });
})();
"""


def page_of(
    title: str, sections: Sequence[Section], notes: Sequence[str], plotly: str | None, maker: str
) -> str:
    """The whole page.

    Args:
        notes: said at the top.
        plotly: its script, or None for a static page.
        maker: who wrote it, for the foot.
    """
    body = [f"<h1>{escape(title)}</h1>"]
    body += [f'<p class="said">{escape(text)}</p>' for text in notes]
    body += [_section(section) for section in sections]
    body.append(f'<p class="soft">{escape(maker)}</p>')
    scenes = {pane.name: pane.scene for s in sections for pane in s.panes if pane.scene is not None}
    if plotly is not None and scenes:
        body.append(f'<script type="application/json" id="scenes">{_json(scenes)}</script>')
        body.append(f"<script>{plotly.replace('</script', '<' + chr(92) + '/script')}</script>")
        body.append(f"<script>{SCRIPT}</script>")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    inner = "\n".join(body)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{inner}\n</body></html>\n'
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.heading)}</h2>"]
    if section.facts:
        parts.append(_pairs(section.facts))
    parts += [f'<p class="said">{escape(text)}</p>' for text in section.notes]
    if section.panes:
        parts.append(f'<div class="panes">{"".join(_pane(p) for p in section.panes)}</div>')
    parts += [_table(table) for table in section.tables]
    if section.findings:
        lines = "".join(
            f'<li class="{escape(level)}"><b>{escape(level)}</b> {escape(name)}: '
            f"{escape(message)}</li>"
            for level, name, message in section.findings
        )
        parts.append(f'<h3>Is the picture right?</h3><ul class="verdict">{lines}</ul>')
    if section.provenance or section.info:
        inner = _pairs(section.provenance) + (
            f"<pre>{escape(section.info)}</pre>" if section.info else ""
        )
        parts.append(f"<details><summary>Where it comes from</summary>{inner}</details>")
    return f"<section>{''.join(parts)}</section>"


def _pane(pane: Pane) -> str:
    live = f'<div class="live" id="{pane.name}"></div>' if pane.scene is not None else ""
    return (
        f'<figure>{live}<img class="still" alt="{escape(pane.caption)}" '
        f'src="data:image/png;base64,{pane.picture}">'
        f"<figcaption>{escape(pane.caption)}</figcaption></figure>"
    )


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows)
    return f'<div class="wide"><table>{lines}</table></div>' if rows else ""


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(str(h))}</th>" for h in table.head)
    rows = "".join(
        "<tr>" + "".join(f'<td class="number">{escape(str(c))}</td>' for c in row) + "</tr>"
        for row in table.rows
    )
    return (
        f'<h3>{escape(table.caption)}</h3><div class="wide"><table><tr>{head}</tr>{rows}'
        "</table></div>"
    )


def _json(value: Any) -> str:
    """For a script element: nothing in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
