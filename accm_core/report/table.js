// The table of units: sorted by a heading, filtered by label, walked through by keys.

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
