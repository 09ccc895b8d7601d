// What the tasks say of pictures, asked in requests as large as the server takes.

import { ask } from "./api.js";
import { shrunk } from "./parts.js";

const SIDE = 2048; // pixels of a picture that was too large: more than any backbone looks at
const TOO_MUCH = ["timeout", "too_many_rows"];
const tooMuch = () => "The server takes too long over this picture: choose fewer tasks or rounds.";
const TROUBLES = { // code of a refusal -> what to say of the picture
  timeout: tooMuch,
  too_many_rows: tooMuch,
  request_too_large: () => "This picture is too large for the server: make it smaller.",
  unreadable_image: ({ found }) => `This picture ${found.replace(/^.*?: /s, "").replace(/ \(\w+: .*/s, "")}. Save it as JPEG or PNG, and choose that.`,
  address_refused: ({ message }) => message,
  unreachable_image: ({ message }) => message,
};

// One after the other { picture, tasks (name -> answer), trouble (why there is none) }; pictures that are removed meanwhile are left out.
export async function* answers(pictures, tasks, fields, limits) {
  const plan = planned(tasks, Number(fields.rounds ?? 1), limits);
  for await (const batch of requests(pictures, plan, limits)) {
    const found = batch.map((picture) => ({ picture, tasks: {}, trouble: null }));
    for (const group of plan.groups) {
      const images = await answersOf(batch, group, fields, plan);
      images.forEach(({ tasks: said, trouble }, k) => {
        Object.assign(found[k].tasks, said);
        found[k].trouble ??= trouble ?? null;
      });
    }
    yield* found;
  }
}

// The tasks in groups of which the server takes one picture at least (one that is too much alone it refuses), and how many pictures at a time.
function planned(tasks, rounds, limits) {
  const rows = (group) => group.reduce((sum, { samples }) => sum + (samples ? rounds : 1), 0); // of a picture
  const room = Math.min(limits.queue, limits.rows ?? Infinity);
  const groups = [];
  for (const task of tasks) {
    if (groups.length && rows([...groups.at(-1), task]) <= room) groups.at(-1).push(task);
    else groups.push([task]);
  }
  return { groups, most: Math.max(1, Math.min(limits.images, ...groups.map((group) => Math.floor(room / rows(group))))) };
}

// The pictures of each request; files come first, since the server answers in that order.
async function* requests(pictures, plan, limits) {
  let batch = [];
  let bytes = 0;
  for (const picture of [...pictures].sort((one, other) => Boolean(one.url) - Boolean(other.url))) {
    await fit(picture, limits);
    if (!pictures.includes(picture)) continue;
    if (batch.length && (batch.length >= plan.most || bytes + size(picture) > limits.request_bytes)) {
      yield batch;
      batch = [];
      bytes = 0;
    }
    batch.push(picture);
    bytes += size(picture);
  }
  if (batch.length) yield batch;
}

const size = ({ file }) => (file?.size ?? 0) + 4096; // bytes of a request

// A picture that the server would refuse is made smaller, once.
async function fit(picture, { pixels, request_bytes: bytes }) {
  if (!picture.file || picture.fits) return;
  const enough = ({ width, height }) => width * height <= pixels && size(picture) <= bytes;
  picture.file = await shrunk(picture.file, Math.min(SIDE, Math.floor(Math.sqrt(pixels))), enough);
  picture.fits = true;
}

// If the server refuses a request for what may be one picture's fault, its halves are asked: in the end, that picture alone has no answer.
async function answersOf(batch, tasks, fields, plan) {
  if (batch.length <= plan.most) {
    try {
      return (await ask("POST", "/v1/classify", form(batch, tasks, fields))).images;
    } catch (error) {
      if (!TROUBLES[error.code]) throw error;
      if (batch.length === 1) return [{ trouble: TROUBLES[error.code](error) }];
      if (TOO_MUCH.includes(error.code)) plan.most = batch.length >> 1;
    }
  }
  const half = batch.length >> 1;
  return [...await answersOf(batch.slice(0, half), tasks, fields, plan), ...await answersOf(batch.slice(half), tasks, fields, plan)];
}

function form(batch, tasks, fields) {
  const filled = new FormData();
  for (const { file, url } of batch) filled.append(file ? "images" : "urls", ...(file ? [file, "picture"] : [url]));
  for (const { name } of tasks) filled.append("tasks", name);
  for (const [name, value] of Object.entries(fields)) filled.append(name, value);
  return filled;
}
