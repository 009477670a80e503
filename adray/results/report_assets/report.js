"use strict";
// Draws the report from the JSON beside it. Everything from outside is put in as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const linked = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
const state = { language: startLanguage(), metric: data.metrics.find((m) => data.rankings[m]) || data.metrics[0], filter: linked.get("show") || "", sort: {}, cost: linked.get("cost") || "latency_ms", rates: {}, viewed: [], severity: Number(linked.get("severity")) || 3, cell: null, viewing: null };
if (data.metrics.includes(linked.get("metric"))) state.metric = linked.get("metric");
for (const [table, key, way] of linked.getAll("sort").map((one) => JSON.parse(one))) state.sort[table] = { key, down: way === "down" };
for (const [part, place] of linked.getAll("rate").map((one) => JSON.parse(one))) state.rates[part] = place;
const byCell = groupTrials();

// The reader's choice wins over that of who wrote the page, and that over the browser's language.
function startLanguage() {
  if (data.sentences[linked.get("language")]) return linked.get("language");
  try { const kept = localStorage.getItem("adray-language"); if (kept === "en" || kept === "ko") return kept; } catch { /* a file without storage */ }
  if (data.language) return data.language;
  return (navigator.language || "").startsWith("ko") ? "ko" : "en";
}
// A link that opens the page as it is seen now: filters, orders, places of sliders, and what is open.
function keepState() {
  const values = new URLSearchParams({ ...(state.filter ? { show: state.filter } : {}), metric: state.metric, language: state.language });
  if (state.cost !== "latency_ms") values.append("cost", state.cost);
  if (state.severity !== 3) values.append("severity", state.severity);
  for (const [table, { key, down }] of Object.entries(state.sort)) values.append("sort", JSON.stringify([table, key, down ? "down" : "up"]));
  for (const [part, place] of Object.entries(state.rates)) values.append("rate", JSON.stringify([part, place]));
  if (state.cell) values.append("cell", JSON.stringify(state.cell));
  if (state.viewing !== null) values.append("picture", state.viewing);
  history.replaceState(null, "", `#${values}`);
}
// What a link says is open. A model or a part of another page opens nothing.
function openLinked() {
  if (linked.get("cell")) {
    const [model, part] = JSON.parse(linked.get("cell")), m = data.configurations.indexOf(model), c = data.cells.findIndex((_, i) => cellName(i) === part);
    if (m >= 0 && c >= 0) showCell(m, c);
  }
  const picture = linked.get("picture");
  if (picture !== null && state.viewed[Number(picture)]) viewPicture(Number(picture));
}
function t(key) { return data.sentences[state.language][key]; }
function say(key, values) { return t(key).replace(/\{(\w+)\}/g, (_, name) => values[name]); }
// A data set that is one category has the name of the set, as everywhere.
function cellName(i) { const [dataset, category] = data.cells[i]; return [dataset, "all"].includes(category) ? dataset : `${dataset}/${category}`; }
function groupTrials() {
  const groups = new Map();
  for (const trial of data.trials) {
    const key = trial.m + "," + trial.c;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(trial);
  }
  return groups;
}

// Small builders

function make(tag, attributes, ...children) {
  const svg = ["svg", "g", "path", "circle", "text", "line", "rect", "title", "pattern"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}
function body(id, ...children) { document.querySelector(`#${id} .body`).replaceChildren(...children.filter((c) => c)); }
function number(value, digits = 4) { return value === null || value === undefined ? "n/a" : value.toFixed(digits); }
function short(value) { return value === null || value === undefined ? "n/a" : value >= 100 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3))); }
function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  if (minutes < 1) return `< 1 ${t("minutes")}`;
  return minutes < 60 ? `${minutes} ${t("minutes")}` : `${Math.floor(minutes / 60)} ${t("hours")} ${minutes % 60} ${t("minutes")}`;
}
function address(path) { return path.split("/").map(encodeURIComponent).join("/"); }
function matches(...names) {
  const words = state.filter.toLowerCase().split(/\s+/).filter((w) => w);
  const text = names.join(" ").toLowerCase();
  return words.every((word) => text.includes(word));
}
function note(key) { return make("p", { class: "quiet" }, t(key)); }

// A table whose columns sort: columns [{key, title, value(row), show(row)?, text?}]

function sortable(id, columns, rows, caption) {
  const chosen = state.sort[id];
  const sorted = rows.slice();
  const column = chosen && columns.find((c) => c.key === chosen.key);
  if (column) sorted.sort((a, b) => compare(column.value(a), column.value(b), chosen.down));
  const head = columns.map((c) => {
    const direction = column === c ? (chosen.down ? "descending" : "ascending") : null;
    return make("th", { scope: "col", class: c.text ? "text" : null, "aria-sort": direction },
      make("button", { type: "button", "data-sort": c.key, title: c.hint, onclick: () => sortBy(id, c) }, c.title));
  });
  const lines = sorted.map((row) => make("tr", {}, ...columns.map((c) => {
    const shown = c.show ? c.show(row) : c.value(row);
    return make("td", { class: [c.text && "text", c.wrap && "wrap"].filter((x) => x).join(" ") || null }, shown === null ? "n/a" : shown);
  })));
  return scrolling(caption, make("table", { id: `table-${id}` }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...lines)));
}
// A wide table moves in its own frame, which the keyboard reaches; the page stays where it is.
function scrolling(caption, table) { return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, table); }
function sortBy(id, column) {
  const old = state.sort[id];
  state.sort[id] = { key: column.key, down: old && old.key === column.key ? !old.down : !column.text };
  keepState();
  draw();
  document.querySelector(`#table-${id} button[data-sort="${column.key}"]`).focus();
}
function compare(a, b, down) {
  if (a === null || a === undefined) return b === null || b === undefined ? 0 : 1;
  if (b === null || b === undefined) return -1;
  const order = typeof a === "string" ? a.localeCompare(b) : a - b;
  return down ? -order : order;
}

// Sections

function drawProgress() {
  const counts = {};
  for (const trial of data.trials) counts[trial.x] = (counts[trial.x] || 0) + 1;
  const running = data.progress, left = running ? running.left : 0, pending = (counts.waiting || 0) + (counts.running || 0);
  const total = data.trials.length - pending + Math.max(left, pending) || 1;
  const words = ["done", "failed", "skipped", "unread", "unfinished", "running", "waiting"].filter((s) => counts[s]).map((s) => `${counts[s]} ${t(`state ${s}`) || t(s)}`);
  if (left && !pending) words.push(`${left} ${t("left")}`);
  const bar = make("div", { class: "meter", role: "img", "aria-label": words.join(", ") },
    make("i", { style: `width:${100 * (counts.done || 0) / total}%` }),
    make("b", { style: `width:${100 * ((counts.failed || 0) + (counts.skipped || 0) + (counts.unread || 0)) / total}%` }));
  const more = [];
  if (running && left) {
    if (running.eta_seconds) more.push(`${t("eta")} ${duration(running.eta_seconds)}`);
    if (running.per_hour) more.push(`${short(running.per_hour)} ${t("rate")}`);
  }
  const untrained = data.trials.some((trial) => trial.w);
  body("progress", bar, make("p", {}, words.join(" · ") || t("none here")), running && left ? make("p", {}, [t("running"), more.join(", ")].join(" ")) : null,
    untrained ? make("p", { class: "warning" }, t("untrained")) : null);
}

