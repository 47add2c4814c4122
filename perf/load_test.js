// The service levels under load: requests without a model (p95 < 300 ms, 99.9 % succeed), and runs of one tool
// (p95 < 2.5 s from the goal to the result, 99.9 % succeed). See k6_lib.js for how to start it.
import http from 'k6/http';
import { check } from 'k6';
import { Rate, Trend } from 'k6/metrics';
import { GOAL, idempotencyKey, params, session, url } from './k6_lib.js';

const requests = new Rate('requests_ok');
const runs = new Rate('runs_ok');
const runTime = new Trend('run_time', true);

const duration = __ENV.DURATION || '1m';

/** @type {import('k6/options').Options} */
export const options = {
  scenarios: {
    no_model: {
      executor: 'constant-arrival-rate',
      exec: 'noModel',
      rate: Number(__ENV.REQUESTS_PER_SECOND || 50),
      timeUnit: '1s',
      duration,
      preAllocatedVUs: 50,
      maxVUs: 200,
    },
    single_tool: {
      executor: 'constant-arrival-rate',
      exec: 'singleTool',
      rate: Number(__ENV.RUNS_PER_SECOND || 10),
      timeUnit: '1s',
      duration,
      preAllocatedVUs: 50,
      maxVUs: 200,
    },
  },
  thresholds: {
    'http_req_duration{scenario:no_model}': ['p(95)<300'],
    requests_ok: ['rate>=0.999'],
    run_time: ['p(95)<2500'],
    runs_ok: ['rate>=0.999'],
  },
};

/** @returns {{ session: string }} */
export function setup() {
  return { session: session() };
}

/** @param {{ session: string }} data */
export function noModel(data) {
  const which = [
    () => http.get(`${url}/v1/sessions/${data.session}`, params('GET /v1/sessions/{session_id}')),
    () => http.get(`${url}/v1/runs?limit=20`, params('GET /v1/runs')),
    () => http.get(`${url}/v1/tools`, params('GET /v1/tools')),
    () => http.post(`${url}/v1/sessions`, '{}', params('POST /v1/sessions')),
  ];
  const answer = which[__ITER % which.length]();
  requests.add(check(answer, { 'request succeeded': (r) => r.status === 200 || r.status === 201 }));
}

export function singleTool() {
  const began = Date.now();
  const body = JSON.stringify({ session_id: session(), goal: GOAL });
  const headers = { 'Idempotency-Key': idempotencyKey(), Prefer: 'wait=30' };
  const answer = http.post(`${url}/v1/runs`, body, params('POST /v1/runs', headers));
  const ok = check(answer, {
    'run succeeded': (r) => r.status === 200 && r.json('status') === 'succeeded',
  });
  runs.add(ok);
  runTime.add(Date.now() - began);
}
