// The annotation page: fetches cards, keeps what is typed, sends it. No libraries; see docs/annotators.md.

const byId = (id) => document.getElementById(id);
const body = document.body.dataset;
const leaseSeconds = Number(body.leaseSeconds);
const lookAgainSeconds = 15;

const page = {
  card: byId("card"), empty: byId("empty"), verdict: byId("verdict"), status: byId("status"), save: byId("save"),
  undo: byId("undo"), skip: byId("skip"), mark: byId("mark"), help: byId("help"), progress: byId("progress"),
};

let card = null; // what the service sent
let work = null; // what the person has said of it so far
let lookAgain = null;
let held = true;
let seenSince = null; // since when the card has been in sight, or null
let lastActive = Date.now();

// -- talking to the service ------------------------------------------------------------------------------------------

class Refused extends Error {}

async function send(what, data = {}, options = {}) {
  let answer;
  try {
    answer = await fetch(`/annotate/api/${what}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(data),
      ...options,
    });
  } catch {
    throw new Refused("the service cannot be reached");
  }
  if (answer.status === 401) {
    location.href = `/login?next=${encodeURIComponent(location.pathname)}`;
    throw new Refused("you are logged out");
  }
  const values = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    const detail = values.error?.message ?? values.detail;
    throw new Refused(typeof detail === "string" ? detail : `the service answered ${answer.status}`);
  }
  return values;
}

function dayStart() {
  const midnight = new Date();
  midnight.setHours(0, 0, 0, 0);
  return midnight.getTime() / 1000;
}

function newId() { // crypto.randomUUID is not there on plain http
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// -- cards -----------------------------------------------------------------------------------------------------------

function blank() {
  const about = () => ({ comment: "", tags: [], spans: [], edit: null });
  return { verdict: null, answers: [about(), about()], seconds: 0, submission: newId() };
}

async function next(quiet = false) {
  clearTimeout(lookAgain);
  try {
    const { card: found, progress } = await send("next", { day_start: dayStart() });
    showProgress(progress);
    if (found) showCard(found);
    else showEmpty(progress, quiet);
  } catch (error) {
    say(`No card: ${error.message}. Trying again.`, true);
    lookAgain = setTimeout(() => next(true), 5000);
  }
}

function showProgress(progress) {
  page.progress.textContent = `${progress.today} today · ${progress.open} waiting`;
  page.progress.hidden = false;
  page.undo.disabled = progress.total === 0;
  byId("undo-empty").hidden = progress.total === 0;
}

function showEmpty(progress, quiet) {
  card = work = null;
  stopClock();
  page.card.hidden = page.verdict.hidden = page.mark.hidden = true;
  const again = `This page looks again every ${lookAgainSeconds} seconds.`;
  byId("empty-text").textContent = progress.open > 0
    ? `What is left in the queue is with other people, or you have judged it. ${again}`
    : `Every card is judged. ${again}`;
  const more = byId("more");
  more.hidden = Number(body.more) === 0 || progress.open > 0;
  page.empty.hidden = false;
  if (!quiet) byId("empty-title").focus();
  lookAgain = setTimeout(() => next(true), lookAgainSeconds * 1000);
}

function showCard(found) {
  card = found;
  held = true;
  work = restored(found.question) ?? blank();
  page.empty.hidden = true;
  const conversation = byId("conversation");
  conversation.replaceChildren(...found.messages.map((message) => turn(message, found.messages.length === 1)));
  found.answers.forEach((answer, n) => {
    byId(`cut-${n}`).hidden = !answer.cut;
    byId(`machine-${n}`).hidden = !answer.machine;
    byId(`machine-${n}`).open = false;
    byId(`machine-text-${n}`).textContent = answer.machine;
    listSentences(n);
    byId(`comment-${n}`).value = work.answers[n].comment;
    byId(`edit-${n}`).value = work.answers[n].edit ?? answer.text;
    open("editor", n, work.answers[n].edit !== null);
    open("critique", n, hasCritique(n));
    document.querySelectorAll(`.chip[data-answer="${n}"]`).forEach((chip) => {
      chip.setAttribute("aria-pressed", work.answers[n].tags.includes(chip.dataset.tag));
    });
    byId(`critique-${n}`).querySelector("details").open = false;
    showMarks(n);
  });
  page.verdict.reset();
  choose(work.verdict);
  page.card.hidden = page.verdict.hidden = false;
  page.save.disabled = false;
  startClock();
  byId("card-title").focus({ preventScroll: true });
  scrollTo(0, 0);
}

function turn(message, alone) {
  const names = { user: "Person", assistant: "Assistant", system: "Instructions", developer: "Instructions", tool: "Tool" };
  const element = document.createElement("div");
  element.className = `turn ${message.role === "assistant" ? "by-assistant" : "by-person"}`;
  const who = document.createElement("h2");
  who.textContent = alone ? "Prompt" : names[message.role] ?? message.role;
  const text = document.createElement("div");
  text.className = "markdown";
  text.innerHTML = message.html; // made safe by the service
  element.append(who, text);
  return element;
}

// -- the verdict -----------------------------------------------------------------------------------------------------

function choose(value) {
  const radio = page.verdict.querySelector(`input[value="${value}"]`);
  if (radio) radio.checked = true;
  work.verdict = radio ? value : null;
  const better = better_answer();
  for (const n of [0, 1]) byId(`answer-${n}`).classList.toggle("better", better === n);
  document.body.classList.toggle("both-bad", value === "both_bad");
  keepDraft();
}

function better_answer() {
  return { first: 0, second: 1 }[(work?.verdict ?? "").split(":")[0]] ?? null;
}

async function submit(verdict) {
  if (!card || page.save.disabled) return;
  if (!verdict) {
    say("Choose a verdict first: 1 to 5, or 0.", true);
    page.verdict.querySelector("input").focus();
    return;
  }
  const [winner, strength] = verdict.split(":");
  const answers = work.answers.map((about, n) => ({ ...about, edit: editOf(n) }));
  const said = JSON.stringify([verdict, answers]);
  if ((work.said ?? said) !== said) work.submission = newId(); // what was sent before may have been stored
  work.said = said;
  keepDraft();
  page.save.disabled = true;
  say("Saving …");
  stopClock();
  const sent = card;
  try {
    const { note, redacted } = await send("submit", {
      submission: work.submission,
      question: card.question,
      verdict: winner,
      strength: strength ?? null,
      answers,
      visible_seconds: Math.round(work.seconds * 10) / 10,
    });
    keepSent(sent.question);
    card = null;
    await next();
    const notes = {
      extra: "Kept as an extra judgement: the card had run out and somebody else judged it too.",
      replaced: "Saved. It replaces what you said of this card before.",
    };
    const taken = redacted ? ` ${redacted} pieces of personal data were taken out.` : "";
    say((notes[note] ?? (winner === "skip" ? "Skipped." : "Saved.")) + taken);
  } catch (error) {
    page.save.disabled = false;
    startClock();
    say(`Not saved: ${error.message}. Nothing is lost; save again.`, true);
  }
}

async function undo() {
  if (page.undo.disabled) return;
  try {
    if (card) await send("release", { question: card.question }).catch(() => {});
    const { undone } = await send("undo");
    card = null;
    await next();
    say(undone ? "Your last answer is taken back. Judge the card again." : "There is nothing to take back.");
  } catch (error) {
    say(`Not undone: ${error.message}.`, true);
  }
}

// -- critiques and edits ---------------------------------------------------------------------------------------------

function hasCritique(n) {
  const about = work.answers[n];
  return Boolean(about.comment.trim() || about.tags.length || about.spans.length);
}

function editOf(n) {
  const { edit } = work.answers[n];
  return edit === null || edit.trim() === card.answers[n].text.trim() ? null : edit;
}

function open(what, n, on) { // what: critique or editor
  byId(`${what}-${n}`).hidden = !on;
  const action = what === "editor" ? "edit" : "critique";
  document.querySelector(`[data-action="${action}"][data-answer="${n}"]`).setAttribute("aria-expanded", on);
}

function toggle(what, n, on = byId(`${what}-${n}`).hidden) {
  open(what, n, on);
  if (what === "editor") {
    work.answers[n].edit ??= card.answers[n].text;
    if (!on && editOf(n) === null) work.answers[n].edit = null;
  }
  if (on) byId(what === "editor" ? `edit-${n}` : `comment-${n}`).focus();
  sum(n);
}

function discardEdit(n) {
  work.answers[n].edit = null;
  byId(`edit-${n}`).value = card.answers[n].text;
  open("editor", n, false);
  document.querySelector(`[data-action="edit"][data-answer="${n}"]`).focus();
  sum(n);
}

function sum(n) { // what was said, in a few words, where the panels are folded
  const about = work.answers[n];
  const parts = [...about.tags];
  if (about.spans.length) parts.push(`${about.spans.length} marked`);
  if (editOf(n) !== null) parts.push("edited");
  byId(`said-${n}`).textContent = parts.join(" · ");
  keepDraft();
}

function toggleTag(n, tag, chip) {
  const { tags } = work.answers[n];
  const at = tags.indexOf(tag);
  if (at < 0) tags.push(tag);
  else tags.splice(at, 1);
  chip.setAttribute("aria-pressed", at < 0);
  sum(n);
}

// -- passages. Offsets count characters (code points) of the answer's text, as the service does ----------------------

const characters = (text) => Array.from(text);

function selected() { // the selected part of an answer: {n, start, end}, or null
  const selection = getSelection();
  if (!card || !selection.rangeCount || selection.isCollapsed) return null;
  const range = selection.getRangeAt(0);
  const around = range.commonAncestorContainer;
  const text = (around.nodeType === Node.ELEMENT_NODE ? around : around.parentElement)?.closest(".text");
  if (!text) return null;
  let start = null;
  let end = null;
  for (const piece of text.querySelectorAll("[data-at]")) {
    if (!range.intersectsNode(piece)) continue;
    const at = Number(piece.dataset.at);
    const before = piece.contains(range.startContainer) ? lengthUpTo(piece, range.startContainer, range.startOffset) : 0;
    const upTo = piece.contains(range.endContainer)
      ? lengthUpTo(piece, range.endContainer, range.endOffset) : characters(piece.textContent).length;
    if (upTo <= before) continue;
    start = start === null ? at + before : Math.min(start, at + before);
    end = Math.max(end ?? 0, at + upTo);
  }
  if (start === null) return null;
  const source = characters(card.answers[Number(text.dataset.answer)].text);
  while (start < end && /\s/.test(source[start])) start += 1;
  while (end > start && /\s/.test(source[end - 1])) end -= 1;
  return start < end ? { n: Number(text.dataset.answer), start, end, range } : null;
}

function lengthUpTo(piece, container, offset) {
  const range = document.createRange();
  range.setStart(piece, 0);
  range.setEnd(container, offset);
  return characters(range.toString()).length;
}

function offerMark() {
  const found = selected();
  page.mark.hidden = !found;
  if (!found) return;
  const place = found.range.getBoundingClientRect();
  const width = page.mark.offsetWidth;
  page.mark.style.left = `${Math.max(8, Math.min(place.left, document.documentElement.clientWidth - width - 8)) + scrollX}px`;
  page.mark.style.top = `${place.bottom + scrollY + 6}px`;
}

function markSelection() {
  const found = selected();
  if (!found) {
    say("Select some words of an answer first.", true);
    return;
  }
  getSelection().removeAllRanges();
  page.mark.hidden = true;
  addSpan(found.n, found.start, found.end);
  open("critique", found.n, true);
  say(`Marked in answer ${"AB"[found.n]}.`);
  byId(`passages-${found.n}`).lastElementChild?.querySelector("select, input")?.focus({ preventScroll: true });
}

function addSpan(n, start, end) {
  const { spans } = work.answers[n];
  if (!spans.some((span) => span.start === start && span.end === end)) {
    spans.push({ start, end, label: "", comment: "" });
    spans.sort((a, b) => a.start - b.start || a.end - b.end);
  }
  showMarks(n);
}

function removeSpan(n, span) {
  work.answers[n].spans = work.answers[n].spans.filter((other) => other !== span);
  showMarks(n);
}

function showMarks(n) {
  const { spans } = work.answers[n];
  const text = byId(`text-${n}`);
  text.innerHTML = card.answers[n].html; // made safe by the service
  for (const piece of spans.length ? text.querySelectorAll("[data-at]") : []) highlight(piece, spans);
  const source = characters(card.answers[n].text);
  byId(`passages-${n}`).replaceChildren(...spans.map((span) => passage(n, span, source)));
  byId(`sentences-${n}`).querySelectorAll("input").forEach((box) => {
    box.checked = spans.some((span) => span.start === Number(box.dataset.start) && span.end === Number(box.dataset.end));
  });
  sum(n);
}

function highlight(piece, spans) {
  const at = Number(piece.dataset.at);
  const text = characters(piece.textContent);
  const marked = (i) => spans.some((span) => span.start <= at + i && at + i < span.end);
  const parts = [];
  for (let i = 0; i < text.length;) {
    const on = marked(i);
    let to = i + 1;
    while (to < text.length && marked(to) === on) to += 1;
    const part = document.createTextNode(text.slice(i, to).join(""));
    if (on) {
      const mark = document.createElement("mark");
      mark.append(part);
      parts.push(mark);
    } else parts.push(part);
    i = to;
  }
  piece.replaceChildren(...parts);
}

function passage(n, span, source) {
  const row = document.createElement("li");
  const quoted = document.createElement("q");
  const words = source.slice(span.start, span.end).join("").replace(/\s+/g, " ");
  quoted.textContent = words.length > 90 ? `${words.slice(0, 60)} … ${words.slice(-24)}` : words;
  const label = document.createElement("select");
  label.setAttribute("aria-label", `What is wrong with: ${quoted.textContent}`);
  const tags = [...document.querySelectorAll(`.chip[data-answer="${n}"]`)].map((chip) => chip.dataset.tag);
  for (const tag of ["", ...tags]) label.append(new Option(tag || "tag …", tag));
  label.value = span.label;
  label.addEventListener("change", () => { span.label = label.value; keepDraft(); });
  const comment = document.createElement("input");
  comment.type = "text";
  comment.maxLength = 20000;
  comment.placeholder = "comment";
  comment.setAttribute("aria-label", `Comment on: ${quoted.textContent}`);
  comment.value = span.comment;
  comment.addEventListener("input", () => { span.comment = comment.value; keepDraft(); });
  const remove = document.createElement("button");
  remove.type = "button";
  remove.className = "quiet";
  remove.textContent = "Remove";
  remove.setAttribute("aria-label", `Remove the mark on: ${quoted.textContent}`);
  remove.addEventListener("click", () => { removeSpan(n, span); byId(`comment-${n}`).focus(); });
  row.append(quoted, label, comment, remove);
  return row;
}

function listSentences(n) {
  const source = characters(card.answers[n].text);
  const boxes = card.answers[n].sentences.map(([start, end]) => {
    const label = document.createElement("label");
    label.className = "check";
    const box = document.createElement("input");
    box.type = "checkbox";
    Object.assign(box.dataset, { start, end });
    box.addEventListener("change", () => {
      const old = work.answers[n].spans.find((span) => span.start === start && span.end === end);
      if (old) removeSpan(n, old);
      else addSpan(n, start, end);
    });
    label.append(box, ` ${source.slice(start, end).join("")}`);
    return label;
  });
  const field = byId(`sentences-${n}`);
  field.replaceChildren(field.querySelector("legend"), ...boxes);
}

// -- what must not be lost: drafts, the lease, the time in sight -----------------------------------------------------

const mine = (name) => `${body.person}: ${name}`; // somebody else may log in in this tab

function remember(name, value) {
  try { sessionStorage.setItem(mine(name), JSON.stringify(value)); } catch { /* full or forbidden: only a reload loses it */ }
}

function recall(name) {
  try { return JSON.parse(sessionStorage.getItem(mine(name))); } catch { return null; }
}

function keepDraft() {
  if (card && work) remember(`draft ${card.question}`, work);
}

function restored(question) { // what was typed before a reload; or what was sent, when it was taken back
  const draft = recall(`draft ${question}`);
  if (draft && recall("sent")?.includes(question)) draft.submission = newId();
  return draft;
}

function keepSent(question) { // the last ones only
  const sent = [...(recall("sent") ?? []).filter((other) => other !== question), question];
  for (const old of sent.splice(0, sent.length - 20)) sessionStorage.removeItem(mine(`draft ${old}`));
  remember("sent", sent);
}

function startClock() {
  if (card && document.visibilityState === "visible") seenSince ??= performance.now();
}

function stopClock() {
  if (work && seenSince !== null) work.seconds += (performance.now() - seenSince) / 1000;
  seenSince = null;
}

async function extendLease() {
  if (!card || !held || document.visibilityState !== "visible" || Date.now() - lastActive > leaseSeconds * 1000) return;
  try {
    const about = card.question;
    const answer = await send("extend", { question: about });
    if (card?.question === about && !answer.held) {
      held = false;
      say("This card was with you for long and may go to somebody else too. What you say is still kept.");
    }
  } catch { /* the next time will do */ }
}

// -- words to the person ---------------------------------------------------------------------------------------------

let hush = null;

function say(text, wrong = false) {
  clearTimeout(hush);
  page.status.textContent = text;
  page.status.classList.toggle("wrong", wrong);
  if (!wrong) hush = setTimeout(() => { page.status.textContent = ""; }, 4000);
}

// -- keys and clicks -------------------------------------------------------------------------------------------------

const choices = { 1: "first:clearly", 2: "first:slightly", 3: "tie", 4: "second:slightly", 5: "second:clearly", 0: "both_bad" };

function isTyping(element) {
  return element.matches("textarea, select, input:not([type=radio]):not([type=checkbox]), [contenteditable]");
}

function keysAreOn() {
  return localStorage.getItem("keys") !== "off";
}

function onKey(event) {
  lastActive = Date.now();
  const target = event.target instanceof Element ? event.target : document.body;
  if (page.help.open || event.isComposing) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && card) {
    event.preventDefault();
    submit(work.verdict);
    return;
  }
  if (event.key === "Escape" && isTyping(target)) {
    target.blur();
    byId("card-title").focus({ preventScroll: true });
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping(target)) return;
  if (event.key === "Enter") {
    if (!card || target.closest("button, a, summary")) return;
    event.preventDefault();
    submit(work.verdict);
    return;
  }
  if (!keysAreOn() || event.repeat) return;
  const act = {
    "?": showHelp,
    u: undo,
    g: () => { const guideline = byId("guideline"); if (guideline) guideline.open = !guideline.open; },
    ...(card && {
      s: () => submit("skip"),
      a: () => toggle("critique", 0),
      b: () => toggle("critique", 1),
      m: markSelection,
      e: editBetter,
    }),
  }[event.key.toLowerCase()];
  if (card && event.key in choices) {
    event.preventDefault();
    choose(choices[event.key]);
  } else if (act) {
    event.preventDefault();
    act();
  }
}

function editBetter() {
  const n = better_answer();
  if (n === null) say("Say which answer is better first, or use one of the Edit buttons.", true);
  else toggle("editor", n);
}

function showHelp() {
  byId("keys-on").checked = keysAreOn();
  page.help.showModal();
}

document.addEventListener("keydown", onKey);
document.addEventListener("pointerdown", () => { lastActive = Date.now(); });
document.addEventListener("selectionchange", offerMark);
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") startClock();
  else { stopClock(); keepDraft(); }
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-action]");
  if (!button || !card) return;
  const n = Number(button.dataset.answer);
  ({
    critique: () => toggle("critique", n),
    edit: () => toggle("editor", n),
    "discard-edit": () => discardEdit(n),
    tag: () => toggleTag(n, button.dataset.tag, button),
  })[button.dataset.action]();
});
for (const n of [0, 1]) {
  byId(`comment-${n}`).addEventListener("input", (event) => { work.answers[n].comment = event.target.value; keepDraft(); });
  byId(`edit-${n}`).addEventListener("input", (event) => { work.answers[n].edit = event.target.value; sum(n); });
}
page.verdict.addEventListener("change", (event) => { if (event.target.name === "verdict") choose(event.target.value); });
page.verdict.addEventListener("submit", (event) => { event.preventDefault(); submit(work?.verdict); });
page.skip.addEventListener("click", () => submit("skip"));
page.undo.addEventListener("click", undo);
byId("undo-empty").addEventListener("click", undo);
page.mark.addEventListener("pointerdown", (event) => event.preventDefault()); // keeps the selection
page.mark.addEventListener("click", markSelection);
byId("help-button").addEventListener("click", showHelp);
byId("keys-on").addEventListener("change", (event) => localStorage.setItem("keys", event.target.checked ? "on" : "off"));
byId("more").addEventListener("click", async () => {
  try {
    const { added } = await send("more");
    if (added) await next();
    else byId("empty-text").textContent = "Every pair of the newest answers was asked about. The next round writes new ones.";
  } catch (error) {
    byId("empty-text").textContent = `No cards were added: ${error.message}.`;
  }
});
const guideline = byId("guideline");
if (guideline) {
  guideline.open = localStorage.getItem("guideline") !== "folded";
  guideline.addEventListener("toggle", () => localStorage.setItem("guideline", guideline.open ? "open" : "folded"));
}
function leave() {
  stopClock();
  keepDraft();
  if (card) send("release", { question: card.question }, { keepalive: true }).catch(() => {});
  card = null;
}
addEventListener("pagehide", leave);
document.querySelector('form[action="/logout"]')?.addEventListener("submit", leave); // afterwards it would be refused
addEventListener("pageshow", (event) => { if (event.persisted) next(true); });
setInterval(extendLease, Math.max(5, leaseSeconds / 3) * 1000);
next();
