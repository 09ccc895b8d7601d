// The page: its tabs, and what the server is asked first.

import { ask } from "./api.js";
import * as attention from "./attention.js";
import * as classify from "./classify.js";
import * as compare from "./compare.js";
import { at, complain, counted, say } from "./parts.js";
import * as teach from "./teach.js";

const tabs = [...document.querySelectorAll("[role=tab]")];

function open(tab, focus = true) {
  for (const one of tabs) {
    one.setAttribute("aria-selected", one === tab);
    one.tabIndex = one === tab ? 0 : -1;
    at(one.getAttribute("aria-controls")).hidden = one !== tab;
  }
  if (focus) tab.focus();
}

for (const [k, tab] of tabs.entries()) {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", ({ key }) => {
    const to = { ArrowRight: k + 1, ArrowLeft: k - 1, Home: 0, End: tabs.length - 1 }[key];
    if (to !== undefined) open(tabs[(to + tabs.length) % tabs.length]);
  });
}

async function refresh(chosen = null) {
  const overview = await ask("GET", "/v1/tasks");
  at("about").textContent = `${counted(overview.tasks.length, "task")} on ${overview.backbone ?? "one backbone"}`;
  classify.know(overview, chosen);
  await teach.know(overview);
}

attention.begin();
classify.begin(compare.draw);
teach.begin(async (name, use) => {
  if (!use) {
    await refresh();
    say(`The task ${name} is there.`);
    return;
  }
  await refresh(name);
  open(tabs[0]);
});
compare.draw();
try {
  await refresh();
} catch (error) {
  complain(error);
}
document.documentElement.dataset.ready = "true";
