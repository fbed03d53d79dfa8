-- Note: writes a note for operators, even out of memory.
--
-- KEYS: the generation, the key; ARGV: the note (JSON)

write_even_out_of_memory()
redis.call('SET', KEYS[2], ARGV[1])
