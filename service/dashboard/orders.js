// What was asked for here and waits until its files are on the server: rows above the jobs.

import { changed, part, Refused, request, Unreachable } from "./api.js";
import { announce, byId, el, question, Rows, setText, tell } from "./dom.js";
import { forgetBegun, isHdf5, nextByte, sendFile, uploadName, wasBegun } from "./transfer.js";
import * as words from "./words.js";

const orders = new Set();
let turn = Promise.resolve(); // one file at a time: each is there as early as can be
let nextId = 0;

const list = new Rows((order) => order.id, makeRow, byId("jobs-title"));
const show = () => list.show([[byId("orders"), orders]]);

export const isSending = () => [...orders].some((order) => order.state !== "failed");
export const anyOrders = () => orders.size > 0;

/**
 * Look at a file before it is sent: `{ file, name, from }` with the byte to go on from, or null when the person
 * thinks better of it. Throws where it is no NWB file.
 */
export async function prepare(file) {
  if (!(await isHdf5(file))) {
    throw new Error(`${file.name} is not an NWB file: it does not begin as HDF5 does. Choose the .nwb file of the session.`);
  }
  const name = uploadName(file.name);
  if ([...orders].some((order) => order.files.some((entry) => entry.name === name))) {
    throw new Error(`${name} is being sent already. Wait for it, or cancel it first.`);
  }
  const there = await lookUp(name);
  if (!there) return { file, name, from: 0 };
  if (!there.complete && there.total === file.size && wasBegun(name, file)) return { file, name, from: nextByte(there, file) };
  const answer = await question(...aboutTaken(name, there, file));
  if (answer === "go on") return { file, name, from: nextByte(there, file) };
  if (answer !== "replace") return null;
  await request("DELETE", `uploads/${part(name)}`);
  return { file, name, from: 0 };
}

/** The same of several files, without those that the person leaves out. */
export async function prepareAll(files) {
  const ready = [];
  for (const file of files) {
    const entry = await prepare(file);
    if (!entry) continue;
    if (ready.some((other) => other.name === entry.name)) throw new Error(`Two of the files would both be named ${entry.name} on the server. Rename one of them.`);
    ready.push(entry);
  }
  return ready;
}

async function lookUp(name) {
  try {
    return await request("GET", `uploads/${part(name)}`);
  } catch (error) {
    if (error instanceof Refused && error.status === 404) return null;
    throw error;
  }
}

function aboutTaken(name, there, file) {
  const when = there.created ? ` from ${words.clock(there.created)}` : "";
  const replace = { text: "Send it again", value: "replace" };
  if (there.complete) {
    const text = `A file of this name${when} has ${words.bytes(there.bytes)}; yours has ${words.bytes(file.size)}.`;
    return [`${name} is on the server already`, text, [{ text: "Use the one there", value: "go on", look: "main" }, replace, { text: "Cancel" }]];
  }
  const share = words.percent(there.bytes / there.total);
  const title = `A part of ${name} is on the server`;
  if (there.total !== file.size) {
    return [title, `It is of a file of ${words.bytes(there.total)}; yours has ${words.bytes(file.size)}.`, [{ ...replace, look: "main" }, { text: "Cancel" }]];
  }
  const text = `${share} is there${when}. Going on is right only if the file has not changed since.`;
  return [title, text, [{ text: `Go on from ${share}`, value: "go on", look: "main" }, replace, { text: "Cancel" }]];
}

/** Send files, then ask for the job: `files` from `prepare`, `ask()` gives the job. */
export function place({ title, files, ask }) {
  const order = { id: nextId++, title, files, ask, state: "waits", sent: 0, rate: null, error: "" };
  orders.add(order);
  run(order);
}

