// The flat map: pixels mix the values of a triangle's three vertices, as the static maps do.

const SVG = "http://www.w3.org/2000/svg";
const NO_TRIANGLE = 0xffff;
const HALF = 127.5; // of the weights' sum, 255: a pixel is known where more than half of it is
const LIGHT = [194, 230]; // greys of the bare cortex, sulci and gyri, as the server sends them
const DARK = [38, 62];
const dark = matchMedia("(prefers-color-scheme: dark)");

export class Cortex {
  constructor(holder, about, bytes) {
    this.colours = about.colours;
    this.limit = about.limit;
    this.values = null;
    let at = 0;
    this.sides = about.sides.map((side) => {
      const pixels = side.width * side.height;
      const take = (kind, count) => {
        const part = new kind(bytes.slice(at, at + count * kind.BYTES_PER_ELEMENT));
        at += count * kind.BYTES_PER_ELEMENT;
        return part;
      };
      const arrays = {
        corners: take(Int32Array, 3 * side.triangles),
        triangle: take(Uint16Array, pixels),
        first: take(Uint8Array, pixels),
        second: take(Uint8Array, pixels),
        grey: take(Uint8Array, pixels),
        opacity: take(Uint8Array, pixels),
      };
      return { ...arrays, canvas: hemisphere(holder, side) };
    });
    dark.addEventListener("change", () => this.paint(this.values));
  }

  // values [V], NaN where nothing is predicted; null shows the bare cortex
  paint(values) {
    this.values = values;
    for (const side of this.sides) this.paintSide(side, values);
  }

  paintSide(side, values) {
    const { corners, triangle, first, second, grey, opacity, canvas } = side;
    const corner = new Float32Array(corners.length);
    for (let n = 0; n < corners.length; n++) {
      corner[n] = values !== null && corners[n] >= 0 ? values[corners[n]] : NaN;
    }
    const context = canvas.getContext("2d");
    const picture = context.createImageData(canvas.width, canvas.height);
    const out = picture.data;
    for (let p = 0; p < triangle.length; p++) {
      out[4 * p + 3] = opacity[p];
      let value = NaN;
      if (triangle[p] !== NO_TRIANGLE) {
        value = mixed(corner, 3 * triangle[p], first[p], second[p]);
      }
      if (Number.isNaN(value)) {
        out[4 * p] = out[4 * p + 1] = out[4 * p + 2] = bare(grey[p]);
      } else {
        const colour = 3 * colourIndex(value, this.limit);
        for (let c = 0; c < 3; c++) out[4 * p + c] = this.colours[colour + c];
      }
    }
    context.putImageData(picture, 0, 0);
  }
}

function mixed(corner, at, first, second) {
  const weights = [first, second, Math.max(0, 255 - first - second)];
  let total = 0;
  let sum = 0;
  for (let n = 0; n < 3; n++) {
    const value = corner[at + n];
    if (Number.isFinite(value)) {
      total += weights[n];
      sum += weights[n] * value;
    }
  }
  return total > HALF ? sum / total : NaN;
}

export function colourIndex(value, limit) {
  const place = Math.floor(((value + limit) / (2 * limit)) * 256);
  return Math.min(255, Math.max(0, place));
}

function bare(grey) {
  if (!dark.matches) return grey;
  const share = (grey - LIGHT[0]) / (LIGHT[1] - LIGHT[0]);
  return DARK[0] + share * (DARK[1] - DARK[0]);
}

// A canvas with the regions' outlines and names over it.
function hemisphere(holder, side) {
  const figure = document.createElement("figure");
  const canvas = document.createElement("canvas");
  canvas.width = side.width;
  canvas.height = side.height;
  canvas.id = `canvas-${side.side}`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Predicted response, flat map of the ${side.title}`);
  const over = document.createElementNS(SVG, "svg");
  over.setAttribute("viewBox", `0 0 ${side.width} ${side.height}`);
  over.setAttribute("aria-hidden", "true");
  for (const kind of ["halo", "outline"]) {
    for (const line of side.outlines) polyline(over, line, kind);
  }
  for (const line of side.leaders) polyline(over, line, "leader");
  for (const label of side.labels) {
    const text = document.createElementNS(SVG, "text");
    const [[x, y]] = label.at;
    text.setAttribute("x", x);
    text.setAttribute("y", y);
    text.textContent = label.name;
    over.append(text);
  }
  const name = document.createElement("figcaption");
  name.textContent = side.title;
  const stage = document.createElement("div");
  stage.className = "stage";
  stage.style.aspectRatio = `${side.width} / ${side.height}`;
  stage.append(canvas, over);
  figure.append(name, stage);
  holder.append(figure);
  return canvas;
}

function polyline(parent, points, kind) {
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", points.map((point) => point.join(",")).join(" "));
  line.setAttribute("class", kind);
  parent.append(line);
}
