-- Overview: everything that an operator wants to know at one instant, in one consistent reading.
-- What somebody else keeps under one of these keys reads as if it weren't there.
--
-- ARGV: the processors
-- Returns names and values: now (ms), what each key or count below is called (lives in ms, as PTTL
--   says them), totals (count and cents for each processor), heartbeats (each living process' hash)

local function read(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then return false end
  return answer
end

local current = generation()
local oldest = read('ZRANGE', OPEN, 0, 0, 'WITHSCORES')
local totals = {}
for i = 1, #ARGV do
  local total = read('HMGET', 'ledger:' .. ARGV[i] .. ':' .. current .. ':total', 'count', 'cents')
  totals[#totals + 1] = total and total[1]
  totals[#totals + 1] = total and total[2]
end
local now = now_ms()
local heartbeats = {}
for _, key in ipairs(read('ZRANGE', 'vitals', 0, -1) or {}) do
  local fields = read('HGETALL', key)
  if fields and #fields > 0 then heartbeats[#heartbeats + 1] = fields end
end
return {
  'now', now,
  'backlog', read('ZCARD', OPEN),
  'oldest', oldest and oldest[2] or false,
  'in_flight', read('ZCARD', IN_FLIGHT),
  'dead', read('ZCARD', DEAD),
  'incidents', read('LLEN', INCIDENTS),
  'selection', read('GET', SELECTION),
  'selection_life', read('PTTL', SELECTION),
  'reports', read('GET', 'healthcheck:reports'),
  'fees', read('GET', 'processors:fees'),
  'reconciled', read('GET', 'reconcile:last'),
  'override', read('GET', OVERRIDE),
  'override_life', read('PTTL', OVERRIDE),
  'paused', read('GET', PAUSED),
  'paused_life', read('PTTL', PAUSED),
  'totals', totals,
  'heartbeats', heartbeats,
}
