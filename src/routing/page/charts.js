// Part 2 of 9: the forms that pictures take. Each function returns an element; none knows what its numbers mean.

// ---- Tooltip: one for the page. Whatever has `data-tip` shows it under the pointer and on focus; where that
// is empty, what it is called.

const tooltip = el("div", { id: "tooltip", role: "status", hidden: true });
let tipTarget = null;

function showTip(target, text) {
  tipTarget = target;
  tooltip.textContent = text;
  tooltip.hidden = false;
  placeTip();
}

function placeTip() {
  const box = tipTarget.getBoundingClientRect();
  const tip = tooltip.getBoundingClientRect();
  const left = clamp(
    box.left + box.width / 2 - tip.width / 2,
    8,
    Math.max(8, document.documentElement.clientWidth - tip.width - 8),
  );
  const top = box.top - tip.height - 8 < 8 ? box.bottom + 8 : box.top - tip.height - 8;
  tooltip.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
}

const hideTip = () => (tooltip.hidden = true);

function followTips() {
  document.body.append(tooltip);
  const show = (event) => {
    const target = event.target.closest?.("[data-tip]");
    if (target) showTip(target, target.dataset.tip || target.getAttribute("aria-label"));
    else hideTip();
  };
  document.addEventListener("pointerover", show);
  document.addEventListener("focusin", show);
  document.addEventListener("focusout", hideTip);
  // What has the focus may still be scrolling into view; what is under the pointer moves away from it.
  const scrolled = () =>
    document.activeElement.contains(tipTarget) && document.activeElement !== document.body ? placeTip() : hideTip();
  document.addEventListener("scroll", scrolled, { passive: true, capture: true });
}

// ---- Roving focus: one tab stop for many items, arrow keys between them

/** Makes the elements of a table's cells reachable by arrow keys. `cells` is an array of rows. */
function roveGrid(container, cells) {
  let [row, column] = [0, 0];
  const at = () => cells[row]?.[column];
  at()?.setAttribute("tabindex", "0");
  const moves = {
    ArrowUp: [-1, 0],
    ArrowDown: [1, 0],
    ArrowLeft: [0, -1],
    ArrowRight: [0, 1],
    Home: [0, -1e6],
    End: [0, 1e6],
  };
  const moveTo = (newRow, newColumn) => {
    at()?.setAttribute("tabindex", "-1");
    row = clamp(newRow, 0, cells.length - 1);
    column = clamp(newColumn, 0, cells[row].length - 1);
    at().setAttribute("tabindex", "0");
  };
  container.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (move) {
      event.preventDefault();
      moveTo(row + move[0], column + move[1]);
      at().focus();
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      event.target.click();
    }
  });
  container.addEventListener("pointerdown", (event) => {
    const cell = event.target.closest("[data-row]");
    if (cell) moveTo(Number(cell.dataset.row), Number(cell.dataset.column));
  });
}

// ---- Heatmap

/** A table of coloured cells, with its numbers where they fit.
 *
 * `rows` and `columns` are the heads: texts or nodes. `value(row, column)` is in [0, 1] for a sequential scale and in
 * [-1, 1] for a diverging one, null for an empty cell; `label` is what is written in it, `tip` what is shown on hover,
 * `owner` the [layer, expert] that a click chooses. */
