// The streams that are sorted online now.

import { request, serverNow } from "./api.js";
import { byId, el, Rows, setText } from "./dom.js";
import * as words from "./words.js";

const BEHIND_S = 1; // from here on it is shown as a trouble
const FACTS = ["Channels", "Time", "Spikes", "Units", "Latency p50", "Latency p99", "Behind"];
const rows = new Rows((stream) => stream.session, makeRow, byId("stream-title"));

export async function refreshStreams() {
  const { limit, streams } = await request("GET", "streams");
  rows.show([[byId("streams"), streams]]);
  setText(byId("stream-limit"), `${streams.length} of ${words.count(limit, "session")} at once`);
  byId("stream-empty").hidden = streams.length > 0;
  const socket = new URL("stream", location.href.split("#")[0]).href.replace(/^http/, "ws");
  setText(byId("stream-empty"), `No recording is being sorted online. Acquisition programs connect to ${socket}.`);
}

function makeRow({ session }) {
  const line = el("p", { class: "line" });
  const values = FACTS.map((name) => [name, el("dd")]);
  const node = el("li", { class: "row plain stream" },
    el("span", { class: "mark", "aria-hidden": "true" }),
    el("div", { class: "what" }, el("p", { class: "title", tabindex: "-1", text: session }), line),
    el("dl", { class: "facts" }, ...values.map(([name, value]) => el("div", {}, el("dt", { text: name }), value))));
  return {
    node,
    update(stream) {
      node.dataset.state = stream.state === "live" ? "live" : "running";
      const state = { calibrating: "Calibrating", "catching up": "Catching up", live: "Live" }[stream.state] ?? stream.state;
      setText(line, `${state} · for ${words.duration(Math.max(0, Math.floor((serverNow() - Date.parse(stream.started)) / 1000)))} · ${words.number(stream.sampling_frequency / 1000, 1)} kHz`);
      const { p50, p99 } = stream.latency_ms ?? {};
      const latency = (value) => (value === null || value === undefined ? "–" : `${words.number(value, 1)} ms`);
      const texts = [words.number(stream.num_channels), words.duration(Math.floor(stream.samples / stream.sampling_frequency)), words.number(stream.spikes), words.number(stream.units), latency(p50), latency(p99), words.duration(Number((stream.behind_s ?? 0).toFixed(1)))];
      values.forEach(([, value], k) => setText(value, texts[k]));
      values.at(-1)[1].classList.toggle("bad", stream.behind_s >= BEHIND_S);
    },
  };
}
