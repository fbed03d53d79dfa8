// POST /payments as the manuals of Fastify and BullMQ say: `node ingress.js PORT`.

import Fastify from "fastify";
import { Queue } from "bullmq";

// As long as Payswitch keeps a settled payment: until then the same id is not queued again.
// https://docs.bullmq.io/guide/jobs/job-ids, https://docs.bullmq.io/guide/queues/auto-removal-of-jobs
const KEPT_S = 7 * 24 * 3600;

const queue = new Queue("payments", {
  connection: {
    url: process.env.REDIS_URL,
    // Without Redis an add fails at once: https://docs.bullmq.io/patterns/failing-fast-when-redis-is-down
    enableOfflineQueue: false,
    // All adds of a turn of the loop go out together: https://github.com/redis/ioredis#autopipelining
    enableAutoPipelining: true,
  },
  defaultJobOptions: {
    // https://docs.bullmq.io/guide/retrying-failing-jobs
    attempts: 15,
    backoff: { type: "exponential", delay: 1000 },
    removeOnComplete: { age: KEPT_S },
  },
});
queue.on("error", (error) => console.error(error.message));

// Schemas make Fastify parse, check and write JSON fast:
// https://fastify.dev/docs/latest/Reference/Validation-and-Serialization
const schema = {
  body: {
    type: "object",
    required: ["correlationId", "amount"],
    properties: {
      correlationId: { type: "string", format: "uuid" },
      amount: { type: "number", exclusiveMinimum: 0 },
    },
  },
  response: { 202: { type: "object", properties: { status: { type: "string" } } } },
};

const app = Fastify();

app.post("/payments", { schema }, async (request, reply) => {
  try {
    await queue.add("pay", request.body, { jobId: request.body.correlationId });
  } catch (error) {
    return reply.code(503).send({ error: error.message });
  }
  return reply.code(202).send({ status: "queued" });
});

process.on("SIGTERM", async () => {
  await app.close();
  await queue.close();
});

await queue.waitUntilReady();
await app.listen({ host: "127.0.0.1", port: Number(process.argv[2]) });
