// The page: what is chosen, the table, the unit, and when to draw.

const DATA = JSON.parse(document.getElementById("data").textContent);
const UNITS = DATA.units;
const SPAN = [DATA.headline.start, DATA.headline.stop > DATA.headline.start ? DATA.headline.stop : DATA.headline.start + 1];
const TIME = unpack(DATA.spikes.time, Uint16Array).map((t) => t + DATA.headline.start);
const AMPLITUDE = unpack(DATA.spikes.amplitude, Int16Array);
const EMBEDDING = { x: unpack(DATA.embedding.x, Int16Array), y: unpack(DATA.embedding.y, Int16Array), unit: new Uint16Array(bytesOf(DATA.embedding.unit)) };
const LABELS = ["good", "mua", "noise"];
const COLUMNS = [
  { key: "id", name: "Unit" },
  { key: "label", name: "Label", words: true },
  { key: "firing_rate", name: "Rate", unit: "Hz", digits: 2 },
  { key: "snr", name: "SNR", digits: 1, low: DATA.limits.snr },
  { key: "amplitude_median", name: "Amp.", unit: "µV", digits: 0 },
  { key: "isi_violations_ratio", name: "ISI viol.", digits: 2, high: DATA.limits.isi_violations_ratio, title: "Refractory period violations: estimated share of false spikes (Hill et al. 2011)" },
  { key: "presence_ratio", name: "Presence", digits: 2, low: DATA.limits.presence_ratio, title: "Share of the minutes in which the unit fires" },
  { key: "depth", name: "Depth", unit: "µm", digits: 0 },
  { key: "spikes", name: "Spikes", digits: 0 },
  { key: "reason", name: "Why", words: true },
];
const state = { unit: -1, label: "all", sort: "id", down: false };

const byId = (id) => document.getElementById(id);
const shown = (unit) => state.label === "all" || unit.label === state.label;

function el(tag, { text, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null) node.setAttribute(name, value);
  }
  if (text !== undefined) node.textContent = text;
  node.append(...children);
  return node;
}

function number(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");
}

