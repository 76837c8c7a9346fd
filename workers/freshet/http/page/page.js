"use strict";
// All text comes to the page through textContent: titles, ids and reasons are other people's words.

const $ = id => document.getElementById(id);
const titles = new Map();
let visitor = "", behaviours = ["view"], following = null, shown = [], lastEvent = null;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) $("key-row").hidden = false;
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    const refused = problem.events?.find(event => event.reason);
    throw new Error(problem.detail || refused?.detail || `${answer.status}`);
  }
  return answer;
}

const json = async (path, options) => (await ask(path, options)).json();
const user = () => encodeURIComponent(visitor);

function tell(error) {
  $("trouble").textContent = error ? `Something is away: ${error.message}` : "";
  $("trouble").hidden = !error;
}

const unique = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), byte => byte.toString(16).padStart(2, "0")).join("");

const asked = new Map();
async function title(item) {
  if (!titles.has(item)) {
    if (!asked.has(item)) asked.set(item, json(`v1/items/${encodeURIComponent(item)}`).catch(() => ({})));
    titles.set(item, (await asked.get(item)).title || item);
  }
  return titles.get(item);
}

function note(text) {
  const line = element("li", "", `${new Date().toLocaleTimeString()}  ${text}`);
  $("log").prepend(line);
  while ($("log").children.length > 50) $("log").lastChild.remove();
}

async function act(type, item) {
  const event = { user_id: visitor, type, event_id: unique() };
  if (item !== undefined) event.item_id = item;
  try {
    await json("v1/events", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(event) });
    lastEvent = { type, item };
    note(item === undefined ? "you: visit" : `you: ${type} ${await title(item)}`);
    tell(null);
  } catch (error) { tell(error); }
}

function actions(item, name) {
  const row = element("div", "acts");
  for (const type of behaviours) {
    const button = element("button", "", type);
    button.type = "button";
    button.setAttribute("aria-label", `${type}: ${name}`);
    button.addEventListener("click", () => act(type, item));
    row.append(button);
  }
  return row;
}

function hideButton(item, name) {
  const button = element("button", "", "hide");
  button.type = "button";
  button.setAttribute("aria-label", `hide: ${name}`);
  button.addEventListener("click", () => {
    hidden().add(item);
    sessionStorage.setItem(`hidden ${visitor}`, JSON.stringify([...hidden()]));
    note(`you: hide ${name}`);
    refresh();
  });
  return button;
}

let hiddenOf = null, hiddenItems = new Set();
function hidden() {
  if (hiddenOf !== visitor) {
    hiddenOf = visitor;
    hiddenItems = new Set(JSON.parse(sessionStorage.getItem(`hidden ${visitor}`) || "[]"));
  }
  return hiddenItems;
}

function reason(item) {
  if (item.source === "popular") return "popular now";
  const strongest = item.reasons[0];
  const kind = { cold: "new in the catalogue", explore: "put here by chance", model: "" }[item.source] ?? "";
  const because = strongest ? `because of your ${strongest.type} of ${titles.get(strongest.item_id)} (${Math.round(100 * strongest.weight)} %)` : "";
  return [kind, because].filter(Boolean).join(", ");
}

async function draw(into, made, before) {
  const items = made.items.filter(item => !hidden().has(item.item_id));
  await Promise.all(items.flatMap(item => [item.item_id, ...item.reasons.map(one => one.item_id)]).map(title));
  const focused = document.activeElement?.closest?.("#list li")?.dataset.item;
  into.replaceChildren(...items.map((item, place) => {
    const line = element("li"), row = element("div", "row"), name = titles.get(item.item_id);
    line.dataset.item = item.item_id;
    row.append(element("span", "rank", `${place + 1}`), element("span", "title", name));
    if (before) {
      const was = before.indexOf(item.item_id), gained = was - place;
      const [kind, text] = was < 0 ? ["new", "new"] : gained > 0 ? ["up", `▲ ${gained}`] : gained < 0 ? ["down", `▼ ${-gained}`] : ["", ""];
      row.append(element("span", `move ${kind}`, text));
      if (kind) line.classList.add("moved");
    }
    line.append(row, element("div", "why", reason(item)));
    if (into.id === "list") {
      const acts = actions(item.item_id, name);
      acts.append(hideButton(item.item_id, name));
      line.append(acts);
    }
    return line;
  }));
  if (focused) [...into.children].find(line => line.dataset.item === focused)?.querySelector("button")?.focus();
  return items.map(item => item.item_id);
}

const CAUSES = {
  visit: "Made because you came", item: "Made because an item of it changed", time: "Made because time passed",
  popularity: "Made because something became popular", model: "Made because a new version took over",
};

function why(made) {
  if (made.made_at) return "As it stands now.";
  const did = lastEvent?.item === undefined ? "something you did" : `your ${lastEvent.type} of ${titles.get(lastEvent.item)}`;
  return `${CAUSES[made.cause] || `Made because of ${did}`}, ${made.timings.publish - made.timings.broker} ms after the broker knew.`;
}

