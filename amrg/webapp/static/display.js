// The pixels of a film: zoom, pan, window and level. Maps and boxes lie in the same element and move with it.

import { $, complain } from "./dom.js";

const MOST_PIXELS = 2 ** 24; // of a canvas, on phones
const MOST_ZOOM = 16;
const [frame, square, stage, canvas] = ["frame", "square", "stage", "pixels"].map($);
const viewButtons = { "zoom-in": () => zoom(1.4), "zoom-out": () => zoom(1 / 1.4), fit: () => place(1, 0, 0), actual: zoomToPixels, invert: () => show({ inverted: !shown.inverted }), reset, full: toggleFull };
const windowInputs = ["preset", "center", "width"];
const KEYS = { "+": "zoom-in", "=": "zoom-in", "-": "zoom-out", 0: "fit", 1: "actual", i: "invert", r: "reset", f: "full", w: "drag-window", h: "show-heat", l: "show-lesion" };
const ARROWS = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

let loading = null;
let film = null; // what is shown: {width, height, first, raw, gray, counts, step, image, from}
let view = { zoom: 1, x: 0, y: 0 }; // side and place of the stage, in sides of the square
let shown = { window: null, inverted: false }; // window: [black, white] in levels; null: as the model reads the film
let painting = 0;
const pointers = new Map(); // that are down: id → event

/** Show the film at `address` in full resolution, over the small one, as soon as it is there. */
export async function showPixels(address, { width, height, levels, first }, from) {
  loading?.abort();
  const mine = (loading = new AbortController());
  film = null;
  canvas.hidden = true;
  for (const id of windowInputs) $(id).disabled = true;
  place(1, 0, 0);
  shown = { window: null, inverted: false };
  $("film-facts").textContent = "";
  describe();
  const side = Math.max(width, height);
  for (const [name, value] of Object.entries({ left: (1 - width / side) / 2, top: (1 - height / side) / 2, width: width / side, height: height / side })) {
    canvas.style[name] = `${100 * value}%`;
  }
  try {
    const answer = await fetch(address, { signal: mine.signal });
    if (!answer.ok) throw new Error();
    const content = await answer.arrayBuffer();
    const raw = levels > 256 ? new Uint16Array(content, 0, width * height) : new Uint8Array(content, 0, width * height);
    const step = Math.ceil(Math.sqrt((width * height) / MOST_PIXELS));
    const counts = new Uint32Array(levels);
    for (let i = 0; i < raw.length; i++) counts[raw[i]]++;
    [canvas.width, canvas.height] = [Math.floor(width / step), Math.floor(height / step)];
    const image = canvas.getContext("2d").createImageData(canvas.width, canvas.height);
    film = { width, height, first, raw, gray: new Uint8Array(content, raw.byteLength, levels), counts, step, image, from };
  } catch (error) {
    if (error.name !== "AbortError") complain("The film in full resolution was not sent; a smaller one is shown.");
    return;
  }
  for (const id of windowInputs) $(id).disabled = false;
  show({});
  canvas.hidden = false;
}

/** Change what is shown, and paint. */
function show(change) {
  shown = { ...shown, ...change };
  describe();
  cancelAnimationFrame(painting);
  painting = requestAnimationFrame(paint);
}

/** The gray value of each level under the window. */
function grayValues() {
  const { gray } = film;
  const negative = gray[0] > gray[gray.length - 1];
  const [black, white] = shown.window ?? [];
  return Uint8Array.from(gray, (value, level) => {
    const linear = 255 * Math.min(1, Math.max(0, (level - black) / (white - black)));
    const seen = shown.window ? (negative ? 255 - linear : linear) : value;
    return Math.round(shown.inverted ? 255 - seen : seen);
  });
}