function duration(seconds) {
  if (seconds < 120) return `${number(seconds, seconds % 1 ? 1 : 0)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

const dot = (unit) => { const node = el("span", { class: "dot", "aria-hidden": "true" }); node.style.background = unit.color; return node; };

// ---- colours and rows ----

function placeUnits() {
  const order = UNITS.map((_, k) => k).sort((a, b) => (UNITS[a].depth ?? -a) - (UNITS[b].depth ?? -b) || a - b);
  order.forEach((k, rank) => { UNITS[k].color = PALETTE[rank % PALETTE.length]; UNITS[k].rank = rank; });
  UNITS.forEach((unit, k) => { unit.index = k; });
}

// ---- headline ----

function card(name, value, ...more) {
  return el("div", { class: "card" }, el("p", { class: "name", text: name }), el("p", { class: "value", text: value }), ...more);
}

function drawHeadline() {
  const head = DATA.headline;
  const counts = Object.fromEntries(LABELS.map((label) => [label, UNITS.filter((u) => u.label === label).length]));
  const shares = el("div", { class: "shares", "aria-hidden": "true" });
  const legend = el("p", { class: "legend" });
  for (const label of LABELS) {
    if (counts[label]) { const part = el("span", { class: `fill-${label}` }); part.style.flex = counts[label]; shares.append(part); }
    legend.append(el("span", {}, el("span", { class: `dot fill-${label}` }), el("b", { text: counts[label] }), ` ${label}`));
  }
  const share = head.spikes ? ` ${number((100 * head.overlaps) / head.spikes, 1)} % overlap another` : "";
  const gaps = head.segments > 1 ? `in ${head.segments} stretches with gaps between` : "without gaps";
  const named = head.badChannels.slice(0, 6).join(", ") + (head.badChannels.length > 6 ? ` and ${head.badChannels.length - 6} more` : "");
  const bad = head.badChannels.length ? `and ${head.badChannels.length} left out: ${named}` : "none left out";
  byId("headline").append(
    card("Units", number(UNITS.length), shares, legend),
    card("Spikes", number(head.spikes), el("p", { class: "more", text: share })),
    card("Duration", duration(head.duration), el("p", { class: "more", text: gaps })),
    card("Channels", number(DATA.channels.id.length), el("p", { class: "more", text: bad })),
  );
  const shanks = head.shanks > 1 ? ` · ${head.shanks} shanks` : "";
  byId("subtitle").textContent = `${number(head.samplingFrequency / 1000, head.samplingFrequency % 1000 ? 2 : 0)} kHz${shanks} · made by ${document.querySelector("meta[name=generator]").content}`;
  if (head.warnings.length) {
    const list = el("ul");
    list.append(...head.warnings.map((text) => el("li", { text })));
    byId("warnings").append(el("b", { text: head.warnings.length > 1 ? `${head.warnings.length} warnings` : "Warning" }), list);
    byId("warnings").hidden = false;
  }
  byId("provenance").textContent = JSON.stringify(DATA.provenance, null, 2);
  for (const label of ["all", ...LABELS]) {
    const count = label === "all" ? UNITS.length : counts[label];
    byId("filters").append(el("button", { type: "button", "data-label": label, text: `${label === "all" ? "All" : label} ${count}`, onclick: () => filter(label) }));
  }
}

// ---- raster ----

let rowY = [];

function activityScale() {
  const depths = DATA.hasGeometry ? DATA.channels.y : UNITS.map((u) => u.rank);
  const low = Math.min(...depths, Infinity), high = Math.max(...depths, -Infinity);
  if (!isFinite(low)) return [0, 1];
  const pad = Math.max((high - low) * 0.04, DATA.hasGeometry ? 10 : 0.6);
  return [low - pad, high + pad];
}

/** Height of each unit's row; rows of units at one depth are moved apart. */
function placeRows(Y, top, bottom) {
  const rows = [...UNITS].sort((a, b) => a.rank - b.rank);
  const apart = Math.min(9, (bottom - top - 8) / Math.max(1, rows.length));
  rowY = [];
  let floor = bottom - 4;
  for (const unit of rows) { rowY[unit.index] = Math.min(Y(unit.depth ?? unit.rank), floor); floor = rowY[unit.index] - apart; }
  let ceiling = top + 4;
  for (const unit of rows.reverse()) { rowY[unit.index] = Math.max(rowY[unit.index], ceiling); ceiling = rowY[unit.index] + apart; }
}

function drawActivity() {
  const y = activityScale();
  const yTicks = DATA.hasGeometry ? undefined : [];
  const plot = axes(byId("raster"), { x: SPAN, y, left: 6, right: 34, xLabel: "time (s)", yTicks });
  placeRows(plot.Y, plot.box.top, plot.box.bottom);
  drawGaps(plot);
  const apart = (plot.box.bottom - plot.box.top) / Math.max(1, UNITS.length);
  const tall = Math.max(2, Math.min(8, apart * 0.8));
  const last = [...UNITS].sort((a, b) => (a.index === state.unit) - (b.index === state.unit));
  for (const unit of last) {
    if (!shown(unit) && unit.index !== state.unit) continue;
    const chosen = unit.index === state.unit;
    const [from, to] = [DATA.spikes.offsets[unit.index], DATA.spikes.offsets[unit.index + 1]];
    plot.ctx.globalAlpha = chosen ? 0.9 : Math.max(0.22, Math.min(0.75, (plot.box.right - plot.box.left) / (1 + to - from)));
    plot.ctx.fillStyle = unit.color;
    const height = chosen ? tall + 3 : tall;
    for (let k = from; k < to; k++) plot.ctx.fillRect(plot.X(TIME[k]), rowY[unit.index] - height / 2, 1, height);
    plot.ctx.globalAlpha = 1;
    if (chosen) markRow(plot, unit);
  }
  drawProbe(y);
}

function markRow(plot, unit) {
  plot.ctx.fillStyle = css("--ink");
  plot.ctx.textAlign = "left";
  plot.ctx.textBaseline = "middle";
  plot.ctx.fillText(`◂ ${unit.id}`, plot.box.right + 3, rowY[unit.index]);
}

function drawGaps(plot) {
  const spans = DATA.headline.spans;
  plot.ctx.fillStyle = css("--soft");
  for (let k = 1; k < spans.length; k++) {
    const from = plot.X(spans[k - 1][1]), to = plot.X(spans[k][0]);
    plot.ctx.fillRect(from, plot.box.top, Math.max(1, to - from), plot.box.bottom - plot.box.top);
  }
}

function drawProbe(y) {
  const { x } = DATA.channels;
  const low = Math.min(...x, Infinity), high = Math.max(...x, -Infinity);
  const pad = Math.max((high - low) * 0.18, 14);
  const yTicks = DATA.hasGeometry ? undefined : [];
  const range = isFinite(low) ? [low - pad, high + pad] : [0, 1];
  const plot = axes(byId("probe"), { x: range, y, left: 40, right: 4, xTicks: [], yTicks, grid: false, xLabel: DATA.hasGeometry ? "µm" : "" });
  if (DATA.hasGeometry) {
    const half = DATA.channels.y.length > 100 ? 1.5 : 3;
    plot.ctx.fillStyle = css("--noise");
    plot.ctx.globalAlpha = 0.55;
    DATA.channels.y.forEach((depth, k) => plot.ctx.fillRect(plot.X(x[k]) - half, plot.Y(depth) - half, 2 * half, 2 * half));
  }
  for (const unit of UNITS) {
    if (!shown(unit) && unit.index !== state.unit) continue;
    const px = DATA.hasGeometry ? plot.X(unit.x) : (plot.box.left + plot.box.right) / 2;
    const py = DATA.hasGeometry ? plot.Y(unit.depth) : rowY[unit.index];
    plot.ctx.globalAlpha = 0.9;
    plot.ctx.fillStyle = unit.color;
    plot.ctx.beginPath();
    plot.ctx.arc(px, py, unit.index === state.unit ? 6 : 4, 0, 7);
    plot.ctx.fill();
    if (unit.index === state.unit) { plot.ctx.strokeStyle = css("--ink"); plot.ctx.lineWidth = 2; plot.ctx.stroke(); }
  }
  plot.ctx.globalAlpha = 1;
}

function unitAt(event) {
  const y = event.clientY - event.currentTarget.getBoundingClientRect().top;
  let best = null, least = 12;
  for (const unit of UNITS) {
    const far = Math.abs(rowY[unit.index] - y);
    if (shown(unit) && far < least) { best = unit; least = far; }
  }
  return best;
}

function showTip(event) {
  const unit = unitAt(event), tip = byId("tip");
  tip.hidden = unit === null;
  if (unit === null) return;
  tip.textContent = `Unit ${unit.id} · ${unit.label} · ${number(unit.firing_rate, 2)} Hz`;
  tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${event.clientY + 14}px`;
}

