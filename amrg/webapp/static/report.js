// The report as it is written, and the memory rows: of the whole film, or of the sentence that is chosen.

import { $, ask, calm, complain, h, length, marked, percent } from "./dom.js";
import { markRegion, showFilmOf, showFinding } from "./film.js";

export const BANKS = [...document.querySelectorAll("[data-bank]")].map((list) => list.dataset.bank);
const contextInputs = [...document.querySelectorAll("#context input")];
const STREAMS = ["visual tokens", "queries", "visual memory", "report memory", "retrieved text", "context", "earlier study", "words"];
const CALLED = { "visual tokens": "film", queries: "disease queries", context: "clinical context", words: "prompt and words before" };

let look = null;
let source = null; // of the events of the report being written
let sentences = [];
let impression = null; // number of the first sentence of the impression, where the report tells its sections apart
let drawn = []; // what each finished sentence drew on, and stands on if it was recalled
let chosen = null;
let pointed = null; // the sentence under the pointer, or with the focus
let without = []; // memories that were switched off for it
let whole = null; // sentences of the report with every memory, to compare with
let words = []; // for probabilities, the highest first: {word, least, findings, right}
const rows = new Map(); // what is known of a bank's row, asked for once

for (const input of $("switches").querySelectorAll("input")) input.addEventListener("change", write);
$("again").addEventListener("click", again);
for (const input of contextInputs) input.addEventListener("keydown", ({ key }) => key === "Enter" && again());
$("whole").addEventListener("click", () => choose(null));
$("unlike").querySelector("button").addEventListener("click", () => withhold(false));

for (const event of ["mouseover", "focusin"]) $("sentences").addEventListener(event, ({ target }) => point(target.closest("li")));
for (const event of ["mouseleave", "focusout"]) $("sentences").addEventListener(event, () => point(null));

ask("/api/certainty").then(showWords, (error) => complain(error.message));

const off = () => [...$("switches").querySelectorAll("input:not(:checked)")].map((input) => input.name);

export function showReport(newLook) {
  look = newLook;
  whole = null;
  $("unlike").hidden = !look.unlike_training;
  $("distance").textContent = look.unlike_training
    ? `Its distance from them is ${look.training_distance.toFixed(1)}; the threshold is ${look.training_distance_threshold.toFixed(1)}.`
    : "";
  withhold(look.unlike_training);
  $("reference").hidden = look.reference === null;
  $("reference-text").textContent = look.reference ?? "";
  $("no-reference").hidden = look.reference !== null;
  for (const input of contextInputs) input.value = look.context[input.name];
  if ($("prior")) $("prior").textContent = described(look.prior);
  write();
}

function described(prior) {
  if (!prior) return "No earlier study of this patient is known: the report is written as that of a first one.";
  const since = prior.days === null ? "" : `, ${prior.days} day${prior.days === 1 ? "" : "s"} before`;
  const read = [prior.films ? "its films" : "", prior.report ? `its report: ${prior.report}` : ""].filter(Boolean).join(", and ");
  return `Earlier study${since}. The writer reads ${read}`;
}

/** Tell the writer what stands in the fields, then write. */
async function again() {
  const of = look;
  if (of && contextInputs.length) {
    try {
      const body = JSON.stringify(Object.fromEntries(contextInputs.map(({ name, value }) => [name, value.trim()])));
      const address = `/api/looks/${of.place}/${encodeURIComponent(of.name)}/context`;
      of.context = await ask(address, { method: "POST", body, headers: { "Content-Type": "application/json" } });
      if (of === look) for (const input of contextInputs) input.value = of.context[input.name]; // as it was cleaned
      calm();
    } catch (error) {
      return complain(error.message);
    }
    whole = null; // the report was for another context
  }
  if (of === look) write();
}

/** Gray the report of a film that is unlike the training films, until it is asked for. */
function withhold(on) {
  $("report").classList.toggle("withheld", on);
  $("sentences").inert = on;
  $("unlike").querySelector("button").disabled = !on;
}

export function stopWriting() {
  source?.close();
  source = null;
}