function paint() {
  if (!film) return;
  const { raw, width, step, image } = film;
  const colors = Uint32Array.from(grayValues(), (value) => 0xff000000 | (value << 16) | (value << 8) | value);
  const pixels = new Uint32Array(image.data.buffer);
  if (step === 1) for (let i = 0; i < pixels.length; i++) pixels[i] = colors[raw[i]];
  else {
    for (let y = 0, i = 0; y < image.height; y++) {
      for (let x = 0; x < image.width; x++) pixels[i++] = colors[raw[y * step * width + x * step]];
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** The window between the levels where the model's gray values begin and end to change. */
function ownWindow() {
  const { gray } = film;
  let [low, high] = [0, gray.length - 1];
  while (low < high && gray[low + 1] === gray[0]) low++;
  while (high > low && gray[high - 1] === gray[gray.length - 1]) high--;
  return [low, Math.max(high, low + 1)];
}

/** The levels below which the given shares of the pixels lie. */
function percentiles(...shares) {
  const wanted = shares.map((share) => share * film.raw.length);
  const found = wanted.map(() => film.counts.length - 1);
  let sum = 0;
  film.counts.forEach((count, level) => {
    sum += count;
    wanted.forEach((least, number) => sum >= least && level < found[number] && (found[number] = level));
  });
  return found;
}

/** Share of pixels below the black and the white of each preset. */
const PRESETS = { full: [0, 1], dark: [0.01, 0.6], bright: [0.4, 0.995] };

function choosePreset(name) {
  if (name === "model") return show({ window: null });
  const shares = PRESETS[name];
  if (!shares) return describe();
  const [black, white] = film.gray[0] > film.gray[film.gray.length - 1] ? percentiles(...shares.map((share) => 1 - share)).reverse() : percentiles(...shares);
  setWindow(black, white, name);
}

function setWindow(black, white, preset = "own") {
  $("preset").value = preset;
  show({ window: [black, Math.max(white, black + 1)] });
}

/** Move the window by shares of the film's levels: its width, and its center. */
function shiftWindow(wider, higher) {
  if (!film) return;
  const [black, white] = shown.window ?? ownWindow();
  const levels = film.gray.length;
  const width = Math.max(1, white - black + wider * levels);
  const center = Math.min(levels, Math.max(0, (black + white) / 2 + higher * levels));
  setWindow(center - width / 2, center + width / 2);
}

/** Say what is shown: numbers of the window, the zoom, and which pixels of what these are. */
function describe() {
  $("zoom").textContent = `${view.zoom.toFixed(view.zoom < 9.95 ? 1 : 0)}×`;
  $("invert").setAttribute("aria-pressed", String(shown.inverted));
  if (!film) return;
  if (!shown.window) $("preset").value = "model";
  const [black, white] = shown.window ?? ownWindow();
  if (document.activeElement !== $("center")) $("center").value = Math.round(film.first + (black + white) / 2);
  if (document.activeElement !== $("width")) $("width").value = Math.round(white - black);
  const part = film.step > 1 ? `One of ${film.step ** 2}` : "All";
  $("film-facts").textContent = `${part} of the ${film.width} × ${film.height} pixels, and all ${film.gray.length} gray levels ${film.from}.`;
}

/** Put the stage so large and there; the film always covers the square. */
function place(size, x, y) {
  const side = Math.min(MOST_ZOOM, Math.max(1, size));
  const inside = (offset) => Math.min(0, Math.max(1 - side, offset));
  view = { zoom: side, x: inside(x), y: inside(y) };
  Object.assign(stage.style, { left: `${100 * view.x}%`, top: `${100 * view.y}%`, width: `${100 * side}%`, height: `${100 * side}%` });
  stage.style.setProperty("--zoom", side);
  frame.classList.toggle("zoomed", side > 1);
  describe();
}

/** Zoom by a factor about a point of the square, by default its center. */
function zoom(factor, [x, y] = [0.5, 0.5]) {
  const size = Math.min(MOST_ZOOM, Math.max(1, view.zoom * factor));
  place(size, x - ((x - view.x) * size) / view.zoom, y - ((y - view.y) * size) / view.zoom);
}

/** Zoom until a pixel of the film is one of the screen. */
function zoomToPixels() {
  if (!film) return;
  const screen = square.getBoundingClientRect().width * devicePixelRatio;
  zoom(Math.max(film.width, film.height) / screen / view.zoom);
}

function reset() {
  place(1, 0, 0);
  show({ window: null, inverted: false });
}

async function toggleFull() {
  if (document.fullscreenElement) return document.exitFullscreen();
  return $("viewer").requestFullscreen().catch(() => complain("This browser shows nothing in full screen."));
}

/** The place of a pointer, in sides of the square. */
function at({ clientX, clientY }) {
  const { left, top, width, height } = square.getBoundingClientRect();
  return [(clientX - left) / width, (clientY - top) / height];
}

function move(event) {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const [[x0, y0], [x1, y1]] = [at(before), at(event)];
  const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
  if (other) {
    const [x, y] = at(other);
    const grown = Math.hypot(x1 - x, y1 - y) / Math.max(1e-3, Math.hypot(x0 - x, y0 - y));
    zoom(grown, [(x + x0) / 2, (y + y0) / 2]);
    place(view.zoom, view.x + (x1 - x0) / 2, view.y + (y1 - y0) / 2);
  } else if (before.windowing) shiftWindow(x1 - x0, y1 - y0);
  else place(view.zoom, view.x + x1 - x0, view.y + y1 - y0);
  const { pointerId, clientX, clientY } = event;
  pointers.set(pointerId, { ...before, clientX, clientY });
}

frame.addEventListener("pointerdown", (event) => {
  if (event.button === 1) return;
  const { pointerId, clientX, clientY } = event;
  const windowing = event.button === 2 || event.shiftKey || $("drag-window").checked;
  pointers.set(pointerId, { clientX, clientY, windowing });
  frame.setPointerCapture(pointerId);
});
frame.addEventListener("pointermove", move);
for (const name of ["pointerup", "pointercancel"]) frame.addEventListener(name, ({ pointerId }) => pointers.delete(pointerId));
frame.addEventListener("contextmenu", (event) => event.preventDefault());
frame.addEventListener("dragstart", (event) => event.preventDefault());
frame.addEventListener("dblclick", (event) => (view.zoom > 1 ? place(1, 0, 0) : zoom(3, at(event))));
frame.addEventListener(
  "wheel",
  (event) => {
    if (view.zoom === 1 && event.deltaY > 0) return; // the page scrolls on
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.002)), at(event));
  },
  { passive: false },
);
frame.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = ARROWS[event.key];
  const button = KEYS[event.key.toLowerCase()];
  if (arrow && event.shiftKey) shiftWindow(-0.02 * arrow[0], -0.02 * arrow[1]);
  else if (arrow) place(view.zoom, view.x + 0.1 * arrow[0], view.y + 0.1 * arrow[1]);
  else if (button && !$(button).parentElement.hidden) $(button).click();
  else return;
  event.preventDefault();
});
for (const [id, act] of Object.entries(viewButtons)) $(id).addEventListener("click", act);
$("drag-window").addEventListener("change", ({ target }) => frame.classList.toggle("windowing", target.checked));
$("preset").addEventListener("change", ({ target }) => choosePreset(target.value));
for (const id of ["center", "width"]) {
  $(id).addEventListener("change", () => {
    const [center, width] = ["center", "width"].map((name) => Number($(name).value));
    if (!(width > 0) || !Number.isFinite(center)) return describe();
    setWindow(center - film.first - width / 2, center - film.first + width / 2);
  });
}
