-- Purge: a new generation begins, and nothing of the old one is left in queue, backlog, dead
-- letters or summary. Records of the old generation count as missing everywhere from here on;
-- forget.lua removes them, and LEFTOVERS says that there are some until it has. Throttle, lock,
-- selection and token counter stay.
--
-- Returns: the new generation

redis.call('UNLINK', QUEUE, OPEN, IN_FLIGHT, DEAD, INCIDENTS, WAKE, PURGING)
local new = redis.call('INCR', GENERATION)
redis.call('SET', LEFTOVERS, new)
return new