// ---- table ----

function compare(a, b) {
  const [x, y] = [a[state.sort], b[state.sort]];
  if (x === null || y === null || x === undefined || y === undefined) return (x === null || x === undefined) - (y === null || y === undefined);
  const order = typeof x === "number" ? x - y : state.sort === "label" ? LABELS.indexOf(x) - LABELS.indexOf(y) : String(x).localeCompare(String(y));
  return (state.down ? -order : order) || a.index - b.index;
}

const listed = () => UNITS.filter(shown).sort(compare);

function drawHeadings() {
  byId("headings").replaceChildren(...COLUMNS.map((column) => {
    const button = el("button", { type: "button", title: column.title, text: column.name, onclick: () => sortBy(column.key) });
    if (column.unit) button.append(" ", el("span", { class: "unit", text: column.unit }));
    const sorted = state.sort === column.key ? (state.down ? "descending" : "ascending") : null;
    return el("th", { scope: "col", class: column.words ? "words" : null, "aria-sort": sorted }, button);
  }));
}

function cell(unit, column) {
  const value = unit[column.key];
  if (column.key === "id") return el("td", {}, dot(unit), String(value));
  if (column.key === "label") return el("td", { class: `words ink-${value}`, text: value, title: unit.reason });
  if (column.key === "reason") return el("td", { class: "words why", text: value, title: value });
  const bad = value !== null && ((column.low !== undefined && value < column.low) || (column.high !== undefined && value > column.high));
  return el("td", { class: bad ? "bad" : null, text: number(value, column.digits) });
}

