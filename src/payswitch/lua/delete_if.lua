-- Delete if: removes a key only while it holds the caller's value, so that only its holder releases
-- a lock.
--
-- KEYS: the generation, the key; ARGV: its value. Returns: 1 if it was removed

if redis.call('GET', KEYS[2]) == ARGV[1] then return redis.call('DEL', KEYS[2]) end
return 0
