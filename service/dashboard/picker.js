// Where a session comes from: this computer, the server's uploads, a path there, or an address.

import { request } from "./api.js";
import { byId, el } from "./dom.js";
import * as words from "./words.js";

const ACCEPT = ".nwb,.h5,.hdf5";
let made = 0;

/**
 * A choice of a session put into `host`.
 *
 * `value()` gives `{ files }` or `{ input, title }` and throws, in words, where nothing is chosen.
 */
export function makePicker(host, { legend, several = false }) {
  const group = `source-${made++}`;
  const panels = {
    file: makeFilePanel(`${group}-file`, several),
    upload: makeUploadPanel(`${group}-upload`),
    path: makeTextPanel(`${group}-path`, "Path on the server", "/data/mouse12/session.nwb", "path"),
    url: makeTextPanel(`${group}-url`, "Address", "https://", "url"),
  };
  const names = { file: "From this computer", upload: "On the server", path: "Path", url: "Address" };
  const chips = Object.entries(names).map(([name, text]) => {
    const radio = el("input", { type: "radio", name: group, value: name, onchange: () => choose(name) });
    return el("label", { class: "chip", "data-source": name }, radio, el("span", { text }));
  });
  const preset = el("p", { class: "preset", hidden: true });
  let chosen = "file", fixed = null;

  host.replaceChildren(el("fieldset", { class: "source" }, el("legend", { text: legend }), el("div", { class: "chips" }, ...chips), preset, ...Object.values(panels).map((panel) => panel.node)));

  function choose(name) {
    chosen = name;
    for (const [key, panel] of Object.entries(panels)) panel.node.hidden = key !== name || fixed !== null;
    for (const chip of chips) chip.firstChild.checked = chip.dataset.source === name;
    if (name === "upload") panels.upload.refresh();
  }
  choose("file");

  return {
    value: () => fixed ?? panels[chosen].value(),
    /** Show what the server allows. */
    allow({ input_roots: roots, url_hosts: hosts }) {
      for (const [name, ok] of [["path", roots], ["url", hosts?.length]]) {
        chips.find((chip) => chip.dataset.source === name).hidden = !ok;
        if (!ok && chosen === name) choose("file");
      }
      if (hosts?.length) panels.url.hint(`On ${hosts.join(", ")}.`);
    },
    addFiles(files) {
      choose("file");
      panels.file.add(files);
    },
    /** Stand for a session that is chosen already, or null for a free choice. */
    fix(given) {
      fixed = given;
      preset.textContent = given?.title ?? "";
      preset.hidden = !given;
      host.querySelector(".chips").hidden = given !== null;
      choose(chosen);
    },
    clear() {
      for (const panel of Object.values(panels)) panel.clear();
    },
  };
}

function makeFilePanel(id, several) {
  const input = el("input", { type: "file", id, accept: ACCEPT, multiple: several, onchange: () => { add(input.files); input.value = ""; } });
  const list = el("ul", { class: "chosen" });
  const drop = el("label", { class: "drop", for: id }, input, el("b", { text: several ? "Choose NWB files" : "Choose an NWB file" }), el("span", { text: "or drop them here" }));
  if (!several) drop.lastChild.textContent = "or drop it here";
  const node = el("div", {}, drop, list);
  let files = [];
  for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", over);
      if (name === "drop") { event.stopPropagation(); add(event.dataTransfer.files); }
    });
  }
  function add(given) {
    const fresh = [...given].filter((file) => !files.some((old) => old.name === file.name && old.size === file.size));
    files = several ? [...files, ...fresh] : [...given].slice(0, 1);
    show();
  }
  function show() {
    list.replaceChildren(...files.map((file) => el("li", {},
      el("span", { class: "name", text: file.name }), el("span", { class: "size", text: words.bytes(file.size) }),
      el("button", { type: "button", class: "quiet", text: "×", "aria-label": `Leave ${file.name} out`, onclick: () => { files = files.filter((other) => other !== file); show(); input.focus(); } }))));
  }
  return {
    node,
    add,
    clear() { files = []; show(); },
    value() {
      if (!files.length) throw new Error(several ? "Choose an NWB file first." : "Choose a file first.");
      return { files };
    },
  };
}

function makeUploadPanel(id) {
  const select = el("select", { id });
  const node = el("p", { hidden: true }, el("label", { for: id, text: "Uploaded file" }), select);
  return {
    node,
    async refresh() {
      const { uploads } = await request("GET", "uploads").catch(() => ({ uploads: [] }));
      const before = select.value;
      const whole = uploads.filter((upload) => upload.complete);
      select.replaceChildren(...whole.map((upload) => el("option", { value: upload.name, text: `${upload.name} · ${words.bytes(upload.bytes)}` })));
      if (!whole.length) select.append(el("option", { value: "", text: "No file is on the server yet" }));
      if (whole.some((upload) => upload.name === before)) select.value = before;
    },
    clear() {},
    value() {
      if (!select.value) throw new Error("No file is on the server yet. Choose one from this computer.");
      return { input: { upload: select.value }, title: select.value };
    },
  };
}

function makeTextPanel(id, label, placeholder, field) {
  const input = el("input", { type: "text", id, placeholder, inputmode: field === "url" ? "url" : undefined, spellcheck: "false", autocomplete: "off", "aria-describedby": `${id}-hint` });
  const hint = el("span", { class: "hint", id: `${id}-hint` });
  return {
    node: el("p", { hidden: true }, el("label", { for: id, text: label }), input, hint),
    hint(text) { hint.textContent = text; },
    clear() { input.value = ""; },
    value() {
      const text = input.value.trim();
      if (!text) throw new Error(`Give the ${label.toLowerCase()} of the NWB file.`);
      return { input: { [field]: text }, title: text.split("/").pop() || text };
    },
  };
}

/** Files dropped beside a drop zone belong to a picker too, and never replace the page. */
export function catchDrops(picker) {
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length && !document.querySelector("dialog[open]") && byId("gate").hidden) picker.addFiles(event.dataTransfer.files);
  });
}