function drawTable() {
  drawHeadings();
  const units = listed();
  const rows = units.map((unit) => {
    const chosen = unit.index === state.unit;
    const row = el("tr", { "data-unit": unit.index, tabindex: chosen ? 0 : -1, "aria-selected": chosen, onclick: () => choose(unit.index, { scroll: true }) });
    row.append(...COLUMNS.map((column) => cell(unit, column)));
    return row;
  });
  if (!rows.length) rows.push(el("tr", {}, el("td", { class: "empty", colspan: COLUMNS.length, text: UNITS.length ? "No unit has this label." : "No units were found." })));
  else if (!rows.some((row) => row.tabIndex === 0)) rows[0].tabIndex = 0;
  byId("rows").replaceChildren(...rows);
}

function sortBy(key) {
  const column = COLUMNS.find((c) => c.key === key);
  state.down = state.sort === key ? !state.down : !(column.words || key === "id"); // large numbers first
  state.sort = key;
  drawTable();
  byId("headings").children[COLUMNS.indexOf(column)].firstChild.focus();
}

function filter(label) {
  state.label = label;
  for (const button of byId("filters").children) button.setAttribute("aria-pressed", button.dataset.label === label);
  drawTable();
  drawActivity();
}

function step(by, { focus = false } = {}) {
  const units = listed();
  const at = units.findIndex((unit) => unit.index === state.unit);
  const next = units[Math.max(0, Math.min(units.length - 1, at < 0 ? 0 : at + by))];
  if (next) choose(next.index, { focus });
}

function onTableKey(event) {
  const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
  if (by === undefined && event.key !== "Enter" && event.key !== " ") return;
  event.preventDefault();
  if (by !== undefined) step(by, { focus: true });
  else choose(Number(event.target.dataset.unit ?? state.unit), { focus: true });
}

// ---- one unit ----

function fact(name, value, more = "") {
  return el("div", {}, el("dt", { text: name }), el("dd", { text: value }, more ? el("small", { text: ` ${more}` }) : ""));
}

function facts(unit) {
  const percent = (value) => (value === null ? "–" : `${number(100 * value, 1)} %`);
  return el("dl", { class: "facts" },
    fact("Spikes", number(unit.spikes), `${number(unit.firing_rate, 2)} Hz`),
    fact("SNR", number(unit.snr, 1)),
    fact("Median amplitude", `${number(unit.amplitude_median, 0)} µV`),
    fact("ISI violations", number(unit.isi_violations_ratio, 3), `count ${number(unit.isi_violations_count)}`),
    fact("Presence ratio", number(unit.presence_ratio, 2)),
    fact("Amplitude cutoff", number(unit.amplitude_cutoff, 3)),
    fact("Probability", number(unit.probability, 3), "mean"),
    fact("Overlapping", percent(unit.overlap)),
    fact("Main channel", DATA.channels.id[unit.main] ?? "–", unit.depth === null ? "" : `at ${number(unit.depth)} µm`),
  );
}

function figure(kind, caption, note, label) {
  const canvas = el("canvas", { role: "img", "aria-label": label });
  const node = el("figure", { class: kind }, el("figcaption", {}, caption, " ", el("span", { text: note })), canvas);
  return { node, canvas };
}

let redrawUnit = () => {};

