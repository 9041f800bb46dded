"use strict";
// Drawing: small functions on a canvas, in CSS pixels. Colours come from the style sheet, so that a theme applies.

const PALETTE = ["#3f7fc1", "#e07b26", "#3d9c50", "#d4494d", "#8a63c9", "#17a2a2", "#c2609c", "#a8842c", "#6a8f2f", "#b0603a"];
const TICK_FONT = "11.5px ";

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function bytesOf(text) {
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let k = 0; k < bytes.length; k++) bytes[k] = characters.charCodeAt(k);
  return bytes.buffer;
}

function unpack(packed, Kind) {
  return Float32Array.from(new Kind(bytesOf(packed.data)), (value) => value * packed.scale);
}

/** Size a canvas for the screen and clear it. */
function fit(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  const ctx = canvas.getContext("2d");
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.clearRect(0, 0, width, height);
  ctx.font = TICK_FONT + css("--font");
  return { ctx, width, height };
}

function ticksBetween(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  if (!(rough > 0) || !isFinite(rough)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough * 0.999);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) ticks.push(Number((k * step).toPrecision(12)));
  return ticks;
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return Number((value / 1e6).toPrecision(3)) + "M";
  if (size >= 1e4) return Number((value / 1e3).toPrecision(3)) + "k";
  return String(Number(value.toPrecision(4))).replace("-", "−");
}

/** Axes on a canvas. Gives the context, the scales X and Y, and the box that they fill. */
function axes(canvas, { x, y, xLabel = "", logX = false, left = 44, right = 10, top = 8, bottom = 34, xTicks, yTicks, grid = true, baseline = true }) {
  const { ctx, width, height } = fit(canvas);
  const box = { left, top, right: Math.max(left + 1, width - right), bottom: Math.max(top + 1, height - bottom) };
  const along = logX ? Math.log10 : (value) => value;
  const [x0, x1] = x.map(along);
  const X = (value) => box.left + ((along(value) - x0) / (x1 - x0 || 1)) * (box.right - box.left);
  const Y = (value) => box.bottom - ((value - y[0]) / (y[1] - y[0] || 1)) * (box.bottom - box.top);
  const muted = css("--muted");
  ctx.lineWidth = 1;
  ctx.textBaseline = "middle";
  for (const value of yTicks || ticksBetween(y[0], y[1], (box.bottom - box.top) / 44)) {
    const at = Math.round(Y(value)) + 0.5;
    if (grid) line(ctx, [[box.left, at], [box.right, at]], css("--line"));
    ctx.fillStyle = muted;
    ctx.textAlign = "right";
    if (left > 24) ctx.fillText(short(value), box.left - 6, at);
  }
  ctx.textAlign = "center";
  const shownTicks = xTicks || ticksBetween(x[0], x[1], (box.right - box.left) / 70).map((value) => [value, short(value)]);
  for (const [value, label] of shownTicks) {
    line(ctx, [[X(value), box.bottom], [X(value), box.bottom + 4]], muted);
    ctx.fillStyle = muted;
    ctx.fillText(label, X(value), box.bottom + 12);
  }
  if (baseline) line(ctx, [[box.left, box.bottom + 0.5], [box.right, box.bottom + 0.5]], muted);
  ctx.textAlign = "right";
  ctx.fillText(xLabel, box.right, box.bottom + 26);
  return { ctx, X, Y, box };
}

function line(ctx, path, color, { width = 1, dash = [] } = {}) {
  ctx.strokeStyle = color;
  ctx.lineWidth = width;
  ctx.setLineDash(dash);
  ctx.beginPath();
  path.forEach(([px, py], k) => (k ? ctx.lineTo(px, py) : ctx.moveTo(px, py)));
  ctx.stroke();
  ctx.setLineDash([]);
}

function bars(plot, edges, counts, color) {
  plot.ctx.fillStyle = color;
  counts.forEach((count, k) => {
    if (!count) return;
    const from = plot.X(edges[k]), to = plot.X(edges[k + 1]), top = plot.Y(count);
    plot.ctx.fillRect(from, top, Math.max(0.7, to - from - (to - from > 4 ? 0.8 : 0)), plot.box.bottom - top);
  });
}

