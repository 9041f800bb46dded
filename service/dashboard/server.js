// The server itself, its disk and the files uploaded to it.

import { part, request } from "./api.js";
import { announce, byId, el, question, Rows, setText } from "./dom.js";
import * as words from "./words.js";

const rows = new Rows((upload) => upload.name, makeRow, byId("uploads-title"));

/** Fetch and show what the server is; gives it. */
export async function refreshServer() {
  const server = await request("GET", "server");
  const facts = [
    ...(server.problem ? [["State", server.problem]] : []),
    ["Version", server.version],
    ["Device", server.device],
    ["GPUs", server.gpus?.length ? server.gpus.join(", ") : "none"],
    ["Jobs run on", server.scheduler || "this machine"],
    ["Longest queue", words.count(server.limits.max_queue, "job")],
    ["Largest upload", words.bytes(server.limits.max_upload)],
    ["Streams at once", words.number(server.limits.max_streams)],
  ];
  const text = JSON.stringify(facts);
  if (byId("server-facts").dataset.shown !== text) {
    byId("server-facts").dataset.shown = text;
    byId("server-facts").replaceChildren(...facts.map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", { text: String(value ?? "–") }))));
  }
  showDisk(server.disk);
  return server;
}

function showDisk({ free, used, quota }) {
  const room = quota ? Math.min(quota, used + free) : used + free;
  byId("disk").hidden = false;
  setText(byId("disk-used"), `${words.bytes(used)} used`);
  setText(byId("disk-free"), `${words.bytes(Math.max(0, room - used))} free${quota ? ` of the ${words.bytes(quota)} allowed` : ""}`);
  const meter = byId("disk-meter");
  meter.high = 0.9;
  meter.optimum = 0;
  meter.value = room ? used / room : 0;
}

export async function refreshUploads() {
  const { uploads } = await request("GET", "uploads");
  rows.show([[byId("uploads"), uploads]]);
  byId("uploads-empty").hidden = uploads.length > 0;
}

function makeRow({ name }) {
  const line = el("p", { class: "line" });
  const remove = el("button", { type: "button", text: "Remove…", "aria-label": `Remove ${name}`, onclick: () => removeUpload(name) });
  const node = el("li", { class: "row plain single" }, el("div", { class: "what" }, el("p", { class: "title", tabindex: "-1", text: name }), line), el("div", { class: "side" }, remove));
  return {
    node,
    update(upload) {
      const size = upload.complete ? words.bytes(upload.bytes) : `${words.bytes(upload.bytes)} of ${words.bytes(upload.total)}: not whole; choose the same file again to go on`;
      setText(line, [size, upload.created ? words.clock(upload.created) : ""].filter(Boolean).join(" · "));
    },
  };
}

async function removeUpload(name) {
  const answer = await question(`Remove ${name} from the server?`, "Results of jobs stay. Jobs that wait for this file will fail.", [{ text: "Keep it" }, { text: "Remove it", value: "remove", look: "danger" }]);
  if (answer !== "remove") return;
  try {
    await request("DELETE", `uploads/${part(name)}`);
    announce(`${name} is removed.`);
  } catch (error) {
    announce(error.message);
  }
  await refreshUploads();
}
