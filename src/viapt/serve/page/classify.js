// Pictures, tasks, and what the tasks say of the pictures.

import { answers } from "./asking.js";
import { show as showAttention } from "./attention.js";
import { at, bound, complain, counted, make, percent, renew, say, takesDrops, trying } from "./parts.js";

const SHOWN = 5; // classes of an answer
const NAMED = 5; // pictures, where there is something to say of many
export const pictures = []; // { file or url, name, source, tasks (name -> answer), trouble (why there is none), card, words (elements) }
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
  renew(at("tasks"), ...overview.tasks.map((task) => make("label", { class: "choice" },
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
  for (const file of files) put({ file, name: file.name, source: URL.createObjectURL(file) });
  say(`${counted(pictures.length, "picture")} chosen.`);
}

function addAddress() {
  const url = at("url").value.trim();
  if (!url || !at("url").reportValidity()) return;
  put({ url, name: url, source: null }); // another site's picture is not shown: no site but this is asked
  at("url").value = "";
}

function put(file) {
  const picture = { ...file, tasks: {}, trouble: null };
  const button = make("button", { type: "button", class: "small", "aria-label": `Remove ${picture.name}`, onclick: () => remove(picture) }, "Remove");
  picture.words = make("div", {});
  picture.card = make("li", { class: "picture panel" },
    make("figure", {}, image(picture), make("figcaption", {}, picture.name), button), picture.words);
  pictures.push(picture);
  at("pictures").append(picture.card);
  draw(picture);
  ready();
}

function forget(picture) {
  if (picture.source) URL.revokeObjectURL(picture.source);
  picture.card.remove();
}

function remove(picture) {
  const near = picture.card.nextElementSibling ?? picture.card.previousElementSibling;
  (near?.querySelector("button") ?? at("files")).focus();
  pictures.splice(pictures.indexOf(picture), 1);
  forget(picture);
  pictures.forEach(draw); // they have other numbers now
  say(`${picture.name} is removed.`);
  ready();
  changed();
}

function clear() {
  at("files").focus();
  pictures.splice(0).forEach(forget);
  complain(null);
  ready();
  changed();
}

async function classify() {
  say("Classifying.");
  const tasks = server.tasks.filter(({ name }) => names().includes(name));
  const fields = policy() === "multi" ? { policy: "multi", rounds: at("rounds").value } : { policy: policy() };
  const done = [];
  for await (const { picture, ...rest } of answers(pictures, tasks, fields, server.limits)) {
    Object.assign(picture, rest);
    draw(picture);
    changed();
    done.push(picture);
  }
  const refused = done.filter((picture) => picture.trouble);
  say(`${counted(done.length - refused.length, "picture")} classified for ${counted(tasks.length, "task")}.`);
  if (refused.length) complain(new Error(`Not classified: ${listed(refused)}. What is wrong stands beside the picture.`));
}

function listed(some) {
  const more = some.length - NAMED;
  return some.slice(0, NAMED).map(({ name }) => name).join(", ") + (more > 0 ? ` and ${more} more` : "");
}

export const hasAnswers = ({ tasks }) => Object.keys(tasks).length > 0;

function draw(picture) {
  const found = Object.entries(picture.tasks).map(([task, answer]) => said(picture, task, answer));
  renew(picture.words,
    picture.trouble ? make("p", { class: "trouble" }, picture.trouble) : "",
    found.length || picture.trouble ? make("div", { class: "answers" }, ...found) : make("p", { class: "quiet" }, "Not classified yet."));
}

export function image(picture) {
  return picture.source ? make("img", { src: picture.source, alt: "" }) : make("p", { class: "quiet" }, "From an address");
}

function said(picture, task, answer) {
  const looks = picture.file && make("button", {
    type: "button", class: "small", "aria-label": `Attention of ${task} over ${picture.name}`,
    onclick: ({ target }) => trying(target, () => showAttention(picture, task, answer, target)),
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
