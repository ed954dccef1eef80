// Part 4 of 9: one function a figure. Each finds its place in index.html by id, and hides its section where the data
// has nothing for it (one expert for each token makes no pairs, one domain no comparison, and so on).

const even = K / E;
/** Where every token has all experts, nothing is chosen, and what choices would tell is left out. */
const chooses = K < E;

/** The room that every figure has: measured once for all, because measuring lays out the whole page. */
const room = { width: 0, figures: [] };

function measureRoom() {
  const width = byId("title").clientWidth;
  if (width === room.width) return;
  room.width = width;
  for (const render of room.figures) render();
}

/** Fills the place `id` with what `make(width)` returns, and again when one of `keys` or the width changes. */
function draw(id, keys, make) {
  const place = byId(id);
  const focusable = () => [...place.querySelectorAll("button, [tabindex]")];
  const render = () => {
    const focused = place.contains(document.activeElement) ? focusable().indexOf(document.activeElement) : -1;
    place.replaceChildren(...[make(room.width)].flat());
    if (focused >= 0) focusable()[focused]?.focus({ preventScroll: true });
  };
  follow(keys, render);
  room.figures.push(render);
}

const hide = (id) => (byId(id).hidden = true);
const find = (id, ...words) => byId(id).replaceChildren(...words);

/** A ratio on a diverging scale: 1 is the middle, a quarter and four times are the ends. */
const onScale = (ratio) => (missing(ratio) ? null : ratio <= 0 ? -1 : clamp(Math.log2(ratio) / 2, -1, 1));
const ratioKey = (what) =>
  scaleKey([
    ["¼ or less", -1],
    ["half", -0.5],
    [what, 0],
    ["twice", 0.5],
    ["4 times or more", 1],
  ]);
/** Heads of a heatmap: its cells are what the keyboard reaches. */
const chips = (layer) => range(E).map((expert) => fill(chip(layer, expert), { tabindex: -1 }, []));
const current = () => DATA.layers[state.layer];

/** The largest of `value(row, column)`, as {row, column, value}; no row where there is none. */
function largest(rows, columns, value) {
  let best = { value: -Infinity };
  for (const row of range(rows)) {
    for (const column of range(columns)) {
      const x = value(row, column);
      if (!missing(x) && x > best.value) best = { row, column, value: x };
    }
  }
  return best;
}

/** Whether a rate of `n` cases differs from chance by more than the best of `cells` such rates would by chance. */
function isEvident(n, rate, chance, cells) {
  const term = (p, q) => (p > 0 ? p * Math.log2(p / q) : 0);
  const bits = n * (term(rate, chance) + term(1 - rate, 1 - chance));
  return bits >= Math.log2(cells / (DATA.significance?.level ?? 0.01));
}

// ---- Layers: even, confident, specialised

