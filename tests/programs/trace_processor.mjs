// Runs SQL on traces in Perfetto's trace processor, which its makers build for web workers alone.
//
//     node trace_processor.mjs DIRECTORY
//
// reads [{"trace": TEXT, "queries": [SQL, …]}, …] in JSON and writes [[ROWS, …], …].
//
// DIRECTORY has Perfetto's engine_bundle.js and trace_processor.wasm. Messages go both ways as
// its protos/perfetto/trace_processor/trace_processor.proto describes them.
import { readFileSync } from "node:fs";
import { join } from "node:path";

const directory = process.argv[2];
const bundle = readFileSync(join(directory, "engine_bundle.js"), "utf8");
const APPEND = 1, FINALIZE = 2, QUERY = 3;
const NULL = 1, INTEGER = 2, STRING = 4;

function varint(number) {
  const bytes = [];
  for (; number > 127; number >>>= 7) bytes.push((number & 127) | 128);
  return Buffer.from([...bytes, number]);
}

function number(field, value) {
  return Buffer.concat([varint(field << 3), varint(value)]);
}

function bytes(field, value) {
  return Buffer.concat([varint((field << 3) | 2), varint(value.length), value]);
}

function* varints(buffer) {
  for (let at = 0; at < buffer.length; at++) {
    let value = 0n, shift = 0n;
    for (; buffer[at] > 127; at++, shift += 7n) value |= BigInt(buffer[at] & 127) << shift;
    yield Number(BigInt.asIntN(64, value | (BigInt(buffer[at]) << shift)));
  }
}

// The fields of a message, by number: of each, all its values, as numbers or buffers.
function fields(buffer) {
  const found = {};
  let at = 0;
  const next = () => {
    const start = at;
    while (buffer[at++] > 127);
    return varints(buffer.subarray(start, at)).next().value;
  };
  while (at < buffer.length) {
    const key = next();
    let value;
    if ((key & 7) === 0) value = next();
    else if ((key & 7) === 2) { const size = next(); value = buffer.subarray(at, at += size); }
    else throw new Error(`wire type ${key & 7} is not expected here`);
    (found[key >> 3] ??= []).push(value);
  }
  return found;
}

// The engine's file, for which it asks as a worker may: at once.
class XMLHttpRequest {
  open(_method, name) { this.name = name; }
  send() { this.response = readFileSync(join(directory, this.name)); }
}

// An engine for one trace: a worker, which sees these values in place of node's globals.
async function engine() {
  const globals = {
    self: { location: { href: "http://localhost/engine_bundle.js" } },
    WorkerGlobalScope: class {},
    XMLHttpRequest,
    console: { ...console, log() {}, warn() {} },
    process: undefined,
  };
  new Function(...Object.keys(globals), bundle)(...Object.values(globals));
  const port = { replies: [], postMessage(reply) { this.replies.push(Buffer.from(reply)); } };
  globals.self.onmessage({ data: port });
  await new Promise(setImmediate); // it takes requests once a promise of its own was heard
  return (...request) => {
    port.onmessage({ data: new Uint8Array(bytes(1, Buffer.concat(request))) });
    const replies = port.replies.splice(0).flatMap((each) => fields(each)[1] ?? []).map(fields);
    for (const reply of replies) refuse(reply[5]);
    return replies;
  };
}

function refuse(errors) {
  if (errors?.[0].length) throw new Error(String(errors[0]));
}

function rows(results) {
  const rows = [];
  let columns;
  for (const result of results) {
    refuse(result[2]);
    columns ??= result[1]?.length;
    for (const batch of (result[3] ?? []).map(fields)) {
      const integers = (batch[2] ?? []).flatMap((packed) => [...varints(packed)]).values();
      const strings = Buffer.concat(batch[5] ?? []).toString().split("\0").values();
      const cells = Array.from(Buffer.concat(batch[1] ?? []), (kind) => {
        if (kind === NULL) return null;
        if (kind !== INTEGER && kind !== STRING) throw new Error(`cells of kind ${kind}`);
        return (kind === INTEGER ? integers : strings).next().value;
      });
      while (cells.length) rows.push(cells.splice(0, columns));
    }
  }
  return rows;
}

const found = [];
for (const { trace, queries } of JSON.parse(readFileSync(0, "utf8"))) {
  const call = await engine();
  for (const reply of call(number(2, APPEND), bytes(101, Buffer.from(trace)))) {
    for (const result of (reply[201] ?? []).map(fields)) refuse(result[2]);
  }
  for (const reply of call(number(2, FINALIZE))) {
    for (const result of (reply[212] ?? []).map(fields)) refuse(result[1]);
  }
  found.push(queries.map((sql) => {
    const replies = call(number(2, QUERY), bytes(103, bytes(1, Buffer.from(sql))));
    return rows(replies.flatMap((reply) => reply[203] ?? []).map(fields));
  }));
}
console.log(JSON.stringify(found));