function write() {
  if (!look) return;
  stopWriting();
  [sentences, impression, drawn, without] = [[], null, [], off()];
  choose(null);
  $("plan").hidden = true;
  $("unsure").hidden = true;
  $("verdict").hidden = true;
  $("generated-marked").hidden = true;
  $("again").disabled = false;
  $("state").textContent = "writing …";
  source = new EventSource(`/api/looks/${look.place}/${encodeURIComponent(look.name)}/report?${new URLSearchParams({ off: without })}`);
  source.addEventListener("text", ({ data }) => {
    const written = JSON.parse(data);
    $("plan").hidden = !written.plan;
    $("plan").textContent = `Plan: ${written.plan}`;
    [sentences, impression] = [written.sentences, written.impression ?? null];
    showSentences(true);
  });
  source.addEventListener("unsure", ({ data }) => {
    $("unsure").hidden = false;
    $("unsure").textContent = `Not sure, and so left out: ${JSON.parse(data).texts.join(" ")}`;
  });
  source.addEventListener("sentence", ({ data }) => {
    const { number, ...what } = JSON.parse(data);
    drawn[number] = what;
    showSentences(true);
  });
  source.addEventListener("end", ({ data }) => {
    stopWriting();
    const { errors, marks } = JSON.parse(data);
    showVerdict(errors);
    showMarks(marks);
    if (!without.length) whole = sentences;
    showSentences(false);
    if (!sentences.length) $("sentences").replaceChildren(h("li", { class: "soft" }, "The report is empty: the writer ended without a word."));
    $("state").textContent = summary();
  });
  source.addEventListener("problem", ({ data }) => fail(JSON.parse(data).error));
  source.onerror = () => source && explain(source);
}

/** An event source hides why it failed: the study is asked for once more, and its answer says why. */
async function explain(failed) {
  failed.close();
  let reason = "The viewer stopped while it wrote this report.";
  try {
    await ask(`/api/looks/${look.place}/${encodeURIComponent(look.name)}`);
  } catch (error) {
    reason = error.message;
  }
  if (source === failed) fail(reason, write);
}

/** Explain the words for probabilities, and how often findings with each were right in the run's own reports. */
function showWords(known) {
  words = known.words;
  const one = ({ word, least, findings, right }) => {
    const counted = findings ? `; of ${findings} such findings in the run's ${known.split} reports ${percent(right)} are in the reference` : "";
    return `${word} (${least ? `from ${percent(least)}` : "below"}${counted})`;
  };
  $("words-what").textContent = `Words for calibrated probabilities that the report states a finding: ${words.map(one).join(", ")}.`;
  showSentences(source !== null);
}

const worded = (probability) => words.find(({ least }) => probability >= least)?.word;

/** The reference and the report with their findings marked; without a reference nothing. */
function showMarks(marks) {
  if (!marks) return;
  for (const [id, pieces] of Object.entries(marks)) $(`${id}-text`).replaceChildren(...marked(pieces));
  $("generated-marked").hidden = false;
}

function showVerdict(errors) {
  $("verdict").hidden = errors === null;
  if (errors === null) return;
  $("verdict").textContent = verdict(errors);
  $("verdict").classList.toggle("right", !["missed", "extra", "conflicting"].some((kind) => errors[kind].length));
}

/** One line: how the findings of a report compare with those of the reference. */
export function verdict(errors) {
  const stated = errors.found.length + errors.conflicting.length + errors.missed.length;
  const named = (kind) => `${errors[kind].join(", ")} ${{ missed: "missed", extra: "not in the reference", conflicting: "with another side or device" }[kind]}`;
  const wrong = ["missed", "extra", "conflicting"].filter((kind) => errors[kind].length).map(named);
  const found = stated ? `${stated - errors.missed.length} of ${stated} findings of the reference stated` : "The reference states no finding";
  return `${[found, ...wrong].join("; ")}.`;
}

function fail(message, again = null) {
  stopWriting();
  $("state").textContent = "not finished";
  showSentences(false);
  complain(message, again);
}

function summary() {
  const count = `${sentences.length} ${sentences.length === 1 ? "sentence" : "sentences"}`;
  if (!without.length) return `${count}, with every memory`;
  const missing = `without ${without.map((name) => (BANKS.includes(name) ? `${name} memory` : name)).join(" and ")}`;
  if (!whole) return `${count}, ${missing}`;
  const changed = sentences.filter(differs).length + whole.filter((sentence) => !sentences.includes(sentence)).length;
  return changed ? `${count}, ${missing}: the report changed` : `${count}, ${missing}: the same report`;
}

/** What a sentence of the report memory stands on; null for the writer's own. */
const recalled = (number) => drawn[number]?.recalled ?? null;

