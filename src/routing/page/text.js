// Part 3 of 9: the text coloured by expert, and beside it the panel that tells everything about one token.
//
// A token is a span; its number is its place in `reader.spans`. Colours are classes, so that a new layer or rank
// repaints thousands of tokens without building them anew, and one listener on the text serves them all.

const reader = { spans: [], at: 0, pinned: null };

const currentText = () => DATA.texts[state.text];

/** Experts of token `n` in MoE layer `layer`, best first. */
function expertsOf(text, n, layer) {
  const from = (n * L + layer) * K;
  return text.experts.slice(from, from + K);
}

/** Their gates; the data has them in hundredths. */
function gatesOf(text, n, layer) {
  const from = (n * L + layer) * K;
  return text.gates.slice(from, from + K).map((gate) => gate / 100);
}

function drawText() {
  const text = currentText();
  reader.spans = text.tokens.map((token, n) => {
    const span = el("span", { "data-token": n, tabindex: -1 }, token);
    if (/^\s*$/.test(token)) span.dataset.shown = visible(token).replace(/[^↵∅]/g, "");
    if (token.includes("\n")) span.dataset.break = "";
    return span;
  });
  reader.at = 0;
  reader.pinned = null;
  // Lines are elements of their own: the browser lays out only those near the screen.
  const lines = [[]];
  for (const [n, span] of reader.spans.entries()) {
    lines.at(-1).push(span);
    if (text.tokens[n].includes("\n")) lines.push([]);
  }
  byId("text").replaceChildren(...lines.filter((line) => line.length).map((line) => el("p", {}, line)));
  byId("text").classList.toggle("long", reader.spans.length > 8000);
  reader.spans[0]?.setAttribute("tabindex", "0");
  paintText();
  showToken(null);
}

/** How much of the text there is to look at, and how much of this document. */
function showTextCount() {
  const { documents } = DATA.text;
  const [shown, text] = [DATA.texts.length, currentText()];
  const all =
    documents === 1
      ? "The text is one document."
      : shown === documents
        ? `The text has ${count(documents)} documents; all can be chosen here.`
        : `The text has ${count(documents)} documents; ${count(shown)} of them can be chosen here.`;
  // The last token of the whole text is only predicted.
  const whole = text.tokens.length >= text.document_tokens - 1;
  const part = whole
    ? `This one has ${count(text.tokens.length)} tokens.`
    : `Of this one the first ${count(text.tokens.length)} of ${count(text.document_tokens)} tokens are shown.`;
  find("text-count", `${all} ${part}`);
}

/** Gives every token the colour of its expert, or, where an expert is highlighted, only those that it serves. */
function paintText() {
  const text = currentText();
  const deepest = 1.5 * DATA.layers[state.layer].gate.mean_by_rank[0];
  let served = 0;
  reader.spans.forEach((span, n) => {
    const experts = expertsOf(text, n, state.layer);
    const rank = state.expert === null ? state.rank : experts.indexOf(state.expert);
    const strength = rank < 0 ? 0 : Math.min(3, Math.floor((4 * gatesOf(text, n, state.layer)[rank]) / deepest));
    span.className = rank < 0 ? "off" : `t e${experts[rank]} g${strength}${state.expert === null ? "" : " on"}`;
    span.dataset.n = rank < 0 ? "" : experts[rank];
    served += rank >= 0;
  });
  const total = reader.spans.length;
  byId("text-finding").replaceChildren(
    ...(state.expert === null
      ? [
          `${layerName(state.layer)}, choice ${state.rank + 1} of ${K}: ${count(total)} tokens, each in the colour of its expert.`,
        ]
      : [
          badge(state.expert),
          ` ${expertName(state.layer, state.expert)} serves `,
          el("strong", { id: "served", "data-count": served }, count(served)),
          ` of these ${count(total)} tokens (${percent(served / total)})${K > 1 ? `, as any of the ${K} choices` : ""}.`,
        ]),
  );
}

/** The colour key: the experts' numbers, with what each stands out for. */
function drawTextKey() {
  const share = range(E).fill(0);
  const text = currentText();
  for (const n of text.tokens.keys()) share[expertsOf(text, n, state.layer)[state.rank]] += 1;
  const buttons = range(E).map((expert) => {
    const button = chip(state.layer, expert);
    button.dataset.tip = `${expertTitle(state.layer, expert)}\nchoice ${state.rank + 1} for ${count(share[expert])} of these tokens`;
    return button;
  });
  const row = el("div", { class: "chips" }, buttons);
  roveGrid(row, [buttons]);
  byId("text-key").replaceChildren(row);
}

// ---- The panel

