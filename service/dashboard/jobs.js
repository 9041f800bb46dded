// The jobs: a row each, those that run and wait first.

import { changed, part, Refused, request, serverNow } from "./api.js";
import { announce, byId, el, Rows, setText, tell } from "./dom.js";
import { offerFinetune } from "./finetune.js";
import { anyOrders } from "./orders.js";
import * as words from "./words.js";

const PAGE = 50; // jobs asked for at once
const LABELS = ["good", "mua", "noise"];
const ENDED = ["done", "failed", "cancelled"];

let limit = PAGE;
let known = null; // id -> state, of the jobs seen last
const rows = new Rows((job) => job.id, makeRow, byId("jobs-title"));

/** Fetch and show the jobs; gives those that ended since the last look. */
export async function refreshJobs() {
  const { jobs } = await request("GET", `jobs?limit=${limit}`);
  const isCut = jobs.length >= limit;
  if (isCut) { // what runs may be older than what was asked for last
    const waiting = await Promise.all(["running", "queued"].map((name) => request("GET", `jobs?state=${name}&limit=${limit}`)));
    const seen = new Set(jobs.map((job) => job.id));
    jobs.push(...waiting.flatMap((answer) => answer.jobs).filter((job) => !seen.has(job.id)));
  }
  const running = jobs.filter((job) => job.state === "running");
  const queued = jobs.filter((job) => job.state === "queued").sort((a, b) => (a.created < b.created ? -1 : 1)); // in their order
  const ended = jobs.filter((job) => ENDED.includes(job.state));
  queued.forEach((job, k) => { job.before = k; });
  rows.show([[byId("jobs-now"), [...running, ...queued]], [byId("jobs-ended"), ended]]);
  byId("ended-title").hidden = !ended.length || !(running.length || queued.length || anyOrders());
  byId("jobs-empty").hidden = jobs.length > 0 || anyOrders();
  byId("older").hidden = !isCut;
  document.title = running.length ? `${words.percent(running[0].fraction)} · accm` : "accm";
  return news(jobs);
}

function news(jobs) {
  const before = known;
  known = new Map(jobs.map((job) => [job.id, job.state]));
  const fresh = before ? jobs.filter((job) => ENDED.includes(job.state) && before.has(job.id) && before.get(job.id) !== job.state) : [];
  if (fresh.length === 1) announce(`${titleOf(fresh[0])}: ${words.state(fresh[0].state).toLowerCase()}. ${summary(fresh[0])}`);
  else if (fresh.length) announce(`${words.count(fresh.length, "job")} ended.`);
  return fresh;
}

byId("older").addEventListener("click", () => { limit *= 2; changed(); });

const titleOf = (job) => (job.kind === "sort" || !job.name ? job.input : job.name) || job.id;
const secondsBetween = (from, to) => (Date.parse(to) - Date.parse(from)) / 1000;

function summary(job) {
  if (job.state !== "done" || !job.result) return "";
  if (job.kind === "sort") return words.count(job.result.units, "unit");
  return job.kind === "finetune" && Array.isArray(job.result.units) ? `Model with ${words.count(job.result.units.length, "unit")}` : "Model made";
}

function makeRow(job) {
  const name = titleOf(job);
  const address = (leaf) => `jobs/${part(job.id)}/${leaf}`;
  const isSort = job.kind === "sort";
  const parts = {
    node: el("li", { class: "row", "data-kind": job.kind }),
    line: el("p", { class: "line" }),
    units: el("p", { class: "units", hidden: true }),
    error: el("p", { class: "error", hidden: true }),
    share: el("span", { class: "share" }),
    left: el("span", { class: "left" }),
    bar: el("progress", { max: 1, "aria-label": `Progress of ${name}` }),
    cancel: el("button", { type: "button", text: "Cancel", "aria-label": `Cancel ${name}`, onclick: () => cancel(job, parts) }),
    report: el("a", { class: "button", href: address("report"), target: "_blank", rel: "noopener", text: "Report", "aria-label": `Report of ${name}` }),
    result: el("a", { class: "button", href: address("result"), download: "", text: isSort ? "Sorted NWB" : "Model file", "aria-label": `${isSort ? "Sorted NWB" : "Model file"} of ${name}` }),
    tune: el("button", { type: "button", text: "Fine-tune…", "aria-label": `Fine-tune on ${name}`, onclick: () => offerFinetune(parts.job) }),
    details: makeDetails(job, name),
  };
  parts.node.append(
    el("span", { class: "mark", "aria-hidden": "true" }),
    el("div", { class: "what" }, el("p", { class: "title", tabindex: "-1", text: name }), parts.line, parts.units),
    el("div", { class: "side" }, parts.share, parts.left, parts.report, parts.result, parts.tune, parts.cancel, parts.details.button),
    parts.error,
    parts.bar,
    parts.details.node,
  );
  return { node: parts.node, update: (now) => updateRow(parts, now) };
}

