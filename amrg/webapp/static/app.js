// The study that is looked at: chosen from the list, dropped as a file, or named in the address.

import { showComparison } from "./compare.js";
import { $, ask, calm, choice, complain, h } from "./dom.js";
import { showFilm } from "./film.js";
import { showReport, stopWriting } from "./report.js";

const cards = document.querySelectorAll("#film, #report, #compare, #memory"); // of what is shown
let opening = null; // what is being opened; opening something else gives it up
let listing = null;
let pause = 0;
let looks = 0; // that were shown
const own = new Map(); // films that were opened here, by the names that the viewer gave them: files

/**
 * Look at what `start` asks for; until it is there the page says that `called` is being opened, over what is still shown.
 * A failure leaves the page as it was, and of a `file` that was given it is named and what is shown marked.
 */
async function open(called, start, file = null) {
  opening?.abort();
  const mine = (opening = new AbortController());
  $("film").setAttribute("aria-busy", "true");
  $("opening").textContent = `opening ${called} …`;
  loading(true);
  try {
    const look = await start(mine.signal);
    if (mine.signal.aborted) return;
    calm();
    former(false);
    stopWriting();
    const address = `#${look.place}/${encodeURIComponent(look.name)}`;
    if (address !== location.hash) history[location.hash ? "pushState" : "replaceState"](null, "", address);
    if (file) own.set(look.name, { name: file.name, size: file.size });
    showFilm(look, own.get(look.name));
    $("parts-title").textContent = $("film-title").textContent;
    if (looks++) $("data")?.removeAttribute("open"); // it was seen with the first; its headline stays
    showReport(look);
    showComparison(look);
    mark();
  } catch (error) {
    if (error.name === "AbortError") return;
    const again = error.unreachable ? () => open(called, start, file) : null;
    if (file) refuse(file, error.message, again);
    else complain(error.message, again);
    mark();
  } finally {
    if (opening === mine) {
      $("film").setAttribute("aria-busy", "false");
      loading(false);
    }
  }
}

const openStudy = (place, name) => open(place === "dropped" ? "the film" : name, (signal) => ask(`/api/looks/${place}/${encodeURIComponent(name)}`, { signal }));

