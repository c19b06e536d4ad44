// Streams one completion from Headway:
//
//   node generate.mjs --tier chat "Once upon a time"
//
// The text goes to standard output, everything about the promise to standard error.

import { once } from "node:events";
import { parseArgs } from "node:util";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import {
  AdmissionState,
  FinalState,
  InferenceService,
  WhenNotPromised,
} from "./gen/headway/v1/inference_service_pb.js";

const USAGE =
  "usage: node generate.mjs [--address 127.0.0.1:7400] [--tier NAME] [--refuse] [--max-tokens N] PROMPT";

const milliseconds = (duration) => (duration ? `${durationMs(duration).toFixed(0)} ms` : "unknown");

function describeAdmission(admission) {
  const promise =
    admission.state === AdmissionState.GUARANTEED
      ? `guaranteed: TTFT ${milliseconds(admission.ttft)}, TPOT ${milliseconds(admission.tpot)}`
      : `best effort (${admission.bindingConstraint})`;
  return `${promise}; predicted TTFT ${milliseconds(admission.predictedTtft)}; request ${admission.requestId}`;
}

function describeFinished(finished) {
  const { usage, timings } = finished;
  const failure = finished.errorReason && ` ${finished.errorReason}: ${finished.errorMessage}`;
  return (
    `${FinalState[finished.state]}${failure}; ${usage?.numOutputTokens ?? 0} tokens; ` +
    `TTFT ${milliseconds(timings?.ttft)}, TPOT ${milliseconds(timings?.tpot)}`
  );
}

// The server says what went wrong in typed messages beside the status; `findDetails` decodes
// those of one type.
function describeError(error) {
  const lines = [`${Code[error.code]}: ${error.rawMessage}`];
  for (const info of error.findDetails(ErrorInfoSchema)) {
    lines.push(`reason: ${info.reason}`);
    const tierThatFits = info.metadata.tier_that_fits;
    if (tierThatFits) lines.push(`tier that would be promised now: ${tierThatFits}`);
  }
  for (const retry of error.findDetails(RetryInfoSchema)) {
    lines.push(`retry after: ${milliseconds(retry.retryDelay)}`);
  }
  for (const badRequest of error.findDetails(BadRequestSchema)) {
    for (const violation of badRequest.fieldViolations) {
      lines.push(`${violation.field}: ${violation.description}`);
    }
  }
  return lines.join("\n");
}

// Resolves once the text is on its way, so that a slow reader slows the stream down.
async function print(text) {
  if (!process.stdout.write(text)) await once(process.stdout, "drain");
}

async function generate(address, request, signal) {
  const transport = createGrpcTransport({ baseUrl: `http://${address}` });
  const client = createClient(InferenceService, transport);
  for await (const { event } of client.generate(request, { signal })) {
    switch (event.case) {
      case "admission":
        console.error(describeAdmission(event.value));
        break;
      case "tokens":
        await print(event.value.text);
        break;
      case "finished":
        await print("\n");
        console.error(describeFinished(event.value));
        break;
    }
  }
}

function commandLine() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      address: { type: "string", default: "127.0.0.1:7400" },
      tier: { type: "string", default: "" },
      refuse: { type: "boolean", default: false },
      "max-tokens": { type: "string", default: "64" },
    },
  });
  const maxTokens = Number(values["max-tokens"]);
  if (positionals.length !== 1 || !Number.isInteger(maxTokens) || maxTokens < 1) {
    throw new TypeError("one prompt and a positive number of tokens, please");
  }
  const request = {
    promptText: positionals[0],
    tier: values.tier,
    whenNotPromised: values.refuse ? WhenNotPromised.REFUSE : WhenNotPromised.BEST_EFFORT,
    sampling: { maxTokens },
  };
  return { address: values.address, request };
}

async function main() {
  let address, request;
  try {
    ({ address, request } = commandLine());
  } catch (error) {
    console.error(`${error.message}\n${USAGE}`);
    return 2;
  }
  // Leaving the call cancels the request on every worker.
  const interrupted = new AbortController();
  process.once("SIGINT", () => interrupted.abort());
  try {
    await generate(address, request, interrupted.signal);
    return 0;
  } catch (error) {
    console.error(describeError(ConnectError.from(error)));
    return 1;
  }
}

process.exitCode = await main();
