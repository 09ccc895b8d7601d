// Small parts that all views share.

export const at = (id) => document.getElementById(id);

// An element: name, attributes (an "on..." one is a listener), children (text or elements).
export function make(name, attributes = {}, ...children) {
  const svg = ["svg", "polyline", "line", "text", "rect", "circle", "title"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// New content for an element; what had the focus in it, and is there again by name, keeps it.
export function renew(element, ...children) {
  const name = ({ id, value, ariaLabel }) => id || ariaLabel || value;
  const focused = element.contains(document.activeElement) && name(document.activeElement);
  element.replaceChildren(...children);
  if (focused) [...element.querySelectorAll("*")].find((one) => name(one) === focused)?.focus();
}

// A number of a field, no larger than this.
export function bound(field, most) {
  field.max = most;
  if (Number(field.value) > most) field.value = most;
}

export const percent = (share) => `${(100 * share).toFixed(share > 0.9995 || share < 0.0005 ? 0 : 1)} %`;

export function counted(count, noun, several = `${noun}s`) {
  return `${count} ${count === 1 ? noun : several}`;
}

export function say(text) {
  at("news").textContent = text;
}

export function complain(error) {
  at("trouble").textContent = error ? error.message : "";
  if (error) at("trouble").scrollIntoView({ block: "nearest" });
}

// Runs something that may fail, with a button out of action meanwhile; were it disabled, it would lose the focus.
export async function trying(button, work) {
  if (button.getAttribute("aria-disabled")) return undefined;
  complain(null);
  button.setAttribute("aria-disabled", "true");
  try {
    return await work();
  } catch (error) {
    complain(error);
    return undefined;
  } finally {
    button.removeAttribute("aria-disabled");
  }
}

// Has an element take files that are dropped on it.
export function takesDrops(element, onFiles) {
  element.addEventListener("dragover", (event) => {
    event.preventDefault();
    element.classList.add("over");
  });
  element.addEventListener("dragleave", () => element.classList.remove("over"));
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    element.classList.remove("over");
    onFiles([...event.dataTransfer.files], event.dataTransfer.getData("text/plain"));
  });
}

// A picture that is small enough, or else drawn anew with sides of so many pixels at most; one that the browser cannot read goes as it is.
export async function shrunk(file, side, enough) {
  let bitmap = null;
  try {
    bitmap = await createImageBitmap(file);
    if (enough(bitmap)) return file;
    const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
    const canvas = new OffscreenCanvas(Math.ceil(bitmap.width * scale), Math.ceil(bitmap.height * scale));
    const context = canvas.getContext("2d");
    context.fillStyle = "white"; // where the picture is transparent, as the server has it
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return new File([await canvas.convertToBlob({ type: "image/jpeg", quality: 0.85 })], file.name);
  } catch {
    return file;
  } finally {
    bitmap?.close();
  }
}
