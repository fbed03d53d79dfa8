// The worker as the manuals of BullMQ and undici say: `node worker.js`.

import { Worker } from "bullmq";
import { Pool } from "undici";

// Jobs under way at a time; the manual says to raise it for work that waits for others:
// https://docs.bullmq.io/guide/workers/concurrency
const CONCURRENCY = 100;

const HEADERS = { "content-type": "application/json" };

const processor = new Pool(process.env.PAYMENT_PROCESSOR_URL_DEFAULT, {
  connections: CONCURRENCY,
  headersTimeout: 10_000,
  bodyTimeout: 10_000,
});

async function pay({ data }) {
  const { correlationId, amount } = data;
  const requestedAt = new Date().toISOString();
  const response = await processor.request({
    method: "POST",
    path: "/payments",
    headers: HEADERS,
    body: JSON.stringify({ correlationId, amount, requestedAt }),
  });
  // An unread body holds its connection.
  await response.body.dump();
  if (response.statusCode >= 300) {
    throw new Error(`the processor answered ${response.statusCode}`); // the job is run again
  }
}

const worker = new Worker("payments", pay, {
  // https://docs.bullmq.io/guide/going-to-production
  connection: { url: process.env.REDIS_URL, maxRetriesPerRequest: null },
  concurrency: CONCURRENCY,
});
worker.on("error", (error) => console.error(error.message));

process.on("SIGTERM", async () => {
  await worker.close();
  await processor.close();
});
