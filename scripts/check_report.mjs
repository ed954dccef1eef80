// Drives routing reports in headless Chromium for check_report.sh: node check_report.mjs BROWSER SCREENSHOTS REPORT...
// Every expectation is computed here from the report's embedded data, not by the page's own code.
import assert from "node:assert/strict";
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const { chromium } = createRequire(path.resolve("target/browser/package.json"))("playwright-core");
const [browserPath, screenshots, ...reports] = process.argv.slice(2);

const VIEWS = {
  light: { viewport: { width: 1280, height: 900 }, colorScheme: "light" },
  dark: { viewport: { width: 1280, height: 900 }, colorScheme: "dark" },
  phone: { viewport: { width: 360, height: 740 }, colorScheme: "light", isMobile: true, hasTouch: true },
  "phone-dark": { viewport: { width: 360, height: 740 }, colorScheme: "dark", isMobile: true, hasTouch: true },
  print: { viewport: { width: 720, height: 1000 }, colorScheme: "dark" },
};

/** Opens a report and collects everything that a report must not do. */
async function open(browser, file, view) {
  const context = await browser.newContext(VIEWS[view]);
  const page = await context.newPage();
  const faults = [];
  page.on("console", (message) => faults.push(`console ${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => faults.push(`error: ${error.stack}`));
  page.on("request", (request) => {
    if (request.url() !== pathToFileURL(file).href && !request.url().startsWith("data:"))
      faults.push(`request: ${request.url()}`);
  });
  await page.addInitScript(() => {
    window.shifts = 0;
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts += entry.value;
    }).observe({ type: "layout-shift", buffered: true });
  });
  await page.goto(pathToFileURL(file).href);
  return { page, faults, close: () => context.close() };
}

const dataOf = (file) =>
  JSON.parse(/<script type="application\/json" id="data">(.*?)<\/script>/s.exec(fs.readFileSync(file, "utf8"))[1]);

/** The experts of a token in a layer, best first, and their gates. */
function choices(data, text, token, layer) {
  const K = data.model.experts_per_token;
  const from = (token * data.layers.length + layer) * K;
  return { experts: text.experts.slice(from, from + K), gates: text.gates.slice(from, from + K) };
}

const servedBy = (data, text, layer, expert) =>
  text.tokens.filter((_, n) => choices(data, text, n, layer).experts.includes(expert)).length;

async function noOverflow(page) {
  const [content, screen] = await page.evaluate(() => [
    document.documentElement.scrollWidth,
    document.documentElement.clientWidth,
  ]);
  assert.ok(content <= screen, `the page is ${content} pixels wide on a screen of ${screen}`);
}

// ---- Interactions

const highlighted = (page) => page.locator("#text span.on").count();

async function layerAndRankColourTheText(page, data) {
  const text = data.texts[0];
  for (const layer of data.layers.keys()) {
    for (const rank of new Set([0, data.model.experts_per_token - 1])) {
      if (data.layers.length > 1) await page.locator(`#layer-choice input[value="${layer}"]`).check();
      if (data.model.experts_per_token > 1) await page.locator(`#rank-choice input[value="${rank}"]`).check();
      const shown = await page.evaluate(() =>
        [...document.querySelectorAll("#text [data-token]")].map((span) =>
          Number(/\be(\d+)\b/.exec(span.className)[1]),
        ),
      );
      assert.deepEqual(
        shown,
        text.tokens.map((_, n) => choices(data, text, n, layer).experts[rank]),
        `layer ${layer}, rank ${rank}`,
      );
    }
  }
}