const differs = (sentence) => whole !== null && !whole.includes(sentence);

function showSentences(growing) {
  const focused = [...$("sentences").querySelectorAll("button")].indexOf(document.activeElement);
  $("sentences").replaceChildren(
    ...sentences.map((sentence, number) => {
      const last = growing && number === sentences.length - 1;
      return h(
        "li",
        { class: last ? "growing" : "" },
        number === impression ? h("b", {}, "Impression") : null,
        h(
          "button",
          { type: "button", disabled: !drawn[number], "aria-pressed": String(chosen === number), onclick: () => choose(chosen === number ? null : number) },
          h("span", { class: "text" }, sentence),
          !last && differs(sentence) ? h("span", { class: "differs" }, "differs") : null,
          recalled(number) ? h("span", { class: "recalled" }, "recalled") : null,
          drawn[number] ? h("span", { class: "facts" }, (recalled(number) ? facts(recalled(number)) : ownFacts(drawn[number])).join(" · ")) : null,
          h("span", { class: "drew" }, ...(drawn[number] ? drew(withOrigin(number)) : [])),
        ),
      );
    }),
  );
  $("words-what").hidden = !drawn.some((what) => Object.keys(what?.recalled?.probabilities ?? {}).length);
  if (focused >= 0) $("sentences").querySelectorAll("button")[focused]?.focus();
}

/** The probability of each finding of a recalled sentence, and of each detail. */
function facts({ labels, probabilities, details }) {
  const found = labels.map((label) => {
    const sure = probabilities[label];
    return sure === undefined ? label : [label, percent(sure), worded(sure)].filter(Boolean).join(" ");
  });
  const told = details.map(({ finding, attribute, value, probability: sure }) => {
    const what = `${labels.length > 1 ? `${finding} ` : ""}${attribute} ${value}`;
    return sure === null ? `${what} (probability not known)` : `${what} ${percent(sure)}`;
  });
  return [...found, ...told];
}

/** What stage 1 says of the findings of a sentence that the decoder worded itself. */
function ownFacts({ findings }) {
  const known = look.findings.filter(({ name }) => findings.includes(name));
  return known.map(({ name, probability, threshold }) => `${name} ${percent(probability)} by stage 1, ${probability >= threshold ? "found" : "not found"}`);
}

function point(entry) {
  pointed = entry && [...$("sentences").children].indexOf(entry);
  mark();
}

/** The region of the sentence that is pointed at, or else of the chosen one, on the film. */
function mark() {
  const said = recalled(pointed) ?? recalled(chosen);
  markRegion(said?.box ? { box: said.box, label: facts(said)[0] } : null);
}

/** One line: the heaviest row of each memory. */
function drew(of) {
  return BANKS.filter((bank) => of[bank]?.length).flatMap((bank, number) => {
    const [{ row, weight, origin, lift, usual }] = of[bank];
    const known = rows.get(`${bank}/${row}`);
    if (!known) fetchRow(bank, row).then(() => showSentences(source !== null), (error) => complain(error.message));
    const share = lift === undefined ? percent(weight) : [percent(weight), lifted(lift)].join(", ");
    const how = origin ? `from ${bank} row ${row}` : `${bank} ${share}`;
    return [number ? " · " : "", h("b", { class: bank }, how), ` ${known ? brief(known) : "…"}${usual && !origin ? " (a usual row)" : ""}`];
  });
}

/** Rows that a sentence drew on. The row that a recalled sentence comes from leads those of the report memory. */
function withOrigin(number) {
  const { rows: of, recalled: said } = drawn[number];
  if (!said) return of;
  const report = of.report ?? [];
  const own = report.find(({ row }) => row === said.row) ?? { row: said.row };
  return { ...of, report: [{ ...own, origin: true }, ...report.filter(({ row }) => row !== said.row)] };
}

/** How a row's weight compares with its mean over the run's reports. */
const lifted = (lift) => (lift === null ? "in none of the reports" : `×${lift.toFixed(lift < 9.95 ? 1 : 0)}`);

const named = ({ source, findings }) => [...findings, source.replace("_", " ")].join(", ");

function brief(known) {
  if (!known.text) return named(known);
  const text = `“${known.text.length > 60 ? `${known.text.slice(0, 60)}…` : known.text}”`;
  return known.source === "region" ? `${named(known)}: ${text}` : text;
}

