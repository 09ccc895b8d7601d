// Pictures, tasks, and what the tasks say of the pictures.

import { ask } from "./api.js";
import { show as showAttention } from "./attention.js";
import { at, bound, complain, counted, make, percent, say, takesDrops, trying } from "./parts.js";

const SHOWN = 5; // classes of an answer
export const pictures = []; // { file or url, name, source, tasks (name -> answer, once there is one) }
let server = null; // what GET /v1/tasks said
let changed = () => {}; // called when there is something new to compare

export function begin(onChange) {
  changed = onChange;
  takesDrops(at("drop"), add);
  at("files").addEventListener("change", (event) => {
    add([...event.target.files]);
    event.target.value = "";
  });
  at("add-url").addEventListener("click", addAddress);
  at("clear").addEventListener("click", clear);
  at("question").addEventListener("submit", (event) => {
    event.preventDefault();
    trying(at("ask"), classify);
  });
  for (const radio of document.querySelectorAll("[name=policy]")) {
    radio.addEventListener("change", offerRounds);
  }
}

export function know(overview, chosen = null) {
  server = overview;
  const before = new Set(names());
  const first = !at("tasks").childElementCount;
  at("tasks").replaceChildren(...overview.tasks.map((task) => make("label", { class: "choice" },
    make("input", {
      type: "checkbox", name: "task", value: task.name, onchange: ready,
      checked: chosen ? task.name === chosen : first || before.has(task.name),
    }),
    make("span", {}, task.name, " ", make("span", { class: "quiet" }, `${task.method}, ${counted(task.classes.length, "class", "classes")}`)),
  )));
  if (!overview.tasks.length) at("tasks").append(make("p", { class: "quiet" }, "None are loaded."));
  at("by-address").hidden = !overview.urls;
  at("policies").hidden = overview.limits.rounds < 2;
  bound(at("rounds"), overview.limits.rounds);
  ready();
}

// A field that nobody sees must be out of action: the browser would refuse to send the form for what is in it.
function offerRounds() {
  at("rounds").disabled = at("sampling").hidden = policy() !== "multi";
}

const names = () => [...document.querySelectorAll("[name=task]:checked")].map((box) => box.value);
const policy = () => document.querySelector("[name=policy]:checked").value;

function ready() {
  at("ask").disabled = !pictures.length || !names().length;
  at("clear").disabled = !pictures.length;
  at("empty").hidden = pictures.length > 0;
}

function add(files) {
  for (const file of files) pictures.push({ file, name: file.name, source: URL.createObjectURL(file), tasks: null });
  say(`${counted(pictures.length, "picture")} chosen.`);
  draw();
}

function addAddress() {
  const url = at("url").value.trim();
  if (!url || !at("url").reportValidity()) return;
  pictures.push({ url, name: url, source: null, tasks: null }); // another site's picture is not shown: no site but this is asked
  at("url").value = "";
  draw();
}

function clear() {
  for (const picture of pictures.splice(0)) if (picture.source) URL.revokeObjectURL(picture.source);
  complain(null);
  draw();
  at("files").focus();
}

// Rows that a picture makes for a task.
const rows = (task) => (policy() === "multi" && task.samples ? Number(at("rounds").value) : 1);
const together = (tasks) => tasks.reduce((sum, task) => sum + rows(task), 0);

// The chosen tasks, in groups of which the server takes one picture at least; a task that is too much alone it refuses.
function groups() {
  const found = [];
  for (const task of server.tasks.filter(({ name }) => names().includes(name))) {
    if (found.length && together([...found.at(-1), task]) <= server.limits.queue) found.at(-1).push(task);
    else found.push([task]);
  }
  return found;
}

// The pictures, in requests as large as the server takes.
function* requests(most) {
  let batch = [];
  let bytes = 0;
  for (const picture of pictures) {
    const size = (picture.file?.size ?? 0) + 4096;
    if (batch.length && (batch.length === most || bytes + size > server.limits.request_bytes)) {
      yield batch;
      batch = [];
      bytes = 0;
    }
    batch.push(picture);
    bytes += size;
  }
  if (batch.length) yield batch;
}

