-- Stop claims: stops workers' claims while a purge waits for calls under way.
--
-- ARGV: latest (ms by Redis' clock), after which it does nothing; for how long (ms)
-- Returns: 1, or 0 if it is too late

if now_ms() > tonumber(ARGV[1]) then return 0 end
write_even_out_of_memory()
redis.call('SET', PURGING, '1', 'PX', ARGV[2])
return 1
