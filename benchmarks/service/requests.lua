-- For wrk: each request bears the next token of the file that is named after `--`. At the end, one
-- line of JSON.

local requests = {}
local last = 0

function init(args)
  for token in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("POST", nil, { ["Authorization"] = "Bearer " .. token })
  end
end

function request()
  last = last % #requests + 1
  return requests[last]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "microseconds": %d, "errors": %d, "p50": %d, "p99": %d, "p999": %d}\n',
    summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
