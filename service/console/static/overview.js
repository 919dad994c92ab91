// The lists of runs and of operations: move by keys, act without leaving the page, times of filters in the reader's zone.
(() => {
  "use strict";
  const page = window.hitl;
  const links = () => [...document.querySelectorAll("[data-row]")];
  let at = null; // where the reader is, for when that row goes
  let place = 0;

  function go(step) {
    const all = links();
    if (!all.length) return;
    const line = document.activeElement?.closest?.("li");
    const now = all.findIndex((link) => link === document.activeElement || (line && line.contains(link)));
    const next = all[Math.max(0, Math.min(all.length - 1, now < 0 ? (step > 0 ? 0 : all.length - 1) : now + step))];
    next.focus();
    next.scrollIntoView({ block: "nearest" });
  }
  document.addEventListener("focusin", (event) => {
    const link = event.target.closest?.("[data-row]");
    at = link ? link.getAttribute("href") : null;
    if (link) place = links().indexOf(link);
  });
  page.refreshed.push(() => {
    if (!at || document.activeElement !== document.body) return;
    const all = links();
    (all.find((link) => link.getAttribute("href") === at) || all[Math.min(place, all.length - 1)])?.focus({ preventScroll: true });
  });
  page.onKey({ j: () => go(1), k: () => go(-1), "/": () => document.getElementById("q")?.focus() });

  document.addEventListener("submit", async (event) => {
    const form = event.target.closest("[data-acts]");
    if (!form) return;
    event.preventDefault();
    const button = form.querySelector("button");
    if (button.disabled) return;
    button.disabled = true;
    const told = await page.send(form);
    page.say(told.detail ? `${told.title}. ${told.detail}` : told.title, { bad: !told.ok });
    await page.refresh();
    button.disabled = false;
  });

  // A filter's time is UTC in the URL and the reader's own in its field.
  const two = (n) => String(n).padStart(2, "0");
  const local = (d) => `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())}T${two(d.getHours())}:${two(d.getMinutes())}`;
  for (const field of document.querySelectorAll("input[data-utc]")) {
    const given = field.getAttribute("value");
    const moment = new Date(/(Z|[+-]\d\d:?\d\d)$/.test(given) ? given : `${given}Z`);
    if (given && !Number.isNaN(moment.getTime())) field.value = local(moment);
    field.form.addEventListener("formdata", (event) => {
      const typed = new Date(field.value);
      if (field.value && !Number.isNaN(typed.getTime())) event.formData.set(field.name, `${typed.toISOString().slice(0, 16)}Z`);
    });
  }
  for (const zone of document.querySelectorAll("[data-zone]")) zone.textContent = "(your time)";
  // Fields that narrow nothing do not stand in the URL.
  for (const form of document.querySelectorAll("form.filters")) form.addEventListener("formdata", ({ formData }) => {
    for (const [name, value] of [...formData]) if (!value) formData.delete(name);
  });
})();
