// Part 6 of 9: what the model loses without each expert.

const LOSS_CAPTION =
  "For each expert, how much the cross-entropy rises when it is switched off: the filled dot where its tokens go to the " +
  "other experts (the bar: two standard errors), the ring where its output is replaced by zero. Left of the line the " +
  "model does better without it. On the right, its REAP score and the rank by it.";
const REAP_CAPTION =
  "For each expert, the mean over its tokens of its gate times the length of its output. What the model would lose " +
  "without an expert was not measured: it takes a knockout of each, inspect --knockout.";

function drawImportance() {
  if (!DATA.layers.some((l) => l.importance)) return hide("importance-section");
  const measured = DATA.layers.some((l) => l.importance.knockout);
  find(
    "importance-title",
    measured ? "Importance: what the model loses without each expert" : "Importance: how much each expert puts out (REAP)",
  );
  find("importance-caption", measured ? LOSS_CAPTION : REAP_CAPTION);
  draw("importance", ["layer"], importancePlot);
  follow(["layer"], () => find("importance-finding", importanceFinding(current().importance)));
  if (!(DATA.domains?.length > 1) || !DATA.layers.every((l) => l.importance?.knockout))
    return hide("importance-domains-part");
  draw("importance-domains", ["layer"], () => {
    const rise = current().importance.knockout.renormalised.by_domain;
    const most = Math.max(...rise.flat().map((x) => Math.abs(x ?? 0)), 1e-9);
    return [
      heatmap({
        name: `Importance by domain, ${layerName(state.layer)}`,
        corner: "Expert",
        rows: DATA.domains.map((d) => d.name),
        columns: chips(state.layer),
        value: (d, e) => (missing(rise[d][e]) ? null : rise[d][e] / most),
        label: (d, e) => signed(rise[d][e]).replace(/^([+−])0/, "$1"),
        tip: (d, e) => `${DATA.domains[d].name} without expert ${e}: ${signed(rise[d][e], 4)} nats per token`,
        owner: (_, e) => [state.layer, e],
      }),
      scaleKey([
        [`${signed(-most)}, better without it`, -1],
        ["no change", 0],
        [`${signed(most)} nats`, 1],
      ]),
    ];
  });
}

function importanceFinding({ knockout, agreement }) {
  if (!knockout) return "";
  const rises = knockout.renormalised.delta;
  const order = descending(rises);
  const alike = agreement?.reap_renormalised;
  return (
    `${layerName(state.layer)}: losing expert ${order[0]} costs most, ${signed(rises[order[0]])} nats per token; the median expert costs ${signed(rises[order[Math.floor(E / 2)]])}.` +
    (missing(alike)
      ? ""
      : ` REAP ranks them ${alike > 0.7 ? "much the same" : alike > 0.3 ? "somewhat alike" : "differently"}: agreement ${fixed(alike)}.`)
  );
}

/** A row for each expert, the most important first. */
function importancePlot(width) {
  const { knockout, reap } = current().importance;
  const main = knockout?.renormalised.delta ?? reap.map((x) => x ?? 0);
  const error = knockout?.renormalised.standard_error;
  const zeroed = knockout?.zeroed.delta;
  const row = E <= 16 ? 26 : 16;
  const box = { left: 44, right: width - (knockout ? 92 : 16), top: 40, bottom: 40 + row * E };
  const reach = main.flatMap((x, e) => [x - 2 * (error?.[e] ?? 0), x + 2 * (error?.[e] ?? 0)]);
  const shown = [0, ...reach, ...(zeroed ?? [])];
  const [low, high] = [Math.min(...shown), Math.max(...shown)];
  const px = (v) => box.left + 8 + ((v - low) / (high - low || 1)) * (box.right - box.left - 16);
  const lines = ticks(low, high, Math.max(2, (box.right - box.left) / 110));
  const digits = Math.max(...lines.map((t) => (String(t).split(".")[1] ?? "").length));
  const reapOrder = descending(reap.map((x) => x ?? -1));
  const rows = descending(main).map((e, at) => {
    const y = box.top + row * (at + 0.5);
    const said = [
      expertTitle(state.layer, e),
      knockout && `its tokens to others: ${signed(main[e], 4)} ± ${fixed(error?.[e], 4)} nats`,
      knockout && `its output zeroed: ${signed(zeroed[e], 4)} nats`,
      `REAP ${fixed(reap[e], 3)}`,
    ]
      .filter(Boolean)
      .join("\n");
    return svg(
      "g",
      { class: `e${e}`, "data-tip": said },
      svg("rect", { x: 0, y: y - row / 2, width, height: row, fill: "transparent" }),
      svg("rect", {
        class: "node",
        x: 4,
        y: y - Math.min(9, row / 2 - 1),
        width: 28,
        height: Math.min(18, row - 2),
        rx: 3,
        "data-layer": state.layer,
        "data-expert": e,
      }),
      svg(
        "text",
        { class: "node-name", x: 18, y, dy: "0.35em", "text-anchor": "middle", "font-size": row < 20 ? 10 : 12 },
        String(e),
      ),
      svg("line", { class: "stem", x1: px(0), x2: px(main[e]), y1: y, y2: y }),
      error
        ? svg("line", {
            class: "error",
            x1: px(main[e] - 2 * error[e]),
            x2: px(main[e] + 2 * error[e]),
            y1: y,
            y2: y,
          })
        : null,
      zeroed ? svg("circle", { class: "ring", cx: px(zeroed[e]), cy: y, r: row < 20 ? 3.5 : 5 }) : null,
      svg("circle", { class: "solid", cx: px(main[e]), cy: y, r: row < 20 ? 4 : 5.5 }),
      knockout
        ? svg(
            "text",
            { class: "tick", x: width, y, dy: "0.35em", "text-anchor": "end" },
            `${fixed(reap[e])} · #${reapOrder.indexOf(e) + 1}`,
          )
        : null,
    );
  });
  return svg(
    "svg",
    {
      class: "chart",
      viewBox: `0 0 ${width} ${box.bottom + 8}`,
      role: "img",
      "aria-label": "Importance of each expert, the most important first",
    },
    svg("text", { class: "axis", x: box.left, y: 12 }, knockout ? "rise of the loss, nats per token" : "REAP"),
    knockout ? svg("text", { class: "axis", x: width, y: 12, "text-anchor": "end" }, "REAP · rank") : null,
    lines.map((t) => [
      svg("line", { class: t === 0 ? "zero" : "rule", x1: px(t), x2: px(t), y1: box.top - 4, y2: box.bottom }),
      svg("text", { class: "tick", x: px(t), y: box.top - 10, "text-anchor": "middle" }, fixed(t, digits)),
    ]),
    rows,
  );
}