async function take(made) {
  const before = shown.length ? shown : null;
  shown = await draw($("list"), made, before);
  $("cause").textContent = `${why(made)} Version ${made.model_version}.`;
  $("state").textContent = made.degraded ? "degraded" : made.personalised ? "yours" : "what is popular";
  if (!made.made_at) note(`list: ${made.cause || "event"}, version ${made.model_version}`);
  markGone();
}

async function refresh() {
  const exclude = [...hidden()].slice(-200).map(item => `exclude=${encodeURIComponent(item)}`).join("&");
  try { await take(await json(`v1/users/${user()}/list?${exclude}`)); tell(null); } catch (error) { tell(error); }
}

async function daily(before, words) {
  try {
    await draw($("daily"), await json(`v1/users/${user()}/list?events_before=${before}`), null);
    $("daily-note").textContent = words;
  } catch (error) { tell(error); }
}

async function markGone() {
  for (const line of $("daily").children) {
    const item = await json(`v1/items/${encodeURIComponent(line.dataset.item)}`).catch(() => null);
    line.classList.toggle("gone", item !== null && !item.available);
  }
}

async function follow(opened) {
  following?.abort();
  const mine = following = new AbortController();
  while (!mine.signal.aborted) {
    try {
      const answer = await ask(`v1/users/${user()}/lists`, { signal: mine.signal });
      tell(null);
      opened();
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let waiting = "";
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        waiting += part.value;
        for (let end = waiting.indexOf("\n\n"); end >= 0; end = waiting.indexOf("\n\n")) {
          const message = waiting.slice(0, end);
          waiting = waiting.slice(end + 2);
          const data = message.split("\n").filter(line => line.startsWith("data: ")).map(line => line.slice(6)).join("\n");
          if (/^event: list$/m.test(message) && !mine.signal.aborted) await take(JSON.parse(data));
        }
      }
    } catch (error) { if (!mine.signal.aborted) tell(error); }
    if (!mine.signal.aborted) await new Promise(done => setTimeout(done, 1500));
  }
}

function midnight() { return new Date().setHours(0, 0, 0, 0); }

async function be(name) {
  visitor = name;
  $("name").value = name;
  sessionStorage.setItem("visitor", name);
  shown = [];
  lastEvent = null;
  $("log").replaceChildren();
  note(`you are ${name}`);
  const open = new Promise(opened => { follow(opened); setTimeout(opened, 2000); });
  open.then(() => { if (visitor === name) act("user.visit"); });  // whose list the stream then brings
  await daily(midnight(), "Made when you came, from your events until midnight. It waits for the night.");
}

async function search() {
  try {
    const found = await json(`v1/items?limit=12&search=${encodeURIComponent($("search").value)}`);
    found.items.forEach(item => titles.set(item.item_id, item.title || item.item_id));
    $("found").replaceChildren(...found.items.map(item => {
      const line = element("li"), name = titles.get(item.item_id);
      line.append(element("div", "title", name), element("div", "why", item.category), actions(item.item_id, name));
      return line;
    }));
    if (!found.items.length) $("found").append(element("li", "why", "Nothing has these words."));
  } catch (error) { tell(error); }
}

function figures(status) {
  const ms = value => value === null ? "–" : `${Math.round(value)} ms`;
  const candidate = status.versions.find(step => step.version === status.candidate_version);
  const wrong = Object.entries(status.checks).filter(([, verdict]) => verdict !== "ok").map(([part]) => part);
  const rows = [
    ["live version", `${status.live_version}`],
    ["canary", candidate ? `version ${candidate.version}, ${candidate.stage}, ${Math.round(100 * candidate.share)} %` : "none"],
    ["fresh, p50", ms(status.fresh_p50_ms)], ["fresh, p99", ms(status.fresh_p99_ms)],
    ["lag", status.lag_events === null ? "–" : `${status.lag_events} events`],
    ["dead letters", status.dead_letters === null ? "–" : `${status.dead_letters}`],
    ["lists seen", status.lists.toLocaleString()], ["items", status.items.toLocaleString()],
    ["away", wrong.join(", ") || "nothing"],
  ];
  $("figures").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", value)]));
}

async function watch() {
  try {
    const status = await json("v1/status");
    const now = Object.keys(status.behaviours);
    if (now.join() !== behaviours.join()) { behaviours = now; await search(); }
    figures(status);
  } catch (error) { tell(error); }
  setTimeout(watch, 2000);
}

let typing = 0;
$("search").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(search, 150); });
$("visitor").addEventListener("submit", event => { event.preventDefault(); be($("name").value); search(); });
$("nightly").addEventListener("click", () => daily(Date.now(), `The nightly job ran at ${new Date().toLocaleTimeString()}: it knows what you did until then.`));
be(sessionStorage.getItem("visitor") || `visitor-${unique().slice(0, 6)}`);
search();
watch();
