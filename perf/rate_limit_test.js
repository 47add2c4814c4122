// A burst beyond the limits: what is refused is refused with 429, a Retry-After and the RateLimit headers, and nothing
// fails otherwise. See k6_lib.js for how to start it.
import http from 'k6/http';
import { check } from 'k6';
import { Counter, Rate } from 'k6/metrics';
import { params, url } from './k6_lib.js';

const accepted = new Counter('accepted');
const refused = new Counter('refused');
const asSpecified = new Rate('as_specified');

/** @type {import('k6/options').Options} */
export const options = {
  scenarios: {
    burst: { executor: 'shared-iterations', vus: 100, iterations: Number(__ENV.BURST || 5000), maxDuration: '1m' },
  },
  thresholds: {
    as_specified: ['rate==1'],
    // Both happen: the limit lets some through, and keeps others out.
    accepted: ['count>0'],
    refused: ['count>0'],
  },
};

// A refusal is what is asked for here.
http.setResponseCallback(http.expectedStatuses(200, 429));

export default function () {
  const answer = http.get(`${url}/v1/tools`, params('GET /v1/tools'));
  if (answer.status === 429) {
    refused.add(1);
    asSpecified.add(
      check(answer, {
        'says when to come again': (r) => Number(r.headers['Retry-After']) >= 1,
        'names the rule': (r) => r.json('code') === 'rate_limited',
      }),
    );
  } else {
    accepted.add(1);
    asSpecified.add(check(answer, { accepted: (r) => r.status === 200 }));
  }
}
