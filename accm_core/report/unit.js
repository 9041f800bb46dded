// One unit: its numbers and its figures.

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