function band(plot, from, to) {
  plot.ctx.fillStyle = css("--shade");
  plot.ctx.fillRect(plot.X(from), plot.box.top, plot.X(to) - plot.X(from), plot.box.bottom - plot.box.top);
}

function dots(plot, xs, ys, keep, color, { size = 2, alpha = 0.6 } = {}) {
  plot.ctx.fillStyle = color;
  plot.ctx.globalAlpha = alpha;
  for (let k = 0; k < xs.length; k++) {
    if (keep && !keep(k)) continue;
    plot.ctx.fillRect(plot.X(xs[k]) - size / 2, plot.Y(ys[k]) - size / 2, size, size);
  }
  plot.ctx.globalAlpha = 1;
}

/** Counts of lags with the refractory band; `chance` is the count that independent trains would give. */
function drawCorrelogram(canvas, counts, { windowMs, binMs, refractoryMs }, color, { chance = 0, left = 44 } = {}) {
  const edges = Array.from({ length: counts.length + 1 }, (_, k) => -windowMs + k * binMs);
  const top = Math.max(4, chance * 1.15, ...counts) * 1.06;
  const plot = axes(canvas, { x: [-windowMs, windowMs], y: [0, top], xLabel: "lag (ms)", left });
  band(plot, -refractoryMs, refractoryMs);
  bars(plot, edges, counts, color);
  if (chance > 0) line(plot.ctx, [[plot.box.left, plot.Y(chance)], [plot.box.right, plot.Y(chance)]], css("--muted"), { dash: [4, 4] });
}

/** Intervals between consecutive spikes, on a logarithmic axis. */
function drawIntervals(canvas, counts, edges, refractoryMs, color) {
  const x = [edges[0], edges[edges.length - 1]];
  const xTicks = [[1, "1"], [10, "10"], [100, "100"], [1000, "1 s"], [10000, "10 s"]];
  const plot = axes(canvas, { x, y: [0, Math.max(4, ...counts) * 1.06], xLabel: "interval (ms)", logX: true, xTicks });
  band(plot, x[0], refractoryMs);
  bars(plot, edges, counts, color);
}

/** Amplitude of the spikes over time, with its histogram at the right. */
function drawAmplitudes(canvas, times, amplitudes, span, color) {
  let low = 0, high = 0;
  for (const value of amplitudes) { low = Math.min(low, value); high = Math.max(high, value); }
  const pad = (high - low) * 0.05 || 1;
  const y = [low < 0 ? low - pad : 0, high > 0 ? high + pad : 0];
  const side = 64;
  const plot = axes(canvas, { x: span, y, xLabel: "time (s)", right: side + 10 });
  dots(plot, times, amplitudes, null, color, { size: 2.2, alpha: times.length > 1500 ? 0.4 : 0.65 });
  const bins = 48, counts = new Array(bins).fill(0);
  for (const value of amplitudes) counts[Math.min(bins - 1, Math.floor(((value - y[0]) / (y[1] - y[0])) * bins))]++;
  const most = Math.max(1, ...counts), step = (plot.box.bottom - plot.box.top) / bins;
  plot.ctx.fillStyle = color;
  plot.ctx.globalAlpha = 0.75;
  counts.forEach((count, k) => plot.ctx.fillRect(plot.box.right + 8, plot.box.bottom - (k + 1) * step, (count / most) * side, Math.max(0.7, step - 0.6)));
  plot.ctx.globalAlpha = 1;
}

/** Where each drawn channel stands, as a fraction of the room between the outermost: [across, up]. */
function spread(positions) {
  return [0, 1].map((axis) => {
    const values = positions.map((p) => p[axis]);
    const low = Math.min(...values), high = Math.max(...values);
    const steps = [...new Set(values)].sort((a, b) => a - b);
    const gap = Math.min(...steps.slice(1).map((v, k) => v - steps[k]));
    return { at: values.map((v) => (high > low ? (v - low) / (high - low) : 0.5)), gap: high > low ? Math.min(1, gap / (high - low)) : 1, one: high === low };
  });
}