async function fetchRow(bank, row) {
  const name = `${bank}/${row}`;
  if (!rows.has(name)) rows.set(name, await ask(`/api/banks/${name}`));
  return rows.get(name);
}

function choose(number) {
  chosen = number;
  if (number !== null || sentences.length) showSentences(source !== null);
  $("whole").hidden = number === null;
  const [said] = number === null ? [] : (recalled(number)?.labels ?? drawn[number].findings);
  showOrigin(recalled(number));
  showFinding(said);
  const what = number === null ? look.memory : withOrigin(number);
  $("memory-what").textContent =
    number === null
      ? "What the film retrieved: each row's share of the association, the mean over heads and disease queries (in the visual memory those of probable findings)."
      : `While “${sentences[number]}” was written: each row's share of the attention paid to its memory.`;
  showShares(number === null ? null : drawn[number].shares);
  for (const bank of BANKS) {
    const list = document.querySelector(`[data-bank="${bank}"]`);
    if (without.includes(bank)) showRows(list, bank, [], "Switched off: the writer could not read it.");
    else showRows(list, bank, what[bank] ?? [], "No row is visible to this study.");
  }
}

/** What the chosen sentence stands on, and its region on the film; null hides it. */
function showOrigin(said) {
  $("origin").hidden = said === null;
  mark();
  if (said === null) return;
  if (said.box) showFilmOf(said);
  $("origin-facts").textContent = [...facts(said), place(said.box)].join(" · ");
  showRows($("origin-report"), "report", [{ row: said.row }], "");
  showRows($("origin-visual"), "visual", said.regions, "None: the visual memory is off, or has no such row.");
}

function place(box) {
  if (!box) return "no region on the film";
  const [film, x0, y0, x1, y1] = box;
  const of = look.films.length > 1 ? `film ${film + 1}` : "the film";
  return `region on ${of}: columns ${x0 + 1} to ${x1}, rows ${y0 + 1} to ${y1} of ${look.grid}`;
}

function showShares(shares) {
  $("shares").hidden = shares === null;
  if (shares === null) return;
  const parts = STREAMS.filter((name) => name in shares);
  const colour = (name) => `c${STREAMS.indexOf(name)}`;
  $("shares").replaceChildren(
    h("div", { class: "stack", "aria-hidden": "true" }, ...parts.map((name) => h("i", { class: colour(name), style: { width: length(shares[name]) } }))),
    h("ul", { "aria-label": "Attention" }, ...parts.map((name) => h("li", { class: colour(name) }, `${CALLED[name] ?? name} ${percent(shares[name])}`))),
  );
}

/** Fill a list with rows of a bank; without any, say why. */
async function showRows(list, bank, of, none) {
  const mine = (list.dataset.turn = String(Number(list.dataset.turn ?? 0) + 1));
  if (!of.length) return list.replaceChildren(h("li", { class: "none" }, none));
  try {
    const known = await Promise.all(of.map(({ row }) => fetchRow(bank, row)));
    if (list.dataset.turn === mine) list.replaceChildren(...of.map((entry, number) => item(bank, entry, known[number], heaviest(of))));
  } catch (error) {
    complain(error.message);
  }
}

/** The largest weight of some rows: bars are drawn relative to it. */
export const heaviest = (of) => Math.max(...of.map(({ weight }) => weight ?? 0));

export function item(bank, { row, weight, origin, both, lift, studies, usual }, known, most) {
  const film = known.image ? `film ${known.view + 1} of ` : "";
  const from = known.key ? `row ${row}, from ${film}${known.split} study ${known.key}` : `row ${row}, of no study`;
  return h(
    "li",
    { class: [known.image && "pictured", usual && "usual"].filter(Boolean).join(" ") },
    known.image ? h("img", { src: known.image, alt: `region of ${named(known)}` }) : null,
    weight === undefined ? null : h("div", { class: "weight" }, h("span", { class: "bar", "data-of": bank }, h("i", { style: { width: length(weight / most) } })), h("span", {}, percent(weight))),
    h("div", { class: "body" }, lift === undefined ? null : h("b", {}, `${lifted(lift)} · `), named(known), known.text ? h("p", {}, known.text) : null),
    h("div", { class: "body soft" }, origin ? h("b", {}, "its own row: ") : null, from, usual ? `, retrieved by ${percent(studies)} of the films` : null, both ? h("b", {}, ", retrieved by both") : null),
  );
}
