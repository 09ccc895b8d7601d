// A new task from labelled photos: boxes, the fit, its end.

import { ask, send } from "./api.js";
import { draw as drawCurves } from "./chart.js";
import { at, bound, complain, counted, make, renew, say, shrunk, takesDrops, trying } from "./parts.js";

const PACE = 700; // milliseconds between two looks
const SLOWEST = 20000; // where the server does not answer
const SIDE = 512; // pixels of a photo to teach with: backbones look at 224 to 448, and a request holds 400 of them
const HEAVY = 64 * 1024; // bytes
const STAGES = {
  preparing: "Getting ready", fitting: "Learning", saving: "Saving", done: "Done: it is loaded, and can be used", cancelled: "Cancelled: nothing was kept",
};
const boxes = []; // { name, photos: [{ file, source }] }
let offered = null; // what the server teaches
let shown = null; // the teaching in view
let finished = () => {};

export function begin(onFinished) {
  finished = onFinished;
  at("add-class").addEventListener("click", () => {
    boxes.push({ name: "", photos: [] });
    draw(`class-${boxes.length - 1}`);
  });
  at("lesson").addEventListener("submit", (event) => {
    event.preventDefault();
    trying(at("begin"), teach);
  });
  at("cancel").addEventListener("click", () => trying(at("cancel"), async () => view(await ask("DELETE", `/v1/teachings/${shown.id}`))));
  at("use").addEventListener("click", () => finished(shown.name, true));
  at("download").addEventListener("click", () => trying(at("download"), () => download(shown.name)));
  boxes.push({ name: "", photos: [] }, { name: "", photos: [] });
  draw();
}

export async function know(overview) {
  offered = overview.teaching;
  at("no-teaching").hidden = offered !== null;
  at("teaching").hidden = offered === null;
  if (!offered) return;
  list(overview.tasks.filter((task) => task.taught));
  if (at("method").childElementCount) return;
  at("method").replaceChildren(...offered.methods.map((method) => make("option", {}, method)));
  bound(at("epochs"), offered.epochs);
  at("advice").textContent = `Up to ${offered.photos} photos of 2 to ${offered.classes} classes. With five or more of each, a fifth is held back to measure on. `
    + `Photos are made smaller here (${SIDE} pixels), sent to this server, and removed when the fit has ended.`;
  const { teachings } = await ask("GET", "/v1/teachings");
  const running = teachings.find((one) => !isOver(one));
  if (running) follow(running); // begun before this page was opened
}

// The tasks that were taught here, whenever that was.
function list(tasks) {
  at("taught").hidden = !tasks.length;
  renew(at("taught-tasks"), ...tasks.map(({ name, method }) => make("li", { class: "row" },
    make("span", {}, name, " ", make("span", { class: "quiet" }, method)),
    make("button", { type: "button", class: "small", "aria-label": `Use ${name}`, onclick: () => finished(name, true) }, "Use"),
    make("button", { type: "button", class: "small", "aria-label": `Download ${name}`, onclick: ({ target }) => trying(target, () => download(name)) }, "Download"))));
}

// All boxes anew; what had the focus before is gone, so something near it gets it.
function draw(focused = null) {
  at("boxes").replaceChildren(...boxes.map(box));
  if (focused) at(focused).focus();
}

const title = (index) => boxes[index].name || `class ${index + 1}`;

// The words that a new name changes, without touching what has the focus.
function rename(index, name) {
  boxes[index].name = name;
  for (const element of document.querySelectorAll(`[data-class="${index}"]`)) {
    element.setAttribute("aria-label", `${element.dataset.words} ${title(index)}`);
  }
  for (const option of document.querySelectorAll(`.thumbs option[value="${index}"]`)) option.textContent = title(index);
}

function named(words, index) {
  return { "aria-label": `${words} ${title(index)}`, "data-words": words, "data-class": index };
}

function box(content, index) {
  const name = make("input", {
    id: `class-${index}`, value: content.name, "aria-label": `Name of class ${index + 1}`, placeholder: "its name", maxlength: 100, autocomplete: "off",
    oninput: (event) => rename(index, event.target.value.trim()),
  });
  const files = make("input", {
    id: `photos-${index}`, type: "file", multiple: true, accept: "image/*", ...named("Photos of", index),
    onchange: (event) => add(index, [...event.target.files]),
  });
  const drop = make("div", { class: "drop" }, files, make("span", { "aria-hidden": "true" }, make("strong", {}, "Choose photos"), " or drop them here"));
  const remove = make("button", { type: "button", class: "small", ...named("Remove", index), onclick: () => removeBox(index) }, "Remove");
  const element = make("fieldset", { class: "box" }, make("legend", {}, `Class ${index + 1}`),
    make("div", { class: "row" }, name, boxes.length > 2 ? remove : null), drop,
    make("p", { class: "quiet" }, counted(content.photos.length, "photo")),
    make("ul", { class: "thumbs", ...named("What shows", index) }, ...content.photos.map((photo, k) => thumb(index, photo, k))));
  takesDrops(element, (dropped, moved) => {
    if (dropped.length) add(index, dropped);
    else if (/^\d+,\d+$/.test(moved)) move(...moved.split(",").map(Number), index);
  });
  return element;
}

