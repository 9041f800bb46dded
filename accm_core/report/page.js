// Choosing a unit, and when to draw.

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
