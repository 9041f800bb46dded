// The page: the key, the four views, and looking again every two seconds while it is in sight.

import { bus, forgetKey, hasKey, isReachable, NeedsKey, tryKey, Unreachable } from "./api.js";
import { byId, onSubmit, tell, wireDialogs } from "./dom.js";
import { allowFinetuneSources, wireFinetune } from "./finetune.js";
import { refreshJobs } from "./jobs.js";
import { refreshModels, wireModels } from "./models.js";
import { isSending } from "./orders.js";
import { refreshServer, refreshUploads } from "./server.js";
import { allowSources, wireSort } from "./sort.js";
import { refreshStreams } from "./stream.js";

const EVERY_MS = 2000;
const SLOW = 5; // the server's own state and the models are looked at every fifth time
const VIEWS = ["sessions", "models", "stream", "server"];

let view = "sessions", looks = 0, timer = null, isLooking = false, isAskedAgain = false, isLocked = false;

async function look() {
  if (isLocked) return;
  if (isLooking) { isAskedAgain = true; return; }
  clearTimeout(timer);
  isLooking = true;
  isAskedAgain = false;
  try {
    await fetchAll();
    openShell();
    tell(byId("down"), "");
  } catch (error) {
    if (!(error instanceof NeedsKey)) {
      openShell();
      tell(byId("down"), error instanceof Unreachable ? "The server does not answer. Trying again by itself; its jobs are kept." : error.message);
    }
  }
  isLooking = false;
  if (isAskedAgain) look();
  else if (!document.hidden && !isLocked) timer = setTimeout(look, EVERY_MS);
}

async function fetchAll() {
  const isSlow = looks % SLOW === 0;
  if (isSlow || view === "server") {
    const server = await refreshServer();
    allowSources(server);
    allowFinetuneSources(server);
  }
  const ended = await refreshJobs();
  if (isSlow || view === "models" || ended.some((job) => job.kind !== "sort")) await refreshModels();
  if (view === "stream") await refreshStreams();
  if (view === "server") await refreshUploads();
  looks += 1;
}

function lookAnew() {
  looks = 0;
  look();
}

function openShell() {
  byId("top").hidden = false;
  byId("gate").hidden = true;
  byId("forget").hidden = !hasKey();
  showView();
}

function lock() {
  clearTimeout(timer);
  isLocked = true;
  byId("top").hidden = true;
  byId("gate").hidden = false;
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  for (const node of document.querySelectorAll("[data-view]")) node.hidden = true;
  tell(byId("down"), "");
  byId("key").focus();
}

async function enter() {
  const field = byId("key");
  field.select();
  await tryKey(field.value);
  field.value = "";
}

function showView() {
  for (const node of document.querySelectorAll("[data-view]")) node.hidden = node.dataset.view !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function readAddress() {
  const name = location.hash.slice(1);
  if (name && !VIEWS.includes(name)) return;
  view = name || "sessions";
  if (isLocked || byId("top").hidden) return;
  showView();
  window.scrollTo(0, 0);
  look();
}

function start() {
  wireDialogs();
  wireSort();
  wireFinetune();
  wireModels();
  onSubmit(byId("gate-form"), byId("gate-error"), enter);
  byId("forget").addEventListener("click", () => { forgetKey(); lock(); });
  bus.addEventListener("needs-key", lock);
  bus.addEventListener("key", () => { isLocked = false; lookAnew(); });
  bus.addEventListener("up", lookAnew);
  bus.addEventListener("down", look);
  bus.addEventListener("changed", look);
  window.addEventListener("hashchange", readAddress);
  window.addEventListener("online", look);
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : look()));
  window.addEventListener("beforeunload", (event) => { if (isSending()) event.preventDefault(); });
  readAddress();
  look();
}

start();
