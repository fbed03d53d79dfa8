-- Purge: a new generation begins, with empty queue, backlog, dead letters and summary. From now on
-- records of the old generation count as missing everywhere. forget.lua removes them; until then
-- LEFTOVERS exists. Throttle, lock, selection, operators' orders and their audit trail stay.
--
-- ARGV: latest (ms by Redis' clock), after which it does nothing, as the caller has given up;
--   for the audit trail: act ('' for none), who, why; then the processors' names
-- Returns: the new generation, or 0 if it is too late

if now_ms() > tonumber(ARGV[1]) then return 0 end
-- INCR must not fail after the queue is gone.
local number = tonumber(generation())
if not number or number >= 2 ^ 53 or string.format('%.0f', number) ~= generation() then
  error(GENERATION .. ' holds no number to add to')
end
demand('stream', AUDIT)
write_even_out_of_memory()
redis.call('UNLINK', QUEUE, OPEN, IN_FLIGHT, DEAD, RESOLVED, RESOLUTIONS, DECLINES,
  INCIDENTS, RESOLVED_INCIDENTS, WAKE, PURGING, FOLDED, LEDGER_FULL, CURRENCY, SAVED)
for i = 5, #ARGV do redis.call('UNLINK', WAITING .. ARGV[i], HELD .. ARGV[i]) end
local new = redis.call('INCR', GENERATION)
redis.call('SET', LEFTOVERS, new)
if ARGV[2] ~= '' then
  record_act(ARGV[2], ARGV[3], 'all payments; generation ' .. new .. ' begins', ARGV[4])
end
return new
