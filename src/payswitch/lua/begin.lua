-- Begin: writes into a partition what the deployment is begun with, if it holds what is expected.
--
-- KEYS: the generation, what the deployment was begun with; ARGV: what it is begun with, what is
--   expected in its place ('' for nothing)
-- Returns: what it holds now

local found = redis.call('GET', KEYS[2]) or ''
if found == ARGV[2] then
  redis.call('SET', KEYS[2], ARGV[1])
  redis.call('SET', GENERATION, '0', 'NX')
  return ARGV[1]
end
return found
