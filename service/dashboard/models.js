// The models on the server: list, card, import, removal.

import { part, request } from "./api.js";
import { announce, byId, el, onSubmit, question, Rows, setText, tell } from "./dom.js";
import { offerModels } from "./sort.js";
import * as words from "./words.js";

const SHIPPED = "pretrained"; // comes with the package and stays
const rows = new Rows((model) => model.name, makeRow, byId("models-title"));

export async function refreshModels() {
  const { models } = await request("GET", "models");
  rows.show([[byId("models"), models]]);
  offerModels(models);
}

function makeRow({ name }) {
  const line = el("p", { class: "line" });
  const error = el("p", { class: "error", hidden: true });
  const card = el("button", { type: "button", text: "Card", "aria-label": `Card of ${name}`, onclick: () => showCard(name) });
  const file = el("a", { class: "button", href: `models/${part(name)}/file`, download: `${name}.safetensors`, text: "Download", "aria-label": `Download ${name}` });
  const remove = el("button", { type: "button", text: "Remove…", "aria-label": `Remove ${name}`, onclick: () => removeModel(name) });
  remove.hidden = name === SHIPPED;
  const node = el("li", { class: "row plain" },
    el("div", { class: "what" }, el("p", { class: "title", tabindex: "-1", text: name }), line),
    el("div", { class: "side" }, card, file, remove), error);
  return {
    node,
    update(model) {
      const facts = [words.modelKind(model.kind), model.units === null ? "" : words.count(model.units, "unit"), words.bytes(model.bytes), name === SHIPPED ? "comes with the package" : ""];
      setText(line, facts.filter(Boolean).join(" · "));
      tell(error, model.problem ?? "");
      card.hidden = Boolean(model.problem);
    },
  };
}

async function showCard(name) {
  try {
    const { card, sha256, bytes } = await request("GET", `models/${part(name)}`);
    byId("card-title").textContent = name;
    byId("card-text").textContent = words.outline({ size: words.bytes(bytes), "SHA-256": sha256, ...card });
    byId("card").showModal();
  } catch (error) {
    announce(error.message);
  }
}

async function removeModel(name) {
  const answer = await question(`Remove the model ${name}?`, "Jobs and streams that ask for it by name will fail. It cannot be brought back.", [{ text: "Keep it" }, { text: "Remove it", value: "remove", look: "danger" }]);
  if (answer !== "remove") return;
  try {
    await request("DELETE", `models/${part(name)}`);
    announce(`The model ${name} is removed.`);
  } catch (error) {
    announce(error.message);
  }
  await refreshModels();
}

async function importModel() {
  const name = byId("import-name").value, [file] = byId("import-file").files;
  const query = byId("import-overwrite").checked ? "?overwrite=true" : "";
  await request("PUT", `models/${part(name)}${query}`, { body: file, headers: { "Content-Type": "application/octet-stream" }, limit_ms: 0 });
  byId("import").close();
  announce(`The model ${name} is on the server.`);
  await refreshModels();
}

export function wireModels() {
  byId("import-open").addEventListener("click", () => { byId("import-form").reset(); tell(byId("import-error"), ""); byId("import").showModal(); });
  onSubmit(byId("import-form"), byId("import-error"), importModel);
  byId("import-file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    if (file && !byId("import-name").value) byId("import-name").value = file.name.replace(/\.safetensors$/, "").replace(/[^A-Za-z0-9._-]+/g, "_").replace(/^[._-]+/, "").slice(0, 100);
  });
}
