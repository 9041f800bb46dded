// The dialog that fine-tunes a model on curated units.

import { changed, part, request } from "./api.js";
import { announce, byId, onSubmit, tell } from "./dom.js";
import { place, prepareAll } from "./orders.js";
import { makePicker } from "./picker.js";

const session = makePicker(byId("finetune-session"), { legend: "Session" });
const labels = makePicker(byId("finetune-labels"), { legend: "Curated units: an NWB file with a Units table" });

export function allowFinetuneSources(server) {
  session.allow(server);
  labels.allow(server);
}

/** Open the dialog; with a sort job, its session is the one to learn from. */
export async function offerFinetune(job) {
  tell(byId("finetune-error"), "");
  session.clear();
  labels.clear();
  session.fix(null);
  if (job) {
    try {
      const { request: asked } = await request("GET", `jobs/${part(job.id)}`);
      session.fix({ input: asked.input, options: asked.series ? { series: asked.series } : {}, title: job.input });
    } catch (error) {
      announce(error.message);
      return;
    }
  }
  byId("finetune").showModal();
}

async function submit() {
  const sources = { input: session.value(), labels: labels.value() };
  const name = byId("finetune-name").value;
  const given = Object.values(sources).flatMap((source) => source.files ?? []);
  const files = await prepareAll(given);
  if (files.length < given.length) return; // thought better of it
  const body = { name, overwrite: byId("finetune-overwrite").checked, ...(sources.input.options ?? {}) };
  for (const [field, source] of Object.entries(sources)) {
    body[field] = source.input ?? { upload: files.find((entry) => entry.file === source.files[0]).name };
  }
  const ask = () => request("POST", "finetune", { json: body });
  if (files.length) place({ title: name, files, ask });
  else await ask();
  byId("finetune").close();
  announce(`${name}: asked for; see Sessions.`);
  changed();
}

export function wireFinetune() {
  onSubmit(byId("finetune-form"), byId("finetune-error"), submit);
  byId("finetune-open").addEventListener("click", () => offerFinetune(null));
}
