-- Know: writes the processors that workers know, even out of memory.
--
-- KEYS: the generation, the hash; ARGV: for the audit trail, if an operator has changed them: act ('' for none), who,
--   its object, why; then names and URLs

demand('hash', KEYS[2])
demand('stream', AUDIT)
write_even_out_of_memory()
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], unpack(ARGV, 5))
if ARGV[1] ~= '' then record_act(unpack(ARGV, 1, 4)) end