// The models and cells that the filter leaves, of which the tables below are.
function shownCells() { return data.cells.map((_, i) => i).filter((i) => matches(cellName(i)) || data.configurations.some((name) => matches(name, cellName(i)))); }
function shownModels(cells) { return data.configurations.map((_, i) => i).filter((i) => cells.some((c) => matches(data.configurations[i], cellName(c)))); }
function metricMeaning(name) { return data.meanings[state.language][name] || ""; }
function metricNote() { return make("p", { class: "quiet" }, `${state.metric}: ${metricMeaning(state.metric)}`); }

function drawRanking() {
  const ranking = data.rankings[state.metric], cells = shownCells();
  if (!ranking || !ranking.rows.length) return body("ranking", make("p", {}, t("none here")));
  if (cells.length && cells.length < data.cells.length) return drawPartRanking(cells);
  const rows = ranking.rows.filter((row) => matches(row.configuration) || cells.some((c) => matches(row.configuration, cellName(c))));
  const ends = ranking.rows.flatMap((r) => [r.low ?? r.mean, r.high ?? r.mean]).filter((v) => v !== null && v !== undefined);
  const scale = [Math.min(...ends, 1), Math.max(...ends, state.metric === "separation" ? -Infinity : 1)];
  const columns = [
    { key: "configuration", title: t("configuration"), value: (r) => r.configuration, text: true },
    { key: "group", title: t("group"), hint: t("group note"), value: (r) => r.group, text: true },
    { key: "mean", title: `${t("mean")} ${state.metric}`, hint: metricMeaning(state.metric), value: (r) => r.mean, show: (r) => number(r.mean) },
    { key: "low", title: t("interval"), hint: t("hint interval"), value: (r) => r.low, show: (r) => interval(r, scale) },
    { key: "rank", title: t("rank"), hint: t("hint rank"), value: (r) => r.mean_rank, show: (r) => number(r.mean_rank, 2) },
    { key: "seed", title: t("seeds"), hint: t("hint seeds"), value: (r) => r.seed_sd, show: (r) => number(r.seed_sd) },
    { key: "coverage", title: t("coverage"), hint: t("hint coverage"), value: (r) => r.coverage, show: (r) => `${r.coverage}/${r.cells}` },
  ];
  const common = Math.max(...ranking.rows.map((r) => r.common || 0));
  body("ranking", note("group note"), paragraph(say("common note", { n: common })), ...ranking.notes[state.language].map(paragraph), metricNote(),
    rows.length ? sortable("ranking", columns, rows, t("ranking")) : note("no match"), rows.length ? howToRead(columns) : null);
}
// The meaning of each column for those who have no pointer to hover with.
function howToRead(columns) {
  const hinted = columns.filter((c) => c.hint);
  return make("details", {}, make("summary", {}, t("how to read")), make("dl", {}, ...hinted.flatMap((c) => [make("dt", {}, c.title), make("dd", {}, c.hint)])));
}
// Means over the parts that the filter leaves. Letters are of all parts together, so that a single part has the words of its decision.
function drawPartRanking(cells) {
  const metric = data.metrics.indexOf(state.metric), one = cells.length === 1 ? data.decisions.find((d) => cellName(cells[0]) === d.part) : null;
  const rows = shownModels(cells).map((m) => partRow(m, cells, metric)).filter((row) => row.finished);
  rows.sort((a, b) => b.finished - a.finished || b.mean - a.mean);
  const columns = [{ key: "configuration", title: t("configuration"), value: (r) => r.configuration, text: true },
    { key: "mean", title: `${t("mean")} ${state.metric}`, hint: metricMeaning(state.metric), value: (r) => r.mean, show: (r) => number(r.mean) },
    { key: "coverage", title: t("coverage"), hint: t("hint coverage"), value: (r) => r.finished, show: (r) => `${r.finished}/${cells.length}` }];
  if (one && state.metric === data.metrics[0]) columns.push({ key: "against", title: t("against best"), value: (r) => one.options[r.configuration] === undefined ? null : t(one.options[r.configuration] ? "tied" : "surely worse"), text: true });
  const names = cells.map(cellName), listed = names.slice(0, 4).join(", ") + (names.length > 4 ? ` + ${names.length - 4}` : "");
  body("ranking", paragraph(say("part ranking", { parts: listed })), metricNote(), rows.length ? sortable("ranking", columns, rows, t("ranking")) : note("no match"));
}
function partRow(m, cells, metric) {
  const means = cells.map((c) => cellFigure(byCell.get(m + "," + c) || [], metric)).filter((found) => found && !found.drawn).map((found) => found.mean);
  return { configuration: data.configurations[m], finished: means.length, mean: means.reduce((a, b) => a + b, 0) / Math.max(means.length, 1) };
}
function interval(row, [low, high]) {
  if (row.low === null || row.low === undefined || row.mean === null) return "n/a";
  const place = (v) => 100 * (v - low) / Math.max(high - low, 1e-9);
  return make("span", {}, `${number(row.low, 3)}–${number(row.high, 3)} `,
    make("span", { class: "interval", "aria-hidden": "true" },
      make("i", { style: `left:${place(row.low)}%;width:${place(row.high) - place(row.low)}%` }),
      make("b", { style: `left:calc(${place(row.mean)}% - 1px)` })));
}

