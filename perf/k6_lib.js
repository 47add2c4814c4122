// What the k6 tests share. Set AGENTHUB_URL and AGENTHUB_CLIENT_KEY, for example:
//     source .agenthub/env
//     k6 run -e AGENTHUB_URL -e AGENTHUB_CLIENT_KEY perf/load_test.js
// k6 is no part of this project; `make slo` puts the same questions without it.
import http from 'k6/http';
import { check, fail } from 'k6';

export const url = __ENV.AGENTHUB_URL || 'http://127.0.0.1:8080';

/**
 * Headers of a request; `name` is what k6 files the request under.
 * @param {string} name
 * @param {Record<string, string>} more
 */
export function params(name, more = {}) {
  const key = __ENV.AGENTHUB_CLIENT_KEY;
  if (!key) {
    fail('AGENTHUB_CLIENT_KEY is not set');
  }
  return {
    headers: { Authorization: `Bearer ${key}`, 'Content-Type': 'application/json', ...more },
    tags: { name },
    timeout: '60s',
  };
}

/**
 * A new session's id.
 * @returns {string}
 */
export function session() {
  const answer = http.post(`${url}/v1/sessions`, '{}', params('POST /v1/sessions'));
  if (!check(answer, { 'session created': (r) => r.status === 201 })) {
    fail(`session: ${answer.status} ${answer.body}`);
  }
  return String(answer.json('session_id'));
}

/**
 * A key that no other iteration sends.
 * @returns {string}
 */
export function idempotencyKey() {
  return `k6-${__VU}-${__ITER}-${Date.now()}-${Math.random().toString(36).slice(2)}`;
}

/** A goal that takes one model call and one tool. */
export const GOAL = 'Get ROAS for advertiser 123 over 7 days';