function heatmap({ name, rows, columns, value, label, tip, owner, corner = "" }) {
  const dense = columns.length > 20;
  const cell = (row, column) => {
    const x = value(row, column);
    const [layer, expert] = owner(row, column);
    return el(
      "td",
      {
        // Text on a cell changes to the paper's colour where that reads better: sooner on dark paper than on light.
        class:
          x === null
            ? "none"
            : `${x < 0 ? "low" : "high"}${Math.abs(x) > 0.58 ? " mid" : ""}${Math.abs(x) > 0.85 ? " strong" : ""}`,
        style: x === null ? null : `--v:${(100 * Math.min(Math.abs(x), 1)).toFixed(1)}%`,
        tabindex: -1,
        role: "gridcell",
        "data-row": row,
        "data-column": column,
        "data-layer": layer,
        "data-expert": expert,
        "data-tip": true,
        "aria-label": tip(row, column),
      },
      dense ? null : label(row, column),
    );
  };
  const cells = rows.map((_, row) => columns.map((_, column) => cell(row, column)));
  const head = (content, scope) => el("th", { scope }, content);
  const form = `heat${dense ? " dense" : ""}${rows.length > 20 ? " tall" : ""}${typeof rows[0] === "string" ? "" : " by-expert"}`;
  const table = el(
    "table",
    { class: form, role: "grid", "aria-label": name, style: `--columns:${columns.length}` },
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        el("td", { class: "corner" }, corner),
        columns.map((text) => head(text, "col")),
      ),
    ),
    el(
      "tbody",
      {},
      rows.map((text, row) => el("tr", {}, head(text, "row"), cells[row])),
    ),
  );
  roveGrid(table, cells);
  return el("div", { class: "scroll" }, table);
}

/** What the colours of a heatmap stand for: `stops` are [text, value] from low to high. */
function scaleKey(stops) {
  return el(
    "p",
    { class: "key", "aria-hidden": "true" },
    stops.map(([text, x]) =>
      el("span", {}, el("i", { class: x < 0 ? "low" : "high", style: `--v:${100 * Math.abs(x)}%` }), text),
    ),
  );
}

// ---- Line chart

/** Round numbers that cover [low, high], about `wanted` of them. */
function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((m) => m * power >= rough * 0.999) * power;
  const out = [];
  for (let x = Math.ceil(low / step - 1e-9) * step; x <= high + step * 1e-9; x += step)
    out.push(Number(x.toPrecision(12)));
  return out;
}

/** Moves labels apart that would overlap; keeps their order. */
function spread(positions, gap, low, high) {
  const order = range(positions.length).sort((a, b) => positions[a] - positions[b]);
  const out = positions.slice();
  order.forEach((at, i) => {
    if (i > 0) out[at] = Math.max(out[at], out[order[i - 1]] + gap);
  });
  let limit = high;
  for (const at of order.reverse()) {
    out[at] = Math.max(Math.min(out[at], limit), low);
    limit = out[at] - gap;
  }
  return out;
}