async function classify() {
  say("Classifying.");
  const chosen = groups();
  const most = Math.min(server.limits.images, ...chosen.map((tasks) => Math.floor(server.limits.queue / together(tasks))));
  for (const batch of requests(Math.max(1, most))) {
    const ordered = [...batch.filter((picture) => picture.file), ...batch.filter((picture) => picture.url)];
    const answers = ordered.map(() => ({}));
    for (const tasks of chosen) {
      const { images } = await ask("POST", "/v1/classify", question(ordered, tasks));
      images.forEach((image, k) => Object.assign(answers[k], image.tasks));
    }
    ordered.forEach((picture, k) => { picture.tasks = answers[k]; });
    draw();
  }
  say(`${counted(pictures.length, "picture")} classified for ${counted(chosen.flat().length, "task")}.`);
}

// A request, which the server answers in the order of the pictures: files first.
function question(ordered, tasks) {
  const form = new FormData();
  for (const { file, url } of ordered) form.append(file ? "images" : "urls", file ?? url);
  for (const { name } of tasks) form.append("tasks", name);
  form.append("policy", policy());
  if (policy() === "multi") form.append("rounds", at("rounds").value);
  return form;
}

function draw() {
  at("pictures").replaceChildren(...pictures.map(card));
  ready();
  changed();
}

function card(picture) {
  return make("li", { class: "picture panel" },
    make("figure", {}, image(picture), make("figcaption", {}, picture.name)),
    picture.tasks
      ? make("div", { class: "answers" }, ...Object.entries(picture.tasks).map(([task, answer]) => said(picture, task, answer)))
      : make("p", { class: "quiet" }, "Not classified yet."));
}

export function image(picture) {
  return picture.source ? make("img", { src: picture.source, alt: "" }) : make("p", { class: "quiet" }, "From an address");
}

function said(picture, task, answer) {
  const looks = picture.file && make("button", {
    type: "button", class: "small", "aria-label": `Attention of ${task} over ${picture.name}`,
    onclick: (event) => trying(event.target, () => showAttention(picture, task, answer)),
  }, "Attention");
  const best = Object.entries(answer.probabilities).sort((one, other) => other[1] - one[1]);
  const rest = best.length - SHOWN;
  return make("div", { class: "answer", role: "group", "aria-label": `${task} about ${picture.name}, picture ${pictures.indexOf(picture) + 1}` },
    make("h3", {}, make("span", {}, task), looks || null),
    make("p", { class: "verdict" }, answer.label),
    make("table", { class: "chances" },
      make("caption", { class: "visually-hidden" }, varied(answer)
        ? `Probabilities, the mean of ${answer.rounds} rounds with their standard deviation` : "Probabilities"),
      make("tbody", {}, ...best.slice(0, SHOWN).map(([label, share]) => chance(label, share, spreadOf(answer, label))))),
    rest > 0 ? make("p", { class: "quiet" }, `and ${counted(rest, "less likely class", "less likely classes")}`) : null,
    answer.spread ? make("p", { class: "quiet" }, answer.rounds > 1 ? `± over ${answer.rounds} rounds` : "no samples: rounds do not differ") : null);
}

// Whether there is anything to say of differences between rounds.
const varied = (answer) => answer.spread !== null && answer.rounds > 1;

export function spreadOf(answer, label) {
  return varied(answer) ? answer.spread[label] : null;
}

export function likely(share, spread) {
  return spread === null ? percent(share) : `${percent(share)} ± ${(100 * spread).toFixed(1)}`;
}

const VISIBLE = 0.01; // a whisker that is shorter is all ends

function chance(label, share, spread) {
  const fill = make("div", { class: "fill" });
  fill.style.width = `${100 * share}%`;
  const track = make("div", { class: "track" }, fill);
  if (spread >= VISIBLE) {
    const whisker = make("div", { class: "whisker" });
    const low = Math.max(0, share - spread);
    whisker.style.left = `${100 * low}%`;
    whisker.style.width = `${100 * (Math.min(1, share + spread) - low)}%`;
    track.append(whisker);
  }
  return make("tr", {}, make("th", { scope: "row" }, label), make("td", { "aria-hidden": "true" }, track), make("td", {}, likely(share, spread)));
}
