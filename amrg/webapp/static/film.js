// The film: its activation maps, the threshold, the strongest patches, a sentence's region, and the findings to choose from.

import { showPixels } from "./display.js";
import { $, ask, choice, complain, h, length, percent } from "./dom.js";

let look = null;
let film = 0;
let finding = null;
let region = null; // of a sentence: {box: [film, x0, y0, x1, y1], label}
let asked = 0; // number of the last request for patches: answers to older ones are dropped

$("threshold").value = document.body.dataset.threshold;
for (const id of ["threshold", "show-heat", "show-lesion"]) $(id).addEventListener("input", draw);

/** Show a study, or what was made of a `file` that was opened. */
export function showFilm(newLook, file) {
  look = newLook;
  film = 0;
  const sure = [...look.findings].sort((a, b) => b.probability / b.threshold - a.probability / a.threshold);
  finding = sure[0].name;
  region = null;
  const opened = file ? `${file.name}, ${Math.ceil(file.size / 1024).toLocaleString("en")} kB (opened here)` : "Film (opened here)";
  $("film-title").textContent = look.place === "dropped" ? opened : look.name;
  $("views").hidden = look.films.length < 2;
  $("views").replaceChildren(
    ...look.films.map((_, number) => choice("view", number, number === 0, () => chooseFilm(number), `Film ${number + 1}`)),
  );
  const isFound = ({ probability, threshold }) => probability >= threshold;
  const [found, others] = [sure.filter(isFound), sure.filter((one) => !isFound(one))];
  $("found").replaceChildren(...found.map(row));
  $("others").replaceChildren(...others.map(row));
  $("rest-count").textContent = `${others.length} of ${sure.length} below their thresholds`;
  $("rest").open = !found.length;
  chooseFilm(0);
}

function row({ name, probability, threshold, stated }) {
  const found = probability >= threshold;
  const label = choice(
    "finding",
    name,
    name === finding,
    () => {
      finding = name;
      draw();
    },
    h("span", {}, found ? h("b", {}, name) : name, stated ? h("small", {}, " in reference") : null),
    h("span", { class: "bar" }, h("i", { style: { width: length(probability) } }), h("u", { style: { left: length(threshold) } })),
    h("span", { class: "number" }, percent(probability)),
  );
  label.classList.toggle("found", found);
  if (threshold > 0.995) label.title = `Its threshold is ${percent(threshold)}: it is practically never found.`;
  return label;
}

function chooseFilm(number) {
  film = number;
  const image = $("image");
  image.src = look.films[film].image;
  image.alt = `Film ${film + 1} of ${look.films.length}`;
  image.hidden = false;
  $("empty").hidden = true;
  const from = look.place === "dropped" ? "of the file" : "of the film as the run stores it";
  showPixels(`/api/looks/${look.place}/${encodeURIComponent(look.name)}/films/${film}`, look.films[film], from);
  draw();
  drawRegion();
}

/** Mark the region of a sentence, {box, label}, where it lies on the film that is shown; null marks none. */
export function markRegion(newRegion) {
  region = newRegion;
  drawRegion();
}

/** Show the map of a finding, if there is such a finding. */
export function showFinding(name) {
  const input = [...$("findings").querySelectorAll("input")].find(({ value }) => value === name);
  if (!input || name === finding) return;
  if (input.closest("#rest")) $("rest").open = true;
  input.checked = true;
  finding = name;
  draw();
}

/** Show the film on which a region lies. */
export function showFilmOf({ box: [number] }) {
  if (number === film || number >= look.films.length) return;
  $("views").querySelectorAll("input")[number].checked = true;
  chooseFilm(number);
}

function drawRegion() {
  if (!region || region.box[0] !== film) return $("region").replaceChildren();
  const [, x0, y0, x1, y1] = region.box;
  const place = { x: x0, y: y0, width: x1 - x0, height: y1 - y0 };
  const right = x0 > look.grid / 2;
  const label = { x: right ? x1 : x0, y: y0 > 1 ? y0 - 0.3 : y1 + 0.8, "text-anchor": right ? "end" : "start" };
  $("region").setAttribute("viewBox", `0 0 ${look.grid} ${look.grid}`);
  $("region").replaceChildren(svg("rect", { class: "under", ...place }), svg("rect", place), svg("text", label, region.label));
}

function draw() {
  const threshold = Number($("threshold").value);
  $("tau").textContent = threshold.toFixed(2);
  if (!look) return;
  const map = look.films[film].maps[finding];
  $("heat").src = map.heat;
  $("heat").hidden = !$("show-heat").checked;
  $("lesion-check").hidden = !map.lesion;
  $("lesion").hidden = !map.lesion || !$("show-lesion").checked;
  if (map.lesion) $("lesion").src = map.lesion;
  $("overlay").setAttribute("viewBox", `0 0 ${look.grid} ${look.grid}`);
  $("overlay").replaceChildren(svg("path", { d: border(map.cells, threshold) }));
  const above = map.cells.flat().filter((value) => value > threshold).length;
  const said = `${finding}: ${above} of ${look.grid ** 2} cells above τ`;
  minePatches(threshold, said).catch((error) => complain(error.message));
}

async function minePatches(threshold, said) {
  const mine = ++asked;
  const query = new URLSearchParams({ film, finding, threshold });
  const patches = await ask(`/api/looks/${look.place}/${encodeURIComponent(look.name)}/patches?${query}`);
  if (mine !== asked) return;
  $("above").textContent = `${said}; ${patches.length ? `the strongest ${patches.length}` : "none"} marked`;
  $("overlay").append(
    ...patches.flatMap(({ row, column }, number) => {
      const place = { x: column, y: row, width: 1, height: 1 };
      const atEdge = column > look.grid - 2;
      const label = { x: column + (atEdge ? -0.12 : 1.12), y: row + 0.8, "text-anchor": atEdge ? "end" : "start" };
      return [svg("rect", { class: "under", ...place }), svg("rect", place), svg("text", label, number + 1)];
    }),
  );
  await $("image").decode().catch(() => {}); // another film is shown meanwhile
  if (mine !== asked) return;
  $("patches").replaceChildren(
    ...patches.map((patch, number) => h("figure", {}, crop(patch), h("figcaption", {}, `${number + 1} · ${patch.activation.toFixed(2)}`))),
  );
}

/** A patch with one cell around it: alone it shows nothing a reader could recognise. */
function crop({ row, column }) {
  const canvas = h("canvas", { width: 128, height: 128, role: "img", "aria-label": `patch at row ${row + 1}, column ${column + 1}` });
  const image = $("image");
  const cell = image.naturalWidth / look.grid;
  canvas.getContext("2d").drawImage(image, (column - 1) * cell, (row - 1) * cell, 3 * cell, 3 * cell, 0, 0, 128, 128);
  return canvas;
}

/** The border between cells above the threshold and all others, as an SVG path. */
function border(cells, threshold) {
  const on = (y, x) => (cells[y]?.[x] ?? -1) > threshold;
  let path = "";
  for (let y = 0; y < cells.length; y++) {
    for (let x = 0; x < cells.length; x++) {
      if (!on(y, x)) continue;
      if (!on(y - 1, x)) path += `M${x} ${y}h1`;
      if (!on(y + 1, x)) path += `M${x} ${y + 1}h1`;
      if (!on(y, x - 1)) path += `M${x} ${y}v1`;
      if (!on(y, x + 1)) path += `M${x + 1} ${y}v1`;
    }
  }
  return path;
}

function svg(tag, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}
