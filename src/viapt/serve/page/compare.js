// The same pictures by several tasks, side by side.

import { hasAnswers, image, likely, pictures, spreadOf } from "./classify.js";
import { at, counted, make, percent, renew } from "./parts.js";

export function draw() {
  const answered = pictures.filter(hasAnswers);
  const tasks = [...new Set(answered.flatMap((picture) => Object.keys(picture.tasks)))];
  if (!answered.length) {
    renew(at("comparison"), make("p", { class: "panel quiet" }, "Classify some pictures first; their answers stand here side by side."));
    return;
  }
  renew(at("comparison"), make("div", { class: "wide panel", tabindex: "0", role: "region", "aria-label": "Comparison" },
    make("table", { class: "compared" },
      make("caption", { class: "quiet" }, `${counted(answered.length, "picture")}, ${counted(tasks.length, "task")}`),
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Picture"), ...tasks.map((task) => make("th", { scope: "col" }, task)))),
      make("tbody", {}, ...answered.map((picture) => make("tr", {},
        make("th", { scope: "row" }, image(picture), picture.name),
        ...tasks.map((task) => cell(picture.tasks[task]))))))));
}

function cell(answer) {
  if (!answer) return make("td", { class: "quiet" }, "not asked");
  const second = Object.entries(answer.probabilities).filter(([label]) => label !== answer.label).sort((one, other) => other[1] - one[1])[0];
  return make("td", {},
    make("strong", {}, answer.label), likely(answer.probability, spreadOf(answer, answer.label)),
    make("div", { class: "quiet" }, `then ${second[0]}, ${percent(second[1])}`));
}
