// The server: every request carries the token, if there is one; every refusal becomes an Error in words.

const KEY = "viapt-token";
const AGAIN = 3; // times that a busy server is asked again

export async function send(method, path, body) {
  for (let turn = 0; ; turn += 1) {
    const token = sessionStorage.getItem(KEY);
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    let response;
    try {
      response = await fetch(path, { method, body, headers });
    } catch {
      throw new Error("The server does not answer.");
    }
    if (response.ok) return response;
    if (response.status === 401) {
      await login(Boolean(token));
      turn = 0;
      continue;
    }
    const wait = Number(response.headers.get("Retry-After"));
    const refusal = await problem(response);
    if ((response.status === 429 || response.status === 503) && wait > 0 && wait <= 5 && turn < AGAIN) {
      await new Promise((resolve) => setTimeout(resolve, wait * 1000));
      continue;
    }
    throw refusal;
  }
}

export const ask = async (method, path, body) => (await send(method, path, body)).json();

async function problem(response) {
  try {
    const { code, message, expected, remedy } = (await response.json()).error;
    const parts = [message, expected && `Expected: ${expected}`, remedy && `To do: ${remedy}`];
    return Object.assign(new Error(parts.filter(Boolean).join(". ") + "."), { code, found: message, status: response.status });
  } catch {
    return Object.assign(new Error(`The server answers ${response.status}.`), { status: response.status });
  }
}

let waiting = null; // for the token: once, whoever asks

function login(wrong) {
  waiting ??= new Promise((resolve) => {
    const dialog = document.getElementById("login");
    const field = document.getElementById("token");
    document.getElementById("login-trouble").textContent = wrong ? "That token is wrong." : "";
    field.value = "";
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, field.value.trim());
      waiting = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return waiting;
}
