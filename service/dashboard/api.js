// Requests to the server: the key, refusals in words, and whether it answers at all.

const KEY = "accm_key";
const LOOK_MS = 8_000; // an answer to a look takes no longer, or the server is away
const ASK_MS = 120_000; // it may look through a session before it answers
const PRINTABLE = /^[\x21-\x7e]+$/;

/** "needs-key" and "key", "down" and "up", "changed": something was asked for, look again. */
export const bus = new EventTarget();
const tellAll = (name) => bus.dispatchEvent(new Event(name));
export const changed = () => tellAll("changed");

/** The server said no. */
export class Refused extends Error {
  constructor(status, body, message) {
    super(message);
    this.status = status;
    this.body = body;
  }
}
export class Unreachable extends Error {}
export class NeedsKey extends Error {}

let key = sessionStorage.getItem(KEY) ?? keyOfCookie() ?? "";
let reachable = true;
let ahead_ms = 0; // of the server's clock before ours

export const hasKey = () => key !== "";
export const isReachable = () => reachable;
export const serverNow = () => Date.now() + ahead_ms;
export const part = (name) => encodeURIComponent(name);

function keyOfCookie() {
  const found = document.cookie.split("; ").find((text) => text.startsWith(`${KEY}=`));
  try { return found && decodeURIComponent(found.slice(KEY.length + 1)); } catch { return undefined; }
}

// the cookie lets links to results and reports work; it goes to this server alone, with GET
function keepKey(text) {
  key = text;
  const attributes = `; Path=${new URL(".", location.href).pathname}; SameSite=Strict${location.protocol === "https:" ? "; Secure" : ""}`;
  if (text) {
    sessionStorage.setItem(KEY, text);
    document.cookie = `${KEY}=${encodeURIComponent(text)}${attributes}`;
  } else {
    sessionStorage.removeItem(KEY);
    document.cookie = `${KEY}=${attributes}; Max-Age=0`;
  }
}

export function forgetKey() {
  keepKey("");
}

/** Try a key, and keep it when the server takes it. */
export async function tryKey(text) {
  const given = text.trim();
  if (!PRINTABLE.test(given)) throw new Error("A key has letters, digits and signs of ASCII and no spaces. Look whether all of it was pasted.");
  key = given;
  try {
    await request("GET", "server");
  } catch (error) {
    keepKey("");
    throw error instanceof NeedsKey ? new Error("The server refuses this key.") : error;
  }
  keepKey(given);
  tellAll("key");
}

function setReachable(now) {
  if (now === reachable) return;
  reachable = now;
  tellAll(now ? "up" : "down");
}

/** Ask the server; gives the JSON it answers. `limit_ms` 0 waits for as long as it takes. */
export async function request(method, path, { json, body, headers = {}, signal, limit_ms = method === "GET" ? LOOK_MS : ASK_MS } = {}) {
  const stops = [signal, limit_ms ? AbortSignal.timeout(limit_ms) : null].filter(Boolean);
  const init = { method, headers: { ...headers }, body, cache: "no-store", signal: stops.length ? AbortSignal.any(stops) : undefined };
  if (key) init.headers.Authorization = `Bearer ${key}`;
  if (json !== undefined) {
    init.body = JSON.stringify(json);
    init.headers["Content-Type"] = "application/json";
  }
  let response, text;
  try {
    response = await fetch(path, init);
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    setReachable(false);
    throw new Unreachable("The server does not answer.", { cause: error });
  }
  const isGateway = [502, 503, 504].includes(response.status); // of a proxy before the server
  setReachable(!isGateway);
  if (isGateway) throw new Unreachable(`The server does not answer (${response.status}).`);
  const date = Date.parse(response.headers.get("Date") ?? "");
  if (!Number.isNaN(date)) ahead_ms = Math.abs(date - Date.now()) > 2000 ? date - Date.now() : 0;
  if (response.status === 401) {
    tellAll("needs-key");
    throw new NeedsKey("The server asks for a key.");
  }
  const answer = readJson(text);
  if (!response.ok) throw new Refused(response.status, answer, refusal(response, answer));
  return answer;
}

function readJson(text) {
  try { return JSON.parse(text); } catch { return null; }
}

function refusal(response, answer) {
  const lines = [typeof answer?.error === "string" ? answer.error : `The server answered ${response.status} ${response.statusText}.`];
  for (const { loc, msg } of Array.isArray(answer?.detail) ? answer.detail : []) {
    lines.push(`${(loc ?? []).join(".")}: ${msg}`);
  }
  return lines.join("\n");
}