function drawUnit() {
  const detail = byId("detail"), unit = UNITS[state.unit];
  if (!unit) {
    detail.replaceChildren(el("p", { class: "empty", text: "No units were found. See the warnings and “How this was made”; a lower detect.threshold finds smaller spikes." }));
    return;
  }
  const refractory = `±${number(DATA.correlogram.refractoryMs, 1)} ms`;
  const name = `unit ${unit.id}`;
  const template = figure("tall", "Template", "mean ± SD on its channels", `Mean waveform of ${name} on its nearest channels`);
  const acg = figure("", "Auto-correlogram", `${refractory} shaded`, `Auto-correlogram of ${name}`);
  const isi = figure("", "Intervals", "between spikes", `Histogram of the intervals of ${name}`);
  const amplitude = figure("wide", "Amplitude over time", "µV", `Amplitude of the spikes of ${name} over time`);
  const embedding = figure(unit.similar.length ? "" : "wide", "Embedding", "grey: other units", `Embedding of the spikes of ${name} among others`);
  const crosses = unit.similar.map((other) => {
    const go = el("button", { type: "button", text: `unit ${UNITS[other.unit].id}`, onclick: () => choose(other.unit) });
    const caption = el("span", {}, dot(UNITS[other.unit]), "× ", go);
    caption.style.cssText = "font-weight:600;color:inherit;font-size:13.5px";
    return figure("third", caption, `similarity ${number(other.cosine, 2)}`, `Cross-correlogram of ${name} with unit ${UNITS[other.unit].id}`);
  });
  const compareFigure = figure("", "Beside similar units", "waveforms", `Waveform of ${name} beside those of similar units`);
  const figures = el("div", { class: "figures" }, template.node, acg.node, isi.node, amplitude.node, embedding.node);
  if (unit.similar.length) figures.append(compareFigure.node, ...crosses.map((c) => c.node));
  const title = el("h2", {}, dot(unit), `Unit ${unit.id}`);
  const steps = el("div", { class: "step" }, el("button", { class: "plain", type: "button", text: "← Previous", onclick: () => step(-1) }), el("button", { class: "plain", type: "button", text: "Next →", onclick: () => step(1) }));
  const head = el("div", { class: "unit-head" }, title, el("span", { class: `badge ink-${unit.label}`, text: unit.label }), steps);
  detail.replaceChildren(head, el("p", { class: "muted small", text: unit.reason ? `Why: ${unit.reason}` : "" }), facts(unit), figures,
    el("p", { class: "muted small legend-note", text: `Shaded in the correlograms and intervals: the refractory band, ${refractory}. Dashed: the count that chance would give. Similarity: cosine of the templates.` }));
  redrawUnit = () => {
    drawTemplate(template.canvas, templateOf(unit, unit.channels));
    const chance = (other) => (unit.spikes * other.spikes * DATA.correlogram.binMs) / 1e3 / Math.max(DATA.headline.duration, 1e-9);
    drawCorrelogram(acg.canvas, unit.acg, DATA.correlogram, unit.color, { chance: chance(unit) });
    drawIntervals(isi.canvas, unit.isi, DATA.isiEdgesMs, DATA.correlogram.refractoryMs, unit.color);
    const [from, to] = [DATA.spikes.offsets[unit.index], DATA.spikes.offsets[unit.index + 1]];
    drawAmplitudes(amplitude.canvas, TIME.subarray(from, to), AMPLITUDE.subarray(from, to), SPAN, unit.color);
    drawEmbedding(embedding.canvas, unit);
    if (!unit.similar.length) return;
    drawCompared(compareFigure.canvas, unit);
    crosses.forEach(({ canvas }, k) => {
      const other = UNITS[unit.similar[k].unit];
      drawCorrelogram(canvas, unit.similar[k].ccg, DATA.correlogram, other.color, { chance: chance(other), left: 34 });
    });
  };
  redrawUnit();
}

function templateOf(unit) {
  const places = unit.channels.map((channel, k) => (DATA.hasGeometry ? [DATA.channels.x[channel], DATA.channels.y[channel]] : [0, -k]));
  return {
    mean: unit.mean.values ??= unpack(unit.mean, Int16Array), sd: unit.sd.values ??= unpack(unit.sd, Uint16Array),
    names: unit.channels.map((channel) => DATA.channels.id[channel]), positions: places, color: unit.color, ...DATA.template,
  };
}

/** The unit's main channel: its own mean waveform and that of each similar unit that is drawn on this channel. */
function drawCompared(canvas, unit) {
  const { samples, before, msPerSample } = DATA.template;
  const main = unit.channels[0];
  const curves = [unit, ...unit.similar.map((other) => UNITS[other.unit])].flatMap((each) => {
    const row = each.channels.indexOf(main);
    return row < 0 ? [] : [{ color: each.color, values: templateOf(each).mean.subarray(row * samples, (row + 1) * samples) }];
  });
  const all = curves.flatMap((curve) => [...curve.values]);
  const low = Math.min(0, ...all), high = Math.max(0, ...all), pad = (high - low) * 0.06 || 1;
  const ms = (k) => (k - before) * msPerSample;
  const plot = axes(canvas, { x: [ms(0), ms(samples - 1)], y: [low - pad, high + pad], xLabel: `ms, channel ${DATA.channels.id[main]}, µV` });
  curves.reverse().forEach((curve, k) => line(plot.ctx, Array.from(curve.values, (v, s) => [plot.X(ms(s)), plot.Y(v)]), curve.color, { width: k === curves.length - 1 ? 2.6 : 1.5 }));
}