function updateRow(parts, job) {
  const isEnded = ENDED.includes(job.state), isDone = job.state === "done";
  parts.job = job;
  parts.node.dataset.state = job.state;
  setText(parts.line, describe(job));
  setText(parts.share, job.state === "running" ? words.percent(job.fraction) : "");
  setText(parts.left, job.state === "running" ? words.left(job.eta_s) : "");
  tell(parts.error, job.state === "failed" ? job.error ?? "The job failed and does not say why." : "");
  parts.bar.hidden = job.state !== "running";
  parts.bar.value = job.fraction ?? 0;
  parts.cancel.hidden = isEnded;
  parts.report.hidden = !isDone || job.kind !== "sort";
  parts.result.hidden = !isDone;
  parts.tune.hidden = !isDone || job.kind !== "sort";
  if (isDone && parts.units.hidden && job.kind === "sort") showUnits(parts.units, job.result);
  parts.details.update(job);
}

function describe(job) {
  const begun = job.started ?? job.created;
  const kind = words.kind(job.kind) + (job.kind === "finetune" && job.input ? ` on ${job.input}` : "");
  if (job.state === "queued") return `${kind} · waiting${job.before ? `, ${job.before} before it` : ", next"} · since ${words.clock(job.created)}`;
  if (job.state === "running") {
    const tries = job.attempts > 1 ? ` · attempt ${job.attempts}` : "";
    const so = Math.max(0, (serverNow() - Date.parse(begun)) / 1000);
    return `${job.stage ? words.stage(job.stage) : "Starting"} · ${words.duration(Math.floor(so))} so far${tries}${job.kind === "sort" ? "" : ` · ${kind}`}`;
  }
  const ended = job.finished ?? job.created;
  if (job.state !== "done") return `${kind} · ${words.state(job.state).toLowerCase()} · ${words.clock(ended)}`;
  const facts = [kind, words.clock(ended)];
  if (job.result?.duration_s) facts.push(`${words.duration(Math.round(job.result.duration_s))} of recording`);
  if (job.result?.spikes !== undefined) facts.push(`${words.count(job.result.spikes, "spike")}`);
  if (job.started && job.finished) facts.push(`took ${words.duration(secondsBetween(job.started, job.finished))}`);
  if (job.kind !== "sort") facts.push(summary(job));
  return facts.join(" · ");
}

/** How many units, and how many of each label, as words and as a bar. */
function showUnits(node, result) {
  if (!result) return;
  const labels = result.labels ?? {};
  const bar = el("span", { class: "shares", "aria-hidden": "true" });
  node.replaceChildren(el("b", { text: words.count(result.units, "unit") }));
  for (const label of LABELS.filter((name) => labels[name])) {
    const piece = el("span", { class: `fill-${label}` });
    piece.style.flexGrow = labels[label];
    bar.append(piece);
    node.append(" ", el("span", { class: "label" }, el("span", { class: `dot fill-${label}`, "aria-hidden": "true" }), `${words.number(labels[label])} ${label}`));
  }
  if (bar.childElementCount) node.firstChild.after(bar);
  if (result.warnings?.length) node.append(" ", el("span", { class: "warned", text: words.count(result.warnings.length, "warning") }));
  node.hidden = false;
}

async function cancel(job, parts) {
  if (parts.isCancelling) return;
  parts.isCancelling = true;
  setText(parts.cancel, "Cancelling…");
  try {
    await request("DELETE", `jobs/${part(job.id)}`);
  } catch (error) {
    announce(error.message);
    parts.isCancelling = false;
    setText(parts.cancel, "Cancel");
  }
  changed();
}

/** What is folded away: warnings, the request, the log; fetched when it is opened, and while the job runs. */
function makeDetails(job, name) {
  const text = el("pre", { tabindex: "0", "aria-label": `Log of ${name}`, role: "region" });
  const asked = el("pre", { tabindex: "0", "aria-label": `What was asked for with ${name}`, role: "region" });
  const warnings = el("ul", { class: "warnings", hidden: true });
  const node = el("div", { class: "more", id: `details-${job.id}`, hidden: true }, warnings, el("h4", { text: "Log" }), text, el("h4", { text: "Asked for" }), asked);
  const button = el("button", { type: "button", class: "quiet fold", text: "Details", "aria-label": `Details of ${name}`, "aria-expanded": "false", "aria-controls": node.id, onclick: fold });
  function fold() {
    node.hidden = !node.hidden;
    button.setAttribute("aria-expanded", String(!node.hidden));
    if (!node.hidden) load();
  }
  let seen = "";
  async function load() {
    try {
      const full = await request("GET", `jobs/${part(job.id)}`);
      setText(text, full.log?.length ? full.log.join("\n") : "Nothing yet.");
      const { params, ...wanted } = full.request ?? {};
      setText(asked, words.outline({ job: full.id, kind: full.kind, attempts: full.attempts, ...wanted, ...params }));
      warnings.replaceChildren(...(full.result?.warnings ?? []).map((line) => el("li", { text: line })));
      warnings.hidden = !warnings.childElementCount;
    } catch (error) {
      setText(text, error instanceof Refused ? error.message : "The log could not be fetched: the server does not answer.");
    }
  }
  return {
    node,
    button,
    update(now) {
      const mark = `${now.state} ${now.stage} ${now.fraction}`;
      if (!node.hidden && mark !== seen) load();
      seen = mark;
    },
  };
}
