// Streams: each follows one run from `run.queued` to its terminal event, with event ids that rise. A run's
// stream ends after its terminal event, so that a plain request reads it. See k6_lib.js for how to start it.
import http from 'k6/http';
import { check } from 'k6';
import { Rate, Trend } from 'k6/metrics';
import { GOAL, params, session, url } from './k6_lib.js';

const streams = new Rate('streams_ok');
const firstByte = new Trend('stream_first_byte', true);

/** @type {import('k6/options').Options} */
export const options = {
  scenarios: {
    streams: {
      executor: 'constant-vus',
      vus: Number(__ENV.STREAMS || 100),
      duration: __ENV.DURATION || '1m',
    },
  },
  thresholds: {
    streams_ok: ['rate>=0.999'],
    stream_first_byte: ['p(95)<300'],
  },
};

/**
 * The events of a stream's text. An id is `<epoch>-<number>`.
 * @param {string} text
 */
function events(text) {
  const found = [];
  for (const block of text.split('\n\n')) {
    const type = block.match(/^event: (\S+)$/m);
    const id = block.match(/^id: (\d+)-(\d+)$/m);
    if (type && id) {
      found.push({ type: type[1], epoch: Number(id[1]), number: Number(id[2]) });
    }
  }
  return found;
}

/**
 * Whether `b` comes after `a`.
 * @param {{ epoch: number, number: number }} a
 * @param {{ epoch: number, number: number }} b
 */
function after(a, b) {
  return b.epoch > a.epoch || (b.epoch === a.epoch && b.number > a.number);
}

export default function () {
  const body = JSON.stringify({ session_id: session(), goal: GOAL });
  const submitted = http.post(`${url}/v1/runs`, body, params('POST /v1/runs'));
  if (!check(submitted, { 'run accepted': (r) => r.status === 202 })) {
    streams.add(false);
    return;
  }
  const run = String(submitted.json('run_id'));
  const answer = http.get(`${url}/v1/stream?run_id=${run}`, params('GET /v1/stream'));
  firstByte.add(answer.timings.waiting);
  const seen = events(String(answer.body));
  streams.add(
    check(seen, {
      'begins with the run': (all) => all.length > 0 && all[0].type === 'run.queued',
      'ends with the run': (all) => all.length > 0 && all[all.length - 1].type === 'run.succeeded',
      'ids rise': (all) => all.every((event, i) => i === 0 || after(all[i - 1], event)),
    }),
  );
}