function drawEmbedding(canvas, unit) {
  const { x, y, unit: owner } = EMBEDDING;
  const near = new Map(unit.similar.map((other) => [other.unit, UNITS[other.unit].color]));
  const range = (values) => {
    let low = Infinity, high = -Infinity;
    for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
    const pad = (high - low) * 0.05 || 1;
    return values.length ? [low - pad, high + pad] : [0, 1];
  };
  const plot = axes(canvas, { x: range(x), y: range(y), left: 6, right: 6, bottom: 8, xTicks: [], yTicks: [], baseline: false });
  if (!x.length) { plot.ctx.fillStyle = css("--muted"); plot.ctx.textAlign = "left"; plot.ctx.fillText("No embedding is stored in this file.", 16, 24); return; }
  dots(plot, x, y, (k) => owner[k] !== unit.index && !near.has(owner[k]), css("--noise"), { size: 1.6, alpha: 0.28 });
  for (const [other, color] of near) dots(plot, x, y, (k) => owner[k] === other, color, { size: 2, alpha: 0.5 });
  dots(plot, x, y, (k) => owner[k] === unit.index, unit.color, { size: 2.8, alpha: 0.85 });
}

// ---- choosing ----

function choose(index, { focus = false, scroll = false } = {}) {
  if (!UNITS[index]) return;
  state.unit = index;
  for (const row of byId("rows").children) {
    const chosen = Number(row.dataset.unit) === index;
    row.setAttribute("aria-selected", chosen);
    row.tabIndex = chosen ? 0 : -1;
    if (chosen && focus) row.focus({ preventScroll: true });
    if (chosen) reveal(row);
  }
  try { history.replaceState(null, "", `#unit-${UNITS[index].id}`); } catch { /* a sandboxed frame has no history */ }
  drawUnit();
  drawActivity();
  if (scroll && matchMedia("(max-width: 1080px)").matches) byId("detail").scrollIntoView({ behavior: "smooth", block: "start" });
}

/** Scroll the table, and not the page, until a row is in sight. */
function reveal(row) {
  const frame = row.closest(".scroll"), heading = byId("headings").offsetHeight;
  const top = row.offsetTop - heading, bottom = row.offsetTop + row.offsetHeight;
  if (top < frame.scrollTop) frame.scrollTop = top;
  else if (bottom > frame.scrollTop + frame.clientHeight) frame.scrollTop = bottom - frame.clientHeight;
}

function fromAddress() {
  const found = /^#unit-(-?\d+)$/.exec(location.hash);
  return found ? UNITS.findIndex((unit) => unit.id === Number(found[1])) : -1;
}

function redraw() {
  drawActivity();
  redrawUnit();
}

function isDark() {
  return (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
}

function nameTheme() {
  byId("theme").textContent = isDark() ? "Light" : "Dark";
  byId("theme").setAttribute("aria-label", isDark() ? "Switch to light colours" : "Switch to dark colours");
}

function start() {
  placeUnits();
  drawHeadline();
  const most = Math.max(0, ...UNITS.map((unit, k) => unit.spikes - (DATA.spikes.offsets[k + 1] - DATA.spikes.offsets[k])));
  byId("activity-note").textContent = (DATA.hasGeometry ? "Depth is the probe's y, in µm; a unit stands where its template is, and rows at one depth are moved apart." : "The channels have no positions: units stand in rows.") + (most ? " Of busy units an even sample of the spikes is drawn." : "");
  byId("rows").addEventListener("keydown", onTableKey);
  for (const id of ["raster", "probe"]) {
    byId(id).addEventListener("pointermove", showTip);
    byId(id).addEventListener("pointerleave", () => { byId("tip").hidden = true; });
    byId(id).addEventListener("click", (event) => { const unit = unitAt(event); if (unit) choose(unit.index); });
  }
  byId("theme").addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); redraw(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { nameTheme(); redraw(); });
  window.addEventListener("hashchange", () => choose(fromAddress()));
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; redraw(); } });
  nameTheme();
  filter("all");
  const first = fromAddress();
  if (UNITS.length) choose(first >= 0 ? first : listed()[0].index);
  else drawUnit();
}

start();
