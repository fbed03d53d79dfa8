-- Order: writes an operator's order for as long as it holds, even out of memory.
--
-- KEYS: the order's key; ARGV: the order (JSON), its life (ms, 0 for no end)

write_even_out_of_memory()
if tonumber(ARGV[2]) > 0 then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[1])
end
