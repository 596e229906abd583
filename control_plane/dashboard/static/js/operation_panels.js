// The parts of an operation's page: overview, tiles, attempts, history, outcome.

import { askToCancel, askToResume, checkpointNow } from "./actions.js";
import { badge, element } from "./dom.js";
import { FINAL, ago, bytes, clock, duration, metric, metricName, number, percent, plural, stateOf, title, troubleOf, whole } from "./format.js";
import { riskWords } from "./training_log.js";

/** Name, state and what can be done; parts for `Children`. */
export function headParts(operation, kept, resumable) {
  const state = stateOf(operation);
  const id = operation.operation_id;
  const name = operation.display_name || id;
  const labels = Object.entries(operation.labels ?? {});
  const parent = operation.parent_operation_id;
  const created = ago(operation.create_time);
  return [
    {
      key: "name",
      content: [name, state, labels, created],
      build: () => {
        const shown = labels.map(([label, value]) =>
          element("span", { class: "label", text: value ? `${label}: ${value}` : label }),
        );
        const fork = parent
          ? element("a", { href: `#/operations/${encodeURIComponent(parent)}`, text: `forked from ${parent}` })
          : null;
        return element(
          "div",
          {},
          element("div", { class: "title" }, element("h1", { text: name }), badge(state)),
          element(
            "div",
            { class: "detail" },
            element("span", { class: "mono", text: id }),
            element("span", { text: `created ${created}` }),
            fork,
            ...shown,
          ),
        );
      },
    },
    {
      key: "buttons",
      content: [state, resumable, kept],
      build: () => element("div", { class: "buttons" }, ...buttons(operation, kept, state, resumable)),
    },
  ];
}

function buttons(operation, kept, state, resumable) {
  const button = (text, possible, act, look) =>
    element("button", { text, class: look, disabled: !possible, on: { click: act } });
  if (FINAL.has(state)) {
    const text = state === "completed" ? "Train longer" : "Resume";
    return [button(text, resumable, () => askToResume(operation, kept), "main")];
  }
  return [
    button("Checkpoint now", state === "running", () => checkpointNow(operation)),
    button("Cancel", state !== "cancelling", () => askToCancel(operation), "danger"),
  ];
}

/** How far it is: the bar, and what is done right now. */
export function overview(operation, log, state) {
  const position = log.position;
  const fraction = Math.max(number(position.fraction), number(operation.position?.fraction));
  const fill = element("span");
  fill.style.width = `${100 * fraction}%`;
  const facts = [];
  if (number(position.total_epochs)) {
    const epoch = Math.min(number(position.epoch) + 1, number(position.total_epochs));
    facts.push(`epoch ${epoch} of ${whole(position.total_epochs)}`);
    facts.push(`step ${whole(position.step)} of ${whole(position.total_steps)}`);
  }
  if (log.step) facts.push(`${whole(log.step.examples_per_second)} examples/s`);
  const now = [log.phase || (state === "pending" && operation.waiting_for ? `waits for ${operation.waiting_for}` : "")];
  if (log.moved) now.push(`${bytes(log.moved.done_bytes)} of ${bytes(log.moved.total_bytes)}`);
  if (state === "running" && position.eta_seconds !== undefined) now.push(`${duration(position.eta_seconds)} left`);
  return [
    element(
      "div",
      { class: "line" },
      element("span", { class: "percent", text: percent(fraction) }),
      element("span", { class: "soft", text: now.filter(Boolean).join(" · ") }),
    ),
    element(
      "div",
      { class: "bar", role: "progressbar", "aria-valuenow": String(Math.round(100 * fraction)), data: { state } },
      fill,
    ),
    element("div", { class: "line soft small" }, element("span", { text: facts.join(" · ") }), times(operation)),
    ...trouble(operation),
  ];
}

/** Why nothing new comes, where that is known. */
function trouble(operation) {
  const name = troubleOf(operation);
  if (!name) return [];
  const { since, message } = operation.liveness;
  return [element("p", { class: "alert small", id: "trouble" }, `${name} since ${clock(since)}: ${message}`)];
}

function times(operation) {
  const end = operation.end_time ? Date.parse(operation.end_time) : Date.now();
  const seconds = (end - Date.parse(operation.create_time)) / 1000;
  return element("span", { text: `${duration(Math.max(0, seconds))} since it was created` });
}

function tile(name, main, more = "", level = "") {
  return element(
    "div",
    { class: "tile", data: { tile: name, level } },
    element("dt", { text: name }),
    element("dd", {}, main, element("div", { class: "more", text: more })),
  );
}

