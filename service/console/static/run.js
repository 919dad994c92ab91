// One run: pause, resume, requeue, cancel without leaving it; raw JSON when it is asked for; bars that grow.
(() => {
  "use strict";
  const page = window.hitl;
  const formOf = (act) => document.querySelector(`form[data-act=${act}]`);
  function press(...acts) {
    const form = acts.map(formOf).find(Boolean);
    if (form) form.requestSubmit();
    else page.say(`This run cannot be ${{ pause: "paused", requeue: "requeued" }[acts[0]]} now, or not by you.`, { bad: true });
  }
  function toCancel() {
    const cancel = document.getElementById("cancel");
    if (!cancel) return page.say("This run cannot be cancelled now, or not by you.", { bad: true });
    cancel.open = true;
    cancel.querySelector("textarea").focus();
  }
  page.onKey({
    p: () => press("pause", "resume"),
    r: () => press("requeue"),
    x: toCancel,
    o: () => document.querySelector("[data-waits]")?.click(),
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.id === "cancel-reason") press("cancel");
    if (event.key === "Escape" && event.target.closest?.("#cancel[open]")) {
      document.getElementById("cancel").open = false;
      document.querySelector("#cancel > summary").focus();
    }
  });

  document.addEventListener("submit", async (event) => {
    const form = event.target.closest("form[data-act]");
    if (!form) return;
    event.preventDefault();
    if (form.dataset.busy) return;
    form.dataset.busy = "yes";
    const held = form.contains(document.activeElement);
    const told = await page.send(form);
    delete form.dataset.busy;
    page.say(told.ok ? told.title : told.detail || told.title, { bad: !told.ok });
    if (told.ok && form.dataset.act === "cancel") document.getElementById("cancel").open = false;
    if (document.querySelector("[data-part]")) {
      await page.refresh();
      if (held && document.activeElement === document.body) (document.querySelector("#actions button") || document.getElementById("main")).focus();
    } else location.assign(`/runs/${document.querySelector("[data-about]").dataset.about}`);
  });

  // What is large is loaded when it is opened, and again when the run has changed.
  async function load(details) {
    const place = details.querySelector(".sample");
    try {
      const answer = await fetch(details.dataset.loads, { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.status);
      place.firstElementChild.textContent = await answer.text();
    } catch { place.firstElementChild.textContent = "It could not be loaded: close and open it again."; }
    place.hidden = false;
  }
  document.addEventListener("toggle", (event) => {
    if (event.target.matches?.("details[data-loads]") && event.target.open) load(event.target);
  }, true);
  page.refreshed.push(() => { for (const details of document.querySelectorAll("details[data-loads][open]")) load(details); });

  // What goes on is drawn anew when it would have grown by a twenty-fifth.
  let growing = null;
  function grow() {
    clearTimeout(growing);
    const live = document.querySelector("[data-grows]");
    if (!live) return;
    const after = Math.min(3600, Math.max(5, Number(live.dataset.grows) / 25));
    growing = setTimeout(() => (document.hidden ? grow() : page.refresh()), after * 1000);
  }
  page.refreshed.push(grow);
  grow();
})();