async function run(order) {
  order.stop = new AbortController();
  order.error = "";
  try {
    for (const entry of order.files) {
      if (entry.isThere) continue;
      order.state = "waits";
      order.entry = entry;
      order.sent = entry.from;
      show();
      await inTurn(() => send(order, entry));
      entry.isThere = true;
    }
    order.state = "asks";
    show();
    await askFor(order);
    orders.delete(order);
    announce(`${order.title}: on the server, the job is asked for.`);
  } catch (error) {
    if (order.stop.signal.aborted) orders.delete(order);
    else {
      order.state = "failed";
      order.error = error.message;
      announce(`${order.title} was not sent.`);
    }
  }
  show();
  changed();
}

async function askFor(order) {
  try {
    await order.ask();
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    throw new Error("The server did not answer when the job was asked for. Try again, unless it is among the jobs below.", { cause: error });
  }
}

function inTurn(work) {
  const mine = turn.then(work);
  turn = mine.catch(() => {});
  return mine;
}

async function send(order, entry) {
  const { signal } = order.stop;
  signal.throwIfAborted();
  order.state = "sends";
  await sendFile(entry.file, entry.name, {
    from: entry.from,
    signal,
    onProgress({ sent, rate, waits }) {
      entry.from = sent;
      Object.assign(order, { sent, rate, waits, state: "sends" });
      show();
    },
  });
}

async function cancel(order) {
  const isSent = order.state === "sends";
  order.stop.abort();
  orders.delete(order);
  show();
  announce(`${order.title}: no longer sent.`);
  if (!isSent) return;
  forgetBegun(order.entry.name);
  for (let tries = 0; tries < 5; tries += 1) { // the server may take a while to see that we are gone
    await new Promise((resolve) => { setTimeout(resolve, tries * 1000); });
    const isBusy = await request("DELETE", `uploads/${part(order.entry.name)}`).then(() => false, (error) => error.status === 409);
    if (!isBusy) return; // what is left in any case is in the list of uploaded files
  }
}

function makeRow(order) {
  const title = el("p", { class: "title", tabindex: "-1", text: order.title });
  const line = el("p", { class: "line" });
  const share = el("span", { class: "share" });
  const remaining = el("span", { class: "left" });
  const bar = el("progress", { max: 1, "aria-label": `Sent of ${order.title}` });
  const error = el("p", { class: "error", hidden: true });
  const again = el("button", { type: "button", text: "Try again", onclick: () => run(order) });
  const stop = el("button", { type: "button", onclick: () => cancel(order) });
  const node = el("li", { class: "row" },
    el("span", { class: "mark", "aria-hidden": "true" }),
    el("div", { class: "what" }, title, line),
    el("div", { class: "side" }, share, remaining, again, stop),
    error, bar);
  return {
    node,
    update() {
      const failed = order.state === "failed";
      const file = order.entry?.file;
      node.dataset.state = failed ? "failed" : "running";
      setText(line, describe(order));
      setText(share, file && order.state === "sends" ? words.percent(order.sent / file.size) : "");
      setText(remaining, order.rate && order.state === "sends" ? words.left((file.size - order.sent) / order.rate) : "");
      bar.hidden = failed;
      if (order.state === "asks") bar.removeAttribute("value");
      else bar.value = file ? order.sent / file.size : 0;
      tell(error, order.error);
      again.hidden = !failed;
      setText(stop, failed ? "Dismiss" : "Cancel");
      stop.setAttribute("aria-label", `${failed ? "Dismiss" : "Cancel"} ${order.title}`);
      again.setAttribute("aria-label", `Try ${order.title} again`);
    },
  };
}

function describe(order) {
  if (order.state === "failed") return "Not sent";
  if (order.state === "asks") return "Sent; asking for the job";
  if (order.state === "waits") return "Waiting for the file before it";
  const which = order.files.length > 1 ? `${order.entry.name} · ` : "";
  if (order.waits) return which + order.waits;
  const rate = order.rate ? ` · ${words.bytes(order.rate)}/s` : "";
  const total = order.entry.file.size;
  return `${order.sent < total ? "Sending" : "Checking"} · ${which}${words.bytes(order.sent)} of ${words.bytes(total)}${rate}`;
}
