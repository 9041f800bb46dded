// Spikes by depth and time, beside the probe.

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
