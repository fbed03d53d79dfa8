-- Overview: the whole state of one partition, or of the deployment's common keys, for operators, in one
-- consistent reading. A key of another type reads as missing.
--
-- ARGV: the processors
-- Returns the names and values below; now in ms, lives in ms as by PTTL, totals as count and cents
--   for each processor, waiting, held and declined as the count for each, saved as settle.lua writes
--   it, heartbeats as the hash of each living process

local function read(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then return false end
  return answer
end

local current = generation()
local oldest = read('ZRANGE', OPEN, 0, 0, 'WITHSCORES')
local totals = {}
for i = 1, #ARGV do
  local total = read('HMGET', LEDGER .. ARGV[i] .. ':' .. current .. ':total', 'count', 'cents')
  totals[#totals + 1] = total and total[1]
  totals[#totals + 1] = total and total[2]
end
local waiting, held = {}, {}
for i = 1, #ARGV do
  waiting[i] = read('ZCARD', WAITING .. ARGV[i])
  held[i] = read('ZCARD', HELD .. ARGV[i])
end
local now = now_ms()
local heartbeats = {}
for _, key in ipairs(read('ZRANGE', 'vitals' .. SUFFIX, 0, -1) or {}) do
  local fields = read('HGETALL', key)
  if fields and #fields > 0 then heartbeats[#heartbeats + 1] = fields end
end
return {
  'now', now,
  'backlog', read('ZCARD', OPEN),
  'oldest', oldest and oldest[2] or false,
  'in_flight', read('ZCARD', IN_FLIGHT),
  'dead', read('ZCARD', DEAD),
  'resolved', read('GET', RESOLUTIONS),
  'declined', read('HMGET', DECLINES, unpack(ARGV)),
  'incidents', read('LLEN', INCIDENTS),
  'selection', read('GET', SELECTION),
  'selection_life', read('PTTL', SELECTION),
  'reports', read('GET', 'healthcheck:reports' .. SUFFIX),
  'fees', read('GET', 'processors:fees' .. SUFFIX),
  'reconciled', read('GET', 'reconcile:last' .. SUFFIX),
  'override', read('GET', OVERRIDE),
  'override_life', read('PTTL', OVERRIDE),
  'paused', read('GET', PAUSED),
  'paused_life', read('PTTL', PAUSED),
  'totals', totals,
  'waiting', waiting,
  'held', held,
  'saved', read('HGETALL', SAVED),
  'heartbeats', heartbeats,
}
