// The last trials, newest first: pictures, what became of them, and which one is looked at.

import { loadPicture } from "./net.js";

const FRAMES = 16;

// Shape, word and explanation of how a choice came about.
export const SOURCES = {
  fresh: ["\u25cf", "fresh", "all data used"],
  stale: ["\u25d0", "stale", "best so far"],
  fallback: ["\u25c7", "fallback", "not computed"],
};
export const LATE = "\u25b2";
const STATUS = {
  told: ["\u2713", "measured"],
  skipped: ["\u2715", "skipped"],
  outstanding: ["\u2026", "not measured yet"],
};

// life: anything that differs where a trial's number means another trial; look: called with one
export function drawFilm(strip, choices, selected, life, look) {
  const trials = choices.slice(-FRAMES).reverse();
  const active = document.activeElement;
  const focused = strip.contains(active) ? active.dataset.trial : null;
  const old = new Map([...strip.children].map((item) => [item.dataset.key, item]));
  const items = trials.map((choice) => {
    const key = `${life} ${choice.trial} ${choice.image}`;
    const item = old.get(key) ?? frame(key, choice, look);
    refresh(item.firstElementChild, choice, choice.trial === selected);
    return item;
  });
  strip.replaceChildren(...items);
  if (focused !== null) strip.querySelector(`[data-trial="${focused}"]`)?.focus();
}

function frame(key, choice, look) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  const picture = document.createElement("img");
  const mark = document.createElement("span");
  const label = document.createElement("span");
  item.dataset.key = key;
  button.type = "button";
  button.dataset.trial = choice.trial;
  button.title = choice.image;
  button.addEventListener("click", () => look(choice.trial));
  picture.alt = "";
  picture.hidden = true;
  picture.dataset.image = choice.image;
  mark.className = "mark";
  mark.setAttribute("aria-hidden", "true");
  label.className = "label";
  button.append(picture, mark, label);
  item.append(button);
  loadPicture(picture, choice.image, "small");
  return item;
}

function refresh(button, choice, selected) {
  const [shape, word] = STATUS[choice.status];
  const how = choice.late ? LATE : choice.source === "fresh" ? "" : SOURCES[choice.source][0];
  button.dataset.late = choice.late;
  button.dataset.status = choice.status;
  button.setAttribute("aria-pressed", String(selected));
  button.setAttribute("aria-label", `${spoken(choice)}, ${word}`);
  button.querySelector(".mark").textContent = how;
  button.querySelector(".label").textContent = `${choice.trial} ${shape}`;
}

// A choice in words, for those who listen.
export function spoken({ trial, image, score, uncertainty, late, source }) {
  const scored = score === null ? "no score" : `score ${score.toFixed(2)} plus or minus ${uncertainty.toFixed(2)}`;
  return `Trial ${trial}, ${image}, ${scored}, ${late ? "late, " : ""}${source}`;
}

// Arrows go from frame to frame and look at each.
export function arrows(strip) {
  const steps = { ArrowLeft: "previousElementSibling", ArrowRight: "nextElementSibling" };
  strip.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    const beside = step && event.target.closest("li")?.[step]?.firstElementChild;
    if (!beside) return;
    event.preventDefault();
    beside.focus();
    beside.click();
  });
}
