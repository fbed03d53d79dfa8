// The live page: takes the events of /events and shows them. Whatever comes from the server is
// written as text, never as markup.

import { Chart, shareCursor } from "./charts.js";

const KEPT = 320;
const SILENT_MS = 3500; // without an event for so long, the numbers are old
const GIVE_UP_MS = 12000;
const AGAIN_MS = 3000;

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const exactly = (decimals) =>
  new Intl.NumberFormat("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
let cents = exactly(2); // as many decimals as the currency has
const percent = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 2 });

const byId = (id) => document.getElementById(id);

function make(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function tag(text, tone) {
  const made = make("span", "tag", text);
  made.dataset.tone = tone;
  return made;
}

function duration(ms) {
  if (ms < 1000) return `${tenths.format(ms < 10 ? ms : Math.round(ms))} ms`;
  if (ms < 60000) return `${tenths.format(ms / 1000)} s`;
  const seconds = Math.floor(ms / 1000);
  const parts = [
    [Math.floor(seconds / 86400), "d"],
    [Math.floor(seconds / 3600) % 24, "h"],
    [Math.floor(seconds / 60) % 60, "min"],
    [seconds % 60, "s"],
  ].filter(([count]) => count);
  return parts.slice(0, 2).map((part) => part.join(" ")).join(" ");
}

// An amount that fits into a card: what is large is shown without its cents, or in millions.
const money = (value) => (value < 1e5 ? cents : value < 1e7 ? whole : compact).format(value);
const ago = (ms) => `${ms < 60000 ? `${Math.round(ms / 1000)} s` : duration(ms)} ago`;
const rate = (value) => (value < 10 ? tenths : whole).format(value);
const sum = (counts) => Object.values(counts).reduce((all, each) => all + each, 0);

// The processors' names in order of preference; a processor's place, from 1 on, is its color's.
let names = [];
const colorOf = (name) => `s-${names.indexOf(name) + 1}`;

// A count of a sample; null for a processor that was not there yet.
const count = (counts, name) => (Object.hasOwn(counts, name) ? counts[name] : null);

// The strip at a sample: a color, none where that processor is not there any more.
function selected({ healthy, selected: name }) {
  if (!healthy || !name) return "s-none";
  return names.includes(name) ? colorOf(name) : null;
}

// What a chart shows at a sample: rates against the sample three seconds before.
function points(samples) {
  return samples.map((sample, index) => {
    const before = samples[Math.max(0, index - 3)];
    const seconds = (sample.at - before.at) / 1000;
    const known = seconds > 0 && seconds < 8;
    const perSecond = (now, then) =>
      known && now !== null && then !== null ? Math.max(0, now - then) / seconds : null;
    return {
      at: sample.at,
      accepted: perSecond(sample.accepted, before.accepted),
      settled: names.map((name) =>
        perSecond(count(sample.settled, name), count(before.settled, name))),
      backlog: sample.backlog,
      p50: sample.p50_ms,
      p99: sample.p99_ms,
      failed: names.map((name) => count(sample.failed, name)),
      selected: selected(sample),
    };
  });
}

function makeCharts(parent) {
  const axis = (value) => (value < 10 ? tenths : value < 1000 ? whole : compact).format(value);
  const series = (name, kind) => ({
    color: `s-${name}`, label: name, kind, value: (point) => point[name],
  });
  const stacked = (key) => names.map((name, place) => ({
    color: colorOf(name), label: name, kind: "stack", value: (point) => point[key][place],
  }));
  const charts = [
    new Chart({
      title: "Settled per second",
      series: [...stacked("settled"), series("accepted", "dashed")],
      format: axis,
      band: (point) => point.selected,
    }),
    new Chart({
      title: "Time to settle",
      series: [series("p50", "curve"), series("p99", "curve")],
      format: (value) => duration(value < 10 ? value : Math.round(value)),
      tick: (value) => (value < 1000 ? `${value} ms` : `${value / 1000} s`),
      least: 10,
      logarithmic: true,
    }),
    new Chart({
      title: "Payments waiting",
      series: [series("backlog", "area")],
      format: axis,
      least: 4,
    }),
    new Chart({
      title: "Failed tries per second",
      series: stacked("failed"),
      format: axis,
      least: 4,
    }),
  ];
  parent.replaceChildren(...charts.map((chart) => chart.figure));
  shareCursor(charts);
  return charts;
}

// Writes a text only where it changed, so that nothing flickers and a selection stays.
function write(id, ...parts) {
  const node = byId(id);
  const text = parts.map((part) => (part instanceof Node ? part.textContent : part)).join("");
  if (node.textContent !== text) node.replaceChildren(...parts);
}

const unit = (text) => make("small", "", text);

function showVerdict(status) {
  byId("verdict").dataset.level = status.level;
  write("headline", status.headline);
  document.title = `${status.headline} · Payswitch`;
  const findings = status.findings.map(({ level, text }) => {
    const item = make("li", "", text);
    item.dataset.tone = level;
    return item;
  });
  const said = JSON.stringify(status.findings);
  if (byId("findings").dataset.said !== said) {
    byId("findings").dataset.said = said;
    byId("findings").replaceChildren(...findings);
  }
  const { selection } = status;
  if (selection) {
    const since = `chosen ${ago(selection.ageMs)}`;
    write("selection", `${selection.processor} is selected, ${since}: ${selection.reason}`);
  } else {
    write("selection", status.processors ? "No selection is cached." : "");
  }
  const { durability } = status;
  write("durability", durability?.kept ? `A 202 survives ${durability.survives}.` : "");
}

function showFigures(status) {
  const { accepted, settled, backlog, timeToSettle: times, fees } = status;
  const known = accepted.perSecond !== null;
  write("accepted-rate", known ? rate(accepted.perSecond) : "–", unit("/s"));
  write("accepted-note", `${whole.format(accepted.total)} in all`);
  write("settled-rate", known ? rate(settled.perSecond) : "–", unit("/s"));
  write("settled-note", `${whole.format(settled.total)} in all`);
  write("backlog", whole.format(backlog.payments));
  const oldest = backlog.oldestAgeMs;
  write("backlog-note", oldest === null ? "nobody waits" : `the oldest for ${duration(oldest)}`);
  write("settle-time", times.p50Ms === null ? "–" : duration(times.p50Ms), unit("p50"));
  write("settle-note", times.p99Ms === null ? "nothing settled" : `p99 ${duration(times.p99Ms)}`);
  write("fees", fees ? money(fees.paid) : "–");
  const sign = fees?.extra > 0 ? "+" : "";
  const extra = fees?.extra ? `${sign}${money(fees.extra)} vs ${names[0]}` : `all at ${names[0]}'s`;
  const saved = fees?.saved ? `, ${money(fees.saved)} saved by waiting` : "";
  write("fees-note", fees ? extra + saved : "not known");
  showDead(status);
}

function showDead({ deadLetters, reconciliation }) {
  write("dead", whole.format(deadLetters));
  byId("dead").dataset.tone = deadLetters ? "warning" : "";
  const differences = reconciliation?.differences;
  const verdict = differences ? `${whole.format(differences)} differences` : "reconciled";
  const text = reconciliation ? `${verdict} ${ago(reconciliation.ageMs)}` : "never reconciled";
  write("dead-note", text);
  byId("dead-note").dataset.tone = differences ? "error" : "";
}

const BREAKER_TONES = { closed: "ok", "half-open": "warning", open: "error" };

function breakerTags(breakers) {
  return Object.entries(breakers).map(([state, workers]) =>
    tag(`${workers} ${state}`, BREAKER_TONES[state]));
}

function health(processor) {
  const seen = processor.health;
  if (!seen) return tag("never asked", "none");
  if (!seen.known) return tag("does not answer", "warning");
  return seen.failing ? tag("failing", "error") : tag("healthy", "ok");
}

function processorCard(name, processor, selection) {
  const card = make("article", `card processor ${colorOf(name)}`);
  const heading = make("h3", "", name, health(processor));
  if (selection?.processor === name) heading.append(tag("selected", "note"));
  const facts = make("dl", "");
  const fact = (label, ...value) =>
    facts.append(make("div", "", make("dt", "", label), make("dd", "", ...value)));
  const seen = processor.health;
  fact("Settled", whole.format(processor.settled));
  if (processor.waiting) fact("Wait for its answer", whole.format(processor.waiting));
  if (processor.held) fact("Wait until it works", whole.format(processor.held));
  fact("Amount", cents.format(processor.amount));
  fact("Fee", processor.fee === null ? "not known" : percent.format(processor.fee));
  fact("Least answer time", seen?.known ? duration(seen.minResponseMs) : "not known");
  fact("Health asked", seen ? ago(seen.ageMs) : "never");
  const tags = breakerTags(processor.breakers);
  fact("Circuit breakers", ...(tags.length ? tags.flatMap((each) => [each, " "]) : ["no worker"]));
  if (processor.declined) fact("Declined", whole.format(processor.declined));
  card.append(heading, facts);
  return card;
}

function processRow(process) {
  const done = {
    ingress: () => {
      const refused = sum(process.refused);
      const accepted = `${whole.format(process.accepted.new ?? 0)} accepted`;
      return refused ? `${accepted}, ${whole.format(refused)} refused` : accepted;
    },
    worker: () => {
      const { Paid = 0, Pending = 0, Declined = 0, ...failures } = process.tries;
      const failed = sum(failures);
      const settled = `${whole.format(sum(process.settled))} settled`;
      return failed ? `${settled}, ${whole.format(failed)} tries failed` : settled;
    },
  }[process.kind];
  const states = names.filter((name) => Object.hasOwn(process.breakers, name)).map((name) => {
    const state = process.breakers[name];
    return tag(`${name} ${state}`, BREAKER_TONES[state] ?? "none");
  });
  return make(
    "tr", "",
    make("td", "", process.kind),
    make("td", "", process.host),
    make("td", "number", String(process.pid)),
    make("td", "", duration(Math.round(process.upMs / 1000) * 1000)),
    make("td", "", done ? done() : ""),
    make("td", "number", process.kind === "worker" ? whole.format(process.callsUnderWay) : ""),
    make("td", "breakers", ...states),
  );
}

function nodeRow(node) {
  const lacks = node.replicas !== null && node.replicas < node.wantedReplicas;
  const state = node.problem ? tag("away", "error") : tag("answers", "ok");
  return make(
    "tr", "",
    make("td", "", node.address || "none"),
    make("td", "", state),
    make("td", "number", lacks ? tag(`${node.replicas} of ${node.wantedReplicas}`, "error")
      : String(node.replicas ?? "")),
    make("td", "", node.partitions.join(", ")),
  );
}

function showCluster(cluster) {
  byId("cluster").hidden = !cluster;
  byId("nodes").replaceChildren(...(cluster?.nodes ?? []).map(nodeRow));
}

function showStatus(status) {
  showVerdict(status);
  showCluster(status.cluster);
  document.body.classList.toggle("outdated", !status.processors);
  if (!status.processors) return;
  cents = exactly(status.currency.decimals);
  showFigures(status);
  byId("processors").replaceChildren(
    ...Object.entries(status.processors).map(([name, processor]) =>
      processorCard(name, processor, status.selection)),
  );
  byId("processes").replaceChildren(...status.processes.map(processRow));
}

// The stream.

const samples = [];
let charts = makeCharts(byId("charts"));
let source = null;
let heard = 0;

function setConnection(state, text) {
  const pill = byId("connection");
  if (pill.dataset.state === state) return;
  pill.dataset.state = state;
  pill.textContent = text;
}

function take(event) {
  heard = Date.now();
  setConnection("live", "Live");
  const news = JSON.parse(event.data);
  const newest = samples.length ? samples[samples.length - 1].at : 0;
  const fresh = news.samples.filter((sample) => sample.at > newest);
  const named = Object.keys(news.status.processors ?? {});
  const renamed = named.length && named.join() !== names.join();
  if (renamed) {
    names = named;
    charts = makeCharts(byId("charts"));
  }
  if (fresh.length || renamed) {
    samples.push(...fresh);
    samples.splice(0, samples.length - KEPT);
    const shown = points(samples);
    for (const chart of charts) chart.show(shown);
  }
  showStatus(news.status);
}

function connect() {
  source?.close();
  heard = Date.now();
  source = new EventSource("/events");
  source.onmessage = take;
}

// The browser comes again by itself, unless it was refused.
function watch() {
  if (document.hidden) return;
  const silent = Date.now() - heard;
  if (silent > SILENT_MS) setConnection("lost", "Reconnecting");
  if (silent > GIVE_UP_MS || (source?.readyState === EventSource.CLOSED && silent > AGAIN_MS)) {
    connect();
  }
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) source?.close();
  else connect();
});
connect();
setInterval(watch, 1000);

