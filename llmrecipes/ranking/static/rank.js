// Shows one item, keeps the ranking that is being made, sends it. Answers become text nodes, never markup.
// flagNames: what an answer can be marked with.
function startRanking(root, flagNames) {
  "use strict";
  const FOLD_CHARACTERS = 1200, FOLD_LINES = 16;
  let view = null;
  let groups = [];       // best first, ties together: [[2], [0, 3]]; places as shown
  let tieNext = false, allBad = false, flags = {}, note = "", unfolded = new Set(), selected = null;
  let keysOpen = null, spent = 0, since = 0, busy = false, message = "", isError = false, drag = null;

  const letter = (place) => String.fromCharCode(65 + place);
  const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
  const places = () => view.answers.map((_, place) => place);
  const ranked = () => groups.flat();
  const unranked = () => places().filter((place) => !ranked().includes(place));
  const complete = () => allBad || unranked().length === 0;
  const draftKey = () => `llmrecipes ${view.annotator} ${view.round} ${view.position} ${view.answers.length}`;

  function h(tag, props, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(props || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  const button = (key, label, props, act) => h("button", { type: "button", "data-key": key, onclick: act, ...props }, label);

  // --- the clock: only while the page is seen ------------------------------------------------------------------------
  const seconds = () => spent + (since ? (performance.now() - since) / 1000 : 0);
  function startClock() { spent = 0; since = document.hidden ? 0 : performance.now(); }
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { spent = seconds(); since = 0; } else if (!since) since = performance.now();
  });

  // --- talking to the server -----------------------------------------------------------------------------------------
  async function call(path, body) {
    const options = body ? { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) } : {};
    for (let attempt = 0; ; attempt++) {
      let response;
      try { response = await fetch(path, options); } catch (error) {
        if (attempt < 4) { await new Promise((done) => setTimeout(done, 300 * 2 ** attempt)); continue; }
        throw new Error("The server does not answer. Your ranking stays here; try again.");
      }
      if (response.status === 401) { location.href = "/login"; }
      const answer = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
      if (response.ok) return answer;
      throw new Error(answer.error);
    }
  }
  // A judgement keeps its id until it is confirmed, so that sending it twice counts once.
  async function send(path, body, done) {
    if (busy) return;
    busy = true; message = ""; isError = false; pending = pending || newId();
    try {
      const answer = await call(path, body && { id: pending, ...body });
      pending = null;
      if (body && body.kind === "rank") forgetDraft();
      done(answer);
    } catch (error) { message = error.message; isError = true; }
    busy = false;
    render();
  }
  let pending = null;

  function show(next) {
    view = next; groups = []; flags = {}; note = ""; allBad = false; tieNext = false; selected = null; unfolded = new Set();
    if (!view.finished) {
      const judged = view.judgement || {}, draft = readDraft() || judged;
      groups = (draft.ranking || []).map((group) => [...group]);
      flags = structuredClone(draft.flags || {}); note = draft.note || ""; allBad = !!draft.all_bad;
    }
    if (keysOpen === null) { // the first item of this visit: who has ranked before needs no explanations
      keysOpen = view.progress.done === 0;
      const open = document.querySelector(".guidelines button.open");
      if (!keysOpen && open) open.click();
    }
    startClock();
  }
  function keepDraft() {
    try { localStorage.setItem(draftKey(), JSON.stringify({ text: view.answers, ranking: groups, flags, note, all_bad: allBad })); } catch (e) { /* no storage: no draft */ }
  }
  function readDraft() {
    try {
      const draft = JSON.parse(localStorage.getItem(draftKey()));
      return draft && JSON.stringify(draft.text) === JSON.stringify(view.answers) ? draft : null;
    } catch (e) { return null; }
  }
  function forgetDraft() { try { localStorage.removeItem(draftKey()); } catch (e) { /* no storage */ } }

  // --- what an annotator does ----------------------------------------------------------------------------------------
  function changed(text) { message = text; isError = false; keepDraft(); render(); }
  function takeOut(place) { groups = groups.map((group) => group.filter((other) => other !== place)).filter((group) => group.length); }
  function withTwins(place) { // the same answer once more is as good
    const twins = [...view.answers.keys()].filter((other) => view.answers[other] === view.answers[place] && !ranked().includes(other));
    groups.find((group) => group.includes(place)).push(...twins);
  }
  function insert(place, at) { // at: number of groups that stay above it
    const own = groups.findIndex((group) => group.includes(place));
    if (own >= 0 && groups[own].length === 1 && own < at) at--;
    takeOut(place);
    groups.splice(at, 0, [place]);
    withTwins(place);
    selected = place;
    changed(`${groups[at].map(letter).join(", ")} ${groups[at].length > 1 ? "are" : "is"} number ${at + 1}`);
  }
  function tie(place, other) {
    takeOut(place);
    groups.find((group) => group.includes(other)).push(place);
    withTwins(place);
    selected = place;
    changed(`${letter(place)} ties with ${letter(other)}`);
  }
  function placeNext(place) {
    if (ranked().includes(place)) { selected = place; focus(`handle${place}`); return; }
    const last = groups.length ? groups[groups.length - 1][0] : null;
    if (tieNext && last !== null) tie(place, last); else insert(place, groups.length);
    tieNext = false;
  }
  function move(place, by) {
    const own = groups.findIndex((group) => group.includes(place));
    if (own < 0) return placeNext(place);
    if (groups[own].length > 1) { takeOut(place); groups.splice(by < 0 ? own : own + 1, 0, [place]); selected = place; return changed(`${letter(place)} no longer ties`); }
    const to = own + by;
    if (to < 0 || to >= groups.length) return;
    [groups[own], groups[to]] = [groups[to], groups[own]];
    selected = place;
    changed(`${letter(place)} is number ${to + 1}`);
  }
  function toggleTie(place) {
    const own = groups.findIndex((group) => group.includes(place));
    if (own < 0) return;
    if (groups[own].length > 1) { takeOut(place); groups.splice(own + 1, 0, [place]); changed(`${letter(place)} no longer ties`); }
    else if (own > 0) tie(place, groups[own - 1][0]);
  }
  function takeBack(place) { takeOut(place); selected = place; changed(`${letter(place)} is not ranked`); }
  function toggleFlag(place, name) {
    const own = new Set(flags[place] || []);
    if (!own.delete(name)) own.add(name);
    flags[place] = [...own]; selected = place;
    changed(`${letter(place)}: ${flags[place].join(", ") || "no flag"}`);
  }
  function toggleAllBad() { allBad = !allBad; changed(allBad ? "All answers are bad" : "Not all answers are bad"); }
  function save() {
    if (!complete()) { message = `Still to rank: ${unranked().map(letter).join(", ")}`; isError = true; return render(); }
    const rest = unranked();
    send("/api/judgement", {
      position: view.position, kind: "rank", ranking: rest.length ? [...groups, rest] : groups, all_bad: allBad,
      flags, note, seconds: Math.round(seconds() * 10) / 10,
    }, (next) => { show(next); message = "Saved"; root.scrollIntoView(); });
  }
  const skip = () => send("/api/judgement", { position: view.position, kind: "skip", seconds: Math.round(seconds() * 10) / 10 },
    (next) => { show(next); message = "Skipped; you can come back to it"; root.scrollIntoView(); });
  const undo = () => send("/api/undo", {}, (next) => { show(next); message = view.finished ? "There is nothing to undo" : `Back at number ${view.position}`; });
  const open = (position) => send(`/api/item?position=${position}`, null, show);
  const openNext = () => send("/api/item", null, show);

  // --- dragging: one way for mouse, pen and finger ------------------------------------------------------------------
  function startDrag(event, place) {
    if (event.button) return;
    drag = { place, x: event.clientX, y: event.clientY, moved: false, target: null };
    event.currentTarget.setPointerCapture(event.pointerId);
  }
  function onDrag(event) {
    if (!drag) return;
    if (!drag.moved && Math.hypot(event.clientX - drag.x, event.clientY - drag.y) < 6) return;
    drag.moved = true;
    if (event.clientY < 70) scrollBy(0, -12); else if (event.clientY > innerHeight - 90) scrollBy(0, 12);
    drag.target = null;
    const rows = [...root.querySelectorAll("[data-place], .divider")];
    rows.forEach((row) => row.classList.remove("drop-before", "drop-tie"));
    for (const row of rows) {
      const box = row.getBoundingClientRect(), share = (event.clientY - box.top) / box.height;
      if (share > 1) continue;
      const isDivider = row.classList.contains("divider"), other = Number(row.dataset.place);
      const isRanked = !isDivider && ranked().includes(other);
      if (isRanked && share > 0.3 && share < 0.7 && other !== drag.place) drag.target = { tie: other, row };
      else if (isRanked) drag.target = { at: groups.findIndex((group) => group.includes(other)) + (share >= 0.7 ? 1 : 0), row };
      else if (isDivider) drag.target = { at: groups.length, row };
      else drag.target = { out: true, row };
      row.classList.add("tie" in drag.target ? "drop-tie" : "drop-before");
      break;
    }
    if (!drag.target) drag.target = unranked().length && ranked().length ? { out: true } : { at: groups.length };
    root.querySelector(`[data-place="${drag.place}"]`).classList.add("dragged");
  }
  function endDrag(event) {
    if (!drag) return;
    const { place, moved, target } = drag;
    drag = null;
    if (!moved) return event.type === "pointerup" && placeNext(place);
    if (event.type !== "pointerup" || !target) return render();
    // Nothing ranked yet: wherever the first answer is dropped, it is the first.
    if (target.out && ranked().length === 0) insert(place, 0);
    else if (target.out) takeBack(place);
    else if ("tie" in target) tie(place, target.tie);
    else insert(place, target.at);
  }

  // --- keys ----------------------------------------------------------------------------------------------------------
  document.addEventListener("keydown", (event) => {
    if (!view || view.finished || busy || event.altKey || event.metaKey) return;
    if (/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
    if (event.ctrlKey) { if (event.key === "z") { event.preventDefault(); undo(); } return; }
    const inside = root.contains(event.target) && event.target.tagName === "BUTTON";
    const place = event.key.length === 1 ? event.key.toUpperCase().charCodeAt(0) - 65 : -1;
    const act = {
      Enter: inside ? null : save, Backspace: () => ranked().length && takeBack(ranked().pop()), "=": () => { tieNext = true; changed("The next letter ties with the last one"); },
      ".": skip, "0": toggleAllBad,
    }[event.key];
    if (act) { event.preventDefault(); act(); }
    else if (place >= 0 && place < view.answers.length) { event.preventDefault(); placeNext(place); }
    else if ("1234".includes(event.key) && event.key.length === 1 && selected !== null) { event.preventDefault(); toggleFlag(selected, flagNames[event.key - 1]); }
  });

  // --- drawing -------------------------------------------------------------------------------------------------------
  function words(text) { // plain text, with ``` fences set as code
    return text.split(/(```[^\n]*\n[\s\S]*?(?:```|$))/).filter(Boolean).map((part) =>
      part.startsWith("```") && part.includes("\n") ? h("pre", { tabindex: 0 }, h("code", {}, part)) : document.createTextNode(part));
  }
  function card(place) {
    const own = groups.findIndex((group) => group.includes(place)), name = letter(place), text = view.answers[place];
    const isLong = text.length > FOLD_CHARACTERS || text.split("\n").length > FOLD_LINES, isOpen = unfolded.has(place);
    const ties = own >= 0 && groups[own].length > 1;
    const bar = h("div", { class: "bar" },
      h("button", { type: "button", class: "handle", "data-key": `handle${place}`, "aria-label": own < 0 ? `Answer ${name}: rank next, or drag` : `Answer ${name}, number ${own + 1}: drag to move`,
        onpointerdown: (event) => startDrag(event, place), onpointermove: onDrag, onpointerup: endDrag, onpointercancel: endDrag,
        onclick: (event) => event.detail === 0 && placeNext(place), onfocus: () => { selected = place; } }, `⠿ ${name}`),
      h("span", { class: "place" }, own < 0 ? "" : `${own + 1}.${ties ? " tied" : ""}`),
      h("span", { class: "grow" }),
      own < 0 ? button(`next${place}`, groups.length ? "Rank next" : "Rank first", { "aria-label": `Rank ${name} next` }, () => placeNext(place)) : null,
      own >= 0 ? button(`up${place}`, "↑", { "aria-label": `Move ${name} up` }, () => move(place, -1)) : null,
      own >= 0 ? button(`down${place}`, "↓", { "aria-label": `Move ${name} down` }, () => move(place, 1)) : null,
      own > 0 || ties ? button(`tie${place}`, "=", { "aria-label": `Tie ${name} with the answer above`, "aria-pressed": ties }, () => toggleTie(place)) : null,
      own >= 0 ? button(`out${place}`, "✕", { "aria-label": `Take ${name} out of the ranking` }, () => takeBack(place)) : null);
    const body = h("div", { class: isLong && !isOpen ? "text folded" : "text", dir: "auto", id: `answer${place}` }, ...(text.trim() ? words(text) : [h("em", {}, "(no text)")]));
    const more = isLong ? button(`more${place}`, isOpen ? "Fold" : "Show all", { class: "more", "aria-expanded": String(isOpen), "aria-controls": `answer${place}` },
      () => { if (!unfolded.delete(place)) unfolded.add(place); render(); }) : null;
    const marks = h("div", { class: "flags", role: "group", "aria-label": `Flags of answer ${name}` }, ...flagNames.map((flag) =>
      button(`flag${place}${flag}`, flag, { "aria-pressed": String((flags[place] || []).includes(flag)) }, () => toggleFlag(place, flag))));
    const classes = ["card", own >= 0 ? "ranked" : "", ties && groups[own][0] !== place ? "tied" : ""].join(" ");
    return h("li", { class: classes, "data-place": place, "aria-label": `Answer ${name}, ${own < 0 ? "not ranked" : `number ${own + 1}`}` }, bar, body, more, marks);
  }
  function duration(s) { return s < 90 ? `${Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`; }
  function head() {
    const { done, total, median_seconds: pace } = view.progress;
    const facts = [view.round > 1 && `round ${view.round}`];
    if (pace && done < total) facts.push(`${duration(pace)} an item`, `about ${duration(pace * (total - done))} left`);
    return h("div", { class: "top" },
      h("strong", {}, `${done} of ${total}`), h("progress", { max: Math.max(total, 1), value: done, "aria-label": `${done} of ${total} ranked` }),
      h("span", {}, facts.filter(Boolean).join(" · ")), h("span", { class: "grow" }),
      view.login ? h("span", {}, view.annotator) : h("input", { value: view.annotator, "aria-label": "Your name", size: 10, maxlength: 40, "data-key": "name", onchange: rename, onkeydown: (event) => event.key === "Enter" && event.target.blur() }),
      view.login ? button("logout", "Log out", {}, () => call("/api/logout", {}).then(() => { location.href = "/login"; })) : null,
      view.admin ? h("a", { href: "/admin", target: "_blank" }, "Quality") : null,
      view.admin ? button("finish", "Finish", { title: "End the ranking and build the pairs" }, finish) : null);
  }
  function rename(event) {
    busy = true; // the next items are those of the new name
    call("/api/name", { name: event.target.value.trim() }).then(() => { busy = false; return openNext(); },
      (error) => { busy = false; message = error.message; isError = true; render(); });
  }
  function finish() {
    if (!confirm("End the ranking for everybody and build the pairs?")) return;
    call("/api/finish", {}).then(() => { root.replaceChildren(h("p", { role: "status" }, "Finished. The terminal says what was made; you can close this page.")); view = null; },
      (error) => { message = error.message; isError = true; render(); });
  }
  function navigation() {
    const { last_position: last, skipped } = view.progress, at = view.position;
    return [
      button("undo", "Undo", { title: "Take back the last saved ranking (Ctrl+Z)" }, undo),
      button("back", "←", { "aria-label": "Back", "aria-disabled": String(!(at ? at > 1 : last)) }, () => (at ? at > 1 : last) && open(at ? at - 1 : last)),
      at && at < last ? button("forward", "→", { "aria-label": "Forward" }, () => open(at + 1)) : null,
      h("input", { type: "number", min: 1, max: last, size: 4, placeholder: "go to", "aria-label": `Jump to number, 1 to ${last}`, "data-key": "jump", onchange: (event) => open(Number(event.target.value)) }),
      skipped.length ? button("skipped", `Skipped (${skipped.length})`, {}, () => open(skipped.find((p) => p > (at || 0)) || skipped[0])) : null,
      at && view.judgement ? button("current", "To the open one", {}, openNext) : null];
  }
  function focus(key) { const node = key && root.querySelector(`[data-key="${CSS.escape(key)}"]`); if (node) node.focus({ preventScroll: true }); }
  function render() {
    if (!view) return;
    const active = root.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const status = h("div", { role: isError ? "alert" : "status", "aria-live": "polite", class: isError ? "error" : "" }, message);
    if (view.finished) {
      root.replaceChildren(head(), h("p", {}, view.progress.done ? "That was all there is for you. Thank you." : "There is nothing to rank for you."), status, h("div", { class: "actions" }, ...navigation()));
      return focus(active);
    }
    const rest = unranked();
    const divider = rest.length ? h("li", { class: "divider" }, groups.length ? "Not ranked yet" : "Best answer first: press its letter, tap it, or drag it. Then the next best.") : null;
    root.replaceChildren(
      head(), keys(),
      h("h2", {}, view.prompt.length > 1 ? "Conversation" : "Prompt"),
      ...view.prompt.map((turn) => h("div", { class: "turn" }, h("div", { class: "role" }, turn.role), h("div", { class: "text", dir: "auto" }, ...words(turn.content)))),
      h("h2", {}, "Answers"),
      h("ol", { "aria-label": "Answers, best first" }, ...ranked().map(card), divider, ...rest.map(card)),
      h("label", {}, "Note (optional)", h("textarea", { rows: 1, maxlength: 4000, "data-key": "note", oninput: (event) => { note = event.target.value; keepDraft(); } }, note)),
      status,
      h("div", { class: "actions" },
        button("save", "Save and next", { class: "save", "aria-disabled": String(!complete()) }, save),
        button("allbad", "All bad", { "aria-pressed": String(allBad) }, toggleAllBad),
        button("skip", "Skip", {}, skip), ...navigation()));
    focus(active);
  }
  function keys() {
    return h("details", { class: "keys", open: keysOpen, ontoggle: (event) => { keysOpen = event.target.open; } }, h("summary", {}, "Keys"), h("div", {}, h("kbd", {}, "A"), " … rank next · ", h("kbd", {}, "="), " tie the next one · ", h("kbd", {}, "Backspace"), " take the last one back · ",
        h("kbd", {}, "Enter"), " save · ", h("kbd", {}, "0"), " all bad · ", h("kbd", {}, "."), " skip · ", h("kbd", {}, "1"), "–", h("kbd", {}, "4"), ` flag the answer touched last (${flagNames.join(", ")}) · `, h("kbd", {}, "Ctrl+Z"), " undo"));
  }
  openNext();
}
