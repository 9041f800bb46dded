// What the page holds and what is chosen; the headline.

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

/** One line a value, groups indented. */
function outline(group, indent = "") {
  const isGroup = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
  return Object.entries(group).map(([name, value]) => (isGroup(value) ? `${indent}${name}\n${outline(value, `${indent}    `)}` : `${indent}${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`)).join("\n");
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
  byId("provenance").textContent = outline(DATA.provenance);
  for (const label of ["all", ...LABELS]) {
    const count = label === "all" ? UNITS.length : counts[label];
    byId("filters").append(el("button", { type: "button", "data-label": label, text: `${label === "all" ? "All" : label} ${count}`, onclick: () => filter(label) }));
  }
}