async function panelTells(page, data, n) {
  const text = data.texts[0];
  const panel = page.locator("#token");
  const rows = await panel.locator(".choices tr").evaluateAll((all) =>
    all.map((row) => ({
      experts: [...row.querySelectorAll("[data-expert]")].map((chip) => Number(chip.dataset.expert)),
      gates: [...row.querySelectorAll(".gate")].map((gate) => Math.round(100 * Number(gate.textContent))),
    })),
  );
  assert.deepEqual(
    rows,
    data.layers.map((_, layer) => choices(data, text, n, layer)),
    `panel of token ${n}`,
  );
  const words = await panel.innerText();
  assert.ok(words.includes(`token ${(n + 1).toLocaleString("en-US")} of`), words);
  if (text.logprob[n] !== null) assert.ok(words.includes(`${(-text.logprob[n] / Math.LN2).toFixed(1)} bits`), words);
}

async function hoverAndKeyboardReadTokens(page, data) {
  const place = () =>
    page.locator("#text").evaluate((text) => [text.offsetLeft, text.offsetTop, text.offsetWidth, text.offsetHeight]);
  const before = await place();
  for (const n of [2, 17, 40]) {
    await page.locator(`[data-token="${n}"]`).hover();
    await panelTells(page, data, n);
  }
  assert.deepEqual(await place(), before, "hovering moves the text");
  await page.locator('[data-token="0"]').focus();
  for (const key of ["ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"]) await page.keyboard.press(key);
  assert.equal(await page.evaluate(() => document.activeElement.dataset.token), "2");
  await panelTells(page, data, 2);
  const top = () => page.evaluate(() => document.activeElement.getClientRects()[0].top);
  const line = await top();
  await page.keyboard.press("ArrowDown");
  const below = Number(await page.evaluate(() => document.activeElement.dataset.token));
  assert.ok((await top()) > line && below > 2, "arrow down does not go down");
  await panelTells(page, data, below);
  assert.equal(await page.locator('#text [tabindex="0"]').count(), 1, "the text must be one tab stop");
}

async function highlightFollowsTheData(page, data) {
  const text = data.texts[0];
  const layer = data.layers.length - 1;
  if (layer > 0) await page.locator(`#layer-choice input[value="${layer}"]`).check();
  if (data.model.experts_per_token > 1) await page.locator('#rank-choice input[value="0"]').check();
  const [expert] = choices(data, text, 2, layer).experts;
  const expected = servedBy(data, text, layer, expert);

  await page.locator('[data-token="2"]').focus();
  await page.keyboard.press("Enter");
  assert.equal(await highlighted(page), expected, "tokens highlighted by Enter");
  assert.equal(await page.locator("#served").innerText(), expected.toLocaleString("en-US"));
  const marked = `[data-layer="${layer}"][data-expert="${expert}"]`;
  for (const place of [`#text-key ${marked}`, `#load ${marked}`, `#card-${expert} ${marked}`]) {
    assert.ok(
      await page
        .locator(place)
        .first()
        .evaluate((element) => element.classList.contains("chosen-expert")),
      `${place} is not marked`,
    );
  }
  await page.keyboard.press("Escape");
  assert.equal(await highlighted(page), 0, "Escape leaves tokens highlighted");
  assert.equal(await page.locator(".chosen-expert").count(), 0, "Escape leaves marks");

  const other = (expert + 1) % data.model.experts;
  await page.locator(`#text-key [data-expert="${other}"]`).click();
  assert.equal(
    await highlighted(page),
    servedBy(data, text, layer, other),
    "tokens highlighted by a click on a number",
  );
  await page.locator(`#text-key [data-expert="${other}"]`).click();
  assert.equal(await highlighted(page), 0, "a second click lets go");
  await page.locator('[data-token="2"]').click();
  assert.equal(await highlighted(page), expected, "tokens highlighted by a click on a token");
  await page.locator("#clear").click();
  assert.equal(await highlighted(page), 0, "clear lets go");
}

