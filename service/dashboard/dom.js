// Nodes of the page. Every word is set as text: names of files and units come from strangers.

export const byId = (id) => document.getElementById(id);

export function el(tag, { text, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value);
  }
  if (text !== undefined) node.textContent = text;
  node.append(...children);
  return node;
}

/** Set the text of a node where it changed, so that a selection and a screen reader are left in peace. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Show or hide a line of text: hidden when there is none. */
export function tell(node, text) {
  setText(node, text);
  node.hidden = !text;
}

let quiet;

/** Say something once: in sight for a while, and to a screen reader. */
export function announce(text) {
  const said = byId("said");
  said.textContent = text;
  said.classList.add("shown");
  clearTimeout(quiet);
  quiet = setTimeout(() => said.classList.remove("shown"), 6000);
}

/**
 * A list of rows kept by key: `make(item)` gives `{ node, update }` once, `update(item)` is called each time.
 * Rows keep their nodes, and with them focus, selection and what is folded open.
 */
export class Rows {
  constructor(keyOf, make, fallback) {
    this.keyOf = keyOf;
    this.make = make;
    this.fallback = fallback; // takes the focus when the row that had it goes
    this.rows = new Map();
  }

  /** Show items in lists: `groups` is an array of `[list, items]`. */
  show(groups) {
    const focused = document.activeElement;
    const wanted = new Set();
    for (const [list, items] of groups) {
      let place = list.firstChild;
      for (const item of items) {
        const key = this.keyOf(item);
        wanted.add(key);
        if (!this.rows.has(key)) this.rows.set(key, this.make(item));
        const row = this.rows.get(key);
        row.update(item);
        if (row.node === place) place = place.nextSibling;
        else list.insertBefore(row.node, place);
      }
    }
    let lost = false;
    for (const [key, row] of this.rows) {
      if (wanted.has(key)) continue;
      lost ||= row.node.contains(focused);
      row.node.remove();
      this.rows.delete(key);
    }
    if (lost) this.fallback.focus();
    else if (focused.isConnected && (focused !== document.activeElement || focused.hidden)) refocus(focused);
  }
}

/** Focus a node again after its row has moved; its row where it is hidden now. */
function refocus(node) {
  const row = node.closest("li");
  (node.hidden && row ? row.querySelector("[tabindex='-1']") : node)?.focus({ preventScroll: true });
}

/** A choice in a dialog: the value of the answer, or null when it is closed. The first answer has the focus. */
export function question(title, text, answers) {
  const dialog = byId("question");
  byId("question-title").textContent = title;
  byId("question-text").textContent = text;
  return new Promise((resolve) => {
    let answer = null;
    const give = (value) => { answer = value; dialog.close(); };
    byId("question-answers").replaceChildren(
      ...answers.map(({ text, value, look }) => el("button", { type: "button", class: look, text, onclick: () => give(value) })),
    );
    dialog.addEventListener("close", function end() {
      if (dialog.open) return; // the event of the question before this one
      dialog.removeEventListener("close", end);
      resolve(answer);
    });
    dialog.showModal();
  });
}

/** Have a form do `work` when it is submitted, once at a time; what goes wrong is told beneath it. */
export function onSubmit(form, error, work) {
  let isBusy = false; // rather than a disabled button, which would lose the focus
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (isBusy) return;
    isBusy = true;
    form.setAttribute("aria-busy", "true");
    tell(error, "");
    try {
      await work();
    } catch (problem) {
      tell(error, problem.message);
    }
    isBusy = false;
    form.removeAttribute("aria-busy");
  });
}

export function wireDialogs() {
  for (const button of document.querySelectorAll("dialog [data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
}
