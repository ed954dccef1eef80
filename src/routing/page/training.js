// Part 7 of 9: curves over training steps: loss, routers, saturation.

const zip = (part, key) => (part?.step ?? []).map((step, i) => [step, part[key]?.[i]]);

function drawTraining() {
  const training = DATA.training;
  if (!(training?.train?.step?.length > 1)) return hide("training-section");
  const ngram = training.ngram_bits_per_byte;
  const steps = training.train.step;
  draw("training", [], (width) =>
    lineChart({
      name: "Bits per byte over training",
      x: "step",
      y: "bits per byte",
      width,
      height: Math.min(340, 200 + width / 6),
      labels: width < 500 ? 78 : 110,
      series: [
        { name: "training", class: "faint", points: zip(training.train, "bits_per_byte") },
        { name: "validation", class: "main", dots: true, points: zip(training.val, "bits_per_byte") },
        {
          name: "n-gram",
          class: "base",
          level: true,
          points: missing(ngram)
            ? []
            : [
                [steps[0], ngram],
                [steps.at(-1), ngram],
              ],
        },
      ],
    }),
  );
  const validation = (training.val?.bits_per_byte ?? []).filter((x) => !missing(x));
  if (validation.length && !missing(ngram)) {
    const best = Math.min(...validation);
    find(
      "training-finding",
      best < ngram
        ? `At its best the network is ${percent(1 - best / ngram)} below the n-gram baseline: ${fixed(best, 3)} against ${fixed(ngram, 3)} bits per byte.`
        : `The network has not passed the n-gram baseline: ${fixed(best, 3)} at best, against ${fixed(ngram, 3)} bits per byte.`,
    );
  }
  drawRouterTraining(training);
}

function drawRouterTraining({ train, routing }) {
  if (!(routing?.entropy?.length > 1) || L === 0) return hide("router-training-part");
  draw("router-training", ["layer"], (width) => {
    const half = width < 800 ? width : (width - 24) / 2;
    return [
      el(
        "div",
        {},
        lineChart({
          name: "Router entropy over training",
          x: "step",
          y: "router entropy, nats",
          width: half,
          height: 240,
          labels: 62,
          series: range(L).map((l) => ({
            name: layerName(l),
            class: layerClass(l),
            points: routing.step.map((step, i) => [step, routing.entropy[i]?.[l]]),
          })),
        }),
      ),
      el(
        "div",
        {},
        lineChart({
          name: "Balance loss over training",
          x: "step",
          y: "balance loss (1 is even)",
          width: half,
          height: 240,
          labels: 62,
          series: [{ name: "balance", class: "main", points: zip(train, "balance_loss") }],
        }),
      ),
    ];
  });
}

/** Four layers have a colour and a dash each; of more, the chosen one stands out. */
const layerClass = (layer) => (L <= 4 ? `l${layer}` : layer === state.layer ? "main" : "faint");

function drawSaturation() {
  const saturation = DATA.saturation;
  if (!saturation?.checkpoints?.length) return hide("saturation-section");
  const { checkpoints, reference_step: last } = saturation;
  // The last point is 1 by definition; a course needs three more.
  const drawn = checkpoints.length >= 3;
  byId("saturation-few").hidden = drawn;
  if (drawn) drawSaturationCourse(saturation);
  find(
    "saturation-finding",
    checkpoints
      .map(
        (checkpoint) =>
          `At step ${count(checkpoint.step)} the routers already made ${range(L)
            .map((l) => percent(checkpoint.all[l], 0))
            .join(", ")} of the choices of step ${count(last)}`,
      )
      .slice(0, drawn ? 1 : 2)
      .join("; ") + ` (layer${L > 1 ? "s" : ""} ${DATA.layers.map((l) => l.layer).join(", ")}; by chance ${percent(even, 0)}).`,
  );
}

function drawSaturationCourse({ checkpoints, reference_step: last }) {
  draw("saturation", ["layer"], (width) =>
    lineChart({
      name: "Saturation",
      x: "step",
      y: `choices shared with step ${count(last)}`,
      width,
      height: 300,
      labels: width < 500 ? 66 : 90,
      yLow: 0,
      yHigh: 1,
      format: (v) => percent(v),
      series: [
        ...range(L).map((l) => ({
          name: layerName(l),
          class: layerClass(l),
          dots: true,
          points: [...checkpoints.map((c) => [c.step, c.all[l]]), [last, 1]],
        })),
        {
          name: "chance",
          class: "level",
          level: true,
          points: [
            [checkpoints[0].step, even],
            [last, even],
          ],
        },
      ],
    }),
  );
}
