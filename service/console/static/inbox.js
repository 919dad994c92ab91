// The inbox by keyboard and without leaving it: move, decide, claim, select.
(() => {
  "use strict";
  const page = window.hitl;
  const rows = () => [...document.querySelectorAll(".row")];
  const linkOf = (row) => row?.querySelector("[data-row]");
  const nameOf = (row) => linkOf(row).textContent;
  let at = null; // the id of the row where the reader is, and its place, for when it goes
  let place = 0;

  function current() {
    const focused = document.activeElement?.closest?.(".row");
    return focused || document.getElementById(at) || null;
  }
  function go(step) {
    const all = rows();
    if (!all.length) return;
    const now = all.indexOf(current());
    const next = all[Math.max(0, Math.min(all.length - 1, now < 0 ? (step > 0 ? 0 : all.length - 1) : now + step))];
    linkOf(next).focus();
    next.scrollIntoView({ block: "nearest" });
  }
  function mark() { // where the reader is, also while the focus is elsewhere
    for (const row of rows()) row.classList.toggle("here", row.id === at);
  }
  document.addEventListener("focusin", (event) => {
    const row = event.target.closest?.(".row");
    if (row) { at = row.id; place = rows().indexOf(row); mark(); }
  });
  page.refreshed.push(() => {
    counted();
    mark();
    if (!at || document.getElementById(at)) return;
    const next = rows()[Math.min(place, rows().length - 1)];
    at = next ? next.id : null;
    mark();
    if (next && (document.activeElement === document.body || !document.activeElement)) linkOf(next).focus({ preventScroll: true });
  });

  async function decide(row, action, more = {}) {
    const form = row.querySelector("[data-decision]");
    const name = nameOf(row);
    for (const button of form.querySelectorAll("button")) button.disabled = true;
    const told = await page.send(form, { action, ...more });
    if (told.ok) page.say(`${told.title}: ${name}`, { href: `/approvals/${row.dataset.about}` });
    else page.say(`${told.title}: ${told.detail}`, { bad: true, href: `/approvals/${row.dataset.about}` });
    await page.refresh();
    return told.ok;
  }
  async function claim(row) {
    const button = row.querySelector("[data-claim]");
    if (button.disabled) return;
    const told = await page.send(row.querySelector("[data-decision]"), {}, button);
    page.say(told.ok ? `${told.title}: ${nameOf(row)}` : `${told.title}: ${told.detail}`, { bad: !told.ok });
    await page.refresh();
  }

  const dialog = document.getElementById("rejection");
  const reason = document.getElementById("rejection-reason");
  let rejecting = null;
  function askReason(row) {
    rejecting = row.id;
    document.getElementById("rejection-about").textContent = nameOf(row);
    document.getElementById("rejection-fault").textContent = "";
    reason.value = "";
    dialog.showModal();
    reason.focus();
  }
  dialog.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!reason.value.trim()) {
      document.getElementById("rejection-fault").textContent = "A rejection needs a reason.";
      return;
    }
    const row = document.getElementById(rejecting);
    dialog.close();
    if (row) await decide(row, "reject", { reason: reason.value });
    else page.say("It is not open any more", { bad: true });
  });

  document.addEventListener("submit", (event) => { // what was picked must not be lost for want of a reason
    if (event.target.id !== "bulk") return;
    const why = document.getElementById("bulk-reason");
    const picked = document.querySelector("input[name=pick]:checked");
    if (picked && (event.submitter?.value !== "reject" || why.value.trim())) return;
    event.preventDefault();
    page.say(picked ? "A rejection needs a reason." : "Select some approvals first.", { bad: true });
    (picked ? why : document.getElementById("all"))?.focus();
  });
  document.addEventListener("submit", (event) => {
    const form = event.target.closest("[data-decision]");
    if (!form) return;
    event.preventDefault();
    if (event.submitter?.matches("[data-claim]")) claim(form.closest(".row"));
    else decide(form.closest(".row"), event.submitter?.value || "approve");
  });
  document.addEventListener("click", (event) => {
    const reject = event.target.closest("[data-reject]");
    if (!reject || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    askReason(reject.closest(".row"));
  });

  function counted() {
    const all = document.getElementById("all");
    if (!all) return;
    const boxes = [...document.querySelectorAll("input[name=pick]")];
    const ticked = boxes.filter((box) => box.checked).length;
    all.checked = ticked > 0 && ticked === boxes.length;
    all.indeterminate = ticked > 0 && ticked < boxes.length;
    document.getElementById("picked").textContent = ticked ? `${ticked} selected` : `Select all ${boxes.length}`;
  }
  document.addEventListener("change", (event) => {
    if (event.target.id === "all") for (const box of document.querySelectorAll("input[name=pick]")) box.checked = event.target.checked;
    if (event.target.matches("#all, input[name=pick]")) counted();
  });

  const withRow = (act) => () => { const row = current(); if (row) act(row); else go(1); }; // never on a row that is not marked
  page.onKey({
    j: () => go(1),
    k: () => go(-1),
    a: withRow((row) => { const b = row.querySelector("button[value=approve]"); if (!b.disabled) decide(row, "approve"); }),
    e: withRow((row) => { location.href = `/approvals/${row.dataset.about}#change`; }),
    r: withRow((row) => { if (row.querySelector("[data-reject]")) askReason(row); }),
    c: withRow((row) => claim(row)),
    x: withRow((row) => { row.querySelector("input[name=pick]").click(); }),
    "/": () => document.getElementById("q")?.focus(),
  });
  counted();
  performance.mark("usable"); // rows can be reached and keys are heard: `bench.inbox` reads it
})();
