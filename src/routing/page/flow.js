// Part 5 of 9: the way of tokens through the layers, as ribbons and as a matrix.

/** A ribbon that carries at least this many times what independent choices would is coloured. */
const NOTABLE = 1.25;
/** Ribbons drawn between two layers: more would be fog. */
const MOST_RIBBONS = 400;

function drawFlow() {
  if (L < 2 || !DATA.transitions?.length) return hide("flow-section");
  draw("flow", [], flowDiagram);
  follow(["layer", "expert"], markFlow);
  find("flow-finding", strongestTie());
  drawTransitions();
}

/** Tokens whose first choice is each expert, by layer. */
function firstChoices() {
  const rows = DATA.transitions.map(({ first }) => first.map(sum));
  const columns = range(E).map((j) => sum(DATA.transitions.at(-1).first.map((row) => row[j])));
  return [...rows, columns];
}

function strongestTie() {
  const loads = firstChoices();
  const total = sum(loads[0]);
  const cells = E * E * (L - 1);
  const isFound = (n, from, to) => n * total > from * to && isEvident(from, n / from, to / total, cells);
  const ties = DATA.transitions.map(({ first }, l) =>
    largest(E, E, (i, j) =>
      isFound(first[i][j], loads[l][i], loads[l + 1][j]) ? (first[i][j] * total) / (loads[l][i] * loads[l + 1][j]) : null,
    ),
  );
  const [l] = descending(ties.map((tie) => tie.value));
  const { row, column, value } = ties[l];
  if (row === undefined) return "";
  return `The strongest tie: of the tokens of ${expertName(l, row)}, ${percent(DATA.transitions[l].first[row][column] / loads[l][row], 0)} go on to expert ${column} of layer ${DATA.layers[l + 1].layer}, ${times(value, 1)} of what independent layers would send.`;
}

/** Where everything stands: bars from top to bottom by expert, as tall as their loads. */
function flowLayout(width) {
  const loads = firstChoices();
  const total = sum(loads[0]);
  const [gap, node, height] = E <= 16 ? [4, 26, 420] : [2, 20, 680];
  const top = 24;
  const used = (load) => load.filter((n) => n > 0).length;
  const scale = (height - gap * (Math.max(...loads.map(used)) - 1)) / total;
  return {
    loads,
    total,
    node,
    scale,
    top,
    height,
    x: (l) => (l * (width - node)) / (L - 1),
    y: loads.map((load) => load.map((_, e) => top + scale * sum(load.slice(0, e)) + gap * used(load.slice(0, e)))),
  };
}

function flowDiagram(width) {
  const layout = flowLayout(width);
  const ribbons = range(L - 1).map((l) => flowRibbons(layout, l));
  const nodes = range(L).map((l) => range(E).map((e) => flowNode(layout, l, e)));
  const names = range(L).map((l) => {
    const [anchor, shift] = l === 0 ? ["start", 0] : l === L - 1 ? ["end", layout.node] : ["middle", layout.node / 2];
    return svg(
      "text",
      { class: "axis", x: layout.x(l) + shift, y: 12, "text-anchor": anchor },
      width < 90 * L ? String(DATA.layers[l].layer) : layerName(l),
    );
  });
  return svg(
    "svg",
    {
      class: E <= 16 ? "chart" : "chart crowded",
      viewBox: `0 0 ${width} ${layout.top + layout.height + 4}`,
      role: "img",
      "aria-label":
        "Flow of tokens from the first choice in each layer to that in the next; the matrix below has it in numbers",
    },
    ribbons,
    nodes,
    names,
  );
}

function flowRibbons({ loads, total, node, scale, x, y }, l) {
  const { first } = DATA.transitions[l];
  const least = first.flat().sort((a, b) => b - a)[MOST_RIBBONS] ?? 0;
  const left = y[l].slice();
  const right = y[l + 1].slice();
  return range(E).map((i) =>
    range(E).map((j) => {
      const n = first[i][j];
      const [from, to, h] = [left[i], right[j], scale * n];
      left[i] += h;
      right[j] += h;
      if (n === 0 || n < least) return null;
      const lift = (n * total) / (loads[l][i] * loads[l + 1][j]);
      const [a, b] = [x(l) + node, x(l + 1)];
      const middle = (a + b) / 2;
      return svg("path", {
        class: `ribbon e${i}${lift >= NOTABLE ? " more" : ""}`,
        "data-from": `${l}:${i}`,
        "data-to": `${l + 1}:${j}`,
        "data-tip": `${expertName(l, i)} → ${expertName(l + 1, j)}\n${count(n)} tokens, ${percent(n / loads[l][i])} of the first’s, ${times(lift)} of chance`,
        d: `M${a},${from}C${middle},${from} ${middle},${to} ${b},${to}V${to + h}C${middle},${to + h} ${middle},${from + h} ${a},${from + h}Z`,
      });
    }),
  );
}

function flowNode({ loads, total, node, scale, x, y }, l, e) {
  if (loads[l][e] === 0) return null;
  const h = scale * loads[l][e];
  return svg(
    "g",
    { class: `e${e}` },
    svg("rect", {
      class: "node",
      x: x(l),
      y: y[l][e],
      width: node,
      height: Math.max(h, 0.5),
      rx: Math.min(2, h / 3),
      "data-layer": l,
      "data-expert": e,
      "data-tip": `${layerName(l)}, ${expertTitle(l, e)}\nfirst choice of ${count(loads[l][e])} tokens, ${percent(loads[l][e] / total)}`,
    }),
    h >= 8
      ? svg(
          "text",
          {
            class: "node-name",
            x: x(l) + node / 2,
            y: y[l][e] + h / 2,
            dy: "0.35em",
            "text-anchor": "middle",
            "font-size": h < 13 ? 8.5 : 12,
          },
          String(e),
        )
      : null,
  );
}

function markFlow() {
  const key = `${state.layer}:${state.expert}`;
  byId("flow").classList.toggle("flowing", state.expert !== null);
  for (const ribbon of byId("flow").querySelectorAll(".ribbon")) {
    ribbon.classList.toggle("through", ribbon.dataset.from === key || ribbon.dataset.to === key);
  }
}

function drawTransitions() {
  draw("transitions", ["layer"], () => {
    const l = Math.min(state.layer, L - 2);
    byId("transitions-title").textContent = `From layer ${DATA.layers[l].layer} to layer ${DATA.layers[l + 1].layer}`;
    const { share } = DATA.transitions[l];
    const lift = (i, j) => {
      const expected = K * DATA.layers[l + 1].load.share[j];
      return expected && DATA.layers[l].load.share[i] ? share[i][j] / expected : null;
    };
    return [
      heatmap({
        name: byId("transitions-title").textContent,
        corner: "from ↓ to →",
        rows: chips(l),
        columns: chips(l + 1),
        value: (i, j) => onScale(lift(i, j)),
        label: (i, j) => percent(share[i][j], 0),
        tip: (i, j) =>
          `${expertName(l, i)} → ${expertName(l + 1, j)}: ${percent(share[i][j])} of its tokens, ${times(lift(i, j))} of chance`,
        owner: (i) => [l, i],
      }),
      ratioKey("as by chance"),
    ];
  });
}
