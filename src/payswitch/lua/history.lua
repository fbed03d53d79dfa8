-- History: one sample of the cluster joins those of the last minutes.
--
-- KEYS: the list; ARGV: the sample (JSON), how many are kept, how long they are (ms)

write_even_out_of_memory()
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], -ARGV[2], -1)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
