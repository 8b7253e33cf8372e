// The predicted response to an image: the flat cortex, or bars, with the key of the colours.

import { Cortex, colourIndex } from "./cortex.js";
import { answered } from "./net.js";
import { signed } from "./plots.js";

const AGAIN_MS = 2000;
const PASSED_OVER_MS = 300;
const CLEAR_MS = 200; // that an older response may stay: clearing at once would flash
const LONGEST_MS = 15000;
const $ = (id) => document.getElementById(id);

export class ResponseMap {
  constructor() {
    this.about = null; // what is drawn, see /v1/flat
    this.cortex = null;
    this.life = null; // of the server
    this.wanted = null; // the image to show
    this.subject = null; // whose response it is, null where there is one alone
    this.painted = null; // the one that is drawn, or asked for
    this.clearing = null; // timer
  }

  // What is drawn, and the pixels of the flat map, once for every life of the server.
  async load(life) {
    if (life !== this.life) {
      this.clear();
      this.about = this.painted = null;
      note("The map is being drawn.");
    }
    this.life = life;
    try {
      const about = await (await answered("v1/flat")).json();
      const flat = about.kind === "flat";
      const bytes = flat ? await (await answered("v1/flat/raster")).arrayBuffer() : null;
      if (life === this.life) this.use(about, bytes);
    } catch (error) {
      if (life !== this.life) return;
      note(`The map is not there yet (${error.message}); trying again.`);
      setTimeout(() => life === this.life && this.load(life), AGAIN_MS);
    }
  }

  use(about, bytes) {
    $("hemispheres").replaceChildren();
    $("hemispheres").hidden = about.kind !== "flat";
    $("bars").hidden = about.kind !== "bars";
    $("key").hidden = about.limit === undefined;
    this.about = about;
    this.cortex = bytes ? new Cortex($("hemispheres"), about, bytes) : null;
    this.clear();
    if (about.limit !== undefined) drawKey(about);
    this.painted = null;
    this.show(this.wanted, this.subject);
  }

  // image: a candidate's name, or null for none; subject: whose session chose it, of several
  async show(image, subject) {
    this.wanted = image;
    this.subject = subject;
    const own = this.about?.subject;
    if (image === null || (subject !== null && own && subject !== own)) {
      this.painted = null;
      this.clear();
      if (image === null) return;
      return note(`The map is of ${own}, and this session of another subject: none is drawn.`);
    }
    if (!this.about || this.about.kind === "none" || image === this.painted) return;
    this.painted = image;
    this.clearing ??= setTimeout(() => this.clear(), CLEAR_MS);
    const query = `image=${encodeURIComponent(image)}&viewer=${viewer}`;
    try {
      const reply = await answered(`v1/flat/response?${query}`, AbortSignal.timeout(LONGEST_MS));
      if (this.painted !== image) return;
      if (reply.status === 204) {
        this.painted = null; // another request of ours came after this one
        return setTimeout(() => this.show(this.wanted, this.subject), PASSED_OVER_MS);
      }
      const values = new Float32Array(await reply.arrayBuffer());
      if (this.painted === image) this.paint(values, image);
    } catch (error) {
      if (this.painted !== image) return;
      this.painted = null;
      this.clear();
      note(`No response: ${error.message}`);
    }
  }

  // Of what is not known nothing is shown, least of all another image's response.
  clear() {
    this.settled();
    this.cortex?.paint(null);
    $("bars").replaceChildren();
    delete $("cortex").dataset.image;
  }

  settled() {
    clearTimeout(this.clearing);
    this.clearing = null;
    note(this.about?.note ?? "");
  }

  paint(values, image) {
    this.settled();
    if (this.cortex) this.cortex.paint(values);
    else drawBars(this.about, values);
    $("cortex").dataset.image = image;
  }
}

const viewer = crypto.getRandomValues(new Uint32Array(1))[0].toString(36);

function note(text) {
  $("map-note").textContent = text;
}

function drawKey({ colours, limit, units, kind, subject }) {
  const ramp = $("ramp").getContext("2d");
  const picture = ramp.createImageData(256, 1);
  for (let n = 0; n < 256; n++) {
    picture.data.set([colours[3 * n], colours[3 * n + 1], colours[3 * n + 2], 255], 4 * n);
  }
  ramp.putImageData(picture, 0, 0);
  const ticks = [-limit, -limit / 2, 0, limit / 2, limit].map((value) => {
    const tick = document.createElement("span");
    tick.textContent = value === 0 ? "0" : signed(value, 3);
    return tick;
  });
  $("ticks").replaceChildren(...ticks);
  const range = kind === "flat" ? ", one range for all trials" : "";
  const whose = subject ? ` of ${subject}` : "";
  $("units").textContent = `predicted response${whose} (${units})${range}`;
}

function drawBars({ names, limit, colours }, values) {
  const rows = names.map((name, n) => {
    const row = document.createElement("div");
    const [label, bar, number] = [0, 1, 2].map(() => document.createElement("span"));
    const share = 50 * Math.min(1, Math.abs(values[n]) / limit) || 0;
    const at = 3 * colourIndex(values[n], limit);
    const fill = document.createElement("i");
    fill.style.width = `${share}%`;
    fill.style.left = `${values[n] < 0 ? 50 - share : 50}%`;
    fill.style.background = `rgb(${colours.slice(at, at + 3).join(",")})`;
    label.textContent = name;
    bar.className = "bar";
    bar.append(fill);
    number.textContent = Number.isFinite(values[n]) ? signed(values[n]) : "none";
    row.append(label, bar, number);
    return row;
  });
  $("bars").replaceChildren(...rows);
}
