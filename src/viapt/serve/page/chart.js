// Curves of a fit as small SVG charts: a line for what is learned from, a dashed one for what was held back.

import { at, make } from "./parts.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [320, 170, 38, 24, 22];

export function draw(teaching) {
  at("curves").replaceChildren(
    figure(teaching, "Loss", "loss", round(Math.max(0.1, ...teaching.curve.flatMap((one) => [one.train_loss, one.val_loss ?? 0])))),
    figure(teaching, "Accuracy", "accuracy", 1));
  const held = teaching.held_back;
  const cell = (value) => make("td", {}, value === null ? "-" : value.toFixed(3));
  at("numbers").replaceChildren(make("table", {},
    make("thead", {}, make("tr", {}, ...["Epoch", "Loss", "Accuracy", ...(held ? ["Loss, held back", "Accuracy, held back"] : [])]
      .map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...teaching.curve.map((one) => make("tr", {}, make("th", { scope: "row" }, String(one.epoch)),
      cell(one.train_loss), cell(one.train_accuracy), ...(held ? [cell(one.val_loss), cell(one.val_accuracy)] : []))))));
}

// The next of 1, 2, 5, 10, 20 ...: a half of it is a short number, too.
function round(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((one) => one * power >= value);
}

function figure(teaching, title, key, top) {
  const x = (epoch) => LEFT + ((WIDTH - LEFT - 8) * (epoch - 1)) / Math.max(1, teaching.epochs - 1);
  const y = (value) => HEIGHT - BOTTOM - ((HEIGHT - BOTTOM - TOP) * value) / top;
  const lines = [["train", `train_${key}`, "learned from"], ["held", `val_${key}`, "held back"]].filter(([kind]) => kind === "train" || teaching.held_back);
  const last = teaching.curve.at(-1);
  const words = last ? `${title} after epoch ${last.epoch}: ${lines.map(([, name, what]) => `${last[name]?.toFixed(2)} on photos ${what}`).join(", ")}` : `${title}: no epoch is done yet`;
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": words });
  for (const share of [0, 0.5, 1]) {
    svg.append(make("line", { class: "axis", x1: LEFT, x2: WIDTH - 8, y1: y(share * top), y2: y(share * top) }),
      make("text", { x: LEFT - 6, y: y(share * top) + 4, "text-anchor": "end" }, String(Number((share * top).toPrecision(3)))));
  }
  svg.append(make("text", { x: LEFT, y: HEIGHT - 6 }, "epoch 1"), make("text", { x: WIDTH - 8, y: HEIGHT - 6, "text-anchor": "end" }, String(teaching.epochs)));
  let offset = LEFT;
  svg.append(make("text", { x: offset, y: 12, "font-weight": 650 }, title));
  offset += 70;
  for (const [kind, name, what] of lines) {
    const points = teaching.curve.filter((one) => one[name] !== null).map((one) => `${x(one.epoch).toFixed(1)},${y(Math.min(top, one[name])).toFixed(1)}`);
    svg.append(make("line", { class: kind, x1: offset, x2: offset + 18, y1: 8, y2: 8, "stroke-width": 2.2 }), make("text", { x: offset + 23, y: 12 }, what));
    offset += 100;
    if (points.length > 1) svg.append(make("polyline", { class: kind, points: points.join(" ") }));
    else if (points.length) svg.append(make("circle", { class: kind, cx: points[0].split(",")[0], cy: points[0].split(",")[1], r: 3 }));
  }
  return make("figure", {}, svg);
}