/** Mean waveform on each channel where the channel stands, with one standard deviation. */
function drawTemplate(canvas, { mean, sd, names, positions, samples, before, msPerSample, color }) {
  const { ctx, width, height } = fit(canvas);
  const count = names.length;
  const [across, up] = spread(positions);
  const edge = 6, foot = 30;
  // cells as wide as the room between two columns, as high as between two rows
  const cellWidth = across.one ? Math.min(width - 2 * edge, 300) : ((width - 2 * edge) * across.gap) / (1 + across.gap);
  const cellHeight = up.one ? height - foot - 2 * edge : ((height - foot - 2 * edge) * up.gap) / (1 + up.gap);
  const left = edge + cellWidth / 2, right = width - edge - cellWidth / 2;
  let least = 0, most = 0;
  for (const value of mean) { least = Math.min(least, value); most = Math.max(most, value); }
  const perMicrovolt = Math.min(cellHeight * 2.4, (height - foot) * 0.5) / (most - least || 1);
  const reach = (rows, sign) => { // of the outermost rows, beyond their base line
    let far = 0;
    up.at.forEach((at, c) => { if (rows(at)) for (const value of mean.subarray(c * samples, (c + 1) * samples)) far = Math.max(far, sign * value); });
    return far * perMicrovolt + 8;
  };
  const top = edge + Math.max(16, reach((at) => at > 0.8, 1)), bottom = height - foot - edge - Math.max(10, reach((at) => at < 0.2, -1));
  const perSample = (cellWidth * 0.92) / Math.max(1, samples - 1);
  ctx.textBaseline = "middle";
  for (let c = count - 1; c >= 0; c--) {
    const x0 = left + (right - left) * (across.one ? 0.5 : across.at[c]) - (perSample * (samples - 1)) / 2;
    const y0 = bottom - (bottom - top) * (up.one ? 0.5 : up.at[c]);
    const Y = (value) => y0 - value * perMicrovolt;
    const at = (values, k) => values[c * samples + k];
    line(ctx, [[x0, y0], [x0 + perSample * (samples - 1), y0]], css("--line"));
    ctx.fillStyle = color;
    ctx.globalAlpha = 0.16;
    ctx.beginPath();
    for (let k = 0; k < samples; k++) ctx.lineTo(x0 + k * perSample, Y(at(mean, k) + at(sd, k)));
    for (let k = samples - 1; k >= 0; k--) ctx.lineTo(x0 + k * perSample, Y(at(mean, k) - at(sd, k)));
    ctx.fill();
    ctx.globalAlpha = c === 0 ? 1 : 0.8;
    line(ctx, Array.from({ length: samples }, (_, k) => [x0 + k * perSample, Y(at(mean, k))]), color, { width: c === 0 ? 2.4 : 1.4 });
    ctx.globalAlpha = 1;
    ctx.fillStyle = c === 0 ? css("--ink") : css("--muted");
    ctx.textAlign = "left";
    ctx.fillText(names[c], x0, y0 - 8);
  }
  drawScaleBars(ctx, height, perMicrovolt, perSample / msPerSample, Math.min((most - least) / 3, 56 / perMicrovolt));
}

function drawScaleBars(ctx, height, perMicrovolt, perMs, wanted) {
  const power = 10 ** Math.floor(Math.log10(wanted || 1));
  const size = [5, 2, 1].map((k) => k * power).find((v) => v <= wanted) || power;
  const x = 8, y = height - 8, ink = css("--ink");
  const ms = perMs < 70 ? 1 : 0.5;
  line(ctx, [[x, y - size * perMicrovolt], [x, y], [x + perMs * ms, y]], ink, { width: 1.5 });
  ctx.fillStyle = css("--muted");
  ctx.textAlign = "left";
  ctx.fillText(`${short(size)} µV, ${ms} ms`, x + perMs * ms + 8, y - 4);
}
