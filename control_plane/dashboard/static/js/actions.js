// What a person can do with an operation: cancel, resume, checkpoint, pin.

import * as api from "./api.js";
import { element } from "./dom.js";
import { clock, number, whole } from "./format.js";
import { ask, attempt } from "./notices.js";

const field = (text, input) => element("label", { class: "field" }, text, input);

export function askToCancel(operation) {
  const discard = element("input", { type: "checkbox", name: "discard" });
  ask({
    title: "Cancel this training?",
    text: "It stops after the current step, with a checkpoint: nothing is lost, and it can be resumed.",
    fields: [element("label", { class: "check small" }, discard, "Without a checkpoint: discard the newest steps")],
    action: "Cancel training",
    danger: true,
    confirmed: () => api.cancel(operation.operation_id, discard.checked),
  });
}

/** @param {object[]} checkpoints those that are kept, newest first */
export function askToResume(operation, checkpoints, chosen = "") {
  const completed = operation.state === "OPERATION_STATE_COMPLETED";
  const from = element(
    "select",
    { name: "checkpoint" },
    element("option", { value: "", text: "The newest checkpoint" }),
    ...checkpoints.map((checkpoint) =>
      element("option", {
        value: checkpoint.reference.checkpoint_id,
        text: `Step ${whole(checkpoint.step)}, ${clock(checkpoint.create_time)}`,
        selected: checkpoint.reference.checkpoint_id === chosen,
      }),
    ),
  );
  const epochs = element("input", {
    type: "number",
    name: "epochs",
    min: "1",
    required: completed,
    placeholder: String(number(operation.position?.total_epochs) || ""),
  });
  ask({
    title: completed ? "Train for more epochs?" : "Resume this training?",
    text: completed
      ? "It has completed its epochs; say how many it is to have in all."
      : "It goes on with the step after the checkpoint, as if it had never stopped.",
    fields: [
      field("From", from),
      field(completed ? "Epochs in all" : "Epochs in all (leave empty: as declared)", epochs),
    ],
    action: "Resume",
    confirmed: () =>
      api.resume(operation.operation_id, {
        ...(from.value && { checkpoint_id: from.value }),
        ...(epochs.value && { overrides: { epochs: Number(epochs.value) } }),
      }),
  });
}

export const checkpointNow = (operation) =>
  attempt(
    () => api.takeCheckpoint(operation.operation_id),
    "A checkpoint is taken after the current step",
  );

export const setPinned = (checkpointId, pinned) => attempt(() => api.pin(checkpointId, pinned));
