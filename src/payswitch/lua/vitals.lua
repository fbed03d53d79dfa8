-- Heartbeat: one process writes its counts. A process that is silent for the given life is gone.
-- The first write is a DEL, so that it works out of memory.
--
-- KEYS: its hash; ARGV: its life (ms), then the hash's fields and values
-- Returns: now (ms)

demand('zset', 'vitals')
local now = now_ms()
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('ZADD', 'vitals', now, KEYS[1])
redis.call('ZREMRANGEBYSCORE', 'vitals', '-inf', now - ARGV[1])
return now