function drawLayers() {
  const name = {
    title: "Layer",
    number: false,
    cell: (l) =>
      el("button", { type: "button", class: "link", onclick: () => choose({ layer: l, expert: null }) }, layerName(l)),
  };
  const of = (l) => DATA.layers[l];
  const layersTable = (id, title, columns) =>
    draw(id, ["layer"], () =>
      table(title, [name, ...columns], range(L), (l) => ({ class: l === state.layer ? "current" : null })),
    );
  layersTable("layers-even", "How even the load is", [
    ...(chooses
      ? [
          { title: "Busiest", cell: (l) => times(of(l).load.max_over_uniform) },
          { title: "Variation", cell: (l) => fixed(of(l).load.coefficient_of_variation) },
          { title: "Evenness", cell: (l) => fixed(of(l).load.entropy, 3) },
          { title: "Dead experts", cell: (l) => count(of(l).load.dead.length) },
        ]
      : []),
    { title: "Same as previous", cell: (l) => percent(of(l).repetition?.first) },
    { title: "… by chance", cell: (l) => percent(of(l).repetition?.first_expected) },
    ...(K > 1 && chooses
      ? [
          { title: "Any in common", cell: (l) => percent(of(l).repetition?.any) },
          { title: "… by chance", cell: (l) => percent(of(l).repetition?.any_expected) },
        ]
      : []),
  ]);
  layersTable("layers-sure", "How confident the router is", [
    {
      title: K > 1 ? `Mean gates, choice 1 to ${K}` : "Mean gate",
      cell: (l) =>
        of(l)
          .gate.mean_by_rank.map((g) => fixed(g))
          .join("  "),
    },
    { title: "Router entropy (nats)", cell: (l) => fixed(of(l).gate.router_entropy) },
    { title: "Effective experts", cell: (l) => `${fixed(Math.exp(of(l).gate.router_entropy), 1)} of ${E}` },
    ...(chooses
      ? [
          { title: "Mean margin", cell: (l) => fixed(of(l).gate.margin_mean, 3) },
          { title: "Margin of the middle 80%", cell: (l) => marginRange(of(l).gate.margin_quantiles) },
          { title: "Close calls", cell: (l) => percent(of(l).gate.close) },
        ]
      : []),
  ]);
  byId("layers-special-part").hidden = !chooses;
  layersTable("layers-special", "How specialised the experts are", [
    ...(DATA.domains?.length > 1
      ? [
          { title: "Explained by the domain", cell: (l) => percent(of(l).domains?.explained) },
        ]
      : []),
    { title: "… by the kind of token", cell: (l) => percent(of(l).classes?.explained) },
    ...[
      ["input", "Tokens read"],
      ["predicted", "Tokens predicted"],
      ["target", "Tokens that follow"],
    ].map(([key, title]) => ({ title, cell: (l) => percent(of(l).vocabulary?.concentration?.[key], 0) })),
    { title: "… busiest expert", cell: (l) => percent(of(l).vocabulary?.even, 0) },
  ]);
}

const marginRange = (quantiles) => (quantiles ? `${fixed(quantiles["10"], 3)} to ${fixed(quantiles["90"], 3)}` : "–");

// ---- Load

function drawLoad() {
  const load = (layer, expert) => DATA.layers[layer].load.share[expert] * E;
  const top = largest(L, E, load);
  find(
    "load-finding",
    `${layerName(top.row)}, expert ${top.column} is the busiest of all: ${times(top.value)} its fair share of ${percent(1 / E)}.`,
  );
  draw("load", [], () => [
    heatmap({
      name: "Load by layer and expert",
      corner: "Expert",
      rows: range(L).map(layerName),
      columns: range(E).map(badge),
      value: (l, e) => (load(l, e) === 0 ? null : onScale(load(l, e))),
      label: (l, e) => (load(l, e) === 0 ? "✕" : fixed(load(l, e))),
      tip: (l, e) =>
        `${layerName(l)}, ${expertTitle(l, e)}\n${load(l, e) === 0 ? "dead: no token reaches it" : `${percent(load(l, e) / E)} of the work, ${times(load(l, e))} the even share`}`,
      owner: (l, e) => [l, e],
    }),
    ratioKey("fair share"),
  ]);
  drawLoadOverTraining();
}

/** At most `most` of the indices 0 … n − 1, evenly spread, the last included. */
function thin(n, most) {
  const step = Math.max(1, Math.ceil(n / most));
  return range(n).filter((i) => (n - 1 - i) % step === 0);
}

function drawLoadOverTraining() {
  const routing = DATA.training?.routing;
  if (!(routing?.load?.length > 1)) return hide("load-training-part");
  draw("load-training", ["layer"], (width) => {
    const kept = thin(routing.step.length, Math.max(12, Math.floor(width / (E <= 16 ? 13 : 20))));
    const load = (e, i) => routing.load[kept[i]][state.layer][e] * E;
    const last = kept.length - 1;
    const every = Math.ceil(kept.length / Math.max(2, Math.floor(width / 110)));
    return [
      heatmap({
        name: `Load over training, ${layerName(state.layer)}`,
        corner: "Step",
        rows: chips(state.layer),
        columns: kept.map((at, i) =>
          (i % every === 0 && i <= last - every / 2) || i === last
            ? el("span", { class: "step" }, count(routing.step[at]))
            : "",
        ),
        value: (e, i) => (load(e, i) === 0 ? null : onScale(load(e, i))),
        label: (e, i) => fixed(load(e, i), 1),
        tip: (e, i) =>
          `step ${count(routing.step[kept[i]])}, expert ${e}: ${percent(load(e, i) / E)} of the work, ${times(load(e, i))} its fair share`,
        owner: (e) => [state.layer, e],
      }),
      ratioKey("fair share"),
    ];
  });
}

