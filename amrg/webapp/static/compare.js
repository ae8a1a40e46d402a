// The reports that two runs have written of the study that is shown; only with `amrg view RUN --compare OTHER`.

import { $, ask, h, marked } from "./dom.js";
import { BANKS, heaviest, item, verdict } from "./report.js";

let turn = 0;

export async function showComparison(look) {
  if (!$("compare")) return;
  const mine = ++turn;
  try {
    if (look.place === "dropped") throw new Error("A film that was opened here is not compared: the runs have written no report of it.");
    const found = await ask(`/api/comparisons/${look.place}/${encodeURIComponent(look.name)}`);
    if (mine === turn) $("compared").replaceChildren(scores(found.sides), h("div", { class: "pair" }, ...found.sides.map(side)));
  } catch (error) {
    if (mine === turn) $("compared").replaceChildren(h("p", { class: "soft" }, error.message));
  }
}

function scores(sides) {
  const [first, other] = sides;
  const number = (value, name) => (value === null ? "–" : value.toFixed(name === "errors" ? 0 : 2));
  const rows = Object.keys(first.scores).map((name) => {
    const [one, two] = [first.scores[name], other.scores[name]];
    const change = one === null || two === null ? "–" : Math.abs(two - one) < 5e-4 ? "same" : `${two > one ? "+" : "−"}${number(Math.abs(two - one), name)}`;
    return h("tr", { class: change === "same" ? "" : "changed" }, h("th", { scope: "row" }, name), ...[one, two].map((value) => h("td", {}, number(value, name))), h("td", {}, change));
  });
  const heads = ["this study", first.name, other.name, "difference"].map((text) => h("th", { scope: "col" }, text));
  return h("table", { class: "scores" }, h("thead", {}, h("tr", {}, ...heads)), h("tbody", {}, ...rows));
}

function side({ name, text, errors, memory }) {
  const rows = BANKS.filter((bank) => memory[bank].length).map((bank) =>
    h("details", {}, h("summary", {}, `Rows of the ${bank} memory`), h("ol", { class: "rows" }, ...memory[bank].map((row) => item(bank, row, row, heaviest(memory[bank]))))),
  );
  return h("div", {}, h("h3", {}, name), h("p", { class: "verdict" }, verdict(errors)), h("p", { class: "marked" }, ...marked(text)), ...rows);
}