/** Shows token `n` in the panel, or how to fill it. */
function showToken(n) {
  const panel = byId("token");
  if (n === null) {
    panel.replaceChildren(
      el("p", { class: "hint" }, "Point at a token, or move through the text with the arrow keys."),
    );
    return;
  }
  const text = currentText();
  const kind = DATA.classes[text.class?.[n]]?.name;
  const likeliest = text.expected?.[n];
  panel.replaceChildren(
    el("p", { class: "token-text" }, visible(text.tokens[n])),
    el(
      "p",
      { class: "token-facts" },
      `token ${count(n + 1)} of ${count(text.tokens.length)}${kind ? `, ${kind}` : ""}`,
      el("br"),
      probabilityWords(text, n),
      missing(likeliest) ? null : [el("br"), "likeliest here: ", el("code", {}, visible(likeliest))],
    ),
    el(
      "table",
      { class: "choices" },
      el(
        "tbody",
        {},
        range(L).map((layer) => {
          const gates = gatesOf(text, n, layer);
          return el(
            "tr",
            { class: layer === state.layer ? "current" : "" },
            el("th", { scope: "row" }, layerName(layer)),
            el(
              "td",
              {},
              expertsOf(text, n, layer).map((expert, rank) =>
                el(
                  "span",
                  { class: "choice" },
                  chip(layer, expert),
                  el("span", { class: "gate" }, fixed(gates[rank], 2)),
                ),
              ),
            ),
          );
        }),
      ),
    ),
  );
}

function probabilityWords(text, n) {
  const logprob = text.logprob?.[n];
  if (missing(logprob)) return "nothing predicts it: it is the first";
  const p = Math.exp(logprob);
  return `probability ${percent(p, p < 0.01 ? 3 : 1)}, ${fixed(-logprob / Math.LN2, 1)} bits`;
}

/** A token in words, for those who hear the page. */
function describe(n) {
  const experts = expertsOf(currentText(), n, state.layer);
  const gates = gatesOf(currentText(), n, state.layer);
  const choices = experts.map((expert, rank) => `expert ${expert} at ${percent(gates[rank], 0)}`).join(", ");
  return `${visible(currentText().tokens[n])}: ${probabilityWords(currentText(), n)}; ${choices}`;
}

// ---- Pointer and keyboard

const tokenOf = (event) => {
  const n = event.target.closest?.("[data-token]")?.dataset.token;
  return n === undefined ? null : Number(n);
};

const moveTo = (n) => reader.spans[clamp(n, 0, reader.spans.length - 1)].focus();

/** Token `n` has the focus: it is the text's tab stop from now on, and stays in the panel. */
function arriveAt(n) {
  reader.spans[reader.at].setAttribute("tabindex", "-1");
  reader.spans[n].setAttribute("tabindex", "0");
  reader.spans[n].setAttribute("aria-label", describe(n));
  reader.at = n;
  reader.pinned = n;
  showToken(n);
}

/** The nearest token on the line above (-1) or below (+1). */
function onNextLine(direction) {
  const here = reader.spans[reader.at].getBoundingClientRect();
  let [best, line] = [reader.at, null];
  for (let n = reader.at + direction; reader.spans[n]; n += direction) {
    const box = reader.spans[n].getClientRects()[0];
    if (!box || Math.abs(box.top - here.top) < 4) continue;
    if (line !== null && Math.abs(box.top - line) >= 4) break;
    if (
      line === null ||
      Math.abs(box.left - here.left) < Math.abs(reader.spans[best].getBoundingClientRect().left - here.left)
    )
      best = n;
    line = box.top;
  }
  return best;
}

function chooseTokensExpert(n) {
  const experts = expertsOf(currentText(), n, state.layer);
  // A second press on what is highlighted lets it go, whichever choice of the token it is.
  toggleExpert(state.layer, experts.includes(state.expert) ? state.expert : experts[state.rank]);
}

function startText() {
  if (!DATA.texts?.length) return hide("text-section");
  const text = byId("text");
  text.addEventListener("pointerover", (event) => tokenOf(event) !== null && showToken(tokenOf(event)));
  text.addEventListener("pointerleave", () => showToken(reader.pinned));
  text.addEventListener("focusin", (event) => {
    const n = tokenOf(event);
    if (n === null) return;
    arriveAt(n);
  });
  text.addEventListener("click", (event) => {
    const n = tokenOf(event);
    if (n === null) return;
    moveTo(n);
    chooseTokensExpert(n);
  });
  text.addEventListener("keydown", (event) => {
    const target = {
      ArrowLeft: () => reader.at - 1,
      ArrowRight: () => reader.at + 1,
      Home: () => 0,
      End: () => reader.spans.length - 1,
      ArrowUp: () => onNextLine(-1),
      ArrowDown: () => onNextLine(1),
    }[event.key];
    if (target) {
      event.preventDefault();
      moveTo(target());
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      chooseTokensExpert(reader.at);
    }
  });
  byId("text-choice").closest("label").hidden = DATA.texts.length < 2;
  byId("text-choice").append(
    ...DATA.texts.map((item, i) =>
      el("option", { value: i }, item.domain && item.domain !== item.name ? `${item.domain}: ${item.name}` : item.name),
    ),
  );
  byId("text-choice").addEventListener("change", (event) => choose({ text: Number(event.target.value) }));
  // Eight colours tell experts apart for every eye; more do not.
  byId("numbers").checked = E > 8;
  const number = () => text.classList.toggle("numbered", byId("numbers").checked);
  byId("numbers").addEventListener("change", number);
  number();
  // Paper may have no colour.
  addEventListener("beforeprint", () => text.classList.add("numbered"));
  addEventListener("afterprint", number);
  follow(["text"], drawText);
  follow(["text"], showTextCount);
  follow(["layer", "rank", "expert"], paintText);
  follow(["layer", "rank", "text"], drawTextKey);
  follow(["layer"], () => showToken(reader.pinned));
}
