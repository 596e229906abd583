// Which charts there are: one for the loss, one for each other metric, and what steps tell.

import { Chart, seriesColour } from "./charts.js";
import { metricName, title as titleOf } from "./format.js";

const STEP_TITLES = {
  learning_rate: "Learning rate",
  gradient_norm: "Gradient norm",
  examples_per_second: "Examples per second",
};

/** The chart that a metric of an epoch belongs to: `val_accuracy` and `train_accuracy` share one. */
const family = (name) => name.replace(/^(train|val|validation|test)_/, "");

/**
 * `{title: [{name, by, dots}]}`, loss first. Of one training, the curves of a family share a
 * chart; of several, each metric has its own.
 */
function arrange(curves) {
  const alone = curves.length === 1;
  const charts = new Map([["Loss", []]]);
  if (curves.some(({ bySteps }) => bySteps.has("loss"))) {
    charts.get("Loss").push({ name: "loss", by: "bySteps" });
  } else if (!alone) charts.clear();
  const names = new Set(curves.flatMap(({ byEpochs }) => [...byEpochs.keys()]));
  names.delete("learning_rate");
  for (const name of [...names].sort(byRole)) {
    const title = titleOf(alone ? family(name) : name);
    if (!charts.has(title)) charts.set(title, []);
    charts.get(title).push({ name, by: "byEpochs", dots: true });
  }
  for (const [name, title] of Object.entries(STEP_TITLES)) {
    if (curves.some(({ bySteps }) => bySteps.has(name))) charts.set(title, [{ name, by: "bySteps" }]);
    else if (curves.some(({ byEpochs }) => byEpochs.has(name))) {
      charts.set(title, [{ name, by: "byEpochs", dots: true }]);
    }
  }
  return charts;
}

/** Training before validation, then by name. */
const byRole = (first, second) =>
  Number(!first.startsWith("train_")) - Number(!second.startsWith("train_")) ||
  first.localeCompare(second);

export class MetricCharts {
  #charts = new Map();

  constructor(host) {
    this.host = host;
  }

  /**
   * @param {{name: string, curves: object, marks: object[]}[]} trainings one, or several to compare
   * @param {{by: "step" | "epoch", log: boolean}} options
   */
  show(trainings, { by, log }) {
    const arranged = arrange(trainings.map(({ curves }) => curves));
    const alone = trainings.length === 1;
    let place = 0;
    for (const [title, wanted] of arranged) {
      const series = wanted.flatMap(({ name, by: kind, dots }, index) =>
        trainings.map(({ name: training, curves }, which) => {
          const found = curves[kind].get(name);
          return {
            label: alone ? metricName(name) : training,
            colour: seriesColour(alone ? index : which),
            x: (found?.steps ?? []).map((step) => scale(step, curves, by)),
            y: found?.values ?? [],
            dots: dots && (found?.steps.length ?? 0) <= 60,
            thin: kind === "bySteps" && wanted.length > 1,
          };
        }),
      );
      const marks = trainings.flatMap(({ curves, marks: made }) =>
        made.map((mark) => ({ ...mark, x: scale(mark.step, curves, by) })),
      );
      this.#chart(title, place).show(series, marks, { xName: by, log: log && /loss$/i.test(title) });
      place += 1;
    }
  }

  close() {
    this.#charts.forEach((chart) => chart.close());
  }

  #chart(title, place) {
    let chart = this.#charts.get(title);
    if (!chart) {
      chart = new Chart(title, { height: title === "Loss" ? 280 : 180 });
      if (title === "Loss") chart.figure.classList.add("wide");
      this.#charts.set(title, chart);
      this.host.insertBefore(chart.figure, this.host.children[place] ?? null);
    }
    return chart;
  }
}

const scale = (step, { stepsPerEpoch }, by) =>
  by === "epoch" && stepsPerEpoch ? step / stepsPerEpoch : step;
