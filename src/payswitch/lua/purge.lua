-- Purge: a new generation begins, and nothing of the old one is left in queue, backlog, dead
-- letters or summary. Records of the old generation count as missing everywhere from here on;
-- forget.lua removes them, and LEFTOVERS says that there are some until it has. Throttle, lock,
-- selection, operators' orders and token counter stay.
--
-- ARGV: latest (ms by Redis' clock), after which nothing is done, for the caller has given up; the
--   processors' names
-- Returns: the new generation, or 0 when it is too late

if now_ms() > tonumber(ARGV[1]) then return 0 end
-- What INCR would refuse must not be found out after the queue is gone.
local number = tonumber(generation())
if not number or number >= 2 ^ 53 or string.format('%.0f', number) ~= generation() then
  error(GENERATION .. ' holds no number to add to')
end
write_even_out_of_memory()
redis.call('UNLINK', QUEUE, OPEN, IN_FLIGHT, DEAD, INCIDENTS, WAKE, PURGING,
  FOLDED, LEDGER_FULL)
for i = 2, #ARGV do redis.call('UNLINK', WAITING .. ARGV[i]) end
local new = redis.call('INCR', GENERATION)
redis.call('SET', LEFTOVERS, new)
return new
