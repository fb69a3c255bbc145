// The frame: tabs, language, login. A tab's module is loaded when the tab is first shown.
import {address, begin, beginSession, draft, el, Failure, lang, say, t} from "./page.js";

const TABS = ["train", "watch", "chat", "export"];
const mounted = {};
let start = null;

// Shows the tab of the address.
async function show() {
  const tab = TABS.includes(address().tab) ? address().tab : TABS[0];
  for (const link of document.querySelectorAll("#tabs a")) {
    link.toggleAttribute("aria-current", false);
    if (link.dataset.tab === tab) link.setAttribute("aria-current", "page");
  }
  document.title = `${t(`page.${tab}`)} · ChatGLM`;
  const main = document.getElementById("main");
  if (!mounted[tab]) {
    mounted[tab] = el("section", {id: tab, class: "tab", "aria-label": t(`page.${tab}`)});
    main.append(mounted[tab]);
    const module = await import(`./${tab}.js`);
    module.mount(mounted[tab], start);
  }
  for (const panel of main.children) panel.hidden = panel.id !== tab;
}

// Asks for the password until it is right.
async function login() {
  const dialog = document.getElementById("login");
  document.getElementById("login-title").textContent = t("page.login");
  document.getElementById("login-label").textContent = t("page.password");
  document.getElementById("login-button").textContent = t("page.enter");
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  dialog.showModal();
  await new Promise((done) => {
    dialog.querySelector("form").addEventListener("submit", async (event) => {
      event.preventDefault();
      const body = JSON.stringify({password: document.getElementById("password").value});
      const sent = await fetch("login", {method: "POST", headers: {"Content-Type": "application/json"}, body});
      const content = await sent.json();
      document.getElementById("login-problem").textContent = content.error?.message ?? "";
      if (sent.ok) done();
    });
  });
  dialog.close();
}

// The frame's own texts and buttons.
function frame() {
  const tabs = TABS.map((tab) => el("a", {href: `#${tab}`, dataset: {tab}}, t(`page.${tab}`)));
  document.getElementById("tabs").append(...tabs);
  document.getElementById("tabs").setAttribute("aria-label", t("page.tabs"));
  const button = document.getElementById("language");
  button.textContent = lang() === "zh" ? "English" : "中文";
  button.lang = lang() === "zh" ? "en" : "zh-CN";
  button.addEventListener("click", () => {
    draft("language", lang() === "zh" ? "en" : "zh");
    location.reload();
  });
}

async function main() {
  await begin();
  frame();
  try {
    start = await beginSession();
  } catch (error) {
    if (!(error instanceof Failure) || error.status !== 401) throw error;
    await login();
    start = await beginSession();
  }
  document.getElementById("root").textContent = start.root;
  window.addEventListener("hashchange", show);
  window.addEventListener("unhandledrejection", (event) => {
    event.preventDefault();
    say(event.reason.message, true);
  });
  await show();
}

main().catch((error) => say(error.message, true));
