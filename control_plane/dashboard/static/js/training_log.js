// What the page knows of one operation from its log.

import { Curves } from "./curves.js";
import { bytes, duration, metric, number, plural, whole, word } from "./format.js";

/** Lines that are shown of the log; all of them can be asked for with the command line. */
const MOST_LINES = 300;

export class TrainingLog {
  curves = new Curves();
  /** The newest of each: TrainingPosition, WorkAtRisk, StepMetrics, and the phase in a word. */
  position = {};
  atRisk = null;
  step = null;
  phase = "";
  moved = null;
  lastEpoch = null;
  /** By id, in the order in which they were committed: {checkpoint, stall, upload, time}. */
  checkpoints = new Map();
  /** Marks on the curves: {kind, step, text}; attempts are marked by the operation itself. */
  marks = [];
  /** Lines for people, oldest first: {time, text, kind}. */
  lines = [];
  sequence = 0;
  firstSequence = 1;

  /** Takes one OperationEvent; true when it was a durable one. */
  apply(event) {
    const sequence = number(event.sequence);
    if (sequence) this.sequence = sequence;
    if (event.progress) this.#applyProgress(event.progress, event.time);
    else if (event.state_changed) this.#applyState(event);
    else if (event.note) this.#say(event.time, event.note.message, "warn");
    return sequence > 0;
  }

  /** The log begins later: what is older is not kept any more. */
  compacted(firstSequence) {
    this.firstSequence = firstSequence;
    this.sequence = firstSequence - 1;
  }

  #applyState({ state_changed: changed, time }) {
    const state = word(changed.to, "OPERATION_STATE_");
    const attempt = changed.attempt ? ` (attempt ${changed.attempt})` : "";
    const text = changed.message ? `: ${changed.message}` : "";
    const kind = { failed: "bad", completed: "good" }[state];
    const lost = changed.reason === "ATTEMPT_LOST" ? "warn" : kind;
    this.#say(time, `${state}${attempt}${text}`, lost ?? "");
    if (state !== "running" && state !== "cancelling") {
      this.atRisk = null;
      this.step = null;
      this.phase = "";
    }
  }

  #applyProgress(progress, time) {
    this.curves.apply(progress);
    if (number(progress.position?.total_steps)) this.position = progress.position;
    if (progress.at_risk) this.atRisk = progress.at_risk;
    this.moved = progress.phase_progress ?? null;
    if (progress.step_metrics) this.step = progress.step_metrics;
    if (progress.phase_changed) this.phase = word(progress.phase_changed.phase, "PHASE_");
    if (progress.epoch_completed) this.lastEpoch = progress.epoch_completed;
    if (progress.checkpoint_committed) this.#commit(progress.checkpoint_committed, time);
    if (progress.checkpoint_delayed) {
      this.#say(time, `checkpoint delayed: ${progress.checkpoint_delayed.message ?? ""}`, "warn");
    }
    if (progress.warning) this.#say(time, progress.warning.message ?? "", "warn");
    if (progress.training_restarted) this.#restart(progress.training_restarted, time);
    if (progress.failed) {
      this.#say(time, `failed: ${progress.failed.error?.message ?? ""}`, "bad");
    }
  }

  #restart({ cause, from_step: fromStep, source }, time) {
    const step = number(fromStep);
    const text = `training process died (${cause}); it goes on after step ${whole(step)} from ${source}`;
    this.marks.push({ kind: "restart", step, text });
    this.#say(time, text, "warn");
  }

  #commit({ checkpoint, stall_seconds: stall, upload_seconds: upload }, time) {
    const id = checkpoint.reference?.checkpoint_id;
    if (!id || this.checkpoints.has(id)) return;
    const step = number(checkpoint.step);
    this.checkpoints.set(id, { checkpoint, stall: number(stall), upload: number(upload), time });
    const text =
      `checkpoint at step ${whole(step)}: ${bytes(checkpoint.logical_bytes)}, ` +
      `${bytes(checkpoint.uploaded_bytes)} uploaded, training waited ${duration(stall)}`;
    this.marks.push({ kind: "checkpoint", step, text });
  }

  #say(time, text, kind) {
    this.lines.push({ time, text, kind });
    if (this.lines.length > MOST_LINES) this.lines.shift();
  }
}

/** What would be lost, in words; null when nothing runs. */
export function riskWords(atRisk) {
  if (!atRisk) return null;
  const steps = number(atRisk.steps_since_checkpoint);
  const inMemory = number(atRisk.steps_since_snapshot);
  return {
    main: plural(steps, "step"),
    more:
      `${duration(atRisk.seconds_since_checkpoint)} since a checkpoint` +
      (inMemory < steps ? `; ${whole(inMemory)} if only the process dies` : ""),
    upload: number(atRisk.upload_lag_seconds),
    stall: number(atRisk.stall_share),
  };
}

/** The newest metrics of an operation for a line in a list: at most two. */
export function headline(metrics = {}) {
  const names = ["loss", "val_loss", "val_accuracy", ...Object.keys(metrics)];
  const shown = [...new Set(names)].filter(
    (name) => name in metrics && !/learning_rate|examples_per_second|gradient_norm/.test(name),
  );
  return shown.slice(0, 2).map((name) => `${name.replaceAll("_", " ")} ${metric(metrics[name])}`);
}
