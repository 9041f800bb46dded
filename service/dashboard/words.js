// Numbers, times and states in words.

const STAGES = {
  read: "Opening the session",
  noise: "Measuring the noise",
  detect: "Detecting spikes",
  motion: "Following drift",
  learn: "Learning the embedding",
  cluster: "Finding units",
  templates: "Making templates",
  refine: "Refining units",
  match: "Matching spikes, overlaps too",
  labels: "Reading the labels",
  heads: "Learning the units",
  pretrain: "Training the encoder",
  write: "Writing the NWB file",
  report: "Drawing the report",
};
const STATES = { queued: "Waiting", running: "Running", done: "Done", failed: "Failed", cancelled: "Cancelled" };
const KINDS = { sort: "Sort", finetune: "Fine-tune", pretrain: "Pretrain" };
const MODEL_KINDS = { encoder: "Encoder", finetuned: "Fine-tuned" };

const named = (words, name) => (Object.hasOwn(words, name) ? words[name] : String(name ?? ""));
export const stage = (name) => named(STAGES, name);
export const state = (name) => named(STATES, name);
export const kind = (name) => named(KINDS, name);
export const modelKind = (name) => named(MODEL_KINDS, name);

export function number(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");
}

export const count = (value, noun) => `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
export const percent = (fraction) => `${Math.floor(100 * Math.min(1, Math.max(0, fraction ?? 0)))} %`;

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let k = 0;
  while (value >= 999.5 && k < units.length - 1) { value /= 1000; k += 1; }
  return `${number(value, k > 0 && value < 9.95 ? 1 : 0)} ${units[k]}`;
}

export function duration(seconds) {
  const s = Math.max(0, seconds);
  if (s < 10) return `${number(s, s % 1 ? 1 : 0)} s`;
  if (s < 119.5) return `${Math.round(s)} s`;
  const total = Math.round(s);
  if (total < 7200) return `${Math.floor(total / 60)} min ${total % 60} s`;
  return `${Math.floor(total / 3600)} h ${Math.floor((total % 3600) / 60)} min`;
}

/** Time left, as coarse as it is known. */
export function left(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "";
  if (seconds < 10) return "a few seconds left";
  if (seconds < 55) return `${Math.ceil(seconds / 5) * 5} s left`;
  if (seconds < 5400) return `${Math.max(1, Math.round(seconds / 60))} min left`;
  return `${number(seconds / 3600, 1)} h left`;
}

/** A time as one says it: the hour today, else the day too. */
export function clock(iso, now = new Date()) {
  const when = new Date(iso);
  const hour = when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  if (when.toDateString() === now.toDateString()) return hour;
  const day = { day: "numeric", month: "short", ...(when.getFullYear() === now.getFullYear() ? {} : { year: "numeric" }) };
  return `${when.toLocaleDateString([], day)}, ${hour}`;
}

/** One line a value, groups indented; what is not set is left out. */
export function outline(group, indent = "") {
  const isGroup = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
  const plain = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  return Object.entries(group).filter(([, value]) => value !== null).map(([name, value]) => {
    if (isGroup(value)) return `${indent}${name}\n${outline(value, `${indent}    `)}`;
    if (Array.isArray(value) && value.some(isGroup)) {
      return `${indent}${name}\n${value.map((item, k) => `${indent}    ${k + 1}\n${outline(item, `${indent}        `)}`).join("\n")}`;
    }
    return `${indent}${name}: ${plain(value)}`;
  }).join("\n");
}
