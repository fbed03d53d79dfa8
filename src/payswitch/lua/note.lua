-- Note: writes a note for operators, even out of memory.
--
-- KEYS: the key; ARGV: the note (JSON)

write_even_out_of_memory()
redis.call('SET', KEYS[1], ARGV[1])