function openFile(file) {
  const most = Number(document.body.dataset.maxBytes);
  if (file.size > most) {
    opening?.abort();
    refuse(file, `It has ${(file.size / 2 ** 20).toFixed(0)} MB; films of up to ${most / 2 ** 20} MB are read. Nothing was sent.`);
    return;
  }
  open(file.name, (signal) => ask("/api/looks", { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" }, signal }), file);
}

/** Name a file that is not shown, and mark that the film and the report on the page are not its own. */
function refuse(file, reason, again = null) {
  const shown = located() !== undefined;
  complain(`${file.name}: ${reason}${shown ? " The film and the report below are those of before, not of this file." : ""}`, again);
  former(shown);
}

function former(on) {
  for (const card of cards) card.classList.toggle("former", on);
}

function loading(on) {
  $("opening").hidden = !on;
  for (const card of cards) card.classList.toggle("loading", on);
}

/** What the run's own report gets wrong, as short marks; without a report none. */
function chips(errors) {
  if (!errors) return [];
  const kinds = [["missed", "−"], ["extra", "+"], ["conflicting", "⇄"]];
  const wrong = kinds.filter(([kind]) => errors[kind].length);
  if (!wrong.length) return [" ", h("span", { class: "chip right", title: "its report states the same findings" }, "✓")];
  return wrong.flatMap(([kind, sign]) => [" ", h("span", { class: `chip ${kind}`, title: `${kind}: ${errors[kind].join(", ")}` }, `${sign}${errors[kind].length}`)]);
}

/** How many errors the report of the other run has more. */
function change(difference) {
  if (difference === null) return [];
  const sign = difference > 0 ? "+" : "−";
  return [" ", h("span", { class: "chip difference", title: "errors of the other run's report, less those of this run's" }, difference ? `Δ ${sign}${Math.abs(difference)}` : "Δ 0")];
}

/** Show the studies that fit from number `start` on; those before stay. */
async function list(start = 0) {
  listing?.abort();
  const mine = (listing = new AbortController());
  const [split, words] = [$("split").value, $("words").value];
  try {
    const query = new URLSearchParams({ split, words, start, order: $("order").value });
    const found = await ask(`/api/studies?${query}`, { signal: mine.signal });
    const entries = found.studies.map(({ key, findings, errors, difference }) =>
      choice("study", key, false, () => later(() => openStudy(split, key)), key, ...chips(errors), ...change(difference), h("small", {}, findings.join(", ") || "no finding")),
    );
    if (start) $("studies").append(...entries);
    else $("studies").replaceChildren(...entries);
    const shown = $("studies").childElementCount;
    $("count").textContent = `${found.found} of ${found.total} studies${shown < found.found ? `, the first ${shown} shown` : ""}`;
    $("none").hidden = found.found > 0;
    $("more").hidden = shown >= found.found;
    $("more").textContent = `Show ${found.found - shown} more`;
    $("order-pick").hidden = !found.compared;
    mark();
    return (found.studies.find(({ findings }) => findings.length) ?? found.studies[0])?.key; // a film with something to see
  } catch (error) {
    if (error.name !== "AbortError") complain(error.message, error.unreachable ? () => list(start) : null);
  }
}

/** Arrow keys and typing go through many in a row: only where they rest is acted upon. */
function later(action) {
  clearTimeout(pause);
  pause = setTimeout(action, 150);
}

/** Go to the next study of the list, or to the one before. */
function step(by) {
  const entries = [...$("studies").querySelectorAll("input")];
  const next = entries[entries.findIndex(({ checked }) => checked) + by];
  if (!next) return by > 0 && !$("more").hidden ? $("more").click() : null;
  next.checked = true;
  later(() => openStudy($("split").value, next.value));
}

/** Check the study or film in the lists that is looked at, if it is there. */
function mark() {
  const [place, name] = located() ?? [];
  $("own").hidden = !own.size;
  $("own-films").replaceChildren(
    ...[...own].map(([value, file]) => choice("own", value, place === "dropped" && value === name, () => openStudy("dropped", value), file.name)),
  );
  for (const input of $("studies").querySelectorAll("input")) {
    input.checked = place === $("split").value && input.value === name;
    if (!input.checked) continue;
    const [list, entry] = [$("studies"), input.parentElement];
    const above = entry.offsetTop - list.offsetTop;
    if (above < list.scrollTop || above + entry.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = above - 40;
  }
}

function located() {
  const [, place, name] = /^#([^/]+)\/(.+)$/.exec(location.hash) ?? [];
  try {
    return place && [place, decodeURIComponent(name)];
  } catch {
    complain("The address names no study: choose one from the list.");
  }
}

for (const id of ["split", "order"]) $(id).addEventListener("change", () => list());
$("words").addEventListener("input", () => later(list));
$("more").addEventListener("click", () => list($("studies").childElementCount));
$("clear").addEventListener("click", () => {
  $("words").value = "";
  $("words").focus();
  list();
});
$("close").addEventListener("click", calm);
$("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) openFile(target.files[0]);
  target.value = ""; // the same file may be chosen again
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget || $("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) openFile(file);
});
addEventListener("keydown", (event) => {
  const typing = event.target.closest("select, input:not([type=radio], [type=checkbox], [type=range])");
  if (typing || !$("list-keys").checked || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") {
    $("list").open = true;
    $("words").focus();
  } else if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else return;
  event.preventDefault();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the study
  $("report").focus();
});
for (const button of $("parts").querySelectorAll("button")) button.addEventListener("click", () => $(button.dataset.to).scrollIntoView());
addEventListener("hashchange", () => located() && openStudy(...located()));

if (matchMedia("(max-width: 760px)").matches) for (const id of ["list", "findings-list"]) $(id).open = false; // film and report come first

const asked = located();
if (asked && [...$("split").options].some(({ value }) => value === asked[0])) $("split").value = asked[0];
const first = await list();
if (asked) await openStudy(...asked);
else if (first && !location.hash) await openStudy($("split").value, first);
