// The form that sorts sessions.

import { changed, request } from "./api.js";
import { announce, byId, el, onSubmit } from "./dom.js";
import { place, prepareAll } from "./orders.js";
import { catchDrops, makePicker } from "./picker.js";

const picker = makePicker(byId("sort-source"), { legend: "Session", several: true });
export const allowSources = (server) => picker.allow(server);

/** The models to choose from. */
export function offerModels(models) {
  const select = byId("sort-model"), before = select.value;
  const names = models.filter((model) => !model.problem).map((model) => model.name);
  select.replaceChildren(el("option", { value: "", text: "Default" }), ...names.map((name) => el("option", { value: name, text: name })));
  if (names.includes(before)) select.value = before;
}

/** `GROUP.NAME = VALUE` lines as the nested object the server takes. */
export function readParams(text) {
  const params = {};
  text.split("\n").forEach((line, k) => {
    const setting = line.replace(/^\s*#.*/, "").trim();
    if (!setting) return;
    const found = /^([A-Za-z_]\w*)\.([A-Za-z_]\w*)\s*=\s*(.+)$/.exec(setting);
    if (!found) throw new Error(`Parameters, line ${k + 1}: “${setting}” is not of the form GROUP.NAME = VALUE, as in detect.threshold = 6.`);
    const [, group, name, value] = found;
    params[group] = { ...params[group], [name]: readValue(value) };
  });
  return params;
}

function readValue(text) {
  try { return JSON.parse(text); } catch { return text; }
}

async function submit() {
  const source = picker.value(), options = readOptions();
  for (const file of await prepareAll(source.files ?? [])) {
    place({ title: file.file.name, files: [file], ask: () => request("POST", "sort", { json: { input: { upload: file.name }, ...options } }) });
  }
  if (source.input) {
    await request("POST", "sort", { json: { input: source.input, ...options } });
    announce(`${source.title}: the sort is asked for.`);
  }
  picker.clear();
  changed();
}

function readOptions() {
  const options = { seed: Number(byId("sort-seed").value), units: byId("sort-units").value, params: readParams(byId("sort-params").value) };
  const model = byId("sort-model").value, series = byId("sort-series").value.trim();
  if (model) options.model = model;
  if (series) options.series = series;
  return options;
}

/** The parameters there are, from the server's own description: pressing one puts it into the text. */
async function showKnownParams() {
  const schemas = (await request("GET", "docs.json")).components?.schemas ?? {};
  const groups = schemas[Object.keys(schemas).find((name) => /(^|[._])SorterParams$/.test(name))]?.properties ?? {};
  const rows = [];
  for (const [group, entry] of Object.entries(groups)) {
    const address = entry.$ref ?? entry.allOf?.[0]?.$ref ?? "";
    for (const [name, field] of Object.entries(schemas[address.split("/").pop()]?.properties ?? {})) {
      const setting = `${group}.${name} = ${JSON.stringify(field.default ?? null)}`;
      rows.push(el("li", {}, el("button", { type: "button", class: "quiet code", text: setting, onclick: () => addSetting(setting) }), el("span", { class: "hint", text: field.description ?? "" })));
    }
  }
  byId("known-params").replaceChildren(el("ul", { class: "settings" }, ...rows));
  byId("known-params").hidden = !rows.length;
}

function addSetting(setting) {
  const area = byId("sort-params");
  area.value = `${area.value.trim()}\n${setting}`.trim();
  area.focus();
}

export function wireSort() {
  onSubmit(byId("sort-form"), byId("sort-error"), submit);
  byId("sort-advanced").addEventListener("toggle", (event) => {
    if (event.target.open && byId("known-params").hidden) showKnownParams().catch(() => {}); // a help that one can do without
  });
  catchDrops(picker);
}