async function heatmapsSpeakAndChoose(page, data) {
  const cell = page.locator('#load td[data-row="0"][data-column="1"]');
  await cell.scrollIntoViewIfNeeded();
  await cell.hover();
  const share = data.layers[0].load.share[1];
  assert.ok(
    (await page.locator("#tooltip").innerText()).includes(`${(100 * share).toFixed(1)}% of the work`),
    "tooltip of the load",
  );
  await page.locator('#load td[data-row="0"][data-column="0"]').focus();
  await page.keyboard.press("ArrowRight");
  assert.deepEqual(
    await page.evaluate(() => [document.activeElement.dataset.row, document.activeElement.dataset.column]),
    ["0", "1"],
  );
  await page.keyboard.press("Enter");
  assert.equal(await highlighted(page), servedBy(data, data.texts[0], 0, 1), "Enter on a cell highlights its expert");
  await page.keyboard.press("Escape");
}

async function curvesAreReadByKey(page, data) {
  const { train, val } = data.training;
  await page.locator("#training svg").focus();
  await page.keyboard.press("End");
  const step = Math.max(train.step.at(-1), val.step.at(-1) ?? 0);
  const lines = [`step ${step.toLocaleString("en-US")}`];
  if (train.step.at(-1) === step) lines.push(`training: ${train.bits_per_byte.at(-1).toFixed(2)}`);
  if (val.step.at(-1) === step) lines.push(`validation: ${val.bits_per_byte.at(-1).toFixed(2)}`);
  if (data.training.ngram_bits_per_byte) lines.push(`n-gram: ${data.training.ngram_bits_per_byte.toFixed(2)}`);
  assert.equal(await page.locator("#tooltip").innerText(), lines.join("\n"));
}

async function textsAreWhole(page, data) {
  for (const i of new Set([data.texts.length - 1, 0])) {
    await page.locator("#text-choice").selectOption(String(i));
    assert.equal(
      await page.locator("#text").evaluate((text) => text.textContent),
      data.texts[i].tokens.join(""),
      `text ${i}`,
    );
  }
}

/** Every document in the data can be chosen, and the page says how many the text has. */
async function documentsAreCountedAndChosen(page, data) {
  const words = await page.locator("#text-count").innerText();
  const { documents } = data.text;
  assert.ok(words.includes(documents === 1 ? "one document" : `${documents.toLocaleString("en-US")} documents`), words);
  assert.equal(await page.locator("#text-choice option").count(), data.texts.length);
  const last = data.texts.length - 1;
  if (last > 0) await page.locator("#text-choice").selectOption(String(last));
  const length = data.texts[last].tokens.length.toLocaleString("en-US");
  assert.ok((await page.locator("#text-count").innerText()).includes(` ${length} `), `tokens of document ${last}`);
  if (last > 0) await page.locator("#text-choice").selectOption("0");
}

/** Cards say what an expert mostly serves, what is typical of it, and show examples from all over the text. */
async function cardsNameBoth(page, data) {
  const layer = data.layers.length - 1;
  if (layer > 0) await page.locator(`#layer-choice input[value="${layer}"]`).check();
  for (const [expert, name] of data.layers[layer].names.entries()) {
    const words = await page.locator(`#card-${expert} header`).innerText();
    const share = `${Math.round(100 * (name.mostly_share ?? 0))}%`;
    assert.ok(name.mostly ? words.includes(`mostly ${name.mostly}, ${share}`) : words.includes("dead"), words);
    if (name.typical) assert.ok(words.includes(`most typical: ${name.typical}`), words);
    const examples = data.layers[layer].vocabulary.input[expert].slice(0, 3).flatMap((token) => token.contexts);
    assert.equal(await page.locator(`#card-${expert} .context`).count(), name.mostly ? examples.length : 0, "examples");
  }
}

/** What the Importance section says is what it draws. */
async function importanceSaysWhatItShows(page, data) {
  const measured = data.layers.some((layer) => layer.importance.knockout);
  const section = page.locator("#importance-section");
  const words = await section.innerText();
  assert.equal(words.includes("when it is switched off"), measured, words);
  assert.equal(words.includes("was not measured"), !measured, words);
  assert.equal((await section.locator("#importance .ring").count()) > 0, measured);
}