// ---- Domains and kinds of token

/** Heatmap of groups of tokens by expert: each group's share against the even one. */
function groupHeatmap(name, groups, share) {
  return [
    heatmap({
      name,
      rows: groups.map((group) => group.name),
      columns: chips(state.layer),
      corner: "Expert",
      value: (g, e) => (groups[g].tokens ? onScale(share[g][e] / even) : null),
      label: (g, e) => (groups[g].tokens ? percent(share[g][e], 0) : "–"),
      tip: (g, e) =>
        `${groups[g].name}, expert ${e}: ${percent(share[g][e])} of ${count(groups[g].tokens)} tokens, ${times(share[g][e] / even)} the even share`,
      owner: (_, e) => [state.layer, e],
    }),
    ratioKey(`the even share, ${percent(even)}`),
  ];
}

function drawDomains() {
  if (!(DATA.domains?.length > 1)) return hide("domains-section");
  draw("domains", ["layer"], () =>
    groupHeatmap(`Domains by expert, ${layerName(state.layer)}`, DATA.domains, current().domains.share),
  );
  follow(["layer"], () => {
    const { information, explained, baseline } = current().domains;
    if (missing(explained) || !baseline) return find("domains-finding");
    find(
      "domains-finding",
      `${layerName(state.layer)}: a token’s domain explains ${percent(explained)} of the choice of its experts, its kind ${percent(current().classes?.explained)}. ` +
        `Domain and expert share ${fixed(information, 4)} bits; ${count(baseline.permutations)} shuffles of ${baseline.unit} gave ${fixed(baseline.mean, 4)} on average and ${fixed(baseline.largest, 4)} at most.`,
    );
  });
}

function drawClasses() {
  if (!DATA.classes?.length) return hide("classes-section");
  draw("classes", ["layer"], () =>
    groupHeatmap(`Kinds of token by expert, ${layerName(state.layer)}`, DATA.classes, current().classes.input),
  );
  follow(["layer"], () => {
    const share = current().classes.input;
    const isFound = (c, e) =>
      DATA.classes[c].tokens >= 20 &&
      share[c][e] > K * current().load.share[e] &&
      isEvident(DATA.classes[c].tokens, share[c][e], K * current().load.share[e], DATA.classes.length * E);
    const top = largest(DATA.classes.length, E, (c, e) => (isFound(c, e) ? share[c][e] : null));
    find(
      "classes-finding",
      top.row === undefined
        ? ""
        : `${layerName(state.layer)}: expert ${top.column} serves ${percent(top.value, 0)} of ${DATA.classes[top.row].name}; the even share is ${percent(even, 0)}.`,
    );
  });
  byId("class-definitions").append(
    ...DATA.classes
      .filter((c) => c.examples?.length)
      .flatMap((c) => [
        el("dt", {}, c.name),
        el(
          "dd",
          {},
          "such as ",
          c.examples.map((text, i) => [i ? " " : "", el("code", {}, visible(text))]),
        ),
      ]),
  );
}

// ---- Where the loss is