function thumb(index, photo, k) {
  const where = make("select", { "aria-label": `Move ${photo.file.name} to`, onchange: (event) => move(index, k, Number(event.target.value)) },
    ...boxes.map((_, to) => make("option", { value: to, selected: to === index }, title(to))));
  const remove = make("button", {
    type: "button", "aria-label": `Remove ${photo.file.name}`,
    onclick: () => {
      URL.revokeObjectURL(boxes[index].photos.splice(k, 1)[0].source);
      draw(`photos-${index}`);
    },
  }, "Remove");
  const picture = make("img", { src: photo.source, alt: photo.file.name, draggable: "true", ondragstart: (event) => event.dataTransfer.setData("text/plain", `${index},${k}`) });
  return make("li", {}, picture, where, remove);
}

function add(index, files) {
  for (const file of files) boxes[index].photos.push({ file, source: URL.createObjectURL(file) });
  say(`${counted(files.length, "photo")} added to ${title(index)}.`);
  draw(`photos-${index}`);
}

function move(from, k, to) {
  if (from === to || !boxes[from]?.photos[k]) return;
  boxes[to].photos.push(...boxes[from].photos.splice(k, 1));
  say(`Moved to ${title(to)}.`);
  draw(`photos-${to}`);
}

function removeBox(index) {
  for (const photo of boxes.splice(index, 1)[0].photos) URL.revokeObjectURL(photo.source);
  draw("add-class");
}

const small = (file) => shrunk(file, SIDE, ({ width, height }) => Math.max(width, height) <= SIDE && file.size <= HEAVY);

async function teach() {
  const form = new FormData();
  form.append("name", at("name").value.trim());
  form.append("method", at("method").value);
  form.append("epochs", at("epochs").value);
  form.append("replace", at("replace").checked);
  boxes.forEach((_, index) => form.append("classes", title(index)));
  for (const [index, content] of boxes.entries()) {
    for (const photo of content.photos) {
      form.append("images", await small(photo.file), photo.file.name);
      form.append("labels", title(index));
    }
  }
  if (!form.has("images")) throw new Error("There are no photos yet: choose some for each class.");
  follow(await ask("POST", "/v1/teachings", form));
}

async function follow(teaching) {
  view(teaching);
  at("progress").scrollIntoView({ block: "nearest" });
  let wait = PACE;
  while (shown.id === teaching.id && !isOver(shown)) {
    await new Promise((resolve) => setTimeout(resolve, wait));
    if (shown.id !== teaching.id || isOver(shown)) break;
    try {
      view(await ask("GET", `/v1/teachings/${teaching.id}`));
      wait = PACE;
    } catch (error) {
      if (error.code === "unknown_teaching") return complain(error);
      at("stage").textContent = `${error.message} It is asked again.`;
      wait = Math.min(2 * wait, SLOWEST);
    }
  }
  if (shown.id === teaching.id && shown.state === "done") await finished(shown.name, false);
}

const isOver = (teaching) => ["done", "cancelled", "failed"].includes(teaching.state);

function view(teaching) {
  shown = teaching;
  const over = isOver(teaching);
  at("progress").hidden = false;
  at("progress-title").textContent = `Teaching “${teaching.name}”`;
  const stage = teaching.state === "failed"
    ? [teaching.error.message, teaching.error.expected, teaching.error.remedy].filter(Boolean).join(". ")
    : STAGES[teaching.state];
  const far = teaching.state === "fitting" ? `, epoch ${teaching.curve.length} of ${teaching.epochs} done` : "";
  const words = `${stage}${far}.`;
  if (at("stage").textContent !== words) at("stage").textContent = words;
  at("bar").max = teaching.epochs;
  at("bar").value = teaching.state === "done" ? teaching.epochs : teaching.curve.length;
  const held = document.activeElement === at("cancel");
  at("cancel").hidden = over;
  at("use").hidden = at("download").hidden = teaching.state !== "done";
  if (held && over) at(teaching.state === "done" ? "use" : "begin").focus();
  drawCurves(teaching);
}

async function download(name) {
  const response = await send("GET", `/v1/tasks/${encodeURIComponent(name)}/adapter`);
  const source = URL.createObjectURL(await response.blob());
  make("a", { href: source, download: `${name}.zip` }).click();
  setTimeout(() => URL.revokeObjectURL(source), 60000);
}
