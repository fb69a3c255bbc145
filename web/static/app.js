// The frame: tabs, language, login. A tab's module is loaded when the tab is first shown.
import {address, begin, beginSession, button, draft, el, fail, lang, post, say, t} from "./page.js";

const TABS = ["train", "watch", "chat", "export"];
const mounted = {};
let start = null, shown = "";
const wanted = () => (TABS.includes(address().tab) ? address().tab : TABS[0]);

// Shows the tab of the address.
async function show() {
  const main = document.getElementById("main"), tab = wanted();
  for (const a of document.querySelectorAll("#tabs a")) a.ariaCurrent = a.dataset.tab === tab && "page";
  document.title = `${t(`page.${tab}`)} · ChatGLM`;
  if (!mounted[tab]) {
    mounted[tab] = el("section", {id: tab, class: "tab", "aria-label": t(`page.${tab}`)});
    main.append(mounted[tab]);
    const module = await import(`./${tab}.js`);
    module.mount(mounted[tab], start);
  }
  if (tab !== wanted()) return; // another was opened while this one was loaded
  for (const panel of main.children) panel.hidden = panel.id !== tab;
  if (tab === shown) return;
  shown = tab;
  scrollTo(0, 0);
  say("");
}

// Asks for the password until it is right.
function login() {
  const password = el("input", {type: "password", autocomplete: "current-password"});
  const problem = el("p", {class: "problem", role: "alert"});
  const cancel = (event) => event.preventDefault();
  const dialog = el("dialog", {"aria-label": t("page.login"), on: {cancel}});
  return new Promise((done) => {
    const submit = async (event) => {
      event.preventDefault();
      try {
        await post("login", {password: password.value});
        dialog.remove();
        done();
      } catch (error) {
        problem.textContent = error.message;
      }
    };
    dialog.append(el("form", {on: {submit}}, el("h2", {}, t("page.login")),
      el("label", {}, `${t("page.password")} `, password), problem, el("button", {}, t("page.enter"))));
    document.body.append(dialog);
    dialog.showModal();
  });
}

// The links of the tabs, and the button of the other language.
function frame() {
  const other = lang() === "zh" ? "en" : "zh";
  const choose = () => {
    draft("language", other);
    location.reload();
  };
  const tabs = document.getElementById("tabs");
  tabs.append(...TABS.map((tab) => el("a", {href: `#${tab}`, dataset: {tab}}, t(`page.${tab}`))));
  tabs.setAttribute("aria-label", t("page.tabs"));
  tabs.after(button({en: "English", zh: "中文"}[other], choose, {lang: other}));
}

// Starts the page: its texts, its session, its tab.
async function main() {
  await begin();
  frame();
  start = await beginSession().catch(async (error) => {
    if (error.status !== 401) throw error;
    await login();
    return beginSession();
  });
  document.getElementById("root").textContent = start.root;
  window.addEventListener("hashchange", show);
  window.addEventListener("unhandledrejection", (event) => {
    event.preventDefault();
    fail(event.reason);
  });
  await show();
}

main().catch((error) => say(error.message, true));