function drawCompute() {
  const classes = (DATA.classes ?? []).map((c, i) => ({
    name: c.name,
    tokens: c.targets,
    loss: c.loss,
    share: (l) => DATA.layers[l].classes.target[i],
  }));
  const domains = (DATA.domains?.length > 1 ? DATA.domains : []).map((d, i) => ({
    ...d,
    name: `all in ${d.name}`,
    share: (l) => DATA.layers[l].domains.share[i],
  }));
  const groups = [classes, domains]
    .map((part) => part.filter((g) => g.tokens > 0 && !missing(g.loss)).sort((a, b) => b.loss - a.loss))
    .flat();
  if (!groups.length) return hide("compute-section");
  const most = Math.max(...groups.map((g) => g.loss));
  const total = sum(classes.map((g) => (g.tokens ? g.tokens * g.loss : 0)));
  const columns = [
    { title: "Tokens to predict", number: false, cell: (g) => g.name },
    { title: "Count", cell: (g) => count(g.tokens) },
    { title: "", number: false, cell: (g) => bar(g.loss / most, DATA.text.loss / most) },
    { title: "Loss (nats)", cell: (g) => fixed(g.loss) },
    { title: "Share of all loss", cell: (g) => percent((g.loss * g.tokens) / (total || 1)) },
    ...(chooses
      ? [
          {
            title: "Predicted most by",
            number: false,
            cell: (g) =>
              el(
                "span",
                { class: "row-chips" },
                descending(g.share(state.layer))
                  .slice(0, 3)
                  .map((e) => [chip(state.layer, e), el("small", {}, percent(g.share(state.layer)[e], 0))]),
              ),
          },
        ]
      : []),
  ];
  for (const part of document.querySelectorAll("#compute-section .choosing")) part.hidden = !chooses;
  draw("compute", ["layer"], () => table("Loss by kind of token and by domain", columns, groups));
}

// ---- Co-activation

function drawCoactivation() {
  if (K < 2 || E < 3 || !chooses || !DATA.layers[0].coactivation) return hide("coactivation-section");
  const load = (e) => current().load.share[e];
  const expected = (i, j) => ((K - 1) * load(j)) / (1 - load(i));
  const share = (i, j) => current().coactivation[i][j];
  const lift = (i, j) => (i === j || !load(i) || !load(j) ? null : share(i, j) / expected(i, j));
  draw("coactivation", ["layer"], () => [
    heatmap({
      name: `Co-activation, ${layerName(state.layer)}`,
      corner: "with →",
      rows: chips(state.layer),
      columns: chips(state.layer),
      value: (i, j) => onScale(lift(i, j)),
      label: (i, j) => (i === j ? "" : percent(share(i, j), 0)),
      tip: (i, j) =>
        i === j
          ? `expert ${i}`
          : `Expert ${j} also serves ${percent(share(i, j))} of expert ${i}’s tokens, ${times(lift(i, j))} of what the loads suggest`,
      owner: (i) => [state.layer, i],
    }),
    ratioKey("as the loads suggest"),
  ]);
  follow(["layer"], () => {
    const isFound = (i, j) =>
      lift(i, j) > 1 && expected(i, j) < 1 && isEvident(load(i) * K * DATA.text.tokens, share(i, j), expected(i, j), E * E);
    const top = largest(E, E, (i, j) => (isFound(i, j) ? lift(i, j) : null));
    find(
      "coactivation-finding",
      top.row === undefined
        ? ""
        : `${layerName(state.layer)}: experts ${top.row} and ${top.column} are the closest pair, together on ${percent(share(top.row, top.column), 0)} of expert ${top.row}’s tokens, ${times(top.value, 1)} of what the loads suggest.`,
    );
  });
}

// ---- Memories

function drawMemories() {
  const memories = DATA.memories ?? [];
  byId("memory-section").hidden = !memories.length;
  if (!memories.length) return;
  const [{ ngrams, slots, minimum }] = memories;
  const name = { title: "Before layer", number: false, cell: (memory) => memory.layer };
  const used = ngrams.map((order, i) => ({
    title: `Rows read, order ${order}`,
    cell: (memory) => percent(memory.rows_in_use[i], 2),
  }));
  byId("memory").replaceChildren(
    table("Memories", [name, { title: "Mean gate", cell: (memory) => fixed(memory.mean_gate) }, ...used], memories),
    ...memories.map((memory) =>
      el(
        "div",
        {},
        el("h3", {}, `Before layer ${memory.layer}: the n-grams that open the gate widest`),
        table(
          `N-grams before layer ${memory.layer}`,
          [
            { title: `Of order ${ngrams.at(-1)}`, number: false, cell: ({ text }) => el("code", {}, visible(text)) },
            { title: "Mean gate", cell: ({ mean_gate }) => fixed(mean_gate) },
            { title: "Occurrences", cell: (ngram) => count(ngram.count) },
          ],
          memory.widest,
        ),
      ),
    ),
  );
  find(
    "memory-rows",
    `Each table has ${count(slots)} rows. N-grams with at least ${count(minimum)} occurrences are listed.`,
  );
}
