// Attention over the picture as the task sees it.

import { ask } from "./api.js";
import { at, make, percent } from "./parts.js";

const SIDE = 448; // of a small picture when it is shown, at least
let shown = null; // { found, picture, names }

export function begin() {
  for (const id of ["who", "layer", "strength"]) at(id).addEventListener("input", draw);
}

export async function show(picture, task, answer, opener) {
  const form = new FormData();
  form.append("image", picture.file);
  form.append("task", task);
  const found = await ask("POST", "/v1/attention", form);
  const seen = new Image();
  seen.src = found.picture;
  await seen.decode();
  shown = { found, seen };
  at("attention-title").textContent = `${task}: ${answer.label}`;
  at("who").replaceChildren(...Object.keys(found.maps).map((who) => make("option", {}, who)));
  at("layer").max = found.layers;
  at("layer").value = found.layers; // the last one decides
  at("attention").addEventListener("close", () => opener.focus(), { once: true });
  at("attention").showModal();
  draw();
}

function draw() {
  const { found, seen } = shown;
  const layer = Number(at("layer").value); // 0: the mean of all
  const name = layer ? `${layer} of ${found.layers}` : "mean of all";
  const maps = found.maps[at("who").value];
  const map = layer ? maps[layer - 1] : mean(maps);
  at("layer-name").textContent = name;
  at("layer").setAttribute("aria-valuetext", name);
  paint(seen, map, Number(at("strength").value) / 100);
  const share = map.flat().reduce((sum, one) => sum + one, 0);
  const words = `${at("who").value}, layer ${name}: ${percent(share)} of the attention is on the picture, most of it ${place(map)}.`;
  at("map-words").textContent = words;
  at("map").setAttribute("aria-label", words);
}

function mean(maps) {
  return maps[0].map((row, y) => row.map((_, x) => maps.reduce((sum, map) => sum + map[y][x], 0) / maps.length));
}

// Where most of a map lies, in words: the heaviest of nine fields.
function place(map) {
  const rows = ["top", "middle", "bottom"];
  const columns = ["left", "centre", "right"];
  const fields = new Map();
  map.forEach((row, y) => row.forEach((share, x) => {
    const field = `${rows[Math.floor((3 * y) / map.length)]} ${columns[Math.floor((3 * x) / row.length)]}`;
    fields.set(field, (fields.get(field) ?? 0) + share);
  }));
  const [[field]] = [...fields].sort((one, other) => other[1] - one[1]);
  return field === "middle centre" ? "in the middle" : `at the ${field}`;
}

// The picture, dimmed where nobody looks and warm where somebody does; the scale is that of this map.
function paint(seen, map, strength) {
  const canvas = at("map");
  const context = canvas.getContext("2d");
  const scale = Math.max(2, Math.ceil(SIDE / seen.naturalWidth));
  canvas.width = scale * seen.naturalWidth;
  canvas.height = scale * seen.naturalHeight;
  context.drawImage(seen, 0, 0, canvas.width, canvas.height);
  const most = Math.max(...map.flat()) || 1;
  const [height, width] = [map.length, map[0].length];
  const layer = new OffscreenCanvas(width, height);
  const pixels = new ImageData(width, height);
  map.flat().forEach((share, k) => pixels.data.set(colour(share / most, strength), 4 * k));
  layer.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingQuality = "high";
  context.drawImage(layer, 0, 0, canvas.width, canvas.height);
}

function colour(value, strength) {
  const stops = [[20, 11, 52], [120, 28, 109], [237, 105, 37], [252, 255, 164]]; // dark to light: readable without hue
  const where = Math.min(2.999, 3 * value);
  const [from, to] = [stops[Math.floor(where)], stops[Math.floor(where) + 1]];
  return [...from.map((one, k) => one + (to[k] - one) * (where % 1)), 255 * strength * (0.5 + 0.5 * value)]; // the picture stays visible
}
