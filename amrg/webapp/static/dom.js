// Small helpers: elements, requests, and the one place where problems are shown.

export const $ = (id) => document.getElementById(id);

/** An element: h("li", {class: "x", onclick: f}, "text", child, …). Text is text, never markup. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** One of a group of radio buttons, as a row to click on. */
export function choice(group, value, checked, choose, ...children) {
  return h(
    "label",
    { class: "choice" },
    h("input", { type: "radio", name: group, value, checked, onchange: choose }),
    ...children,
  );
}

/** A share as a length of styles, and as a reader sees it. */
export const length = (share) => `${100 * share}%`;
export const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

const MARKS = { hit: "in both reports", detail: "in both reports, with another side or kind of device", miss: "only in the reference", extra: "not in the reference", unsure: "uncertain" };

/** Pieces of a text, [text, kind, finding], as nodes: those of a kind are marked. */
export const marked = (pieces) => pieces.map(([text, kind, finding]) => (kind ? h("mark", { class: kind, title: `${finding}: ${MARKS[kind]}` }, text) : text));

/** The JSON of an address; throws an Error with a sentence for the reader. */
export async function ask(address, options = {}) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw Object.assign(new Error("The viewer does not answer. Is `amrg view` still running?"), { unreachable: true });
  }
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(content.error ?? `The viewer answered with ${response.status}.`);
  return content;
}

/** Show a problem. `again` does once more what failed: it is offered where the viewer did not answer. */
export function complain(message, again = null) {
  $("problem").querySelector("p").textContent = message;
  $("retry").hidden = again === null;
  $("retry").onclick = () => {
    calm();
    again();
  };
  $("problem").hidden = false;
}

export function calm() {
  $("problem").hidden = true;
}
