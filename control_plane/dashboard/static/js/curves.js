// The curves of one training, from its events in the order of its log.

import { number } from "./format.js";

/** Points of a live curve that are kept; beyond, the older half is thinned out. */
const MOST_POINTS = 8000;

class Series {
  steps = [];
  values = [];

  add(step, value) {
    let end = this.steps.length;
    while (end && this.steps[end - 1] > step) end -= 1;
    const replaces = end && this.steps[end - 1] === step;
    const at = replaces ? end - 1 : end;
    this.steps.splice(at, replaces ? 1 : 0, step);
    this.values.splice(at, replaces ? 1 : 0, value);
    if (this.steps.length > MOST_POINTS) this.#thin();
  }

  dropFrom(step) {
    let end = this.steps.length;
    while (end && this.steps[end - 1] >= step) end -= 1;
    this.steps.length = end;
    this.values.length = end;
  }

  #thin() {
    const keep = (_, index) => index >= MOST_POINTS / 2 || index % 2 === 0;
    this.steps = this.steps.filter(keep);
    this.values = this.values.filter(keep);
  }
}

/**
 * Steps that are done again (by a new attempt, a new process, after a roll-back) take the place of
 * what was there: the log's order decides, and each curve stays one line.
 */
export class Curves {
  /** By step: loss, learning_rate, gradient_norm, examples_per_second. */
  bySteps = new Map();
  /** By epoch: whatever the training measures, and its learning_rate. */
  byEpochs = new Map();
  stepsPerEpoch = 0;
  #attempt = 0;
  #run = 0;
  #drawnRun = 0;

  /** Takes one TrainingProgress. */
  apply(progress) {
    const attempt = number(progress.attempt);
    if (attempt > this.#attempt) {
      this.#attempt = attempt;
      this.#run += 1;
    }
    if (progress.training_restarted || progress.warning?.reason === "ROLLED_BACK") this.#run += 1;
    const position = progress.position ?? {};
    if (number(position.total_steps) && number(position.total_epochs)) {
      this.stepsPerEpoch = number(position.total_steps) / number(position.total_epochs);
    }
    const step = number(position.step);
    if (progress.step_metrics) {
      this.#beginRun(step);
      const metrics = progress.step_metrics;
      this.#add(this.bySteps, "loss", step, number(metrics.loss));
      this.#add(this.bySteps, "learning_rate", step, number(metrics.learning_rate));
      this.#add(this.bySteps, "examples_per_second", step, number(metrics.examples_per_second));
      if (metrics.gradient_norm !== undefined) {
        this.#add(this.bySteps, "gradient_norm", step, number(metrics.gradient_norm));
      }
    } else if (progress.epoch_completed) {
      this.#beginRun(step);
      const done = progress.epoch_completed;
      for (const [name, value] of Object.entries(done.metrics ?? {})) {
        this.#add(this.byEpochs, name, step, number(value));
      }
      this.#add(this.byEpochs, "learning_rate", step, number(done.learning_rate));
    }
  }

  #beginRun(step) {
    if (this.#run === this.#drawnRun) return;
    this.#drawnRun = this.#run;
    for (const series of [...this.bySteps.values(), ...this.byEpochs.values()]) {
      series.dropFrom(step);
    }
  }

  #add(curves, name, step, value) {
    let series = curves.get(name);
    if (!series) curves.set(name, (series = new Series()));
    series.add(step, value);
  }
}
