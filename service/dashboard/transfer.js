// One file to the server, in slices: goes on after a broken connection, a restart of the server or of the page.

import { bus, NeedsKey, part, Refused, request, Unreachable } from "./api.js";

const MIB = 1024 ** 2;
const SLICE = { first: 8 * MIB, least: MIB, most: 64 * MIB };
const FAST_MS = 400, SLOW_MS = 2500; // a slice that takes less is doubled, one that takes more is halved
const PAUSES_MS = [500, 1000, 2000, 4000, 8000];
const PASSING = [408, 409, 429]; // refusals that pass: nothing came, the last part is still being written, too many at once
const MOST_REFUSALS = 60; // in a row, some 8 minutes: a large file may take that long to check
const SMOOTH = 0.3; // weight of the newest slice in the speed
const KEPT = "accm_uploads"; // what was begun from this browser: name -> [bytes, modified]
const HDF5 = [0x89, 0x48, 0x44, 0x46, 0x0d, 0x0a, 0x1a, 0x0a];
const HDF5_OFFSETS = [0, 512, 1024, 2048, 4096];

/** Name under which the server keeps a file: letters, digits and `._-`. */
export function uploadName(fileName) {
  const name = fileName.normalize("NFKD").replace(/[\u0300-\u036f]/g, "").replace(/[^A-Za-z0-9._-]+/g, "_").replace(/^[._-]+/, "");
  return name.length > 200 ? name.slice(0, 150) + name.slice(-50) : name || "session.nwb";
}

/** Whether a file begins as an HDF5 file does, a user block before it allowed. */
export async function isHdf5(file) {
  for (const offset of HDF5_OFFSETS) {
    const head = new Uint8Array(await file.slice(offset, offset + HDF5.length).arrayBuffer());
    if (head.length === HDF5.length && HDF5.every((value, k) => value === head[k])) return true;
  }
  return false;
}

/** Whether an upload of this name was begun from this browser with this very file. */
export function wasBegun(name, file) {
  const kept = readKept()[name];
  return Boolean(kept) && kept[0] === file.size && kept[1] === file.lastModified;
}

export function forgetBegun(name) {
  const { [name]: _, ...others } = readKept();
  localStorage.setItem(KEPT, JSON.stringify(others));
}

function readKept() {
  try { return JSON.parse(localStorage.getItem(KEPT)) ?? {}; } catch { return {}; }
}

/**
 * Send a file from a byte on; `onProgress({ sent, rate, waits })` with rate in bytes/s, null before it is known,
 * and in `waits` what it waits for, in words.
 * Ends when all is there; throws what the server refuses, and when `signal` aborts.
 */
export async function sendFile(file, name, { from, signal, onProgress }) {
  localStorage.setItem(KEPT, JSON.stringify({ ...readKept(), [name]: [file.size, file.lastModified] }));
  let sent = from, size = SLICE.first, rate = null, failures = 0;
  while (sent < file.size) {
    onProgress({ sent, rate, waits: "" });
    const began = performance.now();
    try {
      if (failures) sent = await bytesThere(name, file, signal);
      const end = Math.min(file.size, sent + size);
      if (sent === end) break;
      const headers = { "Content-Range": `bytes ${sent}-${end - 1}/${file.size}`, "Content-Type": "application/octet-stream" };
      await request("PUT", `uploads/${part(name)}`, { body: file.slice(sent, end), headers, signal, limit_ms: 0 });
      const took = performance.now() - began;
      const speed = ((end - sent) / Math.max(took, 1)) * 1000;
      rate = rate === null ? speed : SMOOTH * speed + (1 - SMOOTH) * rate;
      if (took < FAST_MS) size = Math.min(SLICE.most, 2 * size);
      if (took > SLOW_MS) size = Math.max(SLICE.least, size / 2);
      sent = end;
      failures = 0;
    } catch (error) {
      if (signal.aborted) throw error;
      await waitAfter(error, { file, sent, failures, signal, onWait: (waits) => onProgress({ sent, rate: null, waits }) });
      failures += 1;
    }
  }
  forgetBegun(name);
  onProgress({ sent: file.size, rate, waits: "" });
}

/** Byte to go on from: what the server has of a file, nothing, or all of it. */
async function bytesThere(name, file, signal) {
  let there;
  try {
    there = await request("GET", `uploads/${part(name)}`, { signal });
  } catch (error) {
    if (error instanceof Refused && error.status === 404) return 0;
    throw error;
  }
  if (there.complete && there.bytes !== file.size) {
    throw new Error(`Another file was sent as ${name} meanwhile. Rename yours, and send it again.`);
  }
  return nextByte(there, file);
}

/** Byte from which to go on with a file of which the server has `there`. */
export function nextByte(there, file) {
  if (there.complete) return file.size;
  // all bytes, but never completed, as after a crash: from the start; while it is still being checked, that is refused
  return there.total === file.size && there.bytes < file.size ? there.bytes : 0;
}

/** Wait until it makes sense to try again; throw where it never will. */
async function waitAfter(error, { file, sent, failures, signal, onWait }) {
  if (error instanceof NeedsKey) {
    onWait("Waiting for the key");
    await happens("key", signal);
    return;
  }
  const isAway = error instanceof Unreachable;
  if (!isAway && !(error instanceof Refused && PASSING.includes(error.status) && failures < MOST_REFUSALS)) throw error;
  if (isAway) await checkReadable(file, sent);
  onWait(isAway ? "The server does not answer: goes on by itself" : "The server is busy with this file: goes on by itself");
  await happens("up", signal, PAUSES_MS[Math.min(failures, PAUSES_MS.length - 1)]);
}

/** Refuse a file that is gone: to `fetch` that looks like a server that is. */
async function checkReadable(file, offset) {
  try {
    await file.slice(offset, offset + 1).arrayBuffer();
  } catch (cause) {
    throw new Error(`${file.name} cannot be read any more: it was changed, moved or removed. Choose it again.`, { cause });
  }
}

/** Resolve when the bus says so, or after a time; reject when `signal` aborts. */
function happens(name, signal, most_ms) {
  return new Promise((resolve, reject) => {
    const timer = most_ms && setTimeout(end, most_ms);
    function end() {
      clearTimeout(timer);
      bus.removeEventListener(name, end);
      signal.removeEventListener("abort", end);
      if (signal.aborted) reject(signal.reason);
      else resolve();
    }
    bus.addEventListener(name, end);
    signal.addEventListener("abort", end);
  });
}
