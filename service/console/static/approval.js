// One approval: decide by keyboard, edits checked by the server as they are typed, a reason before a rejection.
(() => {
  "use strict";
  const page = window.hitl;
  const form = () => document.querySelector("form[data-decision]");
  const press = (action) => form()?.querySelector(`button[value=${action}]:not(:disabled)`)?.click();
  const toReason = () => { const reason = document.getElementById("reason"); reason?.focus(); reason?.scrollIntoView({ block: "center" }); };
  function toChange() {
    const change = document.getElementById("change");
    if (!change) return;
    if (change.tagName === "DETAILS") change.open = true;
    change.scrollIntoView({ block: "start" });
    change.querySelector("textarea, select, input:not([type=hidden])")?.focus({ preventScroll: true });
  }
  page.onKey({
    a: () => press("approve"),
    r: toReason,
    t: () => press("retry"),
    e: toChange,
    c: () => document.querySelector("form[data-claim] button:not(:disabled)")?.click(),
    d: () => { const to = document.getElementById("handing"); if (to) { to.open = true; document.getElementById("to-name").focus(); } },
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.id === "reason") press("reject");
  });
  const changed = () => [...document.querySelectorAll("form[data-change]")].find((change) =>
    [...change.elements].some((one) => one.type === "checkbox" ? one.checked !== one.defaultChecked
      : one.tagName === "SELECT" ? one.dataset.was !== undefined && one.value !== one.dataset.was
      : one.defaultValue !== undefined && one.value !== one.defaultValue));
  for (const select of document.querySelectorAll("form[data-change] select")) select.dataset.was = select.value;
  document.addEventListener("submit", (event) => {
    if (!event.target.matches("[data-decision]")) return;
    const change = event.submitter?.value === "approve" ? changed() : null;
    if (change) { // what was typed would be lost
      event.preventDefault();
      page.say("You have changed something: see what changes first, or load the page again.", { bad: true });
      change.querySelector("button")?.focus();
      return;
    }
    if (event.submitter?.value !== "reject") return;
    const reason = document.getElementById("reason");
    const missing = !reason.value.trim();
    document.getElementById("reason-fault").textContent = missing ? "A rejection needs a reason." : "";
    reason.setAttribute("aria-invalid", String(missing));
    if (missing) { event.preventDefault(); reason.focus(); }
  });

  // As typed: the server says what is wrong, field by field.
  let waiting = null, asked = 0;
  document.addEventListener("input", (event) => {
    const change = event.target.closest?.("form[data-change]");
    if (!change) return;
    clearTimeout(waiting);
    waiting = setTimeout(() => check(change), 350);
  });
  async function check(change) {
    const turn = ++asked;
    const told = await page.send(change);
    if (turn !== asked) return;
    const faults = told.fields || {};
    for (const place of change.querySelectorAll("[data-fault]")) {
      const own = place.dataset.fault === "" ? (told.ok ? "" : told.detail) : faults[place.dataset.fault] || "";
      place.textContent = own;
      const field = place.parentElement.querySelector("input:not([type=hidden]), textarea, select");
      if (field && place.parentElement.classList.contains("field")) field.setAttribute("aria-invalid", String(Boolean(own)));
    }
    const n = told.changes?.length || 0;
    change.querySelector("[data-told]").textContent = told.ok ? `${n} ${n === 1 ? "change" : "changes"}, valid` : told.detail || told.title;
  }
  document.addEventListener("change", (event) => { // names of the kind that is chosen
    if (event.target.name === "to") document.getElementById("to-name").setAttribute("list", `known-${event.target.value}s`);
  });
  if (location.hash === "#change") toChange();
  if (location.hash === "#reject") toReason();
})();
