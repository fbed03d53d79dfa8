-- Overview: everything that an operator wants to know at one instant, in one consistent reading.
-- What somebody else keeps under one of these keys reads as if it weren't there.
--
-- ARGV: the processors
-- Returns: now (ms), backlog, when its oldest was accepted (ms), in flight, dead letters, incidents;
--   selection, its rest of life (ms), reports, fees, reconciliation, override, its rest of life,
--   paused, its rest of life; a list with count and cents for each processor; a list with key and
--   hash for each process that lives

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
local vitals = {}
for _, key in ipairs(read('ZRANGE', 'vitals', 0, -1) or {}) do
  local fields = read('HGETALL', key)
  if fields and #fields > 0 then
    vitals[#vitals + 1] = key
    vitals[#vitals + 1] = fields
  end
end
return { now, read('ZCARD', OPEN), oldest and oldest[2] or false, read('ZCARD', IN_FLIGHT),
  read('ZCARD', DEAD), read('LLEN', INCIDENTS), read('GET', SELECTION), read('PTTL', SELECTION),
  read('GET', 'healthcheck:reports'), read('GET', 'processors:fees'), read('GET', 'reconcile:last'),
  read('GET', OVERRIDE), read('PTTL', OVERRIDE),
  read('GET', PAUSED), read('PTTL', PAUSED), totals, vitals }
