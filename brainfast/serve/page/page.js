// What the operator sees. All that comes from the server goes in as text, never as markup.

import { LATE, SOURCES, arrows, drawFilm, spoken } from "./film.js";
import { loadPicture } from "./net.js";
import { course, duration, histogram, inBand, isCompared, signed } from "./plots.js";
import { ResponseMap } from "./response_map.js";
import { follow } from "./stream.js";

const KEPT = 200; // trials of a session
const $ = (id) => document.getElementById(id);

const shown = {
  sessions: new Map(), // name -> { name, open, deadline_ms, objectives, trials: Map }
  session: null, // name of the one that is shown
  chosenByHand: false,
  pinned: null, // trial that is looked back at
  latency: { sessions: {}, predict: null },
  edges: [],
  life: null,
  version: null,
  several: false, // subjects
  state: "connecting",
  linked: false,
  lostAt: null,
  clock: 0, // the server's less ours, s
};
const map = new ResponseMap();

// Shape, word and explanation of a state.
const STATES = {
  connecting: ["\u25cc", "connecting", ""],
  starting: ["\u25d4", "starting", "The engine warms up. Sessions go on; new images are refused yet."],
  ready: ["\u25cf", "ready", ""],
  stalled: ["\u25b2", "stalled", "A prediction takes too long. New images are refused; sessions go on."],
  draining: ["\u25bc", "draining", "The server is ending. It takes nothing new."],
  closed: ["\u25a0", "closed", "The server has ended."],
  lost: ["\u2715", "connection lost", ""],
};

const session = () => shown.sessions.get(shown.session);
const trialsOf = (record) => (record ? [...record.trials.values()] : []);
const newest = () => trialsOf(session()).at(-1);
const current = () => session()?.trials.get(shown.pinned) ?? newest();

function put(id, text) {
  const node = $(id);
  if (node.textContent !== text) node.textContent = text;
}

// ---- what the server says

const take = {
  snapshot(data) {
    if (shown.version !== null && shown.version !== data.about.version) location.reload();
    shown.version = data.about.version;
    shown.sessions = new Map(data.sessions.map((one) => [one.name, record(one)]));
    shown.edges = data.edges_ms;
    shown.latency = data.latency;
    shown.clock = data.now - Date.now() / 1000;
    shown.several = data.about.subjects.length > 1;
    const who = data.about.subjects.length === 1 ? `, ${data.about.subjects[0]}` : "";
    put("model", data.about.model + who);
    if (!shown.sessions.has(shown.session)) {
      shown.session = null;
      shown.pinned = null;
    }
    if (shown.life !== data.life) {
      shown.life = data.life;
      map.load(data.life);
    }
    take.state(data);
    if ($("picture").hidden) delete $("picture").dataset.image; // ask again for what was not got
    pick();
    drawSession();
  },
  choice({ session: name, trial }) {
    const one = known(name);
    if (trial.status === "outstanding") forget(name, trial.trial);
    const isNew = !one.trials.has(trial.trial);
    one.trials.set(trial.trial, trial);
    if (one.trials.size > KEPT) one.trials.delete(one.trials.keys().next().value);
    pick(isNew ? name : undefined);
    if (name !== shown.session) return;
    drawSession();
    if (isNew) put("spoken", spoken(trial));
  },
  session(data) {
    const one = known(data.name);
    Object.assign(one, data);
    pick();
    drawSession();
  },
  state(data) {
    shown.state = data.state;
    drawState();
  },
  latency(data) {
    shown.latency = data;
    drawLatency();
  },
  alive(data) {
    shown.clock = data.now - Date.now() / 1000;
    take.state(data);
  },
};

// A choice is new: trials with its number or a later one are of an older session of the same name.
function forget(name, from) {
  const { trials } = known(name);
  for (const number of [...trials.keys()]) if (number >= from) trials.delete(number);
  if (name === shown.session && shown.pinned >= from) shown.pinned = null;
}

function record(one) {
  return { ...one, trials: new Map(one.trials.map((trial) => [trial.trial, trial])) };
}

function known(name) {
  if (!shown.sessions.has(name)) {
    shown.sessions.set(name, { name, open: true, deadline_ms: null, objectives: [], trials: new Map() });
  }
  return shown.sessions.get(name);
}

// The session to show: the one picked by hand, else the one that chose last.
function pick(latest) {
  const all = [...shown.sessions.values()];
  const at = (one) => trialsOf(one).at(-1)?.wall_s ?? 0;
  if (!shown.chosenByHand || !session()) {
    const best = all.sort((a, b) => b.open - a.open || at(b) - at(a))[0];
    const name = latest ?? best?.name ?? null;
    if (name !== shown.session) shown.pinned = null;
    shown.session = name;
  }
  const picker = $("session");
  const names = [...shown.sessions.keys()];
  if (picker.options.length !== names.length || names.some((name, n) => picker.options[n].value !== name)) {
    picker.replaceChildren(...names.map((name) => new Option(name, name)));
  }
  for (const option of picker.options) {
    option.textContent = option.value + (shown.sessions.get(option.value).open ? "" : " (closed)");
  }
  picker.value = shown.session ?? "";
  $("picker").hidden = !names.length;
}

// ---- drawing

function drawState() {
  const key = shown.linked ? shown.state : shown.lostAt ? "lost" : "connecting";
  const [shape, word, more] = STATES[key];
  $("state").dataset.state = key;
  $("state").querySelector(".mark").textContent = shape;
  put("state-text", word);
  let text = more;
  if (key === "lost") {
    const ended = ["draining", "closed"].includes(shown.state);
    const what = ended ? "The server ended" : "Connection lost";
    text = `${what} at ${clock(shown.lostAt)}. This is the last that is known; trying again.`;
  } else if (session()?.problem) {
    text = `Choices are stale: the ranking fails (${session().problem}).`;
  }
  put("banner", text);
  $("banner").hidden = !text;
  document.body.classList.toggle("lost", !shown.linked && shown.lostAt !== null);
}

