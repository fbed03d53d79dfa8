// The scored runs for k6, without downloads:
//   k6 run -e SCENARIO=preview bench/rinha/k6.js
// Further variables: ENDPOINT, PROCESSOR_DEFAULT, PROCESSOR_FALLBACK, TOKEN, RESULT (a file) and
// TIME_SCALE, which shortens the run to try things out.

import { randomBytes } from 'k6/crypto';
import http from 'k6/http';
import exec from 'k6/execution';
import { Counter } from 'k6/metrics';
import { sleep } from 'k6';
import { inconsistencies, score } from './score.js';

const NAME = __ENV.SCENARIO || 'preview';
const SCENARIO = JSON.parse(open('./scenarios.json'))[NAME];
const SCALE = Number(__ENV.TIME_SCALE || 1);
const LENGTH = `${SCENARIO.seconds * SCALE}s`;
const ENDPOINT = __ENV.ENDPOINT || 'http://localhost:9999';
const PROCESSORS = {
  default: __ENV.PROCESSOR_DEFAULT || 'http://localhost:8001',
  fallback: __ENV.PROCESSOR_FALLBACK || 'http://localhost:8002',
};
const JSON_TYPE = { 'Content-Type': 'application/json' };
const ADMIN = { ...JSON_TYPE, 'X-Rinha-Token': __ENV.TOKEN || '123' };
const LIMIT = '1.5s';
const NOTHING = { totalRequests: 0, totalAmount: 0 };

const stages = Object.fromEntries(
  SCENARIO.stages.map((stage, number) => [
    `stage_${number}`,
    {
      exec: 'setStage',
      executor: 'per-vu-iterations',
      vus: 1,
      iterations: 1,
      startTime: `${stage.atS * SCALE}s`,
      env: { STAGE: String(number) },
    },
  ]),
);

export const options = {
  summaryTrendStats: ['med', 'p(99)', 'max', 'count'],
  scenarios: {
    payments: {
      exec: 'pay',
      executor: 'ramping-vus',
      startVUs: 1,
      stages: [{ target: SCENARIO.users, duration: LENGTH }],
      gracefulRampDown: '0s',
    },
    audits: {
      exec: 'audit',
      executor: 'constant-vus',
      vus: 1,
      duration: LENGTH,
    },
    ...stages,
  },
};

const accepted = new Counter('accepted');
const failed = new Counter('failed');
const inconsistent = new Counter('inconsistencies');
const processed = Object.fromEntries(
  Object.keys(PROCESSORS).map((name) => [
    name,
    {
      totalRequests: new Counter(`${name}_requests`),
      totalAmount: new Counter(`${name}_amount`),
    },
  ]),
);

export function setup() {
  for (const [name, url] of Object.entries(PROCESSORS)) {
    expect(http.post(`${url}/admin/purge-payments`, null, { headers: ADMIN }), `purge of ${name}`);
    set(name, { delayMs: 0, failing: false });
  }
  expect(http.post(`${ENDPOINT}/purge-payments`), 'purge of the backend');
}

export function pay() {
  const body = JSON.stringify({ correlationId: uuid(), amount: SCENARIO.cents / 100 });
  const response = http.post(`${ENDPOINT}/payments`, body, { headers: JSON_TYPE, timeout: LIMIT });
  const isAccepted = response.status >= 200 && response.status < 300;
  accepted.add(isAccepted ? 1 : 0);
  failed.add(isAccepted ? 0 : 1);
  sleep(1);
}

export function audit() {
  const now = Date.now();
  const from = new Date(now - 15000).toISOString();
  const to = new Date(now - SCENARIO.marginMs).toISOString();
  const [ours, theirs] = summaries(`?from=${from}&to=${to}`);
  inconsistent.add(inconsistencies(ours, theirs, SCENARIO.differencesCancel));
  sleep(10 * SCALE);
}

export function setStage() {
  const stage = SCENARIO.stages[Number(__ENV.STAGE)];
  for (const name of Object.keys(PROCESSORS)) set(name, stage[name]);
}

export function teardown() {
  const [ours, theirs] = summaries('');
  const totals = SCENARIO.totalsFrom === 'backend' ? ours : theirs;
  for (const [name, counters] of Object.entries(processed)) {
    counters.totalRequests.add(totals[name].totalRequests);
    counters.totalAmount.add(totals[name].totalAmount);
  }
}

export function handleSummary(data) {
  const count = (name) => (data.metrics[name] ? data.metrics[name].values.count : 0);
  const succeeded = data.metrics['http_req_duration{expected_response:true}'];
  const totals = Object.fromEntries(
    Object.keys(PROCESSORS).map((name) => [
      name,
      { totalRequests: count(`${name}_requests`), totalAmount: count(`${name}_amount`) },
    ]),
  );
  const result = score(SCENARIO, {
    processed: totals,
    accepted: count('accepted'),
    inconsistencies: count('inconsistencies'),
    p99: succeeded ? succeeded.values['p(99)'] : 0,
  });
  const document = {
    scenario: NAME,
    ...result,
    processed: totals,
    accepted: count('accepted'),
    failed: count('failed'),
    inconsistencies: count('inconsistencies'),
    p50: succeeded ? succeeded.values.med : 0,
  };
  const text = `${JSON.stringify(document, null, 2)}\n`;
  return __ENV.RESULT ? { stdout: text, [__ENV.RESULT]: text } : { stdout: text };
}

function set(name, setting) {
  const url = `${PROCESSORS[name]}/admin/configurations`;
  const params = { headers: ADMIN, timeout: LIMIT };
  const failure = JSON.stringify({ failure: setting.failing });
  expect(http.put(`${url}/delay`, JSON.stringify({ delay: setting.delayMs }), params), 'delay');
  expect(http.put(`${url}/failure`, failure, params), 'failure');
}

// The backend's summary and the processors' own; one that fails counts as zeros.
function summaries(query) {
  const get = (url, headers) => ['GET', `${url}${query}`, null, { headers, timeout: LIMIT }];
  const responses = http.batch([
    get(`${ENDPOINT}/payments-summary`, JSON_TYPE),
    ...Object.values(PROCESSORS).map((url) => get(`${url}/admin/payments-summary`, ADMIN)),
  ]);
  const [ours, ...theirs] = responses.map((each) => (each.status === 200 ? each.json() : null));
  const names = Object.keys(PROCESSORS);
  return [
    ours || Object.fromEntries(names.map((name) => [name, NOTHING])),
    Object.fromEntries(names.map((name, number) => [name, theirs[number] || NOTHING])),
  ];
}

function expect(response, what) {
  if (response.status < 200 || response.status >= 300) {
    exec.test.abort(`${what}: status ${response.status}`);
  }
}

function uuid() {
  const bytes = new Uint8Array(randomBytes(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return hex.replace(/(.{8})(.{4})(.{4})(.{4})(.{12})/, '$1-$2-$3-$4-$5');
}
