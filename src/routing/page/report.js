// Part 9 of 9: the head of the page, the choices that hold for all figures, theme and keyboard. Runs last.

// ---- Head

/** Facts in large type; the others open at a click. */
const LEADING_FACTS = 3;

function drawHead() {
  const { run, model, text } = DATA;
  document.title = `${run.name} · routing report`;
  byId("title").textContent = run.name;
  byId("subtitle").textContent = describeModel();
  const ngram = text.ngram_bits_per_byte;
  const dropped = DATA.training?.train?.dropped_share?.at(-1);
  const figures = [
    [fixed(text.bits_per_byte, 3), "bits per byte"],
    missing(ngram) ? null : [fixed(ngram, 3), "n-gram baseline, bits per byte"],
    [fixed(text.perplexity, 1), "perplexity per token"],
    [count(text.tokens), `tokens: ${text.source}`],
    text.unknown_tokens
      ? [percent(text.unknown_share), `unknown characters (${text.unknown_characters}), 8 bits for each of their bytes`]
      : null,
    missing(dropped) ? null : [percent(dropped), "of choices dropped at the end of training, as experts were full"],
    L ? [`${K} of ${E}`, "experts per token"] : null,
    [short(model.active_parameters), `of ${short(model.parameters)} parameters active`],
  ];
  byId("figures").append(
    ...figures.filter(Boolean).map(([value, name]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
  const facts = (DATA.facts ?? []).map((fact) =>
    el("li", {}, el("span", {}, fact.text + (/[.!?]$/.test(fact.text) ? "" : "."), showFact(fact))),
  );
  byId("facts").append(...facts.slice(0, LEADING_FACTS));
  byId("more-facts").append(...facts.slice(LEADING_FACTS));
  byId("facts-part").hidden = !facts.length;
  const { significance } = DATA;
  if (significance)
    find(
      "significance",
      `To count, a finding needs ${fixed(significance.bits, 1)} bits: ${count(significance.tests)} tests were made, and all together have a chance of ${percent(significance.level, 0)} of a false one (Bonferroni).`,
    );
  byId("more-facts-part").hidden = facts.length <= LEADING_FACTS;
  byId("footer").textContent =
    `tinymoe ${run.version ?? ""} · ${run.checkpoint ?? run.name}${missing(run.seed) ? "" : ` · seed ${run.seed}`} · formulas, sources and how they are tested: docs/routing.md of tinymoe`;
}

/** A large number to three digits: 2.56 M. */
function short(n) {
  if (missing(n)) return "–";
  const [size, unit] = n >= 1e9 ? [1e9, " G"] : n >= 1e6 ? [1e6, " M"] : n >= 1e4 ? [1e3, " k"] : [1, ""];
  return (size === 1 ? count(n) : (n / size).toPrecision(3)) + unit;
}

function describeModel() {
  const { run, model } = DATA;
  const balance = { aux_loss: "balanced by an auxiliary loss", bias: "balanced by a bias" }[model.router?.balance];
  return [
    `${model.model_type ? `A ${model.model_type} with ` : ""}${model.layers} layers of ${model.hidden_size} channels`,
    L && L < model.layers ? `, ${L} of them with experts` : "",
    L
      ? `, ${E} experts of width ${model.expert_width} in each${model.shared_experts ? ` beside ${model.shared_experts} shared` : ""}`
      : "",
    L && model.router?.scoring ? `; ${model.router.scoring} router${balance ? `, ${balance}` : ""}` : "",
    missing(run.step) ? "." : `. At step ${count(run.step)}.`,
  ].join("");
}

/** Where the evidence for a kind of fact stands. */
const EVIDENCE = {
  domain: "domains-section",
  load: "load-section",
  repetition: "layers-section",
  transition: "flow-section",
  importance: "importance-section",
  saturation: "saturation-section",
  coactivation: "coactivation-section",
};

/** A button that leads from a fact to its evidence: a figure, or the text with the expert highlighted. */
function showFact({ measure, layer, expert }) {
  if (missing(layer)) return null;
  const section = EVIDENCE[measure] ?? (missing(expert) ? "layers-section" : "text-section");
  const show = () => {
    choose({ layer, expert: expert ?? null });
    byId(section).scrollIntoView();
  };
  return el(
    "button",
    { type: "button", class: "link", onclick: show },
    section === "text-section" ? "show in the text" : "show",
  );
}

/** Links to the sections that there are. */
function drawContents() {
  const sections = [...document.querySelectorAll("main > section[data-name]")].filter((section) => !section.hidden);
  byId("contents").append(...sections.map((section) => el("a", { href: `#${section.id}` }, section.dataset.name)));
}

/** Every figure, in the order of the page. */
function drawFigures() {
  // What means something: with choices, where every token has all experts, and where there is only one or none.
  const always = [["compute-section", drawCompute]];
  const gated = [
    ["text-section", startText],
    ["layers-section", drawLayers],
    ["flow-section", drawFlow],
    ["importance-section", drawImportance],
    ["cards-section", drawCards],
  ];
  const chosen = [
    ["load-section", drawLoad],
    ["domains-section", drawDomains],
    ["classes-section", drawClasses],
    ["coactivation-section", drawCoactivation],
    ["saturation-section", drawSaturation],
  ];
  const drawn = [...(L > 0 ? always : []), ...(L > 0 && E > 1 ? gated : []), ...(L > 0 && chooses ? chosen : [])];
  for (const [section] of [...always, ...gated, ...chosen]) hide(section);
  byId("bar").hidden = !(L > 0 && E > 1);
  for (const [section, figure] of drawn) {
    byId(section).hidden = false;
    figure();
  }
  drawMemories();
  drawTraining();
  drawComparisons();
}

// ---- Choices

/** Fills a fieldset with one radio button an option: the browser brings the arrow keys. */
function segments(id, names, key) {
  byId(id).hidden = names.length < 2;
  if (byId(id).hidden) return;
  const options = names.map((name, i) =>
    el(
      "label",
      {},
      el("input", {
        type: "radio",
        name: key,
        value: i,
        onchange: () => choose({ [key]: i, ...(key === "layer" ? { expert: null } : {}) }),
      }),
      name,
    ),
  );
  byId(id).append(el("div", { class: "options" }, options));
  follow([key], () => (options[state[key]].querySelector("input").checked = true));
}

/** Says which expert is highlighted, and marks it in every figure. */
function showChosen() {
  const words =
    state.expert === null
      ? [el("span", { class: "none" }, "no expert highlighted")]
      : [
          badge(state.expert),
          el(
            "a",
            { href: `#card-${state.expert}`, class: "title" },
            `${layerName(state.layer)}, ${expertTitle(state.layer, state.expert)}`,
          ),
          el(
            "button",
            { type: "button", class: "link", id: "clear", onclick: () => choose({ expert: null }) },
            "clear",
          ),
        ];
  byId("chosen").replaceChildren(...words);
}

function markChosen() {
  for (const element of document.querySelectorAll(".chosen-expert")) element.classList.remove("chosen-expert");
  if (state.expert === null) return;
  const wanted = `[data-layer="${state.layer}"][data-expert="${state.expert}"]`;
  for (const element of document.querySelectorAll(wanted)) element.classList.add("chosen-expert");
}

// ---- Theme: the system's, until the button says otherwise

function startTheme() {
  const root = document.documentElement;
  const dark = () =>
    (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => (byId("theme").querySelector("span").textContent = dark() ? "Light" : "Dark");
  try {
    const kept = localStorage.getItem("tinymoe-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch {
    /* A browser may refuse storage to files: the choice then lasts as long as the page. */
  }
  byId("theme").setAttribute("aria-label", "Switch between light and dark");
  byId("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    name();
    try {
      localStorage.setItem("tinymoe-theme", root.dataset.theme);
    } catch {
      /* as above */
    }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  name();
}

/** On paper nothing opens at a click: the definitions are printed with their figures. */
function startPrint() {
  const closed = () => document.querySelectorAll("details:not([open])");
  let opened = [];
  addEventListener("beforeprint", () => (opened = [...closed()]).forEach((details) => (details.open = true)));
  addEventListener("afterprint", () => opened.forEach((details) => (details.open = false)));
}

// ---- Start

function start() {
  // Until now nothing was shown, so that nothing jumps into place.
  document.body.classList.remove("loading");
  document.head.append(expertColours(DATA.palette));
  startTheme();
  startPrint();
  followTips();
  drawHead();
  measureRoom();
  segments(
    "layer-choice",
    DATA.layers.map(({ layer }) => String(layer)),
    "layer",
  );
  segments(
    "rank-choice",
    range(K).map((rank) => String(rank + 1)),
    "rank",
  );
  drawFigures();
  drawContents();
  follow(["layer", "expert"], showChosen);
  follow(["layer", "rank", "text", "expert"], markChosen);
  document.addEventListener("click", (event) => {
    const target = event.target.closest("[data-expert]");
    if (target && !target.closest("#text")) toggleExpert(Number(target.dataset.layer), Number(target.dataset.expert));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    hideTip();
    choose({ expert: null });
  });
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      measureRoom();
      markChosen();
    }, 150);
  });
}

start();
