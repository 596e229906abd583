/** `npm start -- HOST:PORT`: trains a small network on digits, and says what happens. */

import type { OperationEvent } from "../generated/everstep/control/v1/operations.js";
import { OperationState } from "../generated/everstep/control/v1/operations.js";
import { TrainingStrategy } from "../generated/everstep/training/v1/strategy.js";
import { EverstepClient } from "./client.js";

const strategy = TrainingStrategy.fromPartial({
  name: "digits-from-typescript",
  seed: 7,
  data: { source: "builtin:digits", target: "label" },
  model: { factory: "mlp", args: { hidden: [64], dropout: 0.1 } },
  loss: "cross_entropy",
  optimizer: { name: "AdamW", args: { lr: 0.001 } },
  training: { epochs: 5, batchSize: 32 },
});

function line(event: OperationEvent): string {
  const happened = event.event;
  switch (happened?.$case) {
    case "stateChanged":
      return OperationState[happened.value.to];
    case "note":
      return happened.value.message;
    case "progress": {
      const word = happened.value.event;
      if (word?.$case === "epochCompleted") {
        return `epoch ${word.value.epoch + 1} ${JSON.stringify(word.value.metrics)}`;
      }
      return word?.$case ?? "";
    }
    default:
      return "";
  }
}

const client = new EverstepClient(process.argv[2] ?? "127.0.0.1:7070");
try {
  const operation = await client.createOperation(strategy);
  console.log(`operation ${operation.operationId}`);
  for await (const event of client.watch(operation.operationId)) {
    if (event.sequence !== 0) console.log(`${event.sequence} ${line(event)}`);
  }
} finally {
  client.close();
}