/** The figures that people look for first. */
export function tiles(operation, log, state) {
  if (operation.result) return [];
  const made = [];
  const metrics = { ...operation.metrics, ...log.lastEpoch?.metrics };
  if (log.step) made.push(tile("Loss", metric(log.step.loss), "of the newest step"));
  for (const name of Object.keys(metrics).filter((key) => key.startsWith("val_")).slice(0, 2)) {
    made.push(tile(title(name), metric(metrics[name]), "of the newest epoch"));
  }
  const rate = log.step?.learning_rate ?? metrics.learning_rate;
  if (rate !== undefined) made.push(tile("Learning rate", metric(rate)));
  const risk = state === "running" || state === "cancelling" ? riskWords(log.atRisk) : null;
  if (risk) {
    made.push(tile("Work at risk", risk.main, risk.more, risk.upload > 60 ? "warn" : ""));
    made.push(tile("Training waited", percent(risk.stall), "of its time for snapshots"));
  }
  const latest = operation.latest_checkpoint;
  if (latest) {
    made.push(
      tile(
        "Latest checkpoint",
        `Step ${whole(latest.step)}`,
        risk?.upload ? `the next is on its way for ${duration(risk.upload)}` : bytes(latest.logical_bytes),
      ),
    );
  }
  return made;
}

export function attemptsTable(operation) {
  const heads = ["Attempt", "Trainer", "Began", "Took", "Steps", "End"];
  const rows = [...(operation.attempts ?? [])].reverse().map((attempt) => {
    const end = attempt.end_time ? Date.parse(attempt.end_time) : Date.now();
    const took = (end - Date.parse(attempt.start_time)) / 1000;
    return element(
      "tr",
      {},
      element("td", { text: String(attempt.number) }),
      element("td", { text: attempt.trainer_id }),
      element("td", { text: clock(attempt.start_time) }),
      element("td", { text: duration(Math.max(0, took)) }),
      element("td", { text: `${whole(attempt.first_step)} – ${whole(attempt.last_step)}` }),
      element("td", { class: "prose" }, attempt.end ? attempt.end.toLowerCase().replaceAll("_", " ") : "running",
        attempt.end_reason ? element("div", { class: "soft small", text: attempt.end_reason }) : null),
    );
  });
  return element(
    "table",
    {},
    element("thead", {}, element("tr", {}, ...heads.map((text) => element("th", { text })))),
    element("tbody", {}, ...rows),
  );
}

/** The log in lines, newest first; parts for `Children`. */
export function historyLines(log) {
  const lines = log.lines.map((line, index) => ({ key: `${line.time} ${index}`, ...line })).reverse();
  if (log.firstSequence > 1) {
    const text = `What is older than event ${whole(log.firstSequence)} is not kept any more.`;
    lines.push({ key: "compacted", time: null, text, kind: "warn" });
  }
  return lines.map(({ key, time, text, kind }) => ({
    key,
    content: text,
    build: () =>
      element(
        "li",
        { data: { kind, line: key } },
        element("time", time ? { datetime: time, text: clock(time) } : {}),
        element("span", { text }),
      ),
  }));
}

/** What it came to: the result, or the error; null while it runs. */
export function outcome(operation) {
  const { error, result } = operation;
  if (error) {
    const violations = (error.violations ?? []).map(({ field, description }) =>
      element("li", {}, element("span", { class: "mono", text: field }), ` ${description}`),
    );
    return element(
      "section",
      { class: "card", id: "outcome" },
      element("h2", { text: "Why it failed" }),
      element("p", { class: "alert" }, `${error.message ?? ""} (${error.reason ?? ""})`),
      violations.length ? element("ul", { class: "small" }, ...violations) : null,
      error.detail
        ? element("details", {}, element("summary", { class: "small", text: "Traceback" }), element("pre", { text: error.detail }))
        : null,
    );
  }
  if (!result) return null;
  const facts = [plural(result.epochs, "epoch"), plural(result.steps, "step")];
  if (result.best_value !== undefined) {
    facts.push(`best ${metricName(result.monitor)} ${metric(result.best_value)} in epoch ${number(result.best_epoch) + 1}`);
  }
  if (result.stopped_early) facts.push(result.stop_reason);
  const measured = Object.entries(result.metrics ?? {}).sort(([first], [second]) => first.localeCompare(second));
  return element(
    "section",
    { class: "card", id: "outcome" },
    element("div", { class: "card-head" }, element("h2", { text: "Result" }), element("span", { class: "soft small", text: facts.join(" · ") })),
    element("dl", { class: "tiles" }, ...measured.map(([name, value]) => tile(title(name), metric(value)))),
    result.digests?.state
      ? element("p", { class: "soft small" }, "State ", element("span", { class: "mono", text: result.digests.state }))
      : null,
  );
}