/** A loss stands beside the experts that predicted it, by the counts of the predicting positions. */
async function lossesNameTheirPredictors(page, data) {
  const layer = data.layers.length - 1;
  if (layer > 0) await page.locator(`#layer-choice input[value="${layer}"]`).check();
  const classes = data.classes.map((kind, i) => ({ ...kind, share: data.layers[layer].classes.target[i] }));
  const [most] = classes.filter((kind) => kind.targets > 0).sort((a, b) => b.loss - a.loss);
  const row = page.locator("#compute tbody tr").first();
  const words = await row.innerText();
  assert.ok(words.includes(most.name) && words.includes(most.targets.toLocaleString("en-US")), words);
  const expert = Number(await row.locator("[data-expert]").first().getAttribute("data-expert"));
  assert.equal(most.share[expert], Math.max(...most.share), `expert ${expert} of ${most.share}`);
}

/** No course is drawn through fewer than three checkpoints. */
async function saturationIsDrawnFromEnough(page, data) {
  const earlier = data.saturation?.checkpoints?.length ?? 0;
  assert.equal(await page.locator("#saturation svg").count(), earlier >= 3 ? 1 : 0);
  if (earlier > 0) assert.ok((await page.locator("#saturation-finding").innerText()).includes("At step"));
}

async function factsLeadToEvidence(page, data) {
  assert.equal(await page.locator(".facts li").count(), data.facts.length);
  const at = data.facts.findIndex((fact) => Number.isInteger(fact.layer) && Number.isInteger(fact.expert));
  if (at < 0) return;
  const { layer, expert } = data.facts[at];
  if (at >= 3) await page.locator("#more-facts-part summary").click();
  await page.locator(".facts li").nth(at).locator("button").click();
  assert.equal(
    await highlighted(page),
    servedBy(data, data.texts[0], layer, expert),
    `fact ${at} highlights its expert`,
  );
  await page.keyboard.press("Escape");
}

async function everySectionHasItsFigure(page) {
  const empty = await page.evaluate(() =>
    [...document.querySelectorAll("main > section")]
      .filter((section) => !section.hidden && !section.querySelector("svg, table, #text span, .card, .pairs"))
      // Of few checkpoints there is a sentence.
      .filter((section) => !section.querySelector("#saturation-few:not([hidden])"))
      .map((s) => s.id),
  );
  assert.deepEqual(empty, [], "sections without a figure");
}

async function themeTurnsAndStays(page) {
  const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const before = await paper();
  await page.locator("#theme").click();
  const after = await paper();
  assert.notEqual(after, before, "the theme button changes nothing");
  await page.reload();
  assert.equal(await paper(), after, "the choice of theme is lost by reloading");
  await page.locator("#theme").click();
  assert.equal(await paper(), before);
}

