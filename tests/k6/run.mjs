// Runs the k6 scripts once each in Node, with stand-ins for the parts of k6 that they use, against a real API: that
// they ask for what the API has, and understand its answers. Fails when a check of theirs does.
//     node run.mjs SCRIPT.js FUNCTION…
import { spawnSync } from 'node:child_process';
import { register } from 'node:module';
import { pathToFileURL } from 'node:url';

const failed = [];
const counted = {};

globalThis.__ENV = process.env;
globalThis.__VU = 1;
globalThis.__ITER = 0;

function request(method, url, body, params = {}) {
  const args = ['-sS', '-i', '--max-time', '30', '-X', method, url];
  for (const [name, value] of Object.entries(params.headers ?? {})) {
    args.push('-H', `${name}: ${value}`);
  }
  if (body !== undefined && body !== null) {
    args.push('--data-binary', body);
  }
  const began = Date.now();
  const { status, stdout, stderr } = spawnSync('curl', args, { encoding: 'utf8', maxBuffer: 1 << 26 });
  if (status !== 0) {
    throw new Error(`curl: ${stderr}`);
  }
  const end = stdout.indexOf('\r\n\r\n');
  const [first, ...lines] = stdout.slice(0, end).split('\r\n');
  const headers = {};
  for (const line of lines) {
    // As k6 names them.
    const name = line.slice(0, line.indexOf(':')).replace(/(^|-)[a-z]/g, (letter) => letter.toUpperCase());
    headers[name] = line.slice(line.indexOf(':') + 1).trim();
  }
  const text = stdout.slice(end + 4);
  return {
    status: Number(first.split(' ')[1]),
    body: text,
    headers,
    timings: { waiting: Date.now() - began },
    json: (path) => JSON.parse(text)[path],
  };
}

class Metric {
  constructor(name) {
    this.name = name;
  }
  add(value) {
    (counted[this.name] ??= []).push(Number(value));
  }
}

globalThis.k6 = {
  http: {
    get: (url, params) => request('GET', url, null, params),
    post: (url, body, params) => request('POST', url, body, params),
    setResponseCallback: () => {},
    expectedStatuses: () => null,
  },
  check(value, checks) {
    let all = true;
    for (const [name, holds] of Object.entries(checks)) {
      if (!holds(value)) {
        failed.push(`${name}: ${JSON.stringify(value).slice(0, 2000)}`);
        all = false;
      }
    }
    return all;
  },
  fail(text) {
    throw new Error(text);
  },
  Metric,
};

const modules = {
  k6: 'export const check = globalThis.k6.check, fail = globalThis.k6.fail;',
  'k6/http': 'export default globalThis.k6.http;',
  'k6/metrics': 'const M = globalThis.k6.Metric; export { M as Rate, M as Trend, M as Counter };',
};
const hooks = `
const modules = ${JSON.stringify(modules)};
export function resolve(name, context, next) {
  return modules[name] ? { url: 'k6-stub:' + name, shortCircuit: true } : next(name, context);
}
export function load(url, context, next) {
  if (url.startsWith('k6-stub:')) {
    return { format: 'module', source: modules[url.slice(8)], shortCircuit: true };
  }
  return next(url, url.endsWith('.js') ? { ...context, format: 'module' } : context);
}`;
register(`data:text/javascript,${encodeURIComponent(hooks)}`);

const [script, ...functions] = process.argv.slice(2);
const loaded = await import(pathToFileURL(script).href);
const data = loaded.setup?.();
for (const name of functions) {
  for (globalThis.__ITER = 0; globalThis.__ITER < 4; globalThis.__ITER++) {
    loaded[name](data);
  }
}
// A threshold on a metric that nothing adds to would hold whatever happens.
for (const metric of Object.keys(loaded.options.thresholds)) {
  if (!metric.startsWith('http_') && !(metric in counted)) {
    failed.push(`nothing is counted as ${metric}`);
  }
}
console.log(JSON.stringify({ counted, failed }));
process.exit(failed.length === 0 ? 0 : 1);
