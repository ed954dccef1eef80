// The report's page, part 1 of 9: elements, numbers, colours, and the one state that all figures share.
//
//   dom.js      this file
//   charts.js   the forms: heatmap, line chart, bars, tables; know nothing of experts
//   text.js     the text coloured by expert and the panel beside it
//   figures.js  one function a figure: layers, load, domains, kinds of token, loss, pairs, memories
//   flow.js, importance.js, training.js   larger figures
//   cards.js    the experts one by one, and two runs side by side
//   report.js   starts everything: head, choices, theme, keyboard
//
// The parts are joined into one script element. All text from the data enters the page as text nodes.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);

// Experts, experts for each token, layers with experts. A layer is named by its index among these; people read the
// number that it has in the model.
const E = DATA.model.experts;
const K = DATA.model.experts_per_token;
const L = DATA.layers.length;

// ---- Elements

/** An element with attributes (`on…` are listeners, `data-…` and `aria-…` as they are) and children: nodes, text, or
 * null for nothing. */
function el(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

const byId = (id) => document.getElementById(id);
const range = (n) => Array.from({ length: n }, (_, i) => i);
const sum = (values) => values.reduce((a, b) => a + b, 0);
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

/** Indices that sort `values`, largest first. */
const descending = (values) => range(values.length).sort((a, b) => values[b] - values[a]);

// ---- Numbers and tokens in words

const missing = (x) => x === null || x === undefined || Number.isNaN(x);
const fixed = (x, digits = 2) => (missing(x) ? "–" : x.toFixed(digits).replace("-", "−"));
const signed = (x, digits = 3) => {
  if (missing(x)) return "–";
  const text = fixed(x, digits);
  if (Number(x.toFixed(digits)) === 0) return text.replace("−", "");
  return x > 0 ? `+${text}` : text;
};
const percent = (x, digits = 1) => (missing(x) ? "–" : fixed(100 * x, digits) + "%");
const times = (x, digits = 2) => (missing(x) ? "–" : fixed(x, digits) + "×");
const count = (n) => (missing(n) ? "–" : Math.round(n).toLocaleString("en-US"));

/** A token as it can be seen: spaces as ␣, line ends as ↵, nothing as ∅. */
function visible(text) {
  if (text === "") return "∅";
  return text
    .replace(/ /g, "␣")
    .replace(/\r?\n/g, "↵")
    .replace(/\t/g, "⇥")
    .replace(/[\u0000-\u001f\u007f]/g, "·");
}

// ---- Colours: the terminal's palette with its lightness moved, so that it shows on white and on black

/** "#rrggbb" in OKLab: lightness, a, b (B. Ottosson, "A perceptual color space", 2020). */
function oklab(hex) {
  const [r, g, b] = [1, 3, 5].map((at) => {
    const c = parseInt(hex.slice(at, at + 2), 16) / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  });
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  const a = 1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s;
  const c = 0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s;
  const lightness = 0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s;
  return [lightness, a, c];
}

/** Black or white, whichever reads better on a colour of OKLab: where they tie, luminance is 0.179. */
function inkOn([lightness, a, b]) {
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return -0.0408 * l + 1.1125 * m - 0.0717 * s > 0.179 ? "#000" : "#fff";
}

/** A style sheet that gives every class `e0`, `e1`, … its colour `--e` and the colour of text on it, `--on-e`. */
function expertColours(palette) {
  const rules = palette.map((hex, expert) => {
    const [lightness, a, b] = oklab(hex);
    const light = [0.1 + 0.75 * lightness, a, b];
    const dark = [0.38 + 0.56 * lightness, a, b];
    const css = (colour) => `oklab(${colour.map((x) => x.toFixed(3)).join(" ")})`;
    return `.e${expert}{--e:light-dark(${css(light)},${css(dark)});--on-e:light-dark(${inkOn(light)},${inkOn(dark)})}`;
  });
  return el("style", {}, rules.join("\n"));
}

// ---- State: what the reader chose. Figures register what they depend on.

const state = { layer: 0, rank: 0, expert: null, text: 0 };
const listeners = [];

/** Runs `draw` now and again whenever one of the keys of `state` changes. */
function follow(keys, draw) {
  listeners.push({ keys, draw });
  draw();
}

function choose(change) {
  const changed = Object.keys(change).filter((key) => state[key] !== change[key]);
  Object.assign(state, change);
  for (const { keys, draw } of listeners) {
    if (keys.some((key) => changed.includes(key))) draw();
  }
}

/** Chooses the expert of a layer, or lets it go when it was chosen already. */
function toggleExpert(layer, expert) {
  const same = state.layer === layer && state.expert === expert;
  choose({ layer, expert: same ? null : expert });
}

const layerName = (layer) => `Layer ${DATA.layers[layer].layer}`;
const expertName = (layer, expert) => `layer ${DATA.layers[layer].layer}, expert ${expert}`;

/** "expert 5: numbers and dates", or without what it stands out for where nothing does. */
function expertTitle(layer, expert) {
  const { mostly, typical } = DATA.layers[layer].names?.[expert] ?? {};
  if (!mostly || K === E) return `expert ${expert}`;
  return `expert ${expert}: mostly ${mostly}${typical && typical !== mostly ? `; most typical ${typical}` : ""}`;
}

/** An expert's number on its colour. */
const badge = (expert) => el("span", { class: `chip e${expert}` }, String(expert));

/** The same as a button that highlights the expert everywhere. */
function chip(layer, expert) {
  return el(
    "button",
    {
      class: `chip e${expert}`,
      type: "button",
      "data-layer": layer,
      "data-expert": expert,
      "aria-label": `Highlight ${expertName(layer, expert)}`,
    },
    String(expert),
  );
}
