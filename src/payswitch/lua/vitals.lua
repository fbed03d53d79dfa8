-- Heartbeat: one process writes its counts. A process that is silent for the given life is gone.
-- The first write is a DEL, so that it works out of memory.
--
-- KEYS: the generation, its hash; ARGV: its life (ms), then the hash's fields and values
-- Returns: now (ms)

local HEARTBEATS = 'vitals' .. SUFFIX
demand('zset', HEARTBEATS)
local now = now_ms()
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[2], ARGV[1])
redis.call('ZADD', HEARTBEATS, now, KEYS[2])
redis.call('ZREMRANGEBYSCORE', HEARTBEATS, '-inf', now - ARGV[1])
return now