// The search.

const TONES = { settled: "ok", declined: "warning", dead: "error" };
const instant = (text) => (text ? text.replace("T", " ").replace("Z", " UTC") : "");
const between = (first, last) => duration(Math.max(0, Date.parse(last) - Date.parse(first)));

function step(title, at, note, done) {
  const item = make("li", "", make("strong", "", title));
  item.dataset.done = done;
  for (const text of [at, note]) if (text) item.append(make("div", "quiet", text));
  return item;
}

function history(record) {
  const steps = [step("Accepted", instant(record.acceptedAt), "Redis holds it", "yes")];
  const tries = `${record.tries} ${record.tries === 1 ? "try" : "tries"}`;
  if (record.processor) {
    const waited = between(record.acceptedAt, record.requestedAt);
    const note = `${waited} after it was accepted, ${tries}`;
    steps.push(step(`Sent to ${record.processor}`, instant(record.requestedAt), note, "yes"));
  } else {
    steps.push(step("Not sent yet", "", tries, "no"));
  }
  if (record.state === "dead") {
    steps.push(step("Dead letter", "", record.lastError ?? "", "dead"));
  } else if (record.state === "declined") {
    const note = `${record.processor} will not take it: ${record.declined}`;
    steps.push(step("Declined", "", note, "dead"));
  } else if (record.settledAt) {
    const took = between(record.acceptedAt, record.settledAt);
    steps.push(step("Settled", instant(record.settledAt), `${took} after it was accepted`, "yes"));
  } else {
    const error = record.lastError ? `last error: ${record.lastError}` : "";
    steps.push(step("Not settled yet", "", error, "no"));
  }
  return make("ol", "steps", ...steps);
}

function showFound(...children) {
  const close = make("button", "", "Close");
  close.type = "button";
  close.addEventListener("click", () => {
    byId("found").hidden = true;
    byId("payment").focus();
  });
  const [heading, ...rest] = children;
  heading.append(close);
  byId("found").replaceChildren(heading, ...rest);
  byId("found").hidden = false;
}

async function find(id) {
  const heading = make("h2", "", id);
  try {
    const response = await fetch(`/payments/${encodeURIComponent(id)}`);
    const record = await response.json();
    if (!response.ok) {
      heading.append(tag(response.status === 404 ? "unknown" : "not found out", "warning"));
      showFound(heading, make("p", "quiet", record.detail));
      return;
    }
    const amount = `${cents.format(record.amount)} ${record.currency}`;
    const state = tag(record.state, TONES[record.state] ?? "note");
    const title = make("h2", "", record.correlationId, state, tag(amount, "none"));
    showFound(title, history(record));
  } catch (error) {
    heading.append(tag("not found out", "warning"));
    showFound(heading, make("p", "quiet", `The endpoint did not answer: ${error.message}`));
  }
}

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = byId("payment").value.trim();
  if (id) find(id);
});
