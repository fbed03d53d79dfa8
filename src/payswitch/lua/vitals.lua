-- Heartbeat: one process says that it lives and what it has counted; silent for its life, it is gone.
-- It begins with a DEL, so it may go on where Redis is out of memory.
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