/** Lines over steps, named at their right ends. `series`: [{name, points: [[x, y]], class, dots?, level?}]. */
function lineChart({ name, series, x, y, width, height = 260, yLow, yHigh, format = fixed, labels = 120 }) {
  series = series.map((s) => ({ ...s, points: s.points.filter((p) => !missing(p[1])) })).filter((s) => s.points.length);
  const xs = series.flatMap((s) => s.points.map((p) => p[0]));
  const ys = series.flatMap((s) => s.points.map((p) => p[1]));
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  const [low, high] = [yLow ?? Math.min(...ys), yHigh ?? Math.max(...ys)];
  const pad = yLow === undefined ? (high - low || 1) * 0.06 : 0;
  const box = { left: 46, right: width - labels, top: 26, bottom: height - 34 };
  const px = (v) => box.left + ((v - x0) / (x1 - x0 || 1)) * (box.right - box.left);
  const py = (v) => box.bottom - ((v - low + pad) / (high - low + 2 * pad || 1)) * (box.bottom - box.top);
  const path = (points) => "M" + points.map(([a, b]) => `${px(a).toFixed(1)},${py(b).toFixed(1)}`).join("L");
  const yTicks = ticks(low - pad, high + pad, 5);
  const digits = Math.max(...yTicks.map((t) => (String(t).split(".")[1] ?? "").length));
  const ends = spread(
    series.map((s) => py(s.points.at(-1)[1])),
    15,
    box.top,
    box.bottom,
  );
  const chart = svg(
    "svg",
    { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": name, tabindex: 0 },
    yTicks.map((t) =>
      svg(
        "g",
        {},
        svg("line", { class: "rule", x1: box.left, x2: box.right, y1: py(t), y2: py(t) }),
        svg("text", { class: "tick", x: box.left - 8, y: py(t) + 4, "text-anchor": "end" }, fixed(t, digits)),
      ),
    ),
    ticks(x0, x1, Math.max(2, (box.right - box.left) / 90)).map((t) =>
      svg("text", { class: "tick", x: px(t), y: box.bottom + 18, "text-anchor": "middle" }, count(t)),
    ),
    svg("text", { class: "axis", x: 0, y: 12 }, y),
    svg("text", { class: "axis", x: box.right, y: height - 2, "text-anchor": "end" }, x),
    series.map((s, i) => [
      svg("path", { class: `line ${s.class}`, d: path(s.points) }),
      s.dots ? s.points.map(([a, b]) => svg("circle", { class: `dot ${s.class}`, cx: px(a), cy: py(b), r: 3 })) : null,
      svg("text", { class: `name ${s.class}`, x: box.right + 8, y: ends[i] + 4 }, s.name),
    ]),
  );
  return readable(chart, { series, box, px, x, format });
}

/** Lets pointer and arrow keys read a chart's values, step by step. */
function readable(chart, { series, box, px, x, format }) {
  const steps = [...new Set(series.flatMap((s) => s.points.map((p) => p[0])))].sort((a, b) => a - b);
  const cursor = svg("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
  chart.append(cursor);
  let at = steps.length - 1;
  const valueAt = (s, step) => (s.level ? s.points[0] : s.points.find((point) => point[0] === step));
  const show = () => {
    const position = px(steps[at]);
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, position);
    cursor.setAttribute("visibility", "visible");
    const known = series.filter((s) => valueAt(s, steps[at]));
    const lines = known.map((s) => `${s.name}: ${format(valueAt(s, steps[at])[1])}`);
    showTip(cursor, [`${x} ${count(steps[at])}`, ...lines].join("\n"));
  };
  const hide = () => {
    cursor.setAttribute("visibility", "hidden");
    hideTip();
  };
  chart.addEventListener("pointermove", (event) => {
    const frame = chart.getBoundingClientRect();
    const wanted = ((event.clientX - frame.left) / frame.width) * chart.viewBox.baseVal.width;
    at = steps.reduce(
      (best, step, i) => (Math.abs(px(step) - wanted) < Math.abs(px(steps[best]) - wanted) ? i : best),
      0,
    );
    show();
  });
  chart.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -1e6, End: 1e6 }[event.key];
    if (!move) return;
    event.preventDefault();
    at = clamp(at + move, 0, steps.length - 1);
    show();
  });
  chart.addEventListener("pointerleave", hide);
  chart.addEventListener("blur", hide);
  return chart;
}

// ---- Bars and tables

/** A bar of `fraction` of the room, with a mark at `mark`. Decoration: the number stands beside it. */
function bar(fraction, mark, extra = "") {
  return el(
    "span",
    { class: `bar ${extra}`, "aria-hidden": "true" },
    el("i", { style: `width:${(100 * clamp(fraction, 0, 1)).toFixed(1)}%` }),
    missing(mark) ? null : el("b", { style: `left:${(100 * clamp(mark, 0, 1)).toFixed(1)}%` }),
  );
}

/** A table of text and numbers. `columns`: [{title, note?, cell(row), number?}]. */
function table(name, columns, rows, rowAttributes = () => ({})) {
  return el(
    "div",
    { class: "scroll" },
    el(
      "table",
      { class: "plain", "aria-label": name },
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          columns.map((c) =>
            el("th", { scope: "col", class: c.number === false ? "" : "number", title: c.note }, c.title),
          ),
        ),
      ),
      el(
        "tbody",
        {},
        rows.map((row) =>
          el(
            "tr",
            rowAttributes(row),
            columns.map((c, i) =>
              el(
                i === 0 ? "th" : "td",
                { class: c.number === false ? "" : "number", scope: i === 0 ? "row" : null },
                c.cell(row),
              ),
            ),
          ),
        ),
      ),
    ),
  );
}