function drawCells() {
  const metric = data.metrics.indexOf(state.metric);
  const columns = shownCells(), rows = shownModels(columns);
  const values = data.trials.map((trial) => trial.v && trial.v[metric]).filter((v) => v !== null && v !== undefined);
  const range = [Math.min(...values, 1), Math.max(...values, 0)];
  const several = new Set(data.cells.map((c) => c[0])).size > 1;
  const head = [make("th", { scope: "col" }, t("configuration")), ...columns.map((i) => make("th", { scope: "col", title: cellName(i) }, several || data.cells[i][1] === "all" ? cellName(i) : data.cells[i][1]))];
  const lines = rows.map((m) => make("tr", {}, make("th", { scope: "row" }, data.configurations[m]),
    ...columns.map((c) => make("td", { class: "cell", role: "gridcell" }, cellButton(m, c, metric, range)))));
  const table = make("table", { role: "grid", id: "grid", onkeydown: moveInGrid }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...lines));
  const first = table.querySelector("td.cell button");
  if (first) first.tabIndex = 0;
  if (!first) return body("cells", note("no match"));
  body("cells", note("cells note"), metricNote(), make("div", { class: "scroll", role: "region", "aria-label": t("cells") }, table));
}
// The mean over the seeds of a cell. One of test images is none of drawn defects. Null where there is no figure.
function cellFigure(trials, metric) {
  const found = trials.filter((trial) => trial.v && trial.v[metric] !== null && trial.v[metric] !== undefined);
  const drawn = found.every((trial) => trial.y), counted = found.filter((trial) => drawn || !trial.y);
  if (!counted.length) return null;
  // The interval is of image AUROC, the first metric.
  const doubtful = metric === 0 && counted.some((trial) => trial.i && trial.i[0] <= 0.5 && trial.i[1] >= 0.5);
  return { mean: counted.reduce((sum, trial) => sum + trial.v[metric], 0) / counted.length, drawn, doubtful };
}
function cellButton(m, c, metric, range) {
  const trials = byCell.get(m + "," + c) || [], figure = cellFigure(trials, metric);
  const where = `${data.configurations[m]}, ${cellName(c)}`;
  const attributes = { type: "button", tabindex: "-1", onclick: () => showCell(m, c) };
  if (figure) {
    const share = (figure.mean - range[0]) / Math.max(range[1] - range[0], 1e-9);
    const lightness = Math.round(92 - 56 * share);
    const remarks = [figure.drawn && t("drawn"), figure.doubtful && t("chance")].filter((x) => x);
    if (figure.doubtful) attributes.class = "doubtful";
    else attributes.style = `background:hsl(210 60% ${lightness}%);color:${lightness < 50 ? "#fff" : "#111"}`;
    attributes["aria-label"] = `${where}: ${number(figure.mean, 3)}` + (remarks.length ? ` (${remarks.join(" ")})` : "");
    if (remarks.length) attributes.title = remarks.join(" ");
    return make("button", attributes, (figure.drawn ? "✎ " : "") + number(figure.mean, 3) + (figure.doubtful ? " ?" : ""));
  }
  const status = trials.length ? trials[0].x : "none";
  const sign = { failed: "✕", skipped: "–", unread: "!", none: "·", waiting: "·", running: "▶", unfinished: "…", done: "n/a" }[status];
  attributes.class = status;
  attributes["aria-label"] = `${where}: ${t(`state ${status}`) || t(status)}`;
  attributes.title = trials.length && trials[0].r ? trials[0].r : t(`state ${status}`) || t(status);
  return make("button", attributes, sign);
}
function moveInGrid(event) {
  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  const step = steps[event.key], cell = event.target.closest("td.cell");
  if (!step || !cell) return;
  event.preventDefault();
  const row = cell.parentElement.sectionRowIndex + step[0], column = cell.cellIndex + step[1];
  const next = event.currentTarget.tBodies[0].rows[row]?.cells[column]?.querySelector("button");
  if (!next) return;
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function showCell(m, c) {
  const dialog = document.getElementById("detail");
  document.getElementById("detail-title").textContent = `${data.configurations[m]} · ${cellName(c)}`;
  dialog.querySelector(".close").setAttribute("aria-label", t("close"));
  const trials = byCell.get(m + "," + c) || [];
  body("detail", ...(trials.length ? trials.map(trialDetail) : [make("p", {}, t("none"))]));
  state.cell = [data.configurations[m], cellName(c)];
  keepState();
  if (!dialog.open) dialog.showModal();
}
function trialDetail(trial) {
  const parts = [make("p", {}, make("strong", {}, `${t("seed")} ${trial.s}: ${t(`state ${trial.x}`) || t(trial.x)}`), trial.f ? " · " : null,
    trial.f ? make("a", { href: address(trial.f) + "/" }, t("folder")) : null)];
  if (trial.r) parts.push(make("p", { class: "warning" }, trial.r));
  if (trial.y) parts.push(make("p", { class: "warning" }, t("drawn")));
  if (trial.v) {
    const [train, holdout, normal, anomalous] = trial.n;
    const verdict = verdictWords(trial);
    if (verdict) parts.push(make("p", {}, make("strong", {}, verdict)));
    if (cellFigure([trial], 0)?.doubtful) parts.push(make("p", { class: "warning" }, `${data.metrics[0]} ${number(trial.v[0], 3)}, ${t("interval")} ${number(trial.i[0], 3)}–${number(trial.i[1], 3)}. ${t("chance")}`));
    parts.push(paragraph(say("counts", { train, holdout, normal, anomalous })));
    if (trial.p) parts.push(...promiseLines(trial));
    if (trial.h) parts.push(histogram(trial));
    for (const text of trial.z || []) parts.push(paragraph(text));
    parts.push(make("details", {}, make("summary", {}, t("all figures")), figures(trial), thresholds(trial),
      trial.d ? make("p", {}, Object.entries(trial.d).map(([name, v]) => `${name}: ${data.metrics[0]} ${number(v)}`).join(" · ")) : null,
      paragraph(`${trial.e} ${t("epochs")} · ${short(trial.k)} ${t("seconds")}`)));
  }
  return make("div", { class: "trial" }, ...parts);
}
// What the threshold of verdicts finds and lets through, in a sentence.
function verdictWords(trial) {
  const [value, , found, missed, alarms, passed] = trial.t.promise || trial.t.percentile_95 || [];
  if (value === null || value === undefined) return t("detail no threshold");
  if (found === null) return null;
  const counts = { found, defects: found + missed, alarms, normals: alarms + passed };
  return say(trial.y ? "detail drawn" : "detail test", counts);
}
function figures(trial) {
  const known = data.metrics.map((name, i) => [name, trial.v[i]]).filter(([, v]) => v !== null && v !== undefined);
  const value = (name, v) => name === data.metrics[0] && trial.i ? `${number(v)} (${t("interval")} ${number(trial.i[0])}–${number(trial.i[1])})` : number(v);
  return table(`${t("all figures")}, ${trial.id}`, [t("metric"), t("value"), t("meaning")], known.map(([name, v]) => [name, value(name, v), metricMeaning(name)]), "prose");
}
function thresholds(trial) {
  const rows = Object.entries(trial.t).map(([name, [value, oracle, ...counts]]) => [(data.meanings[state.language][name] || name) + (oracle ? " *" : ""), ...[value, ...counts].map((v) => v === null || v === undefined ? "n/a" : String(v))]);
  return make("div", {}, table(`${t("threshold")}, ${trial.id}`, ["threshold", "value", "found", "missed", "alarms", "passed"].map(t), rows, "stack"), paragraph(`* ${t("by labels")}`));
}
// A small table; one of the class stack becomes a list where the window is narrow.
function table(caption, titles, rows, kind) {
  const head = make("tr", {}, ...titles.map((title) => make("th", { scope: "col" }, title)));
  const lines = rows.map((row) => make("tr", {}, ...row.map((text, i) => make("td", { "data-label": titles[i] }, text))));
  return scrolling(caption, make("table", { class: kind }, make("thead", {}, head), make("tbody", {}, ...lines)));
}
function histogram(trial) {
  const { low, high, normal, anomalous } = trial.h, width = 480, height = 140, left = 34, above = 18, bins = normal.length, step = (width - left) / bins;
  const top = Math.max(...normal, ...anomalous, 1), tall = (n) => (height * n) / top, sum = (counts) => counts.reduce((a, b) => a + b, 0);
  const bar = (counts, fill, stroke) => counts.map((n, i) => n ? make("rect", { x: left + i * step + 1, y: above + height - tall(n), width: step - 2, height: tall(n), fill, stroke }) : null).filter((b) => b);
  const rule = trial.t.promise || trial.t.percentile_95, cut = rule && rule[0];
  const x = cut === null || cut === undefined ? null : left + (width - left) * (cut - low) / Math.max(high - low, 1e-12);
  const hatch = `hatch-${trial.id}`, pattern = make("pattern", { id: hatch, width: 6, height: 6, patternUnits: "userSpaceOnUse" }, make("path", { d: "M0 6L6 0", stroke: "currentColor" }));
  const words = `${t("score")}: ▭ ${t("normal")} ${sum(normal)}, ▨ ${t("anomalous")} ${sum(anomalous)}. ${t("upright")}: ${t("images")}.`;
  const named = `${t("threshold")} ${short(cut)}`, end = x > width - 120;
  const line = x !== null && x >= left && x <= width ? [make("line", { x1: x, x2: x, y1: above - 4, y2: above + height, stroke: "currentColor", "stroke-dasharray": "5 4" }),
    make("text", { x: end ? x - 4 : x + 4, y: 12, "text-anchor": end ? "end" : "start" }, named)] : [];
  return make("figure", {}, make("svg", { class: "histogram", viewBox: `0 0 ${width} ${above + height + 20}`, width, role: "img", "aria-label": `${words} ${line.length ? named : ""}` }, pattern,
    make("path", { d: `M${left} ${above}V${above + height}H${width}`, fill: "none", stroke: "currentColor" }), make("text", { x: left - 4, y: above + 8, "text-anchor": "end" }, String(top)), make("text", { x: left - 4, y: above + height, "text-anchor": "end" }, "0"),
    ...bar(normal, "none", "currentColor"), ...bar(anomalous, `url(#${hatch})`, "none"), ...line,
    make("text", { x: left, y: above + height + 15 }, short(low)), make("text", { x: width, y: above + height + 15, "text-anchor": "end" }, short(high))), make("figcaption", {}, words));
}

// What is promised of false alarms: sentences, a picture, and how many normals other rates need

function percent(rate) { return `${short(100 * rate)} %`; }
function promiseLines(trial) {
  // Drawn defects were drawn on the calibration images, which thus chose the trial.
  const [normals, rate] = trial.p, [promised, bound] = trial.whichever && trial.y ? trial.whichever : trial.p.slice(2);
  // A part of so many that it is one or more of them, rounded up since it is said to be the most.
  let of = 100;
  while (promised * of < 1 && of < 1e6) of *= 10;
  const most = (part) => Math.min(of, Math.ceil(10 * part * of - 1e-3) / 10);
  const values = { normals, of: of.toLocaleString("en"), rate: percent(rate), promised: percent(promised) };
  const lines = [make("p", {}, make("strong", {}, say("promise given", { ...values, count: most(promised) })))];
  if (promised > rate) lines.push(make("p", { class: "warning" }, say("promise short", values)));
  lines.push(make("p", {}, say("promise sure", { ...values, count: most(bound) })));
  if (trial.tried > 1) lines.push(make("p", {}, say(trial.y ? "promise chosen by calibration" : "promise chosen", { tried: trial.tried, of: values.of, count: most(trial.whichever[0]) })));
  if (trial.g) lines.push(make("p", {}, say("promise groups", { groups: trial.g[0], score: short(trial.g[1]), promised: percent(trial.g[2]), bound: percent(trial.g[3]) })));
  if (trial.dots) for (const text of trial.z[state.language]) lines.push(make("p", { class: "quiet" }, text));
  return lines;
}
function drawPromise() {
  const found = data.promises.filter((trial) => matches(data.configurations[trial.m], cellName(trial.c)));
  document.getElementById("promise").hidden = !data.promises.length;
  body("promise", note("promise intro"), ...found.map((trial) => make("article", { class: "promise" },
    make("h3", {}, `${cellName(trial.c)} · ${data.configurations[trial.m]}`), ...promiseLines(trial), promisePicture(trial), normalsTable(trial))));
}
function promisePicture(trial) {
  const [value, , found, missed, alarms, passed] = trial.t, width = 720, high = 48, left = 10, right = width - 10;
  const rows = [["calibration", say("row calibration", { number: trial.p[0] }), 1]];
  if (!trial.y) rows.push(["normal", say("row normal", { number: alarms + passed, alarms }), 1]);
  rows.push(["defect", say(trial.y ? "row drawn" : "row defect", { number: found + missed, missed }), 0]);
  const scores = rows.flatMap(([kind]) => trial.dots[kind].flat()), low = Math.min(value, ...trial.dots.calibration.flat());
  const bent = (score) => Math.asinh(3 * (score - value) / Math.max(value - low, 1e-9 * Math.abs(value), 1e-30));
  const [x0, x1] = widened(Math.min(0, ...scores.map(bent)), Math.max(0, ...scores.map(bent)));
  const x = (score) => left + (right - left) * (bent(score) - x0) / (x1 - x0);
  const bottom = rows.length * high + 22, cut = x(value);
  const lanes = rows.map(([kind, label, wrong], i) => {
    const top = 22 + i * high, marks = ["", ""];
    trial.dots[kind].forEach((half, side) => half.forEach((score, k) => {
      const at = `M${x(score).toFixed(1)} ${(top + 24 + 18 * ((k * 0.618) % 1)).toFixed(1)}`;
      marks[Number(side === wrong)] += side === wrong ? `${at}m-4 -4l8 8m0 -8l-8 8` : `${at}h0`;
    }));
    return make("g", {}, make("text", { x: left, y: top + 14 }, label), make("path", { d: marks[0], class: "dot" }), make("path", { d: marks[1], class: "wrong" }));
  });
  const line = [make("line", { x1: cut, x2: cut, y1: 18, y2: bottom, stroke: "currentColor", "stroke-dasharray": "5 4" }),
    make("text", { x: cut - 6, y: 12, "text-anchor": "end" }, `← ${t("passes")}`), make("text", { x: cut + 6, y: 12 }, `${t("reported")} →`)];
  return make("figure", {}, make("svg", { viewBox: `0 0 ${width} ${bottom + 4}`, width, role: "img", "aria-label": rows.map((row) => row[1]).join(". ") }, ...line, ...lanes),
    make("figcaption", { class: "quiet" }, t("promise caption")));
}
function normalsTable(trial) {
  const normals = trial.p[0];
  const rows = data.needed.map(([rate, needed, sure]) => [percent(rate), needed.toLocaleString("en"), sure.toLocaleString("en"),
    normals >= needed ? t("enough to promise") : say("missing", { number: (needed - normals).toLocaleString("en") })]);
  return table(`${t("to promise")}, ${cellName(trial.c)}`, [t("wanted"), t("to promise"), t("to be sure"), say("now", { normals })], rows);
}

const COSTS = [["latency_ms", "latency"], ["file_ms", "file"], ["gpu_peak_mb", "gpu"], ["host_peak_mb", "host"], ["checkpoint_mb", "checkpoint"], ["parameters", "parameters"]];

function drawCost() {
  if (!data.costs.length) return body("cost", make("p", {}, t("no cost")));
  const ranking = data.rankings[state.metric], means = new Map((ranking ? ranking.rows : []).map((r) => [r.configuration, r.mean]));
  const rows = data.costs.filter((r) => matches(r.configuration)).map((r) => ({ ...r, mean: means.get(r.configuration) ?? null }));
  const columns = [{ key: "configuration", title: t("configuration"), value: (r) => r.configuration, text: true },
    { key: "device", title: t("device"), value: (r) => r.device, text: true },
    { key: "mean", title: state.metric, value: (r) => r.mean, show: (r) => number(r.mean) },
    ...COSTS.map(([key, title]) => ({ key, title: t(title), value: (r) => r[key], show: (r) => short(r[key]) })),
    { key: "images_per_second", title: t("throughput"), value: (r) => r.images_per_second, show: (r) => short(r.images_per_second) },
    { key: "doubts", title: t("doubts"), value: (r) => r.doubts }];
  const choice = make("label", {}, `${t("x axis")} `, make("select", { id: "cost-axis", onchange: (e) => { state.cost = e.target.value; keepState(); draw(); document.getElementById("cost-axis").focus(); } },
    ...COSTS.map(([key, title]) => make("option", { value: key, selected: key === state.cost }, t(title)))));
  const devices = [...new Set(rows.map((r) => r.device))];
  body("cost", note("cost note"), choice, ...devices.map((device) => pareto(device, rows.filter((r) => r.device === device && r.mean !== null && r[state.cost] > 0))),
    sortable("cost", columns, rows, t("cost")));
}
function pareto(device, points) {
  if (!points.length) return null;
  const width = 760, height = 360, left = 50, right = 20, bottom = 40, top = 20;
  const xs = points.map((p) => Math.log10(p[state.cost])), ys = points.map((p) => p.mean);
  const [x0, x1] = widened(Math.min(...xs), Math.max(...xs)), [y0, y1] = widened(Math.min(...ys), Math.max(...ys));
  const x = (p) => left + (width - left - right) * (Math.log10(p[state.cost]) - x0) / (x1 - x0);
  const y = (p) => height - bottom - (height - top - bottom) * (p.mean - y0) / (y1 - y0);
  const front = points.filter((p) => !points.some((q) => q !== p && q[state.cost] <= p[state.cost] && q.mean >= p.mean && (q[state.cost] < p[state.cost] || q.mean > p.mean)));
  front.sort((a, b) => a[state.cost] - b[state.cost]);
  const marks = points.map((p) => {
    const mark = front.includes(p) ? make("path", { d: `M${x(p)} ${y(p) - 7}l7 7l-7 7l-7 -7z`, fill: "currentColor" }) : make("circle", { cx: x(p), cy: y(p), r: 5, fill: "none", stroke: "currentColor" });
    const end = x(p) > width - 160;
    return make("g", {}, mark, make("title", {}, `${p.configuration}: ${number(p.mean)}, ${short(p[state.cost])}`),
      make("text", { x: x(p) + (end ? -10 : 10), y: y(p) + 4, "text-anchor": end ? "end" : "start" }, p.configuration));
  });
  const line = make("path", { d: front.map((p, i) => `${i ? "L" : "M"}${x(p)} ${y(p)}`).join(""), fill: "none", stroke: "currentColor", "stroke-dasharray": "4 3" });
  const label = t(COSTS.find(([key]) => key === state.cost)[1]);
  const axes = [make("path", { d: `M${left} ${top}V${height - bottom}H${width - right}`, fill: "none", stroke: "currentColor" }),
    make("text", { x: left, y: height - bottom + 16 }, short(10 ** x0)), make("text", { x: width - right, y: height - bottom + 16, "text-anchor": "end" }, short(10 ** x1)),
    make("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, `${label} (log)`),
    make("text", { x: 2, y: height - bottom }, number(y0, 3)), make("text", { x: 2, y: top + 4 }, number(y1, 3)), make("text", { x: left + 4, y: top - 6 }, state.metric)];
  return make("figure", {}, make("figcaption", {}, device), make("svg", { class: "pareto", viewBox: `0 0 ${width} ${height}`, width, role: "img", "aria-label": `${t("cost")}, ${device}` }, ...axes, line, ...marks));
}
function widened(low, high) { const pad = Math.max((high - low) * 0.08, 1e-3); return [low - pad, high + pad]; }

function drawGallery() {
  const shown = data.pictures.filter((p) => matches(pictureWords(p)));
  const linked = data.linked.filter((p) => matches(pictureWords(p)));
  document.getElementById("gallery").hidden = !data.pictures.length && !data.linked.length;
  if (!shown.length && !linked.length) return body("gallery", note("no match"));
  state.viewed = shown;
  const figures = shown.map((p, i) => make("figure", {}, make("button", { type: "button", onclick: () => viewPicture(i), "aria-label": `${t("enlarge")}: ${pictureWords(p)}` }, make("img", { src: p.image, alt: pictureWords(p), decoding: "async" })), make("figcaption", {}, pictureWords(p))));
  const links = linked.length ? make("details", {}, make("summary", {}, `${t("more")} (${linked.length})`), make("ul", {}, ...linked.map((p) => make("li", {}, make("a", { href: address(p.href) }, pictureWords(p)))))) : null;
  body("gallery", note("gallery note"), make("div", { class: "pictures" }, ...figures), links);
}
function pictureWords(p) {
  return `${t(`verdict ${p.verdict}`)} · ${p.cell} · ${p.path} · ${p.configuration} · ${t("score")} ${short(p.score)}`;
}
// A picture as large as the window takes it; the arrow keys step through all of them.
function viewPicture(i) {
  const dialog = document.getElementById("viewer"), picture = state.viewed[i];
  state.viewing = i;
  body("viewer", make("img", { src: picture.image, alt: pictureWords(picture) }));
  dialog.querySelector(".close").setAttribute("aria-label", t("close"));
  document.getElementById("viewer-caption").textContent = `${i + 1}/${state.viewed.length} · ${pictureWords(picture)}`;
  keepState();
  if (!dialog.open) dialog.showModal();
}

function drawPublished() {
  const rows = data.published.filter((r) => r.metric === state.metric && matches(r.configuration, r.dataset, r.category));
  document.getElementById("published").hidden = !data.published.length;
  if (!rows.length) return body("published", make("p", {}, t("none here")));
  const columns = [{ key: "configuration", title: t("configuration"), value: (r) => r.configuration, text: true },
    { key: "category", title: t("category"), value: (r) => `${r.dataset}/${r.category}`, text: true },
    { key: "ours", title: t("ours"), value: (r) => r.ours, show: (r) => number(r.ours, 1) },
    { key: "percent", title: t("theirs"), value: (r) => r.percent, show: (r) => number(r.percent, 1) },
    { key: "difference", title: t("difference"), value: (r) => r.ours - r.percent, show: (r) => (r.ours - r.percent > 0 ? "+" : "") + number(r.ours - r.percent, 1) },
    { key: "setting", title: t("setting"), value: (r) => r.setting, text: true }, { key: "source", title: t("source"), value: (r) => r.source, text: true }];
  body("published", note("published note"), sortable("published", columns, rows, t("published")));
}

// An end of an interval that is missing for a number of images is more than can be said.
function saturated(found, key) {
  if (!found) return t("not known");
  const text = (x) => x === null ? t("beyond") : key === "needed" ? String(Math.ceil(x)) : shown(x);
  if (key === "gain" || found.ceiling_low === null) return text(found[key]);
  return `${text(found[key])} (${text(found[key + "_low"])} – ${text(found[key + "_high"])})`;
}
function drawConditions() {
  const found = data.conditions && data.conditions.metrics[state.metric];
  document.getElementById("conditions").hidden = !data.conditions;
  if (!found) return body("conditions", make("p", {}, t("none here")));
  const names = data.conditions.names, byName = new Map();
  for (const row of found.means.filter((r) => matches(r.configuration))) {
    if (!byName.has(row.configuration)) byName.set(row.configuration, { configuration: row.configuration });
    byName.get(row.configuration)[row.condition] = row;
  }
  const rows = [...byName.values()], best = new Map(names.map((n) => [n, Math.max(...rows.map((r) => r[n] && r[n].mean !== null ? r[n].mean : -Infinity))]));
  const columns = [{ key: "configuration", title: t("configuration"), value: (r) => r.configuration, text: true },
    ...names.map((name) => ({ key: name, title: name, value: (r) => r[name] ? r[name].mean : null, show: (r) => conditionCell(r[name], best.get(name)) }))];
  const lines = new Map();
  for (const curve of found.curves.filter((c) => matches(c.configuration))) {
    const key = [curve.axis, curve.rest].filter((x) => x).join(", ");
    lines.set(key, [...(lines.get(key) || []), curve]);
  }
  const sizes = found.curves.filter((c) => c.axis !== "contamination" && matches(c.configuration));
  const answer = (curve, key) => curve[key] === null ? (curve.points.some((p) => p[key === "enough" ? "loss" : "high"] !== null) ? t("not reached") : t("not known")) : shown(curve[key]);
  const enough = [columns[0], { key: "axis", title: t("condition"), value: (r) => [r.axis, r.rest].filter((x) => x).join(", "), text: true },
    ...["enough", "surely"].map((key) => ({ key, title: t(key), value: (r) => r[key], show: (r) => answer(r, key) })),
    ...["ceiling", "needed", "gain"].map((key) => ({ key, title: t(key), value: (r) => r.saturation ? r.saturation[key] : null, show: (r) => saturated(r.saturation, key) }))];
  body("conditions", paragraph(say("conditions note", { name: data.condition })), names.some((n) => n.includes("no_overlap")) ? note("overlap note") : null,
    sortable("conditions", columns, rows, t("conditions")), found.curves.length ? paragraph(say("curves note", { loss: data.conditions.tolerance })) : null,
    make("div", { class: "small" }, ...[...lines].map(([key, curves]) => curvePlot(key, curves))),
    sizes.length ? sortable("enough", enough, sizes, t("enough")) : null);
}
function drawRobustness() {
  const found = data.robustness;
  document.getElementById("robustness").hidden = !found;
  if (!found) return body("robustness", make("p", {}, t("none here")));
  body("robustness", ...corruptionParts(found), ...shiftParts(found.shifts), ...sheetParts(found.sheets));
}
function corruptionParts(found) {
  const corrupted = found.corruptions;
  if (!corrupted) return [];
  const columns = Object.entries(corrupted.columns), severities = [...new Set(columns.map(([, [, severity]]) => severity))].sort();
  if (!severities.includes(state.severity)) state.severity = severities[severities.length - 1];
  const choice = make("select", { id: "severity", onchange: (event) => { state.severity = Number(event.target.value); keepState(); draw(); document.getElementById("severity").focus(); } },
    ...severities.map((one) => make("option", { value: String(one), selected: one === state.severity }, String(one))));
  const names = columns.filter(([, [, severity]]) => severity === state.severity).map(([name, [kind]]) => [name, kind]);
  const gone = Math.max(0, ...corrupted.models.flatMap((row) => Object.values(row.u).map((figures) => figures[5])));
  const safest = found.safest.map((one) => make("article", { class: "decision" }, ...one[state.language].lines.map((line) => make("p", {}, line.trim()))));
  return [paragraph(say("robustness note", { cells: corrupted.cells })), make("h3", {}, t("safest")), make("p", {}, say("safest is", { name: corrupted.safest[0], value: number(corrupted.safest[1], 3), where: corrupted.safest[2] })), ...safest,
    make("p", {}, make("label", {}, `${t("severity")} `, choice)), heatTable("robustness", corrupted, names, t("robustness")),
    gone ? paragraph(say("gone note", { n: gone })) : null, corrupted.leftOut.length ? paragraph(`${t("not compared")}: ${corrupted.leftOut.join(", ")}`) : null,
    ...rankParts("robustness-ranks", corrupted.ranks)];
}
function shiftParts(shifted) {
  if (!shifted) return [];
  const names = Object.keys(shifted.columns).map((name) => [name, name]);
  return [make("h3", {}, t("shifts")), paragraph(say("shifts note", { cells: shifted.cells })), heatTable("shifts", shifted, names, t("shifts")), ...rankParts("shift-ranks", shifted.ranks)];
}
function sheetParts(sheets) {
  if (!sheets.length) return [];
  const shown = sheets.map((one) => make("details", {}, make("summary", {}, one.cell), make("a", { href: address(one.href) }, one.image ? make("img", { src: one.image, alt: `${t("sheet")}: ${one.cell}` }) : one.href)));
  return [make("h3", {}, t("sheet")), ...shown];
}
function paragraph(text) { return make("p", { class: "quiet" }, text); }
function heatTable(id, compared, names, caption) {
  const rows = compared.models.filter((row) => matches(row.m));
  const columns = [{ key: "configuration", title: t("configuration"), value: (r) => r.m, text: true }, { key: "plain", title: t("plain images"), value: (r) => r.p, show: (r) => number(r.p, 3) },
    ...names.map(([name, title]) => ({ key: name, title, value: (r) => r.u[name] ? r.u[name][1] : null, show: (r) => heatCell(r.u[name], compared.cells) }))];
  return sortable(id, columns, rows, caption);
}
function heatCell(figures, cells) {
  if (!figures) return "n/a";
  const [auroc, drop, alarms, misses, broken] = figures;
  const heat = (share, text) => make("span", { class: "heat", style: `background:color-mix(in srgb, var(--bad) ${Math.round(60 * Math.min(1, Math.max(0, share)))}%, var(--paper))` }, text);
  const title = `image AUROC ${number(auroc, 3)}, ${t("alarms")} ${alarms === null ? "n/a" : percent(alarms)}, ${t("missed")} ${misses === null ? "n/a" : percent(misses)}`;
  return make("span", { title }, heat(drop / 0.3, `${drop > 0 ? "−" : "+"}${number(Math.abs(drop), 3)}`), alarms === null ? null : heat(alarms, percent(alarms)), broken ? ` ✕${cells > 1 ? `${broken}/${cells}` : ""}` : null);
}
function rankParts(id, ranks) {
  if (!ranks.length) return [];
  const change = (row) => row.best === row.plain_best ? t("stays") : t(row.is_sure ? "changes surely" : "changes");
  const columns = [{ key: "condition", title: t("condition"), value: (r) => r.condition, text: true }, { key: "correlation", title: t("correlation"), value: (r) => r.correlation, show: (r) => number(r.correlation, 2) },
    { key: "low", title: t("interval"), value: (r) => r.low, show: (r) => `${number(r.low, 2)} – ${number(r.high, 2)}` },
    { key: "best", title: t("best here"), value: (r) => r.best, text: true }, { key: "change", title: t("winner"), value: change, text: true }];
  return [note("ranks note"), sortable(id, columns, ranks, t("correlation"))];
}
function conditionCell(row, best) {
  if (!row) return "n/a";
  const text = row.spread === null ? number(row.mean) : `${number(row.mean)} ± ${number(row.spread, 3)}`;
  return make("span", {}, row.mean !== null && row.mean === best ? make("strong", {}, text) : text, row.failed ? ` (${row.failed} ${t("failed")})` : null);
}
function curvePlot(title, curves) {
  const width = 520, height = 300, left = 50, right = 130, bottom = 40, top = 20;
  const points = curves.flatMap((c) => c.points), axis = curves[0].axis, log = axis !== "contamination";
  const at = (v) => log ? Math.log10(v) : v, ends = (p) => [p.mean - (p.spread || 0), p.mean + (p.spread || 0)];
  const [x0, x1] = widened(Math.min(...points.map((p) => at(p.value))), Math.max(...points.map((p) => at(p.value))));
  const [y0, y1] = widened(Math.min(...points.flatMap(ends)), Math.max(...points.flatMap(ends)));
  const x = (p) => left + (width - left - right) * (at(p.value) - x0) / (x1 - x0), y = (v) => height - bottom - (height - top - bottom) * (v - y0) / (y1 - y0);
  const dashes = ["", "6 3", "2 3", "8 3 2 3"];
  // Names stand beside the ends of their lines, none on top of another.
  const lastOf = (c) => c.points[c.points.length - 1], nameAt = new Map();
  let above = -Infinity;
  for (const curve of curves.slice().sort((a, b) => y(lastOf(a).mean) - y(lastOf(b).mean))) {
    above = Math.max(above + 13, y(lastOf(curve).mean) + 4);
    nameAt.set(curve, above);
  }
  const lines = curves.map((curve, i) => {
    const last = lastOf(curve), path = curve.points.map((p, k) => `${k ? "L" : "M"}${x(p)} ${y(p.mean)}`).join("");
    const bars = curve.points.filter((p) => p.spread !== null).map((p) => make("path", { d: `M${x(p)} ${y(ends(p)[0])}V${y(ends(p)[1])}`, stroke: "currentColor" }));
    const dots = curve.points.map((p) => make("circle", { cx: x(p), cy: y(p.mean), r: 3.5, fill: "currentColor" }, make("title", {}, `${curve.configuration}, ${p.condition}: ${number(p.mean)}${p.spread === null ? "" : ` ± ${number(p.spread, 3)}`}`)));
    return make("g", {}, make("path", { d: path, fill: "none", stroke: "currentColor", "stroke-dasharray": dashes[i % dashes.length] }), ...bars, ...dots, make("text", { x: x(last) + 8, y: nameAt.get(curve) }, curve.configuration));
  });
  const values = [...new Map(points.map((p) => [p.value, p])).values()];
  const axes = [make("path", { d: `M${left} ${top}V${height - bottom}H${width - right}`, fill: "none", stroke: "currentColor" }),
    ...values.map((p) => make("text", { x: x(p), y: height - bottom + 16, "text-anchor": "middle" }, short(p.value))),
    make("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, log ? `${title} (log)` : title),
    make("text", { x: 2, y: height - bottom }, number(y0, 3)), make("text", { x: 2, y: top + 4 }, number(y1, 3)), make("text", { x: left + 4, y: top - 6 }, state.metric)];
  return make("svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, width, role: "img", "aria-label": `${state.metric}, ${title}` }, ...axes, ...lines);
}

function drawSearch() {
  const found = data.searches.filter((s) => matches(s.configuration));
  document.getElementById("search").hidden = !data.searches.length;
  body("search", note("search note"), ...found.map(searchPart));
}
function searchPart(search, index) {
  const objective = t(search.objective === "test" ? "test_objective" : search.objective) || search.objective;
  const title = make("h3", {}, `${search.configuration} `, search.leaky ? make("span", { class: "leaky" }, "LEAKY") : null);
  const kept = JSON.stringify(search.best) === JSON.stringify(search.defaults), unsure = search.gain !== null && search.low !== null && search.low <= 0;
  const metric = searchMetric(search);
  const gain = search.gain === null ? "n/a" : `${signed(search.gain)} (${t("interval")} ${signed(search.low)} – ${signed(search.high)})`;
  const facts = [`${t("objective")}: ${objective}, ${metric}`, `${search.num_trials} ${t("tries")}`,
    kept ? `${t("defaults")} ${number(search.default_score)}` : `${t("defaults")} ${number(search.default_score)} → ${t("best")} ${number(search.best_score)}`];
  const names = Object.keys(search.best);
  const values = table(`${t("hyperparameter")}, ${search.configuration}`, ["hyperparameter", "defaults", "best"].map(t), names.map((name) => [name, shown(search.defaults[name]), shown(search.best[name])]), "values");
  const columns = [{ key: "score", title: metric, value: (r) => r.score, show: (r) => number(r.score) },
    ...names.map((name) => ({ key: name, title: name, value: (r) => r.values[name], show: (r) => shown(r.values[name]) })),
    { key: "status", title: t("how it ended"), value: (r) => t(r.status) || r.status, text: true }, { key: "reason", title: t("reason"), value: (r) => r.reason, text: true, wrap: true }];
  // Where the defaults are the best there is no gain to speak of.
  const answer = kept ? [make("p", {}, make("strong", {}, t("keep defaults")))] : [make("p", {}, `${t("search gain")}: `, make("strong", {}, gain)), unsure ? note("no gain") : null, search.note ? paragraph(search.note[state.language]) : null];
  return make("article", { class: "search" }, title, search.leaky ? make("p", { class: "warning" }, t("leaky note")) : null, make("p", {}, facts.join(" · ")), ...answer,
    values, make("div", { class: "small" }, ...names.map((name) => searchScatter(search, name))),
    make("details", { open: state.sort[`search-${index}`] ? true : false }, make("summary", {}, `${t("tries")} (${search.trials.length})`), sortable(`search-${index}`, columns, search.trials, `${t("search")}, ${search.configuration}`)));
}
// A figure of drawn defects has another name than one of test images.
function searchMetric(search) { return search.objective === "synthetic" ? say("drawn metric", { metric: search.metric }) : search.metric; }
function signed(value) { return value === null ? "n/a" : (value > 0 ? "+" : "") + number(value); }
function shown(value) { return value === undefined || value === null ? "n/a" : typeof value === "number" ? String(value) : value; }
function searchScatter(search, name) {
  const tries = search.trials.filter((trial) => trial.score !== null && trial.values[name] !== undefined);
  if (!tries.length) return null;
  const width = 260, height = 190, left = 46, right = 12, bottom = 34, top = 12;
  const raw = tries.map((trial) => trial.values[name]), numeric = raw.every((v) => typeof v === "number");
  const kinds = numeric ? [] : [...new Set(raw.map(String))].sort();
  const log = numeric && Math.min(...raw) > 0 && Math.max(...raw) > 20 * Math.min(...raw);
  const at = (v) => numeric ? (log ? Math.log10(v) : v) : kinds.indexOf(String(v));
  const [x0, x1] = widened(Math.min(...raw.map(at)), Math.max(...raw.map(at))), scores = tries.map((trial) => trial.score);
  const [y0, y1] = widened(Math.min(...scores), Math.max(...scores));
  const x = (v) => left + (width - left - right) * (at(v) - x0) / (x1 - x0), y = (s) => height - bottom - (height - top - bottom) * (s - y0) / (y1 - y0);
  const dots = tries.map((trial) => make("circle", { cx: x(trial.values[name]), cy: y(trial.score), r: 4, fill: "none", stroke: "currentColor" }, make("title", {}, `${trial.id}: ${number(trial.score)}, ${shown(trial.values[name])}`)));
  const ends = numeric ? [Math.min(...raw), Math.max(...raw)] : [kinds[0], kinds[kinds.length - 1]];
  const axes = [make("path", { d: `M${left} ${top}V${height - bottom}H${width - right}`, fill: "none", stroke: "currentColor" }),
    make("text", { x: left, y: height - bottom + 14 }, shown(ends[0])), make("text", { x: width - right, y: height - bottom + 14, "text-anchor": "end" }, shown(ends[1])),
    make("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, log ? `${name} (log)` : name),
    make("text", { x: 2, y: height - bottom }, number(y0, 3)), make("text", { x: 2, y: top + 4 }, number(y1, 3)), make("text", { x: left + 4, y: 10 }, searchMetric(search))];
  return make("svg", { viewBox: `0 0 ${width} ${height}`, width, role: "img", "aria-label": `${searchMetric(search)}, ${name}` }, ...axes, ...dots);
}

function drawProblems() {
  const rows = data.trials.filter((trial) => trial.r !== undefined && matches(data.configurations[trial.m], cellName(trial.c)));
  if (!rows.length) return body("problems", make("p", {}, t("none here")));
  const columns = [{ key: "configuration", title: t("configuration"), value: (r) => data.configurations[r.m], text: true },
    { key: "category", title: t("category"), value: (r) => cellName(r.c), text: true }, { key: "seed", title: t("seed"), value: (r) => r.s },
    { key: "status", title: t("how it ended"), value: (r) => t(r.x), text: true }, { key: "reason", title: t("reason"), value: (r) => r.r, text: true, wrap: true }];
  body("problems", sortable("problems", columns, rows, t("problems")));
}

function drawDecisions() {
  document.getElementById("decision").hidden = !data.decisions.length;
  const shown = data.decisions.filter((one) => matches(one.part));
  body("decision", ...shown.map((one) => {
    const said = one[state.language];
    return make("article", { class: "decision" }, ...said.lines.map((line) => make("p", {}, line.trim())), one.counts ? make("p", {}, imageCounts(one)) : null,
      one.rates ? rateSlider(one) : null, said.notes.length ? make("ul", { class: "quiet" }, ...said.notes.map((note) => make("li", {}, note))) : null);
  }), shown.length ? null : note("no match"));
}
function imageCounts(one) {
  const [train, holdout, normal, anomalous] = one.counts;
  return say("counts", { train, holdout, normal, anomalous });
}
// Misses and false alarms at another rate: every place of the slider was counted by the program.
function rateSlider(one) {
  const { rows, types, images, normals } = one.rates, defects = images.reduce((a, b) => a + b, 0);
  const result = make("output", { "aria-live": "polite" });
  const slider = make("input", { type: "range", min: 0, max: rows.length - 1, step: 1, value: state.rates[one.part] ?? one.rates.own, "aria-label": `${t("rate label")}, ${one.part}`, oninput: () => { show(); keepState(); } });
  const reset = make("button", { type: "button", onclick: () => { slider.value = one.rates.own; show(); keepState(); } }, t("rate own"));
  function show() {
    const place = Number(slider.value), [promised, bound, alarms, ...missed] = rows[place];
    if (place === one.rates.own) delete state.rates[one.part]; else state.rates[one.part] = place;
    const counts = { missed: missed.reduce((a, b) => a + b, 0), defects, alarms, normals };
    const lines = [say("rate promised", { promised: percent(promised), bound: percent(bound) }), say(normals === null ? "rate drawn" : "rate test", counts)];
    if (types.length > 1) lines.push(types.map((name, i) => say("rate type", { name, missed: missed[i], images: images[i] })).join(", "));
    slider.setAttribute("aria-valuetext", lines.join(". "));
    result.replaceChildren(...lines.map((line) => make("p", {}, line)));
    reset.hidden = place === one.rates.own;
  }
  show();
  return rows.length < 2 ? null : make("div", { class: "rates" }, make("p", {}, t("rate label")), slider, result, reset);
}

function drawOutdated() {
  const metric = data.metrics.indexOf(state.metric);
  const rows = data.outdated.filter((trial) => matches(trial.configuration, trial.cell));
  document.getElementById("outdated").hidden = !data.outdated.length;
  const columns = [{ key: "configuration", title: t("configuration"), value: (r) => r.configuration, text: true },
    { key: "category", title: t("category"), value: (r) => r.cell, text: true }, { key: "seed", title: t("seed"), value: (r) => r.s },
    { key: "value", title: state.metric, value: (r) => r.v[metric], show: (r) => number(r.v[metric]) },
    { key: "finished", title: t("finished"), value: (r) => r.finished || "", text: true },
    { key: "folder", title: t("folder"), value: (r) => r.id, show: (r) => make("a", { href: address(r.f) + "/" }, r.id), text: true },
    { key: "reason", title: t("reason"), value: (r) => r.r, text: true, wrap: true }];
  body("outdated", note("outdated note"), sortable("outdated", columns, rows, t("outdated")));
}

// A lane for each device, in which trials that ran at a time lie above each other.

function drawFleet() {
  document.getElementById("fleet").hidden = !data.fleet.length;
  const end = Math.max(1, ...data.fleet.flatMap((lane) => lane.runs.map(([start, seconds]) => start + seconds)));
  const width = 760, left = 170, height = 30, x = (seconds) => left + (width - left - 5) * seconds / end;
  const lanes = data.fleet.map((lane, i) => {
    const rows = rowsOf(lane.runs), thick = (height - 4) / rows.length;
    const bars = rows.map((row, k) => row.map(([start, seconds]) => `M${x(start).toFixed(1)} ${(i * height + k * thick).toFixed(1)}h${Math.max(0.5, x(seconds) - left).toFixed(1)}v${(thick * 0.9).toFixed(1)}h${-Math.max(0.5, x(seconds) - left).toFixed(1)}z`).join("")).join("");
    return make("g", {}, make("text", { x: 0, y: i * height + height / 2 + 4 }, lane.name), make("path", { d: bars, fill: "currentColor", "fill-opacity": 0.6 }), make("title", {}, `${lane.name}: ${lane.runs.length} ${t("trials")}`));
  });
  const bottom = data.fleet.length * height;
  const axis = [make("path", { d: `M${left} ${bottom}H${width - 5}`, stroke: "currentColor" }), make("text", { x: left, y: bottom + 16 }, "0"), make("text", { x: width - 5, y: bottom + 16, "text-anchor": "end" }, duration(end))];
  body("fleet", note("fleet note"), make("svg", { viewBox: `0 0 ${width} ${bottom + 20}`, width, role: "img", "aria-label": t("fleet") }, ...lanes, ...axis));
}
function rowsOf(runs) {
  const rows = [];
  for (const run of runs) {
    const free = rows.find((row) => row[row.length - 1][0] + row[row.length - 1][1] <= run[0] + 1);
    if (free) free.push(run); else rows.push([run]);
  }
  return rows;
}

function drawMachines() {
  if (!data.machines.length) return body("machines", make("p", {}, t("none here")));
  const keys = [...new Set(data.machines.flatMap((m) => Object.keys(m)))];
  const columns = keys.map((key) => ({ key, title: key, value: (r) => r[key] === undefined ? null : r[key], show: (r) => r[key] === undefined ? "n/a" : String(r[key]), text: key !== "trials" && key !== "threads" }));
  body("machines", sortable("machines", columns, data.machines, t("machines")));
}

function drawFrame() {
  document.documentElement.lang = state.language;
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = t(node.dataset.text);
  document.getElementById("generated").textContent = `${t("generated")} ${new Date(data.generated).toLocaleString(state.language)}`;
  const button = document.getElementById("language");
  button.textContent = t("language");
  button.lang = state.language === "en" ? "ko" : "en";
  document.getElementById("contents").replaceChildren(make("ul", {}, ...[...document.querySelectorAll("main section:not([hidden])")].map((s) => make("li", {}, make("a", { href: `#${s.id}` }, s.querySelector("h2").textContent)))));
}

function draw() {
  drawDecisions();
  drawSearch(); drawConditions(); drawRobustness(); drawOutdated(); drawFleet(); drawProgress(); drawRanking(); drawCells(); drawPromise(); drawCost(); drawGallery(); drawPublished(); drawProblems(); drawMachines();
  // A search has no trials of a grid, so that these would be headings without anything below.
  const empty = data.searches.length && !data.trials.length;
  for (const id of ["progress", "ranking", "cells", "cost", "problems", "machines"]) document.getElementById(id).hidden = empty;
  drawFrame();
}

for (const [id, key] of [["detail", "cell"], ["viewer", "viewing"]]) {
  document.getElementById(id).addEventListener("close", () => { state[key] = null; keepState(); });
}
document.getElementById("viewer").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  viewPicture((state.viewing + step + state.viewed.length) % state.viewed.length);
});
const metricChoice = document.getElementById("metric");
metricChoice.append(...data.metrics.filter((name, i) => i === 0 || data.rankings[name]).map((name) => make("option", { value: name }, name)));
metricChoice.value = state.metric;
metricChoice.addEventListener("change", () => { state.metric = metricChoice.value; keepState(); draw(); });
let pending = 0;
document.getElementById("filter").addEventListener("input", (event) => {
  clearTimeout(pending);
  pending = setTimeout(() => { state.filter = event.target.value; keepState(); draw(); }, 150);
});
document.getElementById("language").addEventListener("click", () => {
  state.language = state.language === "en" ? "ko" : "en";
  try { localStorage.setItem("adray-language", state.language); } catch { /* a file without storage */ }
  keepState();
  draw();
});
document.getElementById("filter").value = state.filter;
// While the sweep runs the page is read again, unless somebody is at work on it.
function readAgain() {
  const busy = document.querySelector("dialog[open]") || document.activeElement.matches("input, select");
  if (busy) return setTimeout(readAgain, 1000);
  location.reload();
}
if (data.progress) setTimeout(readAgain, 1000 * data.refresh);
draw();
openLinked();
