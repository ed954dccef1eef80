// Part 8 of 9: a card for each expert of the chosen layer, with everything that is known about it.

function drawCards() {
  follow(["layer"], () => {
    const dead = current().load.dead.length;
    find(
      "cards-finding",
      `${layerName(state.layer)}: ${E} experts, ${dead === 0 ? "all of them at work" : `${dead} of them dead`}.`,
    );
  });
  draw("cards", ["layer"], () => range(E).map(card));
}

function card(expert) {
  const layer = current();
  const load = layer.load.share[expert];
  const busiest = Math.max(...layer.load.share);
  const { mostly, mostly_share, typical } = layer.names?.[expert] ?? {};
  return el(
    "article",
    { class: `card e${expert}`, id: `card-${expert}`, "aria-label": expertTitle(state.layer, expert) },
    el(
      "header",
      {},
      chip(state.layer, expert),
      el(
        "p",
        {},
        mostly
          ? el("strong", {}, chooses ? `mostly ${mostly}, ${percent(mostly_share, 0)}` : "all tokens")
          : el("span", { class: "hint" }, "dead"),
        mostly && chooses
          ? el("small", { class: "typical" }, typical ? `most typical: ${typical}` : "nothing typical")
          : null,
        el(
          "small",
          {},
          load === 0 ? "no token reaches it" : `${percent(load)} of the work, ${times(load * E)} its fair share`,
        ),
      ),
    ),
    load === 0
      ? null
      : [
          bar(load / busiest, 1 / E / busiest),
          el("p", { class: "card-facts" }, cardFacts(layer, expert)),
          chooses ? meters("Kinds of token", DATA.classes ?? [], layer.classes?.input, expert, 5) : null,
          chooses ? meters("Domains", DATA.domains?.length > 1 ? DATA.domains : [], layer.domains?.share, expert, 6) : null,
          words("Tokens it reads", layer.vocabulary?.input?.[expert]),
          words("Tokens predicted there", layer.vocabulary?.predicted?.[expert]),
          words("Tokens that follow", layer.vocabulary?.target?.[expert]),
          contexts(layer.vocabulary?.input?.[expert]),
        ],
  );
}

function cardFacts({ gate, loss, importance, repetition }, expert) {
  const rises = importance?.knockout?.renormalised.delta;
  return [
    !missing(gate.mean_by_expert?.[expert]) && `mean gate ${fixed(gate.mean_by_expert[expert])}`,
    !missing(loss?.served?.[expert]) && `loss where it serves ${fixed(loss.served[expert])}`,
    !missing(repetition?.by_expert?.[expert]) &&
      `serves the next token too ${percent(repetition.by_expert[expert], 0)}`,
    rises && `without it ${signed(rises[expert])} nats, #${descending(rises).indexOf(expert) + 1} of ${E}`,
    !missing(importance?.reap?.[expert]) && `REAP ${fixed(importance.reap[expert])}`,
  ]
    .filter(Boolean)
    .join(" · ");
}

/** Bars for the groups of which the expert serves most. */
function meters(title, groups, share, expert, most) {
  if (!share) return null;
  const rows = range(groups.length)
    .filter((g) => groups[g].tokens >= 10)
    .sort((a, b) => share[b][expert] - share[a][expert])
    .slice(0, most);
  if (!rows.length) return null;
  const full = Math.max(2 * even, ...rows.map((g) => share[g][expert]));
  return [
    el("h3", {}, title),
    el(
      "div",
      { class: "meters" },
      rows.flatMap((g) => [
        el("span", { class: "label" }, groups[g].name),
        bar(share[g][expert] / full, even / full),
        el("span", { class: "amount" }, percent(share[g][expert], 0)),
      ]),
    ),
  ];
}

function words(title, tokens) {
  if (!tokens?.length) return null;
  return [
    el("h3", {}, title),
    el(
      "div",
      { class: "words" },
      tokens.slice(0, 8).map((token) =>
        el(
          "span",
          {
            "data-tip": `${count(token.served)} of ${count(token.count)} come here, ${times(token.lift)} as often as the average token`,
          },
          el("code", {}, visible(token.text)),
          " ",
          el("small", {}, times(token.lift, 1)),
        ),
      ),
    ),
  ];
}

/** Examples of a few tokens from all over the text, aligned at the token. */
function contexts(tokens) {
  const examples = (tokens ?? []).slice(0, 3).flatMap((token) => token.contexts ?? []);
  if (!examples.length) return null;
  const plain = (text) => (text === "" ? "" : visible(text).replace(/␣/g, " "));
  return [
    el("h3", {}, "In context"),
    examples.map(([before, token, after]) =>
      el(
        "p",
        { class: "context" },
        el("span", {}, el("bdi", { dir: "ltr" }, plain(before))),
        el("mark", {}, plain(token)),
        el("span", {}, plain(after)),
      ),
    ),
  ];
}

// ---- Two runs side by side

function drawComparisons() {
  if (!DATA.comparisons?.length) return hide("comparison-section");
  byId("comparison").append(
    ...DATA.comparisons.map((comparison) =>
      el(
        "div",
        {},
        el("h3", {}, `${runName(comparison.a)} beside ${runName(comparison.b)}`),
        sideBySide(comparison),
        comparison.layers.map((layer) => matchedExperts(comparison, layer)),
      ),
    ),
  );
}

/** "runs/quickstart/checkpoints/step-000500" as "quickstart step-000500". */
function runName(path) {
  return path.replace("/checkpoints/", " ").split("/").pop();
}

/** The facts of both that are numbers, as a table. */
function sideBySide({ a, b, a_facts, b_facts }) {
  const keys = Object.keys(a_facts ?? {}).filter((key) => typeof a_facts[key] === "number");
  if (!keys.length) return null;
  const value = (x) => (Number.isInteger(x) ? count(x) : fixed(x, 3));
  return table(
    "The runs in numbers",
    [
      { title: "", number: false, cell: (key) => key.replaceAll("_", " ") },
      { title: runName(a), cell: (key) => value(a_facts[key]) },
      { title: runName(b), cell: (key) => value(b_facts?.[key]) },
    ],
    keys,
  );
}

function matchedExperts({ unit }, { a, b, pairs, mean, expected }) {
  const matched = pairs
    .filter((pair) => !missing(pair.a) && !missing(pair.b))
    .sort((p, q) => q.similarity - p.similarity);
  const alone = pairs.filter((pair) => missing(pair.a) || missing(pair.b)).map((pair) => pair.a ?? pair.b);
  return el(
    "div",
    {},
    el(
      "p",
      { class: "finding" },
      `Layer ${a} beside layer ${b}: matched experts share ${percent(mean, 0)} of their ${unit ?? "tokens"} on average, ${percent(expected, 0)} by chance.`,
    ),
    el(
      "div",
      { class: "pairs" },
      matched.map((pair) =>
        el(
          "span",
          { "data-tip": `shared ${percent(pair.similarity)}, by chance ${percent(pair.expected)}` },
          badge(pair.a),
          " ↔ ",
          badge(pair.b),
          " ",
          el("small", {}, percent(pair.similarity, 0)),
        ),
      ),
    ),
    alone.length
      ? el("p", { class: "caption" }, `Without a partner, as one has more experts: ${alone.join(", ")}.`)
      : null,
  );
}