/** WCAG contrast of every expert's number on its colour, and of plain and muted text, as the browser paints them. */
async function numbersAreReadable(page) {
  const worst = await page.evaluate(() => {
    const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const luminance = (colour) => {
      context.fillStyle = colour;
      context.fillRect(0, 0, 1, 1);
      const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((v) =>
        v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4,
      );
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (a, b) =>
      (Math.max(luminance(a), luminance(b)) + 0.05) / (Math.min(luminance(a), luminance(b)) + 0.05);
    const chips = [...document.querySelectorAll("#text-key .chip")].map((chip) => {
      const style = getComputedStyle(chip);
      return { what: `expert ${chip.textContent}`, contrast: contrast(style.color, style.backgroundColor) };
    });
    const caption = getComputedStyle(document.querySelector(".caption")).color;
    const paper = getComputedStyle(document.body).backgroundColor;
    chips.push({ what: "captions", contrast: contrast(caption, paper) });
    return chips.reduce((a, b) => (a.contrast < b.contrast ? a : b));
  });
  assert.ok(worst.contrast >= 4.5, `${worst.what}: contrast ${worst.contrast.toFixed(2)}`);
}

// ---- Reports made from a report: hostile text, and the least that a report can have

function variant(file, name, change) {
  const html = fs.readFileSync(file, "utf8");
  const data = dataOf(file);
  change(data);
  const changed = html.replace(
    /(<script type="application\/json" id="data">).*?(<\/script>)/s,
    (_, a, b) => a + JSON.stringify(data).replaceAll("<", "\\u003c") + b,
  );
  const out = path.join(screenshots, `${name}.html`);
  fs.writeFileSync(out, changed);
  return out;
}

function hostile(data) {
  const bad = "</script><img src=x onerror=alert(1)><b>&amp;";
  data.run.name = bad;
  data.texts[0].name = bad;
  data.texts[0].tokens = data.texts[0].tokens.map((token, n) => (n % 3 ? token : bad));
  for (const part of [...data.domains, ...data.classes]) part.name = bad;
  for (const fact of data.facts) fact.text = bad;
  for (const tokens of data.layers[0].vocabulary.input)
    for (const token of tokens) Object.assign(token, { text: bad, contexts: [[bad, bad, bad]] });
}

/** Without knockouts, and with two checkpoints only: what a quick look has. */
function quick(data) {
  for (const { importance } of data.layers) {
    delete importance.knockout;
    delete importance.agreement;
  }
  if (data.saturation) data.saturation.checkpoints = data.saturation.checkpoints.slice(0, 1);
}

/** Every token has all experts: nothing is chosen. */
function all(data) {
  data.model.experts_per_token = data.model.experts;
  const { experts } = data.model;
  const order = Array.from({ length: experts }, (_, e) => e);
  for (const text of data.texts) {
    const pairs = text.tokens.length * data.layers.length;
    text.experts = Array.from({ length: pairs }, () => order).flat();
    text.gates = Array.from({ length: pairs * experts }, () => Math.round(100 / experts));
  }
  for (const { gate } of data.layers) for (const key of ["close", "margin_mean", "margin_quantiles"]) delete gate[key];
}

/** One expert for all tokens. */
function single(data) {
  data.model.experts = data.model.experts_per_token = 1;
  data.palette = data.palette.slice(0, 1);
}

function bare(data) {
  for (const key of ["training", "saturation", "comparisons"]) delete data[key];
  data.facts = [];
  data.domains = data.domains.slice(0, 1);
  data.texts = data.texts.slice(0, 1);
  data.transitions = [];
  const keep = data.layers.length;
  const K = data.model.experts_per_token;
  for (const text of data.texts) {
    for (const key of ["experts", "gates"]) text[key] = text[key].filter((_, i) => i % (keep * K) < K);
  }
  data.layers = data.layers.slice(0, 1);
  const [layer] = data.layers;
  delete layer.importance.knockout;
  delete layer.importance.agreement;
  delete layer.coactivation;
  layer.labels = layer.labels.map(() => "");
  layer.names = layer.names.map((name) => ({ ...name, typical: "" }));
  for (const key of ["input", "predicted", "target"]) layer.vocabulary[key] = layer.vocabulary[key].map(() => []);
}

/** A model without experts has a head and curves. */
function dense(data) {
  Object.assign(data, { layers: [], palette: [], transitions: [], texts: [], facts: [] });
  for (const key of ["experts", "experts_per_token", "saturation", "comparisons"]) {
    delete data[key];
    delete data.model[key];
  }
}

// ---- All of it

const failures = [];
async function check(title, work) {
  try {
    await work();
    console.log(`ok    ${title}`);
  } catch (error) {
    failures.push(title);
    console.log(`FAIL  ${title}\n      ${error.message.replaceAll("\n", "\n      ")}`);
  }
}

async function checkReport(browser, file) {
  const name = path.basename(path.dirname(path.resolve(file)));
  const data = dataOf(file);
  const megabytes = fs.statSync(file).size / 1e6;
  console.log(
    `\n${file}: ${megabytes.toFixed(2)} MB, ${data.layers.length} layers, ${data.model.experts} experts, ${data.model.experts_per_token} per token`,
  );
  await check("smaller than 5 MB", () => assert.ok(megabytes < 5));
  for (const view of Object.keys(VIEWS)) {
    await check(`${view}: opens without a fault, nothing overflows`, async () => {
      const { page, faults, close } = await open(browser, file, view);
      if (view === "print") {
        await page.emulateMedia({ media: "print" });
        await page.evaluate(() => dispatchEvent(new Event("beforeprint")));
      }
      await page.waitForTimeout(300);
      await noOverflow(page);
      await page.screenshot({ path: path.join(screenshots, `${name}-${view}.png`), fullPage: true });
      if (view !== "print") {
        assert.ok(
          (await page.evaluate(() => window.shifts)) < 0.01,
          `layout shifts by ${await page.evaluate(() => window.shifts)}`,
        );
        await numbersAreReadable(page);
        await page.locator("#text-key [data-expert]").nth(1).click();
        await page.locator("#text-section").scrollIntoViewIfNeeded();
        await page.screenshot({ path: path.join(screenshots, `${name}-${view}-highlighted.png`) });
        await noOverflow(page);
      }
      await close();
      assert.deepEqual(faults, []);
    });
  }
  const { page, faults, close } = await open(browser, file, "light");
  for (const [title, work] of [
    ["every section has its figure", everySectionHasItsFigure],
    ["layer and choice colour the text as the data says", layerAndRankColourTheText],
    ["pointer and arrow keys show a token's probability, experts and gates", hoverAndKeyboardReadTokens],
    ["a chosen expert highlights its tokens and marks, Escape clears", highlightFollowsTheData],
    ["heatmaps answer pointer and keys", heatmapsSpeakAndChoose],
    ["curves are read step by step", curvesAreReadByKey],
    ["every text is shown whole", textsAreWhole],
    ["documents are counted and can be chosen", documentsAreCountedAndChosen],
    ["cards name what an expert mostly serves and what is typical", cardsNameBoth],
    ["importance says what it shows", importanceSaysWhatItShows],
    ["losses stand beside the experts that predicted them", lossesNameTheirPredictors],
    ["saturation is drawn from enough checkpoints", saturationIsDrawnFromEnough],
    ["facts lead to their evidence", factsLeadToEvidence],
    ["the theme turns and stays", themeTurnsAndStays],
  ])
    await check(title, () => work(page, data));
  await check("no fault meanwhile", () => assert.deepEqual(faults, []));
  await close();

  for (const [title, change] of [
    ["hostile", hostile],
    ["bare", bare],
    ["quick", quick],
    ["all-experts", all],
    ["single-expert", single],
    ["dense", dense],
  ]) {
    await check(`a ${title} variant opens without a fault`, async () => {
      const opened = await open(browser, variant(file, `${name}-${title}`, change), "light");
      assert.equal(await opened.page.locator("img").count(), 0, "text became an element");
      if (title === "quick") await importanceSaysWhatItShows(opened.page, dataOf(variant(file, `${name}-${title}`, change)));
      if (title === "all-experts") assert.equal(await opened.page.locator("#load-section").isVisible(), false);
      if (!["dense", "single-expert"].includes(title)) await opened.page.locator("#text-key [data-expert]").first().click();
      await everySectionHasItsFigure(opened.page);
      await noOverflow(opened.page);
      await opened.page.screenshot({ path: path.join(screenshots, `${name}-${title}.png`), fullPage: true });
      await opened.close();
      assert.deepEqual(opened.faults, []);
    });
  }
}

fs.mkdirSync(screenshots, { recursive: true });
const browser = await chromium.launch({
  executablePath: browserPath,
  args: [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
try {
  for (const file of reports) await checkReport(browser, file);
} finally {
  await browser.close();
}
console.log(`\nscreenshots: ${path.resolve(screenshots)}`);
if (failures.length) {
  console.error(`${failures.length} failed: ${failures.join("; ")}`);
  process.exit(1);
}
