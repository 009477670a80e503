"""The page that takes an image by drag and drop. It loads nothing from anywhere else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping

TEXTS = (
    "title",
    "drop",
    "token",
    "anomalous",
    "normal",
    "unreadable",
    "score",
    "p_value",
    "threshold",
    "regions",
    "map",
    "busy",
    "failed",
    "interface",
)
"""Names of what the page says."""

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
#drop { border: 2px dashed #777; border-radius: 8px; padding: 2rem; text-align: center; cursor: pointer; }
#drop.over { background: #eef4ff; }
.card { border: 1px solid #ccc; border-radius: 8px; margin-top: 1rem; padding: 1rem; }
.anomalous { color: #a30000; } .normal { color: #005f2b; } .unreadable { color: #7a4b00; }
canvas, .card img { max-width: 48%; margin-right: 1%; vertical-align: top; }
td { padding-right: 1.5rem; }
"""

_SCRIPT = """
const texts = JSON.parse(document.getElementById("texts").textContent);
const drop = document.getElementById("drop");
const pick = document.getElementById("pick");
const token = document.getElementById("token");
drop.onclick = () => pick.click();
pick.onchange = () => { judgeAll(pick.files); pick.value = ""; };
drop.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
drop.ondragleave = () => drop.classList.remove("over");
drop.ondrop = (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  judgeAll(event.dataTransfer.files);
};
async function judgeAll(files) { for (const file of files) { await judge(file); } }
function add(parent, kind, text) {
  const made = document.createElement(kind);
  if (text !== undefined) { made.textContent = text; }
  parent.append(made);
  return made;
}
async function judge(file) {
  const card = document.createElement("section");
  card.className = "card";
  document.getElementById("found").prepend(card);
  const head = add(card, "h2", file.name);
  const form = new FormData();
  form.append("image", file, file.name);
  const headers = token && token.value ? { Authorization: "Bearer " + token.value } : {};
  let answer, body;
  try {
    answer = await fetch("predict?map=true", { method: "POST", body: form, headers });
    body = await answer.json();
  } catch (error) { add(card, "p", texts.failed + " " + error.message); return; }
  if (!body.results) {
    add(card, "p", (answer.status === 429 ? texts.busy : texts.failed) + " " + body.error);
    return;
  }
  const row = body.results[0];
  head.textContent = texts[row.verdict] + " \\u2013 " + file.name;
  head.className = row.verdict;
  if (row.reason) { add(card, "p", row.reason); return; }
  const table = add(card, "table");
  const regions = row.regions || [];
  const figures = [[texts.score, row.pred_score], [texts.threshold, row.threshold],
                   [texts.p_value, row.p_value], [texts.regions, regions.length]];
  for (const [name, value] of figures) {
    const line = add(table, "tr");
    add(line, "td", name);
    add(line, "td", value === null ? "" : String(value));
  }
  try { draw(add(card, "canvas"), await createImageBitmap(file), regions); } catch (error) { }
  if (row.map) {
    const shown = add(card, "img");
    shown.alt = texts.map;
    shown.src = "data:image/png;base64," + row.map.png;
  }
}
function draw(canvas, picture, regions) {
  canvas.width = picture.width;
  canvas.height = picture.height;
  const pen = canvas.getContext("2d");
  pen.drawImage(picture, 0, 0);
  pen.strokeStyle = "#e00000";
  pen.lineWidth = Math.max(1, picture.width / 200);
  for (const r of regions) { pen.strokeRect(r.x0, r.y0, r.x1 - r.x0, r.y1 - r.y0); }
}
"""


def _digest(text: str) -> str:
    """Give what a policy names a script by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


PAGE_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src 'sha256-{_digest(_SCRIPT)}'; style-src 'unsafe-inline'; "
        "img-src data: blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""They let a browser run the page's own script alone, and load nothing from elsewhere."""


def drop_page(language: str, texts: Mapping[str, str], sentence: str, needs_token: bool) -> str:
    """Write the page.

    Args:
        language: of the texts.
        texts: what it says, by `TEXTS`.
        sentence: what is promised of the verdicts, may be empty.
        needs_token: ask for a token.
    """
    # Nothing in a text may end the element that holds it.
    held = json.dumps(dict(texts), ensure_ascii=False).replace("<", "\\u003c")
    token = ""
    if needs_token:
        label = html.escape(texts["token"])
        token = (
            f'<p><label>{label} <input id="token" type="password" autocomplete="off"></label></p>'
        )
    return f"""<!doctype html>
<html lang="{language}"><head><meta charset="utf-8"><title>{html.escape(texts["title"])}</title>
<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>
<h1>{html.escape(texts["title"])}</h1>
<p>{html.escape(sentence)}</p>{token}
<div id="drop">{html.escape(texts["drop"])}</div>
<input id="pick" type="file" multiple hidden>
<div id="found"></div>
<p><a href="docs">{html.escape(texts["interface"])}</a></p>
<script type="application/json" id="texts">{held}</script>
<script>{_SCRIPT}</script></body></html>
"""
