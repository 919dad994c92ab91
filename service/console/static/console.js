// What every page has: the theme, times in the reader's zone, countdowns, news, and forms that stay on the page.
// Everything works without it; nothing of others is ever put into the page as markup.
(() => {
  "use strict";
  const root = document.documentElement;
  const page = { refreshed: [], closed: false };
  window.hitl = page;
  root.classList.add("js");

  // The theme, kept in a cookie so that the server's first paint has it.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  function toggleTheme() {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    document.cookie = `hitl_theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=lax`;
  }

  // Times: the server's are UTC. A countdown runs by the server's clock.
  const skew = Date.parse(document.body.dataset.now) - Date.now();
  const inZone = new Intl.DateTimeFormat("sv-SE", { dateStyle: "short", timeStyle: "short" });
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  function localTimes(within) {
    for (const time of within.querySelectorAll("time[data-local]")) {
      const at = new Date(time.dateTime);
      if (Number.isNaN(at.getTime())) continue;
      time.title = `${inZone.format(at)} ${zone}`;
      time.textContent = time.dataset.local === "short" ? inZone.format(at).slice(5) : inZone.format(at);
    }
  }
  function span(seconds) {
    const s = Math.ceil(seconds), m = Math.floor(s / 60), h = Math.floor(m / 60), d = Math.floor(h / 24);
    if (d > 1) return `${d} d ${h % 24} h`;
    if (h > 0) return `${h} h ${m % 60} min`;
    return m > 4 ? `${m} min` : m > 0 ? `${m} min ${s % 60} s` : `${s} s`;
  }
  function countDown() {
    for (const part of document.querySelectorAll("[data-until]")) {
      const left = (Date.parse(part.dataset.until) - Date.now() - skew) / 1000;
      const text = left > 0 ? span(left) : "time is out";
      if (part.textContent !== text) part.textContent = text;
      part.classList.toggle("soon", left < 300);
      if (left > 0 || part.dataset.quiet !== undefined) continue; // a claim's end ends no choice
      const about = part.closest("[data-about]");
      if (!about || about.dataset.over) continue;
      about.dataset.over = "yes";
      about.classList.add("over");
      for (const button of about.querySelectorAll("button[data-decides]")) button.disabled = true;
    }
  }

  // A line that a screen reader reads and that goes by itself.
  page.say = (text, { bad = false, href = null } = {}) => {
    const toast = document.createElement("div");
    toast.className = bad ? "toast bad" : "toast";
    toast.append(text);
    if (href) {
      const link = document.createElement("a");
      link.href = href;
      link.textContent = "Open";
      toast.append(" ", link);
    }
    document.getElementById("toasts").append(toast);
    setTimeout(() => toast.remove(), bad ? 12000 : 5000);
  };

  // What the reader has typed, ticked or opened stays as it is.
  function keep(old, fresh) {
    if (!(old instanceof Element) || !(fresh instanceof Element)) return true;
    if (old.matches("input[type=checkbox], input[type=radio]")) fresh.checked = old.checked;
    else if (old.matches("input, textarea") && old.value !== old.defaultValue) fresh.value = old.value;
    else if (old.matches("details") && old.open !== fresh.open) fresh.open = old.open;
    else if (old.matches("select") && document.activeElement === old) return false;
    else if (old.matches("dialog[open], [data-loads][open]")) return false;
    return true;
  }
  let loading = null;
  page.refresh = async () => {
    if (!document.querySelector("[data-part]")) return; // an answer to a form: it stands as it was given
    if (loading) { loading.again = true; return loading.done; }
    const turn = (loading = { again: false });
    turn.done = (async () => {
      try {
        do {
          turn.again = false;
          const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
          if (answer.redirected && new URL(answer.url).pathname === "/signin") return location.reload();
          const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
          for (const part of document.querySelectorAll("[data-part]")) {
            const next = fresh.getElementById(part.id);
            if (next) Idiomorph.morph(part, next, { ignoreActiveValue: true, callbacks: { beforeNodeMorphed: keep } });
          }
          localTimes(document);
          countDown();
          for (const told of page.refreshed) told();
        } while (turn.again);
      } catch { /* the stream comes again, and says so again */ } finally { loading = null; }
    })();
    return turn.done;
  };
  function follow() {
    const live = document.querySelector("[data-live]");
    if (!live) return;
    const join = live.dataset.live.includes("?") ? "&" : "?";
    const stream = new EventSource(`${live.dataset.live}${join}seen=${encodeURIComponent(live.dataset.seen)}`);
    stream.addEventListener("changed", (event) => {
      if (event.data !== document.querySelector("[data-live]").dataset.seen) page.refresh();
    });
    stream.addEventListener("gone", () => {
      stream.close();
      location.assign(`/signin?next=${encodeURIComponent(location.pathname + location.search)}`);
    });
    stream.addEventListener("open", () => root.classList.add("live"));
    stream.addEventListener("error", () => root.classList.remove("live"));
    addEventListener("pagehide", () => stream.close());
  }

  // A form by fetch: what the server says, as JSON.
  page.send = async (form, more = {}, submitter = null) => {
    const fields = new URLSearchParams(new FormData(form, submitter));
    for (const [name, value] of Object.entries(more)) fields.set(name, value);
    try {
      const target = submitter?.getAttribute("formaction") || form.getAttribute("action");
      const answer = await fetch(target, // not `form.action`: that may be a button of that name
        { method: "POST", body: fields, headers: { Accept: "application/json" } });
      const told = await answer.json();
      return { status: answer.status, ...told };
    } catch {
      return { ok: false, status: 0, title: "The service did not answer", detail: "try again" };
    }
  };

  // Keys: none of them while somebody types, and none with a modifier.
  page.onKey = (keys) => addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.defaultPrevented) return;
    if (event.target.closest?.("input:not([type=checkbox]), textarea, select, dialog[open]")) return;
    const act = Object.hasOwn(keys, event.key) ? keys[event.key] : null;
    if (!act) return;
    event.preventDefault();
    act(event);
  });
  page.onKey({ "?": () => document.getElementById("keys")?.showModal() });

  // Back leads to the list as it was, filters and all, where the reader came from one.
  const lists = { "/": "Inbox", "/runs": "Runs", "/operations": "Operations" };
  const back = document.querySelector("[data-back]");
  const from = back && document.referrer ? new URL(document.referrer) : null;
  if (from && from.origin === location.origin && Object.hasOwn(lists, from.pathname)) {
    back.href = from.pathname + from.search;
    back.textContent = lists[from.pathname];
  }
  if (back) page.onKey({ u: () => back.click() });

  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-theme-toggle]")) toggleTheme();
    const opens = event.target.closest("[data-opens]");
    if (opens) document.getElementById(opens.dataset.opens)?.showModal();
    if (event.target.closest("[data-closes]")) event.target.closest("dialog").close();
  });
  document.addEventListener("change", (event) => { if (event.target.matches("[data-submits]")) event.target.form.requestSubmit(); });
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  localTimes(document);
  countDown();
  setInterval(countDown, 500);
  follow();
})();