function drawSession() {
  drawChoice();
  drawStrip();
  drawLatency();
  drawState();
  drawCourse();
}

function drawCourse() {
  const trials = trialsOf(session());
  const compared = trials.filter(isCompared);
  const held = compared.filter(inBand).length;
  put("told", compared.length ? `${held} of ${compared.length} in band` : "");
  course($("course"), trials, current()?.trial);
}

function drawChoice() {
  const choice = current();
  const pinned = shown.pinned !== null && choice !== newest();
  put("chosen-title", pinned ? "Looking back" : "Image chosen");
  $("chosen").classList.toggle("back", pinned);
  $("live").hidden = !pinned;
  $("flag").hidden = !choice;
  drawPicture(choice);
  map.show(choice?.image ?? null, shown.several ? (session()?.subject ?? "another") : null);
  put("image", choice?.image ?? "");
  $("image").title = choice?.image ?? "";
  put("trial", choice ? String(choice.trial) : "\u2013");
  const scored = choice && choice.score !== null;
  put("score", scored ? signed(choice.score) : "\u2013");
  put("uncertainty", scored ? `\u00b1 ${choice.uncertainty.toFixed(2)}` : "");
  put("objective", choice?.objective || session()?.objectives?.join(", ") || "\u2013");
  drawSince();
  if (!choice) return;
  const [shape, word, more] = SOURCES[choice.source];
  $("flag").dataset.source = choice.source;
  $("flag").dataset.late = choice.late;
  $("flag").querySelector(".mark").textContent = choice.late ? LATE : shape;
  const over = choice.latency_ms > session().deadline_ms ? ` (${duration(choice.latency_ms)})` : "";
  put("flag-text", `${choice.late ? `late${over}, ` : ""}${word}: ${more}`);
}

function drawSince() {
  const choice = current();
  if (!choice) return put("since", "");
  const age = Math.max(0, Date.now() / 1000 + shown.clock - choice.wall_s);
  const ago = age < 60 ? `${Math.floor(age)} s ago` : age < 3600 ? `${Math.floor(age / 60)} min ago` : clock(choice.wall_s);
  const ties = choice.ties > 1 ? `, ${choice.ties} tied` : "";
  put("since", `chosen in ${duration(choice.latency_ms)}${ties}, ${ago}`);
}

const clock = (wall_s) => new Date(wall_s * 1000).toLocaleTimeString();

function drawPicture(choice) {
  const picture = $("picture");
  const wanted = choice ? choice.image : "";
  if (picture.dataset.image === wanted) return;
  picture.dataset.image = wanted;
  picture.hidden = true;
  $("placeholder").hidden = false;
  put("placeholder", choice ? "" : "No image has been chosen yet.");
  if (!choice) return;
  picture.alt = `The image chosen: ${wanted}`;
  loadPicture(
    picture,
    wanted,
    "large",
    () => ($("placeholder").hidden = true),
    (why) => put("placeholder", `${wanted}\n\nNo picture: ${why}`),
  );
}

function drawStrip() {
  drawFilm($("strip"), trialsOf(session()), current()?.trial, `${shown.life} ${shown.session}`, pin);
}

function drawLatency() {
  if (!shown.latency.predict) return;
  const next = shown.latency.sessions[shown.session];
  const none = { count: 0, counts: [], p50: null, p99: null, late: 0 };
  draw("next", next ?? none, session()?.deadline_ms);
  draw("predict", shown.latency.predict, null);
}

function draw(id, latency, deadline) {
  histogram($(id), { ...latency, edges: shown.edges }, deadline);
  const late = deadline ? ` ${latency.late ? `${LATE} ` : ""}${latency.late} late` : "";
  const count = latency.count ? `n = ${latency.count}${late ? "," : ""}${late}` : "none yet";
  const quantiles = ["p50", "p99"].map((name) => [name, latency[name]]).filter(([, ms]) => ms !== null);
  put(`${id}-count`, count);
  const parts = quantiles.map(([name, ms]) => {
    const part = document.createElement("span");
    const small = document.createElement("small");
    small.textContent = `${name} `;
    part.append(small, duration(ms));
    return part;
  });
  $(`${id}-numbers`).replaceChildren(...parts);
  const words = quantiles.map(([name, ms]) => `${name} ${duration(ms)}`);
  $(id).setAttribute("aria-label", ["Histogram of latencies", count, ...words].join(", "));
}

// ---- the operator

function pin(trial) {
  shown.pinned = trial === newest()?.trial ? null : trial;
  drawSession();
}

$("session").addEventListener("change", (event) => {
  shown.session = event.target.value;
  shown.chosenByHand = true;
  shown.pinned = null;
  drawSession();
});
$("live").addEventListener("click", () => pin(newest()?.trial));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && shown.pinned !== null) pin(newest()?.trial);
});
arrows($("strip"));
setInterval(drawSince, 1000);
new ResizeObserver(() => {
  drawCourse();
  drawLatency();
}).observe($("plots"));

follow(
  "events",
  Object.keys(take),
  (kind, data) => {
    shown.linked = true;
    shown.lostAt = null;
    take[kind](data);
  },
  () => {
    if (shown.linked) shown.lostAt = Date.now() / 1000;
    shown.linked = false;
    drawState();
  },
);
